//! What this process remembers of a computer between two passes, to save requests. Never a proof: whether a write counts is decided by
//! its resourceVersion at the API server, and before the receipt and the release every step is walked again on live reads.
//!
//! The newest record that it has seen, for as long as its cache is behind it: a plan on an older record than we have written
//! ourselves would do again what is done, say so in the status, and be woken by that very write (L6). And the steps that it has seen
//! finished, for as long as the record is the very same: a new child means a new version of the record (S1). And which pods and claims
//! are being deleted: a cache that is behind still shows them as they were, and they would be deleted again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::action::{Fact, Subject};
use super::report::Report;
use super::view::View;
use crate::guards::{self, Guard};
use crate::resources::steps::{DeletionStep, StepResult};
use crate::resources::{ComputerRecord, StepOutcome};

/// By UID: records until the caches have caught up, steps until the record changes or is released.
#[derive(Debug, Default)]
pub struct Latest {
    records: Mutex<HashMap<String, ComputerRecord>>,
    passed: Mutex<HashMap<String, Passed>>,
    deleting: Mutex<HashMap<String, Vec<(Subject, Fact)>>>,
}

/// Finished steps, the version of the record on which they were, and when they were first seen so.
#[derive(Debug)]
struct Passed {
    version: Option<String>,
    steps: BTreeMap<DeletionStep, StepOutcome>,
    times: BTreeMap<DeletionStep, Timestamp>,
}

/// A map is whole at any time.
fn locked<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Latest {
    /// What a live answer has shown.
    pub fn note(&self, view: &View) {
        match &view.record {
            Some(record) if guards::on(Guard::LatestRecord) => drop(locked(&self.records).insert(view.uid.clone(), record.clone())),
            _ => drop(locked(&self.records).remove(&view.uid)),
        }
    }

    /// The deletion steps that a pass has seen finished. One that was left out, and what came after it, is remembered only by the
    /// record: an override that is withdrawn before that counts for nothing (S11).
    pub fn note_passed(&self, view: &View, report: &Report) {
        self.note_deleting(view);
        // A pass that failed before its plan has seen nothing: what is known stays known, or a deadline would begin again.
        if report.phase.is_none() {
            return;
        }
        let steps: BTreeMap<_, _> =
            report.passed.iter().take_while(|(_, o)| o.result != StepResult::Skipped).map(|(s, o)| (*s, o.clone())).collect();
        let version = view.record.as_ref().and_then(|r| r.metadata.resource_version.clone());
        let mut all = locked(&self.passed);
        if (steps.is_empty() && report.times.is_empty()) || version.is_none() {
            all.remove(&view.uid);
        } else {
            all.insert(view.uid.clone(), Passed { version, steps, times: report.times.clone() });
        }
    }

    /// What a pass has seen being deleted. That never ends but with the object, so it is kept until no cache shows it any more.
    fn note_deleting(&self, view: &View) {
        let deleting: Vec<_> = view.facts.iter().filter(|(_, fact)| identity(fact).is_some_and(|(_, deleting)| deleting)).collect();
        let mut all = locked(&self.deleting);
        if deleting.is_empty() {
            all.remove(&view.uid);
        } else {
            all.insert(view.uid.clone(), deleting.into_iter().map(|(subject, fact)| (subject.clone(), fact.clone())).collect());
        }
    }

    /// Puts the newer record in place of the cache's; forgets it when the cache is as new. Then the steps that were finished on it.
    pub fn freshen(&self, view: &mut View) {
        let mut records = locked(&self.records);
        if let Some(known) = records.get(&view.uid) {
            if view.record.as_ref().is_some_and(|cached| version(cached) >= version(known)) {
                records.remove(&view.uid);
            } else if view.record.is_some() {
                view.record = Some(known.clone());
            }
        }
        for (subject, known) in locked(&self.deleting).get(&view.uid).into_iter().flatten() {
            let cached = view.facts.get_mut(subject);
            if let Some(cached) = cached.filter(|c| identity(c) == identity(known).map(|(uid, _)| (uid, false))) {
                *cached = known.clone();
            }
        }
        let current = view.record.as_ref().and_then(|r| r.metadata.resource_version.as_ref());
        if let Some(passed) = locked(&self.passed).get(&view.uid).filter(|p| p.version.as_ref() == current) {
            view.passed.clone_from(&passed.steps);
            view.times.clone_from(&passed.times);
        }
    }

    /// The computer is gone.
    pub fn forget(&self, uid: &str) {
        locked(&self.records).remove(uid);
        locked(&self.passed).remove(uid);
        locked(&self.deleting).remove(uid);
    }
}

/// UID of a pod or a claim, and whether it is being deleted.
fn identity(fact: &Fact) -> Option<(&str, bool)> {
    let metadata = match fact {
        Fact::Pod(pod) => &pod.metadata,
        Fact::Claim(claim) => &claim.metadata,
        _ => return None,
    };
    Some((metadata.uid.as_deref()?, metadata.deletion_timestamp.is_some()))
}

/// Versions of one object grow; one that is no number is as new as can be, so that the cache is believed.
fn version(record: &ComputerRecord) -> u64 {
    record.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(u64::MAX)
}
