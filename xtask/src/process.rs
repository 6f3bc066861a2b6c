//! Programs that cannot outlive their starter. Each is started through this program (`tied`), which sets `PR_SET_PDEATHSIG`, takes a shared
//! lock on the cluster's file, and then executes the program.
//!
//! It must never signal a process that it did not start.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;

/// First argument of this program when it must execute another one; `main` passes the rest to [`become_program`].
pub const TIED_ARGUMENT: &str = "tied";

/// The argument that means "no lock".
const NO_LOCK: &str = "-";

/// How often a condition is checked.
const POLL: Duration = Duration::from_millis(100);

/// The `xtask` program: this one, or, in a test, the one that cargo built next to it.
///
/// # Errors
/// When a test runs and `xtask` has not been built.
pub fn own_program() -> Result<PathBuf> {
    let current = std::env::current_exe()?;
    if current.file_name().is_some_and(|name| name == "xtask") {
        return Ok(current);
    }
    // target/PROFILE/deps/TEST-HASH, next to target/PROFILE/xtask.
    current
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("xtask"))
        .find(|path| path.is_file())
        .context("the xtask program is not built: run `cargo build --package xtask` first")
}

/// A command for `program` that dies with the thread that starts it. While it runs, it holds a shared lock on `lock`.
///
/// # Errors
/// As [`own_program`].
pub fn tied(program: &Path, lock: Option<&Path>) -> Result<Command> {
    let mut command = Command::new(own_program()?);
    command.arg(TIED_ARGUMENT).arg(std::process::id().to_string()).arg(lock.unwrap_or(Path::new(NO_LOCK))).arg(program);
    Ok(command)
}

/// The other half of [`tied`]. `arguments` are those after [`TIED_ARGUMENT`]. Returns only with an error.
///
/// # Errors
/// When the starter has already exited or the program cannot be started.
pub fn become_program(arguments: &[OsString]) -> Result<u8> {
    let [starter, lock, program, rest @ ..] = arguments else { bail!("{TIED_ARGUMENT} is for internal use") };
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // Did the starter die before the line above took effect?
    ensure!(
        std::os::unix::process::parent_id().to_string().as_str() == starter,
        "the process that started {} has exited",
        program.display()
    );
    if lock != NO_LOCK {
        let file = File::open(lock).with_context(|| format!("open {}", lock.display()))?;
        file.lock_shared()?;
        // The lock belongs to the open file, which the program inherits; the kernel releases it when the program ends.
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
        std::mem::forget(file);
    }
    let error = Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("start {}", program.display()))
}

/// Running programs with their names.
#[derive(Debug, Default)]
pub struct Children {
    /// The programs, in the order in which they were started.
    pub running: Vec<(String, Child)>,
    /// The commands of [`Children::start`], by name.
    commands: HashMap<String, Command>,
}

impl Children {
    /// Starts `command` with its output in `logs/NAME.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, logs: &Path, name: &str, mut command: Command) -> Result<()> {
        let log = File::create(logs.join(format!("{name}.log")))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().with_context(|| format!("start {name}"))?;
        self.running.push((name.to_owned(), child));
        self.commands.insert(name.to_owned(), command);
        Ok(())
    }

    /// Restarts killed programs with the same command and log. A program that exited by itself is not restarted.
    ///
    /// # Errors
    /// When a program cannot be asked or started.
    pub fn revive(&mut self) -> Result<()> {
        for (name, child) in &mut self.running {
            let Some(status) = child.try_wait()? else { continue };
            let Some(command) = self.commands.get_mut(name).filter(|_| status.signal().is_some()) else { continue };
            tracing::info!("{name} was killed ({status}): restarting");
            *child = command.spawn().with_context(|| format!("restart {name}"))?;
        }
        Ok(())
    }

    /// Name and status of a program that has exited by itself, if any.
    ///
    /// # Errors
    /// When a program cannot be asked.
    pub fn ended(&mut self) -> Result<Option<String>> {
        for (name, child) in &mut self.running {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(format!("{name} ended ({status}): see logs/{name}.log")));
            }
        }
        Ok(None)
    }

    /// Waits until the condition is true.
    ///
    /// # Errors
    /// When a program has ended meanwhile or `limit` has passed.
    pub fn wait_until(&mut self, what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !done() {
            if let Some(ended) = self.ended()? {
                bail!("waiting for {what}: {ended}");
            }
            ensure!(Instant::now() < deadline, "{what}: not within {} s", limit.as_secs());
            thread::sleep(POLL);
        }
        Ok(())
    }
}
