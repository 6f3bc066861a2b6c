//! The outcome of a deletion step, as the record keeps it, and the rule for outcomes of a newer version: they are kept as they were read, and
//! never count as finished.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Unknown;
use super::deletion::Deletion;
use super::steps::{DeletionStep, StepResult};

/// The result of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepOutcome {
    /// `Verified`, `NotApplicable` or `Skipped`.
    #[schemars(with = "String")]
    pub result: StepResult,
    /// What was verified, or why the step was not needed or was skipped (class policy, or the override and its reason).
    pub detail: String,
    /// When the operator saw that it was finished; never earlier than the start of the deletion or the end of the previous step.
    pub at: MicroTime,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

impl Deletion {
    /// The outcome of a finished step. A result that only a newer version understands does not count: the step runs again.
    pub fn outcome(&self, step: DeletionStep) -> Option<&StepOutcome> {
        self.steps.get(step).filter(|outcome| !matches!(outcome.result, StepResult::Unknown(_)))
    }

    /// Records the outcome of a step, once.
    pub fn finish(&mut self, step: DeletionStep, outcome: StepOutcome) {
        if self.outcome(step).is_none() {
            self.steps.insert(step, outcome);
        }
    }

    /// When a step finished. `None`: it is not finished.
    pub fn finished_at(&self, step: DeletionStep) -> Option<&MicroTime> {
        let receipt = self.receipt.as_ref().filter(|_| step == DeletionStep::WriteReceipt);
        self.outcome(step).map(|outcome| &outcome.at).or(receipt.map(|r| &r.at))
    }
}
