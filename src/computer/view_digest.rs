//! A digest of the input of a reconcile. After a failure it decides whether an event ends the backoff early. A status that the operator wrote
//! itself, or an event about something that no plan reads, must never do so (L6).

use std::hash::{DefaultHasher, Hash, Hasher};

use kube::Resource;

use super::action::Fact;
use super::view::{ClassState, View};
use crate::resources::Computer;

/// The digest of what the caches hold at the start of a reconcile: spec, deletionTimestamp and finalizers of the Computer, its namespace,
/// class, overrides and children. Never its status.
pub fn digest(view: &View) -> u64 {
    let mut hasher = DefaultHasher::new();
    view.namespace_terminating.hash(&mut hasher);
    if let Some(computer) = &view.computer {
        of_computer(computer, &mut hasher);
    }
    match &view.class {
        ClassState::Missing => {}
        ClassState::Found(class) => version(&**class).hash(&mut hasher),
        ClassState::Ambiguous(names) => names.hash(&mut hasher),
    }
    for found in &view.overrides {
        let meta = &found.metadata;
        (&meta.uid, meta.generation, meta.deletion_timestamp.is_some()).hash(&mut hasher);
    }
    for (subject, fact) in &view.facts {
        let version = match fact {
            Fact::Pod(pod) => version(&**pod),
            Fact::Claim(claim) => version(&**claim),
            Fact::Volume(volume) => version(&**volume),
            _ => continue,
        };
        (subject.describe(), version).hash(&mut hasher);
    }
    hasher.finish()
}

/// The same with the version of the record: the newest that this process has read or written.
pub fn with_record(digest: u64, view: &View) -> u64 {
    let mut hasher = DefaultHasher::new();
    digest.hash(&mut hasher);
    view.record.as_ref().and_then(|r| r.metadata.resource_version.as_ref()).hash(&mut hasher);
    hasher.finish()
}

fn of_computer(computer: &Computer, hasher: &mut DefaultHasher) {
    let meta = &computer.metadata;
    (&meta.uid, meta.deletion_timestamp.is_some(), &meta.finalizers).hash(hasher);
    serde_json::to_string(&computer.spec).unwrap_or_default().hash(hasher);
}

fn version<K: Resource>(object: &K) -> (Option<&String>, Option<&String>) {
    (object.meta().uid.as_ref(), object.meta().resource_version.as_ref())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::computer::action::Subject;

    fn of(computer: &Value) -> u64 {
        digest(&View::of(computer.clone()))
    }

    #[test]
    fn the_spec_a_deletion_and_the_children_change_the_digest_and_the_status_does_not() {
        let before = json!({"metadata": {"name": "c", "namespace": "t", "uid": "u", "resourceVersion": "1"}, "spec": {}, "status": {"phase": "Deleting"}});
        let changed = |pointer: &str, value: Value| {
            let mut after = before.clone();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            after.pointer_mut(parent).unwrap()[key] = value;
            of(&after)
        };
        assert_eq!(of(&before), changed("/status/phase", json!("Error")));
        assert_eq!(of(&before), changed("/metadata/resourceVersion", json!("2")));
        assert_ne!(of(&before), changed("/spec/suspended", json!(true)));
        assert_ne!(of(&before), changed("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")));
        assert_ne!(of(&before), changed("/metadata/finalizers", json!(["x"])));
        let mut view = View::of(before.clone());
        let mut pod = k8s_openapi::api::core::v1::Pod::default();
        view.facts.insert(Subject::pod("t", "p"), Fact::Pod(Box::new(pod.clone())));
        let with_pod = digest(&view);
        pod.metadata.resource_version = Some("2".into());
        view.facts.insert(Subject::pod("t", "p"), Fact::Pod(Box::new(pod)));
        assert!(with_pod != of(&before) && with_pod != digest(&view));
    }
}
