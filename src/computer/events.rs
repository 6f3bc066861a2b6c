//! Events: that a computer is ready or suspended, each deletion step that has ended or is blocked, and what blocks a computer
//! outside of these steps, on the Computer; and what blocks a deletion whose Computer is gone, on its record. Best effort: a
//! terminating namespace refuses events, and nothing ever waits for one. Bounded: each reason of a computer once in 50 minutes, each step's
//! state, and each phase that did not change to the other one meanwhile, once in 10.
//!
//! The text of a step's event is the step's `error`, which is the message of the blocker that the step returned; otherwise its title and status.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource as _;
use kube::runtime::events::{Event, EventType, Recorder};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::report::Report;
use super::view::View;
use crate::resources::conditions::{truncate, types};
use crate::resources::reasons::Reason;
use crate::resources::steps::{CurrentStep, DeletionStep, Sequence};
use crate::resources::{Computer, ComputerStatus, Phase, Step, StepStatus};

/// Longest time for one event.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long a warning is not repeated: the API server keeps events for an hour.
const AGAIN: Duration = Duration::from_secs(50 * 60);
/// How long the end of a step is not published again: a stale cache shows it in progress for as long (L6).
const BEHIND: Duration = Duration::from_secs(10 * 60);
/// Time between two sweeps of expired entries.
const SWEEP: Duration = Duration::from_secs(60);
/// The API's bound on a note is 1,024 bytes.
const NOTE: usize = 1000;

/// Publishes events.
pub struct Events {
    recorder: Recorder,
    published: Mutex<Published>,
}

/// What was published for which computer, and until when it is not published again.
struct Published {
    until: HashMap<(String, String), Instant>,
    swept: Instant,
}

impl Events {
    /// Publishes through the recorder.
    pub fn new(recorder: Recorder) -> Self {
        Self { recorder, published: Mutex::new(Published { until: HashMap::new(), swept: Instant::now() }) }
    }

    /// What the new status shows and the Computer's old one did not.
    pub async fn of_status(&self, view: &View, computer: &Computer, report: &Report) {
        if view.namespace_terminating {
            return;
        }
        let reference = reference_to(view, computer);
        self.of_steps(view, computer, report, &reference).await;
        self.of_key(view, computer, &reference).await;
        self.of_phase(view, computer, report, &reference).await;
        if !report.deletion.iter().any(|step| step.status == StepStatus::Blocked) {
            self.of_blocker(view, report, "provisioning", &reference).await;
        }
    }

    /// One event for each deletion step that has ended or is blocked, unless the status shows that already. The status shows the step that runs,
    /// and a step that was not needed is no news.
    async fn of_steps(&self, view: &View, computer: &Computer, report: &Report, reference: &ObjectReference) {
        let old = computer.status.as_ref().map(|s| s.deletion_steps.as_slice()).unwrap_or_default();
        for step in &report.deletion {
            let shown = old.iter().any(|before| before.id == step.id && before.status == step.status);
            if shown || matches!(step.status, StepStatus::Pending | StepStatus::Running | StepStatus::NotApplicable) {
                continue;
            }
            let blocked = step.status == StepStatus::Blocked;
            let why = report.blocker.as_ref().filter(|_| blocked).map_or("", |b| b.reason.as_str());
            let note = step.error.clone().unwrap_or_else(|| ended(step));
            self.of_step(view, step, why, &note, reference).await;
        }
    }

    /// A computer that has become ready, or has stopped on request. Each makes the other new; one that fails and recovers is reported once
    /// in a while.
    async fn of_phase(&self, view: &View, computer: &Computer, report: &Report, reference: &ObjectReference) {
        let before = computer.status.as_ref().and_then(|status| status.phase);
        let Some((reason, other, note)) = became(before, report.phase) else { return };
        self.published.lock().until.remove(&(view.uid.clone(), other.to_string()));
        if self.is_new(&view.uid, reason.to_string(), BEHIND) {
            self.publish(event(EventType::Normal, reason.to_string(), note, "provisioning"), reference).await;
        }
    }

    /// A key that replaced another one, which a client may still use.
    async fn of_key(&self, view: &View, computer: &Computer, reference: &ObjectReference) {
        let children = view.record.as_ref().map(|r| &r.spec.state.children);
        let Some((name, uid)) = children.and_then(|c| c.secret_name.as_ref().zip(c.secret_uid.as_ref())) else { return };
        let Some(status) = &computer.status else { return };
        if replaced(status, uid) && self.is_new(&view.uid, format!("{} {uid}", Reason::KeyReplacement), AGAIN) {
            let note = format!("a new key is in Secret {name}; the old key no longer authenticates, apart from the overlap of a rotation");
            self.publish(event(EventType::Normal, Reason::KeyReplacement.to_string(), &note, "key"), reference).await;
        }
    }

    /// A step in its present state, once for each reason that blocks it.
    async fn of_step(&self, view: &View, step: &Step, why: &str, note: &str, reference: &ObjectReference) {
        let Some(id) = DeletionStep::from_id(&step.id) else { return };
        let (reason, blocked) = (id.event_reason(step.status), step.status == StepStatus::Blocked);
        let (type_, keep) = if blocked { (EventType::Warning, AGAIN) } else { (EventType::Normal, BEHIND) };
        if self.is_new(&view.uid, format!("{reason} {why}"), keep) {
            self.publish(event(type_, reason, note, id.id()), reference).await;
        }
    }

    /// What blocks a computer outside of the deletion steps: while it is provisioned, at the release, or without a Computer.
    async fn of_blocker(&self, view: &View, report: &Report, otherwise: &'static str, reference: &ObjectReference) {
        let Some(blocker) = &report.blocker else { return };
        if !self.is_new(&view.uid, blocker.reason.to_string(), AGAIN) {
            return;
        }
        let step = report.current.map_or(otherwise, CurrentStep::id);
        let event = event(EventType::Warning, blocker.reason.to_string(), &format!("{step}: {}", blocker.message), step);
        self.publish(event, reference).await;
    }

    /// The end: all steps are finished and the Computer is released. Its status can no longer show that.
    pub async fn of_release(&self, view: &View, computer: &Computer, report: &Report) {
        let finished = |step: &Step| matches!(step.status, StepStatus::Completed | StepStatus::Skipped);
        if !view.namespace_terminating && report.deletion.last().is_some_and(finished) {
            self.of_steps(view, computer, report, &reference_to(view, computer)).await;
        }
    }

    /// The computer is gone. What was published for it is kept until a stale cache can no longer show it: until then a second leader's
    /// write could publish it again.
    pub fn forget(&self, uid: &str) {
        let (mut published, limit) = (self.published.lock(), Instant::now() + BEHIND);
        published.until.iter_mut().filter(|((of, _), _)| of == uid).for_each(|(_, until)| *until = (*until).min(limit));
    }

    /// The UIDs and reasons that are not published again for now.
    #[cfg(test)]
    pub fn remembered(&self) -> String {
        format!("{:?}", self.published.lock().until)
    }

    /// What blocks a deletion whose Computer is gone: handed off, or its finalizer was stripped. There is no status to show it.
    pub async fn of_record(&self, view: &View, report: &Report) {
        let deleting = view.computer.is_none() && report.phase == Some(Phase::Deleting);
        if let Some(record) = view.record.as_ref().filter(|_| deleting) {
            self.of_blocker(view, report, "deletion", &record.object_ref(&())).await;
        }
    }

    /// Whether this was not published yet, or long ago. A step that alternates between two states, or between two reasons, publishes each
    /// once; so does a status that a stale cache, or another leader, shows as it was before (L6).
    fn is_new(&self, uid: &str, what: String, keep: Duration) -> bool {
        let (mut published, now) = (self.published.lock(), Instant::now());
        if now.duration_since(published.swept) > SWEEP {
            published.until.retain(|_, until| *until > now);
            published.swept = now;
        }
        let key = (uid.to_owned(), what);
        if published.until.get(&key).is_some_and(|until| *until > now) {
            return false;
        }
        published.until.insert(key, now + keep);
        true
    }

    async fn publish(&self, event: Event, reference: &ObjectReference) {
        // An event must not hold a worker.
        match tokio::time::timeout(TIMEOUT, self.recorder.publish(&event, reference)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(uid = ?reference.uid, %error, "the event was not published"),
            Err(_) => tracing::debug!(uid = ?reference.uid, "the event was not published in time"),
        }
    }
}

/// Whether the key in the Secret with this UID is another one than this status shows. A key that a machine mounts keeps the name of its Secret.
fn replaced(status: &ComputerStatus, uid: &str) -> bool {
    let lost = |c: &Condition| c.type_ == types::READY && c.reason == Reason::KeyReplacement.as_str();
    let before = status.children.as_ref().and_then(|c| c.secret_uid.as_ref());
    before.map_or_else(|| status.conditions.iter().any(lost), |old| old != uid)
}

/// The event of a phase that has changed, the one that it makes new again, and its text.
fn became(before: Option<Phase>, now: Option<Phase>) -> Option<(Reason, Reason, &'static str)> {
    match now.filter(|_| now != before)? {
        Phase::Active => Some((Reason::Ready, Reason::Suspended, "the computer is ready")),
        Phase::Suspended => Some((Reason::Suspended, Reason::Ready, "the machine has stopped on request; its home and its key are kept")),
        Phase::Provisioning | Phase::Error | Phase::Deleting => None,
    }
}

/// What the event of a step says that has ended. The last one is the end of the deletion.
fn ended(step: &Step) -> String {
    if step.id == DeletionStep::WriteReceipt.id() && step.status == StepStatus::Completed {
        return "the deletion is complete and its receipt is stored".to_owned();
    }
    format!("{}: {}", step.name, step.status.as_str())
}

fn event(type_: EventType, reason: String, note: &str, action: &str) -> Event {
    Event { type_, reason, note: Some(truncate(note, NOTE)), action: action.to_owned(), secondary: None }
}

/// The Computer of this view, which another one of that name may have replaced.
fn reference_to(view: &View, computer: &Computer) -> ObjectReference {
    ObjectReference { uid: Some(view.uid.clone()), ..computer.object_ref(&()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_computer_is_reported_as_ready_or_suspended_when_it_becomes_so() {
        let reason = |before, now| became(before, now).map(|(reason, ..)| reason);
        assert_eq!(reason(None, Some(Phase::Active)), Some(Reason::Ready));
        assert_eq!(reason(Some(Phase::Suspended), Some(Phase::Active)), Some(Reason::Ready));
        assert_eq!(reason(Some(Phase::Active), Some(Phase::Suspended)), Some(Reason::Suspended));
        for same in [None, Some(Phase::Active), Some(Phase::Suspended)] {
            assert_eq!(reason(same, same), None);
        }
        for other in [Phase::Provisioning, Phase::Error, Phase::Deleting] {
            assert_eq!(reason(Some(Phase::Active), Some(other)), None);
        }
    }

    #[test]
    fn another_key_is_reported_also_if_its_secret_keeps_the_name() {
        let status =
            |children: serde_json::Value| -> ComputerStatus { serde_json::from_value(serde_json::json!({"children": children})).unwrap() };
        let shown = status(serde_json::json!({"secretName": "computer-key-1", "secretUid": "first"}));
        assert!(!replaced(&shown, "first") && replaced(&shown, "second"));
        assert!(!replaced(&status(serde_json::json!({})), "first"), "the first key");
    }

    #[test]
    fn the_last_event_of_a_deletion_says_that_it_is_complete() {
        let step = |id: &str, name: &str| Step { id: id.into(), name: name.into(), status: StepStatus::Completed, ..Step::default() };
        assert_eq!(ended(&step("stop-pods", "Stop the pods")), "Stop the pods: Completed");
        assert_eq!(ended(&step("write-receipt", "Write the receipt")), "the deletion is complete and its receipt is stored");
    }

    #[tokio::test(start_paused = true)]
    async fn each_reason_is_published_once_and_again_only_after_a_while() {
        let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let events = Events::new(Recorder::new(client, "test".into()));
        let is_new = |uid: &str, what: &str, keep| events.is_new(uid, what.to_owned(), keep);
        assert!(is_new("u", "VolumeTaken", AGAIN));
        assert!(is_new("another", "VolumeTaken", AGAIN), "each computer has its own events");
        assert!(is_new("u", "ArchiveDamaged", AGAIN), "another reason is new");
        assert!(is_new("u", "StopPodsCompleted", BEHIND));
        assert!(!is_new("u", "VolumeTaken", AGAIN) && !is_new("u", "ArchiveDamaged", AGAIN), "alternating reasons: a storm");
        tokio::time::advance(BEHIND).await;
        assert!(!is_new("u", "VolumeTaken", AGAIN) && is_new("u", "StopPodsCompleted", BEHIND));
        tokio::time::advance(AGAIN).await;
        assert!(is_new("u", "ArchiveDamaged", AGAIN), "the API server has expired it");
        assert_eq!(events.published.lock().until.len(), 1, "expired entries are not kept");
    }
}
