//! What a status shows, and when it is written.

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
        let ready = Some(crate::computer::report::Ready { status, reason, message: "why".to_owned() }).filter(|_| deletion.is_empty());
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
    let status = serde_json::json!({"nodeName": "n", "provisioningSteps": [{"id": "stop-pods", "name": "Stop", "status": "Completed"}]});
    let computer = serde_json::json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}, "status": status});
    let view = View::of(computer.clone());
    let computer: Computer = serde_json::from_value(computer).expect("a Computer");
    let report = Report { phase: Some(crate::resources::Phase::Deleting), ..Report::default() };
    let new = compute(&view, &computer, &report);
    assert_eq!((new.node_name.as_deref(), new.provisioning_steps.len()), (Some("n"), 1));
}
