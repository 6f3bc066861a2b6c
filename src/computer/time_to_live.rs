//! The deletion that the operator itself starts: the time to live has expired. The reason is recorded before the Computer is deleted, so that
//! the receipt states it even if the Computer is gone. It is removed again when the time to live is extended.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::action::Action;
use super::view::View;
use crate::resources::{Cause, Computer, Ending, Unknown};

/// Seconds until the time to live expires. `None`: the Computer has none.
pub fn time_left(now: Timestamp, computer: &Computer) -> Option<i64> {
    let ttl = computer.spec.time_to_live_seconds?;
    let created = computer.metadata.creation_timestamp.as_ref()?;
    Some(ttl.saturating_sub(now.duration_since(created.0).as_secs()))
}

/// The next action when the time to live has expired. Deletion protection takes precedence.
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

/// Whether a recorded decision is valid for this Computer: by its current spec, the time to live had expired at that time.
fn holds(ending: &Ending, computer: &Computer) -> bool {
    time_left(ending.at.0, computer).is_some_and(|left| left <= 0)
}

/// By how much the operator's time may be ahead of the API server's, and how soon after its decision the operator sends the DELETE.
const AHEAD: SignedDuration = SignedDuration::from_secs(5);

/// Whether this decision caused the deletion. It did if both have the same time, even if the time to live was extended afterwards: a crash
/// can follow the DELETE. It did not if the deletion started earlier.
pub fn ended(ending: &Ending, computer: &Computer) -> bool {
    let Some(deleted) = &computer.metadata.deletion_timestamp else { return holds(ending, computer) };
    let after = deleted.0.duration_since(ending.at.0);
    after.abs() <= AHEAD || (holds(ending, computer) && after.is_positive())
}
