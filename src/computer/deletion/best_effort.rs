//! When `BestEffort` gives the sessions up: when the deletion has waited for `deadlines.archiveSessionsSeconds` in all while nothing
//! worked on its archive.
//!
//! What works on it is an archive pod that runs, and a read-back. The pod ends by itself when it gets no further. A deletion therefore
//! never gives up because an archive is large or slow, because the operator was down, or because a clock was set forward
//! ([`crate::archive::waits`]); and not before the store and the archive pod were asked once more, live.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{Context, Outcome, State};
use crate::archive::Verification;
use crate::computer::action::{Action, Subject};
use crate::computer::view::View;
use crate::guards::{self, Guard};
use crate::resources::{ArchivePolicy, SubjectOutcome, Unknown};

/// A process gives nothing up before it has waited for so long itself.
const CONFIRM: Duration = Duration::from_secs(60);
/// Longest pause between two looks at a deletion that waits; below [`crate::archive::waiting_time::INTERVAL`], so that all of it counts.
const LOOK: Duration = Duration::from_secs(30);

/// What the record says of the wait of a deletion that may give up.
pub fn counts_wait(view: &View) -> Option<Duration> {
    let record = view.record.as_ref().filter(|r| r.spec.snapshot.archive.policy == ArchivePolicy::BestEffort)?;
    let deletion = record.spec.state.deletion.as_ref()?;
    let open = deletion.archive.is_none() && !deletion.steps.contains_key("archive-sessions");
    open.then(|| Duration::from_secs(deletion.waited_seconds.try_into().unwrap_or(0)))
}

/// Whether the pod of the latest attempt runs.
pub(super) fn at_work(context: &Context<'_>) -> bool {
    let pod = context.view.pod(&context.view.settings.namespace, &context.view.archive_pod_name(context.attempts())).flatten();
    pod.is_some_and(|pod| {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
    })
}

/// The step under `BestEffort`, given how it is without.
pub(super) fn step(context: &Context<'_>, state: State) -> State {
    let state = match state {
        State::Do(_) | State::Done(..) => return state,
        State::Wait(after) => State::Wait(after.min(LOOK)),
        State::Blocked(blocker, after) => State::Blocked(blocker, after.min(LOOK)),
        checking @ State::Checking(_) => checking,
    };
    if !context.started("archive-sessions") {
        return context.save(|_| {});
    }
    if !guards::on(Guard::CountedWait) {
        let over = context.overdue("archive-sessions", context.record.spec.snapshot.deadlines.archive_sessions_seconds);
        return if over { give_up(context, &state) } else { state };
    }
    if let Some(save) = note(context) {
        return save;
    }
    let waited = context.view.waited;
    if waited.total < deadline(context) || waited.here < CONFIRM || matches!(state, State::Checking(_)) || at_work(context) {
        return state;
    }
    last_look(context).unwrap_or_else(|| give_up(context, &state))
}

fn deadline(context: &Context<'_>) -> Duration {
    let seconds = context.record.spec.snapshot.deadlines.archive_sessions_seconds;
    Duration::from_secs(seconds.try_into().unwrap_or(0))
}

/// Saves the wait for the next process: at most eight times until the deadline, and no more often than every minute.
fn note(context: &Context<'_>) -> Option<State> {
    let recorded = counts_wait(context.view)?;
    let step = (deadline(context) / 8).clamp(Duration::from_secs(60), Duration::from_secs(600));
    let total = context.view.waited.total;
    let seconds = i64::try_from(total.as_secs()).unwrap_or(i64::MAX);
    (total.abs_diff(recorded) >= step).then(|| {
        context.save(|r| {
            if let Some(deletion) = &mut r.spec.state.deletion {
                deletion.waited_seconds = seconds;
            }
        })
    })
}

/// What is asked live before anything is given up; `None`: it was, in this pass, and there is no archive.
fn last_look(context: &Context<'_>) -> Option<State> {
    let pod = Subject::pod(&context.view.settings.namespace, &context.view.archive_pod_name(context.attempts()));
    if !context.view.learned.contains(&pod) {
        return Some(State::act(Action::Read(pod)));
    }
    match &context.view.archive {
        None => Some(State::act(Action::CheckArchive)),
        Some(Verification::Running) => Some(State::Checking(None)),
        Some(Verification::Valid(summary)) => Some(super::archive::verified(context, summary)),
        Some(Verification::Missing | Verification::Invalid(_) | Verification::Unavailable(_)) => None,
    }
}

/// On record before anything is done about it: what comes next destroys the home, and must not depend on another look (S9).
fn give_up(context: &Context<'_>, state: &State) -> State {
    let why = if let State::Blocked(blocker, _) = state { blocker.message.as_str() } else { "the archive was not finished" };
    let seconds = context.record.spec.snapshot.deadlines.archive_sessions_seconds;
    let outcome = SubjectOutcome {
        result: format!("{:?}", Outcome::Skipped),
        detail: format!("class policy BestEffort, deadline passed: for {seconds} s in all nothing worked on the archive. Last: {why}"),
        at: MicroTime(context.not_before(2)),
        unknown: Unknown::new(),
    };
    context.save(|r| {
        if let Some(deletion) = &mut r.spec.state.deletion {
            deletion.steps.insert("archive-sessions".to_owned(), outcome);
        }
    })
}
