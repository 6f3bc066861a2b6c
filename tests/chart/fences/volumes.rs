//! The admission policy that restricts what the operator's account may change in volumes.

use serde_json::{Value, json};

use super::{CUSTODY, HEX, OPERATOR, ORIGINAL, UID};
use crate::policies::refused;
use crate::server::{Server, eventually};

/// Creates a volume that is bound to a claim of this name.
fn volume(server: &Server, name: &str, namespace: &str, claim: &str) {
    let spec = json!({
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}, "persistentVolumeReclaimPolicy": "Delete",
        "csi": {"driver": "disk.example", "volumeHandle": name}, "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": namespace, "name": claim},
    });
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim, "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": name, "resources": {"requests": {"storage": "1Gi"}}}});
    server.kubectl(&["create", "-f", "-"], &volume.to_string()).unwrap();
    // The chart has already created the store's claim.
    server.kubectl(&["create", "-f", "-"], &claim.to_string()).ok();
    eventually("the volume is bound", || {
        let uid = server.kubectl(&["get", "pv", name, "-o", "jsonpath={.spec.claimRef.uid}"], "")?;
        if uid.is_empty() { Err("not yet".into()) } else { Ok(()) }
    });
}

/// Patches a volume as the operator.
fn patch(server: &Server, name: &str, patch: &Value) -> Result<String, String> {
    server.kubectl(&["patch", "pv", name, OPERATOR, "--type=merge", "-p", &patch.to_string()], "")
}

fn marked(policy: &str, original: &str) -> Value {
    json!({"metadata": {"labels": {(UID): CUSTODY}, "annotations": {(ORIGINAL): original}}, "spec": {"persistentVolumeReclaimPolicy": policy}})
}

fn policy(policy: &str) -> Value {
    json!({"spec": {"persistentVolumeReclaimPolicy": policy}})
}

fn claim(namespace: &str, name: &str) -> Value {
    json!({"spec": {"claimRef": {"namespace": namespace, "name": name, "uid": "other", "resourceVersion": null}}})
}

pub fn it_changes_only_volumes_of_homes(server: &Server) {
    let (home, custody) = (format!("home-{HEX}"), format!("home-{CUSTODY}"));
    volume(server, "home", "team", &home);
    a_volume_is_marked_when_it_is_protected(server, &custody);
    other_changes_are_refused(server, &home, &custody);
    a_volume_is_reserved_only_for_its_custody_claim(server, &home, &custody);
    patch(server, "home", &policy("Retain")).expect("a reserved volume can be set to Retain");
    patch(server, "home", &claim("ops", &custody)).expect("custody");
    patch(server, "home", &policy("Delete")).expect("the original policy");
    // An override keeps the volume: the operator removes its label and annotation.
    patch(server, "home", &policy("Retain")).expect("kept");
    let unmarked = json!({"metadata": {"labels": {(UID): null}, "annotations": {(ORIGINAL): null}}});
    patch(server, "home", &unmarked).expect("the marks removed");
    other_volumes_are_refused(server, &custody);
}

/// Volumes that are not homes, and names that a tenant can give its own claims.
fn other_volumes_are_refused(server: &Server, custody: &str) {
    let longer = format!("home-{HEX}0");
    for (name, claim) in [("theirs", "home-sweet-home"), ("longer", longer.as_str()), ("custody", custody)] {
        volume(server, name, "team", claim);
        refused(claim, patch(server, name, &marked("Retain", "Delete")), "only volumes of homes");
    }
    volume(server, "data", "team", "data");
    volume(server, "store", "ops", "co-computer-operator-store");
    // A class of its own, so that the volume controller never binds it to a pending claim of another test.
    let loose = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "loose"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "unclaimed", "capacity": {"storage": "1Gi"}, "csi": {"driver": "disk.example", "volumeHandle": "l"}}});
    server.kubectl(&["create", "-f", "-"], &loose.to_string()).unwrap();
    refused("not a home", patch(server, "data", &marked("Retain", "Delete")), "only volumes of homes");
    refused("not bound", patch(server, "loose", &marked("Retain", "Retain")), "only bound volumes");
    refused("a store with a mark", patch(server, "store", &marked("Retain", "Delete")), "only volumes of homes");
    patch(server, "store", &policy("Retain")).expect("the store's own volume");
    refused("deleted", server.kubectl(&["delete", "pv", "loose", OPERATOR, "--wait=false"], ""), "resource \"persistentvolumes\"");
}

fn a_volume_is_marked_when_it_is_protected(server: &Server, custody: &str) {
    let patch = |change: Value| patch(server, "home", &change);
    refused("no mark", patch(policy("Retain")), "takes a volume into its care, it must set");
    refused("another policy noted", patch(marked("Retain", "Retain")), "takes a volume into its care, it must set");
    refused("a volume that is not in its care", patch(claim("ops", custody)), "in its care only to claims in its own namespace");
    patch(marked("Retain", "Delete")).expect("taken into its care");
    // A label that an admin or a tool removed is set again, and the original policy is still known.
    server.kubectl(&["label", "pv", "home", &format!("{UID}-")], "").unwrap();
    refused("another policy than before", patch(marked("Retain", "Retain")), "remove that annotation from it");
    patch(marked("Retain", "Delete")).expect("the label is set again");
}

fn other_changes_are_refused(server: &Server, home: &str, custody: &str) {
    for (what, change, message) in [
        ("to another namespace", claim("default", home), "only to claims in its own namespace"),
        ("to a claim that is not a home's", claim("ops", "co-computer-operator-store"), "only to claims in its own namespace"),
        ("to a claim with the prefix of a home", claim("ops", "home-server"), "only to claims in its own namespace"),
        ("to a claim of the tenant", claim("team", "home-server"), "only to claims in its own namespace"),
        ("to a name of custody elsewhere", claim("team", custody), "only to claims in its own namespace"),
        ("no claim", json!({"spec": {"claimRef": null}}), "only bound volumes"),
        ("a reclaim policy that it never had", policy("Recycle"), "back to the original policy"),
        ("another label", json!({"metadata": {"labels": {"a": "b"}}}), "only its own labels"),
        ("another computer's", json!({"metadata": {"labels": {(UID): "v"}}}), "only its own labels"),
        ("another annotation", json!({"metadata": {"annotations": {"a": "b"}}}), "only its own annotation"),
        ("a rewritten policy", json!({"metadata": {"annotations": {(ORIGINAL): "Retain"}}}), "only its own annotation"),
        ("mount options", json!({"spec": {"mountOptions": ["suid"]}}), "may not change other fields of a volume"),
        ("a finalizer", json!({"metadata": {"finalizers": null}}), "may not change other fields of a volume"),
        ("its size", json!({"spec": {"capacity": {"storage": "20Gi"}}}), "may not change other fields of a volume"),
    ] {
        refused(what, patch(server, "home", &change), message);
    }
}

/// The custody claim does not exist yet; the reservation is reset if it is never created.
fn a_volume_is_reserved_only_for_its_custody_claim(server: &Server, home: &str, custody: &str) {
    let by_name = |namespace: &str, name: &str| json!({"spec": {"claimRef": {"namespace": namespace, "name": name, "uid": null, "resourceVersion": null}}});
    let other = "home-22222222-2222-3333-4444-555555555555";
    for (namespace, name) in [("team", home), ("team", custody), ("default", custody), ("ops", other), ("ops", home)] {
        refused(name, patch(server, "home", &by_name(namespace, name)), "only bound volumes");
    }
    patch(server, "home", &by_name("ops", custody)).expect("reserved for custody");
}
