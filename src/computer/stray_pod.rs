//! A pod that this process has created, but that the record does not name. Two leaders may create the same pod: if the first one is deleted
//! while the create of the second is in flight, that create succeeds, and the record has the UID of the first. No other process can know that
//! the second is the operator's: only the answer to the create proves it. So this process removes it.
//!
//! The finalizer goes first: if the process stops then, the garbage collector deletes the pod with its Computer. Claims and Secrets need
//! nothing: they have no finalizer of the operator, and a claim of the recorded name may be the one that the machine mounts.
//!
//! It must never touch a pod whose UID the record has, or that the record names without a UID.

use super::action::{Action, Fact, Subject};
use super::pod_writers::remove_finalizer_patch;
use super::view::View;
use crate::resources::ComputerRecord;

/// The next request that removes a stray pod. `None`: this process knows of none.
pub fn remove(view: &View) -> Option<Action> {
    view.created.iter().filter(|(subject, _)| is_stray(view.record.as_ref(), subject)).find_map(|(subject, uid)| {
        let Some(fact) = view.facts.get(subject) else { return Some(Action::Read(subject.clone())) };
        let Fact::Pod(pod) = fact else { return None };
        let action = match remove_finalizer_patch(pod) {
            Some(patch) => Action::Patch { subject: subject.clone(), patch },
            None => Action::Delete { subject: subject.clone(), uid: uid.clone() },
        };
        (!is_settled(fact, uid)).then_some(action)
    })
}

/// Whether nothing is left to do for a pod with this UID, according to a live answer.
pub fn is_settled(fact: &Fact, uid: &str) -> bool {
    match fact {
        Fact::Pod(pod) if pod.metadata.uid.as_deref() == Some(uid) => {
            pod.metadata.deletion_timestamp.is_some() && remove_finalizer_patch(pod).is_none()
        }
        _ => true,
    }
}

/// Whether the record has the UID of a pod.
pub fn is_recorded(record: &ComputerRecord, uid: &str) -> bool {
    record.spec.state.children.pods.iter().any(|p| p.uid.as_deref() == Some(uid))
}

/// Whether the record does not name a pod, or names it with another UID.
fn is_stray(record: Option<&ComputerRecord>, subject: &Subject) -> bool {
    let Subject::Pod { name, .. } = subject else { return false };
    let named = record.and_then(|r| r.spec.state.children.pods.iter().find(|p| p.name == *name));
    named.is_none_or(|pod| pod.uid.is_some())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::computer::action::Effect;
    use crate::resources::POD_FINALIZER;

    fn subject() -> Subject {
        Subject::pod("t", "machine-1")
    }

    fn pod(uid: &str, finalizers: &Value, deleted: bool) -> Fact {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let metadata = json!({"name": "machine-1", "namespace": "t", "uid": uid, "finalizers": finalizers, "deletionTimestamp": deleted});
        Fact::Pod(Box::new(serde_json::from_value(json!({"metadata": metadata})).unwrap()))
    }

    fn record(pods: &Value) -> Box<ComputerRecord> {
        let spec = json!({"namespace": "t", "computer": "c", "state": {"children": {"pods": pods}}});
        Box::new(serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": spec})).unwrap())
    }

    /// This process has created a pod with UID 2, and the record was then found with these pods.
    fn overtaken(pods: &Value) -> View {
        let mut view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}}));
        view.record = Some(*record(&json!([{"name": "machine-1"}])));
        view.absorb(Effect::Created(subject(), pod("2", &json!([POD_FINALIZER]), false)));
        assert_eq!(remove(&view), None, "it is not recorded yet");
        view.absorb(Effect::Overtaken(record(pods)));
        view
    }

    #[test]
    fn a_pod_whose_record_has_another_uid_loses_its_finalizer_and_is_deleted() {
        for pods in [json!([{"name": "machine-1", "uid": "1"}]), json!([{"name": "machine-2"}])] {
            let mut view = overtaken(&pods);
            assert_eq!(remove(&view), Some(Action::Read(subject())));
            view.absorb(Effect::Learned(subject(), pod("2", &json!([POD_FINALIZER]), false)));
            assert!(matches!(remove(&view), Some(Action::Patch { .. })), "{pods}");
            view.absorb(Effect::Learned(subject(), pod("2", &json!([]), false)));
            assert_eq!(remove(&view), Some(Action::Delete { subject: subject(), uid: "2".to_owned() }));
            assert!(!view.created.is_empty());
            view.absorb(Effect::Learned(subject(), pod("2", &json!([]), true)));
            assert!(remove(&view).is_none() && view.created.is_empty(), "nothing is left to do: it is forgotten");
        }
    }

    #[test]
    fn a_recorded_pod_and_the_pod_of_another_uid_are_not_touched() {
        let view = overtaken(&json!([{"name": "machine-1", "uid": "2"}]));
        assert!(remove(&view).is_none() && view.created.is_empty(), "another write has recorded it");
        let view = overtaken(&json!([{"name": "machine-1"}]));
        assert!(remove(&view).is_none() && !view.created.is_empty(), "the next write will record it");
        for found in [pod("3", &json!([POD_FINALIZER]), false), Fact::Gone] {
            let mut view = overtaken(&json!([{"name": "machine-1", "uid": "1"}]));
            view.absorb(Effect::Learned(subject(), found));
            assert!(remove(&view).is_none() && view.created.is_empty());
        }
    }
}
