//! The deletion plan (DESIGN.md 4): revoke → stop → archive → delete → receipt → release, one file a step.
//!
//! Every pass walks all steps from the first one. A step is passed on what this pass has read live, or because the record, or a pass
//! before on the same version of it, says that it was verified (a UID that was gone stays gone): that saves requests, nothing more.
//! Before the receipt and the release all steps are walked once more without that word, so that S3 rests on live reads of that very
//! pass. Nothing is ever a lock (S9), and a crash anywhere is harmless. The spec is never validated here.

mod archive;
mod best_effort;
pub mod custody;
mod receipt;
mod revoke;
mod stop;
mod volumes;

#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

pub use best_effort::counts_wait;

use super::action::{Action, Subject};
use super::report::{Blocker, Next, Plan, Report};
use super::view::{View, has_finalizer};
use crate::guards::{self, Guard};
use crate::resources::{
    ComputerRecord, DELETION_FINALIZER, Deletion, OnNamespaceDeletion, Phase, RecordPhase, Step, StepStatus, SubjectOutcome, Unknown,
};

/// Ids and names of the steps, in order.
pub const STEPS: [(&str, &str); 5] = [
    ("revoke-credentials", "Revoke the key"),
    ("stop-pods", "Stop the pods"),
    ("archive-sessions", "Archive the sessions"),
    ("delete-volumes", "Delete the volume"),
    ("write-receipt", "Write the receipt"),
];

/// How a step that is finished came out (DESIGN.md 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Verified,
    NotApplicable,
    Skipped,
}

/// What a step says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    /// The next step may begin.
    Done(Outcome, String),
    /// One more request.
    Do(Box<Action>),
    /// Wait for a look at the archive that has begun; longer than it may take, maybe.
    Checking(Option<Blocker>),
    /// Wait for something that comes by itself.
    Wait(Duration),
    /// Wait for something that does not come by itself.
    Blocked(Blocker, Duration),
}

impl State {
    fn act(action: Action) -> Self {
        Self::Do(Box::new(action))
    }
    fn wait(seconds: u64) -> Self {
        Self::Wait(Duration::from_secs(seconds))
    }
    fn blocked(reason: &'static str, message: impl Into<String>, retry_seconds: u64) -> Self {
        Self::Blocked(Blocker { reason, message: message.into() }, Duration::from_secs(retry_seconds))
    }
    fn verified(detail: impl Into<String>) -> Self {
        Self::Done(Outcome::Verified, detail.into())
    }
    fn not_applicable(detail: impl Into<String>) -> Self {
        Self::Done(Outcome::NotApplicable, detail.into())
    }
}

/// What the steps look at: the view, its record, and what the steps before came to.
pub(super) struct Context<'a> {
    pub view: &'a View,
    pub record: &'a ComputerRecord,
    done: Vec<(Outcome, String)>,
}

impl Context<'_> {
    /// Saves the record with a change, together with what the finished steps came to: one write serves both.
    pub fn save(&self, change: impl FnOnce(&mut ComputerRecord)) -> State {
        let mut record = self.record.clone();
        change(&mut record);
        if let Some(deletion) = &mut record.spec.state.deletion {
            self.note_steps(deletion);
        }
        State::act(Action::SaveRecord(Box::new(record)))
    }

    fn note_steps(&self, deletion: &mut Deletion) {
        let mut finished = self.outcomes();
        // The write that brings a verified archive ends its step: when that was is on record before the volume goes (S1).
        if let Some(archive) = deletion.archive.as_ref().filter(|_| finished.len() == 2) {
            let at = MicroTime(self.not_before(2));
            finished.push(SubjectOutcome {
                result: format!("{:?}", Outcome::Verified),
                detail: archive::said_of(archive),
                at,
                unknown: Unknown::new(),
            });
        }
        let next = finished.len();
        let began = finished.last().filter(|_| next > self.done.len()).map_or_else(|| self.began(next), |last| last.at.0);
        for ((id, _), outcome) in STEPS.iter().zip(finished) {
            deletion.started.remove(*id);
            deletion.steps.entry((*id).to_owned()).or_insert(outcome);
        }
        match STEPS.get(next) {
            Some((id, _)) if deletion.receipt.is_none() => {
                deletion.started.entry((*id).to_owned()).or_insert(MicroTime(began));
            }
            _ => deletion.started.clear(),
        }
    }

    /// What the steps before came to, and when that was first seen.
    fn outcomes(&self) -> Vec<SubjectOutcome> {
        let outcome = |(i, (outcome, detail)): (usize, &(Outcome, String))| SubjectOutcome {
            result: format!("{outcome:?}"),
            detail: detail.clone(),
            at: MicroTime(self.finished_at(i)),
            unknown: Unknown::new(),
        };
        self.done.iter().enumerate().map(outcome).collect()
    }

    /// When each of the finished steps was first seen finished.
    fn times(&self) -> Vec<Timestamp> {
        (0..self.done.len()).map(|i| self.finished_at(i)).collect()
    }

    /// When a step was finished: by the record, or by what this process has seen on the same version of the record, else now. Never
    /// before the deletion, nor before the step before it: the operator's time may be a little behind the API server's.
    fn finished_at(&self, i: usize) -> Timestamp {
        let receipt = self.deletion().and_then(|d| d.receipt.as_ref()).filter(|_| STEPS.get(i).is_some_and(|s| s.0 == "write-receipt"));
        let seen = self.noted(i).map(|noted| noted.at.0).or(receipt.map(|r| r.at.0)).or_else(|| self.view.times.get(i).copied());
        seen.map_or_else(|| self.not_before(i), |at| at.max(self.floor(i)))
    }

    /// Now, as the time at which a step is finished.
    fn not_before(&self, i: usize) -> Timestamp {
        self.view.now.max(self.floor(i))
    }

    /// What a step cannot have been finished before.
    fn floor(&self, i: usize) -> Timestamp {
        match i.checked_sub(1) {
            Some(before) => self.finished_at(before),
            None => self.deletion().map_or(Timestamp::MIN, |d| d.deleted_at.0),
        }
    }

    /// When a step began: by the record; else when the one before it was finished, which this process may have seen; else now. Never
    /// when the deletion began: another step may have been blocked since.
    fn began(&self, i: usize) -> Timestamp {
        if !guards::on(Guard::StepBeginning) {
            return self.deletion().map_or(self.view.now, |d| d.deleted_at.0);
        }
        let recorded = STEPS.get(i).and_then(|s| self.deletion()?.started.get(s.0));
        recorded.map_or_else(|| i.checked_sub(1).map_or(self.view.now, |before| self.finished_at(before)), |at| at.0)
    }

    /// What the record, or a pass before on the same version of it, says of a finished step.
    fn noted(&self, i: usize) -> Option<&SubjectOutcome> {
        self.deletion()?.steps.get(STEPS[i].0).or_else(|| self.view.passed.get(i))
    }

    /// The state of a step that needs no look again.
    fn recorded(&self, i: usize) -> Option<State> {
        let noted = self.noted(i)?;
        let outcome =
            [Outcome::Verified, Outcome::NotApplicable, Outcome::Skipped].into_iter().find(|o| format!("{o:?}") == noted.result)?;
        Some(State::Done(outcome, noted.detail.clone()))
    }

    /// The account of this deletion; made by the first step.
    pub fn deletion(&self) -> Option<&Deletion> {
        self.record.spec.state.deletion.as_ref()
    }

    /// Number of the latest archive attempt, from 1.
    pub fn attempts(&self) -> i32 {
        self.deletion().and_then(|d| d.custody.as_ref()).map_or(1, |c| c.attempt.max(1))
    }

    /// How a step came out, if it was finished before.
    pub fn finished(&self, step: &str) -> Option<&SubjectOutcome> {
        self.deletion()?.steps.get(step)
    }

    /// Whether this pass leaves a step out.
    pub fn left_out(&self, step: &str) -> bool {
        let place = STEPS.iter().position(|s| s.0 == step);
        place.and_then(|i| self.done.get(i)).is_some_and(|(outcome, _)| *outcome == Outcome::Skipped)
    }

    /// Whether the record says when a step began.
    pub fn started(&self, step: &str) -> bool {
        self.deletion().is_some_and(|d| d.started.contains_key(step))
    }

    /// Whether a step has been under way for longer than its deadline, from its own beginning. A deadline only ever shows, or skips
    /// what a policy allows to skip.
    pub fn overdue(&self, step: &str, seconds: i64) -> bool {
        let place = STEPS.iter().position(|s| s.0 == step);
        place.is_some_and(|i| self.view.now.duration_since(self.began(i)).as_secs() >= seconds)
    }
}

type StepFn = fn(&Context<'_>) -> State;

/// Plans the next request of a deletion.
pub fn plan(view: &View) -> Plan {
    const BEFORE_RECEIPT: [StepFn; 4] = [revoke::step, stop::step, archive::step, volumes::step];
    let Some(record) = &view.record else { return without_record(view) };
    let mut context = Context { view, record, done: Vec::new() };
    let mut times = Vec::new();
    for trust in [true, false] {
        context.done.clear();
        for (i, step) in BEFORE_RECEIPT.iter().enumerate() {
            let state = context.recorded(i).filter(|_| trust).unwrap_or_else(|| step(&context));
            if let Some(plan) = advance(&mut context, state) {
                return plan.with_times(if trust { context.times() } else { times });
            }
        }
        if trust {
            times = context.times();
        }
    }
    let state = receipt::step(&context);
    advance(&mut context, state).unwrap_or_else(|| release(&context)).with_times(times)
}

/// Takes a finished step in, or says what the plan is at one that is not.
fn advance(context: &mut Context<'_>, state: State) -> Option<Plan> {
    match state {
        State::Done(outcome, detail) => {
            context.done.push((outcome, detail));
            None
        }
        // The store may be down, and the namespace is asked not to wait for it.
        State::Do(action) if matches!(*action, Action::PutReceipt(_)) && let_go(context) => Some(hand_off(context)),
        State::Do(action) => Some(paused(context, Next::Do(*action), None)),
        State::Checking(_) | State::Wait(_) | State::Blocked(..) if let_go(context) => Some(hand_off(context)),
        State::Checking(overdue) => {
            let mut plan = paused(context, Next::Wait(Duration::from_secs(15)), overdue);
            plan.report.checking = true;
            Some(plan)
        }
        State::Wait(after) => Some(waiting(context, after, None)),
        State::Blocked(blocker, after) => Some(waiting(context, after, Some(blocker))),
    }
}

fn waiting(context: &Context<'_>, after: Duration, blocker: Option<Blocker>) -> Plan {
    let mut plan = paused(context, Next::Wait(after), blocker);
    plan.report.waits = plan.report.current.as_deref() == Some("archive-sessions") && !best_effort::at_work(context);
    plan
}

/// A deleting computer without a record: either nothing was ever made, or the record was lost. It is made again from what is
/// left, so that every deletion has a receipt; with no computer either, there is nothing to do.
fn without_record(view: &View) -> Plan {
    let next = match &view.computer {
        Some(computer) if has_finalizer(computer) => Next::Do(Action::CreateRecord(Box::new(crate::computer::new_record::recover(view)))),
        _ => Next::Finished(None),
    };
    Plan { next, report: Report { phase: Some(Phase::Deleting), ..Report::default() } }
}

/// How often a Computer is looked at that is released and held by a foreign finalizer; its removal is an event.
const HELD: Duration = Duration::from_secs(3600);

/// Everything is verified and the receipt is stored: the finalizer goes (S3). A pass that comes again finds the computer gone.
fn release(context: &Context<'_>) -> Plan {
    let next = match &context.view.computer {
        Some(computer) if has_finalizer(computer) => Next::Do(Action::ReleaseFinalizer),
        // A foreign finalizer can hold it for longer than the record is kept; the record stays until it is gone.
        Some(_) => Next::Finished(expires_in(context.record, context.view.now).map(|left| left.max(HELD))),
        None => Next::Finished(expires_in(context.record, context.view.now)),
    };
    // Those of the garbage collector come off by themselves.
    let usual = [DELETION_FINALIZER, "foregroundDeletion", "orphan"];
    let held = context.view.computer.as_ref().and_then(|c| stop::foreign_finalizers(&c.metadata, &usual));
    let blocker = held
        .filter(|_| matches!(next, Next::Finished(_)))
        .map(|held| Blocker { reason: "ComputerHeld", message: format!("everything is gone and the receipt is stored, but {held}") });
    paused(context, next, blocker)
}

/// Whether the namespace may be let go before the end: asked for by the class, the key dead, the pods stopped, the volume in
/// custody (or its archive verified or not wanted) and the record durable (DESIGN.md 4.7, the stated exception of S3).
fn let_go(context: &Context<'_>) -> bool {
    let asked = context.record.spec.snapshot.archive.on_namespace_deletion == OnNamespaceDeletion::HandOff;
    let held = context.view.computer.as_ref().is_some_and(has_finalizer);
    let safe = context.done.len() >= 3 || (context.done.len() == 2 && custody::taken(context.view, context.record));
    asked && held && context.view.namespace_terminating && safe
}

fn hand_off(context: &Context<'_>) -> Plan {
    // The cache may show a namespace that is gone by now, and another one of that name lives (S3, S4).
    let namespace = Subject::Namespace { name: context.view.namespace.clone() };
    if !context.view.facts.contains_key(&namespace) {
        return paused(context, Next::Do(Action::Read(namespace)), None);
    }
    let next = if context.deletion().is_some_and(|d| d.handed_off) {
        Next::Do(Action::ReleaseFinalizer)
    } else {
        match context.save(|r| {
            if let Some(deletion) = &mut r.spec.state.deletion {
                deletion.handed_off = true;
            }
        }) {
            State::Do(action) => Next::Do(*action),
            _ => Next::Wait(Duration::from_secs(1)),
        }
    };
    paused(context, next, None)
}

/// How long a released record is kept by default: 30 days. The copy in the store stays.
pub const RECORD_RETENTION: jiff::SignedDuration = jiff::SignedDuration::from_hours(24 * 30);

/// How long until a released record expires; `None`: it is not released.
pub fn expires_in(record: &ComputerRecord, now: Timestamp) -> Option<Duration> {
    let receipt = record.spec.state.deletion.as_ref()?.receipt.as_ref()?;
    if record.spec.state.phase != RecordPhase::Released {
        return None;
    }
    let age = now.duration_since(receipt.at.0);
    Some(Duration::try_from(RECORD_RETENTION - age).unwrap_or(Duration::ZERO))
}

fn paused(context: &Context<'_>, next: Next, blocker: Option<Blocker>) -> Plan {
    let current = STEPS.get(context.done.len()).map_or("release", |s| s.0);
    let deletion = STEPS.iter().enumerate().map(|(i, step)| report_step(context, i, *step, blocker.as_ref())).collect();
    let report = Report {
        phase: Some(Phase::Deleting),
        current: Some(current.to_owned()),
        deletion,
        passed: context.outcomes(),
        blocker,
        class_name: context.record.spec.class_name.clone(),
        ..Report::default()
    };
    Plan { next, report }
}

fn report_step(context: &Context<'_>, i: usize, (id, name): (&str, &str), blocker: Option<&Blocker>) -> Step {
    let mut step = Step { id: id.to_owned(), name: name.to_owned(), ..Step::default() };
    if let Some((outcome, detail)) = context.done.get(i) {
        step.status = match outcome {
            Outcome::Verified => StepStatus::Completed,
            Outcome::NotApplicable => StepStatus::NotApplicable,
            Outcome::Skipped => StepStatus::Skipped,
        };
        step.error = (*outcome == Outcome::Skipped).then(|| detail.clone());
        step.started_at = Some(Time(context.began(i)));
        step.completed_at = Some(Time(context.finished_at(i)));
    } else if i == context.done.len() {
        step.status = if blocker.is_some() { StepStatus::Blocked } else { StepStatus::Running };
        step.error = blocker.map(|b| b.message.clone());
        step.started_at = Some(Time(context.began(i)));
    }
    step
}
