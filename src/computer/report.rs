//! What a plan is: the next thing to do, and the report of it. Types only; nothing here decides.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::action::Action;
use crate::resources::reasons::Reason;
use crate::resources::steps::{CurrentStep, DeletionStep};
use crate::resources::{Phase, Step, StepOutcome};

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Perform one request, then plan again.
    Do(Action),
    /// Wait until something outside changes. A watch shows it; this timer is for when the watch does not (L5).
    Wait(Duration),
    /// Settled: nothing to do until an event.
    Settled,
    /// The computer is gone and its record complete. The record is checked again after this long (expiry), if at all.
    Finished(Option<Duration>),
}

/// Something that a step waits for and that does not happen by itself (L2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// Reason of the condition, and metric label.
    pub reason: Reason,
    /// What is wrong with which object, why, and what to do.
    pub message: String,
}

/// The condition `Ready`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Its status.
    pub status: bool,
    /// Its reason.
    pub reason: Reason,
    /// Its message.
    pub message: String,
}

/// What a plan shows, and what the next plan of this process remembers of it. A plan never reads what is shown (S9).
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Report {
    /// The phase.
    pub phase: Option<Phase>,
    /// The step in progress.
    pub current: Option<CurrentStep>,
    /// Provisioning steps; empty during a deletion: the ones in the status stay.
    pub provisioning: Vec<Step>,
    /// Deletion steps; empty while the computer lives.
    pub deletion: Vec<Step>,
    /// Remembered: the finished deletion steps.
    pub passed: BTreeMap<DeletionStep, StepOutcome>,
    /// Remembered: when each finished deletion step was first seen finished.
    pub times: BTreeMap<DeletionStep, Timestamp>,
    /// The current step waits for an archive check, or for the retry of a key, so its state is stale until that ends. With a blocker, the
    /// check is overdue.
    pub checking: bool,
    /// The reconcile ended before its plan waited: its limits were reached, or it lost a race. Whether the current step is blocked is unknown.
    pub unfinished: bool,
    /// The current step waits for an archive, and nothing works on it.
    pub waits: bool,
    /// Why the current step makes no progress.
    pub blocker: Option<Blocker>,
    /// How far the current step is, if it takes long.
    pub progress: Option<String>,
    /// The condition `Ready`; `None`: it stays as it is.
    pub ready: Option<Ready>,
    /// The condition `Drifted`: what differs from the class.
    pub drift: Option<String>,
    /// Class in use.
    pub class_name: Option<String>,
    /// Node of the pod.
    pub node_name: Option<String>,
}

/// The decision and its report.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What to do next.
    pub next: Next,
    /// What to show.
    pub report: Report,
}

impl Plan {
    /// With the times of the deletion steps.
    #[must_use]
    pub fn with_times(mut self, times: BTreeMap<DeletionStep, Timestamp>) -> Self {
        self.report.times = times;
        self
    }
}
