//! A control plane with the CRDs and permissions of an installation, the operator, three replicas of the API (the third with TLS), and tenants. There are
//! no sleeps: everything waits for a condition with a deadline.

use std::collections::HashSet;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use computer_operator::credentials::ComputerId;
use computer_operator::resources::{Computer, ComputerRecord};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use xtask::chart;
use xtask::cluster::{Cluster, Options, Profile};

use crate::client::{Answer, Ask};
use crate::process::{Process, free_address};

pub const SYSTEM: &str = "computer-operator-system";
pub const AUDIENCE: &str = "computer-operator";
/// The audience of the API server itself.
pub const CLUSTER_AUDIENCE: &str = "https://kubernetes.default.svc";
/// Time limit of a single condition, sufficient for a busy machine with two cores.
pub const LONG: Duration = Duration::from_secs(60);

/// A replica of the API.
pub struct Replica {
    pub address: SocketAddr,
    pub base: String,
    /// Address of its metrics and readiness.
    pub metrics: SocketAddr,
    pub process: Process,
}

pub struct Bench {
    pub client: Client,
    pub http: reqwest::Client,
    pub replicas: Vec<Replica>,
    pub operator: Mutex<Option<Process>>,
    /// Addresses of the ingest endpoint and the metrics of the operator that was started last.
    pub operator_at: Mutex<Option<(SocketAddr, SocketAddr)>>,
    pub folder: tempfile::TempDir,
    kubectl: PathBuf,
    cluster: Cluster,
    logs: PathBuf,
    turn: AtomicUsize,
    count: AtomicUsize,
    tokens: Mutex<HashSet<String>>,
}

/// Retries until `ask` returns a value.
pub async fn eventually<T, F: Future<Output = Result<Option<T>>>>(what: &str, ask: impl Fn() -> F) -> Result<T> {
    let deadline = Instant::now() + LONG;
    let mut last = String::new();
    loop {
        match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) => last = format!(" (last: {error:#})"),
        }
        ensure!(Instant::now() < deadline, "{what}: not within {} s{last}", LONG.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Bench {
    /// Starts everything and waits until it is ready.
    pub async fn up() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let options = Options { dir: Some(folder.path().join("cluster")), bound: true, ..Options::default() };
        let cluster = Cluster::up_with("http", Profile::ControlPlane, options).await?;
        let file = kube::config::Kubeconfig::read_from(cluster.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?;
        let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("http-logs");
        let _ = std::fs::remove_dir_all(&logs);
        std::fs::create_dir_all(&logs)?;
        let certificate = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        std::fs::write(folder.path().join("tls.crt"), certificate.cert.pem())?;
        std::fs::write(folder.path().join("tls.key"), certificate.signing_key.serialize_pem())?;
        let trusted = reqwest::Certificate::from_pem(certificate.cert.pem().as_bytes())?;
        let mut bench = Self {
            client: Client::try_from(config)?,
            http: reqwest::Client::builder().tls_certs_merge([trusted]).timeout(LONG).build()?,
            replicas: Vec::new(),
            operator: Mutex::new(None),
            operator_at: Mutex::new(None),
            kubectl: cluster.kubectl()?,
            folder,
            cluster,
            logs,
            turn: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            tokens: Mutex::default(),
        };
        bench.install().await?;
        bench.start_operator().await?;
        let tls = |name: &str| bench.folder.path().join(name).display().to_string();
        let tls = [format!("--tls-cert={}", tls("tls.crt")), format!("--tls-key={}", tls("tls.key"))];
        let none: &[String] = &[];
        for (name, more) in [("api-0", none), ("api-1", none), ("api-2", &tls)] {
            let replica = bench.replica(name, more).await?;
            bench.replicas.push(replica);
        }
        Ok(bench)
    }

    async fn install(&self) -> Result<()> {
        let crds = computer_operator::resources::crds::files()?.into_iter().map(|(_, yaml)| yaml).collect::<Vec<_>>().join("\n---\n");
        self.kubectl(&["apply", "-f", "-"], &crds).await?;
        self.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"], "").await?;
        self.kubectl(&["create", "namespace", SYSTEM], "").await?;
        let chart = tokio::task::spawn_blocking(|| chart::without_programs(SYSTEM)).await??;
        self.kubectl(&["apply", "-f", "-"], &chart).await?;
        let computers: Api<Computer> = Api::all(self.client.clone());
        eventually("computers are served", || async { Ok(computers.list(&ListParams::default()).await.ok()) }).await?;
        let class = json!({
            "apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerClass",
            "metadata": {"name": "standard", "annotations": {"computer-operator.dev/is-default-class": "true"}},
            "spec": {"podTemplate": {"spec": {"containers": [{"name": "machine", "image": "none:1"}]}}, "storage": {"size": "1Gi"}},
        });
        self.kubectl(&["apply", "-f", "-"], &class.to_string()).await.map(drop)
    }

    /// Starts the operator, replacing a running one.
    pub async fn start_operator(&self) -> Result<()> {
        self.start_operator_on(&self.folder.path().join("store")).await
    }

    /// Starts the operator with its archives in this directory.
    pub async fn start_operator_on(&self, store: &Path) -> Result<()> {
        self.start(store, &[]).await
    }

    /// Starts the operator as the chart does when there is an HTTP API: its pods may read archives.
    pub async fn start_operator_for_api(&self) -> Result<()> {
        self.start(&self.folder.path().join("store"), &["--api-service-account=computer-operator-api".to_owned()]).await
    }

    async fn start(&self, store: &Path, more: &[String]) -> Result<()> {
        let kubeconfig = self.kubeconfig("computer-operator").await?;
        let (ingest, metrics) = (free_address()?, free_address()?);
        let mut arguments = vec![
            "run".to_owned(),
            "--image=none:1".to_owned(),
            "--leader-election=false".to_owned(),
            format!("--store=file://{}", store.display()),
            format!("--ingest-url=https://{ingest}"),
            format!("--ingest-bind={ingest}"),
            format!("--metrics-bind={metrics}"),
        ];
        arguments.extend_from_slice(more);
        let process = Process::start(&arguments, &kubeconfig, &self.logs.join("operator.log"))?;
        *self.operator.lock().unwrap() = Some(process);
        *self.operator_at.lock().unwrap() = Some((ingest, metrics));
        Ok(())
    }

    /// Starts a replica of the API and waits until it is ready.
    pub async fn replica(&self, name: &str, more: &[String]) -> Result<Replica> {
        let kubeconfig = self.kubeconfig("computer-operator-api").await?;
        let (address, metrics) = (free_address()?, free_address()?);
        let mut arguments = vec!["api".to_owned(), format!("--bind={address}"), format!("--metrics-bind={metrics}")];
        // With this audience the TokenReview accepts tokens for the API server itself, and the API must still reject them.
        arguments.push(format!("--cluster-audience={CLUSTER_AUDIENCE}"));
        arguments.extend_from_slice(more);
        let process = Process::start(&arguments, &kubeconfig, &self.logs.join(format!("{name}.log")))?;
        let scheme = if more.iter().any(|a| a.starts_with("--tls")) { "https" } else { "http" };
        eventually(&format!("{name} is ready"), || async {
            let answer = self.http.get(format!("http://{metrics}/readyz")).send().await?;
            Ok(answer.status().is_success().then_some(()))
        })
        .await?;
        Ok(Replica { address, base: format!("{scheme}://{address}"), metrics, process })
    }

    /// Writes a kubeconfig with a token of one of the operator's ServiceAccounts.
    async fn kubeconfig(&self, account: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(format!("{account}.kubeconfig"));
        if path.exists() {
            return Ok(path);
        }
        let token = eventually("a token", || async {
            self.kubectl(&["create", "token", account, "-n", SYSTEM, "--duration=6h"], "").await.map(Some)
        })
        .await?;
        self.tokens.lock().unwrap().insert(token.trim().to_owned());
        let admin = kube::config::Kubeconfig::read_from(self.cluster.kubeconfig())?;
        let cluster = serde_json::to_value(&admin.clusters[0])?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "clusters": [cluster], "current-context": "c",
            "users": [{"name": "u", "user": {"token": token.trim()}}],
            "contexts": [{"name": "c", "context": {"cluster": cluster["name"], "user": "u"}}],
        });
        std::fs::write(&path, serde_json::to_vec(&config)?)?;
        Ok(path)
    }

    pub async fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = tokio::process::Command::new(&self.kubectl);
        command.args(arguments).env("KUBECONFIG", self.cluster.kubeconfig()).kill_on_drop(true);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("stdin")?.write_all(input.as_bytes()).await?;
        let output = child.wait_with_output().await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Applies objects.
    pub async fn apply(&self, objects: &[Value]) -> Result<()> {
        let all: Vec<String> = objects.iter().map(Value::to_string).collect();
        self.kubectl(&["apply", "-f", "-"], &all.join("\n---\n")).await.map(drop)
    }

    /// Sends to the replicas in turn, because any replica can serve any request.
    pub async fn send(&self, ask: Ask) -> Result<Answer> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.replicas.len();
        self.send_to(turn, ask).await
    }

    /// Sends to one replica.
    pub async fn send_to(&self, replica: usize, ask: Ask) -> Result<Answer> {
        self.note(ask.token.as_deref());
        ask.send(&self.http, &self.replicas[replica].base).await
    }

    fn note(&self, token: Option<&str>) {
        // Shorter tokens may appear in a log for other reasons.
        if let Some(token) = token.filter(|t| t.len() > 30) {
            self.tokens.lock().unwrap().insert(token.to_owned());
        }
    }

    /// Creates a namespace for a scenario.
    pub async fn namespace(&self, what: &str) -> Result<String> {
        let name = format!("{what}-{}", self.count.fetch_add(1, Ordering::Relaxed));
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await?;
        Ok(name)
    }

    /// Creates a ServiceAccount that may do `verbs` on computers and sessions in its namespace, or in all namespaces if `everywhere`.
    pub async fn account(&self, namespace: &str, name: &str, verbs: &[&str], everywhere: bool) -> Result<String> {
        let (kind, within) = if everywhere { ("Cluster", None) } else { ("", Some(namespace)) };
        let role = format!("{name}-of-{namespace}");
        let mut objects = vec![json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}})];
        if !verbs.is_empty() {
            objects.push(json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{kind}Role"), "metadata": {"name": role, "namespace": within},
                "rules": [{"apiGroups": ["computer-operator.dev"], "resources": ["computers", "sessions"], "verbs": verbs}],
            }));
            objects.push(json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{kind}RoleBinding"), "metadata": {"name": role, "namespace": within},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": format!("{kind}Role"), "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
            }));
        }
        self.apply(&objects).await?;
        self.jwt(namespace, name, AUDIENCE).await
    }

    /// Creates a token of a ServiceAccount.
    pub async fn jwt(&self, namespace: &str, name: &str, audience: &str) -> Result<String> {
        let request: TokenRequest = serde_json::from_value(json!({"spec": {"audiences": [audience], "expirationSeconds": 3600}}))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let made = accounts.create_token_request(name, &PostParams::default(), &request).await?;
        Ok(made.status.context("a token")?.token)
    }

    /// Creates a namespace and a token with all permissions on its computers.
    pub async fn tenant(&self, what: &str) -> Result<(String, String)> {
        let namespace = self.namespace(what).await?;
        let token = self.account(&namespace, "owner", &["get", "list", "create", "patch", "delete"], false).await?;
        // The API server reads RBAC from a cache, so new permissions take effect after a moment.
        eventually("the permissions are in effect", || async {
            let answer = self.send(Ask::get("/api/v0/computers").by(&token)).await?;
            Ok((answer.status == 200).then_some(()))
        })
        .await?;
        Ok((namespace, token))
    }

    /// Creates a computer with provider BYOM.
    pub async fn byom(&self, token: &str, name: &str) -> Result<String> {
        let body = json!({"name": name, "remoteUser": "dev", "provider": "byom"});
        let made = self.send(Ask::post("/api/v0/computers").by(token).json(&body)).await?.is(201)?;
        Ok(made.body["id"].as_str().context("an id")?.to_owned())
    }

    /// Waits until the key of a computer authenticates, and returns it.
    pub async fn key(&self, id: &str) -> Result<String> {
        let of = ComputerId::decode(id).context("an id")?;
        let key = eventually("the key's Secret", || async {
            let status = self.computers(&of.namespace).get(&of.name).await?.status.unwrap_or_default();
            let Some(secret) = status.credential_secret_name else { return Ok(None) };
            let secret: Option<Secret> = Api::namespaced(self.client.clone(), &of.namespace).get_opt(&secret).await?;
            let token = secret.and_then(|s| s.data).and_then(|mut d| d.remove("token"));
            Ok(token.map(|t| String::from_utf8(t.0)).transpose()?)
        })
        .await?;
        eventually("the key is live", || async {
            let answer = self.send(Ask::get(format!("/api/v0/computers/{id}")).by(&key)).await?;
            Ok((answer.status == 200 && answer.body["status"] == "active").then_some(()))
        })
        .await?;
        Ok(key)
    }

    /// Waits until the response has this status code.
    pub async fn until(&self, status: u16, ask: Ask) -> Result<Answer> {
        eventually(&format!("{} {} is {status}", ask.method, ask.path), || async {
            let answer = self.send(ask.clone()).await?;
            if answer.status == status { Ok(Some(answer)) } else { bail!("{}: {}", answer.status, answer.text) }
        })
        .await
    }

    pub fn computers(&self, namespace: &str) -> Api<Computer> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The object with an id.
    pub async fn object(&self, id: &str) -> Result<Computer> {
        let of = ComputerId::decode(id).context("an id")?;
        Ok(self.computers(&of.namespace).get(&of.name).await?)
    }

    pub fn records(&self) -> Api<ComputerRecord> {
        Api::namespaced(self.client.clone(), SYSTEM)
    }

    /// Patches a computer as an admin, for changes that the API does not support.
    pub async fn merge(&self, id: &str, patch: Value) -> Result<()> {
        let of = ComputerId::decode(id).context("an id")?;
        self.computers(&of.namespace).patch(&of.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Blocks the deletion of a computer with a foreign finalizer, until [`Bench::release`].
    pub async fn hold(&self, id: &str) -> Result<()> {
        self.finalizers(id, |all| all.push("example.com/hold".to_owned())).await
    }

    /// Removes the foreign finalizer.
    pub async fn release(&self, id: &str) -> Result<()> {
        self.finalizers(id, |all| all.retain(|f| f != "example.com/hold")).await
    }

    /// Changes the finalizers with a precondition, because the operator changes them as well.
    async fn finalizers(&self, id: &str, change: impl Fn(&mut Vec<String>)) -> Result<()> {
        eventually("the finalizers are changed", || async {
            let metadata = self.object(id).await?.metadata;
            let mut all = metadata.finalizers.unwrap_or_default();
            change(&mut all);
            let patch = json!({"metadata": {"finalizers": all, "resourceVersion": metadata.resource_version}});
            self.merge(id, patch).await.map(Some)
        })
        .await
    }

    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Directory of the control plane.
    pub fn cluster_folder(&self) -> Result<&Path> {
        self.cluster.dir().context("a cluster of ours")
    }

    /// Asserts that no log contains a token that was sent.
    pub fn logs_hold_no_token(&self) -> Result<()> {
        let tokens = self.tokens.lock().unwrap();
        for file in std::fs::read_dir(&self.logs)? {
            let path = file?.path();
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            for token in tokens.iter() {
                // The secret of a key, or the signature of a JWT.
                let secret = token.rsplit('.').next().filter(|s| s.len() > 20).unwrap_or(token);
                ensure!(!text.contains(secret), "{} contains a token", path.display());
            }
        }
        ensure!(tokens.len() > 3, "too few tokens were sent to test the logs");
        Ok(())
    }
}
