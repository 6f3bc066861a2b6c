//! When the steps of a deletion started and finished. The record and the receipt show the order in which that happened (S1). A step's time
//! must never be before the start of the deletion or the end of the previous step, although the operator's clock may be slightly behind the
//! API server's.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::Context;
use crate::guards::{self, Guard};
use crate::resources::steps::{DeletionStep, Sequence};
use crate::resources::{Deletion, StepOutcome};

impl Context<'_> {
    /// Adds the finished steps and the start of the current step to a deletion that is about to be saved.
    pub(super) fn note_steps(&self, deletion: &mut Deletion) {
        for (step, outcome) in self.outcomes() {
            deletion.finish(step, outcome);
        }
        let (finished, open): (Vec<DeletionStep>, Vec<_>) =
            DeletionStep::ALL.iter().copied().partition(|step| deletion.outcome(*step).is_some());
        for step in finished {
            deletion.started.remove(step);
        }
        match open.first() {
            Some(step) if deletion.receipt.is_none() => {
                let before = step.previous().and_then(|before| deletion.outcome(before)).map(|outcome| outcome.at.clone());
                deletion.started.insert_new(*step, before.unwrap_or(MicroTime(self.view.now)));
            }
            _ => deletion.started.clear(),
        }
    }

    /// The finished steps in the form in which the record stores them.
    pub(super) fn outcomes(&self) -> BTreeMap<DeletionStep, StepOutcome> {
        self.finished().iter().map(|(step, finished)| (*step, super::outcome(finished, self.finished_at(*step)))).collect()
    }

    /// When each of the finished steps was first observed finished.
    pub(super) fn times(&self) -> BTreeMap<DeletionStep, Timestamp> {
        self.finished().iter().map(|(step, _)| (*step, self.finished_at(*step))).collect()
    }

    /// When a step finished: by the record, else by what this process has observed with the same version of the record, else now.
    pub(super) fn finished_at(&self, step: DeletionStep) -> Timestamp {
        let receipt = self.deletion().and_then(|d| d.receipt.as_ref()).filter(|_| step == DeletionStep::WriteReceipt);
        let noted = self.noted(step).map(|noted| noted.at.0).or(receipt.map(|r| r.at.0));
        let seen = noted.or_else(|| self.view.times.get(&step).copied());
        seen.map_or_else(|| self.not_before(step), |at| at.max(self.floor(step)))
    }

    /// The time of a step that finishes now.
    pub(super) fn not_before(&self, step: DeletionStep) -> Timestamp {
        self.view.now.max(self.floor(step))
    }

    /// The earliest time at which a step can have finished.
    fn floor(&self, step: DeletionStep) -> Timestamp {
        match step.previous() {
            Some(before) => self.finished_at(before),
            None => self.deletion().map_or(Timestamp::MIN, |d| d.deleted_at.0),
        }
    }

    /// When a step started: by the record, else when the previous step finished, else now. It must never fall back to the start of the
    /// deletion: another step may have been blocked since.
    pub(super) fn began(&self, step: DeletionStep) -> Timestamp {
        if !guards::on(Guard::StepBeginning) {
            return self.deletion().map_or(self.view.now, |d| d.deleted_at.0);
        }
        let recorded = self.deletion().and_then(|d| d.started.get(step));
        recorded.map_or_else(|| step.previous().map_or(self.view.now, |before| self.finished_at(before)), |at| at.0)
    }

    /// Seconds since a step started.
    pub(super) fn running_for(&self, step: DeletionStep) -> i64 {
        self.view.now.duration_since(self.began(step)).as_secs()
    }
}
