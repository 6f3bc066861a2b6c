//! The CSI driver on both nodes and its sidecars, as processes inside the cluster's namespaces. A test can stop a sidecar and start it again,
//! and make the driver refuse to detach.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::tools::{self, Bins, Tool};
use xtask::{isolation, node};

use crate::harness::{Bench, eventually};

/// Name of the driver.
pub const DRIVER: &str = "volumes.computer-operator.dev";
/// The sidecars, which call the driver of the first node.
const SIDECARS: [Tool; 3] = [Tool::CsiProvisioner, Tool::CsiAttacher, Tool::CsiResizer];
/// How long the kubelets may take to register the driver.
const START: Duration = Duration::from_secs(60);

/// A process; killed with SIGKILL when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Storage {
    bins: Bins,
    /// The cluster's folder.
    dir: PathBuf,
    sidecars: Mutex<BTreeMap<Tool, Process>>,
    _nodes: Vec<Process>,
}

impl Storage {
    /// Starts everything, and returns when both nodes have registered the driver.
    pub async fn up(bench: &Bench) -> Result<Self> {
        let wanted = [&[Tool::CsiDriver], &SIDECARS[..]].concat();
        let bins = tokio::task::spawn_blocking(move || tools::ensure(&wanted)).await??;
        let dir = bench.cluster.dir().context("a cluster with a folder")?.to_owned();
        let nodes = node::NAMES.iter().map(|name| driver(&bins, &dir, name)).collect::<Result<_>>()?;
        let storage = Self { bins, dir, sidecars: Mutex::default(), _nodes: nodes };
        bench.kubectl(&["apply", "-f", "-"], &objects().to_string()).await?;
        for name in node::NAMES {
            eventually(&format!("{name} has registered the driver"), START, || async {
                let drivers = bench.kubectl(&["get", "csinode", name, "-o", "jsonpath={.spec.drivers[*].name}"], "").await?;
                ensure!(drivers == DRIVER, "its drivers: {drivers:?}");
                Ok(Some(()))
            })
            .await?;
        }
        SIDECARS.iter().try_for_each(|tool| storage.start(*tool))?;
        Ok(storage)
    }

    fn volume(&self, name: &str) -> PathBuf {
        data(&self.dir).join("volumes").join(name)
    }

    /// Starts a sidecar.
    pub fn start(&self, tool: Tool) -> Result<()> {
        let mut command = Command::new(self.bins.path(tool));
        command.arg(format!("--csi-address={}", socket(node::NAMES[0])));
        command.arg(format!("--kubeconfig={}", self.dir.join("admin.kubeconfig").display())).arg("--v=4");
        // A test waits for the attempt after the one that was refused.
        command.args(["--retry-interval-start=500ms", "--retry-interval-max=4s"]);
        let process = spawn(&self.dir, tool.name(), command)?;
        self.sidecars.lock().unwrap().insert(tool, process);
        Ok(())
    }

    /// Kills a sidecar: as if its Deployment had no pod.
    pub fn stop(&self, tool: Tool) {
        self.sidecars.lock().unwrap().remove(&tool);
    }

    /// Makes every detach fail with this message, as the API of a cloud may, or lets it work again.
    pub fn refuse_to_detach(&self, why: Option<&str>) -> Result<()> {
        let path = data(&self.dir).join("refuse-detach");
        match why {
            Some(why) => fs::write(path, why)?,
            None => fs::remove_file(path)?,
        }
        Ok(())
    }

    /// What a pod would see of a volume, wherever it is attached.
    pub fn home(&self, volume: &str) -> PathBuf {
        self.volume(volume).join("home")
    }

    /// Whether the driver has the volume.
    pub fn has(&self, volume: &str) -> bool {
        self.volume(volume).exists()
    }

    /// Removes a volume that Kubernetes does not know any more.
    pub fn remove(&self, volume: &str) -> Result<()> {
        Ok(fs::remove_dir_all(self.volume(volume))?)
    }

    /// Volumes that the driver still has.
    pub fn volumes(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(data(&self.dir).join("volumes"))?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// The size of a volume in bytes.
    pub fn size(&self, volume: &str) -> Result<String> {
        Ok(fs::read_to_string(self.volume(volume).join("size"))?)
    }

    /// The node that the driver has attached a volume to.
    pub fn attached(&self, volume: &str) -> Option<String> {
        fs::read_to_string(self.volume(volume).join("attached")).ok()
    }

    /// The calls in a wrong order that the driver has refused.
    pub fn violations(&self) -> String {
        fs::read_to_string(data(&self.dir).join("violations")).unwrap_or_default()
    }

    /// What the driver has done to a volume: the controller's successful calls in their order, an attachment with its node. A repeated call
    /// counts once.
    pub fn history(&self, volume: &str) -> Result<Vec<String>> {
        let log = fs::read_to_string(log(&self.dir, &driver_log(node::NAMES[0])))?;
        let of_volume = log.lines().filter(|line| line.contains(volume) && line.trim_end().ends_with("<nil>"));
        let mut done: Vec<String> = of_volume.filter_map(call).collect();
        done.dedup();
        Ok(done)
    }
}

/// The folder that all nodes share.
fn data(dir: &Path) -> PathBuf {
    dir.join("csi")
}

fn log(dir: &Path, name: &str) -> PathBuf {
    dir.join("logs").join(format!("{name}.log"))
}

fn driver_log(node: &str) -> String {
    format!("csi-driver-{node}")
}

/// Starts a program inside, with its output appended to its log.
fn spawn(dir: &Path, name: &str, mut command: Command) -> Result<Process> {
    let log = File::options().create(true).append(true).open(log(dir, name))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(Process(isolation::spawn_inside(dir, command)?))
}

/// Starts the driver of a node.
fn driver(bins: &Bins, dir: &Path, node: &str) -> Result<Process> {
    let mut command = Command::new(bins.path(Tool::CsiDriver));
    command.args(["-name", DRIVER, "-node", node, "-endpoint", &socket(node), "-data"]).arg(data(dir));
    command.arg("-registration").arg(dir.join(node).join("kubelet/plugins_registry/driver.sock"));
    spawn(dir, &driver_log(node), command)
}

/// Changes of a volume in a line of the driver's log.
fn call(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("/csi.v1.Controller/")?;
    let name = rest.split_whitespace().next()?;
    let node = node::NAMES.iter().find(|node| rest.contains(&format!("\"{node}\"")));
    match name {
        "CreateVolume" => Some("create".to_owned()),
        "ControllerPublishVolume" => Some(format!("attach {}", node?)),
        "ControllerUnpublishVolume" => Some(format!("detach {}", node?)),
        "ControllerExpandVolume" => Some("expand".to_owned()),
        "DeleteVolume" => Some("delete".to_owned()),
        _ => None,
    }
}

/// The socket of a node's driver, on the namespaces' own /run.
fn socket(node: &str) -> String {
    format!("/run/csi-{node}.sock")
}

/// A StorageClass of the driver. The provisioner replaces `${pvc.namespace}`.
fn class(name: &str, binding: &str, policy: &str, more: &[(&str, &str)]) -> Value {
    let usual = [("fstype", "ext4")];
    let parameters: BTreeMap<_, _> = usual.iter().chain(more).map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), *value)).collect();
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name}, "provisioner": DRIVER,
        "volumeBindingMode": binding, "reclaimPolicy": policy, "allowVolumeExpansion": true,
        "parameters": parameters,
    })
}

fn objects() -> Value {
    let secret = [("node-publish-secret-name", "mount"), ("node-publish-secret-namespace", "${pvc.namespace}")];
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER},
            "spec": {"attachRequired": true, "podInfoOnMount": false, "fsGroupPolicy": "File"},
        },
        class("late", "WaitForFirstConsumer", "Delete", &[]),
        class("early", "Immediate", "Delete", &[]),
        class("kept", "WaitForFirstConsumer", "Retain", &[]),
        class("with-secret", "WaitForFirstConsumer", "Delete", &secret),
        {
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass", "metadata": {"name": "fast"},
            "driverName": DRIVER, "parameters": {"iops": "4000"},
        },
    ]})
}
