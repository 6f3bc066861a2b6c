//! Whether anything in a pod may still write (design 4.4). Only a container that reported `terminated` has stopped; what was
//! not reported is not known.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::json;

use crate::resources::POD_FINALIZER;

/// What is known of a pod's writers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writers {
    /// At least one container runs or may yet start.
    Running,
    /// Every container has reported that it terminated, or the pod never had a node.
    Stopped,
    /// The kubelet has not said; why.
    Unknown(String),
}

/// The writers of a pod that is being deleted.
pub fn writers(pod: &Pod) -> Writers {
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
    if node.is_none() && pod.metadata.deletion_timestamp.is_some() {
        return Writers::Stopped;
    }
    let Some(status) = &pod.status else { return Writers::Unknown("it has no status yet".to_owned()) };
    let all: Vec<&ContainerStatus> = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flat_map(|list| list.iter().flatten())
        .collect();
    if status.container_statuses.as_ref().is_none_or(Vec::is_empty) {
        // Evicted or rejected before the kubelet started anything: it says so by ending the pod without any container.
        let ended = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        return if ended { Writers::Stopped } else { Writers::Unknown("its kubelet has not reported its containers".to_owned()) };
    }
    if all.iter().all(|c| stopped(c)) { Writers::Stopped } else { Writers::Running }
}

/// A waiting container that never ran is held back only by its pod: the kubelet turns it into `terminated` once the pod is deleted.
fn stopped(container: &ContainerStatus) -> bool {
    container.state.as_ref().is_some_and(|s| s.terminated.is_some())
}

/// Takes our finalizer off a pod, fenced by its UID and by the finalizer's place. `None`: it does not carry it.
pub fn remove_finalizer_patch(pod: &Pod) -> Option<json_patch::Patch> {
    let index = pod.metadata.finalizers.as_ref()?.iter().position(|f| f == POD_FINALIZER)?;
    let path = format!("/metadata/finalizers/{index}");
    Some(super::volume::patch(&[
        json!({"op": "test", "path": "/metadata/uid", "value": pod.metadata.uid}),
        json!({"op": "test", "path": path, "value": POD_FINALIZER}),
        json!({"op": "remove", "path": path}),
    ]))
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::needless_pass_by_value)]
mod tests {
    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).expect("a pod")
    }

    fn container(state: serde_json::Value) -> serde_json::Value {
        json!({"name": "c", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": state})
    }

    #[test]
    fn only_reported_terminations_count() {
        let spec = json!({"nodeName": "n", "containers": []});
        let ended = container(json!({"terminated": {"exitCode": 0}}));
        let runs = container(json!({"running": {}}));
        let waits = container(json!({"waiting": {"reason": "ContainerCreating"}}));
        let of = |statuses: &[&serde_json::Value]| {
            pod(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": {"containerStatuses": statuses}}))
        };
        assert_eq!(writers(&of(&[&ended])), Writers::Stopped);
        assert_eq!(writers(&of(&[&ended, &runs])), Writers::Running);
        assert_eq!(writers(&of(&[&waits])), Writers::Running);
        assert!(matches!(writers(&of(&[])), Writers::Unknown(_)));
    }

    #[test]
    fn a_pod_that_never_had_a_node_has_no_writers_once_it_is_deleted() {
        let deleted = pod(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"containers": []}, "status": {"phase": "Pending"}}),
        );
        assert_eq!(writers(&deleted), Writers::Stopped);
        let alive = pod(json!({"metadata": {}, "spec": {"containers": []}, "status": {"phase": "Pending"}}));
        assert_ne!(writers(&alive), Writers::Stopped);
    }
}
