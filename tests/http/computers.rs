//! Create, get, get by name, list and update: status codes, fields and types as a client of the published API expects them.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::Scenario;
use crate::client::{Answer, Ask};
use crate::harness::{Bench, eventually};

const ALL: &str = "/api/v0/computers";
const HOST: &str = "0b4f9f3e-5d1c-4a53-8a0e-3a9c0f8f6f11";

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![
        a_computer_has_the_published_fields_and_types,
        a_list_is_newest_first_and_has_steps_only_on_request,
        an_invalid_creation_is_rejected_with_a_remedy,
        a_computer_is_updated_as_published,
        concurrent_updates_succeed_or_conflict,
        a_name_can_be_reused_while_its_former_computer_is_being_deleted,
        a_computer_is_found_by_its_display_name,
    ]
}

fn one(id: &str) -> String {
    format!("{ALL}/{id}")
}

/// Checks the types of all fields, and that every field is published.
fn published(computer: &Value) -> Result<()> {
    let known = BTreeSet::from([
        "id",
        "name",
        "providerType",
        "createdAt",
        "hostId",
        "hostname",
        "status",
        "provisioningSteps",
        "relayClientUrl",
        "relayAgentUrl",
        "remoteUser",
        "ownerPrincipalKind",
        "ownerId",
        "computerSource",
    ]);
    for (field, value) in computer.as_object().context("an object")? {
        ensure!(known.contains(field.as_str()), "{field} is not published");
        ensure!(!value.is_null(), "{field} is null instead of omitted");
    }
    for field in ["id", "name"] {
        ensure!(computer[field].as_str().is_some_and(|t| !t.is_empty()), "{field}: {computer}");
    }
    ensure!(["byom", "e2b"].contains(&computer["providerType"].as_str().unwrap_or_default()), "{computer}");
    ensure!(["provisioning", "active", "error"].contains(&computer["status"].as_str().unwrap_or_default()), "{computer}");
    ensure!(computer["createdAt"].as_i64().is_some_and(|t| t > 1_600_000_000_000), "milliseconds: {computer}");
    for step in computer["provisioningSteps"].as_array().into_iter().flatten() {
        for field in ["id", "name", "status"] {
            ensure!(step[field].is_string(), "{field} of {step}");
        }
        for field in ["startedAt", "completedAt"] {
            ensure!(step.get(field).is_none_or(|t| t.as_i64().is_some_and(|t| t > 1_600_000_000_000)), "{field} of {step}");
        }
    }
    Ok(())
}

async fn a_computer_has_the_published_fields_and_types(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("fields").await?;
    let body = json!({
        "name": "box", "remoteUser": "dev", "provider": "byom", "repos": ["https://github.com/team/project"], "hostId": HOST,
        "autoInstallDeps": true, "serviceAccountId": "sa_1",
    });
    let made = bench.send(Ask::post(ALL).by(&token).json(&body)).await?.is(201)?;
    published(&made.body)?;
    // As published: such a machine exists already. The official client also sends `serviceAccountId`.
    ensure!(made.body["status"] == "active", "{}", made.text);
    let now = jiff::Timestamp::now().as_millisecond();
    ensure!(made.body["createdAt"].as_i64().is_some_and(|t| (now - t).abs() < 60_000), "{}", made.text);
    ensure!(made.body["name"] == "box" && made.body["remoteUser"] == "dev" && made.body["hostId"] == HOST, "{}", made.text);
    ensure!(made.body["providerType"] == "byom" && made.body["provisioningSteps"].is_array(), "{}", made.text);
    ensure!(made.header("etag").starts_with('"'), "no ETag");
    let id = made.body["id"].as_str().unwrap();
    let key = bench.key(id).await?;
    for ask in [Ask::get(one(id)).by(&token), Ask::get(format!("{ALL}/name/box")).by(&token), Ask::get(one(id)).by(&key)] {
        let got = bench.send(ask).await?.is(200)?;
        published(&got.body)?;
        ensure!(got.body["status"] == "active" && got.body["id"] == id, "{}", got.text);
        ensure!(got.body["provisioningSteps"].as_array().is_some_and(|s| !s.is_empty()), "{}", got.text);
    }
    // `e2b` is the default, and such a computer is still being provisioned.
    let managed = bench.send(Ask::post(ALL).by(&token).json(&json!({"name": "managed", "remoteUser": "dev"}))).await?.is(201)?;
    published(&managed.body)?;
    ensure!(managed.body["providerType"] == "e2b" && managed.body["status"] == "provisioning", "{}", managed.text);
    ensure!(managed.body.get("hostId").is_none(), "{}", managed.text);
    let object = bench.object(id).await?;
    ensure!(object.metadata.finalizers.is_some_and(|f| f.iter().any(|f| f.starts_with("computer-operator.dev/"))), "no finalizer");
    ensure!(object.spec.repositories == ["https://github.com/team/project"] && object.spec.auto_install_deps, "the spec");
    Ok(())
}

async fn a_list_is_newest_first_and_has_steps_only_on_request(bench: Arc<Bench>) -> Result<()> {
    let (namespace, token) = bench.tenant("list").await?;
    ensure!(bench.send(Ask::get(ALL).by(&token)).await?.is(200)?.body == json!({"computers": []}), "the list must be empty");
    let mut made = Vec::new();
    for (name, host) in [("a", Some(HOST)), ("b", None), ("c", None)] {
        let mut body = json!({"name": name, "remoteUser": "dev", "provider": "byom"});
        if let Some(host) = host {
            body["hostId"] = json!(host);
        }
        made.push(bench.send(Ask::post(ALL).by(&token).json(&body)).await?.is(201)?.body["id"].clone());
    }
    let list = bench.send(Ask::get(ALL).by(&token)).await?.is(200)?;
    ensure!(list.fields() == BTreeSet::from(["computers"]), "{}", list.text);
    let computers = list.body["computers"].as_array().unwrap();
    ensure!(computers.len() == 3 && computers.iter().all(|c| c.get("provisioningSteps").is_none()), "{}", list.text);
    computers.iter().try_for_each(published)?;
    ensure!(computers.windows(2).all(|w| w[0]["createdAt"].as_i64() >= w[1]["createdAt"].as_i64()), "{}", list.text);
    for (query, count) in [
        ("?includeProvisioningSteps=true".to_owned(), 3),
        ("?includeProvisioningSteps=false".to_owned(), 3),
        (format!("?hostId={HOST}"), 1),
        (format!("?hostId={}", HOST.to_uppercase()), 1),
        (format!("?hostId={}", HOST.replace('0', "1")), 0),
        (format!("?namespace={namespace}&unknown=1"), 3),
    ] {
        let list = bench.send(Ask::get(format!("{ALL}{query}")).by(&token)).await?.is(200)?;
        let found = list.body["computers"].as_array().unwrap();
        ensure!(found.len() == count, "{query}: {}", list.text);
        ensure!(found.iter().all(|c| c["provisioningSteps"].is_array() == query.ends_with("=true")), "{query}: {}", list.text);
    }
    for query in ["?includeProvisioningSteps=yes", "?hostId=x", "?namespace=A", "?hostId=", "?hostId=1&hostId=2"] {
        bench.send(Ask::get(format!("{ALL}{query}")).by(&token)).await?.is(400)?;
    }
    // A deleted computer is not listed, however long its deletion takes.
    let id = made[1].as_str().unwrap();
    bench.hold(id).await?;
    bench.send(Ask::delete(one(id)).by(&token)).await?.is(204)?;
    let list = bench.send(Ask::get(ALL).by(&token)).await?.is(200)?;
    ensure!(list.body["computers"].as_array().unwrap().iter().all(|c| c["id"] != made[1]), "{}", list.text);
    bench.release(id).await
}

async fn an_invalid_creation_is_rejected_with_a_remedy(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("refused").await?;
    let long = "x".repeat(64);
    for (body, words) in [
        (json!({"remoteUser": "dev"}), "missing field `name`"),
        (json!({"name": "box"}), "missing field `remoteUser`"),
        (json!({"name": "", "remoteUser": "dev"}), "name is invalid: it must have 1 to 63"),
        (json!({"name": "Box", "remoteUser": "dev"}), "name is invalid: it must have 1 to 63"),
        (json!({"name": "a b", "remoteUser": "dev"}), "name is invalid: it must have 1 to 63"),
        (json!({"name": "-a", "remoteUser": "dev"}), "name is invalid: it must have 1 to 63"),
        (json!({"name": "a.b", "remoteUser": "dev"}), "name is invalid: it must have 1 to 63"),
        (json!({"name": long, "remoteUser": "dev"}), "name is invalid: it must have 1 to 63"),
        (json!({"name": 7, "remoteUser": "dev"}), "expected a string"),
        (json!({"name": "box", "remoteUser": ""}), "remoteUser is invalid: it must have 1 to 63"),
        (json!({"name": "box", "remoteUser": long}), "remoteUser is invalid: it must have 1 to 63"),
        (json!({"name": "box", "remoteUser": "dev", "provider": "managed"}), "unknown variant `managed`"),
        (json!({"name": "box", "remoteUser": "dev", "repos": ["no uri"]}), "repos is invalid: each entry must be a URI"),
        (json!({"name": "box", "remoteUser": "dev", "repos": vec!["https://h/p"; 21]}), "repos is invalid: it must have at most 20"),
        (
            json!({"name": "box", "remoteUser": "dev", "repos": [format!("https://h/{}", "x".repeat(2048))]}),
            "repos is invalid: it must have 1 to 2048",
        ),
        (json!({"name": "box", "remoteUser": "dev", "hostId": "mine"}), "hostId is invalid: it must be a UUID"),
        (json!({"name": "box", "remoteUser": "dev", "computerSource": {}}), "unknown field `computerSource`"),
        (json!([]), "the request body is invalid"),
        (json!(null), "the request body is invalid"),
    ] {
        bench.send(Ask::post(ALL).by(&token).json(&body)).await?.says(400, words).with_context(|| body.to_string())?;
    }
    let id = bench.byom(&token, "box").await?;
    let again = bench.send(Ask::post(ALL).by(&token).json(&json!({"name": "box", "remoteUser": "dev"}))).await?;
    let again = again.says(409, "a computer named box already exists")?;
    ensure!(again.body["metadata"] == json!({"computerId": id}), "{}", again.text);
    let host = json!({"name": "one", "remoteUser": "dev", "provider": "byom", "hostId": HOST});
    bench.send(Ask::post(ALL).by(&token).json(&host)).await?.is(201)?;
    let double = json!({"name": "two", "remoteUser": "dev", "provider": "byom", "hostId": HOST.to_uppercase()});
    bench.send(Ask::post(ALL).by(&token).json(&double)).await?.says(409, "hostId is already used by another computer")?;
    an_exceeded_quota_is_a_conflict(&bench).await
}

/// An exceeded quota is reported to the caller as a conflict, not as an error of the server.
async fn an_exceeded_quota_is_a_conflict(bench: &Bench) -> Result<()> {
    let (namespace, token) = bench.tenant("quota").await?;
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": namespace},
        "spec": {"hard": {"count/computers.computer-operator.dev": "0"}},
    });
    bench.apply(&[quota]).await?;
    // The API server also rejects requests before the quota has been counted.
    eventually("the quota is in effect", || async {
        let body = json!({"name": format!("box-{}", jiff::Timestamp::now().as_millisecond()), "remoteUser": "dev"});
        let answer = bench.send(Ask::post(ALL).by(&token).json(&body)).await?;
        Ok((answer.status != 201).then_some(answer))
    })
    .await?
    .says(409, "quota")?;
    Ok(())
}

async fn a_computer_is_updated_as_published(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("update").await?;
    let (id, _other) = (bench.byom(&token, "box").await?, bench.byom(&token, "other").await?);
    let patch = |body: Value| bench.send(Ask::patch(one(&id)).by(&token).json(&body));
    let before = bench.send(Ask::get(one(&id)).by(&token)).await?.is(200)?.header("etag").to_owned();
    let same = patch(json!({"name": "box", "remoteUser": "dev"})).await?.is(200)?;
    ensure!(same.header("etag") == before && same.body["id"] == json!(id), "an update without a change must not write");
    patch(json!({})).await?.is(200)?;
    let changed = patch(json!({"name": "new-name", "remoteUser": "root", "hostId": HOST})).await?.is(200)?;
    published(&changed.body)?;
    ensure!(changed.header("etag") != before && changed.body["id"] == json!(id), "{}", changed.text);
    ensure!(
        changed.body["name"] == "new-name" && changed.body["remoteUser"] == "root" && changed.body["hostId"] == HOST,
        "{}",
        changed.text
    );
    bench.send(Ask::get(format!("{ALL}/name/new-name")).by(&token)).await?.is(200)?;
    bench.send(Ask::get(format!("{ALL}/name/box")).by(&token)).await?.is(404)?;
    for (body, code, words) in [
        (json!({"hostId": HOST.replace('0', "1")}), 400, "hostId cannot be changed: the computer already has one"),
        (json!({"hostId": HOST}), 200, ""),
        (json!({"name": "Not A Name"}), 400, "name is invalid: it must have 1 to 63"),
        (json!({"name": "other"}), 409, "a computer named other already exists"),
        (json!({"status": "active"}), 400, "unknown field `status`"),
        (json!({"remoteUser": ""}), 400, "remoteUser is invalid: it must have 1 to 63"),
        (json!({"hostId": "x"}), 400, "hostId"),
    ] {
        let answer = patch(body.clone()).await?.is(code).with_context(|| body.to_string())?;
        ensure!(answer.detail().contains(words), "{}", answer.text);
    }
    let matching = |tag: &str| Ask::patch(one(&id)).by(&token).json(&json!({"remoteUser": "x"})).header("if-match", tag);
    let stale = bench.send(matching(&before)).await?.is(412)?;
    let now = stale.body["metadata"]["etag"].as_str().context("the current version")?.to_owned();
    bench.send(matching(&format!("\"other\", {now}"))).await?.is(200)?;
    bench.send(matching("*")).await?.is(200)?;
    Ok(())
}

/// The server retries a PATCH that conflicts with another one; it never reports the request as invalid.
async fn concurrent_updates_succeed_or_conflict(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("crowd").await?;
    let id = bench.byom(&token, "box").await?;
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..16 {
        let (bench, ask) = (Arc::clone(&bench), Ask::patch(one(&id)).by(&token).json(&json!({"remoteUser": format!("user-{i}")})));
        tasks.spawn(async move { bench.send(ask).await });
    }
    let mut done = 0;
    while let Some(answer) = tasks.join_next().await {
        let answer: Answer = answer??;
        ensure!(matches!(answer.status, 200 | 409), "{}", answer.text);
        done += usize::from(answer.status == 200);
    }
    ensure!(done >= 1, "no update succeeded");
    Ok(())
}

async fn a_name_can_be_reused_while_its_former_computer_is_being_deleted(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("again").await?;
    let old = bench.byom(&token, "box").await?;
    let mut held = Vec::new();
    // Twice: the second time, the former computer itself has the name of a successor.
    for _ in 0..2 {
        let current = bench.send(Ask::get(format!("{ALL}/name/box")).by(&token)).await?.is(200)?.body["id"].as_str().unwrap().to_owned();
        bench.hold(&current).await?;
        bench.send(Ask::delete(one(&current)).by(&token)).await?.is(204)?;
        bench.send(Ask::get(one(&current)).by(&token)).await?.is(404)?;
        bench.send(Ask::get(format!("{ALL}/name/box")).by(&token)).await?.is(404)?;
        held.push(current);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..6 {
            let body = json!({"name": "box", "remoteUser": "dev", "provider": "byom"});
            let (bench, ask) = (Arc::clone(&bench), Ask::post(ALL).by(&token).json(&body));
            tasks.spawn(async move { bench.send(ask).await });
        }
        let mut codes = Vec::new();
        while let Some(answer) = tasks.join_next().await {
            codes.push(answer??.status);
        }
        codes.sort_unstable();
        ensure!(codes == [201, 409, 409, 409, 409, 409], "exactly one of six concurrent requests for a name must succeed: {codes:?}");
    }
    let new = bench.send(Ask::get(format!("{ALL}/name/box")).by(&token)).await?.is(200)?;
    ensure!(new.body["name"] == "box" && new.body["id"] != json!(old), "{}", new.text);
    let list = bench.send(Ask::get(ALL).by(&token)).await?.is(200)?;
    ensure!(list.body["computers"].as_array().is_some_and(|c| c.len() == 1), "{}", list.text);
    for id in held {
        bench.release(&id).await?;
    }
    Ok(())
}

async fn a_computer_is_found_by_its_display_name(bench: Arc<Bench>) -> Result<()> {
    let (namespace, token) = bench.tenant("people").await?;
    let object = json!({
        "apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": "box", "namespace": namespace},
        "spec": {"provider": "BYOM", "displayName": "Anna's box"},
    });
    bench.apply(&[object]).await?;
    let found = bench.send(Ask::get(format!("{ALL}/name/Anna%27s%20box")).by(&token)).await?.is(200)?;
    ensure!(found.body["name"] == "Anna's box", "{}", found.text);
    for name in ["box", "%2e%2e", "..%2Fbox", "%ff", "%00", "a%2Fb"] {
        bench.send(Ask::get(format!("{ALL}/name/{name}")).by(&token)).await?.is(404).with_context(|| name.to_owned())?;
    }
    Ok(())
}
