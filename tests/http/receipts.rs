//! A deletion can be followed until its receipt by callers who may read computers in the namespace; once the namespace is gone or recreated, only by
//! callers who may read them in all namespaces.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use computer_operator::resources::steps::{DeletionStep, Sequence as _};
use serde_json::Value;

use crate::Scenario;
use crate::client::Ask;
use crate::harness::{Bench, SYSTEM, eventually};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![a_deletion_can_be_followed_until_its_receipt, a_receipt_outlives_its_namespace_but_is_hidden_from_the_next_tenant]
}

fn of(id: &str) -> Ask {
    Ask::get(format!("/api/v0/computers/{id}/deletion"))
}

async fn a_deletion_can_be_followed_until_its_receipt(bench: Arc<Bench>) -> Result<()> {
    let (namespace, token) = bench.tenant("receipt").await?;
    let id = bench.byom(&token, "box").await?;
    let key = bench.key(&id).await?;
    bench.send(of(&id).by(&token)).await?.says(404, "the deletion does not exist")?;
    bench.hold(&id).await?;
    bench.send(Ask::delete(format!("/api/v0/computers/{id}")).by(&token)).await?.is(204)?;
    let running = bench.send(of(&id).by(&token)).await?.is(200)?;
    ensure!(running.body["state"] == "deleting" && running.body["computerId"] == id, "{}", running.text);
    bench.release(&id).await?;
    let report = eventually("it is deleted", || async {
        let report = bench.send(of(&id).by(&token)).await?.is(200)?;
        Ok((report.body["state"] == "deleted").then_some(report))
    })
    .await?;
    let steps = report.body["steps"].as_array().context("steps")?;
    ensure!(
        steps.iter().map(|s| s["id"].as_str().unwrap_or_default()).eq(DeletionStep::ALL.iter().map(|step| step.id())),
        "{}",
        report.text
    );
    ensure!(steps.iter().all(|s| s["status"] == "completed" || s["status"] == "skipped"), "{}", report.text);
    ensure!(steps[0]["status"] == "completed" && steps[0]["completedAt"].is_i64(), "{}", report.text);
    ensure!(report.body["deletedAt"].as_i64().is_some_and(|t| t > 1_600_000_000_000), "{}", report.text);
    let receipt = &report.body["receipt"];
    ensure!(receipt["digest"].as_str().is_some_and(|d| d.len() == 64) && receipt["writtenAt"].is_i64(), "{}", report.text);
    // The digest is that of the receipt in the record.
    let records: Value = serde_json::from_str(&bench.kubectl(&["get", "computerrecords", "-n", SYSTEM, "-o", "json"], "").await?)?;
    let record = records["items"].as_array().into_iter().flatten().find(|r| r["spec"]["namespace"] == namespace).context("a record")?;
    ensure!(record["spec"]["state"]["deletion"]["receipt"]["digest"] == receipt["digest"], "{record}");
    // Callers who may see computers in the namespace can read it, but the computer's key cannot.
    bench.send(of(&id).by(&key)).await?.is(401)?;
    let view = bench.account(&namespace, "view", &["get", "list"], false).await?;
    bench.until(200, of(&id).by(&view)).await?;
    let none = bench.account(&namespace, "none", &[], false).await?;
    bench.send(of(&id).by(&none)).await?.is(404)?;
    let (_, foreign) = bench.tenant("stranger").await?;
    bench.send(of(&id).by(&foreign)).await?.is(404)?;
    Ok(())
}

async fn a_receipt_outlives_its_namespace_but_is_hidden_from_the_next_tenant(bench: Arc<Bench>) -> Result<()> {
    let (namespace, token) = bench.tenant("mortal").await?;
    let id = bench.byom(&token, "box").await?;
    let key = bench.key(&id).await?;
    let auditor = bench.account(SYSTEM, "auditor", &["get"], true).await?;
    bench.until(404, of(&id).by(&auditor)).await?;
    bench.kubectl(&["delete", "namespace", &namespace, "--wait=true", "--timeout=60s"], "").await?;
    bench.send(of(&id).by(&key)).await?.is(401)?;
    let report = bench.until(200, of(&id).by(&auditor)).await?;
    ensure!(report.body["state"] == "deleted" && report.body["receipt"]["digest"].is_string(), "{}", report.text);
    // Another tenant gets a namespace with the same name, has all permissions there, and knows the id.
    bench.kubectl(&["create", "namespace", &namespace], "").await?;
    let next = bench.account(&namespace, "next", &["get", "list", "create", "patch", "delete"], false).await?;
    bench.until(200, Ask::get("/api/v0/computers").by(&next)).await?;
    bench.send(of(&id).by(&next)).await?.says(404, "the deletion does not exist, or you do not have permission to see it")?;
    bench.send(of(&id).by(&auditor)).await?.is(200)?;
    // It can follow the deletion of its own computer with the same name.
    let own = bench.byom(&next, "box").await?;
    bench.send(Ask::delete(format!("/api/v0/computers/{own}?wait=60")).by(&next)).await?.is(204)?;
    bench.until(200, of(&own).by(&next)).await?;
    Ok(())
}
