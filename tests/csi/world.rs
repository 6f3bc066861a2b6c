//! The real cluster of `tests/real_cluster` with attachable volumes, and what the scenarios ask about them.

use std::ops::Deref;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use serde_json::json;
use xtask::cluster;

use crate::harness::{Bench, LONG, MACHINE, eventually};
use crate::storage::Storage;

pub struct World {
    bench: Bench,
    pub storage: Storage,
}

impl Deref for World {
    type Target = Bench;

    fn deref(&self) -> &Bench {
        &self.bench
    }
}

impl World {
    /// Starts a new cluster: in one that a failed run has left, its sidecars may still run.
    pub async fn up() -> Result<Self> {
        let name = std::env::var("XTASK_TEST_CLUSTER").unwrap_or_else(|_| "csi".to_owned());
        tokio::task::spawn_blocking(move || cluster::down(&name, None)).await??;
        let bench = Bench::up("csi", 2, false).await?;
        let storage = Storage::up(&bench).await?;
        Ok(Self { bench, storage })
    }

    pub async fn down(self) -> Result<()> {
        let left = self.storage.volumes()?;
        ensure!(left.is_empty(), "the driver still has volumes: {left:?}");
        drop(self.storage);
        self.bench.cluster.down().await
    }

    /// A class whose homes are of this StorageClass, on this node if it is not empty.
    pub async fn class_of(&self, name: &str, storage: &str, node: &str) -> Result<()> {
        let selector = if node.is_empty() { json!({}) } else { json!({"kubernetes.io/hostname": node}) };
        let template = json!({"spec": {"terminationGracePeriodSeconds": 2, "nodeSelector": selector, "containers": [{"name": "machine", "image": MACHINE}]}});
        let storage = json!({"size": "1Gi", "storageClassName": storage, "mountPath": "/home/user"});
        self.class(name, json!({"podTemplate": template, "storage": storage})).await
    }

    pub fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    /// The name of a computer's home volume, which is also the driver's name for it. The record has it once it is protected.
    pub async fn home(&self, uid: &str) -> Result<String> {
        eventually("the home is on record", LONG, || async {
            Ok(self.record(uid).await?.and_then(|r| r.spec.state.children.volume).map(|volume| volume.name))
        })
        .await
    }

    /// The node of a computer's machine.
    pub async fn node_of(&self, namespace: &str, uid: &str) -> Result<String> {
        let pod = self.pods(namespace).get(&self.machine(namespace, uid).await?).await?;
        pod.spec.and_then(|spec| spec.node_name).context("the machine has no node")
    }

    /// Where a volume is attached, or is to be.
    pub async fn attachments(&self, volume: &str) -> Result<Vec<VolumeAttachment>> {
        let all: Api<VolumeAttachment> = Api::all(self.client.clone());
        let of_volume = |a: &VolumeAttachment| a.spec.source.persistent_volume_name.as_deref() == Some(volume);
        Ok(all.list(&ListParams::default()).await?.items.into_iter().filter(of_volume).collect())
    }

    /// The one VolumeAttachment of a volume, which the attacher has confirmed, and its node.
    pub async fn attachment(&self, volume: &str) -> Result<(String, String)> {
        let found = self.attachments(volume).await?;
        let [attachment] = &found[..] else { bail!("{} VolumeAttachments of {volume}", found.len()) };
        ensure!(attachment.status.as_ref().is_some_and(|status| status.attached), "{volume} is not attached: {attachment:?}");
        let node = attachment.spec.node_name.clone();
        ensure!(self.storage.attached(volume).as_ref() == Some(&node), "the driver has not attached {volume} to {node}");
        Ok((attachment.name_any(), node))
    }

    /// Nothing is left of a volume: no PersistentVolume, no VolumeAttachment, nothing in the driver. The record is released only after this.
    pub async fn nothing_left(&self, volume: &str) -> Result<()> {
        ensure!(self.volumes().get_opt(volume).await?.is_none(), "PersistentVolume {volume} is left");
        let attachments = self.attachments(volume).await?;
        ensure!(attachments.is_empty(), "a VolumeAttachment is left: {attachments:?}");
        ensure!(!self.storage.has(volume), "the driver still has {volume}");
        self.in_order()
    }

    /// The driver has seen no call in a wrong order.
    pub fn in_order(&self) -> Result<()> {
        let violations = self.storage.violations();
        ensure!(violations.is_empty(), "{violations}");
        Ok(())
    }
}
