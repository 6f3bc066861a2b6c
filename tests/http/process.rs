//! The operator and the replicas of the API as real processes, which are killed when this process ends.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_computer-operator");

/// A running process that is killed with SIGKILL when dropped.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Starts `computer-operator` with these arguments and this kubeconfig.
    pub fn start(arguments: &[String], kubeconfig: &Path, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = xtask::process::tied(Path::new(PROGRAM), None)?;
        command.args(arguments).env("KUBECONFIG", kubeconfig).env("RUST_LOG", "info,computer_operator=debug");
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?))
    }

    /// Its current memory in bytes, without mapped files.
    pub fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
        Ok(1024 * line.trim().trim_end_matches(" kB").parse::<u64>()?)
    }

    /// Sends SIGTERM, like the kubelet.
    pub fn terminate(&self) -> Result<()> {
        let pid = Pid::from_raw(self.0.id().try_into()?).context("a process id")?;
        Ok(kill_process(pid, Signal::TERM)?)
    }

    /// Waits until it exits.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("the process did not exit within {} s", limit.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A local address that is currently free.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
