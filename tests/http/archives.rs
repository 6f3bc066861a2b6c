//! A tenant reads its archive over HTTP, with real tokens, rights and namespaces: an operator with a store, and an API without any credential of it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use computer_operator::archive::chunks::{Blob, Sizes};
use computer_operator::archive::manifest::ManifestComputer;
use computer_operator::archive::pack::{Request, pack};
use computer_operator::archive::{Manifest, Store, Unreadable, chunk_key, manifest_key, receipt_key};
use computer_operator::credentials::ComputerId;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::Scenario;
use crate::client::{Answer, Ask};
use crate::harness::{Bench, Replica, SYSTEM, eventually};

/// These scenarios run alone: they start the operator with other settings.
pub fn alone() -> Vec<Scenario> {
    xtask::scenarios![a_tenant_reads_its_archive_and_nobody_else_does, a_token_that_is_not_the_apis_reads_nothing]
}

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![deletions_are_listed_for_whom_may_list_computers]
}

/// The verb on the virtual subresource, as the chart gives it to admins of a namespace.
async fn may_read(bench: &Bench, namespace: &str, account: &str, everywhere: bool) -> Result<()> {
    let kind = if everywhere { "Cluster" } else { "" };
    let (name, within) = (format!("archives-{account}-{namespace}"), (!everywhere).then_some(namespace));
    bench
        .apply(&[
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{kind}Role"), "metadata": {"name": name, "namespace": within},
                "rules": [{"apiGroups": ["computer-operator.dev"], "resources": ["computers/archive"], "verbs": ["get"]}]}),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{kind}RoleBinding"), "metadata": {"name": name, "namespace": within},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": format!("{kind}Role"), "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]}),
        ])
        .await
}

/// A token of the API's account that is bound to a pod, as the kubelet makes it.
async fn bound_token(bench: &Bench, audience: &str) -> Result<String> {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "api-pod", "namespace": SYSTEM},
        "spec": {"serviceAccountName": "computer-operator-api", "containers": [{"name": "c", "image": "none:1"}]}});
    bench.apply(&[pod]).await?;
    let bound = ["--bound-object-kind=Pod", "--bound-object-name=api-pod", "--duration=1h"];
    let audience = format!("--audience={audience}");
    let token = bench.kubectl(&[&["create", "token", "computer-operator-api", "-n", SYSTEM, &audience], &bound[..]].concat(), "").await?;
    Ok(token.trim().to_owned())
}

/// A replica of the API that reads archives from the operator.
async fn replica(bench: &Bench, token: &Path) -> Result<Replica> {
    let ingest = bench.operator_at.lock().unwrap().context("an operator")?.0;
    let ca = bench.folder.path().join("ingest-ca.crt");
    let secret = eventually("the certificate", || async {
        let secret = bench
            .kubectl(
                &[
                    "get",
                    "secret",
                    "computer-operator-ingest-tls",
                    "-n",
                    SYSTEM,
                    "-o",
                    "go-template={{index .data \"tls.crt\" | base64decode}}",
                ],
                "",
            )
            .await?;
        Ok(Some(secret).filter(|pem| !pem.is_empty()))
    });
    std::fs::write(&ca, secret.await?)?;
    let more = [
        format!("--archives-endpoint={ingest}"),
        format!("--archives-ca={}", ca.display()),
        format!("--archives-token={}", token.display()),
    ];
    bench.replica("api-archives", &more).await
}

/// Puts an archive of a deleted computer into the store, as an archive pod would, and on its record. Returns the chunks in order.
async fn archive(bench: &Bench, id: &str) -> Result<Vec<u8>> {
    let of = ComputerId::decode(id).context("an id")?;
    let record = bench.records().get(&of.uid).await?;
    ensure!(record.spec.namespace_uid.is_some(), "the record does not have the UID of the namespace");
    let computer =
        ManifestComputer { namespace: of.namespace, namespace_uid: record.spec.namespace_uid, name: of.name, uid: of.uid.clone() };
    let (home, mut blobs): (_, Vec<Blob>) = (tempfile::tempdir()?, Vec::new());
    std::fs::create_dir(home.path().join("s"))?;
    std::fs::write(home.path().join("s/one.jsonl"), "hello")?;
    std::fs::write(home.path().join("s/two.jsonl"), (0..60_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>())?;
    let mut manifest = Manifest::empty(computer, 1);
    let mut take = |blob: Blob| {
        blobs.push(blob);
        Ok(())
    };
    let paths = ["s".to_owned()];
    let request = Request {
        home: home.path(),
        session_paths: &paths,
        unreadable: Unreadable::Block,
        sizes: Sizes::default(),
        progress: Arc::default(),
        tally: Arc::default(),
    };
    pack(&request, &mut manifest, &mut take)?;
    let store = Store::open(&format!("file://{}", bench.folder.path().join("store").display()))?;
    for blob in &blobs {
        store.put_once(&chunk_key(&of.uid, &blob.chunk.digest), blob.bytes.clone()).await?;
    }
    let bytes = serde_json::to_vec(&manifest)?;
    store.put_once(&manifest_key(&of.uid), bytes.clone()).await?;
    let archive =
        json!({"manifestDigest": hex::encode(Sha256::digest(&bytes)), "sessions": 2, "bytes": manifest.stored_bytes, "problems": 0});
    // A deletion that archives names the manifest in its receipt.
    let receipt = bench.folder.path().join("store").join(receipt_key(&of.uid));
    let mut written: Value = serde_json::from_slice(&std::fs::read(&receipt)?)?;
    written["archive"] = archive.clone();
    std::fs::write(&receipt, written.to_string())?;
    let patch = json!({"spec": {"state": {"deletion": {"archive": archive}}}});
    bench.kubectl(&["patch", "computerrecord", &of.uid, "-n", SYSTEM, "--type=merge", "-p", &patch.to_string()], "").await?;
    let chunk = blobs.iter().find(|blob| blob.chunk.size == manifest.stored_bytes).context("the only chunk")?;
    Ok(chunk.bytes.to_vec())
}

async fn export(bench: &Bench, api: &Replica, token: &str, id: &str, range: Option<&str>) -> Result<(u16, Vec<u8>)> {
    let mut request = bench.http.get(format!("{}/api/v0/computers/{id}/archive/export", api.base)).bearer_auth(token);
    if let Some(range) = range {
        request = request.header("range", range);
    }
    let answer = request.send().await?;
    Ok((answer.status().as_u16(), answer.bytes().await?.to_vec()))
}

async fn a_tenant_reads_its_archive_and_nobody_else_does(bench: Arc<Bench>) -> Result<()> {
    let (namespace, owner) = bench.tenant("reader").await?;
    let id = bench.byom(&owner, "box").await?;
    bench.key(&id).await?;
    let auditor = bench.account(SYSTEM, "archive-auditor", &["list"], true).await?;
    may_read(&bench, SYSTEM, "archive-auditor", true).await?;
    bench.send(Ask::delete(format!("/api/v0/computers/{id}?wait=60")).by(&owner)).await?.is(204)?;
    let stored = archive(&bench, &id).await?;
    bench.start_operator_for_api().await?;
    let token = bench.folder.path().join("archive-read-token");
    std::fs::write(&token, bound_token(&bench, "computer-operator.dev/archive-read").await?)?;
    let api = replica(&bench, &token).await?;
    // All verbs on computers are not the right to read archives.
    ensure!(export(&bench, &api, &owner, &id, None).await?.0 == 404, "S13");
    may_read(&bench, &namespace, "owner", false).await?;
    let whole = eventually("the right is in effect", || async {
        let (status, body) = export(&bench, &api, &owner, &id, None).await?;
        Ok((status == 200).then_some(body))
    });
    ensure!(whole.await? == stored, "not byte for byte");
    let (status, rest) = export(&bench, &api, &owner, &id, Some("bytes=1000-")).await?;
    ensure!(status == 206 && rest == stored[1000..], "{status}");
    let document = bench.http.get(format!("{}/api/v0/computers/{id}/archive", api.base)).bearer_auth(&owner).send().await?;
    let document: Value = document.error_for_status()?.json().await?;
    let sessions: Vec<_> = document["sessions"].as_array().into_iter().flatten().filter_map(|s| s["id"].as_str()).collect();
    ensure!(sessions == ["s/one", "s/two"] && document["storedDigest"] == hex::encode(Sha256::digest(&stored)), "{document}");
    // A replica that is not connected says so to whom may read, and nothing to others.
    bench.send(Ask::get(format!("/api/v0/computers/{id}/archive")).by(&owner)).await?.says(501, "not connected")?;
    let (_, stranger) = bench.tenant("stranger").await?;
    let hidden = export(&bench, &api, &stranger, &id, None).await?;
    ensure!(hidden.0 == 404, "S13");
    the_next_tenant_reads_nothing(&bench, &api, (&namespace, &id), (&auditor, stored), hidden).await?;
    bench.start_operator().await
}

/// The namespace is deleted, and another tenant gets its name, with every right in it.
async fn the_next_tenant_reads_nothing(
    bench: &Bench,
    api: &Replica,
    (namespace, id): (&str, &str),
    (auditor, stored): (&str, Vec<u8>),
    hidden: (u16, Vec<u8>),
) -> Result<()> {
    bench.kubectl(&["delete", "namespace", namespace, "--wait=true", "--timeout=60s"], "").await?;
    ensure!(export(bench, api, auditor, id, None).await? == (200, stored.clone()), "rights in all namespaces outlive it");
    bench.kubectl(&["create", "namespace", namespace], "").await?;
    let next = bench.account(namespace, "owner", &["get", "list", "create", "patch", "delete"], false).await?;
    may_read(bench, namespace, "owner", false).await?;
    bench.until(200, Ask::get("/api/v0/computers").by(&next)).await?;
    ensure!(export(bench, api, &next, id, None).await? == hidden, "S13: the next tenant sees that it exists");
    ensure!(export(bench, api, auditor, id, None).await?.0 == 200);
    // The same without the record, which is kept for 30 days.
    let uid = ComputerId::decode(id).context("an id")?.uid;
    bench.kubectl(&["delete", "computerrecord", &uid, "-n", SYSTEM], "").await?;
    ensure!(export(bench, api, &next, id, None).await? == hidden && export(bench, api, auditor, id, None).await?.1 == stored);
    Ok(())
}

async fn a_token_that_is_not_the_apis_reads_nothing(bench: Arc<Bench>) -> Result<()> {
    let (_, owner) = bench.tenant("thief").await?;
    let id = bench.byom(&owner, "box").await?;
    bench.key(&id).await?;
    bench.send(Ask::delete(format!("/api/v0/computers/{id}?wait=60")).by(&owner)).await?.is(204)?;
    archive(&bench, &id).await?;
    bench.start_operator_for_api().await?;
    let uid = ComputerId::decode(&id).context("an id")?.uid;
    let ingest = bench.operator_at.lock().unwrap().context("an operator")?.0;
    let http = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).build()?;
    let ask = async |token: &str| {
        let answer = http.get(format!("https://{ingest}/read/v1/{uid}/manifest")).bearer_auth(token).send().await?;
        anyhow::Ok(answer.status().as_u16())
    };
    let good = bound_token(&bench, "computer-operator.dev/archive-read").await?;
    eventually("the operator serves", || async { Ok((ask(&good).await? == 200).then_some(())) }).await?;
    let audience = ["--audience=computer-operator.dev/archive-read", "--duration=1h"];
    let of = async |account: &str| bench.kubectl(&[&["create", "token", account, "-n", SYSTEM], &audience[..]].concat(), "").await;
    for (why, token) in [
        ("another audience", bound_token(&bench, "computer-operator.dev/ingest").await?),
        ("the audience of the cluster", bound_token(&bench, crate::harness::CLUSTER_AUDIENCE).await?),
        ("not bound to a pod", of("computer-operator-api").await?),
        ("another account", of("computer-operator-archive").await?),
        ("a tenant", owner),
        ("nothing", "x.y.z".to_owned()),
    ] {
        let status = ask(token.trim()).await?;
        ensure!(status == 401, "{why}: {status}");
    }
    for path in ["..%2F..%2Freceipts%2Fx", "%00", "UPPER_CASE"] {
        let answer = http.get(format!("https://{ingest}/read/v1/{path}/manifest")).bearer_auth(&good).send().await?;
        ensure!(answer.status() == 400, "{path}: {}", answer.status());
    }
    bench.start_operator().await
}

/// Names and states in a list of deletions.
fn states(answer: &Answer) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all: Vec<_> =
        answer.body["deletions"].as_array().into_iter().flatten().map(|d| (text(&d["name"]), text(&d["state"]))).collect();
    all.sort();
    all
}

async fn deletions_are_listed_for_whom_may_list_computers(bench: Arc<Bench>) -> Result<()> {
    let (namespace, owner) = bench.tenant("listed").await?;
    let list = |query: &str| Ask::get(format!("/api/v0/deletions?namespace={namespace}{query}"));
    let mut ids = Vec::new();
    for name in ["one", "two", "three"] {
        let id = bench.byom(&owner, name).await?;
        bench.key(&id).await?;
        ids.push(id);
    }
    let none = bench.send(list("").by(&owner)).await?.is(200)?;
    ensure!(none.body["deletions"] == json!([]) && none.body["pagination"]["hasMore"] == false, "{}", none.text);
    bench.hold(&ids[2]).await?;
    for id in &ids {
        bench.send(Ask::delete(format!("/api/v0/computers/{id}")).by(&owner)).await?.is(204)?;
    }
    eventually("two are deleted", || async {
        let done = states(&bench.send(list("&state=deleted").by(&owner)).await?.is(200)?);
        Ok(["one", "two"].iter().all(|name| done.contains(&((*name).to_owned(), "deleted".to_owned()))).then_some(()))
    })
    .await?;
    let first = bench.send(list("&limit=2").by(&owner)).await?.is(200)?;
    let cursor = first.body["pagination"]["nextCursor"].as_str().context("a cursor")?.to_owned();
    let second = bench.send(list(&format!("&limit=2&cursor={cursor}")).by(&owner)).await?.is(200)?;
    let mut names = [states(&first), states(&second)].concat();
    names.sort();
    ensure!(names.iter().map(|(name, _)| name.as_str()).eq(["one", "three", "two"]), "{names:?}");
    bench.release(&ids[2]).await?;
    for bad in ["state=kept", "limit=0", "cursor=x", "namespace=A"] {
        bench.send(Ask::get(format!("/api/v0/deletions?{bad}")).by(&owner)).await?.is(400)?;
    }
    let (_, stranger) = bench.tenant("stranger").await?;
    bench.send(list("").by(&stranger)).await?.is(403)?;
    // Another tenant with a namespace of the same name sees none of them.
    bench.kubectl(&["delete", "namespace", &namespace, "--wait=true", "--timeout=60s"], "").await?;
    bench.kubectl(&["create", "namespace", &namespace], "").await?;
    let next = bench.account(&namespace, "next", &["get", "list"], false).await?;
    let seen = bench.until(200, list("").by(&next)).await?;
    ensure!(seen.body["deletions"] == json!([]), "S13: {}", seen.text);
    Ok(())
}
