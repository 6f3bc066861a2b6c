//! Processes whose CPU time and peak memory are measured. The CPU time includes that of the children that a process has waited for. The peak
//! is what the kernel says a few milliseconds before the end, so of a process that ends at once it can be missing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::bench::proc;

/// How often the peak is read.
const POLL: Duration = Duration::from_millis(10);

/// What a process has used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Its name in the table.
    pub name: &'static str,
    /// User and system time.
    pub cpu: Duration,
    /// Most memory at one time, bytes.
    pub peak: u64,
}

/// A running process.
struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
    peak: u64,
}

/// Processes that run at the same time. They are killed if they still run when this is dropped.
pub struct Group {
    logs: PathBuf,
    running: Vec<Process>,
}

impl Drop for Group {
    fn drop(&mut self) {
        for process in &mut self.running {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

impl Group {
    /// The standard error of each process goes to a file in this folder.
    pub fn new(logs: &Path) -> Self {
        Self { logs: logs.to_owned(), running: Vec::new() }
    }

    /// Starts a process.
    pub fn start(&mut self, name: &'static str, command: &mut Command) -> Result<&mut Child> {
        let log = self.logs.join(format!("{}.log", name.replace(' ', "-")));
        let child = command.stderr(File::create(&log)?).spawn().with_context(|| format!("start {name}"))?;
        self.running.push(Process { name, child, log, peak: 0 });
        let last = self.running.last_mut().context("the process")?;
        Ok(&mut last.child)
    }

    /// Reads the peaks of processes that still run.
    pub fn look(&mut self) {
        self.running.iter_mut().for_each(Process::look);
    }

    /// Waits for the end of all. Each must succeed.
    pub fn finish(mut self) -> Result<Vec<Usage>> {
        let mut used = Vec::new();
        while !self.running.is_empty() {
            let mut at = 0;
            while let Some(process) = self.running.get_mut(at) {
                process.look();
                match process.ended()? {
                    None => at += 1,
                    Some(usage) => {
                        used.push(usage);
                        let mut process = self.running.remove(at);
                        let status = process.child.wait()?;
                        ensure!(status.success(), "{} ended with {status}: {}", process.name, end_of(&process.log));
                    }
                }
            }
            thread::sleep(POLL);
        }
        Ok(used)
    }

    /// Ends the processes, which run until they are killed.
    pub fn stop(mut self) -> Result<Vec<Usage>> {
        let mut used = Vec::new();
        while let Some(process) = self.running.last_mut() {
            process.look();
            ensure!(process.ended()?.is_none(), "{} has ended: {}", process.name, end_of(&process.log));
            process.child.kill()?;
            let usage = loop {
                match process.ended()? {
                    Some(usage) => break usage,
                    None => thread::sleep(POLL),
                }
            };
            process.child.wait()?;
            used.push(usage);
            self.running.pop();
        }
        Ok(used)
    }
}

impl Process {
    fn proc(&self, file: &str) -> std::io::Result<String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))
    }

    fn look(&mut self) {
        let peak = self.proc("status").ok().and_then(|text| proc::memory(&text, proc::PEAK));
        self.peak = self.peak.max(peak.unwrap_or_default());
    }

    /// What it has used, if it has ended. Its times are there until it is waited for.
    fn ended(&self) -> Result<Option<Usage>> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if waitid(Id::Pid(pid), flags)? == WaitStatus::StillAlive {
            return Ok(None);
        }
        let cpu = proc::cpu(&self.proc("stat")?).with_context(|| format!("the times of {}", self.name))?;
        Ok(Some(Usage { name: self.name, cpu, peak: self.peak }))
    }
}

/// The last lines of a log.
fn end_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" / ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_process_and_its_children_are_measured() {
        let logs = tempfile::tempdir().unwrap();
        let mut group = Group::new(logs.path());
        // Both the shell and its child work, and the child has ended before the shell.
        let work = "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        group.start("shell", Command::new("sh").args(["-c", work]).stdin(Stdio::null())).unwrap();
        let used = group.finish().unwrap();
        assert!(used[0].cpu > Duration::ZERO && used[0].peak > 100_000, "{used:?}");
        let mut group = Group::new(logs.path());
        group.start("failing", Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap();
        let error = group.finish().unwrap_err().to_string();
        assert!(error.contains("failing") && error.contains("why"), "{error}");
    }

    #[test]
    fn a_server_is_measured_when_it_is_stopped() {
        let logs = tempfile::tempdir().unwrap();
        let mut group = Group::new(logs.path());
        group.start("server", Command::new("sleep").arg("600")).unwrap();
        let used = group.stop().unwrap();
        assert_eq!((used.len(), used[0].name), (1, "server"));
    }
}
