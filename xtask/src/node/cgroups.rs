//! The cgroups of a cluster's pods: one folder per cluster, one below it per node, in every hierarchy.
//!
//! Two kubelets must not share one: each would remove the other's pods as orphans. Only cgroups outlive the namespaces, so [`remove`] is
//! called when a cluster is stopped. It must never remove a folder without the cluster's name; only empty ones can be removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

const ROOT: &str = "/sys/fs/cgroup";

/// How long the kernel may take to remove the last dead process from a cgroup.
const REMOVE_DEADLINE: Duration = Duration::from_secs(10);

fn cluster_folder(cluster: &str) -> String {
    format!("computer-operator-{cluster}")
}

/// Creates the cgroup of one node in every hierarchy and returns its path for the kubelet.
///
/// # Errors
/// When a hierarchy is not writable.
pub fn create(cluster: &str, node: &str) -> Result<String> {
    let folder = cluster_folder(cluster);
    for hierarchy in hierarchies()? {
        let mut path = hierarchy;
        for part in [folder.as_str(), node] {
            pass_controllers_on(&path);
            let parent = path.clone();
            path.push(part);
            fs::create_dir_all(&path).with_context(|| format!("make the cgroup {}", path.display()))?;
            fill_cpuset(&parent, &path)?;
        }
        pass_controllers_on(&path);
    }
    Ok(format!("/{folder}/{node}"))
}

/// Whether the hierarchies that a kubelet needs are mounted and writable.
///
/// # Errors
/// Says what is missing.
pub fn check() -> Result<()> {
    let hierarchies = hierarchies()?;
    ensure!(!hierarchies.is_empty(), "no hierarchy is mounted below {ROOT}");
    for path in hierarchies {
        nix::unistd::access(&path, nix::unistd::AccessFlags::W_OK).with_context(|| format!("{} is not writable", path.display()))?;
    }
    Ok(())
}

/// Removes a cluster's cgroups, deepest first. The cluster's processes must be dead.
///
/// # Errors
/// When a process is still in one of them after ten seconds.
pub fn remove(cluster: &str) -> Result<()> {
    let deadline = Instant::now() + REMOVE_DEADLINE;
    for hierarchy in hierarchies()? {
        let top = hierarchy.join(cluster_folder(cluster));
        while top.exists() {
            match remove_tree(&top) {
                Ok(()) => break,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("remove the cgroup {}", top.display()));
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
    Ok(())
}

/// The version 1 hierarchies, or the one of version 2.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("read {ROOT}"))? {
        let entry = entry?;
        // Links such as cpu,cpuacct lead to a hierarchy that is listed itself.
        if entry.file_type()?.is_dir() && entry.path().join("cgroup.procs").exists() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// A version 1 cpuset starts empty, and an empty one accepts no process.
fn fill_cpuset(parent: &Path, path: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = path.join(file);
        if own.exists() && fs::read_to_string(&own)?.trim().is_empty() && parent.join("cpuset.cpus").exists() {
            fs::write(&own, fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Version 2: children get only the controllers that the parent enables. The kubelet reports those that are missing.
fn pass_controllers_on(path: &Path) {
    if let Ok(controllers) = fs::read_to_string(path.join("cgroup.controllers")) {
        for controller in controllers.split_whitespace() {
            fs::write(path.join("cgroup.subtree_control"), format!("+{controller}")).ok();
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
