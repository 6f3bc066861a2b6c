//! A control plane for this test; operators and the HTTP API run as processes with exactly the permissions of their ServiceAccounts. There are no
//! sleeps: everything waits for a condition with a deadline.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use computer_operator::resources::{ApiKey, ApiKeyRecord, crds};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use xtask::cluster::{Cluster, Options, Profile};

pub const SYSTEM: &str = "computer-operator-system";
pub const LONG: Duration = Duration::from_secs(120);

/// A process that is killed with SIGKILL when dropped.
pub struct Process {
    child: Child,
    /// Address of its metrics.
    pub metrics: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Bench {
    /// A client with the permissions of a cluster admin.
    pub admin: Client,
    /// A client with the permissions of the HTTP API.
    pub api: Client,
    cluster: Cluster,
    kubectl: PathBuf,
    pub folder: tempfile::TempDir,
}

/// Retries until `ask` succeeds.
pub async fn eventually<T, F: Future<Output = Result<T, String>>>(what: &str, ask: impl Fn() -> F) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(last) => assert!(Instant::now() < deadline, "{what}: not within {} s (last: {last})", LONG.as_secs()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A port that was free a moment ago.
fn free() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn client(file: Kubeconfig) -> Client {
    Client::try_from(kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap()).unwrap()
}

impl Bench {
    pub async fn up() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let options = Options { dir: Some(folder.path().join("cluster")), bound: true, ..Options::default() };
        let cluster = Cluster::up_with("api-keys", Profile::ControlPlane, options).await.expect("a control plane");
        let admin = client(Kubeconfig::read_from(cluster.kubeconfig()).unwrap()).await;
        let kubectl = cluster.kubectl().unwrap();
        let mut bench = Self { api: admin.clone(), admin, cluster, kubectl, folder };
        bench.apply(&crds::files().unwrap().into_iter().map(|(_, yaml)| yaml).collect::<Vec<_>>().join("\n---\n"));
        bench.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"], "").expect("established");
        bench.kubectl(&["create", "namespace", SYSTEM], "").expect("a namespace");
        bench.apply(&xtask::chart::without_programs(SYSTEM).expect("the chart"));
        for account in ["computer-operator", "computer-operator-api"] {
            bench.kubeconfig(account);
        }
        bench.api = client(Kubeconfig::read_from(bench.path("computer-operator-api")).unwrap()).await;
        let keys: Api<ApiKey> = Api::all(bench.admin.clone());
        eventually("ApiKeys are served", || async { keys.list(&ListParams::default()).await.map_err(|e| e.to_string()) }).await;
        bench
    }

    fn path(&self, account: &str) -> PathBuf {
        self.folder.path().join(account)
    }

    /// Writes a kubeconfig with a token of one of the operator's ServiceAccounts.
    fn kubeconfig(&self, account: &str) {
        let token = self.kubectl(&["create", "token", account, "-n", SYSTEM, "--duration=6h"], "").expect("a token");
        let admin = Kubeconfig::read_from(self.cluster.kubeconfig()).unwrap();
        let cluster = serde_json::to_value(&admin.clusters[0]).unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "clusters": [cluster], "current-context": "it",
            "users": [{"name": "it", "user": {"token": token.trim()}}],
            "contexts": [{"name": "it", "context": {"cluster": cluster["name"], "user": "it"}}],
        });
        std::fs::write(self.path(account), config.to_string()).unwrap();
    }

    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        use std::io::Write as _;
        let mut command = Command::new(&self.kubectl);
        command.args(arguments).env("KUBECONFIG", self.cluster.kubeconfig());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    pub fn apply(&self, yaml: &str) {
        self.kubectl(&["apply", "-f", "-"], yaml).expect("kubectl apply");
    }

    fn process(&self, account: &str, arguments: &[&str]) -> Process {
        let metrics = format!("127.0.0.1:{}", free());
        let log = File::options().create(true).append(true).open(self.path(&format!("{account}.log"))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_computer-operator"));
        command.args(arguments).args(["--namespace", SYSTEM, "--metrics-bind", &metrics]);
        command.env("KUBECONFIG", self.path(account)).env("RUST_LOG", "info,computer_operator=debug");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Process { child, metrics }
    }

    /// An operator without leader election, so that two of them run concurrently.
    pub fn operator(&self) -> Process {
        let store = format!("file://{}", self.folder.path().join("store").display());
        let ingest = ["--ingest-url", "https://127.0.0.1:1", "--ingest-bind", "127.0.0.1:0", "--store", &store];
        self.process("computer-operator", &[&["run", "--image", "img:1", "--leader-election=false"][..], &ingest].concat())
    }

    /// The HTTP API and its URL.
    pub fn http(&self) -> (Process, String) {
        let address = format!("127.0.0.1:{}", free());
        (self.process("computer-operator-api", &["api", "--bind", &address]), format!("http://{address}"))
    }

    /// The logs of the processes.
    pub fn logs(&self) -> String {
        let read = |account: &str| std::fs::read_to_string(self.path(&format!("{account}.log"))).unwrap_or_default();
        read("computer-operator") + &read("computer-operator-api")
    }

    pub fn namespace(&self, name: &str) {
        self.kubectl(&["create", "namespace", name], "").expect("a namespace");
        self.account(name);
    }

    /// Creates the ServiceAccount that keys act as.
    pub fn account(&self, namespace: &str) {
        self.kubectl(&["create", "serviceaccount", "caller", "-n", namespace], "").expect("a ServiceAccount");
    }

    pub fn create(&self, namespace: &str, name: &str, more: &Value) {
        let mut spec = json!({"serviceAccountName": "caller"});
        more.as_object().unwrap().iter().for_each(|(k, v)| spec[k] = v.clone());
        let key = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": name, "namespace": namespace}, "spec": spec});
        self.kubectl(&["create", "-f", "-"], &key.to_string()).expect("an ApiKey");
    }

    pub fn change(&self, namespace: &str, name: &str, spec: &Value) {
        let patch = json!({"spec": spec}).to_string();
        self.kubectl(&["patch", "apikey", name, "-n", namespace, "--type=merge", "-p", &patch], "").expect("a change");
    }

    pub fn delete(&self, namespace: &str, name: &str) {
        self.kubectl(&["delete", "apikey", name, "-n", namespace, "--wait=false"], "").expect("a deletion");
    }

    pub fn keys(&self, namespace: &str) -> Api<ApiKey> {
        Api::namespaced(self.admin.clone(), namespace)
    }

    pub async fn records(&self) -> Vec<ApiKeyRecord> {
        Api::namespaced(self.admin.clone(), SYSTEM).list(&ListParams::default()).await.unwrap().items
    }

    /// Secrets of tokens in a namespace.
    pub async fn secrets(&self, namespace: &str) -> Vec<Secret> {
        let ours = ListParams::default().labels("computer-operator.dev/component=api-key");
        Api::namespaced(self.admin.clone(), namespace).list(&ours).await.unwrap().items
    }

    /// Waits until `Ready` has this reason for the current generation.
    pub async fn ready_reason(&self, namespace: &str, name: &str, reason: &str) -> ApiKey {
        eventually(&format!("{namespace}/{name} has reason {reason}"), || async {
            let key = self.keys(namespace).get(name).await.map_err(|e| e.to_string())?;
            let status = key.status.clone().unwrap_or_default();
            let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
            let fits = ready.is_some_and(|c| c.reason == reason && c.observed_generation == key.metadata.generation);
            if fits { Ok(key) } else { Err(format!("{ready:?}")) }
        })
        .await
    }

    /// Waits until a token is issued, and reads it like its owner would.
    pub async fn token(&self, namespace: &str, name: &str) -> String {
        let key = self.ready_reason(namespace, name, "Issued").await;
        let secret: Api<Secret> = Api::namespaced(self.admin.clone(), namespace);
        let secret = secret.get(&key.status.unwrap().secret_name.unwrap()).await.unwrap();
        String::from_utf8(secret.data.unwrap().remove("token").unwrap().0).unwrap()
    }

    /// Whether a token authenticates, verified with the permissions of the HTTP API.
    pub async fn authenticates(&self, token: &str) -> bool {
        computer_operator::credentials::verify_api_key(&self.api, SYSTEM, token).await.expect("an answer").is_ok()
    }

    /// Waits until a key, its record and its Secrets are gone.
    pub async fn gone(&self, namespace: &str, name: &str) {
        eventually(&format!("{namespace}/{name} is gone"), || async {
            let key = self.keys(namespace).get_opt(name).await.map_err(|e| e.to_string())?;
            let records = self.records().await;
            let record = records.iter().find(|r| r.spec.namespace == namespace && r.spec.api_key == name);
            let owned = |s: &Secret| s.owner_references().iter().any(|o| o.name == name);
            let secret = self.secrets(namespace).await.into_iter().find(owned);
            if key.is_none() && record.is_none() && secret.is_none() {
                return Ok(());
            }
            Err(format!("{key:?} {record:?}"))
        })
        .await;
    }

    /// The number of API requests of a process, summed over the samples that have all these labels.
    pub async fn metric(&self, process: &Process, labels: &[&str]) -> Result<u64, String> {
        let answer = reqwest::get(format!("http://{}/metrics", process.metrics)).await.map_err(|e| e.to_string())?;
        let text = answer.text().await.map_err(|e| e.to_string())?;
        let lines = text.lines().filter(|l| l.starts_with("computer_operator") && l.contains("api_requests_total"));
        let fitting = lines.filter(|l| labels.iter().all(|label| l.contains(label)));
        Ok(fitting.filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }
}
