//! Tests that only nodes and Kubernetes itself report the container states of a machine's pod.

use serde_json::{Value, json};

use crate::fences::{OPERATOR, UID, pod};
use crate::policies::refused;
use crate::server::{Server, eventually};

type Patch<'a> = &'a dyn Fn(&str, &str, &str, &str, Value) -> Result<String, String>;

/// An update of a status can also change labels and finalizers, and the status of a machine's pod shows whether its containers have stopped. The role
/// `edit` cannot write it, but a role for all core resources can.
pub fn only_nodes_report_container_states(server: &Server) {
    furnish(server);
    let patch = |user: &str, kind: &str, name: &str, subresource: &str, patch: Value| {
        let as_user = format!("--as={user}");
        let group = if user == "kubelet" { "--as-group=system:nodes" } else { "--as-group=system:authenticated" };
        let subresource = format!("--subresource={subresource}");
        server.kubectl(&["patch", kind, name, "-n", "team", &as_user, group, &subresource, "--type=merge", "-p", &patch.to_string()], "")
    };
    let (label, finalizer) = (json!({"metadata": {"labels": {(UID): null}}}), json!({"metadata": {"finalizers": null}}));
    refused("a label through a pod's status", patch("dora", "pod", "held", "status", label.clone()), "are reserved for the operator");
    refused("a label through a claim's status", patch("dora", "pvc", "held", "status", label.clone()), "are reserved for the operator");
    refused(
        "a finalizer through the status",
        patch("dora", "pod", "held", "status", finalizer.clone()),
        "when every container of the pod has stopped",
    );
    let stopped =
        json!({"state": {"terminated": {"exitCode": 0}}, "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0});
    for (what, status) in [
        ("a phase", json!({"phase": "Failed"})),
        ("containers", json!({"containerStatuses": [stopped]})),
        ("init containers", json!({"initContainerStatuses": [stopped]})),
        ("ephemeral containers", json!({"ephemeralContainerStatuses": [stopped]})),
    ] {
        refused(what, patch("dora", "pod", "held", "status", json!({"status": status})), "only the kubelet may report");
        patch("kubelet", "pod", "held", "status", json!({"status": status})).expect("the kubelet reports a status");
        patch("dora", "pod", "free", "status", json!({"status": status})).expect("the status of a pod that is not the operator's");
    }
    virtual_nodes(server, &patch, &stopped);
    let gate = json!({"status": {"conditions": [{"type": "example.com/gate", "status": "True"}]}});
    patch("dora", "pod", "held", "status", gate).expect("a readiness gate");
    patch("dora", "pvc", "held", "status", json!({"status": {"phase": "Lost"}})).expect("a claim's own status");
    other_subresources(&patch, [&label, &finalizer]);
    let left = server.kubectl(&["get", "pod", "held", "-n", "team", "-o", "json"], "").unwrap();
    let left: Value = serde_json::from_str(&left).unwrap();
    assert_eq!(
        (&left["metadata"]["labels"][UID], &left["metadata"]["finalizers"]),
        (&json!("u"), &json!(["computer-operator.dev/stopped"]))
    );
    server
        .kubectl(&["patch", "pod", "held", "-n", "team", OPERATOR, "--type=merge", "-p", &finalizer.to_string()], "")
        .expect("the operator removes its finalizer");
}

/// Two users with every right in the namespace, a pod and a claim of the operator's, and a pod that is not.
fn furnish(server: &Server) {
    for user in ["dora", "kubelet"] {
        server.kubectl(&["create", "role", user, "--verb=*", "--resource=*", "-n", "team"], "").unwrap();
        server.kubectl(&["create", "rolebinding", user, &format!("--role={user}"), &format!("--user={user}"), "-n", "team"], "").unwrap();
    }
    let mut machine = pod("team", "held", "default");
    machine["metadata"]["labels"] = json!({(UID): "u"});
    machine["metadata"]["finalizers"] = json!(["computer-operator.dev/stopped"]);
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "held", "namespace": "team", "labels": {(UID): "u"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let free = pod("team", "free", "default");
    server.kubectl(&["create", "-f", "-"], &[machine, claim, free].map(|o| o.to_string()).join("\n---\n")).unwrap();
}

/// Kubelets of some distributions and virtual nodes are not in the group `system:nodes`, but have rights of the `ClusterRole` `system:node`.
fn virtual_nodes(server: &Server, patch: Patch<'_>, stopped: &Value) {
    let rules = json!([{"apiGroups": [""], "resources": ["pods/status"], "verbs": ["get", "patch", "update"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}]);
    for (kind, name, extra) in [
        ("ClusterRole", "virtual-node", json!({"rules": rules})),
        (
            "ClusterRoleBinding",
            "virtual-node",
            json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "virtual-node"},
            "subjects": [{"kind": "User", "name": "virtual-node"}]}),
        ),
        // A role in a namespace grants nothing on nodes.
        ("Role", "nodes-status", json!({"rules": rules})),
        (
            "RoleBinding",
            "nodes-status",
            json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "nodes-status"},
            "subjects": [{"kind": "User", "name": "dora"}]}),
        ),
    ] {
        let metadata = if kind.starts_with("Cluster") { json!({"name": name}) } else { json!({"name": name, "namespace": "team"}) };
        let mut object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata});
        object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.kubectl(&["create", "-f", "-"], &object.to_string()).unwrap();
    }
    eventually("a virtual node reports", || {
        patch("virtual-node", "pod", "held", "status", json!({"status": {"phase": "Running", "containerStatuses": []}}))
    });
    patch("virtual-node", "pod", "held", "status", json!({"status": {"phase": "Succeeded", "containerStatuses": [stopped]}}))
        .expect("a kubelet");
    let label = json!({"metadata": {"labels": {(UID): null}}});
    refused("through its status, a virtual node", patch("virtual-node", "pod", "held", "status", label), "are reserved for the operator");
    refused("dora", patch("dora", "pod", "held", "status", json!({"status": {"phase": "Running"}})), "only the kubelet may report");
}

/// The other subresources of a pod do not change its metadata.
fn other_subresources(patch: Patch<'_>, metadata: [&Value; 2]) {
    for (subresource, change) in [
        ("ephemeralcontainers", json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i"}]}})),
        ("resize", json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1m"}}}]}})),
    ] {
        for meta in metadata {
            let mut change = change.clone();
            change["metadata"] = meta["metadata"].clone();
            let _ = patch("dora", "pod", "held", subresource, change);
        }
    }
}
