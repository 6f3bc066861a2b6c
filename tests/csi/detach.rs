//! A volume that is slow to detach. Until it is detached its node may still write, so nothing is archived and nothing is destroyed, and the
//! condition names what is waited for. The deletion continues by itself.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use computer_operator::resources::{CredentialState, RecordPhase, UID_LABEL};
use kube::api::ListParams;
use xtask::tools::Tool;

use crate::Scenario;
use crate::harness::{LONG, SYSTEM, eventually};
use crate::life::{computer, ended};
use crate::world::World;

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![the_attacher_is_down, the_driver_refuses_to_detach, detached_late_after_the_archive]
}

/// Nothing has happened to the home: its volume is protected and unchanged, no archive pod exists, and the key is revoked.
async fn untouched(world: &World, uid: &str, volume: &str) -> Result<()> {
    let pv = world.volumes().get(volume).await.context("the volume is gone")?;
    let policy = pv.spec.and_then(|spec| spec.persistent_volume_reclaim_policy);
    ensure!(policy.as_deref() == Some("Retain") && pv.metadata.deletion_timestamp.is_none(), "S1: {policy:?}");
    let session = std::fs::read_to_string(world.storage.home(volume).join(".factory/sessions/one.jsonl"))?;
    ensure!(session == "one\n", "S1: the home has changed: {session:?}");
    let of_computer = ListParams::default().labels(&format!("{UID_LABEL}={uid}"));
    ensure!(world.pods(SYSTEM).list(&of_computer).await?.items.is_empty(), "S9: an archive pod exists before the volume is detached");
    let state = world.record(uid).await?.context("no record")?.spec.state;
    ensure!(state.phase != RecordPhase::Released && state.credential == CredentialState::Revoked, "{:?}", state.phase);
    ensure!(state.deletion.is_some_and(|d| d.custody.is_none() && d.archive.is_none()), "S9: the volume is in custody");
    Ok(())
}

/// The condition, which must name the VolumeAttachment, its node and this text.
async fn blocked(world: &World, namespace: &str, attachment: &(String, String), text: &str) -> Result<()> {
    let message = world.blocked(namespace, "box", "VolumeAttached").await?;
    println!("    {message}");
    for part in [&attachment.0, &attachment.1, text] {
        ensure!(message.contains(part), "the message does not contain {part:?}: {message}");
    }
    Ok(())
}

async fn the_attacher_is_down(world: Arc<World>) -> Result<()> {
    world.class_of("slow", "late", "").await?;
    let namespace = world.namespace("slow").await?;
    let (uid, volume) = computer(&world, &namespace, "slow").await?;
    let attachment = world.attachment(&volume).await?;
    world.storage.stop(Tool::CsiAttacher);
    let waits = async {
        world.delete(&namespace, "box", "background").await?;
        blocked(&world, &namespace, &attachment, "CSI driver").await?;
        untouched(&world, &uid, &volume).await
    }
    .await;
    world.storage.start(Tool::CsiAttacher)?;
    waits?;
    ended(&world, &uid, &volume).await.map(drop)
}

async fn the_driver_refuses_to_detach(world: Arc<World>) -> Result<()> {
    world.class_of("refused", "early", "").await?;
    let namespace = world.namespace("refused").await?;
    let (uid, volume) = computer(&world, &namespace, "refused").await?;
    let attachment = world.attachment(&volume).await?;
    world.storage.refuse_to_detach(Some("the cloud has no time"))?;
    let waits = async {
        world.delete(&namespace, "box", "background").await?;
        blocked(&world, &namespace, &attachment, "the cloud has no time").await?;
        untouched(&world, &uid, &volume).await
    }
    .await;
    world.storage.refuse_to_detach(None)?;
    waits?;
    ended(&world, &uid, &volume).await.map(drop)
}

/// The archive is verified, but the volume cannot be deleted while it is attached for the archive pod, which has ended.
async fn detached_late_after_the_archive(world: Arc<World>) -> Result<()> {
    world.class_of("late-end", "late", "").await?;
    let namespace = world.namespace("late-end").await?;
    let (uid, volume) = computer(&world, &namespace, "late-end").await?;
    let machine = world.attachments(&volume).await?.pop().and_then(|a| a.metadata.uid);
    world.delete(&namespace, "box", "background").await?;
    eventually("the volume is attached for the archive pod", LONG, || async {
        let attached = world.attachment(&volume).await.is_ok();
        let other = world.attachments(&volume).await?.pop().is_some_and(|a| a.metadata.uid != machine);
        Ok((attached && other).then_some(()))
    })
    .await?;
    world.storage.stop(Tool::CsiAttacher);
    let waits = waits_for_the_volume(&world, &uid, &volume).await;
    world.storage.start(Tool::CsiAttacher)?;
    waits?;
    ended(&world, &uid, &volume).await.map(drop)
}

/// The archive pod has ended, nobody detaches its volume, and the volume is neither deleted nor forgotten.
async fn waits_for_the_volume(world: &World, uid: &str, volume: &str) -> Result<()> {
    eventually("the archive is verified", LONG, || async {
        Ok(world.record(uid).await?.and_then(|r| r.spec.state.deletion).and_then(|d| d.archive).map(drop))
    })
    .await?;
    eventually("the volume is released, and is to be detached", LONG, || async {
        let pv = world.volumes().get(volume).await.context("the volume is gone")?;
        let released = pv.status.and_then(|status| status.phase).as_deref() == Some("Released");
        let waiting = world.attachments(volume).await?.iter().all(|a| a.metadata.deletion_timestamp.is_some());
        Ok((released && waiting).then_some(()))
    })
    .await?;
    ensure!(!world.attachments(volume).await?.is_empty() && world.storage.has(volume), "{volume} was detached or deleted");
    let phase = world.record(uid).await?.context("no record")?.spec.state.phase;
    ensure!(phase != RecordPhase::Released, "released while its volume exists");
    Ok(())
}
