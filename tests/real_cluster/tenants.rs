//! Attacks of a tenant with the rights of an editor: none changes objects of others or destroys a home that is not archived.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use computer_operator::resources::{Children, MANAGED_BY_LABEL, MANAGER, UID_LABEL};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret};
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::Scenario;
use crate::harness::{Bench, LONG, MACHINE, eventually};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![
        all_finalizers_stripped,
        a_foreign_pod_holds_the_claim,
        planted_objects_are_left_alone,
        names_taken_over_during_the_deletion,
        a_claim_that_names_anothers_volume,
        a_status_that_names_anothers_volume
    ]
}

/// A pod that satisfies `restricted`.
pub fn foreign_spec() -> serde_json::Value {
    json!({
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "image": MACHINE, "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
    })
}

/// Every finalizer in the namespace is removed and everything is force-deleted: the home is still archived (S1, S6).
async fn all_finalizers_stripped(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("stripped").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let children = bench.record(&uid).await?.context("a record")?.spec.state.children;
    strip_and_delete(&bench, &namespace, &children).await?;
    let (record, _) = bench.archived(&uid, 3).await?;
    ensure!(record.spec.state.children.volume.is_some());
    Ok(())
}

/// What an editor of a namespace can do to a computer and its children.
pub async fn strip_and_delete(bench: &Bench, namespace: &str, children: &Children) -> Result<()> {
    let pod = children.pods.last().context("a pod")?.name.clone();
    let claim = children.claim_name.clone().context("a claim")?;
    let none = r#"{"metadata":{"finalizers":null}}"#;
    for (kind, name) in [("computer", "box"), ("pod", pod.as_str()), ("pvc", claim.as_str())] {
        bench
            .kubectl(&["delete", kind, name, "-n", namespace, "--force", "--grace-period=0", "--wait=false", "--ignore-not-found"], "")
            .await?;
        // Repeatedly, as an impatient user would.
        eventually("it is gone", LONG, || async {
            let patched = bench.kubectl(&["patch", kind, name, "-n", namespace, "--type=merge", "-p", none], "").await;
            Ok(patched.is_err().then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn a_foreign_pod_holds_the_claim(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("holder").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let claim = bench.record(&uid).await?.and_then(|r| r.spec.state.children.claim_name).context("a claim")?;
    let mut spec = foreign_spec();
    spec["volumes"] = json!([{"name": "home", "persistentVolumeClaim": {"claimName": claim}}]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "squatter"}, "spec": spec});
    bench.kubectl(&["apply", "-n", &namespace, "-f", "-"], &pod.to_string()).await?;
    bench.kubectl(&["wait", "-n", &namespace, "--for=condition=Ready", "pod/squatter", "--timeout=90s"], "").await?;
    bench.delete(&namespace, "box", "background").await?;
    let message = bench.blocked(&namespace, "box", "ForeignPodHoldsClaim").await?;
    ensure!(message.contains("squatter"), "it does not name the pod: {message}");
    ensure!(bench.pods(&namespace).get_opt("squatter").await?.is_some(), "S5: a foreign pod was deleted");
    bench.kubectl(&["delete", "pod", "squatter", "-n", &namespace, "--wait=false"], "").await?;
    bench.archived(&uid, 3).await.map(drop)
}

/// Labels and owner references prove nothing (S5).
async fn planted_objects_are_left_alone(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("planted").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let other: ConfigMap = Api::namespaced(bench.client.clone(), &namespace).get("kube-root-ca.crt").await?;
    // With a second owner that stays, the garbage collector does not delete them either: a deletion can only be the operator's.
    let owners = json!([
        {"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "name": "box", "uid": uid, "controller": true},
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "kube-root-ca.crt", "uid": other.metadata.uid},
    ]);
    let meta = json!({"name": "planted", "ownerReferences": owners,
        "labels": {MANAGED_BY_LABEL: MANAGER, UID_LABEL: uid, "computer-operator.dev/component": "machine"}});
    let all = [
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"token": "mine"}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": foreign_spec()}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
    ];
    bench.kubectl(&["apply", "-n", &namespace, "-f", "-"], &all.map(|o| o.to_string()).join("\n---\n")).await?;
    bench.delete(&namespace, "box", "background").await?;
    bench.archived(&uid, 3).await?;
    let (secrets, claims): (Api<Secret>, Api<PersistentVolumeClaim>) =
        (Api::namespaced(bench.client.clone(), &namespace), Api::namespaced(bench.client.clone(), &namespace));
    ensure!(secrets.get("planted").await?.metadata.deletion_timestamp.is_none(), "S5: a planted Secret was deleted");
    ensure!(claims.get("planted").await?.metadata.deletion_timestamp.is_none(), "S5: a planted claim was deleted");
    ensure!(bench.pods(&namespace).get("planted").await?.metadata.deletion_timestamp.is_none(), "S5: a planted pod was deleted");
    Ok(())
}

/// An object is owned only with its recorded UID (S4): objects that a tenant creates under the names of deleted children stay.
async fn names_taken_over_during_the_deletion(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("names").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let children = bench.record(&uid).await?.context("a record")?.spec.state.children;
    let named = |name: &Option<String>| json!({"name": name, "labels": {MANAGED_BY_LABEL: MANAGER, UID_LABEL: uid}});
    let pod = children.pods.last().map(|p| p.name.clone());
    let all = [
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": named(&children.secret_name), "stringData": {"token": "mine"}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": named(&pod), "spec": foreign_spec()}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": named(&children.claim_name), "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
    ];
    bench.delete(&namespace, "box", "background").await?;
    for object in &all {
        eventually("the name is free", LONG, || async {
            bench.kubectl(&["create", "-n", &namespace, "-f", "-"], &object.to_string()).await.map(Some)
        })
        .await?;
    }
    bench.archived(&uid, 3).await?;
    for object in &all {
        let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        let deleted = bench.kubectl(&["get", kind, name, "-n", &namespace, "-o", "jsonpath={.metadata.deletionTimestamp}"], "").await?;
        ensure!(deleted.is_empty(), "S4: the tenant's {kind} under that name was deleted");
    }
    Ok(())
}

/// A claim can name any volume and have any labels: only the volume determines its owner.
async fn a_claim_that_names_anothers_volume(bench: Arc<Bench>) -> Result<()> {
    let victims = bench.namespace("victim").await?;
    let victim = bench.active(&victims, "box", "standard").await?;
    bench.work(&victims, &victim).await?;
    let volume = bench.record(&victim).await?.and_then(|r| r.spec.state.children.volume).context("a volume")?;
    let thieves = bench.namespace("thief").await?;
    let thief = bench.active(&thieves, "box", "standard").await?;
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "steal", "labels": {MANAGED_BY_LABEL: MANAGER, UID_LABEL: thief}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local-path", "volumeName": volume.name, "resources": {"requests": {"storage": "1Gi"}}}});
    bench.kubectl(&["apply", "-n", &thieves, "-f", "-"], &claim.to_string()).await?;
    bench.delete(&thieves, "box", "background").await?;
    bench.archived(&thief, 0).await?;
    let volumes: Api<PersistentVolume> = Api::all(bench.client.clone());
    let kept = volumes.get(&volume.name).await.context("S5: the victim's volume is gone")?;
    ensure!(kept.labels().get(UID_LABEL) == Some(&victim), "S5: the victim's volume was changed");
    ensure!(bench.shell(&victims, &victim, "cat $HOME/.factory/sessions/one.jsonl").await? == "one\n");
    // The victim's own deletion is not affected either.
    let note = json!({"metadata": {"annotations": {"seen": "yes"}}});
    bench.computers(&victims).patch("box", &PatchParams::default(), &Patch::Merge(note)).await?;
    bench.delete(&victims, "box", "background").await?;
    bench.archived(&victim, 3).await?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(bench.client.clone(), &thieves);
    ensure!(claims.list(&ListParams::default()).await?.items.len() == 1, "S5: the thief's own claim was deleted");
    Ok(())
}

/// A missing class prevents the record from being created; meanwhile the tenant writes a status from which the record is rebuilt.
async fn a_status_that_names_anothers_volume(bench: Arc<Bench>) -> Result<()> {
    let victims = bench.namespace("victim").await?;
    let victim = bench.active(&victims, "box", "standard").await?;
    bench.work(&victims, &victim).await?;
    let children = bench.record(&victim).await?.context("a record")?.spec.state.children;
    let thieves = bench.namespace("forger").await?;
    let thief = bench.create(&thieves, "box", json!({"className": "there-is-none"})).await?;
    let mut volume = serde_json::to_value(children.volume.as_ref().context("a volume")?)?;
    volume["originalReclaimPolicy"] = json!("Delete");
    let forged = json!({"status": {"children": {"claimName": "mine", "claimUid": children.claim_uid, "volume": volume}}});
    // The operator's own first status may come after it.
    eventually("the record is rebuilt", LONG, || async {
        let patch = ["patch", "computer", "box", "-n", &thieves, "--subresource=status", "--type=merge", "-p", &forged.to_string()];
        bench.kubectl(&patch, "").await?;
        bench.record(&thief).await
    })
    .await?;
    bench.delete(&thieves, "box", "background").await?;
    eventually("the forger's computer is gone", LONG, || async {
        Ok(bench.computers(&thieves).get_opt("box").await?.is_none().then_some(()))
    })
    .await?;
    ensure!(bench.shell(&victims, &victim, "cat $HOME/.factory/sessions/one.jsonl").await? == "one\n", "S5");
    bench.delete(&victims, "box", "background").await?;
    bench.archived(&victim, 3).await?;
    Ok(())
}
