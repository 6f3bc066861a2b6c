//! Removes the fields that no plan reads from objects before they are cached. Tenants decide how large their objects are, and all tenants share the
//! operator's memory (L3): otherwise a tenant could make the operator run out of memory again and again with large annotations.
//!
//! A stripped object must never be written back as a whole. Records, which are replaced, keep everything except their `managedFields`; objects of tenants are
//! changed only by JSON patches of single fields.

use k8s_openapi::api::core::v1::{
    ContainerStatus, Namespace, NamespaceStatus, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, Pod,
    PodSpec, PodStatus,
};
use kube::Resource;
use kube::api::ObjectMeta;

use crate::resources::{IMAGE_ANNOTATION, MAX_BYTES_ANNOTATION, UID_LABEL, UNREADABLE_ANNOTATION};

/// Maximum size of a kept annotation in bytes; an image reference with a digest is shorter.
const LONGEST: usize = 1024;

/// Removes `managedFields`, which are often more than half of an object and are never read.
pub(crate) fn managed<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// For objects that tenants write: keeps only the metadata for identity and deletion.
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

/// Like [`foreign`], but keeps the label with the UID of the computer.
fn child<K: Resource>(object: &mut K) {
    let whose = object.meta_mut().labels.take().and_then(|mut l| l.remove_entry(UID_LABEL));
    foreign(object);
    object.meta_mut().labels = whose.map(|label| [label].into());
}

pub(crate) fn pod(pod: &mut Pod) {
    let mut annotations = pod.metadata.annotations.take();
    if let Some(all) = &mut annotations {
        // A tenant may set these annotations on its own pods as well, so their size is bounded.
        all.retain(|name, value| {
            value.len() <= LONGEST && [IMAGE_ANNOTATION, UNREADABLE_ANNOTATION, MAX_BYTES_ANNOTATION].contains(&name.as_str())
        });
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

    /// An object of the kind of this path, with large values in every field that a tenant may write.
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

    /// An API server with one such object of each kind, and the URIs of its requests.
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
        assert!(kept.to_string().len() < 2_000, "L3: a tenant decides how much is kept: {:.300}", kept.to_string());
        kept[0].clone()
    }

    /// Found in a security review: 900 claims with 255 kB of annotations used 291 MB of the operator, whose limit was 256 MiB.
    #[tokio::test]
    async fn large_fields_of_tenants_objects_are_not_cached() {
        let (client, asked) = server();
        let ((queue, _work), mut tasks, stop, sources) = (queue::queue(), JoinSet::new(), CancellationToken::new(), Sources::default());
        let mut spawn = caches::Spawn { queue: &queue, tasks: &mut tasks, sources: &sources, stop: &stop };
        let caches = caches::start(&client, "own", &mut spawn, caches::Listeners::default());
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
        assert_eq!(kept(&caches.namespaces.state())["status"], json!({"phase": "Active"}));

        // A whole page is in memory about three times before it is stripped. Objects that only admins and the operator write are small.
        let ours = ["records?", "/computerclasses?", "/deletionoverrides?", "/persistentvolumes?"];
        let asked = asked.lock().unwrap().clone();
        for list in &asked {
            let limit = list.split(['?', '&']).find_map(|p| p.strip_prefix("limit=")).and_then(|l| l.parse::<u32>().ok());
            let most = if ours.iter().any(|kind| list.contains(kind)) { 500 } else { 20 };
            assert!(limit.is_some_and(|l| l <= most), "{list}");
        }
        // Any tenant may set or remove `managed-by`; an admission policy protects the other label.
        for kind in ["pods", "persistentvolumeclaims"] {
            let list = asked.iter().find(|l| l.contains(&format!("/{kind}?"))).unwrap();
            assert!(list.contains("computer-uid") && !list.contains("managed-by"), "{list}");
        }
        stop.cancel();
        while tasks.join_next().await.is_some() {}
    }
}
