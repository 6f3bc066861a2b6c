//! What a computer's key may do is the word of its class, and what a machine reports about its sessions.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use computer_operator::credentials::ComputerId;
use computer_operator::resources::Session;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::Scenario;
use crate::client::Ask;
use crate::harness::Bench;
use crate::matrix::{Subject, operations};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![a_key_may_do_what_its_class_says, a_machine_reports_its_sessions]
}

/// Every operation of the matrix: the word that allows it, and its status code then.
const CODES: [(&str, &str, u16); 19] = [
    ("list", "get", 200),
    ("create", "nothing", 403),
    ("get", "get", 200),
    ("by name", "get", 200),
    ("patch", "patch", 200),
    ("delete", "delete", 200),
    ("restart", "patch", 400),
    ("refresh", "patch", 200),
    ("install-deps", "patch", 501),
    ("metrics", "get", 400),
    ("deletion", "get", 404),
    ("sessions", "sessions", 200),
    ("new session", "sessions", 201),
    ("session", "sessions", 200),
    ("patch session", "sessions", 200),
    ("interrupt", "sessions", 501),
    ("messages", "sessions", 501),
    ("message", "sessions", 501),
    ("post message", "sessions", 501),
];

/// The bodies of a computer and of a session that do not exist.
const UNSEEN: [&str; 2] = [
    "the computer does not exist, or you do not have permission to see it",
    "the session does not exist, or you do not have permission to see it",
];

/// The operator copies the words of a class to the record. A computer with provider BYOM has no class, so the test writes them.
async fn limit(bench: &Bench, computer: &str, words: &[&str]) -> Result<()> {
    let uid = ComputerId::decode(computer).context("an id")?.uid;
    let patch = json!({"spec": {"state": {"keyAllow": words}}});
    bench.records().patch(&uid, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

async fn a_key_may_do_what_its_class_says(bench: Arc<Bench>) -> Result<()> {
    let (namespace, token) = bench.tenant("rights").await?;
    let computer = bench.byom(&token, "box").await?;
    let key = bench.key(&computer).await?;
    let made = bench.send(Ask::post("/api/v0/sessions").by(&token).json(&json!({"computerId": computer}))).await?.is(201)?;
    let session = made.body["sessionId"].as_str().context("an id")?.to_owned();
    let subject = Subject { namespace, computer: computer.clone(), name: "box", session: session.clone() };
    let mut wrong = Vec::new();
    // The last one is what a machine gets, and then a word of a newer version.
    let kinds: [&[&str]; 8] =
        [&[], &["get"], &["patch"], &["delete"], &["sessions"], &["delete-sessions"], &["get", "sessions"], &["get", "sessions", "fly"]];
    for words in kinds {
        limit(&bench, &computer, words).await?;
        for (operation, ask) in operations(&subject) {
            let (_, word, code) = CODES.iter().find(|(name, ..)| *name == operation).context("a row")?;
            let allowed = words.contains(word) || *word == "nothing";
            let answer = bench.send(ask.by(&key)).await?;
            let expected = if allowed { *code } else { 404 };
            let hidden = allowed || UNSEEN.contains(&answer.detail());
            if answer.status != expected || !hidden {
                wrong.push(format!("{operation} with {words:?}: {} instead of {expected}: {}", answer.status, answer.detail()));
            }
        }
        let gone = bench.send(Ask::delete(format!("/api/v0/sessions/{}", "x".repeat(20))).by(&key)).await?;
        ensure!(gone.status == 404, "a session that does not exist: {}", gone.text);
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n    "));
    // Without the words `delete` and `delete-sessions` nothing was deleted, and a right that is given or taken applies to the next request.
    let deleting = Ask::delete(format!("/api/v0/sessions/{session}")).by(&key);
    bench.send(deleting.clone()).await?.says(404, UNSEEN[1])?;
    bench.send(Ask::delete(format!("/api/v0/computers/{computer}")).by(&key)).await?.says(404, UNSEEN[0])?;
    bench.send(Ask::get(format!("/api/v0/computers/{computer}")).by(&token)).await?.is(200)?;
    limit(&bench, &computer, &["delete-sessions"]).await?;
    bench.send(deleting).await?.is(204)?;
    limit(&bench, &computer, &["delete"]).await?;
    bench.send(Ask::delete(format!("/api/v0/computers/{computer}")).by(&key)).await?.is(204)?;
    bench.send(Ask::get(format!("/api/v0/computers/{computer}")).by(&key)).await?.is(401)?;
    Ok(())
}

async fn a_machine_reports_its_sessions(bench: Arc<Bench>) -> Result<()> {
    let (namespace, token) = bench.tenant("reports").await?;
    let (computer, other) = (bench.byom(&token, "box").await?, bench.byom(&token, "other").await?);
    let (key, foreign) = (bench.key(&computer).await?, bench.key(&other).await?);
    limit(&bench, &computer, &["get", "sessions"]).await?;
    let asked = json!({"title": "Fix the build", "path": ".claude/projects/a/1.jsonl"});
    let made = bench.send(Ask::post("/api/v0/sessions").by(&key).json(&asked)).await?.is(201)?;
    ensure!(made.body["title"] == "Fix the build" && made.body["status"] == "idle", "{}", made.text);
    let id = made.body["sessionId"].as_str().context("an id")?.to_owned();
    let name = ComputerId::decode(&id).context("an id")?.name;
    let report = |body: serde_json::Value| Ask::patch(format!("/api/v0/sessions/{id}")).by(&key).json(&body);
    let created = made.body["createdAt"].as_i64().context("a time")?;
    let running = bench.send(report(json!({"status": "running", "lastActivityAt": created + 1000}))).await?.is(200)?;
    ensure!(running.body["status"] == "running", "{}", running.text);
    let sessions: Api<Session> = Api::namespaced(bench.client.clone(), &namespace);
    let before = sessions.get(&name).await?;
    ensure!(before.spec.path.as_deref() == Some(".claude/projects/a/1.jsonl"), "{:?}", before.spec);
    ensure!(before.status.as_ref().is_some_and(|s| s.last_activity_time.is_some()), "{:?}", before.status);
    // What changes nothing is not written.
    for same in [json!({"status": "running"}), json!({"lastActivityAt": 1}), json!({"title": "Fix the build"})] {
        bench.send(report(same)).await?.is(200)?;
    }
    ensure!(sessions.get(&name).await?.metadata.resource_version == before.metadata.resource_version, "a write that changes nothing");
    let future = bench.send(report(json!({"lastActivityAt": i64::MAX, "title": "Done", "status": "idle"}))).await?.is(200)?;
    ensure!(future.body["title"] == "Done" && future.body["status"] == "idle", "{}", future.text);
    ensure!(future.body["updatedAt"].as_i64().is_some_and(|at| at < created + 86_400_000), "a time in the future: {}", future.text);
    let spied = Ask::patch(format!("/api/v0/sessions/{id}")).by(&foreign).json(&json!({"status": "running"}));
    bench.send(spied).await?.says(404, UNSEEN[1])?;
    let known = BTreeSet::from(["sessionId", "title", "status", "messageCount", "createdAt", "updatedAt", "computerId"]);
    ensure!(future.fields() == known, "only the published fields are answered: {}", future.text);
    Ok(())
}
