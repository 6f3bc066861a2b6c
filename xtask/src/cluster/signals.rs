//! The processes of a cluster's programs, and signals to them: for tests that kill or pause a part of the control plane, and for measurements.
//!
//! It must never signal a process that does not belong to this cluster: a process belongs to it only if it runs the cluster's own program
//! and has an argument with a path inside the cluster's folder.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
pub use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::{Cluster, Origin};
use crate::tools::Tool;

impl Cluster {
    /// Sends a signal to the one process of this cluster that runs `tool`.
    ///
    /// # Errors
    /// When the cluster was not started here, or there is no such process.
    pub fn signal(&self, tool: Tool, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid(tool)?), signal)?)
    }

    /// PID of the one process of this cluster that runs `tool`.
    ///
    /// # Errors
    /// As [`Cluster::signal`].
    pub fn pid(&self, tool: Tool) -> Result<i32> {
        let Origin::Ours { folder, .. } = &self.origin else {
            anyhow::bail!("only programs of a cluster that xtask started have a known PID")
        };
        let spec = folder.read_spec()?.context("the cluster is gone")?;
        let found = processes(spec.bins.path(tool), folder.path())?;
        ensure!(found.len() == 1, "{} processes of this cluster run {}", found.len(), tool.name());
        Ok(found[0])
    }
}

/// PIDs, in this PID namespace, of the processes that run `program` with an argument that names a path in `dir`.
fn processes(program: &Path, dir: &Path) -> Result<Vec<i32>> {
    let program = program.canonicalize()?;
    let inside = format!("{}/", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that ends meanwhile, or belongs to another user, cannot be read and does not belong to the cluster.
        let runs = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if runs && String::from_utf8_lossy(&arguments).contains(&inside) {
            found.push(pid);
        }
    }
    Ok(found)
}
