//! Whether the class's verdict permits a new record or a new pod. The verdict must be that on the current spec of the class: after a change,
//! the old one says nothing. A pod of a class that is not accepted could leave a home that cannot be archived (L1).

use jiff::Timestamp;
use kube::ResourceExt;

use super::RETRY_SECONDS;
use crate::computer::step::State;
use crate::resources::ComputerClass;
use crate::resources::conditions::types;
use crate::resources::reasons::Reason;

/// Seconds after which a class that has not been checked is reported.
const CLASS_SECONDS: i64 = 30;
/// Seconds after which a class that is being checked is read again. Its status is an event as well.
const CHECKING_SECONDS: u64 = 5;

/// Why nothing can be created from the class. `None`: it is accepted.
pub(super) fn refused(class: &ComputerClass, now: Timestamp) -> Option<State> {
    let name = class.name_any();
    let conditions = class.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let verdict = conditions.iter().find(|c| c.type_ == types::ACCEPTED);
    match verdict.filter(|c| c.observed_generation == class.metadata.generation) {
        Some(c) if c.status == "True" => None,
        // The check is repeated, and the class may be right: nothing needs a change yet.
        Some(c) if [Reason::CheckFailed, Reason::CheckRefused].iter().any(|reason| c.reason == reason.as_str()) => {
            let message = format!("ComputerClass {name} could not be checked: {}", c.message);
            Some(State::blocked(Reason::ClassNotChecked, message, CHECKING_SECONDS))
        }
        Some(c) => {
            let message = format!("ComputerClass {name} cannot be used: {}", c.message);
            Some(State::blocked(Reason::ClassNotAccepted, message, RETRY_SECONDS))
        }
        None if verdict.is_none() && is_new(class, now) => Some(State::wait(CHECKING_SECONDS)),
        None => {
            let since = if verdict.is_some() { " since it was changed" } else { "" };
            let message =
                format!("ComputerClass {name} has not been checked yet{since}. That takes seconds; if not, see the operator's log");
            Some(State::blocked(Reason::ClassNotChecked, message, CHECKING_SECONDS))
        }
    }
}

fn is_new(class: &ComputerClass, now: Timestamp) -> bool {
    class.metadata.creation_timestamp.as_ref().is_none_or(|at| now.duration_since(at.0).as_secs() < CLASS_SECONDS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(generation: i64, observed: Option<i64>, status: &str) -> Option<State> {
        let condition = json!({"type": "Accepted", "status": status, "reason": "Accepted", "message": "no root", "observedGeneration": observed,
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let conditions = if observed.is_some() { vec![condition] } else { Vec::new() };
        let class = json!({"metadata": {"name": "std", "generation": generation, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"podTemplate": {}}, "status": {"conditions": conditions}});
        refused(&serde_json::from_value(class).unwrap(), "2026-01-02T00:00:00Z".parse().unwrap())
    }

    /// L1: a class that is changed to a user whose archive pods are refused, and a computer that is applied together with it.
    #[test]
    fn only_a_verdict_on_the_current_spec_counts() {
        assert_eq!(refusal(2, Some(2), "True"), None);
        let unchecked = |state: Option<State>| matches!(state, Some(State::Blocked(b, _)) if b.reason == Reason::ClassNotChecked);
        assert!(unchecked(refusal(2, Some(1), "True")), "the verdict is on the spec before");
        assert!(matches!(refusal(2, Some(2), "False"), Some(State::Blocked(b, _)) if b.message.contains("no root")));
        assert!(unchecked(refusal(2, Some(1), "False")), "it may have been fixed");
        assert!(unchecked(refusal(1, None, "")));
    }
}
