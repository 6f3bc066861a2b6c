//! The volume controllers: provisioning, binding, release and reclaim, and the protection of claims in use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::value::{at, deleting, name, namespace, text, uid};
use crate::api::verbs::computer_of;
use crate::api::{Actor, State};

/// The content of a volume.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// UID of the computer that it was provisioned for.
    pub computer: Option<String>,
    /// The number of writes: the version of its content.
    pub written: u64,
    /// Its StorageClass retains volumes.
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
    }
    control(state);
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
    let volumes = at(pod, "/spec/volumes").and_then(Value::as_array);
    volumes.into_iter().flatten().filter_map(|v| text(v, "/persistentVolumeClaim/claimName").map(str::to_owned)).collect()
}

/// What the volume controller has processed. Like the real one (`pv_controller.go`) it reacts to changes: it syncs a claim when the claim
/// changes, a volume when the volume changes, and everything at the resync. A claim that was refused because its volume named another
/// claim is not synced again when the volume changes.
#[derive(Default)]
pub struct Binder {
    /// The last synced version of each claim and volume, by UID.
    seen: BTreeMap<String, String>,
    /// The volumes as the volume worker has stored them; the claim worker reads these.
    volumes: BTreeMap<String, Arc<Value>>,
    /// The volume that each claim names, by the claim's UID: the deletion of a claim makes the controller sync its volume.
    claims: BTreeMap<String, String>,
    resync: Option<Instant>,
    /// Changes that only a resync caused.
    pub resynced: Vec<(Instant, String)>,
}

/// The default of `--pvclaimbinder-sync-period`.
const RESYNC: Duration = Duration::from_secs(15);

impl Binder {
    /// Time until the next resync.
    pub fn due_in(&self) -> Duration {
        self.resync.map_or(RESYNC, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether an object has changed since the last sync; it counts as synced from now on.
    fn changed(&mut self, object: &Value) -> bool {
        let version = text(object, "/metadata/resourceVersion").unwrap_or_default().to_owned();
        self.seen.insert(uid(object).to_owned(), version.clone()) != Some(version)
    }
}

/// The controller's two workers. Claims come first: their worker may run before the other one has stored a change of the volume.
fn control(state: &mut State) {
    let due = state.binder.due_in().is_zero();
    if due || state.binder.resync.is_none() {
        state.binder.resync = Some(Instant::now() + RESYNC);
    }
    claims_gone(state);
    for kind in ["persistentvolumeclaims", "persistentvolumes"] {
        let objects: Vec<Arc<Value>> = state.all(kind).cloned().collect();
        for object in objects {
            let changed = state.binder.changed(&object);
            if !changed && !due {
                continue;
            }
            let before = state.rv();
            if kind == "persistentvolumes" {
                sync_volume(state, &object);
            } else {
                sync_claim(state, &object);
            }
            if !changed && state.rv() != before {
                state.binder.resynced.push((Instant::now(), format!("{kind} {}", name(&object))));
            }
        }
    }
}

/// The deletion of a claim is an event for the volume that it named.
fn claims_gone(state: &mut State) {
    let named = |claim: &Arc<Value>| Some((uid(claim).to_owned(), text(claim, "/spec/volumeName")?.to_owned()));
    let now: BTreeMap<String, String> = state.all("persistentvolumeclaims").filter_map(named).collect();
    let before = std::mem::replace(&mut state.binder.claims, now);
    for (claim, volume) in before {
        if state.binder.claims.contains_key(&claim) {
            continue;
        }
        if let Some(volume) = state.get("persistentvolumes", "", &volume).map(|v| uid(v).to_owned()) {
            state.binder.seen.remove(&volume);
        }
    }
}

/// Whether a volume names this claim, with its UID or with none.
fn names_claim(volume: &Value, claim: &Value) -> bool {
    text(volume, "/spec/claimRef/name") == Some(name(claim))
        && text(volume, "/spec/claimRef/namespace") == Some(namespace(claim))
        && text(volume, "/spec/claimRef/uid").is_none_or(|u| u == uid(claim))
}

fn sync_claim(state: &mut State, claim: &Value) {
    let Some(called) = text(claim, "/spec/volumeName") else { return };
    let bound = text(claim, "/status/phase") == Some("Bound");
    let Some(volume) = state.binder.volumes.get(called).cloned() else {
        if bound && state.get("persistentvolumes", "", called).is_none() {
            lose(state, claim);
        }
        return;
    };
    if volume["spec"]["claimRef"].is_null() || names_claim(&volume, claim) {
        bind(state, claim, &volume);
    } else if bound {
        lose(state, claim);
    }
    // Otherwise: FailedBinding, "already bound to a different claim". It is not retried before the resync.
}

fn lose(state: &mut State, claim: &Value) {
    state.change("persistentvolumeclaims", namespace(claim), name(claim), |c| c["status"]["phase"] = json!("Lost"));
}

/// Binds both sides. A volume that has changed meanwhile is a conflict, which is retried.
fn bind(state: &mut State, claim: &Value, volume: &Arc<Value>) {
    let current = state.get("persistentvolumes", "", name(volume)).cloned();
    if current.as_ref().map(|v| v["metadata"]["resourceVersion"].clone()) != Some(volume["metadata"]["resourceVersion"].clone()) {
        state.binder.seen.remove(uid(claim));
        return;
    }
    state.change("persistentvolumes", "", name(volume), |v| {
        if v["spec"]["claimRef"]["uid"] != json!(uid(claim)) {
            v["spec"]["claimRef"] = reference(claim);
        }
        v["status"]["phase"] = json!("Bound");
    });
    state.change("persistentvolumeclaims", namespace(claim), name(claim), |c| c["status"]["phase"] = json!("Bound"));
    take_in(state, name(volume));
}

fn take_in(state: &mut State, called: &str) {
    if let Some(volume) = state.get("persistentvolumes", "", called).cloned() {
        state.binder.volumes.insert(called.to_owned(), volume);
    } else {
        state.binder.volumes.remove(called);
    }
}

fn reference(claim: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace(claim), "name": name(claim), "uid": uid(claim)})
}

/// Provisions a volume for a claim that a pod waits for.
pub fn provision(state: &mut State, claim: &Value) {
    let called = format!("pvc-{}", uid(claim));
    let policy = if text(claim, "/spec/storageClassName") == Some("retain") { "Retain" } else { "Delete" };
    let spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "claimRef": reference(claim), "persistentVolumeReclaimPolicy": policy,
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

/// A volume whose claim is gone is released; its reclaim policy decides what follows. One that names a claim without a UID is reserved.
fn sync_volume(state: &mut State, volume: &Value) {
    let reserved = text(volume, "/spec/claimRef/uid").is_none();
    let (space, called) =
        (text(volume, "/spec/claimRef/namespace").unwrap_or_default(), text(volume, "/spec/claimRef/name").unwrap_or_default());
    let claim = state.get("persistentvolumeclaims", space, called).filter(|c| names_claim(volume, c)).cloned();
    let phase = match &claim {
        _ if reserved => "Available",
        None => "Released",
        Some(claim) if text(claim, "/spec/volumeName").is_none() => {
            state.binder.seen.remove(uid(claim));
            "Bound"
        }
        Some(_) => "Bound",
    };
    if phase == "Released"
        && text(volume, "/spec/persistentVolumeReclaimPolicy") == Some("Delete")
        && text(volume, "/status/phase") == Some("Released")
    {
        // The protection of a volume ends with its claim.
        if let Some(current) = state.get("persistentvolumes", "", name(volume)).cloned() {
            let last = (*current).clone();
            state.remove(Actor::Kubernetes, "persistentvolumes", current, last);
        }
    } else {
        state.change("persistentvolumes", "", name(volume), |v| v["status"]["phase"] = json!(phase));
    }
    take_in(state, name(volume));
}
