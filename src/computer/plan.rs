//! The decision: what one computer needs next. Pure and total: the same view gives the same plan. No request is made here.

use std::time::Duration;

use jiff::Timestamp;

use super::action::Action;
use super::view::View;
use super::{deletion, provision};
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

/// Plans for a computer that lives or is being deleted.
pub fn plan(view: &View) -> Plan {
    if let Some(subject) = view.unconfirmed() {
        return Plan { next: Next::Do(Action::Read(subject)), report: Report::default() };
    }
    if view.deleting() { deletion::plan(view) } else { provision::plan(view) }
}
