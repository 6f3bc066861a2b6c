//! The story: one list of steps that runs on any cluster. Nothing in it may be simulated: every command that it prints can be typed by a user.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use computer_operator::resources::steps::{DeletionStep, Sequence as _};
use serde_json::{Value, json};

use super::cleanup::LABEL;
use super::stop::Stop;
use super::{LIMIT, SYSTEM};
use crate::chart::{self, Helm, RELEASE};

/// The arguments that run the operator's own commands in its pod.
const IN_ITS_POD: &[&str] = &["exec", "-i", "-n", SYSTEM, "deployment/computer-operator", "--", "computer-operator"];

/// One step of the story.
pub(super) struct Step {
    /// Its name in the recorded durations.
    pub id: &'static str,
    /// What it does, for users.
    pub title: &'static str,
    pub run: fn(&mut Story) -> Result<()>,
}

/// The story, in order.
pub(super) const STEPS: [Step; 8] = [
    Step { id: "install", title: "Install the operator with Helm: CRDs, RBAC, admission policies, the HTTP API", run: Story::install },
    Step { id: "create", title: "Show the default class, and create a computer as a team", run: Story::first },
    Step { id: "work", title: "Work on the computer as an agent: sessions in three layouts", run: Story::work_on_first },
    Step { id: "delete", title: "kubectl delete computer", run: Story::delete_first },
    Step { id: "remains", title: "Show what remains: the receipt and the archive", run: Story::remains },
    Step {
        id: "namespace",
        title: "The same with kubectl delete namespace: nothing can be created in a terminating namespace",
        run: Story::whole_namespace,
    },
    Step { id: "http", title: "The same over HTTP: the published v0 API, authorized by RBAC only", run: Story::over_http },
    Step { id: "archives", title: "List all archives in the operator's store", run: |story| story.show_operator(&["archives", "ls"]) },
];

/// The story on one cluster.
pub(super) struct Story {
    pub kubectl: PathBuf,
    pub helm: Helm,
    pub kubeconfig: PathBuf,
    pub stop: Stop,
    pub start: Instant,
    /// The namespaces of the teams.
    pub teams: [String; 3],
    /// The label of every namespace that it makes.
    pub run: String,
    /// Arguments of `helm install`: the images and what else this cluster needs.
    pub values: Vec<String>,
    /// UID of the first computer.
    pub uid: String,
    /// Path and content of its sessions.
    pub sessions: Vec<(String, String)>,
}

impl Story {
    fn first(&mut self) -> Result<()> {
        self.show(&["get", "computerclasses"])?;
        self.uid = self.create(&self.teams[0])?;
        Ok(())
    }

    fn work_on_first(&mut self) -> Result<()> {
        self.sessions = self.work(&self.teams[0], &self.uid)?;
        Ok(())
    }

    fn delete_first(&mut self) -> Result<()> {
        let team = &self.teams[0];
        let token = self.token(team)?;
        self.say_key(&token, true)?;
        self.show(&["delete", "computer", "box", "-n", team, "--wait=false"])?;
        self.say_key(&token, false)?;
        self.follow(team, &self.uid)
    }

    fn remains(&mut self) -> Result<()> {
        self.receipt(&self.uid)?;
        self.read_back(&self.uid, &self.sessions)
    }

    fn whole_namespace(&mut self) -> Result<()> {
        let team = &self.teams[1];
        let uid = self.create(team)?;
        let sessions = self.work(team, &uid)?;
        let token = self.token(team)?;
        self.show(&["delete", "namespace", team, "--wait=false"])?;
        self.say_key(&token, false)?;
        self.follow(team, &uid)?;
        self.receipt(&uid)?;
        self.read_back(&uid, &sessions)
    }

    /// As a cluster admin would: a restricted namespace, `helm install`, `helm test`.
    fn install(&mut self) -> Result<()> {
        self.namespace(SYSTEM)?;
        let chart = chart::folder().display().to_string();
        let values: Vec<&str> = self.values.iter().map(String::as_str).collect();
        let install = [&["install", RELEASE, &chart, "--namespace", SYSTEM][..], &values, &["--wait", "--timeout", "180s"]].concat();
        let said = self.helm(&install)?;
        // The rest of the notes is not needed in the demo.
        println!("{}", indented(said.split("NOTES:").next().unwrap_or(&said)));
        let said = self.helm(&["test", RELEASE, "--namespace", SYSTEM])?;
        println!("{}", indented(said.lines().rfind(|l| l.starts_with("Phase")).unwrap_or_default()));
        self.show(&["get", "deployments,services", "-n", SYSTEM])
    }

    fn helm(&self, arguments: &[&str]) -> Result<String> {
        let workspace = chart::folder().parent().and_then(Path::parent).map(|folder| format!("{}/", folder.display())).unwrap_or_default();
        println!("$ helm {}", arguments.join(" ").replace(&workspace, ""));
        self.stop.text(&mut self.helm.command(arguments), "")
    }

    /// Creates a namespace with the label of this run; one that exists is an error, because the demo would delete it.
    pub(super) fn namespace(&self, name: &str) -> Result<()> {
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted", LABEL: self.run});
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}).to_string();
        println!("$ echo '{object}' | kubectl create -f -");
        println!("{}", indented(&self.kubectl(&["create", "-f", "-"], &object)?));
        Ok(())
    }

    /// A namespace with a computer in it that is ready; its UID.
    fn create(&self, namespace: &str) -> Result<String> {
        self.namespace(namespace)?;
        let computer = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": "box", "namespace": namespace}, "spec": {"displayName": "A box"}});
        self.eventually("the computer is created", || self.apply(&computer.to_string()))?;
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

    pub(super) fn token(&self, namespace: &str) -> Result<String> {
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
            self.stop.check()?;
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

    pub(super) fn apply(&self, yaml: &str) -> Result<()> {
        self.kubectl(&["apply", "-f", "-"], yaml).map(drop)
    }

    /// Runs a command and shows it with what it prints.
    fn show(&self, arguments: &[&str]) -> Result<()> {
        println!("$ kubectl {}", arguments.join(" "));
        println!("{}", indented(&self.kubectl(arguments, "")?));
        Ok(())
    }

    pub(super) fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.stop.text(Command::new(&self.kubectl).args(arguments).env("KUBECONFIG", &self.kubeconfig), input)
    }

    pub(super) fn eventually(&self, what: &str, ask: impl Fn() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while let Err(error) = ask() {
            self.stop.check()?;
            ensure!(Instant::now() < deadline, "{what}: not within {} s: {error:#}", LIMIT.as_secs());
            std::thread::sleep(Duration::from_millis(300));
        }
        println!("   {what} ({} s after the start)", self.start.elapsed().as_secs());
        Ok(())
    }
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn indented(text: &str) -> String {
    text.trim_end().lines().map(|l| format!("   {l}")).collect::<Vec<_>>().join("\n")
}
