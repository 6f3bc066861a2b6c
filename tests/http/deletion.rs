//! DELETE as published, and its extensions, which do not affect clients of the published API.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use computer_operator::credentials::ComputerId;
use computer_operator::resources::CredentialState;
use serde_json::json;

use crate::Scenario;
use crate::client::{Ask, raw};
use crate::harness::{Bench, eventually};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![
        a_deletion_is_204_until_it_is_404,
        a_dry_run_changes_nothing,
        a_waiting_deletion_reports_whether_it_is_complete,
        if_match_deletes_only_the_version_that_was_read,
        deletion_protection_is_a_conflict,
        a_recreated_computer_has_another_id,
        a_deletion_right_after_the_creation_leaves_nothing,
        the_use_of_a_key_after_its_end_is_counted,
    ]
}

/// Scenarios that stop the operator, which all others need.
pub fn without_an_operator() -> Vec<Scenario> {
    xtask::scenarios![a_deletion_revokes_the_key_without_an_operator]
}

fn one(id: &str) -> String {
    format!("/api/v0/computers/{id}")
}

async fn a_deletion_is_204_until_it_is_404(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("delete").await?;
    let id = bench.byom(&token, "box").await?;
    let key = bench.key(&id).await?;
    bench.hold(&id).await?;
    // The raw response: a status code without a body.
    let request = format!("DELETE {} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n", one(&id));
    let answer = raw(bench.replicas[1].address, request.as_bytes()).await?;
    ensure!(answer.status == 204 && answer.body.is_empty(), "{answer:?}");
    ensure!(!answer.head.contains("content-length") && !answer.head.contains("transfer-encoding"), "{answer:?}");
    for replica in 0..3 {
        bench.send_to(replica, Ask::get(one(&id)).by(&key)).await?.is(401)?;
        bench.send_to(replica, Ask::delete(one(&id)).by(&key)).await?.is(401)?;
        // While the computer is being deleted, another DELETE is still 204, and a read is 404.
        let again = bench.send_to(replica, Ask::delete(one(&id)).by(&token)).await?.is(204)?;
        ensure!(again.header("deletion-state") == "InProgress", "{again:?}");
        bench.send_to(replica, Ask::get(one(&id)).by(&token)).await?.is(404)?;
        bench.send_to(replica, Ask::patch(one(&id)).by(&token).json(&json!({"name": "x"}))).await?.is(404)?;
    }
    let report = bench.send(Ask::get(format!("{}/deletion", one(&id))).by(&token)).await?.is(200)?;
    ensure!(report.body["state"] == "deleting" && report.body["deletedAt"].is_i64(), "{}", report.text);
    bench.release(&id).await?;
    bench.until(404, Ask::delete(one(&id)).by(&token)).await?;
    for _ in 0..3 {
        bench
            .send(Ask::delete(one(&id)).by(&token))
            .await?
            .says(404, "the computer does not exist, or you do not have permission to see it")?;
        bench.send(Ask::delete(one(&id)).by(&key)).await?.is(401)?;
    }
    Ok(())
}

async fn a_dry_run_changes_nothing(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("preview").await?;
    let id = bench.byom(&token, "box").await?;
    let key = bench.key(&id).await?;
    let made = bench.send(Ask::post("/api/v0/computers").by(&token).json(&json!({"name": "managed", "remoteUser": "u"}))).await?.is(201)?;
    let managed = made.body["id"].as_str().unwrap().to_owned();
    // Immediately: the key may not have been issued yet, and will not be once the deletion has begun.
    let early = bench.send(Ask::delete(format!("{}?dryRun=All", one(&managed))).by(&token)).await?.is(200)?;
    ensure!(early.body["revokesKey"] == true, "{}", early.text);
    let preview = bench.send(Ask::delete(format!("{}?dryRun=All", one(&id))).by(&token)).await?.is(200)?;
    let expected = json!({"computerId": id, "revokesKey": true, "archivedPaths": [], "deletedPods": [],
        "notArchived": ["Nothing on the machine is archived or deleted, because its provider is BYOM. Only its key is revoked."]});
    ensure!(preview.body == expected, "{}", preview.text);
    bench.send(Ask::get(one(&id)).by(&key)).await?.is(200)?;
    ensure!(bench.object(&id).await?.metadata.deletion_timestamp.is_none(), "the computer is being deleted");
    eventually("the managed one has a pod and a claim", || async {
        let preview = bench.send(Ask::delete(format!("{}?dryRun=All", one(&managed))).by(&token)).await?.is(200)?;
        let pods = preview.body["deletedPods"].as_array().is_some_and(|p| p.len() == 1);
        Ok((pods && preview.body["deletedClaim"].is_string() && preview.body["archivePolicy"] == "Required").then_some(()))
    })
    .await?;
    for query in
        ["dryRun=None", "dryRun=all", "dryRun=", "dryRun", "wait=0", "wait=301", "wait=-1", "wait=x", "wait=1&wait=2", "dryRun=All&wait=0"]
    {
        bench.send(Ask::delete(format!("{}?{query}", one(&id))).by(&token)).await?.is(400).with_context(|| query.to_owned())?;
    }
    bench.send(Ask::get(one(&id)).by(&key)).await?.is(200)?;
    // An unknown parameter is ignored.
    bench.send(Ask::delete(format!("{}?force=true", one(&id))).by(&token)).await?.is(204)?;
    Ok(())
}

async fn a_waiting_deletion_reports_whether_it_is_complete(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("wait").await?;
    let (quick, held) = (bench.byom(&token, "quick").await?, bench.byom(&token, "held").await?);
    bench.key(&quick).await?;
    let done = bench.send(Ask::delete(format!("{}?wait=60", one(&quick))).by(&token)).await?.is(204)?;
    ensure!(done.header("deletion-state") == "Completed", "{done:?}");
    bench.send(Ask::delete(one(&quick)).by(&token)).await?.is(404)?;
    bench.hold(&held).await?;
    let began = Instant::now();
    let waited = bench.send(Ask::delete(format!("{}?wait=2", one(&held))).by(&token)).await?.is(204)?;
    ensure!(waited.header("deletion-state") == "InProgress" && began.elapsed() >= Duration::from_secs(2), "{waited:?}");
    let id = held.clone();
    let waiting = {
        let (bench, ask) = (Arc::clone(&bench), Ask::delete(format!("{}?wait=50", one(&held))).by(&token));
        tokio::spawn(async move { bench.send(ask).await })
    };
    bench.release(&id).await?;
    let done = waiting.await??;
    // The deletion may be complete before the request arrives.
    ensure!(done.status == 404 || done.header("deletion-state") == "Completed", "{done:?}");
    Ok(())
}

async fn if_match_deletes_only_the_version_that_was_read(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("match").await?;
    let id = bench.byom(&token, "box").await?;
    // Immediately, while the operator still updates the status: that does not change the version.
    let tag = bench.send(Ask::get(one(&id)).by(&token)).await?.is(200)?.header("etag").to_owned();
    bench.send(Ask::patch(one(&id)).by(&token).json(&json!({"remoteUser": "changed"}))).await?.is(200)?;
    let delete = |tag: &str| Ask::delete(one(&id)).by(&token).header("if-match", tag);
    for stale in [tag.as_str(), "\"x\"", "x", "", "W/\"x\""] {
        let answer = bench.send(delete(stale)).await?.is(412)?;
        ensure!(answer.body["metadata"]["etag"].as_str().is_some_and(|now| now != stale), "{}", answer.text);
    }
    bench.send(Ask::get(one(&id)).by(&token)).await?.is(200)?;
    for i in 0..8 {
        let fresh = bench.byom(&token, &format!("fresh-{i}")).await?;
        let tag = bench.send(Ask::get(one(&fresh)).by(&token)).await?.is(200)?.header("etag").to_owned();
        bench.send(Ask::delete(one(&fresh)).by(&token).header("if-match", tag)).await?.is(204)?;
    }
    let now = bench.send(Ask::get(one(&id)).by(&token)).await?.header("etag").to_owned();
    bench.hold(&id).await?;
    bench.send(delete(&now)).await?.is(204)?;
    // A running deletion is independent of the version.
    bench.send(delete(&tag)).await?.is(204)?;
    bench.release(&id).await
}

async fn deletion_protection_is_a_conflict(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("protected").await?;
    let id = bench.byom(&token, "box").await?;
    let key = bench.key(&id).await?;
    bench.merge(&id, json!({"spec": {"deletionProtection": true}})).await?;
    for query in ["", "?dryRun=All", "?wait=5"] {
        let answer = bench.send(Ask::delete(format!("{}{query}", one(&id))).by(&token)).await?;
        answer.says(409, "set spec.deletionProtection to false")?;
    }
    bench.send(Ask::get(one(&id)).by(&key)).await?.is(200)?;
    bench.merge(&id, json!({"spec": {"deletionProtection": false}})).await?;
    bench.send(Ask::delete(one(&id)).by(&token)).await?.is(204)?;
    bench.send(Ask::get(one(&id)).by(&key)).await?.is(401)?;
    Ok(())
}

async fn a_recreated_computer_has_another_id(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("another").await?;
    let old = bench.byom(&token, "box").await?;
    bench.key(&old).await?;
    bench.send(Ask::delete(format!("{}?wait=60", one(&old))).by(&token)).await?.is(204)?;
    bench.until(404, Ask::delete(one(&old)).by(&token)).await?;
    let new = bench.byom(&token, "box").await?;
    ensure!(old != new && bench.object(&new).await?.metadata.name.as_deref() == Some("box"), "the object has the same name but another id");
    let key = bench.key(&new).await?;
    // No operation with the old id reaches the new computer.
    for ask in [
        Ask::get(one(&old)),
        Ask::delete(one(&old)),
        Ask::patch(one(&old)).json(&json!({"remoteUser": "x"})),
        Ask::post(format!("{}/restart", one(&old))),
        Ask::post(format!("{}/refresh", one(&old))),
        Ask::get(format!("{}/metrics", one(&old))),
    ] {
        let what = format!("{} {}", ask.method, ask.path);
        bench.send(ask.clone().by(&token)).await?.is(404).context(what.clone())?;
        bench.send(ask.by(&key)).await?.is(404).context(what)?;
    }
    bench.send(Ask::get(one(&new)).by(&key)).await?.is(200)?;
    let list = bench.send(Ask::get(format!("/api/v0/sessions?computerId={old}")).by(&token)).await?.is(200)?;
    ensure!(list.body["sessions"].as_array().is_some_and(Vec::is_empty), "{}", list.text);
    Ok(())
}

/// Deletes computers before anything was created for them.
async fn a_deletion_right_after_the_creation_leaves_nothing(bench: Arc<Bench>) -> Result<()> {
    let (namespace, token) = bench.tenant("birth").await?;
    for i in 0..10 {
        let id = bench.byom(&token, &format!("box-{i}")).await?;
        bench.send(Ask::delete(one(&id)).by(&token)).await?.is(204)?;
    }
    eventually("all are gone", || async {
        let left = bench.kubectl(&["get", "computers,secrets", "-n", &namespace, "-o", "name"], "").await?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .await
}

/// The answer is the same for every invalid key. Only the metrics say why it was denied.
async fn the_use_of_a_key_after_its_end_is_counted(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("ended").await?;
    let id = bench.byom(&token, "box").await?;
    let key = bench.key(&id).await?;
    bench.hold(&id).await?;
    bench.send_to(0, Ask::delete(one(&id)).by(&token)).await?.is(204)?;
    let before = uses_of_revoked_keys(&bench).await?;
    bench.send_to(0, Ask::get(one(&id)).by(&key)).await?.is(401)?;
    let after = uses_of_revoked_keys(&bench).await?;
    ensure!(after > before, "{before} uses of revoked keys before, {after} after one more");
    bench.release(&id).await
}

/// As the first replica counts them.
async fn uses_of_revoked_keys(bench: &Bench) -> Result<u64> {
    let text = bench.http.get(format!("http://{}/metrics", bench.replicas[0].metrics)).send().await?.text().await?;
    let counter = "computer_operator_http_denied_credentials_total{credential=\"Key\",reason=\"Revoked\"} ";
    text.lines().find_map(|line| line.strip_prefix(counter)).map_or(Ok(0), |count| Ok(count.trim().parse()?))
}

async fn a_deletion_revokes_the_key_without_an_operator(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("alone").await?;
    let (id, bystander) = (bench.byom(&token, "box").await?, bench.byom(&token, "bystander").await?);
    let (key, other) = (bench.key(&id).await?, bench.key(&bystander).await?);
    bench.operator.lock().unwrap().take();
    bench.send(Ask::get(one(&id)).by(&key)).await?.is(200)?;
    let waited = bench.send(Ask::delete(format!("{}?wait=1", one(&id))).by(&key)).await?.is(204)?;
    ensure!(waited.header("deletion-state") == "InProgress", "{waited:?}");
    // The record is a tombstone, too, whatever happens to the Computer.
    let record = bench.records().get(&ComputerId::decode(&id).context("an id")?.uid).await?;
    ensure!(record.spec.state.credential == CredentialState::Revoked, "the key is {:?} in the record", record.spec.state.credential);
    for replica in 0..3 {
        bench.send_to(replica, Ask::get(one(&id)).by(&key)).await?.is(401)?;
        bench.send_to(replica, Ask::get(one(&bystander)).by(&other)).await?.is(200)?;
        bench.send_to(replica, Ask::delete(one(&id)).by(&token)).await?.is(204)?;
    }
    let report = bench.send(Ask::get(format!("{}/deletion", one(&id))).by(&token)).await?.is(200)?;
    ensure!(report.body["state"] == "deleting" && report.body.get("receipt").is_none(), "{}", report.text);
    // Created and deleted without an operator: a key was never issued.
    let unborn = bench.byom(&token, "unborn").await?;
    bench.send(Ask::delete(one(&unborn)).by(&token)).await?.is(204)?;
    bench.start_operator().await?;
    for id in [&id, &unborn] {
        bench.until(404, Ask::delete(one(id)).by(&token)).await?;
    }
    let report = bench.until(200, Ask::get(format!("{}/deletion", one(&id))).by(&token)).await?;
    ensure!(report.fields().is_superset(&BTreeSet::from(["computerId", "state", "deletedAt", "steps", "receipt"])), "{}", report.text);
    bench.send(Ask::get(one(&id)).by(&key)).await?.is(401)?;
    Ok(())
}
