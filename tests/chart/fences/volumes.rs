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

pub fn it_changes_only_volumes_of_homes(server: &Server) {
    let (home, custody) = (format!("home-{HEX}"), format!("home-{CUSTODY}"));
    volume(server, "home", "team", &home);
    // Names that a tenant can give its own claims.
    let longer = format!("home-{HEX}0");
    let theirs = [("theirs", "home-sweet-home"), ("longer", longer.as_str()), ("custody", custody.as_str())];
    for (name, claim) in theirs {
        volume(server, name, "team", claim);
    }
    volume(server, "data", "team", "data");
    volume(server, "store", "ops", "co-computer-operator-store");
    // A class of its own, so that the volume controller never binds it to a pending claim of another test.
    let loose = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "loose"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "unclaimed", "capacity": {"storage": "1Gi"}, "csi": {"driver": "disk.example", "volumeHandle": "l"}}});
    server.kubectl(&["create", "-f", "-"], &loose.to_string()).unwrap();
    let patch = |name: &str, patch: Value| server.kubectl(&["patch", "pv", name, OPERATOR, "--type=merge", "-p", &patch.to_string()], "");
    let marked = |policy: &str, original: &str| json!({"metadata": {"labels": {(UID): CUSTODY}, "annotations": {(ORIGINAL): original}}, "spec": {"persistentVolumeReclaimPolicy": policy}});
    let claim = |namespace: &str, name: &str| json!({"spec": {"claimRef": {"namespace": namespace, "name": name, "uid": "other", "resourceVersion": null}}});
    refused(
        "no mark",
        patch("home", json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})),
        "takes a volume into its care, it must set",
    );
    refused("another policy noted", patch("home", marked("Retain", "Retain")), "takes a volume into its care, it must set");
    refused("a volume that is not in its care", patch("home", claim("ops", &custody)), "in its care only to claims in its own namespace");
    patch("home", marked("Retain", "Delete")).expect("taken into its care");
    // A label that an admin or a tool removed is set again, and the original policy is still known.
    server.kubectl(&["label", "pv", "home", &format!("{UID}-")], "").unwrap();
    refused("another policy than before", patch("home", marked("Retain", "Retain")), "remove that annotation from it");
    patch("home", marked("Retain", "Delete")).expect("the label is set again");
    for (what, change, message) in [
        ("to another namespace", claim("default", &home), "only to claims in its own namespace"),
        ("to a claim that is not a home's", claim("ops", "co-computer-operator-store"), "only to claims in its own namespace"),
        ("to a claim with the prefix of a home", claim("ops", "home-server"), "only to claims in its own namespace"),
        ("to a claim of the tenant", claim("team", "home-server"), "only to claims in its own namespace"),
        ("to a name of custody elsewhere", claim("team", &custody), "only to claims in its own namespace"),
        ("no claim", json!({"spec": {"claimRef": null}}), "only bound volumes"),
        (
            "a reclaim policy that it never had",
            json!({"spec": {"persistentVolumeReclaimPolicy": "Recycle"}}),
            "back to the original policy",
        ),
        ("another label", json!({"metadata": {"labels": {"a": "b"}}}), "only its own labels"),
        ("another computer's", json!({"metadata": {"labels": {(UID): "v"}}}), "only its own labels"),
        ("another annotation", json!({"metadata": {"annotations": {"a": "b"}}}), "only its own annotation"),
        ("a rewritten policy", json!({"metadata": {"annotations": {(ORIGINAL): "Retain"}}}), "only its own annotation"),
        ("mount options", json!({"spec": {"mountOptions": ["suid"]}}), "may not change other fields of a volume"),
        ("a finalizer", json!({"metadata": {"finalizers": null}}), "may not change other fields of a volume"),
        ("its size", json!({"spec": {"capacity": {"storage": "20Gi"}}}), "may not change other fields of a volume"),
    ] {
        refused(what, patch("home", change), message);
    }
    // Reserved for its custody claim, which does not exist yet; reset if the claim is never created.
    let by_name = |namespace: &str, name: &str| json!({"spec": {"claimRef": {"namespace": namespace, "name": name, "uid": null, "resourceVersion": null}}});
    let other = "home-22222222-2222-3333-4444-555555555555";
    for (namespace, name) in
        [("team", home.as_str()), ("team", custody.as_str()), ("default", custody.as_str()), ("ops", other), ("ops", &home)]
    {
        refused(name, patch("home", by_name(namespace, name)), "only bound volumes");
    }
    patch("home", by_name("ops", &custody)).expect("reserved for custody");
    patch("home", json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})).expect("a reserved volume can be set to Retain");
    patch("home", claim("ops", &custody)).expect("custody");
    patch("home", json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}})).expect("the original policy");
    // An override keeps the volume: the operator removes its label and annotation.
    patch("home", json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})).expect("kept");
    patch("home", json!({"metadata": {"labels": {(UID): null}, "annotations": {(ORIGINAL): null}}})).expect("the marks removed");
    for (name, claim) in theirs {
        refused(claim, patch(name, marked("Retain", "Delete")), "only volumes of homes");
    }
    refused("not a home", patch("data", marked("Retain", "Delete")), "only volumes of homes");
    refused("not bound", patch("loose", marked("Retain", "Retain")), "only bound volumes");
    refused("a store with a mark", patch("store", marked("Retain", "Delete")), "only volumes of homes");
    patch("store", json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})).expect("the store's own volume");
    refused("deleted", server.kubectl(&["delete", "pv", "loose", OPERATOR, "--wait=false"], ""), "resource \"persistentvolumes\"");
}
