//! One started program of the project, which serves `/readyz` and `/metrics`.
//!
//! It must not outlive its owner: dropping it kills it.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process;

/// How long a program may take to end: longer than the operator waits for its running work.
const ENDS: Duration = Duration::from_secs(60);

/// A running program.
#[derive(Debug)]
pub struct Running {
    child: Child,
    http: reqwest::Client,
    /// Where its metrics are.
    pub metrics: String,
    /// When it was started.
    pub since: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts a program with the rights of a kubeconfig. It appends to its log.
    pub fn start(program: &Path, kubeconfig: &Path, log: &Path, arguments: &[String], metrics: String) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = process::tied(program, None)?;
        command.args(arguments).env("KUBECONFIG", kubeconfig).env("RUST_LOG", "info");
        let since = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        Ok(Self { child, http: reqwest::Client::new(), metrics, since })
    }

    /// Its process.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.child.id().try_into()?)
    }

    /// Whether `/readyz` answers with a success.
    pub async fn is_ready(&self) -> Result<bool> {
        Ok(self.http.get(format!("{}/readyz", self.metrics)).timeout(Duration::from_secs(5)).send().await?.status().is_success())
    }

    /// The text of its metrics.
    pub async fn figures(&self) -> Result<String> {
        let answer = self.http.get(format!("{}/metrics", self.metrics)).timeout(Duration::from_secs(30)).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// Sends a signal and waits until the process has ended.
    pub async fn stop(mut self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()?), signal).context("send a signal")?;
        let deadline = Instant::now() + ENDS;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("the program has not ended {} s after {signal}", ENDS.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}
