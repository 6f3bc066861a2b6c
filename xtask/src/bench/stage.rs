//! The measured system: a separate control plane, and the operator and, if it is measured, one server of the HTTP API as processes with the
//! rights of their `ServiceAccounts`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use computer_operator::resources::crds;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::running::Running;
use super::free_address;
use crate::cluster::{Cluster, Options, Profile};
use crate::tools::Tool;
use crate::{chart, image};

mod running;

const SYSTEM: &str = "computer-operator-system";
/// The namespace of the computers.
pub const TEAM: &str = "team";
const LIMIT: Duration = Duration::from_secs(300);

/// Which build of the program is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Build {
    /// As it is released.
    Release,
    /// As in the image of the demo and the tests: little optimized, quick to build.
    Image,
    /// As `cargo build` makes it, not optimized: for a quick look. Its own processor time and memory say nothing about a release.
    Dev,
}

impl Build {
    fn program(self, workspace: &Path) -> Result<PathBuf> {
        if self == Self::Image {
            return image::build_operator(workspace);
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--bin", "computer-operator"]).current_dir(workspace);
        let profile = match self {
            Self::Release => build.arg("--release"),
            // With this package and its features, so that nothing is compiled twice.
            _ => build.args(["--package", "computer-operator", "--package", "xtask", "--features", "computer-operator/guards-off"]),
        };
        ensure!(profile.status()?.success(), "the build failed");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), Into::into);
        Ok(target.join(if self == Self::Release { "release" } else { "debug" }).join("computer-operator"))
    }

    /// Its name in a document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Image => "image (opt-level 1)",
            Self::Dev => "dev (not optimized)",
        }
    }
}

/// What is started beside the operator.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Name of the cluster.
    pub name: &'static str,
    /// Its components.
    pub profile: Profile,
    /// Further arguments of the controller manager.
    pub controller_manager: Vec<String>,
    /// One server of the HTTP API.
    pub http_api: bool,
}

/// A server of the HTTP API.
#[derive(Clone, Debug)]
pub struct Served {
    /// Where it serves.
    pub url: String,
    /// Where its metrics are.
    pub metrics: String,
}

/// The running system.
pub struct Stage {
    /// The HTTP API, if it is measured.
    pub api: Option<Served>,
    /// Address of the API server.
    pub server: String,
    /// Its authority, PEM.
    pub authority: Vec<u8>,
    /// The operator's metrics.
    pub metrics: String,
    // The programs end before the cluster and its folder.
    running: Vec<Running>,
    program: PathBuf,
    kubectl: PathBuf,
    cluster: Cluster,
    folder: tempfile::TempDir,
}

async fn admin(cluster: &Cluster) -> Result<kube::Config> {
    let file = kube::config::Kubeconfig::read_from(cluster.kubeconfig())?;
    Ok(kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?)
}

/// Waits until the condition is true.
pub async fn until(what: &str, ask: impl AsyncFn() -> Result<bool>) -> Result<()> {
    until_every(Duration::from_millis(200), what, ask).await
}

/// The same, with the time between two checks.
pub async fn until_every(pause: Duration, what: &str, ask: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match ask().await {
            Ok(true) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.context(what.to_owned())),
            Ok(false) | Err(_) => {}
        }
        if Instant::now() > deadline {
            bail!("{what}: not within {} s", LIMIT.as_secs());
        }
        tokio::time::sleep(pause).await;
    }
}

impl Stage {
    /// Builds the program, and starts everything.
    pub async fn up(workspace: &'static Path, build: Build, setup: Setup) -> Result<Self> {
        let program = tokio::task::spawn_blocking(move || build.program(workspace)).await??;
        let folder = tempfile::tempdir()?;
        let dir = Some(folder.path().join("cluster"));
        let options = Options { dir, bound: true, controller_manager: setup.controller_manager, ..Options::default() };
        let cluster = Cluster::up_with(setup.name, setup.profile, options).await?;
        let config = admin(&cluster).await?;
        let authority = std::fs::read(folder.path().join("cluster/pki/ca.crt"))?;
        let mut stage = Self {
            api: None,
            server: config.cluster_url.to_string().trim_end_matches('/').to_owned(),
            authority,
            metrics: String::new(),
            running: Vec::new(),
            program,
            kubectl: cluster.kubectl()?,
            cluster,
            folder,
        };
        stage.install()?;
        let operator = stage.replica()?;
        stage.metrics.clone_from(&operator.metrics);
        until("the operator is ready", async || operator.is_ready().await).await?;
        stage.running.push(operator);
        if setup.http_api {
            let program = stage.program.clone();
            stage.api = Some(stage.beside(&program).await?);
        }
        Ok(stage)
    }

    /// A client with all rights.
    pub async fn client(&self) -> Result<kube::Client> {
        Ok(kube::Client::try_from(admin(&self.cluster).await?)?)
    }

    /// PID of a program of the cluster.
    pub fn pid(&self, tool: Tool) -> Result<i32> {
        self.cluster.pid(tool)
    }

    /// PID of the operator.
    pub fn operator(&self) -> Result<i32> {
        self.running.first().context("the operator has not been started")?.pid()
    }

    /// The operator that was started with everything else, to stop it before the stage ends.
    pub fn take_operator(&mut self) -> Result<Running> {
        ensure!(!self.running.is_empty(), "the operator has not been started");
        Ok(self.running.remove(0))
    }

    /// Starts another process of the operator, with the same store, and does not wait until it is ready.
    pub fn replica(&self) -> Result<Running> {
        let (ingest, metrics, store) = (free_address()?, free_address()?, self.folder.path().join("store"));
        let arguments = [
            "run".to_owned(),
            "--image=none:1".to_owned(),
            format!("--store=file://{}", store.display()),
            format!("--ingest-url=https://{ingest}"),
            format!("--ingest-bind={ingest}"),
            format!("--metrics-bind={metrics}"),
        ];
        self.spawn(&self.program, "computer-operator", &arguments, format!("http://{metrics}"))
    }

    /// The last lines of the operator's log.
    pub fn operator_log(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("computer-operator.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    fn install(&self) -> Result<()> {
        let crds = crds::files()?.into_iter().map(|(_, yaml)| yaml).collect::<Vec<_>>().join("\n---\n");
        self.kubectl(&["apply", "-f", "-"], &crds)?;
        self.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"], "")?;
        self.kubectl(&["create", "namespace", SYSTEM], "")?;
        self.kubectl(&["apply", "-f", "-"], &chart::without_programs(SYSTEM)?)?;
        let rules =
            json!([{"apiGroups": ["computer-operator.dev"], "resources": ["computers"], "verbs": ["get", "list", "create", "delete"]}]);
        let all: [Value; 4] = [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}}),
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "caller", "namespace": TEAM}}),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "caller", "namespace": TEAM}, "rules": rules}),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "caller", "namespace": TEAM},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "caller"},
                "subjects": [{"kind": "ServiceAccount", "name": "caller", "namespace": TEAM}],
            }),
        ];
        let all: Vec<String> = all.iter().map(Value::to_string).collect();
        self.kubectl(&["apply", "-f", "-"], &all.join("\n---\n")).map(drop)
    }

    /// Starts a server of the HTTP API of this program, beside the others.
    pub async fn beside(&mut self, program: &Path) -> Result<Served> {
        let (address, metrics) = (free_address()?, free_address()?);
        let api = ["api".to_owned(), format!("--bind={address}"), format!("--metrics-bind={metrics}")];
        let process = self.spawn(program, "computer-operator-api", &api, format!("http://{metrics}"))?;
        until("the HTTP API is ready", async || process.is_ready().await).await?;
        let served = Served { url: format!("http://{address}"), metrics: process.metrics.clone() };
        self.running.push(process);
        Ok(served)
    }

    /// Starts a program with the rights of this ServiceAccount.
    fn spawn(&self, program: &Path, account: &str, arguments: &[String], metrics: String) -> Result<Running> {
        let kubeconfig = self.kubeconfig(account)?;
        Running::start(program, &kubeconfig, &self.folder.path().join(format!("{account}.log")), arguments, metrics)
    }

    fn kubeconfig(&self, account: &str) -> Result<PathBuf> {
        let token = self.kubectl(&["create", "token", account, "-n", SYSTEM, "--duration=6h"], "")?;
        let admin = kube::config::Kubeconfig::read_from(self.cluster.kubeconfig())?;
        let cluster = serde_json::to_value(&admin.clusters[0])?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "clusters": [cluster], "current-context": "c",
            "users": [{"name": "u", "user": {"token": token.trim()}}],
            "contexts": [{"name": "c", "context": {"cluster": cluster["name"], "user": "u"}}],
        });
        let path = self.folder.path().join(format!("{account}.kubeconfig"));
        std::fs::write(&path, serde_json::to_vec(&config)?)?;
        Ok(path)
    }

    /// A token of the caller for this audience; without one, for the API server.
    pub fn token(&self, audience: Option<&str>) -> Result<String> {
        let audience = audience.map(|a| format!("--audience={a}"));
        let mut arguments = vec!["create", "token", "caller", "-n", TEAM, "--duration=2h"];
        arguments.extend(audience.as_deref());
        Ok(self.kubectl(&arguments, "")?.trim().to_owned())
    }

    /// Runs kubectl as an admin.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(&self.kubectl);
        command.args(arguments).env("KUBECONFIG", self.cluster.kubeconfig());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("stdin")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
