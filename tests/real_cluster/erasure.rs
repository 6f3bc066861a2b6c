//! Holds, and the erasure of an archive on request: the exception of S7.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use computer_operator::archive::{Verification, receipt_key, tombstone, verify};
use computer_operator::resources::ArchiveErasure;
use kube::api::Api;
use serde_json::{Value, json};

use crate::Scenario;
use crate::harness::{Bench, LONG, eventually};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![an_archive_is_held_and_then_erased]
}

fn object(kind: &str, name: &str, spec: &Value) -> String {
    json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}).to_string()
}

/// Waits for a condition with this status and reason. Returns its message.
async fn condition(bench: &Bench, name: &str, type_: &str, status: &str, reason: &str) -> Result<String> {
    let api: Api<ArchiveErasure> = Api::all(bench.client.clone());
    eventually(&format!("ArchiveErasure {name} has {type_}={status} with {reason}"), LONG, || async {
        let conditions = api.get(name).await?.status.unwrap_or_default().conditions;
        let found = conditions.iter().find(|c| c.type_ == type_ && c.status == status && c.reason == reason);
        found.map(|c| Some(c.message.clone())).with_context(|| format!("{conditions:?}"))
    })
    .await
}

/// Two operators without a lease execute it at the same time (S10). The policy about `requestedBy` belongs to the chart: `tests/chart/policies.rs`.
async fn an_archive_is_held_and_then_erased(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("erased").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let name = format!("erase-{namespace}");
    let me = bench.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"], "").await?;
    let spec =
        json!({"computer": {"namespace": namespace, "name": "box", "uid": uid}, "requestedBy": me, "reason": "the owner has asked for it"});
    bench.kubectl(&["create", "-f", "-"], &object("ArchiveErasure", &name, &spec)).await?;
    let message = condition(&bench, &name, "Blocked", "True", "NotReleased").await?;
    ensure!(message.contains("delete the computer"), "it does not say what to do: {message}");

    // The hold is there before the deletion is over, so the erasure never had a chance.
    let hold = format!("case-7-{namespace}");
    let spec = json!({"computerUID": uid, "matter": "case 7", "reason": "the sessions are needed for case 7"});
    bench.kubectl(&["create", "-f", "-"], &object("ArchiveHold", &hold, &spec)).await?;
    bench.delete(&namespace, "box", "background").await?;
    let (record, _) = bench.archived(&uid, 3).await?;
    let message = condition(&bench, &name, "Blocked", "True", "ArchiveHeld").await?;
    ensure!(message.contains(&hold) && message.contains("case 7") && message.contains("nothing was removed"), "{message}");
    let receipt = bench.store()?.get(&receipt_key(&uid)).await?;
    ensure!(matches!(verify::verify(&bench.store()?, &uid).await, Verification::Valid(_)), "the archive was touched while it is held");

    bench.kubectl(&["delete", "archivehold", &hold, "--timeout=30s"], "").await?;
    // It is complete a day later, which is too long for this test.
    let message = condition(&bench, &name, "Complete", "False", "Removed").await?;
    ensure!(message.contains("checked again at"), "it does not say when it is complete: {message}");
    condition(&bench, &name, "Blocked", "False", "Removed").await?;
    let store = bench.store()?;
    ensure!(verify::verify(&store, &uid).await == Verification::Missing, "the archive exists");
    ensure!(!bench.store_path().join("archives").join(&uid).exists(), "files are left");
    ensure!(store.get(&receipt_key(&uid)).await? == receipt, "the receipt was changed");
    let tombstones = tombstone::all(&store, &uid).await?;
    let [tombstone] = tombstones.as_slice() else { anyhow::bail!("{tombstones:?}") };
    ensure!(tombstone.decision.requested_by == me && tombstone.decision.name == name, "{tombstone:?}");
    let digest = record.spec.state.deletion.and_then(|d| d.archive).context("an archive on record")?.manifest_digest;
    ensure!(tombstone.manifests.iter().map(|m| &m.digest).collect::<Vec<_>>() == [&digest], "{tombstone:?}");
    let status = Api::<ArchiveErasure>::all(bench.client.clone()).get(&name).await?.status.context("a status")?;
    ensure!(
        status.removed_objects.is_some_and(|objects| objects >= 2) && status.removed_bytes.is_some_and(|bytes| bytes > 0),
        "{status:?}"
    );
    steady_state_is_silent(&bench, &name).await
}

/// L6.
async fn steady_state_is_silent(bench: &Bench, name: &str) -> Result<()> {
    let version = || async { anyhow::Ok(Api::<ArchiveErasure>::all(bench.client.clone()).get(name).await?.metadata.resource_version) };
    let before = version().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(version().await? == before, "L6: an erasure that waits is written to");
    Ok(())
}
