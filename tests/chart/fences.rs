//! What the operator's own account may not do, although RBAC cannot say it: whoever gets hold of its token gets no more.

use serde_json::{Value, json};

use crate::policies::refused;
use crate::server::{Server, eventually};

const OPERATOR: &str = "--as=system:serviceaccount:ops:co-computer-operator";
const API: &str = "--as=system:serviceaccount:ops:co-computer-operator-api";
const UID: &str = "computer-operator.dev/computer-uid";
const ORIGINAL: &str = "computer-operator.dev/original-reclaim-policy";

pub fn hold(server: &Server) {
    children(server);
    volumes(server);
    records(server);
}

/// The HTTP API may end a key's life, never begin one.
fn records(server: &Server) {
    let children = json!({"secretName": "computer-key-a"});
    let record = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerRecord", "metadata": {"name": "r", "namespace": "ops"},
        "spec": {"namespace": "team", "computer": "box", "state": {"credential": "Live", "keyHash": "a", "children": children}}});
    server.kubectl(&["create", "-f", "-"], &record.to_string()).unwrap();
    let patch = |spec: Value| {
        server.kubectl(&["patch", "computerrecord", "r", "-n", "ops", API, "--type=merge", "-p", &json!({"spec": spec}).to_string()], "")
    };
    refused("another hash", patch(json!({"state": {"keyHash": "b"}})), "revokes keys and");
    let state = |more: Value| {
        let mut state = json!({"credential": "Revoked"});
        state.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"state": state})
    };
    for more in [json!({"keyHash": "b"}), json!({"children": {"secretName": "another"}}), json!({"phase": "Released"})] {
        refused(&more.to_string(), patch(state(more.clone())), "changes nothing else of a record");
    }
    let mut elsewhere = state(json!({}));
    elsewhere["namespace"] = json!("other");
    refused("another computer's", patch(elsewhere), "changes nothing else of a record");
    patch(state(json!({}))).expect("a tombstone");
    refused("back to life", patch(json!({"state": {"credential": "Live"}})), "revokes keys and does nothing else");
}

fn children(server: &Server) {
    let meta = |name: &str, labels: Value| json!({"name": name, "namespace": "team", "labels": labels});
    let (foreign, ours) = (json!({}), json!({(UID): "u"}));
    let pod = |name: &str, labels: &Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta(name, labels.clone()), "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let claim = |name: &str, labels: &Value| json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta(name, labels.clone()), "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let all = [pod("theirs", &foreign), pod("ours", &ours), claim("theirs", &foreign), claim("ours", &ours)]
        .map(|o| o.to_string())
        .join("\n---\n");
    server.kubectl(&["create", "-f", "-"], &all).unwrap();
    let operator = |arguments: &[&str]| server.kubectl(&[arguments, &["-n", "team", OPERATOR]].concat(), "");
    for kind in ["pod", "pvc"] {
        refused(kind, operator(&["delete", kind, "theirs", "--wait=false"]), "only pods and claims that it made");
        operator(&["delete", kind, "ours", "--wait=false"]).unwrap();
    }
    refused("a pod's labels", operator(&["label", "pod", "theirs", "a=b"]), "only pods and claims that it made");
    refused("a claim", operator(&["label", "pvc", "theirs", "a=b"]), "resource \"persistentvolumeclaims\"");
    for arguments in [&["get", "secret", "planted"][..], &["get", "secrets"]] {
        refused("a tenant's Secret", operator(arguments), "resource \"secrets\"");
    }
    assert!(operator(&["auth", "can-i", "create", "pods", "--subresource=exec"]).is_err(), "a shell in a tenant's pod");
}

/// A volume that is bound to a claim of this name.
fn volume(server: &Server, name: &str, namespace: &str, claim: &str) {
    let spec = json!({
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}, "persistentVolumeReclaimPolicy": "Delete",
        "csi": {"driver": "disk.example", "volumeHandle": name}, "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": namespace, "name": claim},
    });
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim, "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": name, "resources": {"requests": {"storage": "1Gi"}}}});
    server.kubectl(&["create", "-f", "-"], &volume.to_string()).unwrap();
    // The store's claim is the chart's.
    server.kubectl(&["create", "-f", "-"], &claim.to_string()).ok();
    eventually("the volume is bound", || {
        let uid = server.kubectl(&["get", "pv", name, "-o", "jsonpath={.spec.claimRef.uid}"], "")?;
        if uid.is_empty() { Err("not yet".into()) } else { Ok(()) }
    });
}

fn volumes(server: &Server) {
    volume(server, "home", "team", "home-abc");
    volume(server, "data", "team", "data");
    volume(server, "store", "ops", "co-computer-operator-store");
    let loose = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "loose"},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "csi": {"driver": "disk.example", "volumeHandle": "l"}}});
    server.kubectl(&["create", "-f", "-"], &loose.to_string()).unwrap();
    let patch = |name: &str, patch: Value| server.kubectl(&["patch", "pv", name, OPERATOR, "--type=merge", "-p", &patch.to_string()], "");
    let marked = |policy: &str, original: &str| json!({"metadata": {"labels": {(UID): "u"}, "annotations": {(ORIGINAL): original}}, "spec": {"persistentVolumeReclaimPolicy": policy}});
    let claim = |namespace: &str, name: &str| json!({"spec": {"claimRef": {"namespace": namespace, "name": name, "uid": "other", "resourceVersion": null}}});
    refused("no mark", patch("home", json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})), "comes into the operator's care with");
    refused("another policy noted", patch("home", marked("Retain", "Retain")), "comes into the operator's care with");
    refused("not in care yet", patch("home", claim("ops", "home-u")), "in its care at claims of its own namespace");
    patch("home", marked("Retain", "Delete")).expect("from birth");
    for (what, change, message) in [
        ("to another namespace", claim("default", "home-u"), "at claims of its own namespace only"),
        ("to a claim that is no home", claim("ops", "co-computer-operator-store"), "at claims of its own namespace only"),
        ("no claim", json!({"spec": {"claimRef": null}}), "bound volumes only"),
        ("a policy that it never had", json!({"spec": {"persistentVolumeReclaimPolicy": "Recycle"}}), "back to what they were"),
        ("another label", json!({"metadata": {"labels": {"a": "b"}}}), "its own labels only"),
        ("another computer's", json!({"metadata": {"labels": {(UID): "v"}}}), "its own labels only"),
        ("another annotation", json!({"metadata": {"annotations": {"a": "b"}}}), "its own annotation only"),
        ("a rewritten policy", json!({"metadata": {"annotations": {(ORIGINAL): "Retain"}}}), "its own annotation only"),
        ("mount options", json!({"spec": {"mountOptions": ["suid"]}}), "nothing else of a volume"),
        ("a finalizer", json!({"metadata": {"finalizers": null}}), "nothing else of a volume"),
        ("its size", json!({"spec": {"capacity": {"storage": "20Gi"}}}), "nothing else of a volume"),
    ] {
        refused(what, patch("home", change), message);
    }
    patch("home", claim("ops", "home-u")).expect("custody");
    patch("home", json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}})).expect("the original policy");
    refused("not a home", patch("data", marked("Retain", "Delete")), "volumes of homes only");
    refused("not bound", patch("loose", marked("Retain", "Retain")), "bound volumes only");
    refused("a store with a mark", patch("store", marked("Retain", "Delete")), "volumes of homes only");
    patch("store", json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})).expect("the store's own volume");
    refused("deleted", server.kubectl(&["delete", "pv", "loose", OPERATOR, "--wait=false"], ""), "resource \"persistentvolumes\"");
}
