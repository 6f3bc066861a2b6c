//! Sessions, as far as they can be served without an agent: create, paginated list, get, update, soft deletion.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::Scenario;
use crate::client::Ask;
use crate::harness::Bench;

const ALL: &str = "/api/v0/sessions";

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![a_session_is_served_as_published, a_list_is_paginated, a_computer_sees_only_its_own_sessions]
}

fn one(id: &str) -> String {
    format!("{ALL}/{id}")
}

/// The published object.
fn published(session: &Value) -> Result<()> {
    let known = BTreeSet::from([
        "sessionId",
        "title",
        "status",
        "messageCount",
        "createdAt",
        "updatedAt",
        "completedAt",
        "computerId",
        "sessionSettings",
    ]);
    for (field, value) in session.as_object().context("an object")? {
        ensure!(known.contains(field.as_str()) && !value.is_null(), "{field} in {session}");
    }
    ensure!(session["sessionId"].is_string() && session["messageCount"].is_u64(), "{session}");
    ensure!(["idle", "pending", "running"].contains(&session["status"].as_str().unwrap_or_default()), "{session}");
    for field in ["createdAt", "updatedAt"] {
        ensure!(session[field].as_i64().is_some_and(|t| t > 1_600_000_000_000), "{field} in {session}");
    }
    Ok(())
}

async fn a_session_is_served_as_published(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("session").await?;
    let computer = bench.byom(&token, "box").await?;
    let settings = json!({"model": "m", "tags": [{"name": "t", "metadata": {"deep": [1, 2.5, null, "ü"]}}]});
    let body = json!({"computerId": computer, "cwd": "/home/dev/app", "sessionSettings": settings});
    let made = bench.send(Ask::post(ALL).by(&token).json(&body)).await?.is(201)?;
    published(&made.body)?;
    ensure!(made.body["computerId"] == json!(computer) && made.body["sessionSettings"] == settings, "{}", made.text);
    let id = made.body["sessionId"].as_str().unwrap().to_owned();
    let got = bench.send(Ask::get(one(&id)).by(&token)).await?.is(200)?;
    ensure!(got.body == made.body, "{} is not {}", got.text, made.text);
    let changed = bench.send(Ask::patch(one(&id)).by(&token).json(&json!({"sessionSettings": {"model": "n"}}))).await?.is(200)?;
    ensure!(changed.body["sessionSettings"] == json!({"model": "n"}), "{}", changed.text);
    for (ask, code, words) in [
        (Ask::post(ALL).json(&json!({})), 400, "computerId is required"),
        (Ask::post(ALL).json(&json!({"computerId": "x"})), 404, "the computer does not exist"),
        (Ask::post(ALL).json(&json!({"computerId": computer, "cwd": ""})), 400, "cwd is invalid: it must have 1 to 1024"),
        (
            Ask::post(ALL).json(&json!({"computerId": computer, "sessionSettings": [1]})),
            400,
            "sessionSettings is invalid: it must be a JSON object",
        ),
        (Ask::patch(one(&id)).json(&json!({"sessionSettings": 1})), 400, "sessionSettings is invalid: it must be a JSON object"),
        (Ask::patch(one(&id)).json(&json!({"titel": "t"})), 400, "unknown field `titel`"),
        (Ask::patch(one(&id)).json(&json!({})), 400, "the request changes nothing"),
        (Ask::patch(one(&id)).json(&json!({"path": "/etc/passwd"})), 400, "path is invalid: it must be relative to the home"),
        (Ask::patch(one(&id)).json(&json!({"status": "archived"})), 400, "unknown variant `archived`"),
        (Ask::patch(one(&id)).json(&json!({"status": "running"})), 403, "only the machine may report status and lastActivityAt"),
        (Ask::post(format!("{}/interrupt", one(&id))), 501, "no agent is connected to this API"),
        (Ask::get(format!("{}/messages", one(&id))), 501, "no agent is connected to this API"),
        (Ask::post(format!("{}/messages", one(&id))).json(&json!({"text": "hello"})), 501, "no agent is connected to this API"),
        (Ask::get(format!("{}/messages/m1", one(&id))), 501, "no agent is connected to this API"),
        (Ask::get(format!("{}/messages", one("x"))), 404, "the session does not exist"),
        (Ask::get(format!("{}/messages/%ff", one("%ff"))), 404, "the session does not exist"),
        (Ask::get(one(&computer)), 404, "the session does not exist"),
    ] {
        let what = format!("{} {}", ask.method, ask.path);
        bench.send(ask.by(&token)).await?.says(code, words).context(what)?;
    }
    bench.send(Ask::delete(one(&id)).by(&token)).await?.is(204)?;
    for ask in [Ask::get(one(&id)), Ask::delete(one(&id)), Ask::patch(one(&id)).json(&json!({"sessionSettings": {}}))] {
        bench.send(ask.by(&token)).await?.says(404, "the session does not exist, or you do not have permission to see it")?;
    }
    let list = bench.send(Ask::get(ALL).by(&token)).await?.is(200)?;
    ensure!(list.body["sessions"] == json!([]), "{}", list.text);
    // A soft deletion: an admin can restore the session.
    let kept = bench.kubectl(&["get", "sessions", "-A", "-o", "jsonpath={.items[*].spec.computerName}"], "").await?;
    ensure!(kept.contains("box"), "the Session object was deleted");
    Ok(())
}

async fn a_list_is_paginated(bench: Arc<Bench>) -> Result<()> {
    let (namespace, token) = bench.tenant("pages").await?;
    let (one, two) = (bench.byom(&token, "one").await?, bench.byom(&token, "two").await?);
    for i in 0..23 {
        let computer = if i < 4 { &two } else { &one };
        bench.send(Ask::post(ALL).by(&token).json(&json!({"computerId": computer}))).await?.is(201)?;
    }
    let first = bench.send(Ask::get(ALL).by(&token)).await?.is(200)?;
    ensure!(first.fields() == BTreeSet::from(["sessions", "pagination"]), "{}", first.text);
    ensure!(first.body["sessions"].as_array().is_some_and(|s| s.len() == 20), "20 is the default");
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = bench.send(Ask::get(format!("{ALL}?limit=6{cursor}")).by(&token)).await?.is(200)?;
        for session in page.body["sessions"].as_array().unwrap() {
            published(session)?;
            ensure!(session.get("sessionSettings").is_none(), "{session}");
            seen.push(session["sessionId"].as_str().unwrap().to_owned());
        }
        let pagination = &page.body["pagination"];
        ensure!(pagination["hasMore"].is_boolean() && pagination.get("nextCursor").is_some(), "{}", page.text);
        let Some(next) = pagination["nextCursor"].as_str() else { break };
        ensure!(pagination["hasMore"] == true, "{}", page.text);
        cursor = format!("&cursor={next}");
    }
    let all: BTreeSet<_> = seen.iter().collect();
    ensure!(seen.len() == 23 && all.len() == 23, "{} sessions, {} different", seen.len(), all.len());
    let of_two = bench.send(Ask::get(format!("{ALL}?computerId={two}")).by(&token)).await?.is(200)?;
    ensure!(of_two.body["sessions"].as_array().is_some_and(|s| s.len() == 4), "{}", of_two.text);
    ensure!(of_two.body["pagination"] == json!({"hasMore": false, "nextCursor": null}), "{}", of_two.text);
    for query in ["limit=0", "limit=101", "limit=x", "limit=-1", "limit=%2B5", "limit=007", "limit=", "cursor=x", "cursor=", "computerId=x"]
    {
        bench.send(Ask::get(format!("{ALL}?{query}")).by(&token)).await?.is(400).with_context(|| query.to_owned())?;
    }
    bench.send(Ask::get(format!("{ALL}?namespace={namespace}&limit=100")).by(&token)).await?.is(200)?;
    Ok(())
}

async fn a_computer_sees_only_its_own_sessions(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("own").await?;
    let (one_id, two_id) = (bench.byom(&token, "one").await?, bench.byom(&token, "two").await?);
    let (key, _) = (bench.key(&one_id).await?, bench.key(&two_id).await?);
    let mine = bench.send(Ask::post(ALL).by(&key).json(&json!({}))).await?.is(201)?;
    ensure!(mine.body["computerId"] == json!(one_id), "{}", mine.text);
    let other = bench.send(Ask::post(ALL).by(&token).json(&json!({"computerId": two_id}))).await?.is(201)?;
    let other = other.body["sessionId"].as_str().unwrap().to_owned();
    let list = bench.send(Ask::get(ALL).by(&key)).await?.is(200)?;
    ensure!(list.body["sessions"].as_array().is_some_and(|s| s.len() == 1 && s[0]["sessionId"] == mine.body["sessionId"]), "{}", list.text);
    for ask in [
        Ask::get(one(&other)),
        Ask::delete(one(&other)),
        Ask::patch(one(&other)).json(&json!({"sessionSettings": {}})),
        Ask::post(format!("{}/interrupt", one(&other))),
        Ask::post(ALL).json(&json!({"computerId": two_id})),
    ] {
        let what = format!("{} {}", ask.method, ask.path);
        bench.send(ask.by(&key)).await?.is(404).context(what)?;
    }
    let none = bench.send(Ask::get(format!("{ALL}?computerId={two_id}")).by(&key)).await?.is(200)?;
    ensure!(none.body["sessions"] == json!([]), "{}", none.text);
    Ok(())
}
