//! What this process remembers of a computer between two reconciles, to save requests. The API server decides by resourceVersion whether a write
//! counts, and before the receipt and the release every step is checked again. Nothing remembered is a proof then, but that a UID is gone.
//!
//! - The newest record, while the cache is stale: a plan on an older record would repeat what is done, write that to the status, and be
//!   queued again by that very write (L6).
//! - The recorded children that a live read of the deletion has shown to be gone. That is a proof: a UID never returns. So each is read once in
//!   a deletion, and not again before the receipt.
//! - The finished steps, for exactly this version of the record: a new child means a new version (S1).
//! - The pods that it has created, until the record has their UIDs (see `stray_pod`).
//! - That the Computer, its pods and its claims are being deleted: a stale cache shows them as they were, and they would be deleted again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use parking_lot::{Mutex, MutexGuard};

use super::action::{Fact, Subject};
use super::budget::Turns;
use super::contested::Contested;
use super::events::Events;
use super::held_status::HeldStatus;
use super::key_checks::KeyChecks;
use super::metrics::Metrics;
use super::report::Report;
use super::status::Written;
use super::view::View;
use super::waiting::Waiting;
use crate::guards::{self, Guard};
use crate::resources::steps::{DeletionStep, StepResult};
use crate::resources::{ComputerRecord, StepOutcome};
use crate::runtime::backoff::Backoff;
use crate::runtime::time_and_random::Sources;

/// Everything that is remembered of a computer, with one way to forget it.
pub struct Memory {
    /// Backoff of failed reconciles.
    pub backoff: Backoff,
    /// Backoff of status writes that failed. Those must not delay the reconciles themselves.
    pub unwritten: Backoff,
    /// Records that are newer than the cache, and finished steps.
    pub latest: Latest,
    /// The last statuses.
    pub written: Written,
    /// Statuses that are not written yet.
    pub held_status: HeldStatus,
    /// What reconciles that wait were based on.
    pub waiting: Waiting,
    /// Changes that other clients undo.
    pub contested: Contested,
    /// Reconciles that exceeded their budget.
    pub turns: Turns,
    /// When the Secrets of keys are checked.
    pub keys: KeyChecks,
    /// Published events.
    pub events: Events,
    /// Blocked deletions.
    pub metrics: Arc<Metrics>,
}

impl Memory {
    /// Empty; the jitter of its backoff comes from the sources.
    pub fn new(sources: &Sources, events: Events, metrics: Arc<Metrics>) -> Self {
        let backoff = || Backoff::with_seed(u64::from_le_bytes(sources.bytes()));
        let (latest, written, waiting) = (Latest::default(), Written::default(), Waiting::default());
        let held_status = HeldStatus::default();
        let (contested, turns, keys) = (Contested::default(), Turns::default(), KeyChecks::default());
        Self { backoff: backoff(), unwritten: backoff(), latest, written, held_status, waiting, contested, turns, keys, events, metrics }
    }

    /// The computer is gone, or nothing is left to do for it. Names every field, so that a new one cannot be left out.
    pub fn forget(&self, uid: &str) {
        let Self { backoff, unwritten, latest, written, held_status, waiting, contested, turns, keys, events, metrics } = self;
        backoff.reset(uid);
        unwritten.reset(uid);
        latest.forget(uid);
        written.forget(uid);
        held_status.forget(uid);
        waiting.forget(uid);
        contested.forget(uid);
        turns.reset(uid);
        keys.forget(uid);
        events.forget(uid);
        metrics.forget(uid);
    }

    /// All of it, as text. Names every field, too.
    #[cfg(test)]
    pub fn text(&self) -> String {
        let Self { backoff, unwritten, latest, written, held_status, waiting, contested, turns, keys, events, metrics } = self;
        format!(
            "{backoff:?} {unwritten:?} {latest:?} {written:?} {held_status:?} {waiting:?} {contested:?} {turns:?} {keys:?} {} {}",
            events.remembered(),
            metrics.remembered()
        )
    }
}

/// The newest state of each UID.
#[derive(Debug, Default)]
pub struct Latest(Mutex<HashMap<String, Known>>);

#[derive(Debug, Default)]
struct Known {
    /// The newest record, until the cache has caught up.
    record: Option<ComputerRecord>,
    /// Until the record changes or is released.
    passed: Option<Passed>,
    /// When the Computer was deleted.
    deleted: Option<Time>,
    /// A live read has found no Computer with this UID. No other object ever gets that UID.
    gone: bool,
    /// Its children that are being deleted.
    deleting: Vec<(Subject, Fact)>,
    /// Pods that this process has created and that no record has shown yet.
    created: BTreeMap<Subject, String>,
    /// Children whose absence a live read has shown during the deletion, with their UIDs. No other object ever gets such a UID.
    absent: BTreeMap<Subject, String>,
}

/// Finished steps, the version of the record on which they were finished, and when each was first seen finished.
#[derive(Debug)]
struct Passed {
    version: Option<String>,
    steps: BTreeMap<DeletionStep, StepOutcome>,
    times: BTreeMap<DeletionStep, Timestamp>,
}

impl Known {
    /// Replaces what a stale cache shows of the Computer and of children that are being deleted or gone.
    fn replace_older(&self, view: &mut View) {
        if let (Some(cached), Some(at)) = (&mut view.computer, &self.deleted) {
            cached.metadata.deletion_timestamp.get_or_insert_with(|| at.clone());
        }
        for (subject, known) in &self.deleting {
            if let Some(cached) = view.facts.get_mut(subject).filter(|cached| is_older(cached, known)) {
                *cached = known.clone();
            }
        }
        for (subject, uid) in recorded_children(view).filter(|(of, uid)| self.absent.get(of) == Some(uid)).collect::<Vec<_>>() {
            view.note_absent(subject, &uid);
        }
    }
}

impl Latest {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.lock()
    }

    /// What a live answer has shown.
    pub fn note(&self, view: &View) {
        let record = view.record.as_ref().filter(|_| guards::on(Guard::LatestRecord));
        self.all().entry(view.uid.clone()).or_default().record = record.cloned();
    }

    /// The deletion steps that a reconcile has seen finished. A skipped step and the steps after it are remembered only by the record: an
    /// override that is withdrawn before it is on record does not count (S11).
    pub fn note_passed(&self, view: &View, report: &Report) {
        let mut all = self.all();
        let known = all.entry(view.uid.clone()).or_default();
        // What is being deleted stays so until it is gone. It is kept until no cache shows it any more.
        let deleting = view.facts.iter().filter(|(_, fact)| metadata(fact).is_some_and(|m| m.deletion_timestamp.is_some()));
        known.deleting = deleting.map(|(subject, fact)| (subject.clone(), fact.clone())).collect();
        known.created.clone_from(&view.created);
        known.absent = recorded_children(view).filter(|(subject, _)| view.is_proved_absent(subject)).collect();
        known.deleted = view.computer.as_ref().and_then(|c| c.metadata.deletion_timestamp.clone()).or(known.deleted.take());
        // A reconcile that failed before its plan has seen nothing. What is known stays known, or a deadline would begin again.
        if report.phase.is_none() {
            return;
        }
        let steps: BTreeMap<_, _> =
            report.passed.iter().take_while(|(_, o)| o.result != StepResult::Skipped).map(|(s, o)| (*s, o.clone())).collect();
        let version = view.record.as_ref().and_then(|r| r.metadata.resource_version.clone());
        let passed = version.is_some() && !(steps.is_empty() && report.times.is_empty());
        known.passed = passed.then(|| Passed { version, steps, times: report.times.clone() });
    }

    /// This process has created a pod. Noted at once: the reconcile may not reach its end.
    pub fn note_created(&self, view: &View) {
        self.all().entry(view.uid.clone()).or_default().created.clone_from(&view.created);
    }

    /// Pods that this process has created and that no record has shown yet.
    pub fn created(&self, uid: &str) -> BTreeMap<Subject, String> {
        self.all().get(uid).map(|known| known.created.clone()).unwrap_or_default()
    }

    /// Replaces the cached record by a newer one that is known, and forgets that one when the cache has caught up. Then fills in the
    /// steps that were finished on it.
    pub fn freshen(&self, view: &mut View) {
        let mut all = self.all();
        let Some(known) = all.get_mut(&view.uid) else { return };
        if let (Some(cached), Some(newest)) = (&mut view.record, &known.record) {
            if version(cached) >= version(newest) {
                known.record = None;
            } else {
                cached.clone_from(newest);
            }
        }
        known.replace_older(view);
        let current = view.record.as_ref().and_then(|r| r.metadata.resource_version.as_ref());
        if let Some(passed) = known.passed.as_ref().filter(|p| p.version.as_ref() == current) {
            view.passed.clone_from(&passed.steps);
            view.times.clone_from(&passed.times);
        }
    }

    /// What the caches will show of a view once [`Latest::freshen`] has seen it.
    pub fn shown_as(&self, view: &mut View) {
        if let Some(known) = self.all().get(&view.uid) {
            known.replace_older(view);
        }
    }

    /// Whether this process has read or written a record that the cache has not shown yet.
    pub fn has_record(&self, uid: &str) -> bool {
        self.all().get(uid).is_some_and(|known| known.record.is_some())
    }

    /// A live read has found no Computer with this UID.
    pub fn note_gone(&self, uid: &str) {
        self.all().entry(uid.to_owned()).or_default().gone = true;
    }

    /// Whether a live read has found no Computer with this UID. It stays gone: no other object ever gets its UID.
    pub fn is_gone(&self, uid: &str) -> bool {
        self.all().get(uid).is_some_and(|known| known.gone)
    }

    /// Forgets a computer.
    pub fn forget(&self, uid: &str) {
        self.all().remove(uid);
    }
}

/// The pods, the claim and the Secret of a computer that is being deleted, with their recorded UIDs.
fn recorded_children(view: &View) -> impl Iterator<Item = (Subject, String)> {
    let record = view.record.as_ref().filter(|record| record.spec.state.deletion.is_some());
    record.into_iter().flat_map(|record| {
        let (namespace, children) = (&record.spec.namespace, &record.spec.state.children);
        let pods = children.pods.iter().map(|pod| Some((Subject::pod(namespace, &pod.name), pod.uid.clone()?)));
        let claim = children.claim_name.as_ref().zip(children.claim_uid.clone()).map(|(name, uid)| (Subject::claim(namespace, name), uid));
        let secret = children.secret_name.as_ref().zip(children.secret_uid.clone());
        let secret = secret.map(|(name, uid)| (Subject::secret(namespace, name), uid));
        pods.chain([claim, secret]).flatten()
    })
}

/// The metadata of a pod or a claim.
fn metadata(fact: &Fact) -> Option<&ObjectMeta> {
    match fact {
        Fact::Pod(pod) => Some(&pod.metadata),
        Fact::Claim(claim) => Some(&claim.metadata),
        _ => None,
    }
}

/// Whether a cache shows an earlier version of an object that is known to be being deleted.
fn is_older(cached: &Fact, known: &Fact) -> bool {
    let (Some(cached), Some(known)) = (metadata(cached), metadata(known)) else { return false };
    let number = |metadata: &ObjectMeta| metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
    let older = number(cached).zip(number(known)).is_some_and(|(cached, known)| cached < known);
    cached.uid == known.uid && (cached.deletion_timestamp.is_none() || older)
}

/// Versions of one object grow. A resourceVersion that is not a number counts as the newest, so that the cache wins.
fn version(record: &ComputerRecord) -> u64 {
    record.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::computer::action::Effect;

    fn pod(version: &str, uid: &str, deleted: bool) -> Fact {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let metadata = json!({"name": "p", "namespace": "t", "uid": uid, "resourceVersion": version, "deletionTimestamp": deleted});
        Fact::Pod(Box::new(serde_json::from_value(json!({"metadata": metadata})).unwrap()))
    }

    fn view(fact: Fact) -> View {
        let mut view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}}));
        view.facts.insert(Subject::pod("t", "p"), fact);
        view
    }

    /// A stale cache shows the finalizer that this process has just removed, and it would be removed again.
    #[test]
    fn an_older_version_of_a_child_that_is_being_deleted_is_replaced_by_the_known_one() {
        let latest = Latest::default();
        latest.note_passed(&view(pod("7", "1", true)), &Report::default());
        let shown = |cached: Fact| {
            let mut view = view(cached);
            latest.freshen(&mut view);
            view.facts[&Subject::pod("t", "p")].clone()
        };
        assert_eq!(shown(pod("5", "1", false)), pod("7", "1", true), "not deleted yet");
        assert_eq!(shown(pod("6", "1", true)), pod("7", "1", true), "older");
        assert_eq!(shown(pod("8", "1", true)), pod("8", "1", true), "newer");
        assert_eq!(shown(pod("9", "2", false)), pod("9", "2", false), "another pod of that name");
    }

    /// A UID never returns. Another object that has the name since must be seen (S6), and what is not being deleted is always read.
    #[test]
    fn a_recorded_child_is_read_once_in_a_deletion() {
        let children = json!({"pods": [{"name": "p", "uid": "1"}], "claimName": "c", "claimUid": "2", "secretName": "s", "secretUid": "3"});
        let view = |deletion: bool, pod_uid: &str| {
            let mut children = children.clone();
            children["pods"][0]["uid"] = json!(pod_uid);
            let begun = json!({"deletedAt": "2026-01-01T00:00:00Z", "cause": "ComputerDeleted"});
            let state = json!({"children": children, "deletion": if deletion { begun } else { json!(null) }});
            let spec = json!({"namespace": "t", "computer": "c", "state": state});
            let record = serde_json::from_value(json!({"metadata": {"name": "u", "resourceVersion": "1"}, "spec": spec})).unwrap();
            View { record: Some(record), ..View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}})) }
        };
        let all = [Subject::pod("t", "p"), Subject::claim("t", "c"), Subject::secret("t", "s")];
        let latest = Latest::default();
        let mut reads = view(true, "1");
        reads.facts.insert(all[1].clone(), Fact::Gone);
        all.iter().filter(|of| **of != all[1]).for_each(|of| reads.absorb(Effect::Learned(of.clone(), Fact::Gone)));
        latest.note_passed(&reads, &Report::default());
        let known = |mut next: View| {
            latest.freshen(&mut next);
            all.each_ref().map(|of| next.is_proved_absent(of))
        };
        assert_eq!(known(view(true, "1")), [true, false, true], "the claim was not read");
        assert_eq!(known(view(true, "9")), [false, false, true], "the record names another pod");
        assert_eq!(known(view(false, "1")), [false; 3], "it is not being deleted");
        let cached = |uid: &str| View { facts: [(all[0].clone(), pod("5", uid, false))].into(), ..view(true, "1") };
        assert_eq!(known(cached("1")), [false, false, true], "the cache is stale, or the API server was restored");
        let mut stale = cached("1");
        latest.freshen(&mut stale);
        assert!(!stale.facts.contains_key(&all[0]), "it is read live");
        assert_eq!(known(cached("7")), [false, false, true], "another pod has its name");
        let stray = View { created: [(all[0].clone(), "7".to_owned())].into(), ..view(true, "1") };
        assert_eq!(known(stray), [false, false, true], "this process has created another pod of that name");
        latest.note_passed(&view(true, "1"), &Report::default());
        assert_eq!(known(view(true, "1")), [false; 3], "a reconcile that began without this memory");
    }

    #[test]
    fn a_computer_that_was_found_gone_stays_gone_until_it_is_forgotten() {
        let latest = Latest::default();
        assert!(!latest.is_gone("u"));
        latest.note_gone("u");
        latest.note(&view(pod("1", "1", false)));
        assert!(latest.is_gone("u") && !latest.is_gone("another"));
        latest.forget("u");
        assert!(!latest.is_gone("u"));
    }

    /// What the caches will show of a view must not cost the memory of a newer record.
    #[test]
    fn a_view_of_what_will_be_shown_changes_no_memory() {
        let latest = Latest::default();
        let record = |version: &str| {
            let value =
                json!({"metadata": {"name": "u", "resourceVersion": version}, "spec": {"namespace": "t", "computer": "c", "state": {}}});
            Some(serde_json::from_value::<ComputerRecord>(value).unwrap())
        };
        let newest = View { record: record("9"), ..view(pod("1", "1", false)) };
        latest.note(&newest);
        latest.shown_as(&mut newest.clone());
        let mut stale = View { record: record("5"), ..newest.clone() };
        latest.freshen(&mut stale);
        assert_eq!(stale.record, newest.record);
    }
}
