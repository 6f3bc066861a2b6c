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
mod tests;
