//! One cluster of two nodes with the operator's image, kubectl and Helm, and the helpers of every chapter. There are no sleeps: everything waits for a condition.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::chart::{self, Helm};
use xtask::cluster::{Cluster, Profile};
use xtask::{image, tools};

/// Neither the release nor its namespace has the usual name.
pub const RELEASE: &str = "fleet";
pub const SYSTEM: &str = "machines-ops";
/// The full name that the chart derives from them.
pub const FULL: &str = "fleet-computer-operator";
pub const LONG: Duration = Duration::from_secs(240);

pub struct World {
    pub cluster: Cluster,
    pub helm: Helm,
    kubectl: PathBuf,
}

/// Retries until `ask` succeeds.
pub fn eventually<T>(what: &str, ask: impl Fn() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + LONG;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) => ensure!(Instant::now() < deadline, "{what}: not within {} s: {error:#}", LONG.as_secs()),
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Requires a rejection with this message, and prints it.
pub fn refused(what: &str, result: Result<String>, message: &str) -> Result<()> {
    let error = match result {
        Ok(output) => anyhow::bail!("{what}: accepted: {output}"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(error.contains(message), "{what}: the error does not contain {message:?}: {error}");
    let line = error.lines().find(|line| line.contains(message)).unwrap_or_default();
    let text = ["denied request: ", "Error from server", "msg=", "): "]
        .iter()
        .find_map(|start| line.find(start).map(|at| &line[at..]))
        .unwrap_or(line);
    println!("    {what}: {}", text.trim_start_matches("denied request: "));
    Ok(())
}

impl World {
    pub async fn up() -> Result<Self> {
        let name = std::env::var("XTASK_TEST_CLUSTER").unwrap_or_else(|_| "test".to_owned());
        let cluster = Cluster::up(&format!("{name}-chart"), Profile::Node { count: 2 }).await?;
        let images = tools::cache_folder()?.join("images");
        let archive = tokio::task::spawn_blocking(move || image::operator(Path::new(env!("CARGO_MANIFEST_DIR")), &images)).await??;
        cluster.load_image(&archive)?;
        let (kubectl, kubeconfig) = (cluster.kubectl()?, cluster.kubeconfig().to_owned());
        let helm = tokio::task::spawn_blocking(move || Helm::new(Some(&kubeconfig))).await??;
        Ok(Self { cluster, helm, kubectl })
    }

    /// Runs the real kubectl.
    pub fn input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(&self.kubectl);
        run(command.args(arguments), self.cluster.kubeconfig(), input)
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.input(arguments, "")
    }

    /// Runs the operator's program on this machine as a cluster admin.
    pub fn program(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_computer-operator"));
        run(command.args(arguments), self.cluster.kubeconfig(), input)
    }

    /// Runs the operator's program in its pod, which mounts the store.
    pub fn operator(&self, arguments: &[&str]) -> Result<String> {
        let deployment = format!("deployment/{FULL}");
        let all = [&["exec", "-n", SYSTEM, &deployment, "--", "/computer-operator"], arguments].concat();
        self.kubectl(&all)
    }

    /// Runs `helm install` or `helm upgrade` and waits until everything is ready.
    pub fn chart(&self, verb: &str, more: &[&str]) -> Result<String> {
        let (chart, values) = (chart::folder().display().to_string(), chart::demo_values().display().to_string());
        let usual = [verb, RELEASE, &chart, "-n", SYSTEM, "-f", &values, "--wait", "--timeout", "240s"];
        self.helm.run(&[&usual, more].concat())
    }

    pub fn namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["create", "namespace", name])?;
        self.kubectl(&["label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted"]).map(drop)
    }

    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&[&["get"], arguments, &["-o", "json"]].concat())?)?)
    }

    /// Creates a computer, waits until it is ready, writes a session into its home, and returns its UID.
    pub fn computer(&self, namespace: &str, name: &str) -> Result<String> {
        self.create(namespace, name, &json!({}))?;
        self.active(namespace, name)?;
        self.script(namespace, name, "mkdir -p $HOME/.codex/sessions && echo work > $HOME/.codex/sessions/one.jsonl")?;
        self.uid(namespace, name)
    }

    /// Runs a script in a machine and returns its output.
    pub fn script(&self, namespace: &str, name: &str, script: &str) -> Result<String> {
        let label = format!("computer-operator.dev/computer={name}");
        let pod = self.kubectl(&["get", "pod", "-n", namespace, "-l", &label, "-o", "name"])?;
        self.kubectl(&["exec", "-n", namespace, pod.trim(), "-c", "machine", "--", "sh", "-ec", script])
    }

    /// The condition of this type of an object, as JSON.
    pub fn condition(&self, object: &[&str], type_: &str) -> Result<Value> {
        let all = self.get(object)?["status"]["conditions"].clone();
        let found = all.as_array().into_iter().flatten().find(|condition| condition["type"] == type_).cloned();
        found.with_context(|| format!("{object:?} has no condition {type_} yet: {all}"))
    }

    pub fn create(&self, namespace: &str, name: &str, spec: &Value) -> Result<()> {
        let computer = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": name, "namespace": namespace}, "spec": spec});
        self.input(&["create", "-f", "-"], &computer.to_string()).map(drop)
    }

    pub fn active(&self, namespace: &str, name: &str) -> Result<()> {
        eventually(&format!("{name} is Active"), || {
            let status = self.get(&["computer", name, "-n", namespace])?["status"].clone();
            ensure!(status["phase"] == "Active", "{status}");
            Ok(())
        })
    }

    pub fn uid(&self, namespace: &str, name: &str) -> Result<String> {
        self.kubectl(&["get", "computer", name, "-n", namespace, "-o", "jsonpath={.metadata.uid}"])
    }

    pub fn token(&self, namespace: &str, name: &str) -> Result<String> {
        let secret = self.kubectl(&["get", "computer", name, "-n", namespace, "-o", "jsonpath={.status.credentialSecretName}"])?;
        self.kubectl(&["get", "secret", &secret, "-n", namespace, "-o", "go-template={{.data.token | base64decode}}"])
    }

    /// Whether a key authenticates, even if no operator runs.
    pub fn key_is_valid(&self, token: &str) -> Result<bool> {
        match self.program(&["keys", "verify", "--namespace", SYSTEM], token) {
            Ok(_) => Ok(true),
            Err(error) if format!("{error:#}").contains("Denied") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until the record is released, with one session in a verified archive.
    pub fn finished(&self, uid: &str) -> Result<()> {
        let record = eventually(&format!("{uid} is released"), || {
            let record = self.get(&["computerrecord", uid, "-n", SYSTEM])?;
            ensure!(record["spec"]["state"]["phase"] == "Released", "{}", record["spec"]["state"]["deletion"]);
            Ok(record)
        })?;
        let deletion = &record["spec"]["state"]["deletion"];
        ensure!(deletion["archive"]["sessions"] == 1, "{deletion}");
        ensure!(record["spec"]["state"]["credential"] == "Revoked", "S2: {record}");
        eventually("its archive is valid", || self.operator(&["archives", "verify", uid])).map(drop)
    }
}

fn run(command: &mut Command, kubeconfig: &Path, input: &str) -> Result<String> {
    let what = format!("{command:?}");
    command.env("KUBECONFIG", kubeconfig).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context(what.clone())?;
    // A program that exits without reading its input reports why.
    child.stdin.take().context("stdin")?.write_all(input.as_bytes()).ok();
    let output = child.wait_with_output()?;
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let short = what.split_once("kubectl").map_or(what.as_str(), |(_, rest)| rest);
    ensure!(output.status.success(), "{short}: {out}{}", errors.trim());
    Ok(out.into_owned())
}
