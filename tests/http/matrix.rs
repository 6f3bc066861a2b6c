//! The complete matrix of tenants, verbs and credentials. A row is an operation on one computer and one session of one namespace, a column is a caller.
//! Every cell has the expected status code for a valid caller; an invalid credential is 401 in every row.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use computer_operator::credentials::{ComputerId, Key};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::Scenario;
use crate::api_keys;
use crate::client::Ask;
use crate::harness::{AUDIENCE, Bench, CLUSTER_AUDIENCE, SYSTEM, eventually};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![every_caller_may_do_exactly_what_rbac_permits, an_invalid_credential_is_401_everywhere]
}

/// The objects of the operations.
pub struct Subject {
    pub namespace: String,
    pub computer: String,
    pub name: &'static str,
    pub session: String,
}

/// Every operation once. Those that would change something are invalid requests or dry runs, so that a permitted caller gets 400, 501 or a preview.
pub fn operations(subject: &Subject) -> Vec<(&'static str, Ask)> {
    let (ns, id) = (&subject.namespace, &subject.computer);
    let computer = |rest: &str| format!("/api/v0/computers/{id}{rest}");
    let session = |rest: &str| format!("/api/v0/sessions/{}{rest}", subject.session);
    let bad = json!({"name": "Not a name", "remoteUser": "u"});
    vec![
        ("list", Ask::get(format!("/api/v0/computers?namespace={ns}"))),
        ("create", Ask::post(format!("/api/v0/computers?namespace={ns}")).json(&bad)),
        ("get", Ask::get(computer(""))),
        ("by name", Ask::get(format!("/api/v0/computers/name/{}?namespace={ns}", subject.name))),
        ("patch", Ask::patch(computer("")).json(&json!({}))),
        ("delete", Ask::delete(computer("?dryRun=All"))),
        ("restart", Ask::post(computer("/restart"))),
        ("refresh", Ask::post(computer("/refresh"))),
        ("install-deps", Ask::post(computer("/install-deps"))),
        ("metrics", Ask::get(computer("/metrics"))),
        ("deletion", Ask::get(computer("/deletion"))),
        ("sessions", Ask::get(format!("/api/v0/sessions?namespace={ns}"))),
        ("new session", Ask::post("/api/v0/sessions").json(&json!({"computerId": id}))),
        ("session", Ask::get(session(""))),
        ("patch session", Ask::patch(session("")).json(&json!({"sessionSettings": {}}))),
        ("interrupt", Ask::post(session("/interrupt"))),
        ("messages", Ask::get(session("/messages"))),
        ("message", Ask::get(session("/messages/m"))),
        ("post message", Ask::post(session("/messages")).json(&json!({"text": "t"}))),
    ]
}

/// Columns of [`CELLS`].
const CALLERS: [&str; 11] = [
    "own key",
    "other key",
    "foreign key",
    "edit",
    "view",
    "delete only",
    "none",
    "foreign edit",
    "view all",
    "ApiKey of edit",
    "foreign ApiKey",
];

/// The status code of every cell.
const CELLS: &[(&str, [u16; 11])] = &[
    ("list", [200, 200, 404, 200, 200, 403, 403, 403, 200, 200, 403]),
    ("create", [403, 403, 404, 400, 403, 403, 403, 403, 403, 400, 403]),
    ("get", [200, 404, 404, 200, 200, 404, 404, 404, 200, 200, 404]),
    ("by name", [200, 404, 404, 200, 200, 404, 404, 404, 200, 200, 404]),
    ("patch", [200, 404, 404, 200, 403, 404, 404, 404, 403, 200, 404]),
    ("delete", [200, 404, 404, 200, 404, 200, 404, 404, 404, 200, 404]),
    ("restart", [400, 404, 404, 400, 403, 404, 404, 404, 403, 400, 404]),
    ("refresh", [200, 404, 404, 200, 403, 404, 404, 404, 403, 200, 404]),
    ("install-deps", [501, 404, 404, 501, 403, 404, 404, 404, 403, 501, 404]),
    ("metrics", [400, 404, 404, 400, 400, 404, 404, 404, 400, 400, 404]),
    ("deletion", [404, 404, 404, 404, 404, 404, 404, 404, 404, 404, 404]),
    ("sessions", [200, 200, 404, 200, 200, 403, 403, 403, 200, 200, 403]),
    ("new session", [201, 404, 404, 201, 403, 404, 404, 404, 403, 201, 404]),
    ("session", [200, 404, 404, 200, 200, 404, 404, 404, 200, 200, 404]),
    ("patch session", [200, 404, 404, 200, 403, 404, 404, 404, 403, 200, 404]),
    ("interrupt", [501, 404, 404, 501, 403, 404, 404, 404, 403, 501, 404]),
    ("messages", [501, 404, 404, 501, 501, 404, 404, 404, 501, 501, 404]),
    ("message", [501, 404, 404, 501, 501, 404, 404, 404, 501, 501, 404]),
    ("post message", [501, 404, 404, 501, 403, 404, 404, 404, 403, 501, 404]),
];

async fn subject(bench: &Bench, what: &str) -> Result<(Subject, String)> {
    let (namespace, edit) = bench.tenant(what).await?;
    let computer = bench.byom(&edit, "box").await?;
    let made = bench.send(Ask::post("/api/v0/sessions").by(&edit).json(&json!({"computerId": computer}))).await?.is(201)?;
    let session = made.body["sessionId"].as_str().context("an id")?.to_owned();
    Ok((Subject { namespace, computer, name: "box", session }, edit))
}

async fn every_caller_may_do_exactly_what_rbac_permits(bench: Arc<Bench>) -> Result<()> {
    let (subject, edit) = subject(&bench, "matrix").await?;
    let (_, foreign) = bench.tenant("foreign").await?;
    let foreign_computer = bench.byom(&foreign, "box").await?;
    let other = bench.byom(&edit, "other").await?;
    let ns = &subject.namespace;
    let foreign_namespace = ComputerId::decode(&foreign_computer).context("an id")?.namespace;
    let callers = [
        bench.key(&subject.computer).await?,
        bench.key(&other).await?,
        bench.key(&foreign_computer).await?,
        edit,
        bench.account(ns, "view", &["get", "list"], false).await?,
        bench.account(ns, "delete-only", &["delete"], false).await?,
        bench.account(ns, "none", &[], false).await?,
        foreign,
        bench.account(SYSTEM, "view-all", &["get", "list"], true).await?,
        api_keys::issue(&bench, ns, "key", "owner").await?,
        api_keys::issue(&bench, &foreign_namespace, "key", "owner").await?,
    ];
    bench.until(200, Ask::get(format!("/api/v0/computers?namespace={ns}")).by(&callers[4])).await?;
    bench.until(200, Ask::get(format!("/api/v0/computers?namespace={ns}")).by(&callers[8])).await?;
    bench.until(200, Ask::delete(format!("/api/v0/computers/{}?dryRun=All", subject.computer)).by(&callers[5])).await?;
    let (mut wrong, mut unseen) = (Vec::new(), std::collections::BTreeSet::new());
    for (operation, ask) in operations(&subject) {
        let (_, codes) = CELLS.iter().find(|(name, _)| *name == operation).context("a row")?;
        for (i, caller) in CALLERS.iter().enumerate() {
            let answer = bench.send(ask.clone().by(&callers[i])).await?;
            if answer.status != codes[i] {
                wrong.push(format!("{operation} by {caller}: {} instead of {}: {}", answer.status, codes[i], answer.detail()));
            }
            if answer.status == 404 {
                unseen.insert(answer.text);
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n    "));
    // An invisible object and a missing one have the same response: one text per kind of object.
    ensure!(unseen.len() == 4, "{unseen:#?}");
    let own = bench.send(Ask::get("/api/v0/computers").by(&callers[0])).await?.is(200)?;
    ensure!(own.body["computers"].as_array().is_some_and(|c| c.len() == 1 && c[0]["name"] == "box"), "{}", own.text);
    // A computer's key may delete its computer, and is then invalid itself.
    bench.send(Ask::delete(format!("/api/v0/computers/{}", subject.computer)).by(&callers[0])).await?.is(204)?;
    bench.send(Ask::delete(format!("/api/v0/computers/{}", subject.computer)).by(&callers[0])).await?.is(401)?;
    Ok(())
}

async fn an_invalid_credential_is_401_everywhere(bench: Arc<Bench>) -> Result<()> {
    let (subject, edit) = subject(&bench, "bad").await?;
    let mut bodies = std::collections::BTreeSet::new();
    for (kind, headers) in bad_credentials(&bench, &subject, &edit).await? {
        for (operation, mut ask) in operations(&subject) {
            ask.headers.extend(headers.iter().map(|h| ("authorization", h.clone())));
            for replica in 0..bench.replicas.len() {
                let answer = bench.send_to(replica, ask.clone()).await?.is(401);
                bodies.insert(answer.with_context(|| format!("{operation} by {kind}"))?.text);
            }
        }
    }
    ensure!(bodies.len() == 1, "the response reveals the reason: {bodies:#?}");
    Ok(())
}

/// Values of `Authorization` headers that must not authenticate.
async fn bad_credentials(bench: &Bench, subject: &Subject, edit: &str) -> Result<Vec<(&'static str, Vec<String>)>> {
    let ns = &subject.namespace;
    let own = bench.key(&subject.computer).await?;
    let of = ComputerId::decode(&subject.computer).context("an id")?;
    let ghost = ComputerId { uid: "00000000-0000-4000-8000-000000000000".into(), ..of.clone() };
    let bearer = |token: &str| vec![format!("Bearer {token}")];
    let (going, going_too) = terminating(bench).await?;
    let mut mistyped = own.clone();
    mistyped.replace_range(own.len() - 10..own.len() - 9, if own.as_bytes()[own.len() - 10] == b'a' { "b" } else { "a" });
    let mut all = vec![
        ("none", Vec::new()),
        ("an empty header", vec![String::new()]),
        ("the scheme alone", vec!["Bearer".into()]),
        ("another scheme", vec![format!("Basic {own}")]),
        ("no scheme", vec![own.clone()]),
        ("two headers", vec![format!("Bearer {own}"), format!("Bearer {own}")]),
        ("two tokens", bearer(&format!("{own}, {own}"))),
        ("garbage", bearer("garbage")),
        ("dots", bearer("..")),
        ("a mistyped key", bearer(&mistyped)),
        ("a made-up key of this computer", bearer(&Key::new(of, [7; 32]).token())),
        ("a key of a computer that never existed", bearer(&Key::new(ghost, [7; 32]).token())),
        ("the key of a deleted computer", bearer(&deleted(bench, edit).await?)),
        ("a revoked key of a living computer", bearer(&revoked(bench, edit).await?)),
        ("the key of a computer that was recreated", bearer(&recreated(bench, edit).await?)),
        ("a key in a terminating namespace", bearer(&going)),
        ("an ApiKey in a terminating namespace", bearer(&going_too)),
        ("a token for another audience", bearer(&bench.jwt(ns, "owner", "other").await?)),
        ("a token for the API server", bearer(&bench.jwt(ns, "owner", CLUSTER_AUDIENCE).await?)),
        ("a token of a deleted account", bearer(&deleted_account(bench, ns).await?)),
        ("a token without a signature", bearer(&format!("{}.", edit.rsplit_once('.').context("a JWT")?.0))),
    ];
    all.extend(api_keys::invalid(bench, ns).await?.iter().map(|(kind, token)| (*kind, bearer(token))));
    Ok(all)
}

async fn deleted(bench: &Bench, edit: &str) -> Result<String> {
    let id = bench.byom(edit, "deleted").await?;
    let key = bench.key(&id).await?;
    bench.send(Ask::delete(format!("/api/v0/computers/{id}?wait=60")).by(edit)).await?.is(204)?;
    Ok(key)
}

/// A tombstone in the record is sufficient.
async fn revoked(bench: &Bench, edit: &str) -> Result<String> {
    let id = bench.byom(edit, "revoked").await?;
    let key = bench.key(&id).await?;
    let uid = ComputerId::decode(&id).context("an id")?.uid;
    let patch = json!({"spec": {"state": {"credential": "Revoked"}}});
    bench.records().patch(&uid, &PatchParams::default(), &Patch::Merge(patch)).await?;
    bench.send(Ask::get(format!("/api/v0/computers/{id}")).by(edit)).await?.is(200)?;
    Ok(key)
}

async fn recreated(bench: &Bench, edit: &str) -> Result<String> {
    let id = bench.byom(edit, "recreated").await?;
    let key = bench.key(&id).await?;
    bench.send(Ask::delete(format!("/api/v0/computers/{id}?wait=60")).by(edit)).await?.is(204)?;
    bench.until(404, Ask::delete(format!("/api/v0/computers/{id}")).by(edit)).await?;
    let again = bench.byom(edit, "recreated").await?;
    ensure!(
        bench.object(&again).await?.metadata.name.as_deref() == Some("recreated") && again != id,
        "another computer with the same name"
    );
    bench.key(&again).await?;
    Ok(key)
}

/// The computer itself is unchanged; only its namespace is being deleted.
async fn terminating(bench: &Bench) -> Result<(String, String)> {
    let (namespace, token) = bench.tenant("going").await?;
    let id = bench.byom(&token, "box").await?;
    let (key, api_key) = (bench.key(&id).await?, api_keys::issue(bench, &namespace, "key", "owner").await?);
    bench.hold(&id).await?;
    let holder = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "holder", "namespace": namespace, "finalizers": ["example.com/hold"]},
    });
    bench.apply(&[holder]).await?;
    bench.kubectl(&["delete", "namespace", &namespace, "--wait=false"], "").await?;
    Ok((key, api_key))
}

/// The API server caches a valid token for up to 10 s, so this token has not been used before.
async fn deleted_account(bench: &Bench, namespace: &str) -> Result<String> {
    bench.apply(&[json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "gone", "namespace": namespace}})]).await?;
    let token = bench.jwt(namespace, "gone", AUDIENCE).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(bench.client.clone(), namespace);
    accounts.delete("gone", &DeleteParams::default()).await?;
    eventually("the account is gone", || async { Ok(accounts.get_opt("gone").await?.is_none().then_some(())) }).await?;
    Ok(token)
}
