//! The sweeper (S6). Every few minutes it searches the caches for what causes no event any more: records whose Computer is gone, and
//! objects with the operator's labels that belong to no computer and no record. The former are requeued. The latter are reported and must
//! never be deleted, because a label proves nothing (S5). Volumes that a provisioner created after their home claim was deleted are reported
//! too; they have no label.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::Api;
use kube::{Client, Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::computer::metrics::Metrics;
use crate::resources::{ComputerRecord, RecordPhase, UID_LABEL};
use crate::runtime::caches::Caches;
use crate::runtime::client::list;
use crate::runtime::queue::Queue;

/// Time between two sweeps. What is left behind is found within 10 minutes.
pub const INTERVAL: Duration = Duration::from_secs(240);

/// What a sweep found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// UIDs of records that are not released and whose Computer the cache does not hold.
    pub unfinished: Vec<String>,
    /// Objects with the operator's label that belong to no computer and no record, by kind.
    pub orphans: BTreeMap<&'static str, Vec<String>>,
}

/// Searches the caches.
pub fn sweep(caches: &Caches) -> Found {
    let records = caches.records.state();
    let unfinished: Vec<String> = records
        .iter()
        .filter(|r| r.spec.state.phase != RecordPhase::Released)
        .map(|r| r.name_any())
        .filter(|uid| caches.computer(uid).is_none())
        .collect();
    let known: HashSet<String> = records
        .iter()
        .filter(|r| r.spec.state.phase != RecordPhase::Released)
        .map(|r| r.name_any())
        .chain(caches.computers.state().iter().filter_map(|c| c.metadata.uid.clone()))
        .collect();
    let mut orphans = BTreeMap::new();
    orphans.insert("Pod", unknown(&caches.pods.state(), &known));
    orphans.insert("PersistentVolumeClaim", unknown(&caches.claims.state(), &known));
    orphans.insert("PersistentVolume", unknown(&caches.volumes.state(), &known));
    Found { unfinished, orphans }
}

fn unknown<K: Resource>(objects: &[std::sync::Arc<K>], known: &HashSet<String>) -> Vec<String> {
    let uid = |o: &K| o.labels().get(UID_LABEL).cloned();
    objects
        .iter()
        .filter(|o| uid(o).is_some_and(|uid| !known.contains(&uid)))
        .map(|o| format!("{}/{}", o.namespace().unwrap_or_default(), o.name_any()))
        .collect()
}

/// Namespace and name of a claim.
type ClaimName = (String, String);

/// Claims of released records that never had a known volume: their volume may have been in provisioning when they were deleted.
fn unprovisioned<'a>(records: impl Iterator<Item = &'a ComputerRecord>) -> HashSet<ClaimName> {
    let claim = |r: &ComputerRecord| Some((r.spec.namespace.clone(), r.spec.state.children.claim_name.clone()?));
    records.filter(|r| r.spec.state.phase == RecordPhase::Released && r.spec.state.children.volume.is_none()).filter_map(claim).collect()
}

/// Whether a volume was created for one of these claims and is not deleted by its reclaim policy. Their names are random and used once, so
/// the name is sufficient for a report.
fn made_for(volume: &PersistentVolume, claims: &HashSet<ClaimName>) -> bool {
    let Some(spec) = volume.spec.as_ref().filter(|s| s.persistent_volume_reclaim_policy.as_deref() != Some("Delete")) else { return false };
    let reference = spec.claim_ref.as_ref();
    let name = reference.and_then(|r| Some((r.namespace.clone()?, r.name.clone()?)));
    name.is_some_and(|name| claims.contains(&name))
}

/// Names of volumes that were provisioned too late. They have no label, so no cache holds them: they are listed, but only while such a
/// record exists.
async fn too_late(client: &Client, caches: &Caches) -> Result<Vec<String>, crate::runtime::client::CallError> {
    let records = caches.records.state();
    let claims = unprovisioned(records.iter().map(AsRef::as_ref));
    if claims.is_empty() {
        return Ok(Vec::new());
    }
    list(&Api::<PersistentVolume>::all(client.clone()), PAGE, |v| made_for(&v, &claims).then(|| format!("/{}", v.name_any()))).await
}

/// Volumes in one page of a list.
const PAGE: u32 = 250;

/// Sweeps at the start and then at every interval until `stop`.
pub async fn run(client: Client, caches: Caches, queue: Queue, metrics: std::sync::Arc<Metrics>, stop: CancellationToken) {
    let mut timer = tokio::time::interval(INTERVAL);
    let mut late = Vec::new();
    loop {
        tokio::select! { biased; () = stop.cancelled() => return, _ = timer.tick() => {} }
        let Some(listed) = stop.run_until_cancelled(too_late(&client, &caches)).await else { return };
        match listed {
            Ok(found) => late = found,
            // The result of the last successful list is still reported.
            Err(error) => {
                tracing::warn!(%error, "cannot list PersistentVolumes: the next sweep repeats it, orphans are those found before");
            }
        }
        let mut found = sweep(&caches);
        found.orphans.entry("PersistentVolume").or_default().extend(late.iter().cloned());
        found.unfinished.iter().for_each(|uid| queue.now(uid.clone()));
        for (kind, names) in &found.orphans {
            metrics.set_orphans(kind, names.len());
            if !names.is_empty() {
                tracing::warn!(kind, count = names.len(), first = ?names.iter().take(5).collect::<Vec<_>>(), "objects have the operator's label but belong to no computer; inspect them and delete them by hand");
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    /// S6: provisioning takes minutes, and the claim is deleted meanwhile. The volume ends as `Released` and `Retain`, without the operator's
    /// label.
    #[test]
    fn a_volume_that_is_provisioned_after_its_claim_is_gone_is_reported() {
        let record = |phase: &str, volume: serde_json::Value| -> ComputerRecord {
            let children = json!({"claimName": "home-1", "volume": volume});
            let spec = json!({"namespace": "t", "computer": "c", "state": {"phase": phase, "children": children}});
            serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": spec})).unwrap()
        };
        let volume = |namespace: &str, name: &str| -> PersistentVolume {
            serde_json::from_value(
                json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": namespace, "name": name, "uid": "gone"}}}),
            )
            .unwrap()
        };
        let known = json!({"name": "pv", "uid": "pv-uid", "originalReclaimPolicy": "Retain"});
        for (phase, of_record, late) in [("Released", json!(null), true), ("Deleting", json!(null), false), ("Released", known, false)] {
            let claims = unprovisioned([record(phase, of_record)].iter());
            assert_eq!(made_for(&volume("t", "home-1"), &claims), late, "{phase}");
            assert!(!made_for(&volume("other", "home-1"), &claims) && !made_for(&volume("t", "data"), &claims));
        }
    }
}
