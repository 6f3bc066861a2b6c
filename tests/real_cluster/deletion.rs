//! Every way in which a deletion begins, and everything that can block it.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use computer_operator::resources::{Cause, Phase};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::Scenario;
use crate::harness::{Bench, LONG, MACHINE, SYSTEM, eventually};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![
        background,
        foreground,
        orphan,
        namespace_while_running,
        namespace_before_the_pod_is_ready,
        namespace_during_the_archive,
        while_provisioning,
        same_name_is_created_again_at_once,
        children_deleted_by_hand_before,
        children_deleted_by_force_during,
        class_deleted_first,
        archive_and_operator_on_different_nodes,
        bring_your_own_machine,
        a_retained_volume,
        suspended_and_resumed,
        time_to_live,
        steady_state_is_silent,
    ]
}

async fn delete_with(bench: &Bench, cascade: &str) -> Result<()> {
    let namespace = bench.namespace(cascade).await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let token = bench.token(&namespace, "box").await?;
    ensure!(bench.authenticates(&token).await?, "a live key does not authenticate");
    bench.delete(&namespace, "box", cascade).await?;
    ensure!(!bench.authenticates(&token).await?, "S2: the key authenticates after the delete was accepted");
    bench.archived(&uid, 3).await.map(drop)
}

async fn background(bench: Arc<Bench>) -> Result<()> {
    delete_with(&bench, "background").await
}

async fn foreground(bench: Arc<Bench>) -> Result<()> {
    delete_with(&bench, "foreground").await
}

/// Orphan deletion removes the owner references: the record still names the owned objects.
async fn orphan(bench: Arc<Bench>) -> Result<()> {
    delete_with(&bench, "orphan").await
}

async fn delete_namespace(bench: &Bench, namespace: &str) -> Result<()> {
    bench.kubectl(&["delete", "namespace", namespace, "--wait=false"], "").await.map(drop)
}

async fn namespace_while_running(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("ns-running").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let token = bench.token(&namespace, "box").await?;
    // A pod of another owner in the same namespace: the namespace controller deletes it with the others.
    let foreign = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "foreign"}, "spec": crate::tenants::foreign_spec()});
    bench.kubectl(&["apply", "-n", &namespace, "-f", "-"], &foreign.to_string()).await?;
    delete_namespace(&bench, &namespace).await?;
    ensure!(!bench.authenticates(&token).await?, "S2: the key authenticates in a terminating namespace");
    bench.namespace_gone(&namespace).await?;
    let (record, _) = bench.archived(&uid, 3).await?;
    let cause = record.spec.state.deletion.context("no deletion")?.cause;
    ensure!(matches!(cause, Cause::NamespaceTerminating | Cause::ComputerDeleted), "{cause:?}");
    Ok(())
}

async fn namespace_before_the_pod_is_ready(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("ns-early").await?;
    let uid = bench.create(&namespace, "box", json!({"className": "standard"})).await?;
    eventually("the record", LONG, || async { bench.record(&uid).await }).await?;
    delete_namespace(&bench, &namespace).await?;
    bench.namespace_gone(&namespace).await?;
    bench.clean(&uid).await.map(drop)
}

async fn namespace_during_the_archive(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("ns-middle").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    bench.shell(&namespace, &uid, "dd if=/dev/urandom of=$HOME/.factory/sessions/big.jsonl bs=1M count=40 2>/dev/null").await?;
    bench.delete(&namespace, "box", "background").await?;
    eventually("custody", LONG, || async { Ok(bench.record(&uid).await?.and_then(|r| r.spec.state.deletion?.custody)) }).await?;
    delete_namespace(&bench, &namespace).await?;
    bench.namespace_gone(&namespace).await?;
    bench.archived(&uid, 4).await.map(drop)
}

async fn while_provisioning(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("early").await?;
    let mut uids = Vec::new();
    for i in 0..4 {
        let name = format!("box-{i}");
        let uid = bench.create(&namespace, &name, json!({"className": "standard"})).await?;
        if i > 0 {
            eventually("a first sign", LONG, || async {
                let record = bench.record(&uid).await?;
                Ok(match i {
                    1 => record.map(drop),
                    2 => record.and_then(|r| r.spec.state.children.claim_uid).map(drop),
                    _ => record.and_then(|r| r.spec.state.children.volume).map(drop),
                })
            })
            .await?;
        }
        bench.delete(&namespace, &name, "background").await?;
        uids.push(uid);
    }
    for uid in &uids[1..] {
        bench.clean(uid).await?;
    }
    // The first may be gone before the operator ever observed it: then nothing was created, and nothing may be left.
    eventually("the first is gone", LONG, || async { Ok(bench.computers(&namespace).get_opt("box-0").await?.is_none().then_some(())) })
        .await?;
    if bench.record(&uids[0]).await?.is_some() {
        bench.clean(&uids[0]).await?;
    }
    Ok(())
}

async fn same_name_is_created_again_at_once(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("again").await?;
    let first = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &first).await?;
    let old_token = bench.token(&namespace, "box").await?;
    bench.delete(&namespace, "box", "background").await?;
    let second = eventually("the name is free again", LONG, || async {
        Ok(bench.create(&namespace, "box", json!({"className": "standard"})).await.ok())
    })
    .await?;
    ensure!(first != second);
    bench.phase(&namespace, "box", Phase::Active).await?;
    bench.archived(&first, 3).await?;
    ensure!(!bench.authenticates(&old_token).await?, "S4: the old key authenticates for the new computer");
    let token = bench.token(&namespace, "box").await?;
    ensure!(bench.authenticates(&token).await?, "S4: the old deletion changed the new computer");
    ensure!(bench.shell(&namespace, &second, "ls -A $HOME").await?.trim().is_empty(), "the new home is not new");
    bench.delete(&namespace, "box", "background").await?;
    bench.archived(&second, 0).await.map(drop)
}

async fn remove_by_force(bench: &Bench, namespace: &str, uid: &str) -> Result<()> {
    let children = bench.record(uid).await?.context("a record")?.spec.state.children;
    let pod = children.pods.last().context("a pod")?.name.clone();
    let claim = children.claim_name.context("a claim")?;
    let secret = children.secret_name.context("a Secret")?;
    for (kind, name) in [("pvc", claim), ("pod", pod), ("secret", secret)] {
        bench
            .kubectl(&["delete", kind, &name, "-n", namespace, "--force", "--grace-period=0", "--wait=false", "--ignore-not-found"], "")
            .await?;
    }
    Ok(())
}

async fn children_deleted_by_hand_before(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("by-hand").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let before = bench.record(&uid).await?.context("a record")?.spec.state.children;
    remove_by_force(&bench, &namespace, &uid).await?;
    // The home survives its claim and its pod, and is used again by a new claim and a new pod.
    eventually("the computer is ready again", LONG, || async {
        let children = bench.record(&uid).await?.context("a record")?.spec.state.children;
        let ready = bench.computers(&namespace).get("box").await?.status.and_then(|s| s.phase) == Some(Phase::Active);
        Ok((ready && children.claim_uid.is_some() && children.claim_uid != before.claim_uid).then_some(()))
    })
    .await?;
    let home =
        eventually("a shell", LONG, || async { bench.shell(&namespace, &uid, "cat $HOME/.factory/sessions/one.jsonl").await.map(Some) })
            .await?;
    ensure!(home == "one\n", "the home is a different one: {home:?}");
    bench.delete(&namespace, "box", "background").await?;
    bench.archived(&uid, 3).await.map(drop)
}

async fn children_deleted_by_force_during(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("by-force").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    bench.delete(&namespace, "box", "background").await?;
    remove_by_force(&bench, &namespace, &uid).await?;
    bench.archived(&uid, 3).await.map(drop)
}

async fn class_deleted_first(bench: Arc<Bench>) -> Result<()> {
    bench.class("short-lived", json!({})).await?;
    let namespace = bench.namespace("no-class").await?;
    let uid = bench.active(&namespace, "box", "short-lived").await?;
    bench.work(&namespace, &uid).await?;
    bench.kubectl(&["delete", "computerclass", "short-lived"], "").await?;
    bench.delete(&namespace, "box", "background").await?;
    bench.archived(&uid, 3).await.map(drop)
}

/// The operators listen on the first node's address: the archive streams to them from the second node.
async fn archive_and_operator_on_different_nodes(bench: Arc<Bench>) -> Result<()> {
    let node = xtask::node::NAMES[1];
    let template = json!({"spec": {"terminationGracePeriodSeconds": 2, "nodeSelector": {"kubernetes.io/hostname": node},
        "containers": [{"name": "machine", "image": MACHINE}]}});
    bench.class("second-node", json!({"podTemplate": template})).await?;
    let namespace = bench.namespace("nodes").await?;
    let uid = bench.active(&namespace, "box", "second-node").await?;
    bench.work(&namespace, &uid).await?;
    bench.delete(&namespace, "box", "background").await?;
    let of_computer = kube::api::ListParams::default().labels(&format!("{}={uid}", computer_operator::resources::UID_LABEL));
    let ran_on = eventually("the archive pod has a node", LONG, || async {
        let pods = bench.pods(SYSTEM).list(&of_computer).await?;
        Ok(pods.items.into_iter().find_map(|p| p.spec?.node_name))
    })
    .await?;
    ensure!(ran_on == node, "the archive ran on {ran_on}");
    bench.archived(&uid, 3).await.map(drop)
}

async fn bring_your_own_machine(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("byom").await?;
    let uid = bench.create(&namespace, "mine", json!({"provider": "BYOM"})).await?;
    bench.phase(&namespace, "mine", Phase::Active).await?;
    ensure!(bench.pods(&namespace).list(&kube::api::ListParams::default()).await?.items.is_empty(), "a BYOM computer has no pod");
    let token = bench.token(&namespace, "mine").await?;
    ensure!(bench.authenticates(&token).await?);
    bench.delete(&namespace, "mine", "background").await?;
    ensure!(!bench.authenticates(&token).await?, "S2");
    bench.clean(&uid).await.map(drop)
}

async fn a_retained_volume(bench: Arc<Bench>) -> Result<()> {
    let storage = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "keep"}, "provisioner": "rancher.io/local-path", "reclaimPolicy": "Retain", "volumeBindingMode": "WaitForFirstConsumer"});
    bench.kubectl(&["apply", "-f", "-"], &storage.to_string()).await?;
    bench.class("keep", json!({"storage": {"size": "1Gi", "storageClassName": "keep", "mountPath": "/home/user"}})).await?;
    let namespace = bench.namespace("keep").await?;
    let uid = bench.active(&namespace, "box", "keep").await?;
    bench.work(&namespace, &uid).await?;
    bench.delete(&namespace, "box", "background").await?;
    let (record, _) = bench.archived(&uid, 3).await?;
    let volume = record.spec.state.children.volume.context("a volume")?;
    let api: Api<k8s_openapi::api::core::v1::PersistentVolume> = Api::all(bench.client.clone());
    let kept = api.get(&volume.name).await.context("the volume must stay")?;
    ensure!(kept.metadata.labels.unwrap_or_default().keys().all(|k| !k.contains("computer-operator")), "the operator's mark is left on it");
    let receipt = String::from_utf8(bench.store()?.get(&computer_operator::archive::receipt_key(&uid)).await?)?;
    ensure!(receipt.contains(&volume.name) && receipt.contains("is kept"), "the receipt does not name it: {receipt}");
    api.delete(&volume.name, &DeleteParams::default()).await?;
    Ok(())
}

async fn suspended_and_resumed(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("suspend").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let token = bench.token(&namespace, "box").await?;
    let suspend = |on: bool| json!({"spec": {"suspended": on}});
    bench.computers(&namespace).patch("box", &PatchParams::default(), &Patch::Merge(suspend(true))).await?;
    bench.phase(&namespace, "box", Phase::Suspended).await?;
    ensure!(bench.machine(&namespace, &uid).await.is_err(), "a suspended computer has no pod");
    ensure!(bench.authenticates(&token).await?, "a suspended computer keeps its key");
    bench.computers(&namespace).patch("box", &PatchParams::default(), &Patch::Merge(suspend(false))).await?;
    bench.phase(&namespace, "box", Phase::Active).await?;
    ensure!(bench.shell(&namespace, &uid, "cat $HOME/.factory/sessions/one.jsonl").await? == "one\n", "the home is a different one");
    bench.computers(&namespace).patch("box", &PatchParams::default(), &Patch::Merge(suspend(true))).await?;
    bench.phase(&namespace, "box", Phase::Suspended).await?;
    bench.delete(&namespace, "box", "background").await?;
    bench.archived(&uid, 3).await.map(drop)
}

async fn time_to_live(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("ttl").await?;
    // The longest time that the CRD allows delays nothing.
    let patient = bench.create(&namespace, "patient", json!({"provider": "BYOM", "timeToLiveSeconds": 315_360_000})).await?;
    bench.phase(&namespace, "patient", Phase::Active).await?;
    let uid = bench.create(&namespace, "box", json!({"className": "standard", "timeToLiveSeconds": 60})).await?;
    let record = bench.clean(&uid).await?;
    let cause = record.spec.state.deletion.context("no deletion")?.cause;
    ensure!(cause == Cause::TimeToLiveExpired, "{cause:?}");
    bench.delete(&namespace, "patient", "background").await?;
    bench.clean(&patient).await?;
    time_to_live_of_a_class(&bench, &namespace).await
}

/// A Computer that asks for none, and one that asks for too much. A change of the class afterwards ends neither earlier nor later.
async fn time_to_live_of_a_class(bench: &Bench, namespace: &str) -> Result<()> {
    let limits = json!({"limits": {"defaultTimeToLiveSeconds": 60, "maxTimeToLiveSeconds": 70}});
    bench.class("brief", limits).await?;
    let mut created = Vec::new();
    for (name, spec) in [("default", json!({"className": "brief"})), ("long", json!({"className": "brief", "timeToLiveSeconds": 86400}))] {
        created.push(bench.create(namespace, name, spec).await?);
        bench.phase(namespace, name, Phase::Active).await?;
    }
    bench.class("brief", json!({"limits": {}})).await?;
    for uid in created {
        let cause = bench.clean(&uid).await?.spec.state.deletion.context("no deletion")?.cause;
        ensure!(cause == Cause::TimeToLiveExpired, "{cause:?}");
    }
    Ok(())
}

/// L6: no client writes to a computer in the steady state.
async fn steady_state_is_silent(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("silent").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    let versions = || async {
        let computer = bench.computers(&namespace).get("box").await?.metadata.resource_version;
        let record = bench.record(&uid).await?.context("a record")?.metadata.resource_version;
        anyhow::Ok((computer, record))
    };
    let stable = eventually("it has settled", LONG, || async {
        let first = versions().await?;
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        Ok((versions().await? == first).then_some(first))
    })
    .await?;
    // Events that concern it, but change nothing.
    for i in 0..5 {
        let annotate = json!({"metadata": {"annotations": {"touched": i.to_string()}}});
        let secret =
            Secret { metadata: kube::api::ObjectMeta { name: Some(format!("noise-{i}")), ..Default::default() }, ..Secret::default() };
        Api::<Secret>::namespaced(bench.client.clone(), &namespace).create(&PostParams::default(), &secret).await?;
        let pod = bench.machine(&namespace, &uid).await?;
        bench.pods(&namespace).patch(&pod, &PatchParams::default(), &Patch::Merge(&annotate)).await?;
    }
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    ensure!(versions().await? == stable, "L6: something was written");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(bench.client.clone(), SYSTEM);
    ensure!(claims.get_opt(&format!("home-{uid}")).await?.is_none());
    bench.delete(&namespace, "box", "background").await?;
    bench.clean(&uid).await.map(drop)
}
