//! The end of the demo by ctrl-c, SIGTERM or SIGHUP: the command that runs is stopped, and the demo removes what it made.
//!
//! It must never leave a command running, and never stop one that removes something.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

/// How often a running command is checked.
const POLL: Duration = Duration::from_millis(20);
/// How long a command may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// Whether the demo was asked to end.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Set by the first signal. From now on signals do not end this process; later ones only print a line.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        let (mut interrupt, mut terminate, mut hangup) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        let shared = stop.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
                let again = shared.0.swap(true, Ordering::SeqCst);
                eprintln!("\n{}", if again { "still removing what the demo made" } else { "interrupted: the demo removes what it made" });
            }
        });
        Ok(stop)
    }

    pub fn check(&self) -> Result<()> {
        ensure!(!self.0.load(Ordering::SeqCst), "interrupted");
        Ok(())
    }

    /// Runs a command to its end and returns what it printed. It gets a process group of its own, so that ctrl-c in a terminal does not reach it.
    pub fn output(&self, command: &mut Command, input: &[u8]) -> Result<Output> {
        self.check()?;
        let name = command.get_program().display().to_string();
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        let mut stdin = child.stdin.take().context("stdin")?;
        let (mut out, mut errors) = (child.stdout.take().context("stdout")?, child.stderr.take().context("stderr")?);
        thread::scope(|scope| {
            // A command that does not read its input may end earlier.
            scope.spawn(move || stdin.write_all(input).ok());
            let stdout = scope.spawn(move || {
                let mut bytes = Vec::new();
                out.read_to_end(&mut bytes).map(|_| bytes)
            });
            let stderr = scope.spawn(move || {
                let mut bytes = Vec::new();
                errors.read_to_end(&mut bytes).map(|_| bytes)
            });
            let status = self.wait(&mut child);
            let joined = |thread: thread::ScopedJoinHandle<'_, std::io::Result<Vec<u8>>>| {
                thread.join().map_err(|_| anyhow!("a reading thread panicked"))?.map_err(anyhow::Error::from)
            };
            let (stdout, stderr) = (joined(stdout), joined(stderr));
            Ok(Output { status: status?, stdout: stdout?, stderr: stderr? })
        })
    }

    /// As [`Stop::output`]; what it printed to standard output. Fails when the command fails.
    pub fn text(&self, command: &mut Command, input: &str) -> Result<String> {
        let output = self.output(command, input.as_bytes())?;
        let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let name = command.get_program().to_string_lossy();
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        ensure!(output.status.success(), "{} {}: {out}{}", name.rsplit('/').next().unwrap_or_default(), arguments.join(" "), errors.trim());
        Ok(out.into_owned())
    }

    fn wait(&self, child: &mut Child) -> Result<ExitStatus> {
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if self.check().is_err() {
                end(child)?;
                bail!("interrupted");
            }
            thread::sleep(POLL);
        }
    }
}

/// Ends a command with everything that it started: by SIGTERM, which Helm records in the release, or by SIGKILL.
fn end(child: &mut Child) -> Result<()> {
    let group = Pid::from_raw(child.id().try_into()?);
    killpg(group, Signal::SIGTERM).ok();
    let deadline = Instant::now() + GRACE;
    while child.try_wait()?.is_none() && Instant::now() < deadline {
        thread::sleep(POLL);
    }
    killpg(group, Signal::SIGKILL).ok();
    child.wait()?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_commands_output_and_failure_are_reported() {
        let stop = Stop::default();
        assert_eq!(stop.text(&mut Command::new("cat"), "hello").unwrap(), "hello");
        let error = stop.text(Command::new("sh").args(["-c", "echo no >&2; exit 3"]), "").unwrap_err().to_string();
        assert!(error.ends_with("no"), "{error}");
    }

    #[test]
    fn an_interrupt_ends_the_running_command_and_starts_no_other() {
        let stop = Stop::default();
        let other = stop.clone();
        let (sender, receiver) = std::sync::mpsc::channel();
        let running = thread::spawn(move || {
            sender.send(()).unwrap();
            other.text(Command::new("sh").args(["-c", "sleep 600; true"]), "").unwrap_err().to_string()
        });
        receiver.recv().unwrap();
        let began = Instant::now();
        stop.0.store(true, Ordering::SeqCst);
        assert_eq!(running.join().unwrap(), "interrupted");
        assert!(began.elapsed() < Duration::from_secs(60));
        assert!(stop.text(&mut Command::new("true"), "").is_err());
    }
}
