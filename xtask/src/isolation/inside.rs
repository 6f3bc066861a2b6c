//! Access to a cluster's namespaces from outside: runs programs and forwards ports. It must never enter the namespaces of another process.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use super::anchor::Anchor;

/// Runs `work` on a thread that is inside the network namespace recorded in `dir` (and, for children it starts, inside
/// the mount and PID namespaces if `all`).
fn enter<T: Send + 'static>(dir: &Path, all: bool, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let anchor = Anchor::read(dir)?.with_context(|| format!("{} has no namespaces of its own", dir.display()))?;
    let space = |name: &str| File::open(format!("/proc/{}/ns/{name}", anchor.pid));
    let (net, mnt, pid) = (space("net")?, space("mnt")?, space("pid")?);
    // Checked after opening, so that the opened files belong to the recorded process and not to a later one with its PID.
    ensure!(anchor.is_alive(), "the cluster in {} is not running", dir.display());
    thread::spawn(move || {
        setns(net, CloneFlags::CLONE_NEWNET)?;
        if all {
            setns(pid, CloneFlags::CLONE_NEWPID)?;
            unshare(CloneFlags::CLONE_FS)?;
            setns(mnt, CloneFlags::CLONE_NEWNS)?;
        }
        work()
    })
    .join()
    .map_err(|_| anyhow!("a thread inside the namespaces panicked"))?
}

/// Starts `command` inside the namespaces recorded in `dir`, as a direct child of this process, so [`Child::kill`] kills the program itself.
/// It also dies with the cluster. Its working directory is `/` unless set.
///
/// # Errors
/// When the cluster is not running or the program cannot be started.
pub fn spawn_inside(dir: &Path, mut command: Command) -> Result<Child> {
    enter(dir, true, move || {
        let child = command.spawn();
        child.with_context(|| format!("start {} inside", command.get_program().display()))
    })
}

/// Runs a program inside to its end and returns what it printed.
///
/// # Errors
/// As [`spawn_inside`], and when it fails; the error contains its standard error.
pub fn run_inside<S: AsRef<OsStr>>(dir: &Path, program: &Path, arguments: &[S]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = spawn_inside(dir, command)?.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}: {}", program.display(), output.status, errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Forwards every connection accepted on `listener` (of the machine's network) to `target` inside, on threads that end
/// with this process.
///
/// # Errors
/// When the cluster is not running.
pub fn forward(dir: &Path, listener: TcpListener, target: SocketAddr) -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    let dir: PathBuf = dir.to_owned();
    thread::Builder::new().name("forward".into()).spawn(move || {
        let outcome = enter(&dir, false, move || {
            sender.send(()).ok();
            for connection in listener.incoming().flatten() {
                thread::spawn(move || {
                    // A refused connection is passed on as a closed one.
                    TcpStream::connect(target).and_then(|inside| relay(&connection, &inside)).ok();
                });
            }
            Ok(())
        });
        if let Err(error) = outcome {
            tracing::warn!("forwarding to {target} ended: {error:#}");
        }
    })?;
    receiver.recv().context("the cluster's namespaces cannot be entered")
}

/// Copies both directions until both sides have ended.
fn relay(outside: &TcpStream, inside: &TcpStream) -> io::Result<()> {
    outside.set_nodelay(true)?;
    inside.set_nodelay(true)?;
    let (mut outside_copy, mut inside_copy) = (outside.try_clone()?, inside.try_clone()?);
    let back = thread::spawn(move || {
        io::copy(&mut inside_copy, &mut outside_copy).ok();
        outside_copy.shutdown(Shutdown::Write).ok();
    });
    io::copy(&mut &*outside, &mut &*inside).ok();
    inside.shutdown(Shutdown::Write).ok();
    back.join().ok();
    Ok(())
}
