//! Operators as processes inside the cluster's namespaces, each with exactly the rights of its ServiceAccount.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use xtask::{image, isolation};

use crate::harness::{Bench, LONG, SYSTEM, eventually};

/// A running operator; killed with SIGKILL when dropped.
pub struct Operator(Child);

impl Drop for Operator {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Operator {
    /// SIGKILL: no drain, no release of the lease.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// SIGSTOP: it is paused without noticing.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT: it continues where it was.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.0), signal)?)
    }

    /// Whether it has exited by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }

    /// Waits until it exits.
    pub async fn ends(&mut self) -> Result<()> {
        let deadline = Instant::now() + LONG;
        while !self.has_ended()? {
            ensure!(Instant::now() < deadline, "it does not exit");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

/// Port of the HTTP API; the next port serves health.
const API_PORT: u16 = 9700;

/// How an operator is started.
pub struct Start {
    /// Port of its ingest endpoint; the next port serves health.
    pub port: u16,
    /// Image of its archive pods.
    pub image: String,
    /// Whether it works only while it holds the lease.
    pub lease: bool,
    /// Its store. `None`: the folder that [`Bench::store`] reads.
    pub store: Option<String>,
    pub environment: Vec<(String, String)>,
}

impl Start {
    /// The usual one.
    pub fn usual(port: u16) -> Self {
        Self { port, image: image::OPERATOR.to_owned(), lease: false, store: None, environment: Vec::new() }
    }

    /// One that works only while it holds the lease.
    pub fn leading(port: u16) -> Self {
        Self { lease: true, ..Self::usual(port) }
    }
}

impl Bench {
    /// Starts an operator. `port` is that of its ingest endpoint; the next port serves health. `image` is that of its archive pods.
    pub async fn operator(&self, port: u16, image: &str) -> Result<Operator> {
        self.start(&Start { image: image.to_owned(), ..Start::usual(port) }).await
    }

    /// One that works only while it holds the lease.
    pub async fn leading_operator(&self, port: u16) -> Result<Operator> {
        self.start(&Start::leading(port)).await
    }

    /// Starts an operator with these options.
    pub async fn start(&self, start: &Start) -> Result<Operator> {
        let Start { port, image, lease, .. } = start;
        let dir = self.cluster.dir().context("a cluster with a folder")?;
        let node = isolation::NODE_IPS[0];
        let kubeconfig = self.kubeconfig_of("computer-operator").await?;
        let log =
            File::options().create(true).append(true).open(std::env::temp_dir().join(format!("computer-operator-test-{port}.log")))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_computer-operator"));
        command
            .arg("run")
            .args(["--namespace", SYSTEM, "--image", image, &format!("--leader-election={lease}")])
            .args(["--store", &start.store.clone().unwrap_or_else(|| format!("file://{}", self.store_path().display()))])
            .envs(start.environment.iter().map(|(name, value)| (name, value)))
            .args(["--ingest-url", &format!("https://{node}:{port}"), "--ingest-bind", &format!("0.0.0.0:{port}")])
            .args(["--metrics-bind", &format!("{node}:{}", port + 1), "--api-url", &Self::api_url()])
            .env("KUBECONFIG", &kubeconfig)
            .env("RUST_LOG", "info,computer_operator=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Ok(Operator(isolation::spawn_inside(dir, command)?))
    }

    /// The usual one.
    pub async fn usual_operator(&self, port: u16) -> Result<Operator> {
        self.operator(port, image::OPERATOR).await
    }

    /// Where machines reach the HTTP API of [`Bench::api`].
    pub fn api_url() -> String {
        format!("http://{}:{API_PORT}", isolation::NODE_IPS[0])
    }

    /// Starts the HTTP API; killed when dropped.
    pub async fn api(&self) -> Result<Operator> {
        let dir = self.cluster.dir().context("a cluster with a folder")?;
        let log = File::options().create(true).append(true).open(std::env::temp_dir().join("computer-operator-test-api.log"))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_computer-operator"));
        command
            .args(["api", "--namespace", SYSTEM, "--bind", &format!("0.0.0.0:{API_PORT}")])
            .args(["--metrics-bind", &format!("{}:{}", isolation::NODE_IPS[0], API_PORT + 1)])
            .env("KUBECONFIG", self.kubeconfig_of("computer-operator-api").await?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Ok(Operator(isolation::spawn_inside(dir, command)?))
    }

    /// A kubeconfig with a token of a ServiceAccount of the operator, for use inside.
    async fn kubeconfig_of(&self, account: &str) -> Result<std::path::PathBuf> {
        let path = self.folder.path().join(format!("{account}.kubeconfig"));
        if path.exists() {
            return Ok(path);
        }
        let token = eventually(&format!("a token of {account}"), Duration::from_secs(30), || async {
            self.kubectl(&["create", "token", account, "-n", SYSTEM, "--duration=6h"], "").await.map(Some)
        })
        .await?;
        let admin = kube::config::Kubeconfig::read_from(self.cluster.kubeconfig())?;
        let mut cluster = serde_json::to_value(&admin.clusters[0])?;
        cluster["cluster"]["server"] = json!(format!("https://{}:6443", isolation::NODE_IPS[0]));
        let name = cluster["name"].clone();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "clusters": [cluster], "current-context": "operator",
            "users": [{"name": "operator", "user": {"token": token.trim()}}],
            "contexts": [{"name": "operator", "context": {"cluster": name, "user": "operator"}}],
        });
        std::fs::write(&path, serde_json::to_vec(&config)?)?;
        Ok(path)
    }
}
