//! Events: each deletion step that changed its state, its end, and what blocks a computer outside of these steps, on the Computer; and
//! what blocks a deletion whose Computer is gone, on its record. Best effort: a terminating namespace refuses events, and nothing ever
//! waits for one. Bounded: each reason of a computer once in 50 minutes, each step's state once in 10.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource as _;
use kube::runtime::events::{Event, EventType, Recorder};
use tokio::time::Instant;

use super::report::Report;
use super::view::View;
use crate::resources::conditions::truncate;
use crate::resources::{Computer, Phase, Step, StepStatus};

/// Longest time for one event.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long a warning is not repeated: the API server keeps events for an hour.
const AGAIN: Duration = Duration::from_secs(50 * 60);
/// How long a step that ended is not told again: a cache that is behind shows it under way for as long (L6).
const BEHIND: Duration = Duration::from_secs(10 * 60);
/// Time between two looks for what may be forgotten.
const SWEEP: Duration = Duration::from_secs(60);
/// The API's bound on a note is 1,024 bytes.
const NOTE: usize = 1000;

/// Publishes events.
pub struct Events {
    recorder: Recorder,
    told: Mutex<Told>,
}

/// What was told of which computer, and until when it is not told again.
struct Told {
    until: HashMap<(String, String), Instant>,
    swept: Instant,
}

impl Events {
    /// Publishes through the recorder.
    pub fn new(recorder: Recorder) -> Self {
        Self { recorder, told: Mutex::new(Told { until: HashMap::new(), swept: Instant::now() }) }
    }

    /// One event for each deletion step that the Computer's old status shows in another state.
    pub async fn of_steps(&self, view: &View, computer: &Computer, report: &Report) {
        if view.namespace_terminating {
            return;
        }
        let old = computer.status.as_ref().map(|s| s.deletion_steps.clone()).unwrap_or_default();
        let reference = ObjectReference { uid: Some(view.uid.clone()), ..computer.object_ref(&()) };
        for step in &report.deletion {
            let before = old.iter().find(|o| o.id == step.id).map_or(StepStatus::Pending, |o| o.status);
            if step.status == before || step.status == StepStatus::Pending {
                continue;
            }
            let blocked = step.status == StepStatus::Blocked;
            let why = report.blocker.as_ref().filter(|_| blocked).map_or("", |b| b.reason);
            if !self.news(&view.uid, format!("{} {why}", reason_of(step)), if blocked { AGAIN } else { BEHIND }) {
                continue;
            }
            let type_ = if blocked { EventType::Warning } else { EventType::Normal };
            let note = step.error.clone().unwrap_or_else(|| format!("{}: {}", step.name, step.status.as_str()));
            self.publish(event(type_, reason_of(step), &note, &step.id), &reference).await;
        }
        self.of_blocker(view, report, &reference).await;
    }

    /// What blocks a computer outside of the deletion steps: while it is provisioned, or at the release.
    async fn of_blocker(&self, view: &View, report: &Report, reference: &ObjectReference) {
        if report.deletion.iter().any(|step| step.status == StepStatus::Blocked) {
            return;
        }
        let Some(blocker) = report.blocker.as_ref().filter(|b| self.news(&view.uid, b.reason.to_owned(), AGAIN)) else { return };
        let step = report.current.as_deref().unwrap_or("provisioning");
        self.publish(event(EventType::Warning, blocker.reason.to_owned(), &format!("{step}: {}", blocker.message), step), reference).await;
    }

    /// The end: the last step is finished and the Computer is released. Its status cannot show that any more.
    pub async fn of_release(&self, view: &View, computer: &Computer, report: &Report) {
        let Some(last) = report.deletion.last().filter(|s| matches!(s.status, StepStatus::Completed | StepStatus::Skipped)) else { return };
        if view.namespace_terminating || !self.news(&view.uid, format!("{} ", reason_of(last)), BEHIND) {
            return;
        }
        let note = last.error.clone().unwrap_or_else(|| "the deletion is complete and its receipt is stored".to_owned());
        let reference = ObjectReference { uid: Some(view.uid.clone()), ..computer.object_ref(&()) };
        self.publish(event(EventType::Normal, reason_of(last), &note, &last.id), &reference).await;
    }

    /// The computer is gone. What it was told is kept until a cache that is behind can no longer show it: until then a second leader's
    /// write could bring it up again.
    pub fn forget(&self, uid: &str) {
        let (mut told, limit) = (self.told.lock().unwrap_or_else(PoisonError::into_inner), Instant::now() + BEHIND);
        told.until.iter_mut().filter(|((of, _), _)| of == uid).for_each(|(_, until)| *until = (*until).min(limit));
    }

    /// Why a deletion stands still whose Computer is gone: handed off, or its finalizer was stripped. There is no status to show it.
    pub async fn of_record(&self, view: &View, report: &Report) {
        let Some(record) = view.record.as_ref().filter(|_| view.computer.is_none() && report.phase == Some(Phase::Deleting)) else {
            return;
        };
        let Some(blocker) = report.blocker.as_ref().filter(|b| self.news(&view.uid, b.reason.to_owned(), AGAIN)) else { return };
        let step = report.current.as_deref().unwrap_or("deletion");
        let event = event(EventType::Warning, blocker.reason.to_owned(), &format!("{step}: {}", blocker.message), step);
        self.publish(event, &record.object_ref(&())).await;
    }

    /// Whether this has not been told yet, or long ago. A step that goes on and stands still again, or for two reasons in turn, tells each
    /// once; so does a status that a cache, or another leader, shows as it was before (L6).
    fn news(&self, uid: &str, what: String, keep: Duration) -> bool {
        let (mut told, now) = (self.told.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        if now.duration_since(told.swept) > SWEEP {
            told.until.retain(|_, until| *until > now);
            told.swept = now;
        }
        let key = (uid.to_owned(), what);
        if told.until.get(&key).is_some_and(|until| *until > now) {
            return false;
        }
        told.until.insert(key, now + keep);
        true
    }

    async fn publish(&self, event: Event, reference: &ObjectReference) {
        // An event is not worth a worker.
        match tokio::time::timeout(TIMEOUT, self.recorder.publish(&event, reference)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(uid = ?reference.uid, %error, "the event was not published"),
            Err(_) => tracing::debug!(uid = ?reference.uid, "the event was not published in time"),
        }
    }
}

fn event(type_: EventType, reason: String, note: &str, action: &str) -> Event {
    Event { type_, reason, note: Some(truncate(note, NOTE)), action: action.to_owned(), secondary: None }
}

/// Event reason of a step: `UpperCamelCase`, bounded.
fn reason_of(step: &Step) -> String {
    let id: String = step.id.split('-').map(|w| w[..1].to_uppercase() + &w[1..]).collect();
    format!("{id}{}", step.status.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_reason_is_told_once_and_again_only_when_that_is_forgotten() {
        let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let events = Events::new(Recorder::new(client, "test".into()));
        let news = |uid: &str, what: &str, keep| events.news(uid, what.to_owned(), keep);
        assert!(news("u", "VolumeTaken", AGAIN));
        assert!(news("another", "VolumeTaken", AGAIN), "each computer is told for itself");
        assert!(news("u", "ArchiveDamaged", AGAIN), "another reason is news");
        assert!(news("u", "StopPodsCompleted", BEHIND));
        assert!(!news("u", "VolumeTaken", AGAIN) && !news("u", "ArchiveDamaged", AGAIN), "to and fro: a storm");
        tokio::time::advance(BEHIND).await;
        assert!(!news("u", "VolumeTaken", AGAIN) && news("u", "StopPodsCompleted", BEHIND));
        tokio::time::advance(AGAIN).await;
        assert!(news("u", "ArchiveDamaged", AGAIN), "the API server has forgotten it");
        assert_eq!(events.told.lock().unwrap().until.len(), 1, "what is over is not kept");
    }
}
