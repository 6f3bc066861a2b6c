//! The scheduler and the kubelet of the one node. Running containers are separate from pods: the containers of a pod that disappeared from
//! the API may run for a while, and write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use computer_operator::resources::COMPONENT_LABEL;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::volumes::{claims_of, provision};
use crate::api::value::{at, deleting, label, name, namespace, text, uid};
use crate::api::verbs::DeleteOptions;
use crate::api::{Actor, State};

/// The running containers, by the UID of their pod.
#[derive(Clone, Debug, Default)]
pub struct Kubelet {
    pub running: BTreeMap<String, Running>,
    /// The node does not respond before this instant; its containers keep running.
    pub lost_until: Option<Instant>,
    /// Attachments that no pod needs any more, and since when.
    detaching: BTreeMap<String, Instant>,
    /// Every machine ends as soon as it runs.
    pub ends_at_once: bool,
}

#[derive(Clone, Debug)]
pub struct Running {
    /// UIDs of the mounted volumes.
    pub volumes: Vec<String>,
    pub archive: bool,
    wrote: Instant,
    /// Since when it is being stopped, or its pod is missing.
    ending: Option<Instant>,
}

/// A volume that nothing on the node uses any more is detached after this long.
const DETACHING: Duration = Duration::from_secs(1);

/// A container that is asked to stop takes this long, and writes until the end.
const STOPPING: Duration = Duration::from_secs(3);

impl Kubelet {
    /// Whether something happens without a change in the API server.
    pub fn busy(&self) -> bool {
        !self.running.is_empty() || self.lost_until.is_some()
    }

    /// Whether a container that may write has this volume mounted.
    pub fn writer(&self, volume: &str) -> bool {
        self.running.values().any(|r| !r.archive && r.volumes.iter().any(|v| v == volume))
    }
}

/// Returns the archive pods that were started.
pub fn step(state: &mut State) -> Vec<Arc<Value>> {
    let lost = state.kubelet.lost_until.is_some_and(|until| Instant::now() < until);
    write(state);
    node_status(state, !lost);
    if lost {
        return Vec::new();
    }
    state.kubelet.lost_until = None;
    let pods: Vec<Arc<Value>> = state.all("pods").cloned().collect();
    let mut started = Vec::new();
    for pod in &pods {
        match (text(pod, "/spec/nodeName"), text(pod, "/status/phase")) {
            (None, _) if !deleting(pod) => schedule(state, pod),
            (Some(_), Some("Pending")) if !deleting(pod) => started.extend(start(state, pod)),
            (Some(_), _) if deleting(pod) => stop(state, pod),
            (Some(_), Some("Running")) if state.kubelet.ends_at_once && namespace(pod) != crate::moves::SYSTEM => {
                state.kubelet.running.remove(uid(pod));
                ended(state, namespace(pod), name(pod), uid(pod), 1, "");
            }
            _ => {}
        }
    }
    kill_strays(state);
    attachments(state);
    started
}

/// The volumes of an attachable driver stay attached while a pod on the node has them mounted (also an archive pod), and a little
/// longer. In the simulator these are the volumes of the StorageClass that retains them.
fn attachments(state: &mut State) {
    let mounted: Vec<&String> = state.kubelet.running.values().flat_map(|r| &r.volumes).collect();
    let of_driver = |v: &&Arc<Value>| mounted.contains(&&uid(v).to_owned()) && text(v, "/spec/storageClassName") == Some("retain");
    let wanted: Vec<String> = state.all("persistentvolumes").filter(of_driver).map(|v| name(v).to_owned()).collect();
    for volume in &wanted {
        let called = format!("csi-{volume}");
        state.kubelet.detaching.remove(&called);
        if state.get("volumeattachments", "", &called).is_none() {
            let spec = json!({"attacher": "disk.example", "nodeName": "node-1", "source": {"persistentVolumeName": volume}});
            let object = json!({"metadata": {"name": called}, "spec": spec});
            let _ = state.create(Actor::Kubernetes, "volumeattachments", "", object, false);
        }
    }
    let attached: Vec<String> = state.all("volumeattachments").map(|a| name(a).to_owned()).collect();
    for called in attached.into_iter().filter(|a| !wanted.iter().any(|v| *a == format!("csi-{v}"))) {
        if state.kubelet.detaching.entry(called.clone()).or_insert_with(Instant::now).elapsed() >= DETACHING {
            state.kubelet.detaching.remove(&called);
            let _ = state.delete(Actor::Kubernetes, "volumeattachments", "", &called, &DeleteOptions::default());
        }
    }
}

pub fn node_status(state: &mut State, ready: bool) {
    let status = if ready { "True" } else { "Unknown" };
    let since = state.stamp(0);
    state.change("nodes", "", "node-1", |n| {
        if at(n, "/status/conditions/0/status") != Some(&json!(status)) {
            n["status"] = json!({"conditions": [{"type": "Ready", "status": status, "lastTransitionTime": since}]});
        }
    });
}

/// Everything that runs writes now and then.
fn write(state: &mut State) {
    let mut dirty = Vec::new();
    for running in state.kubelet.running.values_mut().filter(|r| !r.archive) {
        // A container that is being stopped writes until its end.
        let pause = Duration::from_secs(if running.ending.is_some() { 1 } else { 20 });
        if running.wrote.elapsed() >= pause {
            running.wrote = Instant::now();
            dirty.extend(running.volumes.iter().cloned());
        }
    }
    for volume in dirty {
        if let Some(disk) = state.disks.get_mut(&volume) {
            disk.written += 1;
        }
    }
}

fn schedule(state: &mut State, pod: &Value) {
    for claim in claims_of(pod) {
        let Some(claim) = state.get("persistentvolumeclaims", namespace(pod), &claim).cloned() else { return };
        if deleting(&claim) || text(&claim, "/status/phase") == Some("Lost") {
            return;
        }
        if text(&claim, "/spec/volumeName").is_none() {
            return provision(state, &claim);
        }
        if text(&claim, "/status/phase") != Some("Bound") {
            return;
        }
    }
    state.change("pods", namespace(pod), name(pod), |p| {
        p["spec"]["nodeName"] = json!("node-1");
        p["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "True"}]);
    });
}

fn volumes(state: &State, pod: &Value) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for claim in claims_of(pod) {
        let claim = state.get("persistentvolumeclaims", namespace(pod), &claim).filter(|c| text(c, "/status/phase") == Some("Bound"))?;
        let volume = state.get("persistentvolumes", "", text(claim, "/spec/volumeName")?)?;
        found.push(uid(volume).to_owned());
    }
    Some(found)
}

fn start(state: &mut State, pod: &Arc<Value>) -> Option<Arc<Value>> {
    let volumes = volumes(state, pod)?;
    let archive = label(pod, COMPONENT_LABEL) == Some("archive") && namespace(pod) == crate::moves::SYSTEM;
    if archive && let Some(volume) = volumes.iter().find(|v| state.kubelet.writer(v)) {
        state.observer.violation(format!("S1: {} reads volume {volume} while a container may still write to it", name(pod)));
    }
    if !archive {
        for volume in &volumes {
            state.disks.entry(volume.clone()).or_default().written += 1;
        }
    }
    let running = Running { volumes, archive, wrote: Instant::now(), ending: None };
    state.kubelet.running.insert(uid(pod).to_owned(), running);
    let called = &pod["spec"]["containers"][0]["name"];
    let container = json!([{"name": called, "image": "i", "imageID": "i", "ready": true, "restartCount": 0, "state": {"running": {}}}]);
    state.change("pods", namespace(pod), name(pod), |p| {
        p["status"]["phase"] = json!("Running");
        p["status"]["containerStatuses"] = container;
        p["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]);
    });
    archive.then(|| Arc::clone(pod))
}

/// A deleted pod: its containers end, then its phase is updated, then the kubelet removes it.
fn stop(state: &mut State, pod: &Value) {
    if let Some(running) = state.kubelet.running.get_mut(uid(pod)) {
        let since = *running.ending.get_or_insert_with(Instant::now);
        if since.elapsed() < STOPPING {
            return;
        }
        state.kubelet.running.remove(uid(pod));
    }
    ended(state, namespace(pod), name(pod), uid(pod), 0, "");
    let options = DeleteOptions { uid: Some(uid(pod).to_owned()), grace: Some(0), ..DeleteOptions::default() };
    let _ = state.delete(Actor::Kubernetes, "pods", namespace(pod), name(pod), &options);
}

/// The containers of a pod have ended.
pub fn ended(state: &mut State, within: &str, called: &str, pod_uid: &str, code: i64, message: &str) {
    let finished = state.stamp(0);
    state.change("pods", within, called, |p| {
        if uid(p) != pod_uid || matches!(text(p, "/status/phase"), Some("Failed" | "Succeeded")) {
            return;
        }
        let terminated = json!({"terminated": {"exitCode": code, "finishedAt": finished, "message": message}});
        let started = p["status"]["containerStatuses"].is_array();
        p["status"]["phase"] = json!(if code == 0 { "Succeeded" } else { "Failed" });
        if started {
            let called = p["spec"]["containers"][0]["name"].clone();
            p["status"]["containerStatuses"] =
                json!([{"name": called, "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": terminated}]);
        }
    });
}

/// Containers without a pod are killed a little later.
fn kill_strays(state: &mut State) {
    let known: std::collections::BTreeSet<String> = state.all("pods").map(|p| uid(p).to_owned()).collect();
    state.kubelet.running.retain(|pod, running| {
        if known.contains(pod) {
            return true;
        }
        running.ending.get_or_insert_with(Instant::now).elapsed() < Duration::from_secs(20)
    });
}
