//! Whether anything in a pod may still write (DESIGN.md 4.4). A pod has stopped when its kubelet reports so: its phase is terminal (since
//! 1.27 a kubelet sets that on a deleted pod once no container runs or will be restarted) and no container is reported as running. The state
//! `terminated` alone never counts as proof: a container in a crash loop shows it between two runs. `stop_pod` is the protocol that uses this.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::resources::POD_FINALIZER;
use crate::runtime::patch;

/// What is known about a pod's writers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writers {
    /// At least one container runs or may yet start.
    Running,
    /// The kubelet has reported the end of the pod, or the pod never had a node.
    Stopped,
    /// The kubelet has not reported it. Says why.
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
    if all.iter().any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())) {
        return Writers::Running;
    }
    match status.phase.as_deref() {
        Some("Failed") if collected(pod).is_some() => Writers::Unknown(
            "the pod garbage collector ended it, because its node is gone or out of service; its kubelet has not confirmed that".to_owned(),
        ),
        // Evicted or rejected before any container started: the list may be empty.
        Some("Failed" | "Succeeded") => Writers::Stopped,
        _ if all.is_empty() => Writers::Unknown("its kubelet has not reported its containers".to_owned()),
        _ => Writers::Running,
    }
}

/// When the pod garbage collector, not the kubelet, set a pod to `Failed`: its Node object is gone or has the `out-of-service` taint. The
/// container states are the last that the kubelet reported; a container in a crash loop may be running again.
pub fn collected(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let by = conditions.iter().find(|c| c.type_ == "DisruptionTarget" && c.reason.as_deref() == Some("DeletionByPodGC"))?;
    by.last_transition_time.as_ref().or(pod.metadata.deletion_timestamp.as_ref()).map(|at| at.0)
}

/// Seconds after the grace period within which a working kubelet kills the containers of a pod that is no longer in the API.
pub const ORPHAN_KILL_SECONDS: i64 = 60;

/// Whether a node is ready: then its kubelet kills the containers of a pod that is no longer in the API.
pub fn answers(node: &Node) -> bool {
    node.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Since when a node is ready. `None`: it is not, or that is unknown.
pub fn answers_since(node: &Node) -> Option<Timestamp> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True")?.last_transition_time.as_ref().map(|at| at.0)
}

/// Seconds within which a kubelet removes a stopped pod from the API.
const KUBELET_SECONDS: i64 = 60;

/// Whether a stopped pod still exists because its kubelet does not remove it, as on a lost node. Nothing is lost when it is force-deleted.
pub fn overstays(pod: &Pod, stopped_at: Option<&Time>, now: Timestamp) -> bool {
    pod.metadata.deletion_timestamp.is_some() && stopped_at.is_some_and(|at| now.duration_since(at.0).as_secs() > KUBELET_SECONDS)
}

/// Removes the operator's finalizer from a pod, fenced by the pod's UID and the finalizer's index. `None`: the pod does not have it.
pub fn remove_finalizer_patch(pod: &Pod) -> Option<json_patch::Patch> {
    let index = pod.metadata.finalizers.as_ref()?.iter().position(|f| f == POD_FINALIZER)?;
    let place = index.to_string();
    let path = ["metadata", "finalizers", &place];
    Some(json_patch::Patch(vec![patch::same_uid(&pod.metadata), patch::test(path, json!(POD_FINALIZER)), patch::remove(path)]))
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
    fn only_a_pod_whose_kubelet_reported_its_end_has_stopped() {
        let ended = container(json!({"terminated": {"exitCode": 0}}));
        let runs = container(json!({"running": {}}));
        let waits = container(json!({"waiting": {"reason": "CrashLoopBackOff"}}));
        let of = |phase: &str, statuses: &[&serde_json::Value]| {
            writers(&pod(json!({
                "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": phase, "containerStatuses": statuses},
            })))
        };
        for phase in ["Failed", "Succeeded"] {
            assert_eq!(of(phase, &[&ended, &waits]), Writers::Stopped);
            // Evicted before any container started.
            assert_eq!(of(phase, &[]), Writers::Stopped);
            // A phase that the pod garbage collector set: the last report was between two runs.
            let mut collected =
                pod(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": phase, "containerStatuses": [waits], "conditions": [{"type": "DisruptionTarget", "status": "True",
                    "reason": "DeletionByPodGC", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}));
            assert_eq!(matches!(writers(&collected), Writers::Unknown(_)), phase == "Failed");
            collected.status.as_mut().expect("a status").conditions = None;
            assert_eq!(writers(&collected), Writers::Stopped);
            // A phase that another controller set (the pod garbage collector, for a lost node) says nothing about containers.
            assert_eq!(of(phase, &[&ended, &runs]), Writers::Running);
        }
        // Between two runs of a crash loop.
        assert_eq!(of("Running", &[&ended]), Writers::Running);
        assert_eq!(of("Running", &[&waits]), Writers::Running);
        assert!(matches!(of("Running", &[]), Writers::Unknown(_)));
    }

    #[test]
    fn a_deleted_pod_that_never_had_a_node_has_no_writers() {
        let deleted = pod(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"containers": []}, "status": {"phase": "Pending"}}),
        );
        assert_eq!(writers(&deleted), Writers::Stopped);
        let alive = pod(json!({"metadata": {}, "spec": {"containers": []}, "status": {"phase": "Pending"}}));
        assert_ne!(writers(&alive), Writers::Stopped);
    }
}
