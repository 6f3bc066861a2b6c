//! The deletion plan (DESIGN.md 4): revoke → stop → archive → delete → receipt → release. The order, ids, titles and deadlines of the steps
//! are in `api/src/steps.rs`; each step is a file beside this one, and [`run`] below calls it. `release`, after the last step, decides
//! that the finalizer is removed. `hand_off` decides it earlier, in a namespace that is being deleted, if the class says `onNamespaceDeletion:
//! HandOff`. `apply.rs` removes it.
//!
//! Every plan runs all steps from the first one. A step counts as finished if this reconcile has verified it with live reads, or if the
//! record, or an earlier reconcile with the same version of the record, says so: a deleted UID never returns. This only saves requests.
//! Before the receipt and the release all steps run again without that memory, so S3 depends on live reads only: those of the same reconcile, and
//! the one of this process that has shown a recorded UID to be gone, which stays true. A
//! recorded step must never prevent the step from running again (S9): a crash at any point is harmless. The spec must never be validated here.

mod archive;
mod archive_pod;
mod best_effort;
pub mod custody;
mod receipt;
mod revoke;
mod stop;
mod times;
mod volumes;

#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

pub use archive_pod::archive_pod;
pub use best_effort::{archive_pod_runs, counts_wait};

use super::action::{Action, Subject};
use super::report::{Blocker, Next, Plan, Report};
use super::step::{self, State};
use super::stop_pod::foreign_finalizers;
use super::view::{View, has_finalizer};
use crate::resources::reasons::Reason;
use crate::resources::steps::{CurrentStep, DeletionStep, Sequence, StepResult};
use crate::resources::{
    ComputerRecord, DELETION_FINALIZER, Deletion, DeletionOverride, OnNamespaceDeletion, Phase, RecordPhase, Step, StepOutcome, Unknown,
};

/// The input of the deletion's steps.
type Context<'a> = step::Context<'a, DeletionStep>;

/// Runs one step.
fn run(context: &Context<'_>, step: DeletionStep) -> State {
    match step {
        DeletionStep::RevokeCredentials => revoke::step(context),
        DeletionStep::StopPods => stop::step(context),
        DeletionStep::ArchiveSessions => archive::step(context),
        DeletionStep::DeleteVolumes => volumes::step(context),
        DeletionStep::WriteReceipt => receipt::step(context),
    }
}

impl Context<'_> {
    /// The deletion as it is recorded. The first step creates it.
    fn deletion(&self) -> Option<&Deletion> {
        self.record.spec.state.deletion.as_ref()
    }

    /// Saves the record with a change of the deletion.
    fn save_deletion(&self, change: impl FnOnce(&mut Deletion)) -> State {
        self.save(|r| {
            if let Some(deletion) = &mut r.spec.state.deletion {
                change(deletion);
            }
        })
    }

    /// Number of the latest archive attempt, from 1.
    fn attempts(&self) -> i32 {
        attempts(self.record)
    }

    /// The recorded result of a finished step.
    fn on_record(&self, step: DeletionStep) -> Option<&StepOutcome> {
        self.deletion()?.outcome(step)
    }

    /// The result of a finished step, by the record or by an earlier reconcile with the same version of it.
    fn noted(&self, step: DeletionStep) -> Option<&StepOutcome> {
        self.on_record(step).or_else(|| self.view.passed.get(&step))
    }

    /// The state of a step that need not be verified again.
    fn recorded(&self, step: DeletionStep) -> Option<State> {
        let noted = self.noted(step)?;
        Some(State::Done(step::Finished { result: noted.result.clone(), detail: noted.detail.clone() }))
    }

    /// Whether a step was skipped in this walk.
    fn skips(&self, step: DeletionStep) -> bool {
        self.outcome(step).is_some_and(|finished| finished.result == StepResult::Skipped)
    }

    /// Whether a step has exceeded the deadline of the class. A deadline is only reported, or skips a step where the class policy allows
    /// that.
    fn overdue(&self, step: DeletionStep) -> bool {
        step.deadline(&self.record.spec.snapshot.deadlines).is_some_and(|seconds| self.running_for(step) >= seconds)
    }
}

/// Number of the latest archive attempt, from 1.
fn attempts(record: &ComputerRecord) -> i32 {
    let custody = record.spec.state.deletion.as_ref().and_then(|d| d.custody.as_ref());
    custody.map_or(1, |c| c.attempt.max(1))
}

/// An override as receipts and statuses name it.
fn skipped_by(by: &DeletionOverride) -> String {
    format!("by DeletionOverride {}: {}", by.metadata.name.as_deref().unwrap_or_default(), by.spec.reason)
}

/// Whether a deletion has begun and has no archive yet.
pub fn archiving(view: &View) -> bool {
    let deletion = view.record.as_ref().and_then(|r| r.spec.state.deletion.as_ref());
    deletion.is_some_and(|d| d.archive.is_none())
}

/// Plans the next request of a deletion.
pub fn plan(view: &View) -> Plan {
    let Some(record) = &view.record else { return without_record(view) };
    let mut context = Context::new(view, record, ());
    let all = || DeletionStep::ALL.iter().copied();
    let before_receipt = all().filter(|step| *step != DeletionStep::WriteReceipt);
    let remembered = context.walk(before_receipt, |context, step| context.recorded(step).unwrap_or_else(|| run(context, step)));
    let times = context.times();
    if let Some(state) = remembered {
        return planned(&context, state).with_times(times);
    }
    context.restart();
    let state = context.walk(all(), run);
    state.map_or_else(|| release(&context), |state| planned(&context, state)).with_times(times)
}

/// The plan at a step that is not finished.
fn planned(context: &Context<'_>, state: State) -> Plan {
    // The store may be down, and the class asks not to keep the namespace for it.
    let stalls = match &state {
        State::Do(action) => matches!(**action, Action::PutReceipt(_)),
        _ => true,
    };
    if stalls && may_hand_off(context) {
        return hand_off(context);
    }
    let waits = matches!(state, State::Wait(_) | State::Blocked(..)) && !best_effort::waits_for_an_admin(&state);
    let checking = matches!(state, State::Checking(_));
    let (next, blocker) = state.into_next();
    let mut plan = reported(context, next, blocker);
    plan.report.checking = checking;
    plan.report.waits = waits && context.current() == Some(DeletionStep::ArchiveSessions) && !archive_pod_runs(context.view);
    plan
}

/// A deleting computer without a record: either nothing was ever created, or the record was lost. It is re-created from what is
/// left, so that every deletion has a receipt; with no Computer either, there is nothing to do.
fn without_record(view: &View) -> Plan {
    let next = match &view.computer {
        Some(computer) if has_finalizer(computer) => {
            let record = || Action::CreateRecord(Box::new(super::new_record::recover(view)));
            Next::Do(super::new_record::namespace_uid(view).err().unwrap_or_else(record))
        }
        _ => Next::Finished(None),
    };
    Plan { next, report: Report { phase: Some(Phase::Deleting), ..Report::default() } }
}

/// How often a released Computer is reconciled while a foreign finalizer keeps it; its removal is an event.
const HELD: Duration = Duration::from_secs(3600);

/// Everything is verified and the receipt is stored: the finalizer is removed (S3). The next reconcile finds the Computer gone.
fn release(context: &Context<'_>) -> Plan {
    let next = match &context.view.computer {
        Some(computer) if has_finalizer(computer) => Next::Do(Action::ReleaseFinalizer),
        // A foreign finalizer can keep it for longer than the record is kept; the record stays until it is gone.
        Some(_) => Next::Finished(expires_in(context.record, context.view.now).map(|left| left.max(HELD))),
        None => Next::Finished(expires_in(context.record, context.view.now)),
    };
    // The garbage collector removes its own finalizers.
    let usual = [DELETION_FINALIZER, "foregroundDeletion", "orphan"];
    let held = context.view.computer.as_ref().and_then(|c| foreign_finalizers(&c.metadata, &usual));
    let message = |held| format!("the deletion is complete and its receipt is stored, but {held}");
    let held = held.filter(|_| matches!(next, Next::Finished(_)));
    reported(context, next, held.map(|held| Blocker { reason: Reason::ComputerHeld, message: message(held) }))
}

/// Whether the namespace may be released before the deletion is complete (`onNamespaceDeletion: HandOff`): the class asks for it, the key is
/// revoked, the pods have stopped, the volume is in custody (or its archive is verified or not wanted) and the record is stored (DESIGN.md
/// 4.7, the stated exception of S3).
fn may_hand_off(context: &Context<'_>) -> bool {
    let asked = context.record.spec.snapshot.archive.on_namespace_deletion == OnNamespaceDeletion::HandOff;
    let held = context.view.computer.as_ref().is_some_and(has_finalizer);
    let in_custody = || context.outcome(DeletionStep::StopPods).is_some() && custody::taken(context.view, context.record);
    asked && held && context.view.namespace_terminating && (context.outcome(DeletionStep::ArchiveSessions).is_some() || in_custody())
}

fn hand_off(context: &Context<'_>) -> Plan {
    // The cache may hold a namespace that is gone while a new one with that name exists (S3, S4).
    let namespace = Subject::Namespace { name: context.view.namespace.clone() };
    let next = if !context.view.facts.contains_key(&namespace) {
        Next::Do(Action::Read(namespace))
    } else if context.deletion().is_some_and(|d| d.handed_off) {
        Next::Do(Action::ReleaseFinalizer)
    } else {
        context.save_deletion(|d| d.handed_off = true).into_next().0
    };
    reported(context, next, None)
}

/// How long a released record is kept: 30 days. The copy in the store stays.
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

/// The plan with its report. A save of the record also stores the results of all finished steps: one write serves both.
fn reported(context: &Context<'_>, mut next: Next, blocker: Option<Blocker>) -> Plan {
    if let Next::Do(Action::SaveRecord(record)) = &mut next
        && let Some(deletion) = &mut record.spec.state.deletion
    {
        context.note_steps(deletion);
    }
    let report = Report {
        phase: Some(Phase::Deleting),
        current: Some(context.current().map_or(CurrentStep::Release, CurrentStep::Deletion)),
        deletion: DeletionStep::ALL.iter().map(|step| shown(context, *step, blocker.as_ref())).collect(),
        passed: context.outcomes(),
        blocker,
        progress: archive::progress(context),
        class_name: context.record.spec.class_name.clone(),
        ..Report::default()
    };
    Plan { next, report }
}

fn shown(context: &Context<'_>, step: DeletionStep, blocker: Option<&Blocker>) -> Step {
    let (finished, current) = (context.outcome(step), context.current() == Some(step));
    Step {
        started_at: (finished.is_some() || current).then(|| Time(context.began(step))),
        completed_at: finished.map(|_| Time(context.finished_at(step))),
        ..step::shown(step, finished, current, blocker)
    }
}

/// A finished step in the form in which the record stores it.
fn outcome(finished: &step::Finished, at: Timestamp) -> StepOutcome {
    StepOutcome { result: finished.result.clone(), detail: finished.detail.clone(), at: MicroTime(at), unknown: Unknown::new() }
}
