//! The volume controllers: provisioning, binding, release and reclaim, and the protection of claims in use.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::value::{deleting, name, namespace, text, uid};
use crate::api::verbs::computer_of;
use crate::api::{Actor, State};

/// What a volume holds.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// UID of the computer that it was made for.
    pub computer: Option<String>,
    /// How often something was written: the version of its content.
    pub written: u64,
    /// Its StorageClass keeps volumes.
    pub retained: bool,
}

/// By the UID of the volume.
pub type Disks = BTreeMap<String, Disk>;

const PROTECTION: &str = "kubernetes.io/pvc-protection";

pub fn step(state: &mut State) {
    let claims: Vec<Arc<Value>> = state.all("persistentvolumeclaims").cloned().collect();
    for claim in &claims {
        if deleting(claim) {
            let held = used(state, claim);
            if !held {
                state.change("persistentvolumeclaims", namespace(claim), name(claim), |c| {
                    if let Some(list) = c["metadata"]["finalizers"].as_array_mut() {
                        list.retain(|f| f != PROTECTION);
                    }
                });
            }
        }
        bind(state, claim);
    }
    let volumes: Vec<Arc<Value>> = state.all("persistentvolumes").cloned().collect();
    for volume in volumes {
        reclaim(state, &volume);
    }
}

/// Whether a pod that has a node mounts the claim.
fn used(state: &State, claim: &Value) -> bool {
    state.all("pods").any(|p| namespace(p) == namespace(claim) && text(p, "/spec/nodeName").is_some() && mounts(p, name(claim)))
}

/// Whether a pod mounts this claim of its namespace.
pub fn mounts(pod: &Value, claim: &str) -> bool {
    claims_of(pod).iter().any(|c| c == claim)
}

/// Names of the claims that a pod mounts.
pub fn claims_of(pod: &Value) -> Vec<String> {
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array);
    volumes.into_iter().flatten().filter_map(|v| text(v, "/persistentVolumeClaim/claimName").map(str::to_owned)).collect()
}

/// A claim that names a volume, and is named by it, is bound; one whose volume went elsewhere is lost.
fn bind(state: &mut State, claim: &Value) {
    let Some(volume) = text(claim, "/spec/volumeName") else { return };
    let phase = text(claim, "/status/phase").unwrap_or("Pending").to_owned();
    let holder = state.get("persistentvolumes", "", volume).and_then(|v| text(v, "/spec/claimRef/uid").map(str::to_owned));
    let wanted = match holder {
        Some(holder) if holder == uid(claim) => "Bound",
        _ if phase == "Bound" => "Lost",
        _ => return,
    };
    state.change("persistentvolumeclaims", namespace(claim), name(claim), |c| c["status"]["phase"] = json!(wanted));
}

/// Makes a volume for a claim that a pod waits for.
pub fn provision(state: &mut State, claim: &Value) {
    let called = format!("pvc-{}", uid(claim));
    let reference =
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace(claim), "name": name(claim), "uid": uid(claim)});
    let policy = if text(claim, "/spec/storageClassName") == Some("retain") { "Retain" } else { "Delete" };
    let spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "claimRef": reference, "persistentVolumeReclaimPolicy": policy,
        "storageClassName": text(claim, "/spec/storageClassName").unwrap_or("local"), "volumeMode": "Filesystem"});
    let volume = json!({"metadata": {"name": called}, "spec": spec});
    let Ok(made) = state.create(Actor::Kubernetes, "persistentvolumes", "", volume, false) else { return };
    let computer = computer_of(claim).map(str::to_owned).filter(|_| state.observer.owns(uid(claim)));
    state.disks.insert(uid(&made).to_owned(), Disk { computer, written: 0, retained: policy == "Retain" });
    state.change("persistentvolumes", "", &called, |v| v["status"]["phase"] = json!("Bound"));
    state.change("persistentvolumeclaims", namespace(claim), name(claim), |c| {
        c["spec"]["volumeName"] = json!(called);
        c["status"]["phase"] = json!("Bound");
    });
}

/// A volume whose claim is gone is released; its policy says what becomes of it.
fn reclaim(state: &mut State, volume: &Value) {
    let Some(holder) = text(volume, "/spec/claimRef/uid") else { return };
    let claim = state.by_uid("persistentvolumeclaims", holder).cloned();
    let phase = if claim.is_some() { "Bound" } else { "Released" };
    if claim.is_none()
        && text(volume, "/spec/persistentVolumeReclaimPolicy") == Some("Delete")
        && text(volume, "/status/phase") == Some("Released")
    {
        // The protection of volumes ends with the claim: nothing holds it any more.
        if let Some(current) = state.get("persistentvolumes", "", name(volume)).cloned() {
            let last = (*current).clone();
            state.remove(Actor::Kubernetes, "persistentvolumes", current, last);
        }
        return;
    }
    state.change("persistentvolumes", "", name(volume), |v| v["status"]["phase"] = json!(phase));
}
