//! Signals to a program of a cluster: for tests that kill or pause a part of the control plane.
//!
//! It must never reach a process that is not this cluster's: one counts only if it runs the very program of the cluster and was
//! started with a path inside the cluster's folder.

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
    /// When the cluster is not ours, or there is no such process.
    pub fn signal(&self, tool: Tool, signal: Signal) -> Result<()> {
        let Origin::Ours { folder, .. } = &self.origin else { anyhow::bail!("only programs of a cluster of ours are signalled") };
        let spec = folder.read_spec()?.context("the cluster is gone")?;
        let found = processes(spec.bins.path(tool), folder.path())?;
        ensure!(found.len() == 1, "{} processes of this cluster run {}", found.len(), tool.name());
        Ok(kill(Pid::from_raw(found[0]), signal)?)
    }
}

/// PIDs, as seen from here, of the processes that run `program` with an argument that names a path in `dir`.
fn processes(program: &Path, dir: &Path) -> Result<Vec<i32>> {
    let program = program.canonicalize()?;
    let inside = format!("{}/", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ends meanwhile, or belongs to somebody else, cannot be read and is not ours.
        let runs = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if runs && String::from_utf8_lossy(&arguments).contains(&inside) {
            found.push(pid);
        }
    }
    Ok(found)
}
