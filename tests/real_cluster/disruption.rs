//! Failures of the operator itself, its store, its rights and its image. One at a time, each with its own operators.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use computer_operator::resources::{Cause, DELETION_FINALIZER, RecordPhase};
use serde_json::json;

use crate::Scenario;
use crate::harness::{Bench, LONG, SYSTEM, StoreDown, eventually};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![
        operator_down,
        stripped_while_the_operator_is_down,
        killed_repeatedly,
        store_down_and_back,
        hand_off_while_the_store_is_down,
        rights_taken_away,
        without_the_finalizer_policy,
        archive_image_missing
    ]
}

/// A key is revoked also while the operator is down, and only time is lost (S2, L1).
async fn operator_down(bench: Arc<Bench>) -> Result<()> {
    let mut operator = bench.usual_operator(9443).await?;
    let (one, two) = (bench.namespace("down").await?, bench.namespace("down").await?);
    let first = bench.active(&one, "box", "standard").await?;
    let second = bench.active(&two, "box", "standard").await?;
    bench.work(&one, &first).await?;
    bench.work(&two, &second).await?;
    let tokens = [bench.token(&one, "box").await?, bench.token(&two, "box").await?];
    operator.kill();
    bench.delete(&one, "box", "background").await?;
    bench.kubectl(&["delete", "namespace", &two, "--wait=false"], "").await?;
    for token in &tokens {
        ensure!(!bench.authenticates(token).await?, "S2: a key authenticates while the operator is down");
    }
    ensure!(
        bench.record(&first).await?.context("a record")?.spec.state.phase == RecordPhase::Live,
        "another client did the operator's work"
    );
    let _operator = bench.usual_operator(9443).await?;
    bench.archived(&first, 3).await?;
    bench.archived(&second, 3).await?;
    bench.namespace_gone(&two).await
}

/// No operator runs to observe the containers stop. The archive waits until a running kubelet must have killed them, and is written.
async fn stripped_while_the_operator_is_down(bench: Arc<Bench>) -> Result<()> {
    let mut operator = bench.usual_operator(9443).await?;
    let namespace = bench.namespace("unseen").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let children = bench.record(&uid).await?.context("a record")?.spec.state.children;
    operator.kill();
    crate::tenants::strip_and_delete(&bench, &namespace, &children).await?;
    let _operator = bench.usual_operator(9443).await?;
    let (record, _) = bench.archived(&uid, 3).await?;
    let cause = record.spec.state.deletion.context("no deletion")?.cause;
    ensure!(cause == Cause::ComputerVanished, "{cause:?}");
    Ok(())
}

/// SIGKILL at every step, twenty times during several deletions: each deletion ends normally.
async fn killed_repeatedly(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("killed").await?;
    let mut operator = bench.usual_operator(9443).await?;
    let mut uids = wave(&bench, &namespace).await?;
    let mut kills = 0;
    while kills < 20 {
        // A different moment each time: the next change of any of the records, and a little later.
        let before = versions(&bench, &uids).await?;
        let released = eventually("a record changes", LONG, || async {
            if versions(&bench, &uids).await? != before {
                return Ok(Some(false));
            }
            Ok(all_released(&bench, &uids).await?.then_some(true))
        })
        .await?;
        if released {
            uids.extend(wave(&bench, &namespace).await?);
            continue;
        }
        tokio::time::sleep(Duration::from_millis(kills * 37 % 400)).await;
        operator.kill();
        kills += 1;
        operator = bench.usual_operator(9443).await?;
    }
    for uid in &uids {
        bench.archived(uid, 3).await?;
    }
    Ok(())
}

/// Four computers that are being deleted.
async fn wave(bench: &Bench, namespace: &str) -> Result<Vec<String>> {
    let mut uids = Vec::new();
    for i in 0..4 {
        let uid = bench.active(namespace, &format!("box-{i}"), "standard").await?;
        bench.work(namespace, &uid).await?;
        uids.push(uid);
    }
    bench.kubectl(&["delete", "computer", "--all", "-n", namespace, "--wait=false"], "").await?;
    Ok(uids)
}

async fn versions(bench: &Bench, uids: &[String]) -> Result<Vec<Option<String>>> {
    let mut all = Vec::new();
    for uid in uids {
        all.push(bench.record(uid).await?.and_then(|r| r.metadata.resource_version));
    }
    Ok(all)
}

async fn all_released(bench: &Bench, uids: &[String]) -> Result<bool> {
    for uid in uids {
        if bench.record(uid).await?.is_none_or(|r| r.spec.state.phase != RecordPhase::Released) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn store_down_and_back(bench: Arc<Bench>) -> Result<()> {
    let _operator = bench.usual_operator(9443).await?;
    let namespace = bench.namespace("store").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let down = StoreDown::new(&bench)?;
    bench.delete(&namespace, "box", "background").await?;
    let message = bench.blocked(&namespace, "box", "StoreUnavailable").await?;
    ensure!(message.contains("store"), "{message}");
    ensure!(bench.record(&uid).await?.context("a record")?.spec.state.children.volume.is_some());
    drop(down);
    bench.archived(&uid, 3).await.map(drop)
}

/// L7 with hand-off: the namespace is deleted while the store is down. The deletion continues from the record after the store recovers.
async fn hand_off_while_the_store_is_down(bench: Arc<Bench>) -> Result<()> {
    let _operator = bench.usual_operator(9443).await?;
    bench.class("hand-off", json!({"archive": {"policy": "Required", "onNamespaceDeletion": "HandOff"}})).await?;
    let namespace = bench.namespace("hand-off").await?;
    let uid = bench.active(&namespace, "box", "hand-off").await?;
    bench.work(&namespace, &uid).await?;
    let token = bench.token(&namespace, "box").await?;
    let down = StoreDown::new(&bench)?;
    bench.kubectl(&["delete", "namespace", &namespace, "--wait=false"], "").await?;
    bench.namespace_gone(&namespace).await?;
    ensure!(!bench.authenticates(&token).await?, "S2");
    let record = bench.record(&uid).await?.context("a record")?;
    ensure!(record.spec.state.phase == RecordPhase::Deleting && record.spec.state.deletion.is_some_and(|d| d.handed_off), "not handed off");
    // There is no Computer left whose condition could report it.
    eventually("kubectl describe of the record says why it is stuck", LONG, || async {
        let described = bench.kubectl(&["describe", "computerrecord", &uid, "-n", SYSTEM], "").await?;
        Ok((described.contains("Warning") && described.contains("StoreUnavailable")).then_some(()))
    })
    .await?;
    drop(down);
    bench.archived(&uid, 3).await.map(drop)
}

async fn rights_taken_away(bench: Arc<Bench>) -> Result<()> {
    let _operator = bench.usual_operator(9443).await?;
    let namespace = bench.namespace("rights").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let role = bench.kubectl(&["get", "clusterrole", "computer-operator", "-o", "json"], "").await?;
    let mut less: serde_json::Value = serde_json::from_str(&role)?;
    // All rights except patching volumes: custody cannot begin.
    for rule in less["rules"].as_array_mut().context("rules")? {
        if rule["resources"] == json!(["persistentvolumes"]) {
            rule["verbs"] = json!(["get", "list", "watch"]);
        }
    }
    less["metadata"] = json!({"name": "computer-operator"});
    bench.kubectl(&["replace", "-f", "-"], &less.to_string()).await?;
    bench.delete(&namespace, "box", "background").await?;
    let message = bench.blocked(&namespace, "box", "Forbidden").await?;
    ensure!(message.contains("persistentvolumes") && message.contains("The operator retries"), "it does not say which right: {message}");
    let mut whole: serde_json::Value = serde_json::from_str(&role)?;
    whole["metadata"] = json!({"name": "computer-operator"});
    bench.kubectl(&["replace", "-f", "-"], &whole.to_string()).await?;
    bench.archived(&uid, 3).await.map(drop)
}

/// A cluster that does not serve the mutating policy: the operator adds the finalizer itself, before it creates a child (DESIGN.md 4.2).
async fn without_the_finalizer_policy(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("bare").await?;
    let probe =
        json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": "probe"}, "spec": {}}).to_string();
    let create = ["create", "-n", &namespace, "--dry-run=server", "-o", "jsonpath={.metadata.finalizers}", "-f", "-"];
    ensure!(!bench.kubectl(&create, &probe).await?.is_empty(), "the policy is not in force");
    bench.kubectl(&["delete", "mutatingadmissionpolicybinding", "computer-operator-finalizer"], "").await?;
    eventually("the policy is gone", LONG, || async { Ok(bench.kubectl(&create, &probe).await?.is_empty().then_some(())) }).await?;
    let _operator = bench.leading_operator(9443).await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let finalizers = bench.computers(&namespace).get("box").await?.metadata.finalizers.unwrap_or_default();
    ensure!(finalizers == [DELETION_FINALIZER], "{finalizers:?}");
    bench.delete(&namespace, "box", "foreground").await?;
    bench.archived(&uid, 3).await?;
    bench.chart().await
}

async fn archive_image_missing(bench: Arc<Bench>) -> Result<()> {
    let mut operator = bench.operator(9443, "computer-operator.dev/not-there:dev").await?;
    let namespace = bench.namespace("image").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    bench.delete(&namespace, "box", "background").await?;
    let message = bench.blocked(&namespace, "box", "ArchivePodWaiting").await?;
    ensure!(message.contains("not-there"), "it does not name the image: {message}");
    operator.kill();
    // The admin fixes the operator's image: the stuck pod is replaced by one with the existing image.
    let _operator = bench.usual_operator(9443).await?;
    bench.archived(&uid, 3).await?;
    let describe =
        eventually("events", LONG, || async { bench.kubectl(&["get", "events", "-n", &namespace, "-o", "name"], "").await.map(Some) })
            .await?;
    ensure!(!describe.is_empty());
    Ok(())
}
