//! Decides when `BestEffort` gives up the sessions: when the deletion has waited for `deadlines.archiveSessionsSeconds` in total while no
//! work on its archive was in progress.
//!
//! The deletion does not count as waiting while an archive pod runs or the archive is read back. The pod ends by itself when it makes no
//! progress. A request that the API server refuses counts as waiting, however often it is retried. A deletion must never give up because an
//! archive is large or slow, because the operator or the API server was down, because an archive is larger than its class allows (only an
//! admin decides about that), or because a clock was set forward ([`crate::archive::waiting_time`]), nor before it has read the store and the archive
//! pod live once more.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::{Context, archive_pod, attempts, outcome};
use crate::archive::Verification;
use crate::computer::action::{Action, Fact, Subject};
use crate::computer::step::{Finished, State};
use crate::computer::view::View;
use crate::guards::{self, Guard};
use crate::resources::ArchivePolicy;
use crate::resources::reasons::Reason;
use crate::resources::steps::{DeletionStep, StepResult};

/// A process gives up nothing before it has waited this long itself.
const CONFIRM: Duration = Duration::from_secs(60);
/// Longest pause between two reconciles of a waiting deletion: below [`crate::archive::waiting_time::INTERVAL`], so that the whole wait counts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The recorded wait of a deletion that may give up its sessions. `None`: this deletion does not count its wait.
pub fn counts_wait(view: &View) -> Option<Duration> {
    let record = view.record.as_ref().filter(|r| r.spec.snapshot.archive.policy == ArchivePolicy::BestEffort)?;
    let deletion = record.spec.state.deletion.as_ref()?;
    let open = deletion.archive.is_none() && deletion.outcome(DeletionStep::ArchiveSessions).is_none();
    open.then(|| Duration::from_secs(deletion.waited_seconds.try_into().unwrap_or(0)))
}

fn latest_pod(view: &View) -> Subject {
    let attempt = view.record.as_ref().map_or(1, attempts);
    Subject::pod(&view.settings.namespace, &view.archive_pod_name(attempt))
}

/// The pod of the latest attempt, if it is running.
pub(super) fn running_archive_pod(view: &View) -> Option<&Pod> {
    let Some(Fact::Pod(pod)) = view.facts.get(&latest_pod(view)) else { return None };
    Some(&**pod).filter(|pod| archive_pod::runs(pod) && pod.metadata.deletion_timestamp.is_none())
}

/// Whether the pod of the latest attempt is running.
pub fn archive_pod_runs(view: &View) -> bool {
    running_archive_pod(view).is_some()
}

/// Whether only an admin can decide, however long that takes: a bound must not destroy what fits into the store.
pub(super) fn waits_for_an_admin(state: &State) -> bool {
    matches!(state, State::Blocked(blocker, _) if blocker.reason == Reason::ArchiveTooLarge)
}

/// The step under `BestEffort`, given its state without that policy.
pub(super) fn step(context: &Context<'_>, state: State) -> State {
    if waits_for_an_admin(&state) {
        return state;
    }
    let refused = context.view.waited.refused.as_deref();
    let state = match state {
        // The API server refused this request before: the archive may be given up.
        State::Do(action) if refused.is_some() && action.changes_child() => State::Do(action),
        State::Do(_) | State::Done(..) => return state,
        State::Wait(after) => State::Wait(after.min(LONGEST_PAUSE)),
        State::Blocked(blocker, after) => State::Blocked(blocker, after.min(LONGEST_PAUSE)),
        checking @ State::Checking(_) => checking,
    };
    let deletion = context.deletion();
    if deletion.is_some_and(|d| d.started.get(DeletionStep::ArchiveSessions).is_none()) {
        return context.save(|_| {});
    }
    let why = match (&state, refused) {
        (State::Blocked(blocker, _), _) => blocker.message.as_str(),
        (State::Do(_), Some(refused)) => refused,
        _ => "the archive was not finished",
    };
    if !guards::on(Guard::CountedWait) {
        return if context.overdue(DeletionStep::ArchiveSessions) { give_up(context, why) } else { state };
    }
    if let Some(save) = note(context) {
        return save;
    }
    let waited = &context.view.waited;
    let working = matches!(state, State::Checking(_)) || archive_pod_runs(context.view);
    if waited.total < deadline(context) || waited.here < CONFIRM || working {
        return state;
    }
    last_read(context).unwrap_or_else(|| give_up(context, why))
}

fn deadline(context: &Context<'_>) -> Duration {
    let seconds = context.record.spec.snapshot.deadlines.archive_sessions_seconds;
    Duration::from_secs(seconds.try_into().unwrap_or(0))
}

/// Saves the wait for the next process: at most eight times until the deadline, and no more often than every minute.
fn note(context: &Context<'_>) -> Option<State> {
    let recorded = counts_wait(context.view)?;
    let interval = (deadline(context) / 8).clamp(Duration::from_secs(60), Duration::from_secs(600));
    let total = context.view.waited.total;
    let seconds = i64::try_from(total.as_secs()).unwrap_or(i64::MAX);
    (total.abs_diff(recorded) >= interval).then(|| context.save_deletion(|d| d.waited_seconds = seconds))
}

/// The live reads before the sessions are given up. `None`: this reconcile has made them, and no valid archive exists.
fn last_read(context: &Context<'_>) -> Option<State> {
    let pod = latest_pod(context.view);
    if !context.view.learned.contains(&pod) {
        return Some(State::read(pod));
    }
    match &context.view.archive {
        None => Some(State::act(Action::CheckArchive)),
        Some(Verification::Running) => Some(State::Checking(None)),
        Some(Verification::Valid(summary)) => Some(super::archive::verified(context, summary)),
        Some(Verification::Missing | Verification::Invalid(_) | Verification::Unavailable(_)) => None,
    }
}

/// Recorded before the next step: that step destroys the home and must not depend on another observation (S9).
fn give_up(context: &Context<'_>, why: &str) -> State {
    let seconds = context.record.spec.snapshot.deadlines.archive_sessions_seconds;
    let detail = format!("class policy BestEffort, deadline exceeded: nothing worked on the archive for {seconds} s in total. Last: {why}");
    let finished = Finished { result: StepResult::Skipped, detail };
    let outcome = outcome(&finished, context.not_before(DeletionStep::ArchiveSessions));
    context.save_deletion(|d| d.finish(DeletionStep::ArchiveSessions, outcome))
}
