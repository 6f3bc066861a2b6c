//! The deletion that the operator itself starts: the time to live has expired. The reason is recorded before the Computer is deleted, so that
//! the receipt states it even if the Computer is gone. It is removed again when the time to live is extended.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::action::Action;
use super::view::View;
use crate::resources::{Cause, Computer, ComputerRecord, Ending, Unknown};

/// The time to live: the Computer's or the default of its class, and at most what the class allows. The limits are those of the record, so that a
/// change of the class ends no computer. `None`: the Computer has none.
fn seconds(computer: &Computer, record: Option<&ComputerRecord>) -> Option<i64> {
    let limits = record.map(|record| &record.spec.snapshot);
    let asked = computer.spec.time_to_live_seconds.or_else(|| limits?.default_time_to_live_seconds);
    let most = limits.and_then(|limits| limits.max_time_to_live_seconds);
    asked.into_iter().chain(most).min()
}

/// When the time to live expires. `None`: never.
pub fn expires_at(computer: &Computer, record: Option<&ComputerRecord>) -> Option<Timestamp> {
    let created = computer.metadata.creation_timestamp.as_ref()?;
    let second = created.0.as_second().saturating_add(seconds(computer, record)?);
    Some(Timestamp::from_second(second).unwrap_or(Timestamp::MAX))
}

/// Seconds until the time to live expires. `None`: the Computer has none.
pub fn time_left(now: Timestamp, computer: &Computer, record: Option<&ComputerRecord>) -> Option<i64> {
    Some(expires_at(computer, record)?.as_second() - now.as_second())
}

/// The next action when the time to live has expired. Deletion protection takes precedence.
pub fn expire(view: &View, computer: &Computer) -> Option<Action> {
    let over = time_left(view.now, computer, view.record.as_ref()).is_some_and(|left| left <= 0) && !computer.spec.deletion_protection;
    let Some(record) = &view.record else { return over.then_some(Action::DeleteComputer) };
    let decided = record.spec.state.ending.as_ref();
    let save = |ending: Option<Ending>| {
        let mut record = record.clone();
        record.spec.state.ending = ending;
        Some(Action::SaveRecord(Box::new(record)))
    };
    match decided {
        Some(ending) if over && holds(ending, computer, Some(record)) => Some(Action::DeleteComputer),
        _ if over => save(Some(Ending { cause: Cause::TimeToLiveExpired, at: MicroTime(view.now), unknown: Unknown::new() })),
        Some(_) => save(None),
        None => None,
    }
}

/// Whether a recorded decision is valid for this Computer: by its current spec, the time to live had expired at that time.
fn holds(ending: &Ending, computer: &Computer, record: Option<&ComputerRecord>) -> bool {
    time_left(ending.at.0, computer, record).is_some_and(|left| left <= 0)
}

/// By how much the operator's time may be ahead of the API server's, and how soon after its decision the operator sends the DELETE.
const AHEAD: SignedDuration = SignedDuration::from_secs(5);

/// Whether this decision caused the deletion. It did if both have the same time, even if the time to live was extended afterwards: a crash
/// can follow the DELETE. It did not if the deletion started earlier.
pub fn ended(ending: &Ending, computer: &Computer, record: Option<&ComputerRecord>) -> bool {
    let holds = holds(ending, computer, record);
    let Some(deleted) = &computer.metadata.deletion_timestamp else { return holds };
    let after = deleted.0.duration_since(ending.at.0);
    after.abs() <= AHEAD || (holds && after.is_positive())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_class_has_a_default_and_a_limit_for_the_time_to_live() {
        let created = "2026-01-01T00:00:00Z";
        let seconds = |asked: Option<i64>, limits: Value| {
            let metadata = json!({"name": "c", "creationTimestamp": created});
            let computer: Computer = serde_json::from_value(json!({"metadata": metadata, "spec": {"timeToLiveSeconds": asked}})).unwrap();
            let spec = json!({"namespace": "t", "computer": "c", "snapshot": limits, "state": {}});
            let record = serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": spec})).unwrap();
            let expires = expires_at(&computer, Some(&record))?.as_second();
            Some(expires - created.parse::<Timestamp>().unwrap().as_second())
        };
        let (default, most) = (json!({"defaultTimeToLiveSeconds": 600}), json!({"maxTimeToLiveSeconds": 900}));
        let both = json!({"defaultTimeToLiveSeconds": 1200, "maxTimeToLiveSeconds": 900});
        assert_eq!((seconds(None, json!({})), seconds(Some(60), json!({}))), (None, Some(60)));
        assert_eq!((seconds(None, default.clone()), seconds(Some(3600), default)), (Some(600), Some(3600)));
        assert_eq!(
            (seconds(None, most.clone()), seconds(Some(60), most.clone()), seconds(Some(3600), most)),
            (Some(900), Some(60), Some(900))
        );
        assert_eq!((seconds(None, both.clone()), seconds(Some(60), both)), (Some(900), Some(60)));
    }
}
