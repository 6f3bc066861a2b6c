//! One real cluster with the operator's rights as installed, and what every scenario needs: namespaces, computers, files in a home, and
//! the final check that nothing is left. It must never sleep for a fixed time: everything waits for a condition with a deadline.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use computer_operator::archive::store::Store;
use computer_operator::archive::{Archive, Verification, manifest_key, receipt_key, verify};
use computer_operator::resources::{Computer, ComputerRecord, CredentialState, Phase, RecordPhase, UID_LABEL};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use xtask::cluster::{Cluster, Options, Profile};
use xtask::{chart, image, tools};

pub const SYSTEM: &str = "computer-operator-system";
pub const MACHINE: &str = "computer-operator.dev/machine:dev";
/// Longest time for one deletion on a busy machine of two cores.
pub const LONG: Duration = Duration::from_secs(180);
/// How many times its limit a wait that makes progress may take.
const PATIENCE: u32 = 4;

pub struct Bench {
    pub client: Client,
    pub cluster: Cluster,
    pub folder: tempfile::TempDir,
    pub kubectl: PathBuf,
    pub audit_log: PathBuf,
    count: AtomicUsize,
    /// A token of each computer that was ready, by UID: none may authenticate at the end.
    tokens: Mutex<HashMap<String, String>>,
}

/// Repeats the request until it returns a value. `limit` is how long the last error may stay the same: on a busy machine a healthy operation
/// is slow, and only one that makes no progress has failed. [`PATIENCE`] times the limit ends it in any case.
pub async fn eventually<T, F: Future<Output = Result<Option<T>>>>(what: &str, limit: Duration, ask: impl Fn() -> F) -> Result<T> {
    let end = Instant::now() + limit * PATIENCE;
    let mut deadline = Instant::now() + limit;
    let mut last = String::new();
    loop {
        match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) => {
                let now = format!(" (last: {error:#})");
                if now != last {
                    (last, deadline) = (now, end.min(Instant::now() + limit));
                }
            }
        }
        ensure!(Instant::now() < deadline, "{what}: no progress within {} s{last}", limit.as_secs());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The API server's audit log: in the cluster's own folder, so that each cluster starts a new one.
fn audit_log(cluster: &str) -> Result<PathBuf> {
    Ok(tools::cache_folder()?.join("clusters").join(cluster).join("logs/audit.log"))
}

impl Bench {
    /// Starts the cluster, loads the image, installs CRDs and rights. `revive`: killed programs of the control plane are restarted.
    pub async fn up(name: &str, nodes: u8, revive: bool) -> Result<Self> {
        let name = std::env::var("XTASK_TEST_CLUSTER").unwrap_or_else(|_| name.to_owned());
        let audit_log = audit_log(&name)?;
        let options = Options { audit_log: Some(audit_log.clone()), revive, ..Options::default() };
        let cluster = Cluster::up_with(&name, Profile::Node { count: nodes }, options).await?;
        let images = tools::cache_folder()?.join("images");
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
        let archive = tokio::task::spawn_blocking(move || image::operator(workspace, &images)).await??;
        cluster.load_image(&archive)?;
        let config = kube::Config::from_custom_kubeconfig(
            kube::config::Kubeconfig::read_from(cluster.kubeconfig())?,
            &kube::config::KubeConfigOptions::default(),
        )
        .await?;
        let kubectl = cluster.kubectl()?;
        let bench = Self {
            client: Client::try_from(config)?,
            cluster,
            folder: tempfile::tempdir()?,
            kubectl,
            audit_log,
            count: AtomicUsize::new(0),
            tokens: Mutex::default(),
        };
        bench.install().await?;
        Ok(bench)
    }

    async fn install(&self) -> Result<()> {
        let crds = computer_operator::resources::crds::files()?.into_iter().map(|(_, yaml)| yaml).collect::<Vec<_>>().join("\n---\n");
        self.kubectl(&["apply", "-f", "-"], &crds).await?;
        self.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"], "").await?;
        self.kubectl(&["create", "namespace", SYSTEM], "").await.ok();
        self.kubectl(&["label", "namespace", SYSTEM, "--overwrite", "pod-security.kubernetes.io/enforce=restricted"], "").await?;
        self.chart().await?;
        let computers: Api<Computer> = Api::all(self.client.clone());
        eventually("computers are served", Duration::from_secs(30), || async { Ok(computers.list(&ListParams::default()).await.ok()) })
            .await?;
        self.class("standard", json!({})).await
    }

    /// What the chart installs except the operator itself: the tests run their own, with its rights and under its policies.
    pub async fn chart(&self) -> Result<()> {
        let chart = tokio::task::spawn_blocking(|| chart::without_programs(SYSTEM));
        self.kubectl(&["apply", "-f", "-"], &chart.await??).await.map(drop)
    }

    /// Runs the real kubectl.
    pub async fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = tokio::process::Command::new(&self.kubectl)
            .args(arguments)
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        child.stdin.take().context("stdin")?.write_all(input.as_bytes()).await?;
        let output = child.wait_with_output().await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A class; `more` is merged over the default spec.
    pub async fn class(&self, name: &str, more: Value) -> Result<()> {
        let mut spec = json!({
            "podTemplate": {"spec": {"terminationGracePeriodSeconds": 2, "containers": [{"name": "machine", "image": MACHINE}]}},
            "storage": {"size": "1Gi", "mountPath": "/home/user"},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let class =
            json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerClass", "metadata": {"name": name}, "spec": spec});
        self.kubectl(&["apply", "-f", "-"], &class.to_string()).await.map(drop)
    }

    /// A separate namespace for a scenario.
    pub async fn namespace(&self, what: &str) -> Result<String> {
        let name = format!("{what}-{}", self.count.fetch_add(1, Ordering::Relaxed));
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}))?;
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await?;
        Ok(name)
    }

    pub fn computers(&self, namespace: &str) -> Api<Computer> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates a computer and returns its UID at once.
    pub async fn create(&self, namespace: &str, name: &str, spec: Value) -> Result<String> {
        let computer: Computer = serde_json::from_value(
            json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": name}, "spec": spec}),
        )?;
        let created = self.computers(namespace).create(&PostParams::default(), &computer).await?;
        created.metadata.uid.context("a UID")
    }

    /// A computer of a class, when it is ready.
    pub async fn active(&self, namespace: &str, name: &str, class: &str) -> Result<String> {
        self.ready(namespace, name, json!({"className": class})).await
    }

    /// The same with any spec.
    pub async fn ready(&self, namespace: &str, name: &str, spec: Value) -> Result<String> {
        let uid = self.create(namespace, name, spec).await?;
        self.phase(namespace, name, Phase::Active).await?;
        let token = self.token(namespace, name).await?;
        self.tokens.lock().unwrap().insert(uid.clone(), token);
        Ok(uid)
    }

    pub async fn phase(&self, namespace: &str, name: &str, phase: Phase) -> Result<()> {
        eventually(&format!("{name} is {phase:?}"), LONG, || async {
            let status = self.computers(namespace).get(name).await?.status.unwrap_or_default();
            if status.phase == Some(phase) {
                return Ok(Some(()));
            }
            bail!("{:?} {:?}", status.phase, status.conditions.iter().map(|c| &c.message).collect::<Vec<_>>())
        })
        .await
    }

    /// The machine's running pod.
    pub async fn machine(&self, namespace: &str, uid: &str) -> Result<String> {
        let of_computer = ListParams::default().labels(&format!("{UID_LABEL}={uid}"));
        let pods = self.pods(namespace).list(&of_computer).await?;
        let alive = pods.items.into_iter().find(|p| p.metadata.deletion_timestamp.is_none());
        Ok(alive.context("no machine runs")?.name_any())
    }

    /// Runs a shell in the machine, as a user would.
    pub async fn shell(&self, namespace: &str, uid: &str, script: &str) -> Result<String> {
        let pod = self.machine(namespace, uid).await?;
        self.kubectl(&["exec", "-n", namespace, &pod, "--", "sh", "-ec", script], "").await
    }

    /// Writes a session in each of the three layouts.
    pub async fn work(&self, namespace: &str, uid: &str) -> Result<()> {
        let script = "cd $HOME; mkdir -p .factory/sessions .claude/projects/p .codex/sessions/2026/11; \
            echo one > .factory/sessions/one.jsonl; echo set > .factory/sessions/one.settings.json; \
            echo two > .claude/projects/p/two.jsonl; echo three > .codex/sessions/2026/11/three.jsonl";
        self.shell(namespace, uid, script).await.map(drop)
    }

    pub async fn record(&self, uid: &str) -> Result<Option<ComputerRecord>> {
        Ok(Api::namespaced(self.client.clone(), SYSTEM).get_opt(uid).await?)
    }

    /// The token that the owner of a computer sees.
    pub async fn token(&self, namespace: &str, name: &str) -> Result<String> {
        let secret = eventually("the key's Secret", LONG, || async {
            Ok(self.computers(namespace).get(name).await?.status.and_then(|s| s.credential_secret_name))
        })
        .await?;
        let secret: Secret = Api::namespaced(self.client.clone(), namespace).get(&secret).await?;
        let bytes = secret.data.context("data")?.remove("token").context("token")?;
        Ok(String::from_utf8(bytes.0)?)
    }

    /// Whether a token authenticates, by the live reads of DESIGN.md 4.3.
    pub async fn authenticates(&self, token: &str) -> Result<bool> {
        Ok(computer_operator::credentials::verify(&self.client, SYSTEM, token).await?.is_ok())
    }

    /// The token that a computer had when it was ready.
    pub fn token_of(&self, uid: &str) -> Result<String> {
        self.tokens.lock().unwrap().get(uid).cloned().with_context(|| format!("{uid} was never ready"))
    }

    pub fn store_path(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub fn store(&self) -> Result<Store> {
        Ok(Store::open(&format!("file://{}", self.store_path().display()))?)
    }

    pub async fn delete(&self, namespace: &str, name: &str, cascade: &str) -> Result<()> {
        self.kubectl(&["delete", "computer", name, "-n", namespace, "--wait=false", &format!("--cascade={cascade}")], "").await.map(drop)
    }

    /// Waits for a blocked deletion that names its reason.
    pub async fn blocked(&self, namespace: &str, name: &str, reason: &str) -> Result<String> {
        eventually(&format!("{name} is blocked by {reason}"), LONG, || async {
            let status = self.computers(namespace).get(name).await?.status.unwrap_or_default();
            let found = status.conditions.iter().find(|c| c.type_ == "Blocked" && c.reason == reason);
            match found {
                Some(condition) => Ok(Some(condition.message.clone())),
                None => bail!("{:?}", status.conditions.iter().map(|c| (&c.type_, &c.reason, &c.message)).collect::<Vec<_>>()),
            }
        })
        .await
    }

    /// The end of every scenario: the computer is released, no owned object is left, the key is revoked, and the receipt is in the record
    /// and in the store.
    pub async fn clean(&self, uid: &str) -> Result<ComputerRecord> {
        let record = eventually(&format!("{uid} is released"), LONG, || async {
            let record = self.record(uid).await?.context("no record")?;
            if record.spec.state.phase == RecordPhase::Released {
                return Ok(Some(record));
            }
            let stored = std::fs::read_dir(self.store_path().join("archives").join(uid).join("objects")).map_or(0, Iterator::count);
            bail!("{}, {stored} objects in the store", serde_json::to_string(&record.spec.state.deletion)?)
        })
        .await?;
        let state = &record.spec.state;
        let namespace = &record.spec.namespace;
        eventually("the Computer is gone", LONG, || async {
            let found = self.computers(namespace).get_opt(&record.spec.computer).await?;
            Ok(found.is_none_or(|c| c.metadata.uid.as_deref() != Some(uid)).then_some(()))
        })
        .await?;
        ensure!(state.credential == CredentialState::Revoked, "the key is {:?}", state.credential);
        if let Ok(token) = self.token_of(uid) {
            ensure!(!self.authenticates(&token).await?, "S2: the key of {uid} authenticates");
        }
        let children = &state.children;
        for pod in &children.pods {
            self.none_of_ours::<Pod>(namespace, Some(&pod.name), pod.uid.as_ref()).await?;
        }
        self.none_of_ours::<PersistentVolumeClaim>(namespace, children.claim_name.as_ref(), children.claim_uid.as_ref()).await?;
        self.none_of_ours::<Secret>(namespace, children.secret_name.as_ref(), children.secret_uid.as_ref()).await?;
        self.nothing_labelled(uid, state.children.volume.as_ref().is_some_and(|v| v.original_reclaim_policy == "Delete")).await?;
        let receipt = state.deletion.as_ref().and_then(|d| d.receipt.as_ref()).context("no receipt on record")?;
        if receipt.store_key.is_some() {
            let text: Value = serde_json::from_slice(&self.store()?.get(&receipt_key(uid)).await?)?;
            ensure!(text["computer"]["uid"] == uid, "the receipt is that of another computer: {text}");
        }
        Ok(record)
    }

    /// No owned object under a recorded name; another client may have created an object there since.
    async fn none_of_ours<K>(&self, namespace: &str, name: Option<&String>, uid: Option<&String>) -> Result<()>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let Some(name) = name else { return Ok(()) };
        let found = Api::<K>::namespaced(self.client.clone(), namespace).get_opt(name).await?;
        let ours = found.is_some_and(|o| uid.is_none() || o.uid().as_ref() == uid);
        ensure!(!ours, "{} {name} is left", K::kind(&()));
        Ok(())
    }

    /// Nothing in the operator's namespace, and no volume that was to be deleted.
    async fn nothing_labelled(&self, uid: &str, volume_gone: bool) -> Result<()> {
        let of_computer = ListParams::default().labels(&format!("{UID_LABEL}={uid}"));
        let pods = self.pods(SYSTEM).list(&of_computer).await?.items;
        ensure!(pods.is_empty(), "archive pods are left");
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), SYSTEM);
        ensure!(claims.list(&of_computer).await?.items.is_empty(), "the custody claim is left");
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        ensure!(!volume_gone || volumes.list(&of_computer).await?.items.is_empty(), "a volume is left");
        Ok(())
    }

    /// As [`Bench::clean`], and the archive verifies and contains this many sessions.
    pub async fn archived(&self, uid: &str, sessions: usize) -> Result<(ComputerRecord, Archive)> {
        let record = self.clean(uid).await?;
        match verify::verify(&self.store()?, uid).await {
            Verification::Valid(_) => {}
            other => bail!("the archive: {other:?}"),
        }
        let archive = Archive::parse(&self.store()?.get(&manifest_key(uid)).await?)?;
        ensure!(archive.sessions() == sessions as u64, "{} sessions instead of {sessions}", archive.sessions());
        Ok((record, archive))
    }

    /// Waits until a namespace is gone.
    pub async fn namespace_gone(&self, name: &str) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        eventually(&format!("namespace {name} is gone"), LONG, || async { Ok(api.get_opt(name).await?.is_none().then_some(())) }).await
    }
}

/// Moves the store's folder away: every request to it fails until the folder is moved back.
pub struct StoreDown<'a>(&'a Bench);

impl<'a> StoreDown<'a> {
    pub fn new(bench: &'a Bench) -> Result<Self> {
        std::fs::rename(bench.store_path(), bench.store_path().with_extension("away"))?;
        std::fs::write(bench.store_path(), "not a folder")?;
        Ok(Self(bench))
    }
}

impl Drop for StoreDown<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0.store_path());
        let _ = std::fs::rename(self.0.store_path().with_extension("away"), self.0.store_path());
    }
}
