//! Real clusters for the demo, the tests and developers: started in the background, found by name, and removed without a trace.
//!
//! Each cluster has one folder. Nothing outside that folder, the cluster's own namespaces and its cgroups may be changed, and never the
//! machine's network.

mod external;
mod folder;
mod signals;
mod status;
mod supervisor;

use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::tools::{self, Tool};
use crate::{image, node};
use folder::{Folder, Spec};

pub use signals::Signal;
pub use status::{Status, environment, status};
pub use supervisor::{inside, supervise};

/// Subcommand of the supervisor.
pub const SUPERVISE: &str = "supervise";
/// Subcommand of the supervisor inside a cluster's namespaces.
pub const INSIDE: &str = "supervise-inside";

/// The components of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    /// etcd, API server, controller manager, scheduler; no node, so no pod ever runs. Needs no root.
    ControlPlane,
    /// The same, with one or two real nodes. Needs root.
    Node {
        /// How many.
        count: u8,
    },
    /// The same as [`Profile::ControlPlane`], with simulated nodes that only report pods as running. Needs no root.
    Kwok {
        /// How many.
        nodes: u32,
    },
}

impl fmt::Display for Profile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ControlPlane => write!(formatter, "control plane without nodes"),
            Self::Node { count } => write!(formatter, "{count} real node(s)"),
            Self::Kwok { nodes } => write!(formatter, "{nodes} kwok node(s)"),
        }
    }
}

impl Profile {
    /// The programs it needs, in the order of building.
    pub fn tools(self) -> Vec<Tool> {
        let mut tools = vec![Tool::Etcd, Tool::Apiserver, Tool::ControllerManager, Tool::Kubectl, Tool::Scheduler];
        match self {
            Self::ControlPlane => {}
            Self::Node { .. } => tools.extend([Tool::Kubelet, Tool::KubeProxy, Tool::LocalPath]),
            Self::Kwok { .. } => tools.push(Tool::Kwok),
        }
        tools
    }
}

/// How to start a cluster, beside its name and profile.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Its folder. Default: a folder in the cache with its name. It must be empty or a cluster's.
    pub dir: Option<PathBuf>,
    /// The audit log: the API server writes one line for each request (level `Metadata`).
    pub audit_log: Option<PathBuf>,
    /// Remove the cluster and its folder when the returned [`Cluster`] is dropped or this process ends in any way. Otherwise the cluster
    /// keeps running in the background. It never stops a cluster that was already running.
    pub bound: bool,
    /// Restart killed programs of the control plane, as a node's kubelet does: for tests that kill them.
    pub revive: bool,
    /// Further arguments of the controller manager, for measurements with other limits of its client.
    pub controller_manager: Vec<String>,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    kubeconfig: PathBuf,
    origin: Origin,
}

/// The origin of a cluster.
#[derive(Debug)]
enum Origin {
    Ours {
        folder: Folder,
        /// A bound cluster runs while this is open.
        _hold: Option<ChildStdin>,
    },
    /// An existing cluster; the copy of its credentials is removed with the folder.
    Existing { _own: tempfile::TempDir },
}

impl Cluster {
    /// Starts the cluster in the background, or finds the running one with that name.
    ///
    /// # Errors
    /// When it cannot be started: the message says what is missing; its folder and logs stay until the next start or
    /// [`Cluster::down`]. When the running one has another profile.
    pub async fn up(name: &str, profile: Profile) -> Result<Self> {
        Self::up_with(name, profile, Options::default()).await
    }

    /// As [`Cluster::up`], with options.
    ///
    /// # Errors
    /// As [`Cluster::up`].
    pub async fn up_with(name: &str, profile: Profile, options: Options) -> Result<Self> {
        let name = name.to_owned();
        tokio::task::spawn_blocking(move || up(&name, profile, &options)).await?
    }

    fn ours(folder: Folder, hold: Option<ChildStdin>) -> Self {
        Self { kubeconfig: folder.kubeconfig(), origin: Origin::Ours { folder, _hold: hold } }
    }

    /// Uses an existing cluster, which is never stopped or configured. `context` defaults to the kubeconfig's current one.
    ///
    /// # Errors
    /// When there is no such context or the cluster does not answer.
    pub async fn existing(kubeconfig: &Path, context: Option<&str>) -> Result<Self> {
        let own = tempfile::tempdir()?;
        let path = own.path().join("kubeconfig");
        let version = external::copy(kubeconfig, context, &path).await?;
        eprintln!("using the cluster of {} ({version})", kubeconfig.display());
        Ok(Self { kubeconfig: path, origin: Origin::Existing { _own: own } })
    }

    /// Credentials of an administrator, as a file. In a cluster started here they have all rights.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The folder of a cluster started here; it contains `logs`.
    pub fn dir(&self) -> Option<&Path> {
        match &self.origin {
            Origin::Ours { folder, .. } => Some(folder.path()),
            Origin::Existing { .. } => None,
        }
    }

    /// A `kubectl` of the clusters' version; built first if necessary.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn kubectl(&self) -> Result<PathBuf> {
        Ok(tools::ensure(&[Tool::Kubectl])?.path(Tool::Kubectl).to_owned())
    }

    /// Loads an image archive into every real node.
    ///
    /// # Errors
    /// When the cluster was not started here, has no real node, or the archive is refused.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let dir = self.dir().context("images can only be loaded into a cluster that xtask started")?;
        node::import_image(dir, archive)
    }

    /// Stops the cluster and removes everything that belongs to it. An existing cluster is not changed.
    ///
    /// # Errors
    /// As [`down`].
    pub async fn down(self) -> Result<()> {
        if let Origin::Ours { folder, .. } = &self.origin {
            let folder = folder.clone();
            tokio::task::spawn_blocking(move || end(&folder)).await??;
        }
        Ok(())
    }
}

fn up(name: &str, profile: Profile, options: &Options) -> Result<Cluster> {
    if let Profile::Node { count } = profile {
        ensure!((1..=node::NAMES.len()).contains(&usize::from(count)), "one or two real nodes, not {count}");
    }
    let folder = Folder::new(name, options.dir.as_deref())?;
    let _lock = folder.lock()?;
    if let Some(spec) = folder.read_spec()?
        && folder.is_ready()?
    {
        return reuse(folder, &spec, profile, options);
    }
    let mut spec = prepare(name, profile, options).inspect_err(|_| {
        // Only if it is empty, as it is when the lock above has created it.
        std::fs::remove_dir(folder.path()).ok();
    })?;
    folder.stop()?;
    folder.clear()?;
    folder.write_spec(&spec)?;
    if let Profile::Node { .. } = profile {
        let images = folder.path().join("images");
        spec.images = vec![image::pause(&images)?, image::machine(&images)?];
        folder.write_spec(&spec)?;
    }
    eprintln!("cluster {name}: {profile}");
    let hold = start(&folder, options.bound)?;
    Ok(Cluster::ours(folder, hold))
}

/// Whether a cluster of that name is running here and was ready once.
///
/// # Errors
/// When its folder cannot be read.
pub fn is_up(name: &str) -> Result<bool> {
    Folder::new(name, None)?.is_ready()
}

fn reuse(folder: Folder, spec: &Spec, profile: Profile, options: &Options) -> Result<Cluster> {
    let dir = folder.path().display();
    let same = spec.revive == options.revive && spec.controller_manager == options.controller_manager;
    ensure!(same, "the cluster in {dir} is running with other options: stop it first (cluster down)");
    ensure!(spec.profile == profile, "the cluster in {dir} is running with {}: stop it first (cluster down)", spec.profile);
    let audit_log = audit_log(options)?;
    ensure!(
        audit_log.is_none() || audit_log == spec.audit_log,
        "the cluster in {dir} is running without that audit log: stop it first (cluster down)"
    );
    eprintln!("the cluster in {dir} is already running and is reused");
    Ok(Cluster::ours(folder, None))
}

fn audit_log(options: &Options) -> Result<Option<PathBuf>> {
    let absolute = |path: &PathBuf| std::path::absolute(path);
    Ok(options.audit_log.as_ref().map(absolute).transpose()?)
}

/// Checks all prerequisites of the machine before anything is started or removed.
fn prepare(name: &str, profile: Profile, options: &Options) -> Result<Spec> {
    if let Profile::Node { .. } = profile {
        if let Some(obstacle) = node::obstacle() {
            bail!("no real node can run here: {obstacle}. To start only a control plane: cluster up --profile control-plane");
        }
        node::packages::ensure_installed(&|line| eprintln!("{line}"))?;
        enough_disk(&tools::cache_folder()?)?;
    }
    Ok(Spec {
        name: name.to_owned(),
        profile,
        audit_log: audit_log(options)?,
        revive: options.revive,
        controller_manager: options.controller_manager.clone(),
        bins: tools::ensure(&profile.tools())?,
        images: Vec::new(),
    })
}

/// Minimum free disk space, in MiB: for the nodes' images and data, and for what the kubelet keeps free (`evictionHard` in `node/kubelet.rs`). With less, it removes
/// images, which cannot be pulled again because there is no registry; a node or pods would then never become ready.
const LEAST_FREE: u64 = 2048;

fn enough_disk(folder: &Path) -> Result<()> {
    let disk = nix::sys::statvfs::statvfs(folder)?;
    let free = disk.blocks_available() * disk.fragment_size() / (1024 * 1024);
    ensure!(free >= LEAST_FREE, "the disk of {} is nearly full ({free} MiB free): a node needs {LEAST_FREE} MiB", folder.display());
    Ok(())
}

/// Starts the supervisor and waits until everything answers. Returns the handle that keeps a bound cluster running.
fn start(folder: &Folder, bound: bool) -> Result<Option<ChildStdin>> {
    let mut child = supervisor::spawn(folder)?;
    let mut hold = child.stdin.take().context("no standard input")?;
    let output = child.stdout.take().context("no standard output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if let Some(reason) = line.strip_prefix(supervisor::FAILED) {
            // Unlike after the death of the starter, the logs must be kept.
            hold.write_all(&[supervisor::KEEP]).ok();
            child.wait()?;
            folder.stop()?;
            bail!("{reason} (in {})", folder.path().display());
        }
        if line == supervisor::READY {
            if !bound {
                hold.write_all(&[supervisor::KEEP])?;
            }
            reap(child);
            return Ok(bound.then_some(hold));
        }
        eprintln!("  {line}");
    }
    child.wait()?;
    folder.stop()?;
    bail!("the supervisor ended: see {}", folder.logs().join("supervisor.log").display())
}

/// Reaps the supervisor when it ends, so that it does not stay as a zombie of a long-lived caller.
fn reap(mut child: Child) {
    std::thread::spawn(move || child.wait());
}

/// Stops the cluster with that name, or in that folder, and removes everything that belongs to it. `false`: there was none.
///
/// # Errors
/// When a process outlives SIGKILL, or the folder is not a cluster's: then nothing is removed.
pub fn down(name: &str, dir: Option<&Path>) -> Result<bool> {
    end(&Folder::new(name, dir)?)
}

fn end(folder: &Folder) -> Result<bool> {
    if !folder.path().exists() {
        return Ok(false);
    }
    let _lock = folder.lock()?;
    folder.stop()?;
    folder.remove()?;
    Ok(true)
}
