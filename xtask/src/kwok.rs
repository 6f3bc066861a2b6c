//! Simulated nodes that only report pods as running, for scale: no process, no root, thousands of pods on two cores.
//!
//! Their behaviour is defined in `xtask/kwok`: pods become Ready at once. When a pod with a finalizer is being deleted, its containers are
//! reported as terminated before the deletion finishes, as a kubelet does. Claims of the storage class [`STORAGE_CLASS`] get a volume
//! without storage.
//!
//! No real session can be written or archived here.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::control_plane::answers;
use crate::process::{Children, tied};
use crate::tools::{Bins, Tool};

/// The default storage class of a cluster with kwok nodes.
pub const STORAGE_CLASS: &str = "kwok";

const STAGES: [(&str, &str); 8] = [
    ("node-initialize", include_str!("../kwok/node-initialize.yaml")),
    ("node-heartbeat", include_str!("../kwok/node-heartbeat.yaml")),
    ("pod-ready", include_str!("../kwok/pod-ready.yaml")),
    ("pod-terminated", include_str!("../kwok/pod-terminated.yaml")),
    ("pod-delete", include_str!("../kwok/pod-delete.yaml")),
    ("pod-delete-finalizer", include_str!("../kwok/pod-delete-finalizer.yaml")),
    ("claim-provision", include_str!("../kwok/claim-provision.yaml")),
    ("volume-delete", include_str!("../kwok/volume-delete.yaml")),
];

const READY_DEADLINE: Duration = Duration::from_secs(60);

/// Everything [`start`] needs.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// The cluster's folder, absolute; `logs` exists already.
    pub dir: &'a Path,
    /// kwok holds a shared lock on this file while it runs.
    pub lock: &'a Path,
    /// The programs to run.
    pub bins: &'a Bins,
    /// Credentials for the API server.
    pub kubeconfig: &'a Path,
    /// The port of its own server, on loopback.
    pub port: u16,
    /// How many nodes to simulate.
    pub nodes: u32,
}

/// Starts kwok, creates the nodes and the storage class, and returns when every node is Ready.
///
/// # Errors
/// When it exits or the nodes are not Ready in time.
pub fn start(settings: &Settings<'_>, children: &mut Children, progress: &dyn Fn(&str)) -> Result<()> {
    progress(&format!("kwok and its {} node(s)", settings.nodes));
    let folder = settings.dir.join("kwok");
    fs::create_dir_all(&folder)?;
    let mut command = tied(settings.bins.path(Tool::Kwok), Some(settings.lock))?;
    command
        .arg("--kubeconfig")
        .arg(settings.kubeconfig)
        .args(["--manage-all-nodes=true", "--node-ip=127.0.0.1"])
        .arg(format!("--server-address=127.0.0.1:{}", settings.port))
        .arg("--cidr=198.51.100.0/24");
    for (name, stage) in STAGES {
        let path = folder.join(format!("{name}.yaml"));
        fs::write(&path, stage)?;
        command.arg("--config").arg(path);
    }
    apply(settings, &objects(settings.nodes).to_string())?;
    children.start(&settings.dir.join("logs"), "kwok", command)?;
    if settings.nodes == 0 {
        return Ok(());
    }
    let kubectl = settings.bins.path(Tool::Kubectl);
    children.wait_until("the nodes to be Ready", READY_DEADLINE, || {
        answers(kubectl, settings.kubeconfig, &["wait", "node", "--all", "--for=condition=Ready", "--timeout=5s"])
    })
}

/// Creates or updates objects.
fn apply(settings: &Settings<'_>, objects: &str) -> Result<()> {
    let mut child = Command::new(settings.bins.path(Tool::Kubectl))
        .arg("--kubeconfig")
        .arg(settings.kubeconfig)
        .args(["apply", "--server-side", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run kubectl")?;
    child.stdin.take().context("no standard input")?.write_all(objects.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "kubectl apply: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn objects(nodes: u32) -> serde_json::Value {
    let mut items = vec![json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
        },
        "provisioner": "computer-operator.dev/kwok",
        "volumeBindingMode": "Immediate",
        "reclaimPolicy": "Delete",
    })];
    items.extend((1..=nodes).map(|number| {
        let name = format!("kwok{number}");
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "type": "kwok" },
            },
        })
    }));
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}
