//! The folder of one cluster: its description (`cluster.json`), a lock on the folder for a process that changes it, a lock that every program of
//! the cluster holds while it runs, and the removal of the cluster.
//!
//! It must never remove a folder that is not a cluster's.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Profile;
use crate::isolation;
use crate::node::cgroups;
use crate::tools::{self, Bins};

/// How long programs may take to die after SIGKILL.
const DEATH_DEADLINE: Duration = Duration::from_secs(20);

/// The description of a cluster; written when it is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spec {
    pub name: String,
    pub profile: Profile,
    pub audit_log: Option<PathBuf>,
    /// Killed programs of the control plane are restarted.
    #[serde(default)]
    pub revive: bool,
    /// Further arguments of the controller manager.
    #[serde(default)]
    pub controller_manager: Vec<String>,
    pub bins: Bins,
    /// Image archives that every real node gets.
    pub images: Vec<PathBuf>,
}

/// The folder of one cluster, absolute.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// `dir`, or the folder that the name has in the cache.
    pub fn new(name: &str, dir: Option<&Path>) -> Result<Self> {
        check_name(name)?;
        let path = match dir {
            Some(dir) => std::path::absolute(dir)?,
            None => tools::cache_folder()?.join("clusters").join(name),
        };
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The kubeconfig for processes of the machine itself.
    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// Every program of the cluster holds a shared lock on it; the supervisor's PID is written in it.
    pub fn running_file(&self) -> PathBuf {
        self.0.join("running")
    }

    /// Written when everything answers.
    pub fn ready_file(&self) -> PathBuf {
        self.0.join("ready")
    }

    fn spec_file(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    pub fn read_spec(&self) -> Result<Option<Spec>> {
        match fs::read(self.spec_file()) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes).with_context(|| format!("{} was written by another version", self.spec_file().display()))?,
            )),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", self.0.display())),
        }
    }

    pub fn write_spec(&self, spec: &Spec) -> Result<()> {
        // Written first, so that the rest of an interrupted start is recognized as a cluster's.
        fs::write(self.spec_file(), serde_json::to_vec_pretty(spec)?)?;
        fs::create_dir_all(self.logs())?;
        Ok(fs::write(self.running_file(), "")?)
    }

    /// Creates the folder, and prevents other processes from starting or stopping the cluster until the file is dropped.
    pub fn lock(&self) -> Result<File> {
        loop {
            fs::create_dir_all(&self.0).with_context(|| format!("make {}", self.0.display()))?;
            fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700))?;
            let file = File::open(&self.0)?;
            file.lock()?;
            // The previous holder of the lock may have removed the folder; then this lock is void.
            if fs::metadata(&self.0).is_ok_and(|now| Some(now.ino()) == file.metadata().ok().map(|m| m.ino())) {
                return Ok(file);
            }
        }
    }

    /// Whether the cluster's supervisor is alive. If it is dead, all other programs are dead or dying.
    pub fn is_running(&self) -> Result<bool> {
        let file = match File::open(self.running_file()) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        match file.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(self.supervisor().is_some()),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    /// The PID of the running supervisor. A process that reuses the PID is recognized by its arguments.
    fn supervisor(&self) -> Option<Pid> {
        let pid = fs::read_to_string(self.running_file()).ok()?.parse().ok()?;
        is_supervisor_of(pid, &self.0).then_some(Pid::from_raw(pid))
    }

    /// Whether the cluster is running and was ready once.
    pub fn is_ready(&self) -> Result<bool> {
        Ok(self.ready_file().exists() && self.is_running()?)
    }

    /// Marks the calling process as the cluster's supervisor for as long as the file is open.
    pub fn become_supervisor(&self) -> Result<File> {
        let file = OpenOptions::new().read(true).write(true).open(self.running_file())?;
        file.lock_shared()?;
        fs::write(self.running_file(), std::process::id().to_string())?;
        Ok(file)
    }

    /// Stops every program of the cluster and removes its cgroups. The folder's lock must be held.
    pub fn stop(&self) -> Result<()> {
        let Some(spec) = self.read_spec()? else {
            return Ok(());
        };
        let deadline = Instant::now() + DEATH_DEADLINE;
        while self.supervised()? {
            ensure!(Instant::now() < deadline, "programs of the cluster in {} outlive SIGKILL", self.0.display());
            thread::sleep(Duration::from_millis(20));
        }
        isolation::kill(&self.0)?;
        if let Profile::Node { .. } = spec.profile {
            cgroups::remove(&self.cgroup(&spec.name))?;
        }
        Ok(())
    }

    /// Whether a program of the cluster is alive outside its namespaces. Kills the supervisor; all programs die with it.
    fn supervised(&self) -> Result<bool> {
        let Ok(file) = File::open(self.running_file()) else {
            return Ok(false);
        };
        match file.try_lock() {
            Ok(()) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error.into()),
            Err(TryLockError::WouldBlock) => {}
        }
        if let Some(pid) = self.supervisor() {
            kill(pid, Signal::SIGKILL).ok();
        }
        Ok(true)
    }

    /// Removes the folder and its content, if it is a cluster's. No program of the cluster may be running.
    pub fn remove(&self) -> Result<()> {
        self.clear()?;
        Ok(fs::remove_dir(&self.0)?)
    }

    /// Removes the content of the folder, if it is a cluster's.
    pub fn clear(&self) -> Result<()> {
        let is_empty = fs::read_dir(&self.0)?.next().is_none();
        if !is_empty && !self.spec_file().exists() {
            bail!("{} is neither empty nor the folder of a cluster; it is not changed", self.0.display());
        }
        // The description is removed last, so that an interrupted removal can be repeated.
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path == self.spec_file() {
                continue;
            }
            if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                .with_context(|| format!("remove {}", path.display()))?;
        }
        fs::remove_file(self.spec_file()).ok();
        Ok(())
    }

    /// Name of the cluster's cgroups: clusters in two folders may have the same name.
    pub fn cgroup(&self, name: &str) -> String {
        let digest = Sha256::digest(self.0.as_os_str().as_encoded_bytes());
        format!("{name}-{}", hex::encode(&digest[..4]))
    }
}

fn is_supervisor_of(pid: i32, dir: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let arguments: Vec<_> = line.split(|byte| *byte == 0).collect();
    arguments.contains(&super::SUPERVISE.as_bytes()) && arguments.contains(&dir.as_os_str().as_encoded_bytes())
}

fn check_name(name: &str) -> Result<()> {
    let fits =
        (1..=32).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    ensure!(fits, "invalid cluster name {name:?}: use 1 to 32 of the characters a-z, 0-9 and -");
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn folder(dir: &Path) -> Folder {
        Folder::new("test", Some(dir)).unwrap()
    }

    #[test]
    fn a_foreign_folder_is_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("letter"), "dear").unwrap();
        assert!(folder(dir.path()).remove().is_err());
        assert!(dir.path().join("letter").exists());
    }

    #[test]
    fn a_clusters_folder_is_removed_completely() {
        let base = tempfile::tempdir().unwrap();
        let folder = folder(&base.path().join("cluster"));
        let _lock = folder.lock().unwrap();
        let spec = Spec {
            name: "test".into(),
            profile: Profile::ControlPlane,
            audit_log: None,
            revive: false,
            controller_manager: Vec::new(),
            bins: Bins::default(),
            images: Vec::new(),
        };
        folder.write_spec(&spec).unwrap();
        assert_eq!(folder.read_spec().unwrap(), Some(spec));
        assert!(!folder.is_running().unwrap());
        folder.stop().unwrap();
        folder.remove().unwrap();
        assert!(!folder.path().exists());
    }

    #[test]
    fn a_lock_that_no_supervisor_holds_is_not_a_running_cluster() {
        let base = tempfile::tempdir().unwrap();
        let folder = folder(base.path());
        fs::write(folder.running_file(), "").unwrap();
        let held = folder.become_supervisor().unwrap();
        // This test does not have the supervisor's arguments: it must not be treated as one or killed.
        assert!(!folder.is_running().unwrap());
        assert!(folder.supervised().unwrap());
        drop(held);
        assert!(!folder.supervised().unwrap());
    }

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for name in ["", "..", "a/b", "A", &"x".repeat(33)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        check_name("dev-2").unwrap();
    }
}
