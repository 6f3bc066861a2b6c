//! A pod that this process has created, but that the record does not name. Two leaders may create the same pod: if the first one is deleted
//! while the create of the second is in flight, that create succeeds, and the record has the UID of the first. No other process can know that
//! the second is the operator's: only the answer to the create proves it. So this process removes it.
//!
//! As for every machine, the finalizer is removed once nothing in the pod can write (DESIGN.md 4.4). Claims and Secrets need nothing: they have
//! no finalizer of the operator, the garbage collector deletes them with their Computer, and a claim of the recorded name may be the one that
//! the machine mounts.
//!
//! It must never touch a pod whose UID the record has, or that the record names without a UID.
//!
//! Pods of other clients that use the home are reported by `deletion/stop.rs`; objects with the operator's labels and no owner (the alert
//! `ComputerOrphans`) by `sweep.rs`.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::action::{Action, Fact, Subject};
use super::pod_writers::{Writers, remove_finalizer_patch, writers};
use super::report::Next;
use super::view::View;
use crate::resources::ComputerRecord;

/// How often a stray pod that is terminating is checked: no watch shows a pod that the record does not name.
const POLL: Duration = Duration::from_secs(15);

/// What to do once the computer's own plan waits for something: remove a stray pod, then wait for its end.
pub fn after(view: &View, planned: Next) -> Next {
    if matches!(planned, Next::Do(_)) || !view.created.iter().any(|(subject, uid)| is_stray(view, subject, uid)) {
        return planned;
    }
    match (remove(view), planned) {
        (Some(action), _) => Next::Do(action),
        (None, Next::Wait(wait)) => Next::Wait(wait.min(POLL)),
        (None, Next::Finished(_)) => Next::Finished(Some(POLL)),
        (None, _) => Next::Wait(POLL),
    }
}

/// The next request that removes a stray pod. `None`: this process knows of none, or it is terminating.
fn remove(view: &View) -> Option<Action> {
    view.created.iter().filter(|(subject, uid)| is_stray(view, subject, uid)).find_map(|(subject, uid)| match view.facts.get(subject) {
        None | Some(Fact::Accepted) => Some(Action::Read(subject.clone())),
        Some(Fact::Pod(pod)) if pod.metadata.uid.as_ref() == Some(uid) => end(subject, uid, pod),
        Some(_) => None,
    })
}

fn end(subject: &Subject, uid: &str, pod: &Pod) -> Option<Action> {
    if pod.metadata.deletion_timestamp.is_none() {
        return Some(Action::Delete { subject: subject.clone(), uid: uid.to_owned() });
    }
    let patch = remove_finalizer_patch(pod).filter(|_| writers(pod) == Writers::Stopped)?;
    Some(Action::Patch { subject: subject.clone(), patch })
}

/// Whether nothing is left to do for a pod with this UID, according to a live answer.
pub fn is_settled(fact: &Fact, uid: &str) -> bool {
    match fact {
        Fact::Pod(pod) if pod.metadata.uid.as_deref() == Some(uid) => {
            pod.metadata.deletion_timestamp.is_some() && remove_finalizer_patch(pod).is_none()
        }
        Fact::Accepted => false,
        _ => true,
    }
}

/// Whether the record has the UID of a pod.
pub fn is_recorded(record: &ComputerRecord, uid: &str) -> bool {
    record.spec.state.children.pods.iter().any(|p| p.uid.as_deref() == Some(uid))
}

/// Whether the record does not name a pod, or names it with another UID. A Computer without a record gets one from its status first.
fn is_stray(view: &View, subject: &Subject, uid: &str) -> bool {
    let Some(record) = &view.record else { return view.computer.is_none() };
    let Subject::Pod { name, .. } = subject else { return false };
    let named = record.spec.state.children.pods.iter().find(|p| p.name == *name);
    !is_recorded(record, uid) && named.is_none_or(|pod| pod.uid.is_some())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};

    use super::*;
    use crate::computer::action::Effect;
    use crate::resources::POD_FINALIZER;

    fn subject() -> Subject {
        Subject::pod("t", "machine-1")
    }

    fn pod(uid: &str, finalizers: &Value, deleted: bool, node: Option<&str>) -> Fact {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let metadata = json!({"name": "machine-1", "namespace": "t", "uid": uid, "finalizers": finalizers, "deletionTimestamp": deleted});
        let container = json!({"name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 0, "state": {"running": {}}});
        let status = node.map(|_| json!({"phase": "Running", "containerStatuses": [container]}));
        let pod = json!({"metadata": metadata, "spec": {"nodeName": node, "containers": []}, "status": status});
        Fact::Pod(Box::new(serde_json::from_value(pod).unwrap()))
    }

    fn record(pods: &Value) -> ComputerRecord {
        let spec = json!({"namespace": "t", "computer": "c", "state": {"children": {"pods": pods}}});
        serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": spec})).unwrap()
    }

    /// This process has created a pod with UID 2 for this record.
    fn created(pods: &Value) -> View {
        let mut view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}}));
        view.record = Some(record(pods));
        view.absorb(Effect::Created(subject(), pod("2", &json!([POD_FINALIZER]), false, None)));
        view
    }

    /// The same, and the record was then found with these pods.
    fn overtaken(pods: &Value) -> View {
        let mut view = created(&json!([{"name": "machine-1"}]));
        assert_eq!(remove(&view), None, "it is not recorded yet");
        view.absorb(Effect::Overtaken(Box::new(record(pods))));
        view
    }

    #[test]
    fn a_pod_whose_record_has_another_uid_is_deleted_and_loses_its_finalizer() {
        for pods in [json!([{"name": "machine-1", "uid": "1"}]), json!([{"name": "machine-2"}])] {
            let mut view = overtaken(&pods);
            assert_eq!(remove(&view), Some(Action::Read(subject())));
            view.absorb(Effect::Learned(subject(), pod("2", &json!([POD_FINALIZER]), false, None)));
            assert_eq!(remove(&view), Some(Action::Delete { subject: subject(), uid: "2".to_owned() }));
            view.absorb(Effect::Learned(subject(), Fact::Accepted));
            assert_eq!(remove(&view), Some(Action::Read(subject())));
            view.absorb(Effect::Learned(subject(), pod("2", &json!([POD_FINALIZER]), true, None)));
            assert!(matches!(remove(&view), Some(Action::Patch { .. })), "{pods}");
            assert!(!view.created.is_empty());
            view.absorb(Effect::Learned(subject(), pod("2", &json!([]), true, None)));
            assert!(remove(&view).is_none() && view.created.is_empty(), "nothing is left to do: it is forgotten");
        }
    }

    /// S1: it may have been scheduled, and its containers may write to the home.
    #[test]
    fn the_finalizer_stays_while_a_container_runs() {
        let mut view = overtaken(&json!([{"name": "machine-1", "uid": "1"}]));
        view.absorb(Effect::Learned(subject(), pod("2", &json!([POD_FINALIZER]), true, Some("n"))));
        assert!(remove(&view).is_none() && !view.created.is_empty());
        let waits = [(Next::Settled, Next::Wait(POLL)), (Next::Finished(None), Next::Finished(Some(POLL)))];
        for (planned, expected) in waits {
            assert_eq!(after(&view, planned), expected, "no watch shows its end");
        }
        assert_eq!(after(&view, Next::Wait(Duration::from_secs(2))), Next::Wait(Duration::from_secs(2)));
    }

    /// A webhook may refuse its deletion: the key is revoked nevertheless.
    #[test]
    fn the_plan_of_the_computer_comes_first() {
        let mut view = overtaken(&json!([{"name": "machine-1", "uid": "1"}]));
        view.computer.as_mut().unwrap().metadata.deletion_timestamp = Some("2026-01-01T00:00:00Z".parse().map(Time).unwrap());
        view.facts.insert(subject(), pod("2", &json!([POD_FINALIZER]), false, None));
        let Next::Do(Action::SaveRecord(record)) = crate::computer::plan::plan(&view).next else { panic!("the deletion is not recorded") };
        assert!(record.spec.state.deletion.is_some());
        assert!(matches!(after(&view, Next::Settled), Next::Do(Action::Delete { .. })));
    }

    /// The answer to the write that recorded it was lost, and a cache or a live read then showed the record.
    #[test]
    fn a_pod_that_a_record_has_is_not_stray_however_the_record_was_learned() {
        let mut view = created(&json!([{"name": "machine-1"}]));
        view.record = Some(record(&json!([{"name": "machine-1", "uid": "2"}])));
        assert_eq!(remove(&view), None);
        view.forget_recorded();
        assert!(view.created.is_empty(), "a record that is lost later must not make it stray");
    }

    #[test]
    fn a_computer_without_a_record_gets_one_before_anything_is_stray() {
        let mut view = created(&json!([{"name": "machine-1"}]));
        view.record = None;
        assert_eq!(remove(&view), None);
        view.computer = None;
        assert!(remove(&view).is_some());
    }

    #[test]
    fn a_recorded_pod_and_the_pod_of_another_uid_are_not_touched() {
        let view = overtaken(&json!([{"name": "machine-1", "uid": "2"}]));
        assert!(remove(&view).is_none() && view.created.is_empty(), "another write has recorded it");
        let view = overtaken(&json!([{"name": "machine-1"}]));
        assert!(remove(&view).is_none() && !view.created.is_empty(), "the next write will record it");
        for found in [pod("3", &json!([POD_FINALIZER]), false, None), Fact::Gone] {
            let mut view = overtaken(&json!([{"name": "machine-1", "uid": "1"}]));
            view.absorb(Effect::Learned(subject(), found));
            assert!(remove(&view).is_none() && view.created.is_empty());
        }
    }
}
