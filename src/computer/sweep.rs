//! The sweeper (S6): every few minutes it looks through the caches for what no event will ever mention again: records whose
//! Computer vanished, and objects with our labels that no computer and no record answers for. The first are worked off from
//! their record; the second are reported, never deleted: a label proves nothing (S5).

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use kube::{Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::resources::{RecordPhase, UID_LABEL};
use crate::runtime::caches::Caches;
use crate::runtime::metrics::Metrics;
use crate::runtime::queue::Queue;

/// Time between two sweeps: what was left behind is found within 10 minutes.
pub const INTERVAL: Duration = Duration::from_secs(240);

/// What a sweep found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// UIDs of records that are not released and whose Computer the cache does not hold.
    pub unfinished: Vec<String>,
    /// Objects with our label that nobody answers for, by kind.
    pub orphans: BTreeMap<&'static str, Vec<String>>,
}

/// Looks through the caches.
pub fn sweep(caches: &Caches) -> Found {
    let records = caches.records.state();
    let unfinished: Vec<String> = records
        .iter()
        .filter(|r| r.spec.state.phase != RecordPhase::Released)
        .map(|r| r.name_any())
        .filter(|uid| caches.computer(uid).is_none())
        .collect();
    let answered: HashSet<String> = records
        .iter()
        .filter(|r| r.spec.state.phase != RecordPhase::Released)
        .map(|r| r.name_any())
        .chain(caches.computers.state().iter().filter_map(|c| c.metadata.uid.clone()))
        .collect();
    let mut orphans = BTreeMap::new();
    orphans.insert("Pod", unanswered(&caches.pods.state(), &answered));
    orphans.insert("PersistentVolumeClaim", unanswered(&caches.claims.state(), &answered));
    orphans.insert("PersistentVolume", unanswered(&caches.volumes.state(), &answered));
    Found { unfinished, orphans }
}

fn unanswered<K: Resource>(objects: &[std::sync::Arc<K>], answered: &HashSet<String>) -> Vec<String> {
    let uid = |o: &K| o.labels().get(UID_LABEL).cloned();
    objects
        .iter()
        .filter(|o| uid(o).is_some_and(|uid| !answered.contains(&uid)))
        .map(|o| format!("{}/{}", o.namespace().unwrap_or_default(), o.name_any()))
        .collect()
}

/// Sweeps at the start and then at every interval until `stop`.
pub async fn run(caches: Caches, queue: Queue, metrics: std::sync::Arc<Metrics>, stop: CancellationToken) {
    let mut timer = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! { () = stop.cancelled() => return, _ = timer.tick() => {} }
        let found = sweep(&caches);
        found.unfinished.iter().for_each(|uid| queue.now(uid.clone()));
        for (kind, names) in &found.orphans {
            metrics.set_orphans(kind, names.len());
            if !names.is_empty() {
                tracing::warn!(kind, count = names.len(), first = ?names.iter().take(5).collect::<Vec<_>>(), "objects with our label that no computer answers for; look at them and delete them by hand");
            }
        }
    }
}
