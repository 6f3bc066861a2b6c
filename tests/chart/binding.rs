//! How the real volume controller binds a volume to another claim: in the order that custody relies on, and in the opposite order, which takes
//! longer. The simulator's volume controller is modelled on these results.

use std::time::Instant;

use serde_json::json;

use crate::server::{Server, eventually};

/// Creates a released volume, like that of a home whose claim is gone.
fn released(server: &Server, name: &str) {
    let claim = format!("{name}-home");
    let spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "persistentVolumeReclaimPolicy": "Retain",
        "csi": {"driver": "disk.example", "volumeHandle": name},
        "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "team", "name": claim}});
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec});
    server.kubectl(&["create", "-f", "-"], &volume.to_string()).unwrap();
    create_claim(server, "team", &claim, name);
    wait_for_phase(server, "pv", name, "Bound");
    server.kubectl(&["delete", "pvc", &claim, "-n", "team"], "").unwrap();
    wait_for_phase(server, "pv", name, "Released");
}

fn create_claim(server: &Server, namespace: &str, claim: &str, volume: &str) {
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim, "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}}});
    server.kubectl(&["create", "-f", "-"], &claim.to_string()).unwrap();
}

fn wait_for_phase(server: &Server, kind: &str, name: &str, wanted: &str) {
    eventually(&format!("{kind} {name} is {wanted}"), || {
        let phase = server.kubectl(&["get", kind, name, "-n", "ops", "-o", "jsonpath={.status.phase}"], "")?;
        if phase == wanted { Ok(()) } else { Err(phase) }
    });
}

fn set_claim_ref(server: &Server, volume: &str, claim: &str, uid: Option<&str>) {
    let reference = json!({"spec": {"claimRef": {"namespace": "ops", "name": claim, "uid": uid, "resourceVersion": null}}});
    server.kubectl(&["patch", "pv", volume, "--type=merge", "-p", &reference.to_string()], "").unwrap();
}

fn binding_failures(server: &Server, claim: &str) -> String {
    let selector = format!("involvedObject.name={claim},reason=FailedBinding");
    server.kubectl(&["get", "events", "-n", "ops", "--field-selector", &selector, "-o", "jsonpath={.items[*].message}"], "").unwrap()
}

pub fn a_volume_reserved_by_name_binds_without_a_failure(server: &Server) {
    released(server, "reserved");
    set_claim_ref(server, "reserved", "first", None);
    wait_for_phase(server, "pv", "reserved", "Available");
    let began = Instant::now();
    create_claim(server, "ops", "first", "reserved");
    wait_for_phase(server, "pvc", "first", "Bound");
    println!("reserved by name, then the claim: bound after {} ms", began.elapsed().as_millis());
    assert_eq!(binding_failures(server, "first"), "", "binding the claim that custody relies on failed");

    released(server, "taken");
    create_claim(server, "ops", "second", "taken");
    eventually("the event FailedBinding", || {
        let events = binding_failures(server, "second");
        if events.contains("already bound to a different claim") { Ok(()) } else { Err(events) }
    });
    let uid = server.kubectl(&["get", "pvc", "second", "-n", "ops", "-o", "jsonpath={.metadata.uid}"], "").unwrap();
    let began = Instant::now();
    set_claim_ref(server, "taken", "second", Some(&uid));
    wait_for_phase(server, "pv", "taken", "Bound");
    let volume = began.elapsed();
    wait_for_phase(server, "pvc", "second", "Bound");
    println!(
        "claim first, then the claimRef: volume bound after {} ms, claim after {} ms",
        volume.as_millis(),
        began.elapsed().as_millis()
    );
    server.kubectl(&["delete", "pvc", "first", "second", "-n", "ops"], "").unwrap();
    server.kubectl(&["delete", "pv", "reserved", "taken"], "").unwrap();
}
