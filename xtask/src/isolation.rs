//! Runs a whole cluster in separate network, mount and PID namespaces, and gives access to them.
//!
//! The namespaces belong to one process, PID 1 inside ([`init`]). When it dies, by any signal, the kernel kills every process inside and
//! removes every mount, bridge and nftables table with them, so one `SIGKILL` stops a cluster ([`Isolated::kill`], [`kill`]). PID 1 dies
//! with the process that called [`start`] (`PR_SET_PDEATHSIG`).
//!
//! It must never change the machine's own network, mounts or processes: only processes that are already inside make changes, and only the
//! namespaces of the recorded PID 1, while it is alive, are entered.

mod anchor;
mod inside;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use anchor::Anchor;
pub use inside::{forward, run_inside, spawn_inside};

/// First argument of this program when it must become PID 1 of new namespaces; `main` passes the rest to [`init`].
pub const INIT_ARGUMENT: &str = "isolation-init";

/// Addresses of the nodes, in order; they exist only inside a cluster's namespaces.
pub const NODE_IPS: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 129), Ipv4Addr::new(198, 51, 100, 130)];

/// Folders that container tools write to at fixed paths. Inside the namespaces, each is an empty in-memory file system.
pub const MASKED: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// The address of the first node. Pods connect to it for the API server and for programs started by [`spawn_inside`].
pub const fn node_ip() -> IpAddr {
    IpAddr::V4(NODE_IPS[0])
}

/// The namespaces a cluster gets.
fn new_spaces() -> CloneFlags {
    CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID
}

/// Checks whether this process may create namespaces, on a thread that ends at once.
///
/// # Errors
/// The kernel's refusal.
pub fn is_allowed() -> Result<()> {
    let tried = thread::spawn(|| unshare(new_spaces())).join();
    Ok(tried.map_err(|_| anyhow!("the trying thread panicked"))??)
}

/// Running namespaces, owned by the process that created them. Dropping it kills everything inside.
#[derive(Debug)]
pub struct Isolated {
    anchor: Anchor,
    waiter: Option<JoinHandle<io::Result<ExitStatus>>>,
}

impl Isolated {
    /// PID of the namespaces' PID 1 in this PID namespace.
    pub const fn pid(&self) -> i32 {
        self.anchor.pid
    }

    /// Whether everything inside has ended.
    pub fn has_ended(&self) -> bool {
        self.waiter.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until everything inside has ended.
    ///
    /// # Errors
    /// When PID 1 could not be started or waited for.
    pub fn wait(&mut self) -> Result<Option<ExitStatus>> {
        let Some(waiter) = self.waiter.take() else {
            return Ok(None);
        };
        let status = waiter.join().map_err(|_| anyhow!("the waiting thread panicked"))?;
        Ok(Some(status?))
    }

    /// Kills everything inside and waits until no process is left.
    ///
    /// # Errors
    /// As [`Isolated::wait`].
    pub fn kill(&mut self) -> Result<()> {
        if !self.has_ended() {
            signal::kill(Pid::from_raw(self.anchor.pid), Signal::SIGKILL).ok();
        }
        self.wait().map(drop)
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        self.kill().ok();
    }
}

/// Starts `program arguments...` in new namespaces, recorded in `dir`, its output in `log`.
///
/// # Errors
/// When not root, when namespaces are forbidden here, or when the program cannot be started.
pub fn start(dir: &Path, program: &Path, arguments: &[OsString], log: &File) -> Result<Isolated> {
    ensure!(nix::unistd::geteuid().is_root(), "a cluster with nodes needs root (namespaces, mounts, cgroups)");
    if let Some(running) = Anchor::read(dir)?.filter(|anchor| anchor.is_alive()) {
        bail!("{} is in use by PID {}", dir.display(), running.pid);
    }
    let mut command = Command::new(program);
    command.arg(INIT_ARGUMENT).arg(std::process::id().to_string()).arg(dir).args(arguments);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    // Ctrl-C in a terminal only signals the caller; if the caller dies, so does everything inside.
    command.process_group(0);
    let (sender, receiver) = mpsc::channel();
    // A separate thread, because the effects of unshare belong to the thread, and because PR_SET_PDEATHSIG refers to the parent *thread*: this
    // one lives as long as its child.
    let waiter = thread::Builder::new().name("namespaces".into()).spawn(move || {
        let spawned = unshare(new_spaces()).map_err(io::Error::from).and_then(|()| command.spawn());
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                let copy = io::Error::new(error.kind(), error.to_string());
                sender.send(Err(error)).ok();
                return Err(copy);
            }
        };
        sender.send(Ok(child.id())).ok();
        child.wait()
    })?;
    let pid = receiver.recv()?.context("make namespaces (unshare)")?;
    let anchor = Anchor::of(pid.try_into()?)?;
    let isolated = Isolated { anchor, waiter: Some(waiter) };
    anchor.write(dir)?;
    Ok(isolated)
}

/// Runs PID 1 inside: sets up the mounts, runs this program again with the remaining arguments, and reaps every orphan until that program
/// ends. `arguments` are those after [`INIT_ARGUMENT`].
///
/// # Errors
/// When its starter has already exited, or a mount or the program fails.
pub fn init(arguments: &[OsString]) -> Result<u8> {
    let [outer, dir, rest @ ..] = arguments else { bail!("{INIT_ARGUMENT} is for internal use") };
    ensure!(std::process::id() == 1, "{INIT_ARGUMENT} is for internal use: it must be PID 1");
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The machine's /proc is still mounted: did the parent die before the line above took effect?
    ensure!(Path::new("/proc").join(outer).exists(), "the process that started the cluster has exited");
    let program = std::env::current_exe()?;
    set_up_mounts(Path::new(dir))?;
    let child = Command::new(program).args(rest).stdin(Stdio::null()).spawn().context("start the supervisor")?;
    let supervisor = Pid::from_raw(child.id().try_into()?);
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == supervisor => {
                return Ok(u8::try_from(code).unwrap_or(1));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == supervisor => {
                bail!("the supervisor died of {signal}")
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes every mount private to these namespaces, shows their processes in /proc and hides [`MASKED`].
fn set_up_mounts(dir: &Path) -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("proc"), "/proc", Some("proc"), flags | MsFlags::MS_NOEXEC, none).context("mount /proc")?;
    for masked in MASKED {
        // A cluster's folder below one of them must stay visible.
        if Path::new(masked).is_dir() && !dir.starts_with(masked) {
            mount(Some("tmpfs"), masked, Some("tmpfs"), flags, Some("mode=755"))
                .with_context(|| format!("mount a file system over {masked}"))?;
        }
    }
    Ok(())
}

/// Whether the namespaces recorded in `dir` are alive.
pub fn is_running(dir: &Path) -> bool {
    matches!(Anchor::read(dir), Ok(Some(anchor)) if anchor.is_alive())
}

/// Kills everything in the namespaces recorded in `dir`, if any, and waits for its end (milliseconds; at most 10 s).
///
/// # Errors
/// When the record is unreadable or the processes outlive the signal.
pub fn kill(dir: &Path) -> Result<()> {
    let Some(anchor) = Anchor::read(dir)? else {
        return Ok(());
    };
    let space = fs::read_link(format!("/proc/{}/ns/pid", anchor.pid)).ok();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while anchor.is_alive() && !is_zombie(anchor.pid) {
        signal::kill(Pid::from_raw(anchor.pid), Signal::SIGKILL).ok();
        // PID 1 does not end before every process inside has been reaped. The parent of a process of spawn_inside may reap it late, or after this
        // call: then only zombies are left, which use no resources.
        if has_no_memory(anchor.pid) && space.as_ref().is_some_and(|space| !lives_in(space, anchor.pid)) {
            break;
        }
        ensure!(std::time::Instant::now() < deadline, "PID {} outlives SIGKILL", anchor.pid);
        thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(fs::remove_file(dir.join(anchor::RECORD))?)
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// Whether an ending process has already released its memory: then its command line is empty.
fn has_no_memory(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty())
}

/// Whether a process other than `except` runs in the PID namespace that `space` links to.
fn lives_in(space: &Path, except: i32) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != except)
        .any(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == space) && !is_zombie(pid))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::anchor::RECORD;
    use super::*;

    /// A record of a process that has ended and been reaped, in a folder of its own.
    fn dead_cluster() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let anchor = Anchor::of(child.id().try_into().unwrap()).unwrap();
        assert!(anchor.is_alive());
        anchor.write(dir.path()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        dir
    }

    #[test]
    fn a_process_that_reuses_the_pid_is_not_treated_as_the_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let own = Anchor::of(std::process::id().try_into().unwrap()).unwrap();
        Anchor { started_ticks: own.started_ticks + 1, ..own }.write(dir.path()).unwrap();
        assert!(!is_running(dir.path()));
        // It would kill this test if the start time were not compared.
        kill(dir.path()).unwrap();
    }

    #[test]
    fn a_cluster_that_has_ended_is_not_entered_and_its_record_is_removed() {
        let dir = dead_cluster();
        assert!(spawn_inside(dir.path(), Command::new("true")).is_err());
        kill(dir.path()).unwrap();
        assert!(!dir.path().join(RECORD).exists());
        kill(dir.path()).unwrap();
    }

    #[test]
    fn a_running_cluster_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        Anchor::of(child.id().try_into().unwrap()).unwrap().write(dir.path()).unwrap();
        assert!(is_running(dir.path()));
        kill(dir.path()).unwrap();
        assert!(!child.wait().unwrap().success());
    }
}
