//! `cargo xtask demo`: creates, uses and deletes a `Computer` on a real cluster and explains each step. Nothing in it may be simulated:
//! every command that it prints can be typed by a user.

mod http;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use computer_operator::resources::steps::{DeletionStep, Sequence as _};
use serde_json::{Value, json};

use crate::chart::{self, Helm, RELEASE};
use crate::cluster::{self, Cluster, Profile};
use crate::{image, node, tools};

const SYSTEM: &str = "computer-operator-system";
/// Name of the demo's cluster.
pub const CLUSTER: &str = "demo";
/// Longest time for one condition.
const LIMIT: Duration = Duration::from_secs(180);

/// The arguments that run the operator's own commands in its pod.
const IN_ITS_POD: &[&str] = &["exec", "-i", "-n", SYSTEM, "deployment/computer-operator", "--", "computer-operator"];

struct Demo {
    kubectl: PathBuf,
    helm: Helm,
    kubeconfig: PathBuf,
    start: Instant,
}

/// Runs the demo; `keep` leaves the cluster up.
///
/// # Errors
/// When no real node can run here, or a step fails.
pub async fn run(workspace: &'static Path, keep: bool) -> Result<()> {
    if let Some(obstacle) = node::obstacle() {
        bail!("the demo needs a real node, and none can run here: {obstacle}");
    }
    ensure!(
        !cluster::is_up(CLUSTER)?,
        "the cluster of an earlier demo is still running. Remove it first: cargo xtask cluster down --name {CLUSTER}"
    );
    let start = Instant::now();
    println!("1. Start a real Kubernetes (the first time, building it takes about 15 minutes)");
    let cluster = Cluster::up(CLUSTER, Profile::Node { count: 1 }).await?;
    println!("\n2. Build the operator's image (the first time this takes some minutes) and load it without a registry");
    let images = tools::cache_folder()?.join("images");
    let archive = tokio::task::spawn_blocking(move || image::operator(workspace, &images)).await??;
    cluster.load_image(&archive)?;
    let demo = Demo {
        kubectl: cluster.kubectl()?,
        helm: Helm::new(Some(cluster.kubeconfig()))?,
        kubeconfig: cluster.kubeconfig().to_owned(),
        start,
    };
    let result = demo.run_steps();
    if keep {
        println!(
            "\nThe cluster is still running. To use it: eval \"$(cargo xtask cluster env --name {CLUSTER})\"; to remove it: cargo xtask cluster down --name {CLUSTER}"
        );
    } else {
        cluster.down().await?;
    }
    result
}

impl Demo {
    fn run_steps(&self) -> Result<()> {
        println!("\n3. Install the operator with Helm: CRDs, RBAC, admission policies, the HTTP API");
        self.install()?;
        println!("\n4. Show the default class, and create a computer as a team");
        self.show(&["get", "computerclasses"])?;
        let box_one = self.create("team-a")?;
        println!("\n5. Work on the computer as an agent: sessions in three layouts");
        let sessions = self.work("team-a", &box_one)?;
        println!("\n6. kubectl delete computer");
        let token = self.token("team-a")?;
        self.say_key(&token, true)?;
        self.show(&["delete", "computer", "box", "-n", "team-a", "--wait=false"])?;
        self.say_key(&token, false)?;
        self.follow("team-a", &box_one)?;
        println!("\n7. Show what remains: the receipt and the archive");
        self.receipt(&box_one)?;
        self.read_back(&box_one, &sessions)?;
        println!("\n8. The same with kubectl delete namespace: nothing can be created in a terminating namespace");
        let box_two = self.create("team-b")?;
        let sessions = self.work("team-b", &box_two)?;
        let token = self.token("team-b")?;
        self.show(&["delete", "namespace", "team-b", "--wait=false"])?;
        self.say_key(&token, false)?;
        self.follow("team-b", &box_two)?;
        self.receipt(&box_two)?;
        self.read_back(&box_two, &sessions)?;
        println!("\n9. The same over HTTP: the published v0 API, authorized by RBAC only");
        self.over_http()?;
        println!("\n10. List all archives in the operator's store");
        self.show_operator(&["archives", "ls"])?;
        println!("\nEverything above happened on a real cluster, in {} s.", self.start.elapsed().as_secs());
        Ok(())
    }

    /// As a cluster admin would: a restricted namespace, `helm install`, `helm test`.
    fn install(&self) -> Result<()> {
        self.show(&["create", "namespace", SYSTEM])?;
        self.show(&["label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted"])?;
        let (chart, values) = (chart::folder().display().to_string(), chart::demo_values().display().to_string());
        println!("$ helm install {RELEASE} charts/computer-operator --namespace {SYSTEM} --values xtask/demo-values.yaml --wait");
        let said =
            self.helm.run(&["install", RELEASE, &chart, "--namespace", SYSTEM, "--values", &values, "--wait", "--timeout", "180s"])?;
        // The rest of the notes is not needed in the demo.
        println!("{}", indented(said.split("NOTES:").next().unwrap_or(&said)));
        println!("$ helm test {RELEASE} --namespace {SYSTEM}");
        let said = self.helm.run(&["test", RELEASE, "--namespace", SYSTEM])?;
        println!("{}", indented(said.lines().rfind(|l| l.starts_with("Phase")).unwrap_or_default()));
        self.show(&["get", "deployments,services", "-n", SYSTEM])
    }

    /// A namespace with a computer in it that is ready; its UID.
    fn create(&self, namespace: &str) -> Result<String> {
        let objects = [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}),
            json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": "box", "namespace": namespace}, "spec": {"displayName": "A box"}}),
        ];
        self.eventually("the computer is created", || {
            self.apply(&objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n"))
        })?;
        self.eventually("the computer is Active", || {
            let phase = self.kubectl(&["get", "computer", "box", "-n", namespace, "-o", "jsonpath={.status.phase}"], "")?;
            ensure!(phase == "Active", "it is {phase:?}");
            Ok(())
        })?;
        self.show(&["get", "computer", "-n", namespace, "-o", "wide"])?;
        self.kubectl(&["get", "computer", "box", "-n", namespace, "-o", "jsonpath={.metadata.uid}"], "")
    }

    /// Writes sessions as agents do; returns path and content of one in each layout.
    fn work(&self, namespace: &str, uid: &str) -> Result<Vec<(String, String)>> {
        let selector = format!("computer-operator.dev/computer-uid={uid}");
        let pod = self.kubectl(&["get", "pod", "-n", namespace, "-l", &selector, "-o", "name"], "")?;
        let files =
            [".factory/sessions/7f3c.jsonl", ".claude/projects/-home-user-app/0b1d.jsonl", ".codex/sessions/2026/11/24/rollout-1.jsonl"];
        let mut sessions = Vec::new();
        for file in files {
            let content = format!(
                "{{\"role\":\"user\",\"text\":\"session {file} of {namespace}\"}}\n{{\"role\":\"assistant\",\"text\":\"done \\u2713\"}}\n"
            );
            let folder = Path::new(file).parent().context("a folder")?.display().to_string();
            // As an argument: kubectl exec can lose standard input and succeed nevertheless.
            let script = format!("mkdir -p \"$HOME/{folder}\" && printf %s \"$1\" > \"$HOME/{file}\"");
            self.kubectl(&["exec", "-n", namespace, pod.trim(), "--", "sh", "-ec", &script, "sh", &content], "")?;
            println!("   wrote {file}, {} bytes", content.len());
            sessions.push((file.to_owned(), content));
        }
        Ok(sessions)
    }

    fn token(&self, namespace: &str) -> Result<String> {
        let secret = self.kubectl(&["get", "computer", "box", "-n", namespace, "-o", "jsonpath={.status.credentialSecretName}"], "")?;
        self.kubectl(&["get", "secret", &secret, "-n", namespace, "-o", "go-template={{.data.token | base64decode}}"], "")
    }

    /// Checks with the operator whether the key authenticates.
    fn say_key(&self, token: &str, alive: bool) -> Result<()> {
        // For a revoked key the command exits with code 1, so its answer is part of an error.
        let ask = || self.operator(&["keys", "verify"], token).unwrap_or_else(|error| format!("{error:#}"));
        // kubectl exec can lose standard input: then the answer is unknown.
        let answer = std::iter::repeat_with(ask).take(10).find(|answer| !answer.contains("Unknown: standard input is empty"));
        let answer = answer.context("kubectl exec lost the standard input of keys verify ten times: repeat the demo")?;
        let word = if alive { "Authenticated" } else { "Denied" };
        let line = answer.lines().find_map(|l| l.find(word).map(|at| &l[at..])).unwrap_or(&answer);
        println!("$ echo $KEY | kubectl {} keys verify", IN_ITS_POD.join(" "));
        println!("   {line}");
        ensure!(
            line.starts_with(if alive { "Authenticated" } else { "Denied" }),
            "unexpected answer: the key should be {}",
            if alive { "alive" } else { "dead" }
        );
        Ok(())
    }

    /// Shows each step of a deletion as it is reached, until the computer is gone and its record released.
    fn follow(&self, namespace: &str, uid: &str) -> Result<()> {
        let (began, mut shown) = (Instant::now(), Vec::new());
        loop {
            ensure!(began.elapsed() < LIMIT, "the deletion did not end within {} s", LIMIT.as_secs());
            let record: Value = serde_json::from_str(&self.kubectl(&["get", "computerrecord", uid, "-n", SYSTEM, "-o", "json"], "")?)?;
            let steps = record["spec"]["state"]["deletion"]["steps"].as_object().cloned().unwrap_or_default();
            for id in DeletionStep::ALL.iter().map(|step| step.id()) {
                if let Some(step) = steps.get(id).filter(|_| !shown.contains(&id)) {
                    println!("   {:>5.1} s  {id}: {}, {}", began.elapsed().as_secs_f64(), text(&step["result"]), text(&step["detail"]));
                    shown.push(id);
                }
            }
            if record["spec"]["state"]["phase"] == "Released" && self.kubectl(&["get", "computer", "box", "-n", namespace], "").is_err() {
                println!("   {:>5.1} s  released: the Computer is gone", began.elapsed().as_secs_f64());
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn receipt(&self, uid: &str) -> Result<()> {
        self.show(&["get", "computerrecord", uid, "-n", SYSTEM])?;
        self.show_operator(&["archives", "show", uid])?;
        self.show_operator(&["archives", "verify", uid])
    }

    /// Checks that every session is restored byte for byte.
    fn read_back(&self, uid: &str, sessions: &[(String, String)]) -> Result<()> {
        for (path, content) in sessions {
            let back = self.operator(&["archives", "cat", uid, path], "")?;
            ensure!(back == *content, "{path} was changed by the archive");
            println!("   {path}: read back from the archive, {} bytes, identical", back.len());
        }
        Ok(())
    }

    /// A command of the operator's own binary, in its pod.
    fn operator(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.kubectl(&[IN_ITS_POD, arguments].concat(), input)
    }

    fn show_operator(&self, arguments: &[&str]) -> Result<()> {
        self.show(&[IN_ITS_POD, arguments].concat())
    }

    fn apply(&self, yaml: &str) -> Result<()> {
        self.kubectl(&["apply", "-f", "-"], yaml).map(drop)
    }

    /// Runs a command and shows it with what it prints.
    fn show(&self, arguments: &[&str]) -> Result<()> {
        println!("$ kubectl {}", arguments.join(" "));
        println!("{}", indented(&self.kubectl(arguments, "")?));
        Ok(())
    }

    fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = Command::new(&self.kubectl)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("stdin")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "kubectl {}: {out}{}", arguments.join(" "), errors.trim());
        Ok(out.into_owned())
    }

    fn eventually(&self, what: &str, ask: impl Fn() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while let Err(error) = ask() {
            ensure!(Instant::now() < deadline, "{what}: not within {} s: {error:#}", LIMIT.as_secs());
            std::thread::sleep(Duration::from_millis(300));
        }
        println!("   {what} ({} s after the start)", self.start.elapsed().as_secs());
        Ok(())
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn indented(text: &str) -> String {
    text.trim_end().lines().map(|l| format!("   {l}")).collect::<Vec<_>>().join("\n")
}
