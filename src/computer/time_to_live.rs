//! The end of a computer that the operator itself decides: its time to live is over. The reason goes on record before the Computer is
//! deleted, so that it need not be guessed afterwards; it goes again when the time to live is extended.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::action::Action;
use super::view::View;
use crate::resources::{Cause, Computer, Ending, Unknown};

/// Seconds until the time to live is over; `None`: there is none.
pub fn time_left(now: Timestamp, computer: &Computer) -> Option<i64> {
    let ttl = computer.spec.time_to_live_seconds?;
    let created = computer.metadata.creation_timestamp.as_ref()?;
    Some(ttl.saturating_sub(now.duration_since(created.0).as_secs()))
}

/// What the end of the time to live asks for. Protection outlasts it.
pub fn expire(view: &View, computer: &Computer) -> Option<Action> {
    let over = time_left(view.now, computer).is_some_and(|left| left <= 0) && !computer.spec.deletion_protection;
    let Some(record) = &view.record else { return over.then_some(Action::DeleteComputer) };
    let decided = record.spec.state.ending.as_ref();
    let save = |ending: Option<Ending>| {
        let mut record = record.clone();
        record.spec.state.ending = ending;
        Some(Action::SaveRecord(Box::new(record)))
    };
    match decided {
        Some(ending) if over && holds(ending, computer) => Some(Action::DeleteComputer),
        _ if over => save(Some(Ending { cause: Cause::TimeToLiveExpired, at: MicroTime(view.now), unknown: Unknown::new() })),
        Some(_) => save(None),
        None => None,
    }
}

/// Whether a decision still holds for this Computer: its time to live was over at that time, as it is now.
fn holds(ending: &Ending, computer: &Computer) -> bool {
    time_left(ending.at.0, computer).is_some_and(|left| left <= 0)
}

/// What the operator's time may be ahead of the API server's.
const AHEAD: SignedDuration = SignedDuration::from_secs(5);

/// Whether a deletion came about by this decision. One that had begun before it did not.
pub fn ended(ending: &Ending, computer: &Computer) -> bool {
    let deleted = computer.metadata.deletion_timestamp.as_ref();
    holds(ending, computer) && deleted.is_none_or(|at| at.0.duration_since(ending.at.0) >= -AHEAD)
}
