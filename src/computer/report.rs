//! What a plan is: the next thing to do, and the report of it. Types only; nothing here decides.

use std::time::Duration;

use jiff::Timestamp;

use super::action::Action;
use crate::resources::{Phase, Step, SubjectOutcome};

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Perform one request, then plan again.
    Do(Action),
    /// Nothing can be done before something outside changes. A watch will tell; this timer is for when it does not (L5).
    Wait(Duration),
    /// Settled: nothing to do until an event.
    Settled,
    /// The computer is gone and its record complete; look at the record again after this long (expiry), if at all.
    Finished(Option<Duration>),
}

/// Something that a step waits for and that does not come by itself (L2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// Bounded CamelCase reason: condition reason and metric label.
    pub reason: &'static str,
    /// The object, why, and what to do.
    pub message: String,
}

/// What users are shown. A report of the plan, never an input to it (S9).
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Report {
    /// One word.
    pub phase: Option<Phase>,
    /// The step under way.
    pub current: Option<String>,
    /// Provisioning steps; empty while deleting: the ones in the status stay.
    pub provisioning: Vec<Step>,
    /// Deletion steps; empty while the computer lives.
    pub deletion: Vec<Step>,
    /// Deletion steps that are finished, in order, for the next pass.
    pub passed: Vec<SubjectOutcome>,
    /// When each finished deletion step was first seen finished, for the next plan.
    pub times: Vec<Timestamp>,
    /// The step under way only waits for the archive to be looked at: until that has ended, how it stands is not known anew. With a
    /// blocker: that takes long.
    pub checking: bool,
    /// The step under way waits for an archive, and nothing works on that.
    pub waits: bool,
    /// Why the step under way does not go on.
    pub blocker: Option<Blocker>,
    /// `Ready`: status, reason, message.
    pub ready: Option<(bool, &'static str, String)>,
    /// `Drifted`: what differs from the class.
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
    pub fn with_times(mut self, times: Vec<Timestamp>) -> Self {
        self.report.times = times;
        self
    }
}
