//! Classes whose machines run as root, with Pod Security in the operator's namespace: a computer that could never be archived is not created, and
//! one that runs already is deleted as soon as an admin has done what its condition says.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use computer_operator::resources::Phase;
use serde_json::{Value, json};

use crate::Scenario;
use crate::harness::{Bench, LONG, MACHINE, SYSTEM, eventually};

/// With operators that all scenarios share.
pub fn shared() -> Vec<Scenario> {
    xtask::scenarios![a_class_that_runs_as_root]
}

/// Alone: the level of the operator's namespace counts for all classes.
pub fn serial() -> Vec<Scenario> {
    xtask::scenarios![a_root_machine_older_than_the_level]
}

const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// The pod template of a machine that runs as root.
fn as_root() -> Value {
    let containers = json!([{"name": "machine", "image": MACHINE}]);
    json!({"spec": {"terminationGracePeriodSeconds": 2, "securityContext": {"runAsUser": 0, "runAsGroup": 0}, "containers": containers}})
}

/// A namespace whose pods may run as root.
async fn privileged(bench: &Bench, what: &str) -> Result<String> {
    let namespace = bench.namespace(what).await?;
    bench.kubectl(&["label", "namespace", &namespace, "--overwrite", &format!("{ENFORCE}=privileged")], "").await?;
    Ok(namespace)
}

/// Status, reason and message of the condition `Accepted`, when it has this reason.
async fn verdict(bench: &Bench, class: &str, reason: &str) -> Result<String> {
    let query = "jsonpath={range .status.conditions[?(@.type=='Accepted')]}{.status} {.reason} {.message}{end}";
    eventually(&format!("class {class} is {reason}"), LONG, || async {
        let verdict = bench.kubectl(&["get", "computerclass", class, "-o", query], "").await?;
        ensure!(verdict.split(' ').nth(1) == Some(reason), "{verdict}");
        Ok(Some(verdict))
    })
    .await
}

/// The operator's namespace is `restricted`, as the README recommends: no archive pod could read this home. The class is refused before a computer
/// has anything to lose, its computer says why and can be deleted, and the same class without an archive works from creation to deletion.
async fn a_class_that_runs_as_root(bench: Arc<Bench>) -> Result<()> {
    bench.class("root", json!({"podTemplate": as_root()})).await?;
    let refused = verdict(&bench, "root", "ArchiveNotPossible").await?;
    ensure!(
        refused.starts_with("False ") && refused.contains("runAsUser 0") && refused.contains("set spec.archive.policy to None"),
        "{refused}"
    );
    let namespace = privileged(&bench, "root").await?;
    let uid = bench.create(&namespace, "box", json!({"className": "root"})).await?;
    let shown = eventually("the computer says why it is not created", LONG, || async {
        let status = bench.computers(&namespace).get("box").await?.status.unwrap_or_default();
        let ready = status.conditions.into_iter().find(|c| c.type_ == "Ready" && c.reason == "ClassNotAccepted");
        Ok(ready.map(|condition| condition.message))
    })
    .await?;
    ensure!(shown.contains("root") && shown.contains("runAsUser 0"), "{shown}");
    ensure!(bench.machine(&namespace, &uid).await.is_err(), "a machine runs that could never be archived");
    bench.kubectl(&["delete", "computer", "box", "-n", &namespace, "--timeout=60s"], "").await?;

    bench.class("root", json!({"podTemplate": as_root(), "archive": {"policy": "None"}})).await?;
    let accepted = verdict(&bench, "root", "NotRestricted").await?;
    ensure!(accepted.starts_with("True "), "{accepted}");
    let uid = bench.active(&namespace, "box", "root").await?;
    ensure!(bench.shell(&namespace, &uid, "id -u").await? == "0\n", "the machine does not run as root");
    bench.delete(&namespace, "box", "background").await?;
    bench.clean(&uid).await.map(drop)
}

/// The machine was created while the operator's namespace had no level. Its deletion is blocked with the remedy and nothing is destroyed; with the
/// level taken back, everything that root wrote is archived.
async fn a_root_machine_older_than_the_level(bench: Arc<Bench>) -> Result<()> {
    let _operator = bench.usual_operator(9443).await?;
    bench.kubectl(&["label", "namespace", SYSTEM, &format!("{ENFORCE}-")], "").await?;
    bench.class("older-root", json!({"podTemplate": as_root()})).await?;
    verdict(&bench, "older-root", "Accepted").await?;
    let namespace = privileged(&bench, "older").await?;
    let uid = bench.active(&namespace, "box", "older-root").await?;
    bench.work(&namespace, &uid).await?;
    bench.shell(&namespace, &uid, "chmod 600 $HOME/.factory/sessions/one.jsonl").await?;
    bench.kubectl(&["label", "namespace", SYSTEM, "--overwrite", &format!("{ENFORCE}=restricted")], "").await?;

    bench.delete(&namespace, "box", "background").await?;
    let message = bench.blocked(&namespace, "box", "Forbidden").await?;
    ensure!(message.contains("violates PodSecurity") && message.contains(SYSTEM) && message.contains(ENFORCE), "{message}");
    let volume = bench.record(&uid).await?.and_then(|r| r.spec.state.children.volume).context("a volume")?;
    bench.kubectl(&["get", "pv", &volume.name], "").await.context("L1: the home of a blocked deletion is gone")?;
    ensure!(bench.computers(&namespace).get("box").await?.status.and_then(|s| s.phase) == Some(Phase::Deleting));

    bench.kubectl(&["label", "namespace", SYSTEM, &format!("{ENFORCE}-")], "").await?;
    bench.archived(&uid, 3).await?;
    bench.kubectl(&["label", "namespace", SYSTEM, "--overwrite", &format!("{ENFORCE}=restricted")], "").await.map(drop)
}
