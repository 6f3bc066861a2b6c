//! Real nodes: containerd, kubelet, kube-proxy and a volume provisioner, started inside a cluster's namespaces.
//!
//! Everything here runs in the supervisor, after [`crate::isolation`] has put it into separate namespaces, and must never be called outside
//! them: it sets interfaces, routes and kernel parameters. Outside, it only leaves the cluster's folder and its cgroups
//! ([`cgroups::remove`]).

pub mod cgroups;
mod containerd;
mod kubelet;
mod network;
pub mod packages;
mod proxy;
mod storage;

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::isolation::NODE_IPS;
pub use network::set_up as set_up_network;
pub use storage::CLASS as STORAGE_CLASS;

/// Addresses of pods on all nodes; each node gets half.
pub const POD_RANGE: &str = "198.51.100.0/25";
/// Prefix length of one node's share of [`POD_RANGE`].
pub const POD_PREFIX: u8 = 26;
/// Names of the nodes, in order.
pub const NAMES: [&str; 2] = ["node1", "node2"];

const READY: &str = r#"{.status.conditions[?(@.type=="Ready")].status}"#;

/// How long one program may take to answer for the first time.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// The programs of a node that are built from Go modules.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Path of `kubelet`.
    pub kubelet: PathBuf,
    /// Path of `kube-proxy`.
    pub kube_proxy: PathBuf,
    /// Path of `kubectl`.
    pub kubectl: PathBuf,
    /// Path of `local-path-provisioner`.
    pub local_path_provisioner: PathBuf,
}

/// The credentials of one kubelet: its client credentials and its serving certificate.
#[derive(Clone, Debug)]
pub struct KubeletIdentity {
    /// Credentials of `system:node:NAME`, group `system:nodes`.
    pub kubeconfig: PathBuf,
    /// Serving certificate, valid for the node's address and name, and its key.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Everything [`start`] needs.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// Name of the cluster, for its cgroups.
    pub cluster: String,
    /// The cluster's folder, absolute.
    pub dir: PathBuf,
    /// The programs to run.
    pub programs: Programs,
    /// Certificate authority of the API server's clients.
    pub client_ca: PathBuf,
    /// Credentials of a cluster admin.
    pub admin_kubeconfig: PathBuf,
    /// Credentials of `system:kube-proxy`.
    pub proxy_kubeconfig: PathBuf,
    /// One or two.
    pub kubelets: Vec<KubeletIdentity>,
    /// Image archives that every node gets before it reports Ready.
    pub images: Vec<PathBuf>,
}

/// One node of the cluster. Its index determines everything that two nodes on one machine must not share.
#[derive(Clone, Debug)]
struct Node {
    index: u8,
    /// Folder of its own.
    dir: PathBuf,
    cgroup: String,
}

impl Node {
    fn name(&self) -> &'static str {
        NAMES[usize::from(self.index)]
    }

    fn ip(&self) -> Ipv4Addr {
        NODE_IPS[usize::from(self.index)]
    }

    fn pod_subnet(&self) -> String {
        format!("198.51.100.{}/{POD_PREFIX}", self.index * 64)
    }

    fn containerd_socket(&self) -> PathBuf {
        // On the namespaces' own /run, so that the path is short enough for a socket wherever the cluster's folder is.
        PathBuf::from(format!("/run/{}/containerd.sock", self.name()))
    }
}

/// The running programs of all nodes, with their names; they end with the namespaces.
#[derive(Debug)]
pub struct Running(pub Vec<(String, Child)>);

impl Running {
    /// Name and status of a program that has exited by itself, if any.
    ///
    /// # Errors
    /// When a program cannot be asked.
    pub fn ended(&mut self) -> Result<Option<String>> {
        for (name, child) in &mut self.0 {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(format!("{name}: {status}")));
            }
        }
        Ok(None)
    }
}

/// Why no node can run on this machine, as a message for the user, or `None`. Changes nothing.
pub fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("nodes need root (namespaces, mounts, cgroups)".into());
    }
    let missing = packages::missing();
    if !missing.is_empty() && !packages::can_install() {
        return Some(format!("these packages are missing: {}", missing.join(" ")));
    }
    if let Err(error) = crate::isolation::is_allowed() {
        return Some(format!("namespaces are not allowed here: {error:#}"));
    }
    cgroups::check().err().map(|error| format!("cgroups cannot be used: {error:#}"))
}

/// Starts the nodes and returns when each is Ready, the images are loaded and the storage class exists (about 15 s). `progress` gets the
/// condition that is waited for.
///
/// # Errors
/// When a program ends or does not answer in time; the message names its log.
pub fn start(nodes: &Nodes, progress: &dyn Fn(&str)) -> Result<Running> {
    ensure!((1..=NAMES.len()).contains(&nodes.kubelets.len()), "one or two nodes, not {}", nodes.kubelets.len());
    fs::create_dir_all(nodes.dir.join("logs"))?;
    let mut running = Running(Vec::new());
    let mut all = Vec::new();
    for (index, identity) in (0..).zip(&nodes.kubelets) {
        let name = NAMES[usize::from(index)];
        let cgroup = cgroups::create(&nodes.cluster, name)?;
        let node = Node { index, dir: nodes.dir.join(name), cgroup };
        progress(&format!("{name}: containerd and its images"));
        let mut containerd = containerd::start(&node, &nodes.dir)?;
        containerd::wait(&node, &mut containerd)?;
        for image in &nodes.images {
            containerd::import(&node, image)?;
        }
        running.0.push((format!("{name}-containerd"), containerd));
        let kubelet = kubelet::start(&node, nodes, identity)?;
        running.0.push((format!("{name}-kubelet"), kubelet));
        all.push(node);
    }
    running.0.push(("kube-proxy".into(), proxy::start(nodes)?));
    running.0.push(("local-path-provisioner".into(), storage::start(nodes, &all)?));
    for node in &all {
        progress(&format!("{}: waiting until it is Ready", node.name()));
        wait_for(node.name(), "True", READY, &["node", node.name()], nodes, &mut running)?;
    }
    // The controller manager creates it a moment after the namespace; until then pods are refused.
    wait_for("the default service account", "default", "{.metadata.name}", &["serviceaccount", "default"], nodes, &mut running)?;
    Ok(running)
}

/// Imports an image archive into every node of the cluster in `dir`, from outside or inside.
///
/// # Errors
/// When the cluster has no nodes or the archive is refused.
pub fn import_image(dir: &Path, archive: &Path) -> Result<()> {
    let mut found = false;
    for name in NAMES.iter().filter(|name| dir.join(name).is_dir()) {
        found = true;
        crate::isolation::run_inside(dir, Path::new("/usr/bin/ctr"), &containerd::import_arguments(name, archive))?;
    }
    ensure!(found, "the cluster in {} has no nodes", dir.display());
    Ok(())
}

/// Removes an image from every node of the cluster in `dir`: its name, and the name that containerd derives from its content. An image with that
/// name that no node has is not an error.
///
/// # Errors
/// When the cluster does not run.
pub fn remove_image(dir: &Path, reference: &str) -> Result<()> {
    for name in NAMES.iter().filter(|name| dir.join(name).is_dir()) {
        let ctr = |verb, what: &str| {
            crate::isolation::run_inside(dir, Path::new("/usr/bin/ctr"), &containerd::image_arguments(name, verb, what.as_ref()))
        };
        let Some(digest) = containerd::digest(&ctr("list", &format!("name=={reference}"))?, reference) else { continue };
        let named = ctr("list", &format!("target.digest=={digest}"))?;
        for other in containerd::names(&named).filter(|other| *other == reference || other.starts_with("sha256:")) {
            ctr("remove", other)?;
        }
    }
    Ok(())
}

/// Starts a program of the cluster with its output in `logs/NAME.log`.
fn daemon(dir: &Path, name: &str, command: &mut Command) -> Result<Child> {
    let log = File::create(dir.join("logs").join(format!("{name}.log")))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("start {name} ({})", command.get_program().to_string_lossy()))
}

/// Waits until the condition is true. Fails when a program has ended meanwhile or the deadline has passed.
fn wait_until(what: &str, programs: &mut [(&str, &mut Child)], mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + START_DEADLINE;
    while !done() {
        for (name, child) in &mut *programs {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("{name} ended ({status}) while waiting for {what}: see logs/{name}.log in the cluster's folder");
            }
        }
        ensure!(Instant::now() < deadline, "{what}: not within {} s", START_DEADLINE.as_secs());
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Waits until `field` of `object` (arguments of `kubectl get`) has the value `wanted`.
fn wait_for(what: &str, wanted: &str, field: &str, object: &[&str], nodes: &Nodes, running: &mut Running) -> Result<()> {
    let mut programs: Vec<_> = running.0.iter_mut().map(|(name, child)| (name.as_str(), child)).collect();
    wait_until(what, &mut programs, || {
        let output = kubectl(nodes).arg("get").args(object).arg("-o").arg(format!("jsonpath={field}")).output();
        output.is_ok_and(|output| output.stdout == wanted.as_bytes())
    })
}

fn kubectl(nodes: &Nodes) -> Command {
    let mut command = Command::new(&nodes.programs.kubectl);
    command.arg("--kubeconfig").arg(&nodes.admin_kubeconfig).stdin(Stdio::null());
    command
}
