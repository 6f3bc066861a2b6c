//! Two leaders at once: the lease is taken over while its holder is paused. The old holder then resumes in the middle of its work (S10).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use rand::Rng as _;
use serde_json::Value;

use crate::crowd::{Crowd, seconds};
use crate::harness::{Bench, LONG, SYSTEM, eventually};
use crate::operators::{Operator, Start};
use crate::{Scenario, moments};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![a_paused_leader_resumes]
}

const PORTS: [u16; 2] = [9643, 9743];
const TAKE_OVERS: usize = 3;

async fn a_paused_leader_resumes(bench: Arc<Bench>) -> Result<()> {
    let mut random = moments("leaders");
    let mut operators = [contender(&bench, 0).await?, contender(&bench, 1).await?];
    let crowd = Crowd::born(&bench, "leaders", 18, 3).await?;
    let start = Instant::now();
    let mut order = random.clone();
    let deletes = crowd.delete(&bench, &mut order, Duration::from_secs(2));
    let take_overs = async {
        for _ in 0..TAKE_OVERS {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..2500))).await;
            let old = leader(&bench).await?;
            operators[old].pause()?;
            eventually("the other operator leads", LONG, || async { Ok((leader(&bench).await? != old).then_some(())) }).await?;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
            // It resumes as if in the middle of a request, and still performs what it had planned.
            operators[old].go_on()?;
            // It notices the lost lease and exits; its kubelet restarts it.
            operators[old].ends().await.context("L4: an operator that has lost the lease continues")?;
            operators[old] = contender(&bench, old).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(deletes, take_overs)?;
    crowd.ended(&bench).await?;
    nothing_was_done_twice(&bench, &crowd).await?;
    println!("    21 deletions, the lease taken over {TAKE_OVERS} times from a leader that resumed; finished after {}", seconds(start));
    Ok(())
}

/// An operator with a short lease, whose name contains its number.
async fn contender(bench: &Bench, number: usize) -> Result<Operator> {
    let named = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let environment = vec![named("LEASE_SECONDS", "5"), named("POD_NAME", &format!("contender-{number}"))];
    bench.start(&Start { environment, ..Start::leading(PORTS[number]) }).await
}

/// Number of the operator that holds the lease.
async fn leader(bench: &Bench) -> Result<usize> {
    let leases: Api<Lease> = Api::namespaced(bench.client.clone(), SYSTEM);
    eventually("an operator leads", LONG, || async {
        let holder = leases.get("computer-operator").await?.spec.and_then(|s| s.holder_identity).unwrap_or_default();
        Ok((0..PORTS.len()).find(|number| holder.starts_with(&format!("contender-{number}-"))))
    })
    .await
}

/// Checks in the audit log that no object of these computers was created twice under one name.
async fn nothing_was_done_twice(bench: &Bench, crowd: &Crowd) -> Result<()> {
    let mut names = Vec::new();
    for member in &crowd.members {
        let children = bench.record(&member.uid).await?.context("a record")?.spec.state.children;
        names.extend(children.pods.into_iter().map(|p| p.name).chain(children.claim_name).chain(children.secret_name));
        names.push(member.uid.clone());
    }
    let mut created: BTreeMap<String, usize> = BTreeMap::new();
    for event in std::fs::read_to_string(&bench.audit_log)?.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = text("/objectRef/name");
        let made = text("/verb") == "create" && event["responseStatus"]["code"] == 201;
        if made && text("/user/username").ends_with(":computer-operator") && names.iter().any(|known| name.contains(known.as_str())) {
            *created.entry(format!("{} {name}", text("/objectRef/resource"))).or_default() += 1;
        }
    }
    let managed = crowd.members.iter().filter(|m| m.managed).count();
    // A record and a Secret each; a managed computer also has a claim, a pod, a custody claim and an archive pod.
    let least = crowd.members.len() * 2 + managed * 4;
    ensure!(created.len() >= least, "the audit log shows {} objects, not {least}: {created:?}", created.len());
    let twice: Vec<_> = created.iter().filter(|(_, count)| **count > 1).collect();
    ensure!(twice.is_empty(), "S10: created twice: {twice:?}");
    Ok(())
}
