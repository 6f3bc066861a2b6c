//! Reports the status of a cluster. It must never change the cluster.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::Profile;
use super::folder::Folder;
use crate::control_plane::answers;
use crate::tools::Tool;

/// The status of a cluster.
#[derive(Clone, Debug)]
pub enum Status {
    /// There is no cluster with that name.
    Absent,
    /// Its folder exists, but none of its programs runs.
    Stopped {
        /// The cluster's folder.
        dir: PathBuf,
    },
    /// Running, but not everything answers (yet).
    NotReady {
        /// The cluster's folder.
        dir: PathBuf,
    },
    /// Everything answers.
    Ready {
        /// The cluster's folder.
        dir: PathBuf,
        /// Its components.
        profile: Profile,
        /// Credentials of a cluster admin.
        kubeconfig: PathBuf,
    },
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(formatter, "no such cluster"),
            Self::Stopped { dir } => write!(formatter, "stopped (logs: {}; start it again with `cluster up`)", dir.join("logs").display()),
            Self::NotReady { dir } => write!(formatter, "running, but the API server is not ready (logs: {})", dir.join("logs").display()),
            Self::Ready { dir, profile, kubeconfig } => {
                write!(formatter, "ready: {profile}\nkubeconfig {}\nlogs       {}", kubeconfig.display(), dir.join("logs").display())
            }
        }
    }
}

/// Checks the cluster with that name, or in that folder.
///
/// # Errors
/// When the folder cannot be read.
pub fn status(name: &str, dir: Option<&Path>) -> Result<Status> {
    let folder = Folder::new(name, dir)?;
    let Some(spec) = folder.read_spec()? else {
        return Ok(Status::Absent);
    };
    let dir = folder.path().to_owned();
    if !folder.is_running()? {
        return Ok(Status::Stopped { dir });
    }
    let kubeconfig = folder.kubeconfig();
    let ready = folder.is_ready()? && answers(spec.bins.path(Tool::Kubectl), &kubeconfig, &["get", "--raw=/readyz"]);
    Ok(if ready { Status::Ready { dir, profile: spec.profile, kubeconfig } } else { Status::NotReady { dir } })
}

/// Lines for a shell to evaluate: `KUBECONFIG`, and the folder of the cluster's own `kubectl` first on the `PATH`.
///
/// # Errors
/// When the cluster is not running.
pub fn environment(name: &str, dir: Option<&Path>) -> Result<String> {
    let folder = Folder::new(name, dir)?;
    ensure!(folder.is_ready()?, "no cluster is ready in {}: start it with `cluster up`", folder.path().display());
    let spec = folder.read_spec()?.context("no cluster here")?;
    let mut lines = format!("export KUBECONFIG={}\n", quoted(&folder.kubeconfig()));
    if let Some(programs) = spec.bins.path(Tool::Kubectl).parent() {
        writeln!(lines, "export PATH={}:\"$PATH\"", quoted(programs))?;
    }
    Ok(lines)
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_path_as_it_is() {
        assert_eq!(quoted(Path::new("/a b/c's")), r"'/a b/c'\''s'");
    }
}
