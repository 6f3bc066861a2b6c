//! How the real volume controller binds a volume that changes hands: the order that custody relies on, and what the other one costs. The
//! simulator's volume controller is written after this.

use std::time::Instant;

use serde_json::json;

use crate::server::{Server, eventually};

/// A released volume, as a home's is when its claim is gone.
fn released(server: &Server, name: &str) {
    let claim = format!("{name}-home");
    let spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "persistentVolumeReclaimPolicy": "Retain",
        "csi": {"driver": "disk.example", "volumeHandle": name},
        "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "team", "name": claim}});
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec});
    server.kubectl(&["create", "-f", "-"], &volume.to_string()).unwrap();
    make(server, "team", &claim, name);
    phase(server, "pv", name, "Bound");
    server.kubectl(&["delete", "pvc", &claim, "-n", "team"], "").unwrap();
    phase(server, "pv", name, "Released");
}

fn make(server: &Server, namespace: &str, claim: &str, volume: &str) {
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim, "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}}});
    server.kubectl(&["create", "-f", "-"], &claim.to_string()).unwrap();
}

fn phase(server: &Server, kind: &str, name: &str, wanted: &str) {
    eventually(&format!("{kind} {name} is {wanted}"), || {
        let phase = server.kubectl(&["get", kind, name, "-n", "ops", "-o", "jsonpath={.status.phase}"], "")?;
        if phase == wanted { Ok(()) } else { Err(phase) }
    });
}

fn refer(server: &Server, volume: &str, claim: &str, uid: Option<&str>) {
    let reference = json!({"spec": {"claimRef": {"namespace": "ops", "name": claim, "uid": uid, "resourceVersion": null}}});
    server.kubectl(&["patch", "pv", volume, "--type=merge", "-p", &reference.to_string()], "").unwrap();
}

fn refusals(server: &Server, claim: &str) -> String {
    let selector = format!("involvedObject.name={claim},reason=FailedBinding");
    server.kubectl(&["get", "events", "-n", "ops", "--field-selector", &selector, "-o", "jsonpath={.items[*].message}"], "").unwrap()
}

pub fn order(server: &Server) {
    released(server, "reserved");
    refer(server, "reserved", "first", None);
    phase(server, "pv", "reserved", "Available");
    let began = Instant::now();
    make(server, "ops", "first", "reserved");
    phase(server, "pvc", "first", "Bound");
    println!("reserved by name, then the claim: bound after {} ms", began.elapsed().as_millis());
    assert_eq!(refusals(server, "first"), "", "the claim that custody relies on is refused");

    released(server, "taken");
    make(server, "ops", "second", "taken");
    eventually("the claim is refused", || {
        let said = refusals(server, "second");
        if said.contains("already bound to a different claim") { Ok(()) } else { Err(said) }
    });
    let uid = server.kubectl(&["get", "pvc", "second", "-n", "ops", "-o", "jsonpath={.metadata.uid}"], "").unwrap();
    let began = Instant::now();
    refer(server, "taken", "second", Some(&uid));
    phase(server, "pv", "taken", "Bound");
    let volume = began.elapsed();
    phase(server, "pvc", "second", "Bound");
    println!(
        "claim first, then the claimRef: volume bound after {} ms, claim after {} ms",
        volume.as_millis(),
        began.elapsed().as_millis()
    );
    server.kubectl(&["delete", "pvc", "first", "second", "-n", "ops"], "").unwrap();
    server.kubectl(&["delete", "pv", "reserved", "taken"], "").unwrap();
}
