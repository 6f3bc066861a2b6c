//! What a cache keeps of an object: what a plan reads, and no more. A tenant decides how large its own objects are, and all tenants
//! share the operator's memory (L3): without this, annotations alone made as many as a quota allows cost it a restart after another.
//!
//! What is stripped is never written back as a whole: objects that are (records) keep everything but their managedFields, and those
//! of tenants are changed by JSON patches of single fields only.

use k8s_openapi::api::core::v1::{
    ContainerStatus, Namespace, NamespaceStatus, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, Pod,
    PodSpec, PodStatus,
};
use kube::Resource;
use kube::api::ObjectMeta;

use crate::resources::{IMAGE_ANNOTATION, UID_LABEL, UNREADABLE_ANNOTATION};

/// Longest annotation that is kept, bytes: a reference to an image with its digest is shorter.
const LONGEST: usize = 1024;

/// managedFields are the larger half of an object, and nothing here reads them.
pub(crate) fn managed<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Of an object that tenants write: nothing of the metadata but what identifies it and says that it goes.
pub(crate) fn foreign<K: Resource>(object: &mut K) {
    let old = std::mem::take(object.meta_mut());
    *object.meta_mut() = ObjectMeta {
        name: old.name,
        namespace: old.namespace,
        uid: old.uid,
        resource_version: old.resource_version,
        generation: old.generation,
        creation_timestamp: old.creation_timestamp,
        deletion_timestamp: old.deletion_timestamp,
        deletion_grace_period_seconds: old.deletion_grace_period_seconds,
        finalizers: old.finalizers,
        ..ObjectMeta::default()
    };
}

/// As [`foreign`], with the label that says whose it is.
fn child<K: Resource>(object: &mut K) {
    let whose = object.meta_mut().labels.take().and_then(|mut l| l.remove_entry(UID_LABEL));
    foreign(object);
    object.meta_mut().labels = whose.map(|label| [label].into());
}

pub(crate) fn pod(pod: &mut Pod) {
    let mut annotations = pod.metadata.annotations.take();
    if let Some(all) = &mut annotations {
        // A tenant may write them, too, on its own pods.
        all.retain(|name, value| value.len() <= LONGEST && [IMAGE_ANNOTATION, UNREADABLE_ANNOTATION].contains(&name.as_str()));
    }
    child(pod);
    pod.metadata.annotations = annotations.filter(|all| !all.is_empty());
    if let Some(spec) = &mut pod.spec {
        let (node, grace) = (spec.node_name.take(), spec.termination_grace_period_seconds);
        *spec = PodSpec { node_name: node, termination_grace_period_seconds: grace, ..PodSpec::default() };
    }
    if let Some(status) = &mut pod.status {
        let old = std::mem::take(status);
        let short = |list: Option<Vec<ContainerStatus>>| list.map(|l| l.into_iter().map(container).collect());
        *status = PodStatus {
            phase: old.phase,
            reason: old.reason,
            message: old.message,
            conditions: old.conditions,
            start_time: old.start_time,
            init_container_statuses: short(old.init_container_statuses),
            container_statuses: short(old.container_statuses),
            ephemeral_container_statuses: short(old.ephemeral_container_statuses),
            ..PodStatus::default()
        };
    }
}

fn container(old: ContainerStatus) -> ContainerStatus {
    let ContainerStatus { name, state, ready, started, restart_count, .. } = old;
    ContainerStatus { name, state, ready, started, restart_count, ..ContainerStatus::default() }
}

pub(crate) fn claim(claim: &mut PersistentVolumeClaim) {
    child(claim);
    let volume = claim.spec.take().and_then(|s| s.volume_name);
    claim.spec = Some(PersistentVolumeClaimSpec { volume_name: volume, ..PersistentVolumeClaimSpec::default() });
    let phase = claim.status.take().and_then(|s| s.phase);
    claim.status = Some(PersistentVolumeClaimStatus { phase, ..PersistentVolumeClaimStatus::default() });
}

pub(crate) fn namespace(namespace: &mut Namespace) {
    foreign(namespace);
    namespace.spec = None;
    let phase = namespace.status.take().and_then(|s| s.phase);
    namespace.status = Some(NamespaceStatus { phase, conditions: None });
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use axum::http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::runtime::time_and_random::Sources;
    use crate::runtime::{caches, queue};

    const FAT: usize = 255_000;

    /// One object of the kind of this path, with everything in it that a tenant may write there, as large as it likes.
    fn fat(path: &str) -> Value {
        let fat = "x".repeat(FAT);
        let metadata = json!({
            "name": "a", "namespace": "team", "uid": "u", "finalizers": ["f/f"], "annotations": {"a": fat, IMAGE_ANNOTATION: "i", UNREADABLE_ANNOTATION: fat},
            "labels": {UID_LABEL: "c", "l": fat}, "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": fat, "uid": "o"}],
        });
        let (spec, status) = match path {
            p if p.ends_with("/pods") => (
                json!({"nodeName": "n", "containers": [{"name": "c", "env": [{"name": "e", "value": fat}]}]}),
                json!({"phase": "Running", "containerStatuses": [{"name": "c", "image": fat, "imageID": fat, "ready": true, "restartCount": 1}]}),
            ),
            p if p.ends_with("/persistentvolumeclaims") => (
                json!({"volumeName": "v", "accessModes": [fat]}),
                json!({"phase": "Bound", "conditions": [{"type": "T", "status": "True", "message": fat}]}),
            ),
            p if p.ends_with("/namespaces") => (json!({"finalizers": [fat]}), json!({"phase": "Active"})),
            p if p.ends_with("/apikeys") => (json!({"serviceAccountName": "s"}), Value::Null),
            p if p.ends_with("/computers") => (json!({}), Value::Null),
            _ => return Value::Null,
        };
        json!({"metadata": metadata, "spec": spec, "status": status})
    }

    /// An API server with one such object of each kind; what it was asked for.
    fn server() -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&asked);
        let service = tower::service_fn(move |request: Request<Body>| {
            let seen = Arc::clone(&seen);
            async move {
                if request.uri().query().is_some_and(|q| q.contains("watch=true")) {
                    std::future::pending::<()>().await;
                }
                seen.lock().unwrap().push(request.uri().to_string());
                let items: Vec<Value> = Some(fat(request.uri().path())).filter(|o| !o.is_null()).into_iter().collect();
                let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items});
                Ok::<_, Infallible>(Response::new(Body::from(list.to_string().into_bytes())))
            }
        });
        (Client::new(service, "t"), asked)
    }

    fn kept<K: serde::Serialize>(objects: &[Arc<K>]) -> Value {
        let kept = serde_json::to_value(objects).unwrap();
        assert!(kept.to_string().len() < 2_000, "L3: a tenant decides how much of it is kept: {:.300}", kept.to_string());
        kept[0].clone()
    }

    /// Found by a hostile reader: 900 claims with 255 kB of annotations took the operator 291 MB, and its limit is 256 MiB.
    #[tokio::test]
    async fn what_a_tenant_writes_into_its_objects_is_not_kept_in_the_caches() {
        let (client, asked) = server();
        let ((queue, _work), mut tasks, stop, sources) = (queue::queue(), JoinSet::new(), CancellationToken::new(), Sources::default());
        let mut spawn = caches::Spawn { queue: &queue, tasks: &mut tasks, sources: &sources, stop: &stop };
        let caches = caches::start(&client, "own", &mut spawn);
        let keys = crate::apikey::watch::start(&client, "own", &mut spawn);
        let ready = async { (caches.ready().await.unwrap(), keys.ready().await.unwrap()) };
        tokio::time::timeout(std::time::Duration::from_secs(20), ready).await.unwrap();

        let pod = kept(&caches.pods.state());
        assert_eq!(pod["metadata"]["annotations"], json!({IMAGE_ANNOTATION: "i"}));
        assert_eq!((&pod["spec"]["nodeName"], &pod["status"]["phase"]), (&json!("n"), &json!("Running")));
        let claim = kept(&caches.claims.state());
        assert_eq!((&claim["spec"]["volumeName"], &claim["status"]["phase"]), (&json!("v"), &json!("Bound")));
        for child in [&pod, &claim] {
            assert_eq!(child["metadata"]["labels"], json!({UID_LABEL: "c"}));
        }
        let own = [kept(&caches.computers.state()), kept(&keys.keys.state())];
        for object in [&pod, &claim].into_iter().chain(&own) {
            assert_eq!((&object["metadata"]["uid"], &object["metadata"]["finalizers"]), (&json!("u"), &json!(["f/f"])));
        }
        for namespaces in [&caches.namespaces, &keys.namespaces] {
            assert_eq!(kept(&namespaces.state())["status"], json!({"phase": "Active"}));
        }

        // A whole page is in memory, about three times, before any of it is stripped. What only admins and we write is small.
        let ours = ["records?", "/computerclasses?", "/deletionoverrides?", "/persistentvolumes?"];
        let asked = asked.lock().unwrap().clone();
        for list in &asked {
            let limit = list.split(['?', '&']).find_map(|p| p.strip_prefix("limit=")).and_then(|l| l.parse::<u32>().ok());
            let most = if ours.iter().any(|kind| list.contains(kind)) { 500 } else { 20 };
            assert!(limit.is_some_and(|l| l <= most), "{list}");
        }
        // Anyone may set `managed-by`, and take it off what we made; the other label is guarded by an admission policy.
        for kind in ["pods", "persistentvolumeclaims"] {
            let list = asked.iter().find(|l| l.contains(&format!("/{kind}?"))).unwrap();
            assert!(list.contains("computer-uid") && !list.contains("managed-by"), "{list}");
        }
        stop.cancel();
        while tasks.join_next().await.is_some() {}
    }
}
