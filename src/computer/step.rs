//! The engine that creation and deletion share: what a step returns, the walk over a sequence of steps, and how a step is reported. The
//! sequences themselves, with their order, ids and titles, are in `api/src/steps.rs`.
//!
//! A step is a pure function of the view. It must never make a request itself: it returns the next one. Nothing here depends on a particular
//! step.

use std::time::Duration;

use super::action::{Action, Subject};
use super::report::{Blocker, Next};
use super::view::View;
use crate::resources::reasons::Reason;
use crate::resources::steps::{Sequence, StepResult};
use crate::resources::{ComputerRecord, Step, StepStatus};

/// The result of a finished step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its result.
    pub result: StepResult,
    /// What was verified, or why the step was not needed or skipped.
    pub detail: String,
}

/// What a step returns.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// The step is finished; the next one may start.
    Done(Finished),
    /// Send this request and plan again.
    Do(Box<Action>),
    /// Wait for a running archive check, or for the retry of something that has failed; `Some` once it is overdue.
    Checking(Option<Blocker>),
    /// Wait for something that happens without any action of a user.
    Wait(Duration),
    /// Wait for something that a user, an admin or another controller must do first.
    Blocked(Blocker, Duration),
}

impl State {
    /// Sends a request.
    pub fn act(action: Action) -> Self {
        Self::Do(Box::new(action))
    }

    /// Reads a subject live.
    pub fn read(subject: Subject) -> Self {
        Self::act(Action::Read(subject))
    }

    /// Saves the record with a change.
    pub fn save(record: &ComputerRecord, change: impl FnOnce(&mut ComputerRecord)) -> Self {
        let mut record = record.clone();
        change(&mut record);
        Self::act(Action::SaveRecord(Box::new(record)))
    }

    /// Waits this many seconds.
    pub fn wait(seconds: u64) -> Self {
        Self::Wait(Duration::from_secs(seconds))
    }

    /// Waits for the rest of a period.
    pub fn wait_for(seconds_left: i64) -> Self {
        Self::wait(u64::try_from(seconds_left).unwrap_or(1))
    }

    /// Blocked, and checked again after this many seconds.
    pub fn blocked(reason: Reason, message: impl Into<String>, retry_seconds: u64) -> Self {
        Self::Blocked(Blocker { reason, message: message.into() }, Duration::from_secs(retry_seconds))
    }

    /// Finished and verified.
    pub fn verified(detail: impl Into<String>) -> Self {
        Self::Done(Finished { result: StepResult::Verified, detail: detail.into() })
    }

    /// Finished: there is nothing to do for this computer.
    pub fn not_applicable(detail: impl Into<String>) -> Self {
        Self::Done(Finished { result: StepResult::NotApplicable, detail: detail.into() })
    }

    /// Finished: skipped.
    pub fn skipped(detail: impl Into<String>) -> Self {
        Self::Done(Finished { result: StepResult::Skipped, detail: detail.into() })
    }

    /// Finished, with no detail to report.
    pub fn done() -> Self {
        Self::verified("")
    }

    /// Whether the step is finished.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }

    /// What to do next, and the reason why the step is blocked, if it is.
    pub fn into_next(self) -> (Next, Option<Blocker>) {
        match self {
            Self::Done(_) => (Next::Settled, None),
            Self::Do(action) => (Next::Do(*action), None),
            Self::Checking(overdue) => (Next::Wait(Duration::from_secs(15)), overdue),
            Self::Wait(after) => (Next::Wait(after), None),
            Self::Blocked(blocker, after) => (Next::Wait(after), Some(blocker)),
        }
    }
}

/// The input of a step: the view, its record, and the results of the previous steps.
pub struct Context<'a, S, C = ()> {
    /// Everything that was observed.
    pub view: &'a View,
    /// The computer's record.
    pub record: &'a ComputerRecord,
    /// The Computer, where every step needs it.
    pub computer: C,
    finished: Vec<(S, Finished)>,
}

impl<'a, S: Sequence, C> Context<'a, S, C> {
    /// A context in which no step is finished.
    pub fn new(view: &'a View, record: &'a ComputerRecord, computer: C) -> Self {
        Self { view, record, computer, finished: Vec::new() }
    }

    /// Saves the record with a change.
    pub fn save(&self, change: impl FnOnce(&mut ComputerRecord)) -> State {
        State::save(self.record, change)
    }

    /// Runs these steps in order, up to the first that is not finished, and returns its state. `None`: all are finished.
    pub fn walk(&mut self, steps: impl IntoIterator<Item = S>, run: impl Fn(&Self, S) -> State) -> Option<State> {
        for step in steps {
            match run(self, step) {
                State::Done(finished) => self.finished.push((step, finished)),
                state => return Some(state),
            }
        }
        None
    }

    /// Forgets which steps are finished.
    pub fn restart(&mut self) {
        self.finished.clear();
    }

    /// The steps that are finished, in order.
    pub fn finished(&self) -> &[(S, Finished)] {
        &self.finished
    }

    /// The result of a step in this walk. `None`: it is not finished.
    pub fn outcome(&self, step: S) -> Option<&Finished> {
        self.finished.iter().find(|(of, _)| *of == step).map(|(_, finished)| finished)
    }

    /// The first step that is not finished.
    pub fn current(&self) -> Option<S> {
        S::ALL.iter().copied().find(|step| self.outcome(*step).is_none())
    }
}

/// A step as users see it, without its times. `finished` is its result; `current` means that it is the first step that is not finished.
pub fn shown<S: Sequence>(step: S, finished: Option<&Finished>, current: bool, blocker: Option<&Blocker>) -> Step {
    let blocker = blocker.filter(|_| current);
    let (status, error) = match finished {
        Some(finished) => (finished.result.status(), Some(&finished.detail).filter(|_| finished.result == StepResult::Skipped)),
        None if blocker.is_some() => (StepStatus::Blocked, blocker.map(|b| &b.message)),
        None => (if current { StepStatus::Running } else { StepStatus::Pending }, None),
    };
    Step { id: step.id().to_owned(), name: step.title().to_owned(), status, error: error.cloned(), ..Step::default() }
}
