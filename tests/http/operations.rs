//! Restart, refresh, install-deps and metrics.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::Scenario;
use crate::client::Ask;
use crate::harness::{Bench, eventually};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![a_suspended_computer_is_resumed_by_restart, unsupported_operations_are_rejected_with_a_reason]
}

fn of(id: &str, what: &str) -> String {
    format!("/api/v0/computers/{id}/{what}")
}

async fn a_suspended_computer_is_resumed_by_restart(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("restart").await?;
    let made = bench.send(Ask::post("/api/v0/computers").by(&token).json(&json!({"name": "box", "remoteUser": "dev"}))).await?.is(201)?;
    let id = made.body["id"].as_str().context("an id")?.to_owned();
    let running = bench.send(Ask::post(of(&id, "restart")).by(&token)).await?.is(200)?;
    ensure!(running.text == "{}", "published clients read JSON on every 200: {:?}", running.text);
    bench.merge(&id, json!({"spec": {"suspended": true}})).await?;
    let resumed = bench.send(Ask::post(of(&id, "restart")).by(&token)).await?.is(200)?;
    ensure!(resumed.text == "{}" && !bench.object(&id).await?.spec.suspended, "the computer was not resumed");
    bench.merge(&id, json!({"spec": {"suspended": true}})).await?;
    // Creating a session resumes it as well.
    bench.send(Ask::post("/api/v0/sessions").by(&token).json(&json!({"computerId": id}))).await?.is(201)?;
    ensure!(!bench.object(&id).await?.spec.suspended, "a session did not resume the computer");
    // Operations on a deleted computer are 404.
    bench.send(Ask::delete(format!("/api/v0/computers/{id}")).by(&token)).await?.is(204)?;
    for what in ["restart", "refresh", "install-deps"] {
        bench
            .send(Ask::post(of(&id, what)).by(&token))
            .await?
            .says(404, "the computer does not exist, or you do not have permission to see it")?;
    }
    Ok(())
}

async fn unsupported_operations_are_rejected_with_a_reason(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("unsupported").await?;
    let byom = bench.byom(&token, "mine").await?;
    let made = bench.send(Ask::post("/api/v0/computers").by(&token).json(&json!({"name": "box", "remoteUser": "dev"}))).await?.is(201)?;
    let managed = made.body["id"].as_str().context("an id")?.to_owned();
    bench.send(Ask::post(of(&byom, "restart")).by(&token)).await?.says(400, "restart it yourself")?;
    bench.send(Ask::get(of(&byom, "metrics")).by(&token)).await?.says(400, "this cluster has no metrics of its machine")?;
    for id in [&byom, &managed] {
        let refreshed = bench.send(Ask::post(of(id, "refresh")).by(&token)).await?.is(200)?;
        ensure!(refreshed.body == json!({"configured": 0}), "{}", refreshed.text);
        bench.send(Ask::post(of(id, "install-deps")).by(&token)).await?.says(501, "no agent is connected to this API")?;
    }
    bench
        .send(Ask::get(of(&managed, "metrics?start=yesterday")).by(&token))
        .await?
        .says(400, "start is invalid: it must be a time such as")?;
    // The computer has a pod, but this cluster has no metrics API.
    eventually("the computer has a pod", || async {
        let status = bench.object(&managed).await?.status.unwrap_or_default();
        Ok(status.children.is_some_and(|c| !c.pods.is_empty()).then_some(()))
    })
    .await?;
    for query in ["", "?start=2026-01-31T12:00:00Z"] {
        bench
            .send(Ask::get(of(&managed, &format!("metrics{query}"))).by(&token))
            .await?
            .says(501, "ask its admin to install metrics-server")?;
    }
    Ok(())
}
