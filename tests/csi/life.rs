//! Homes on attachable volumes, from the creation to the verified archive, with each binding mode and reclaim policy, expanded and modified.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use computer_operator::resources::ComputerRecord;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::Scenario;
use crate::harness::{LONG, eventually};
use crate::world::World;

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![
        bound_when_it_is_used,
        bound_at_once,
        a_kept_volume,
        expanded_while_alive,
        of_a_volume_attributes_class,
        a_secret_of_the_tenants_namespace
    ]
}

/// A computer with three sessions in an attached home: its UID and its volume.
pub async fn computer(world: &World, namespace: &str, class: &str) -> Result<(String, String)> {
    let uid = world.active(namespace, "box", class).await?;
    world.work(namespace, &uid).await?;
    let volume = world.home(&uid).await?;
    let (_, node) = world.attachment(&volume).await?;
    ensure!(node == world.node_of(namespace, &uid).await?, "{volume} is attached to {node}, where its machine does not run");
    Ok((uid, volume))
}

/// The archive is verified, and nothing is left of the volume. It was attached for the machine, then for the archive pod, and detached from
/// both before it was deleted.
pub async fn ended(world: &World, uid: &str, volume: &str) -> Result<Vec<String>> {
    let (record, _) = world.archived(uid, 3).await?;
    world.nothing_left(volume).await?;
    let history = world.storage.history(volume)?;
    println!("    {volume}: {}; {}", history.join(", "), times(&record)?);
    let kinds: Vec<&str> = history.iter().filter_map(|call| call.split(' ').next()).filter(|kind| *kind != "expand").collect();
    ensure!(kinds == ["create", "attach", "detach", "attach", "detach", "delete"], "{history:?}");
    Ok(history)
}

/// How long after the deletion began each step was finished.
fn times(record: &ComputerRecord) -> Result<String> {
    let deletion = record.spec.state.deletion.as_ref().context("no deletion")?;
    let steps = serde_json::to_value(&deletion.steps)?;
    let finished = |outcome: &Value| -> Option<i64> {
        let at: MicroTime = serde_json::from_value(outcome["at"].clone()).ok()?;
        Some(at.0.duration_since(deletion.deleted_at.0).as_secs())
    };
    let all = steps.as_object().context("steps by name")?.iter();
    let mut all: Vec<_> = all.filter_map(|(step, outcome)| Some((finished(outcome)?, step))).collect();
    all.sort();
    Ok(all.iter().map(|(seconds, step)| format!("{step} after {seconds} s")).collect::<Vec<_>>().join(", "))
}

async fn whole_life(world: &World, storage: &str) -> Result<()> {
    world.class_of(storage, storage, "").await?;
    let namespace = world.namespace(storage).await?;
    let (uid, volume) = computer(world, &namespace, storage).await?;
    world.delete(&namespace, "box", "background").await?;
    ended(world, &uid, &volume).await.map(drop)
}

async fn bound_when_it_is_used(world: Arc<World>) -> Result<()> {
    whole_life(&world, "late").await
}

async fn bound_at_once(world: Arc<World>) -> Result<()> {
    whole_life(&world, "early").await
}

async fn a_kept_volume(world: Arc<World>) -> Result<()> {
    world.class_of("kept", "kept", "").await?;
    let namespace = world.namespace("kept").await?;
    let (uid, volume) = computer(&world, &namespace, "kept").await?;
    world.delete(&namespace, "box", "background").await?;
    world.archived(&uid, 3).await?;
    let kept = world.volumes().get(&volume).await.context("the volume must stay")?;
    ensure!(kept.metadata.labels.unwrap_or_default().keys().all(|k| !k.contains("computer-operator")), "the operator's mark is left on it");
    let spec = kept.spec.context("a spec")?;
    ensure!(
        spec.persistent_volume_reclaim_policy.as_deref() == Some("Retain"),
        "its policy is {:?}",
        spec.persistent_volume_reclaim_policy
    );
    // The archive pod is gone, so the volume is detached, but the record does not wait for that.
    eventually("the kept volume is detached", LONG, || async {
        let left = world.attachments(&volume).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(Some(()))
    })
    .await?;
    let session = std::fs::read_to_string(world.storage.home(&volume).join(".factory/sessions/one.jsonl"))?;
    ensure!(session == "one\n", "the kept home has changed: {session:?}");
    world.volumes().delete(&volume, &DeleteParams::default()).await?;
    world.storage.remove(&volume)?;
    world.in_order()
}

/// The claim of a computer's home.
async fn claim(world: &World, namespace: &str, uid: &str) -> Result<(Api<PersistentVolumeClaim>, String)> {
    let name = world.record(uid).await?.and_then(|r| r.spec.state.children.claim_name).context("the record names no claim")?;
    Ok((Api::namespaced(world.client.clone(), namespace), name))
}

async fn expanded_while_alive(world: Arc<World>) -> Result<()> {
    world.class_of("grows", "late", "").await?;
    let namespace = world.namespace("grows").await?;
    let (uid, volume) = computer(&world, &namespace, "grows").await?;
    let (claims, name) = claim(&world, &namespace, &uid).await?;
    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    claims.patch(&name, &PatchParams::default(), &Patch::Merge(larger)).await?;
    eventually("the driver has expanded the volume", LONG, || async {
        Ok((world.storage.size(&volume)? == (2_u64 << 30).to_string()).then_some(()))
    })
    .await?;
    // The kubelet expands the file system when it next reconciles the pod: within a minute and a half, or when the pod changes.
    let machine = world.machine(&namespace, &uid).await?;
    world.kubectl(&["annotate", "pod", &machine, "-n", &namespace, "expanded=true"], "").await?;
    eventually("the volume is expanded, on its node too", LONG, || async {
        let capacity = claims.get(&name).await?.status.and_then(|status| status.capacity).context("no capacity")?;
        ensure!(capacity.get("storage").is_some_and(|size| size.0 == "2Gi"), "{capacity:?}");
        Ok(Some(()))
    })
    .await?;
    world.delete(&namespace, "box", "background").await?;
    let history = ended(&world, &uid, &volume).await?;
    ensure!(history.iter().any(|call| call == "expand"), "{history:?}");
    Ok(())
}

/// A tenant or an admin gives the home other attributes (throughput, for example). Kubernetes chooses a volume only for a claim of the same
/// `VolumeAttributesClass`; the claim of the archive does not have one, but its volume is reserved for it.
async fn of_a_volume_attributes_class(world: Arc<World>) -> Result<()> {
    world.class_of("modified", "late", "").await?;
    let namespace = world.namespace("modified").await?;
    let (uid, volume) = computer(&world, &namespace, "modified").await?;
    let (claims, name) = claim(&world, &namespace, &uid).await?;
    let faster = json!({"spec": {"volumeAttributesClassName": "fast"}});
    claims.patch(&name, &PatchParams::default(), &Patch::Merge(faster)).await?;
    eventually("the volume is modified", LONG, || async {
        let class = world.volumes().get(&volume).await?.spec.and_then(|spec| spec.volume_attributes_class_name);
        ensure!(class.as_deref() == Some("fast"), "its VolumeAttributesClass is {class:?}");
        Ok(Some(()))
    })
    .await?;
    world.delete(&namespace, "box", "background").await?;
    ended(&world, &uid, &volume).await.map(drop)
}

/// The driver mounts with a Secret of the tenant's namespace (`${pvc.namespace}`). The volume names that Secret, so the archive pod in the
/// operator's namespace mounts it too, but only while the Secret exists.
async fn a_secret_of_the_tenants_namespace(world: Arc<World>) -> Result<()> {
    world.class_of("with-secret", "with-secret", "").await?;
    let namespace = world.namespace("with-secret").await?;
    let secret = ["create", "secret", "generic", "mount", "-n", &namespace, "--from-literal=key=value"];
    world.kubectl(&secret, "").await?;
    let (uid, volume) = computer(&world, &namespace, "with-secret").await?;
    world.kubectl(&["delete", "secret", "mount", "-n", &namespace], "").await?;
    world.delete(&namespace, "box", "background").await?;
    let message = world.blocked(&namespace, "box", "ArchivePodWaiting").await?;
    println!("    {message}");
    world.kubectl(&secret, "").await?;
    ended(&world, &uid, &volume).await.map(drop)
}
