//! Measures each part of a deletion on a real node by its objects, and checks that no part waits for a resync of the volume controller:
//! the custody claim is never refused. If the variable [`performance::FOLDER`] names a folder, the figures are kept there for `docs/performance.md`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Api, ListParams};

use xtask::bench::Build;
use xtask::bench::performance;
use xtask::bench::performance::real_node::{Deletion, Deletions, MACHINE_GONE, RELEASED};

use crate::Scenario;
use crate::harness::{Bench, LONG, SYSTEM};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![a_deletion_waits_for_no_resync]
}

const PORT: u16 = 9443;
/// Deletions, one after the other, so that rare waits can show.
const ROUNDS: usize = 6;

async fn a_deletion_waits_for_no_resync(bench: Arc<Bench>) -> Result<()> {
    let _operator = bench.usual_operator(PORT).await?;
    let mut deletions = Vec::new();
    for round in 1..=ROUNDS {
        let namespace = bench.namespace("pace").await?;
        let uid = bench.active(&namespace, "box", "standard").await?;
        bench.work(&namespace, &uid).await?;
        let seen = follow(&bench, &namespace, &uid).await?;
        let lines: Vec<String> = seen.iter().map(|(at, what)| format!("{what} {:.1}", at.as_secs_f64())).collect();
        println!("pace, seconds after the delete, deletion {round}: {}", lines.join(", "));
        deletions.push(Deletion(seen.iter().map(|(at, what)| ((*what).to_owned(), at.as_secs_f64())).collect()));
        bench.archived(&uid, 3).await?;
        let of_claim = ListParams::default().fields(&format!("involvedObject.name=home-{uid},reason=FailedBinding"));
        let refused = Api::<Event>::namespaced(bench.client.clone(), SYSTEM).list(&of_claim).await?;
        ensure!(refused.items.is_empty(), "the custody claim was refused and waited for a resync: {:?}", refused.items[0].message);
    }
    performance::keep(Build::Image.name(), Deletions(deletions))
}

/// Deletes a computer, and records when each object was first observed in each state.
async fn follow(bench: &Bench, namespace: &str, uid: &str) -> Result<Vec<(Duration, &'static str)>> {
    let children = bench.record(uid).await?.context("a record")?.spec.state.children;
    let machine = children.pods.last().context("a pod")?.name.clone();
    let (claim, volume) = (children.claim_name.context("a claim")?, children.volume.context("a volume")?.name);
    let claims = |within: &str| Api::<PersistentVolumeClaim>::namespaced(bench.client.clone(), within);
    let pods = |within: &str| Api::<Pod>::namespaced(bench.client.clone(), within);
    let volumes: Api<PersistentVolume> = Api::all(bench.client.clone());
    bench.delete(namespace, "box", "background").await?;
    let began = Instant::now();
    let mut seen: BTreeMap<&'static str, Duration> = BTreeMap::new();
    loop {
        let custody = claims(SYSTEM).get_opt(&format!("home-{uid}")).await?;
        let archive = pods(SYSTEM).get_opt(&format!("archive-{uid}-1")).await?;
        let phase = archive.as_ref().and_then(|p| p.status.as_ref()?.phase.clone());
        let bound = custody.as_ref().is_some_and(|c| c.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Bound")));
        let had = seen.contains_key("archive pod created");
        let over = bench.computers(namespace).get_opt("box").await?.is_none();
        for (what, is) in [
            (MACHINE_GONE, pods(namespace).get_opt(&machine).await?.is_none()),
            ("claim gone", claims(namespace).get_opt(&claim).await?.is_none()),
            ("custody claim created", custody.is_some()),
            ("custody bound", bound),
            ("archive pod created", archive.is_some()),
            ("archive pod runs", phase.as_deref() == Some("Running")),
            ("archive pod ended", phase.as_deref() == Some("Succeeded")),
            ("archive pod gone", had && archive.is_none()),
            ("volume gone", volumes.get_opt(&volume).await?.is_none()),
            (RELEASED, over),
        ] {
            if is {
                seen.entry(what).or_insert_with(|| began.elapsed());
            }
        }
        if over {
            let mut all: Vec<_> = seen.into_iter().map(|(what, at)| (at, what)).collect();
            all.sort_unstable();
            return Ok(all);
        }
        ensure!(began.elapsed() < LONG, "not finished within {} s", LONG.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
