//! `exec`, `shell`, `cp`, `logs` and `port-forward`: find the machine's pod, then become kubectl with the same kubeconfig, context and user.
//!
//! The pod is the one that the Computer's status names, with the UID that the status names: the operator alone writes the status. A label must
//! never decide it, because every tenant may set labels.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use computer_operator_api::{Computer, Phase, PodRecord, Provider};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::args::{Global, Machine};
use crate::cluster::{Answer, Cluster};
use crate::create::until_ready;
use crate::outcome::Outcome;
use crate::power::{read, set};
use crate::text::quoted;
use crate::wait::Wait;

/// The volume with the home in a machine's pod.
const HOME: &str = "computer-home";
/// How long a suspended computer may take to start.
const WAKES: Duration = Duration::from_secs(300);

/// A pod and the container that has the home.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    namespace: String,
    pod: String,
    container: String,
}

/// The pod that the status names as the present one.
fn present(computer: &Computer) -> Result<PodRecord> {
    let place = format!("{} -n {}", quoted(&computer.name_any()), quoted(&computer.namespace().unwrap_or_default()));
    ensure!(
        computer.spec.provider == Provider::Managed,
        "Computer {} has no pod, because its provider is BYOM: you run the machine",
        computer.name_any()
    );
    let status = computer.status.clone().unwrap_or_default();
    if status.phase == Some(Phase::Suspended) || computer.spec.suspended {
        bail!("Computer {} is suspended: start it with --wake, or with `kubectl computer resume {place} --wait`", computer.name_any());
    }
    let pods = status.children.map(|children| children.pods).unwrap_or_default();
    let live = |pod: &PodRecord| pod.uid.is_some() && pod.stopped_at.is_none() && pod.vanished_at.is_none();
    pods.into_iter()
        .rev()
        .find(live)
        .with_context(|| format!("Computer {} has no running pod: `kubectl computer why {place}` says why", computer.name_any()))
}

/// The container with the home: the first one that mounts it.
fn container(pod: &Pod) -> Option<String> {
    let containers = &pod.spec.as_ref()?.containers;
    let mounts =
        |container: &&k8s_openapi::api::core::v1::Container| container.volume_mounts.iter().flatten().any(|mount| mount.name == HOME);
    containers.iter().find(mounts).or(containers.first()).map(|container| container.name.clone())
}

async fn target(cluster: &Cluster, name: &str, wake: bool) -> Result<Target> {
    let mut computer = read(cluster, name).await?;
    if wake && computer.spec.suspended {
        let resumed = set(cluster, &computer, false).await?;
        let outcome = until_ready(cluster, &resumed, Wait::aside(WAKES)).await?;
        ensure!(outcome == Outcome::Done, "Computer {name} did not start");
        computer = read(cluster, name).await?;
    }
    let wanted = present(&computer)?;
    let namespace = computer.namespace().unwrap_or_default();
    let pod = match cluster.get::<Pod>(Some(&namespace), &wanted.name).await? {
        Answer::Found(pod) => pod,
        Answer::Absent => bail!("pod {} of Computer {name} does not exist any more: repeat the command", wanted.name),
        Answer::Denied(right) => bail!("you have no right to {right}"),
    };
    ensure!(pod.uid() == wanted.uid, "pod {} is not the pod of Computer {name}: its UID is another one", wanted.name);
    let container = container(&pod).context("the pod has no container")?;
    Ok(Target { namespace, pod: wanted.name, container })
}

/// The caller's flags, for kubectl.
fn flags(global: &Global) -> Vec<String> {
    let mut flags = Vec::new();
    let mut flag = |name: &str, value: &str| flags.push(format!("--{name}={value}"));
    if let Some(file) = &global.kubeconfig {
        flag("kubeconfig", &file.to_string_lossy());
    }
    if let Some(context) = &global.context {
        flag("context", context);
    }
    if let Some(user) = &global.as_user {
        flag("as", user);
    }
    global.as_group.iter().for_each(|group| flag("as-group", group));
    flags
}

/// Replaces this process by kubectl: its exit code is that of the command in the machine.
fn become_kubectl(global: &Global, arguments: &[String]) -> Result<()> {
    let error = Command::new("kubectl").args(flags(global)).args(arguments).exec();
    Err(error).context("run kubectl, which must be in the PATH")
}

fn exec_arguments(target: &Target, command: &[String], terminal: bool) -> Vec<String> {
    let mut arguments = vec!["exec".to_owned(), "-i".to_owned()];
    if terminal {
        arguments.push("-t".to_owned());
    }
    arguments.extend(["-n", &target.namespace, &target.pod, "-c", &target.container, "--"].map(str::to_owned));
    if command.is_empty() {
        // bash if the image has it.
        arguments.extend(
            ["sh", "-c", "cd \"$HOME\" 2>/dev/null; if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi"]
                .map(str::to_owned),
        );
    } else {
        arguments.extend(command.iter().cloned());
    }
    arguments
}

/// `exec` and `shell`.
///
/// # Errors
/// When the pod is not found, or kubectl is not installed.
pub async fn exec(cluster: &Cluster, machine: &Machine, command: &[String]) -> Result<()> {
    use std::io::IsTerminal as _;
    let target = target(cluster, &machine.name, machine.wake).await?;
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    become_kubectl(&cluster.global, &exec_arguments(&target, command, terminal))
}

/// `logs`.
///
/// # Errors
/// As [`exec`].
pub async fn logs(cluster: &Cluster, name: &str, follow: bool, previous: bool, tail: i64) -> Result<()> {
    let target = target(cluster, name, false).await?;
    let mut arguments = ["logs", "-n", &target.namespace, &target.pod, "-c", &target.container].map(str::to_owned).to_vec();
    arguments.extend([(follow, "--follow"), (previous, "--previous")].into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag.to_owned()));
    arguments.push(format!("--tail={tail}"));
    become_kubectl(&cluster.global, &arguments)
}

/// `port-forward`.
///
/// # Errors
/// As [`exec`].
pub async fn port_forward(cluster: &Cluster, machine: &Machine, ports: &[String]) -> Result<()> {
    let target = target(cluster, &machine.name, machine.wake).await?;
    let mut arguments = ["port-forward", "-n", &target.namespace, &format!("pod/{}", target.pod)].map(str::to_owned).to_vec();
    arguments.extend(ports.iter().cloned());
    become_kubectl(&cluster.global, &arguments)
}

/// The computer of a path, if it has one: `box:/home/user`.
fn remote(path: &str) -> Option<(&str, &str)> {
    let (name, rest) = path.split_once(':')?;
    (!name.is_empty() && !name.contains('/')).then_some((name, rest))
}

/// `cp`.
///
/// # Errors
/// When not exactly one of the paths is in a machine; otherwise as [`exec`].
pub async fn cp(cluster: &Cluster, from: &str, to: &str, wake: bool) -> Result<()> {
    let (name, out) = match (remote(from), remote(to)) {
        (Some((name, _)), None) => (name, true),
        (None, Some((name, _))) => (name, false),
        _ => bail!("exactly one of the paths must be in the machine, as NAME:PATH"),
    };
    let target = target(cluster, name, wake).await?;
    let inside =
        |path: &str| remote(path).map_or_else(|| path.to_owned(), |(_, rest)| format!("{}/{}:{rest}", target.namespace, target.pod));
    let (from, to) = if out { (inside(from), to.to_owned()) } else { (from.to_owned(), inside(to)) };
    become_kubectl(&cluster.global, &["cp".to_owned(), "-c".to_owned(), target.container.clone(), from, to])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::test_objects::observed;

    fn computer(fields: Value) -> Computer {
        observed(Some(fields), None).computer.found().unwrap()
    }

    #[test]
    fn the_pod_is_the_one_that_the_status_names() {
        let pods = json!([{"name": "old", "uid": "1", "stoppedAt": "2026-01-01T00:00:00Z"}, {"name": "now", "uid": "2"}, {"name": "next"}]);
        let found = present(&computer(json!({"status": {"children": {"pods": pods}}}))).unwrap();
        assert_eq!((found.name.as_str(), found.uid.as_deref()), ("now", Some("2")));
        let refused = |fields: Value| present(&computer(fields)).unwrap_err().to_string();
        assert!(refused(json!({})).contains("kubectl computer why box -n team-a"));
        assert!(refused(json!({"spec": {"suspended": true}})).contains("--wake"));
        assert!(refused(json!({"spec": {"provider": "BYOM"}})).contains("BYOM"));
    }

    #[test]
    fn the_container_is_the_one_with_the_home() {
        let pod = |containers: Value| serde_json::from_value::<Pod>(json!({"spec": {"containers": containers}})).unwrap();
        let home = json!([{"name": HOME, "mountPath": "/home/user"}]);
        assert_eq!(container(&pod(json!([{"name": "sidecar"}, {"name": "machine", "volumeMounts": home}]))).as_deref(), Some("machine"));
        assert_eq!(container(&pod(json!([{"name": "only"}]))).as_deref(), Some("only"));
    }

    #[test]
    fn kubectl_gets_the_same_flags_and_the_command_unchanged() {
        let global = Global { context: Some("c".into()), as_user: Some("u".into()), as_group: vec!["g".into()], ..Global::default() };
        assert_eq!(flags(&global), ["--context=c", "--as=u", "--as-group=g"]);
        let target = Target { namespace: "n".into(), pod: "p".into(), container: "k".into() };
        let command = ["rm".to_owned(), "-i".to_owned()];
        assert_eq!(exec_arguments(&target, &command, false), ["exec", "-i", "-n", "n", "p", "-c", "k", "--", "rm", "-i"]);
        assert!(exec_arguments(&target, &[], true).contains(&"-t".to_owned()));
    }

    #[test]
    fn a_path_in_a_machine_begins_with_its_name() {
        assert_eq!(remote("box:/a"), Some(("box", "/a")));
        assert_eq!((remote("./a:b"), remote("/a"), remote(":x")), (None, None, None));
    }
}
