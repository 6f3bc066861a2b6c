//! The Computer's status, computed from the plan's report. `reconcile/publish.rs` sends it, only when it differs (L6), fenced by UID (S4).
//! A report, never an input to a plan (S9), with one exception that is a copy: `children`, if a record is lost.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::report::Report;
use super::time_to_live;
use super::view::{View, has_finalizer};
use crate::guards::{self, Guard};
use crate::resources::conditions::{self, types};
use crate::resources::reasons::Reason;
use crate::resources::steps::CurrentStep;
use crate::resources::{Computer, ComputerStatus, Phase, Step, StepStatus};
use crate::runtime::patch;

/// The status for a report; times of unchanged steps and conditions are kept. A report without steps (a read before the plan
/// failed, a deletion has not started yet) leaves the steps as they are.
pub fn compute(view: &View, computer: &Computer, report: &Report) -> ComputerStatus {
    let old = computer.status.clone().unwrap_or_default();
    let generation = computer.metadata.generation;
    let now = Time(whole_seconds(view.now.max(known(computer))));
    let mut status = ComputerStatus {
        observed_generation: generation,
        phase: report.phase.or(old.phase),
        step: report.current.map(|s| s.id().to_owned()),
        ..old.clone()
    };
    if let Some(class) = &report.class_name {
        status.class_name = Some(class.clone());
    }
    if let Some(record) = &view.record {
        status.expires_at = time_to_live::expires_at(computer, Some(record)).map(Time);
        let children = &record.spec.state.children;
        status.children = Some(children.clone());
        status.key_allows.clone_from(&record.spec.state.key_allow);
        status.credential_secret_name = children.secret_uid.as_ref().and(children.secret_name.clone());
    }
    if !report.provisioning.is_empty() {
        status.node_name.clone_from(&report.node_name);
        status.provisioning_steps = renew_times(&old.provisioning_steps, &report.provisioning, &now);
    } else if !report.deletion.is_empty() {
        status.deleted_at =
            view.record.as_ref().and_then(|r| r.spec.state.deletion.as_ref()).map(|d| d.deleted_at.clone()).or(old.deleted_at);
        status.deletion_steps = keep_times(&old.deletion_steps, &report.deletion, &now);
    }
    set_conditions(&mut status, report, generation, &now);
    status
}

/// What the API server's own times say has passed: the operator's may be a little behind.
fn known(computer: &Computer) -> Timestamp {
    let times = [&computer.metadata.creation_timestamp, &computer.metadata.deletion_timestamp];
    times.into_iter().flatten().map(|t| t.0).max().unwrap_or(Timestamp::MIN)
}

fn set_conditions(status: &mut ComputerStatus, report: &Report, generation: Option<i64>, now: &Time) {
    let list = &mut status.conditions;
    if let Some(ready) = &report.ready {
        conditions::set(list, types::READY, ready.status, ready.reason, &ready.message, generation, now);
        conditions::set_stalled(list, ready.status, ready.reason, &ready.message, generation, now);
    }
    if report.deletion.is_empty() {
        match &report.drift {
            Some(drift) => conditions::set(list, types::DRIFTED, true, Reason::ClassChanged, drift, generation, now),
            None => conditions::remove(list, types::DRIFTED),
        }
    } else {
        conditions::remove(list, types::STALLED);
        conditions::set(
            list,
            types::READY,
            false,
            Reason::Deleting,
            "the computer is being deleted; its key no longer authenticates",
            generation,
            now,
        );
        let step = report.current.map_or("", CurrentStep::id);
        let reason = report.blocker.as_ref().map_or(Reason::InProgress, |b| b.reason);
        conditions::set(list, types::DELETING, true, reason, &at_step(step, report), generation, now);
    }
    match &report.blocker {
        Some(blocker) => conditions::set(list, types::BLOCKED, true, blocker.reason, &blocker.message, generation, now),
        None => conditions::remove(list, types::BLOCKED),
    }
}

/// The step, how far it is, and what it waits for.
fn at_step(step: &str, report: &Report) -> String {
    let blocker = report.blocker.as_ref().map(|b| b.message.as_str());
    match (report.progress.as_deref(), blocker) {
        (None, None) => format!("at step {step}"),
        (Some(text), None) | (None, Some(text)) => format!("at step {step}: {text}"),
        (Some(progress), Some(blocker)) => format!("at step {step} ({progress}): {blocker}"),
    }
}

fn ended(step: &Step) -> bool {
    matches!(step.status, StepStatus::Completed | StepStatus::Skipped | StepStatus::NotApplicable)
}

/// Provisioning steps with their times. One that runs again, because its pod is replaced, does not keep those of the first run.
fn renew_times(old: &[Step], new: &[Step], now: &Time) -> Vec<Step> {
    let mut old = old.to_vec();
    let again = |step: &Step| {
        let mut step = step.clone();
        let Some(before) = old.iter_mut().find(|o| o.id == step.id && ended(o)) else { return step };
        let later = step.started_at.as_ref() > before.completed_at.as_ref();
        if later || !ended(&step) {
            (before.started_at, before.completed_at) = (None, None);
            step.started_at = step.started_at.filter(|_| later);
        }
        step
    };
    let new: Vec<Step> = new.iter().map(again).collect();
    keep_times(&old, &new, now)
}

/// Steps with the times that the status already shows for them; a new state gets the time of this reconcile.
fn keep_times(old: &[Step], new: &[Step], now: &Time) -> Vec<Step> {
    let started = |s: &Step| !matches!(s.status, StepStatus::Pending);
    new.iter()
        .map(|step| {
            let before = old.iter().find(|o| o.id == step.id);
            let mut step = step.clone();
            let kept = before.and_then(|b| b.started_at.clone());
            step.started_at = started(&step).then(|| kept.or(step.started_at.take()).unwrap_or_else(|| now.clone()));
            let kept = before.filter(|b| ended(b)).and_then(|b| b.completed_at.clone());
            step.completed_at = ended(&step).then(|| kept.or(step.completed_at.take()).unwrap_or_else(|| now.clone()));
            // A step that was seen finished earlier did not start now.
            if step.completed_at.is_some() {
                step.started_at = step.started_at.min(step.completed_at.clone());
            }
            step.error = step.error.as_deref().map(|e| conditions::truncate(e, 1024));
            seconds(&mut step);
            step
        })
        .collect()
}

/// The API keeps whole seconds: anything finer would differ from what is read back, and be written again in a loop.
fn seconds(step: &mut Step) {
    for time in [&mut step.started_at, &mut step.completed_at].into_iter().flatten() {
        time.0 = whole_seconds(time.0);
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Patch that replaces the status of this UID. `None`: nothing to write.
pub fn patch(computer: &Computer, status: &ComputerStatus) -> Option<json_patch::Patch> {
    if computer.status.as_ref().is_some_and(|old| old == status || differs_in_pod_times_only(old, status)) {
        return None;
    }
    let fence = guards::on(Guard::StatusFence).then(|| patch::same_uid(&computer.metadata));
    let write = patch::add(["status"], json!(status));
    Some(json_patch::Patch(fence.into_iter().chain([write]).collect()))
}

/// Whether a new status only shows how far a creation or a deletion is, so that it can be held for a moment. The end of a creation, that a
/// computer is no longer ready, and what blocks it or no longer does, is shown at once; so is the last status of a computer that only a
/// finalizer of another controller keeps.
pub fn is_progress(computer: &Computer, new: &ComputerStatus) -> bool {
    let blocked = |status: &ComputerStatus| {
        status.phase == Some(Phase::Error) || status.conditions.iter().any(|c| [types::BLOCKED, types::STALLED].contains(&c.type_.as_str()))
    };
    let before = computer.status.as_ref().and_then(|old| old.phase);
    let going_on = match new.phase {
        Some(Phase::Provisioning) => !matches!(before, Some(Phase::Active | Phase::Suspended)),
        Some(Phase::Deleting) => has_finalizer(computer),
        _ => false,
    };
    going_on && !blocked(new) && !computer.status.as_ref().is_some_and(blocked)
}

/// Whether two statuses of a deletion differ only in when its pods stopped: part of the copy of the record. That is written with the next step.
fn differs_in_pod_times_only(old: &ComputerStatus, new: &ComputerStatus) -> bool {
    let timeless = |status: &ComputerStatus| {
        let mut status = status.clone();
        for pod in status.children.iter_mut().flat_map(|children| &mut children.pods) {
            (pod.stopped_at, pod.vanished_at) = (None, None);
        }
        status
    };
    new.phase == Some(Phase::Deleting) && timeless(old) == timeless(new)
}

/// What this process has written in the last seconds, by UID. The same status is not written again at once: otherwise two leaders with
/// different caches would overwrite each other's status in a loop (L6, S10).
#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<String, (String, Instant)>>);

impl Written {
    /// How long the same status is not written again.
    pub const PAUSE: Duration = Duration::from_secs(10);

    /// Whether this status, apart from times and texts, was the last one written for the UID, a moment ago. Error texts may differ each time
    /// (a port, a request id), and two leaders word the same failure differently; a changed reason is written at once.
    pub fn lately(&self, uid: &str, status: &ComputerStatus) -> bool {
        let all = self.0.lock();
        all.get(uid).is_some_and(|(text, at)| at.elapsed() < Self::PAUSE && *text == timeless(status))
    }

    /// It was written.
    pub fn note(&self, uid: &str, status: &ComputerStatus) {
        let mut all = self.0.lock();
        all.retain(|_, (_, at)| at.elapsed() < Self::PAUSE);
        all.insert(uid.to_owned(), (timeless(status), Instant::now()));
    }

    /// The computer is gone.
    pub fn forget(&self, uid: &str) {
        self.0.lock().remove(uid);
    }
}

fn timeless(status: &ComputerStatus) -> String {
    let texts = !guards::on(Guard::QuietBackoff);
    let mut status = status.clone();
    for step in status.provisioning_steps.iter_mut().chain(&mut status.deletion_steps) {
        (step.started_at, step.completed_at) = (None, None);
        step.error = step.error.take().map(|text| if texts { text } else { String::new() });
    }
    for condition in &mut status.conditions {
        condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
        if !texts {
            condition.message.clear();
        }
    }
    serde_json::to_string(&status).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the simulator: two leaders, all watches cut, 4,431 requests.
    #[tokio::test(start_paused = true)]
    async fn a_status_that_another_leader_has_overwritten_is_not_written_again_at_once() {
        let (written, old) = (Written::default(), Time(Timestamp::from_second(100).expect("a time")));
        let status = |s: StepStatus, at: &Time| ComputerStatus { deletion_steps: keep_times(&[], &[step(s)], at), ..Default::default() };
        let ours = status(StepStatus::Running, &old);
        assert!(!written.lately("u", &ours));
        written.note("u", &ours);
        let later = status(StepStatus::Running, &Time(Timestamp::from_second(105).expect("a time")));
        assert!(written.lately("u", &later), "only its times differ");
        assert!(!written.lately("u", &status(StepStatus::Completed, &old)), "a change is written at once");
        assert!(!written.lately("another", &ours));
        tokio::time::advance(Written::PAUSE).await;
        assert!(!written.lately("u", &ours), "it is written later");
    }

    /// C1: an error text with a counter in it was a new status each time.
    #[tokio::test(start_paused = true)]
    async fn a_text_that_differs_is_no_news_and_a_reason_that_differs_is() {
        let blocked = |reason: Reason, text: &str| {
            let mut status = ComputerStatus { deletion_steps: vec![step(StepStatus::Blocked)], ..Default::default() };
            status.deletion_steps[0].error = Some(text.to_owned());
            conditions::set(&mut status.conditions, types::BLOCKED, true, reason, text, None, &Time(Timestamp::UNIX_EPOCH));
            status
        };
        let written = Written::default();
        written.note("u", &blocked(Reason::StoreUnavailable, "request 1"));
        assert!(written.lately("u", &blocked(Reason::StoreUnavailable, "request 2")));
        assert!(!written.lately("u", &blocked(Reason::Forbidden, "request 2")));
        written.forget("u");
        assert!(!written.lately("u", &blocked(Reason::StoreUnavailable, "request 1")));
    }

    /// The time at which a pod stopped is part of the copy of the record. It is written with the next step, not by a write of its own.
    #[test]
    fn a_deletion_does_not_write_only_the_times_of_its_pods() {
        let metadata = json!({"name": "c", "namespace": "t", "uid": "u"});
        let status = |phase: Phase, pod: serde_json::Value, step: &str| -> ComputerStatus {
            serde_json::from_value(json!({"phase": phase, "step": step, "children": {"pods": [pod]}})).expect("a status")
        };
        let before = json!({"name": "machine-1", "uid": "1"});
        let stopped = json!({"name": "machine-1", "uid": "1", "stoppedAt": "2026-01-01T00:00:00Z"});
        let written = |phase: Phase, new: &ComputerStatus| {
            let old = status(phase, before.clone(), "stop-pods");
            let computer: Computer = serde_json::from_value(json!({"metadata": metadata, "spec": {}, "status": old})).expect("a Computer");
            patch(&computer, new).is_some()
        };
        assert!(!written(Phase::Deleting, &status(Phase::Deleting, stopped.clone(), "stop-pods")));
        assert!(written(Phase::Deleting, &status(Phase::Deleting, stopped.clone(), "archive-sessions")), "the next step");
        let other = json!({"name": "machine-1", "uid": "2"});
        assert!(written(Phase::Deleting, &status(Phase::Deleting, other, "stop-pods")), "another pod");
        assert!(written(Phase::Active, &status(Phase::Active, stopped, "stop-pods")), "a computer that lives");
    }

    #[test]
    fn only_progress_is_held() {
        let status = |phase: Phase, condition: Option<&str>| {
            let mut status = ComputerStatus { phase: Some(phase), ..Default::default() };
            if let Some(type_) = condition {
                conditions::set(&mut status.conditions, type_, true, Reason::Forbidden, "", None, &at(1));
            }
            status
        };
        let held = |old: Option<ComputerStatus>, new: &ComputerStatus, finalizers: &[&str]| {
            let metadata = json!({"name": "c", "namespace": "t", "uid": "u", "finalizers": finalizers});
            is_progress(&serde_json::from_value(json!({"metadata": metadata, "spec": {}, "status": old})).expect("a Computer"), new)
        };
        let ours = [crate::resources::DELETION_FINALIZER];
        let [creation, deletion] = [Phase::Provisioning, Phase::Deleting].map(|phase| status(phase, None));
        assert!(held(None, &creation, &ours) && held(Some(creation.clone()), &deletion, &ours));
        assert!(held(Some(status(Phase::Active, None)), &status(Phase::Deleting, Some(types::DELETING)), &ours));
        assert!(!held(Some(status(Phase::Active, None)), &creation, &ours), "it is no longer ready");
        assert!(!held(Some(deletion.clone()), &deletion, &["foregroundDeletion"]), "it is released");
        for new in [status(Phase::Active, None), status(Phase::Suspended, None), status(Phase::Error, None)] {
            assert!(!held(None, &new, &ours), "{new:?}");
        }
        for type_ in [types::BLOCKED, types::STALLED] {
            let blocked = status(Phase::Deleting, Some(type_));
            assert!(!held(Some(deletion.clone()), &blocked, &ours) && !held(Some(blocked), &deletion, &ours), "{type_}");
        }
    }

    /// C24: a deletion that the API server refused wiped the steps and the node of a computer that lives.
    #[test]
    fn a_report_without_steps_leaves_the_steps_of_a_living_computer() {
        let status =
            json!({"phase": "Active", "nodeName": "n", "provisioningSteps": [{"id": "start-pod", "name": "Start", "status": "Completed"}]});
        let view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}, "status": status}));
        let computer = view.computer.clone().expect("a Computer");
        let report = Report { phase: Some(crate::resources::Phase::Deleting), ..Report::default() };
        let new = compute(&view, &computer, &report);
        assert_eq!((new.node_name.as_deref(), new.provisioning_steps.len()), (Some("n"), 1));
    }

    #[test]
    fn the_status_shows_what_the_record_says_of_the_expiry_and_the_key() {
        let metadata = json!({"name": "c", "namespace": "t", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"});
        let mut view = View::of(json!({"metadata": metadata, "spec": {}}));
        let spec = json!({"namespace": "t", "computer": "c", "snapshot": {"maxTimeToLiveSeconds": 600}, "state": {"keyAllow": ["get"]}});
        view.record = Some(serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": spec})).expect("a record"));
        let mut computer = view.computer.clone().expect("a Computer");
        let status = compute(&view, &computer, &Report::default());
        assert_eq!(status.expires_at, Some(Time("2026-01-01T00:10:00Z".parse().expect("a time"))));
        assert_eq!(status.key_allows, Some(vec!["get".to_owned()]));
        // A record that cannot be read changes neither.
        (view.record, computer.status) = (None, Some(status.clone()));
        assert_eq!(compute(&view, &computer, &Report::default()).expires_at, status.expires_at);
    }

    /// `helm --wait` and others fail at once instead of waiting for what cannot happen, and not for a class that may be applied next.
    #[test]
    fn what_needs_a_change_is_stalled_until_it_is_changed() {
        let mut view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}}));
        let mut stalled = |status: bool, reason: Reason, deletion: Vec<Step>| {
            let computer = view.computer.clone().expect("a Computer");
            let ready = Some(super::super::report::Ready { status, reason, message: "why".to_owned() }).filter(|_| deletion.is_empty());
            let new = compute(&view, &computer, &Report { deletion, ready, ..Report::default() });
            view.computer = Some(Computer { status: Some(new.clone()), ..computer });
            new.conditions.into_iter().find(|c| c.type_ == types::STALLED).map(|c| (c.reason, c.message))
        };
        let shown = Some(("ClassNotAccepted".to_owned(), "why".to_owned()));
        assert_eq!(stalled(false, Reason::ClassNotFound, vec![]), None);
        assert_eq!(stalled(false, Reason::ClassNotAccepted, vec![]), shown);
        assert_eq!(stalled(false, Reason::Provisioning, vec![]), None);
        assert_eq!(stalled(false, Reason::ClassNotAccepted, vec![]), shown);
        assert_eq!(stalled(false, Reason::Deleting, vec![step(StepStatus::Running)]), None);
    }

    fn step(status: StepStatus) -> Step {
        Step { id: "stop-pods".into(), name: "Stop".into(), status, ..Step::default() }
    }

    #[test]
    fn times_of_a_step_are_kept_so_that_a_settled_status_is_never_written_again() {
        let first = Time(Timestamp::from_second(100).expect("a time"));
        let later = Time(Timestamp::from_second(200).expect("a time"));
        let running = keep_times(&[], &[step(StepStatus::Running)], &first);
        let completed = keep_times(&running, &[step(StepStatus::Completed)], &later);
        assert_eq!(completed[0].started_at.as_ref(), Some(&first));
        assert_eq!(completed[0].completed_at.as_ref(), Some(&later));
        assert_eq!(keep_times(&completed, &[step(StepStatus::Completed)], &Time(Timestamp::from_second(300).expect("a time"))), completed);
    }

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).expect("a time"))
    }

    /// A pod that was started again was not started when the computer was created.
    #[test]
    fn a_step_that_begins_again_begins_now() {
        let first = renew_times(&[], &[step(StepStatus::Running)], &at(100));
        let first = renew_times(&first, &[step(StepStatus::Completed)], &at(110));
        let again = renew_times(&first, &[step(StepStatus::Running)], &at(500));
        assert_eq!((again[0].started_at.as_ref(), again[0].completed_at.as_ref()), (Some(&at(500)), None));
        let again = renew_times(&again, &[step(StepStatus::Completed)], &at(520));
        assert_eq!((again[0].started_at.as_ref(), again[0].completed_at.as_ref()), (Some(&at(500)), Some(&at(520))));
        // The pod was replaced between two looks.
        let replaced = Step { started_at: Some(at(700)), ..step(StepStatus::Completed) };
        let between = renew_times(&again, std::slice::from_ref(&replaced), &at(720));
        assert_eq!((between[0].started_at.as_ref(), between[0].completed_at.as_ref()), (Some(&at(700)), Some(&at(720))));
        assert_eq!(renew_times(&between, &[replaced], &at(900)), between, "L6");
    }

    /// A step that was seen finished a while ago did not begin now.
    #[test]
    fn no_step_begins_after_it_has_ended() {
        let done = Step { completed_at: Some(at(90)), ..step(StepStatus::Completed) };
        let shown = keep_times(&[], &[done], &at(100));
        assert!(shown[0].started_at <= shown[0].completed_at, "{shown:?}");
    }

    /// Nothing happened to a computer before it was created, whatever the operator's time says.
    #[test]
    fn no_step_begins_before_the_computer_was_created() {
        let computer = serde_json::json!({"metadata": {"name": "c", "namespace": "t", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}});
        let mut view = View::of(computer.clone());
        let computer: Computer = serde_json::from_value(computer).expect("a Computer");
        view.now = computer.metadata.creation_timestamp.as_ref().expect("a time").0 - jiff::SignedDuration::from_secs(1);
        let report = Report { provisioning: vec![step(StepStatus::Running)], ..Report::default() };
        let status = compute(&view, &computer, &report);
        assert_eq!(status.provisioning_steps[0].started_at, computer.metadata.creation_timestamp);
    }

    /// A deletion that the operator asks for and that is refused takes nothing from the status of a computer that lives.
    #[test]
    fn a_report_without_steps_takes_none_away() {
        let status =
            serde_json::json!({"nodeName": "n", "provisioningSteps": [{"id": "stop-pods", "name": "Stop", "status": "Completed"}]});
        let computer = serde_json::json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}, "status": status});
        let view = View::of(computer.clone());
        let computer: Computer = serde_json::from_value(computer).expect("a Computer");
        let report = Report { phase: Some(crate::resources::Phase::Deleting), ..Report::default() };
        let new = compute(&view, &computer, &report);
        assert_eq!((new.node_name.as_deref(), new.provisioning_steps.len()), (Some("n"), 1));
    }
}
