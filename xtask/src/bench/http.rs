//! `cargo xtask bench http`: the latency of GET and DELETE through the HTTP API with 1, 10 and 100 requests in flight, compared with the same
//! requests to the API server, alternating in the same run. Writes `docs/http-latency.md`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use reqwest::Method;
use serde_json::{Value, json};

use super::stage::{Build, Setup, Stage, TEAM, until};
use crate::cluster::Profile;

/// Requests in flight, and the number of measured GETs and DELETEs.
const LOADS: [(usize, usize, usize); 3] = [(1, 300, 60), (10, 1000, 200), (100, 3000, 400)];
const KINDS: &str = "apis/computer-operator.dev/v1alpha1/namespaces";

/// A request that can be sent repeatedly.
#[derive(Clone, Debug)]
struct Shot {
    method: Method,
    url: String,
    token: String,
    body: Option<Value>,
}

/// An existing computer.
struct Target {
    name: String,
    uid: String,
    id: String,
    key: String,
}

/// One line of the table.
struct Line {
    what: &'static str,
    load: usize,
    count: usize,
    p50: Duration,
    p99: Duration,
    rate: f64,
}

/// Measures and writes the table.
///
/// # Errors
/// When a program cannot be started, or a request gets an unexpected answer.
pub async fn run(workspace: &'static Path, build: Build) -> Result<()> {
    let before = super::load_average();
    let setup = Setup { name: "bench-http", profile: Profile::ControlPlane, controller_manager: Vec::new(), http_api: true };
    let stage = Stage::up(workspace, build, setup).await?;
    let authority = reqwest::Certificate::from_pem(&stage.authority)?;
    // As many connections as requests in flight, on both sides.
    let http = reqwest::Client::builder().tls_certs_only([authority]).http1_only().pool_max_idle_per_host(128).build()?;
    let (ours, theirs) = (stage.token(Some("computer-operator"))?, stage.token(None)?);
    let mut lines = Vec::new();
    for (load, gets, deletes) in LOADS {
        let mut targets = VecDeque::from(targets(&stage, &http, load, 2 * deletes).await?);
        let bare = |t: &Target, method: Method, body: Option<Value>| Shot {
            method,
            url: format!("{}/{KINDS}/{TEAM}/computers/{}", stage.server, t.name),
            token: theirs.clone(),
            body,
        };
        let api = |t: &Target, method: Method, token: &str| Shot {
            method,
            url: format!("{}/api/v0/computers/{}", stage.api, t.id),
            token: token.to_owned(),
            body: None,
        };
        let many = |shot: &dyn Fn(&Target) -> Shot| targets.iter().cycle().take(gets).map(shot).collect::<Vec<_>>();
        lines.push(measure("GET, API server", &http, load, many(&|t| bare(t, Method::GET, None))).await?);
        lines.push(measure("GET, HTTP API, a computer's key", &http, load, many(&|t| api(t, Method::GET, &t.key))).await?);
        lines.push(measure("GET, HTTP API, a ServiceAccount", &http, load, many(&|t| api(t, Method::GET, &ours))).await?);
        let (first, second): (Vec<_>, Vec<_>) = (targets.drain(..deletes).collect(), targets.into());
        let exact = |t: &Target| json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": t.uid}});
        let shots = first.iter().map(|t| bare(t, Method::DELETE, Some(exact(t)))).collect();
        lines.push(measure("DELETE, API server", &http, load, shots).await?);
        gone(&stage, deletes).await?;
        let shots = second.iter().map(|t| api(t, Method::DELETE, &ours)).collect();
        lines.push(measure("DELETE, HTTP API, a ServiceAccount", &http, load, shots).await?);
        gone(&stage, 0).await?;
    }
    let text = table(&lines, &before, build);
    println!("{text}");
    std::fs::write(workspace.join("docs/http-latency.md"), text)?;
    Ok(())
}

/// Creates `BYOM` computers and waits until their keys authenticate.
async fn targets(stage: &Stage, http: &reqwest::Client, load: usize, count: usize) -> Result<Vec<Target>> {
    let object = |i: usize| {
        let metadata =
            json!({"name": format!("box-{load}-{i}"), "namespace": TEAM, "finalizers": [computer_operator::resources::DELETION_FINALIZER]});
        json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": metadata, "spec": {"provider": "BYOM"}})
    };
    let all: Vec<String> = (0..count).map(|i| object(i).to_string()).collect();
    stage.kubectl(&["create", "-f", "-"], &all.join("\n---\n"))?;
    let list = |kind: &str| -> Result<Vec<Value>> {
        let all: Value = serde_json::from_str(&stage.kubectl(&["get", kind, "-n", TEAM, "-o", "json"], "")?)?;
        Ok(all["items"].as_array().cloned().unwrap_or_default())
    };
    until("all are active", async || Ok(list("computers")?.iter().filter(|c| c["status"]["phase"] == "Active").count() == count)).await?;
    let secrets = list("secrets")?;
    let mut found = Vec::new();
    for computer in list("computers")? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (name, uid) = (text(&computer["metadata"]["name"]), text(&computer["metadata"]["uid"]));
        let secret = secrets.iter().find(|s| s["metadata"]["name"] == computer["status"]["credentialSecretName"]).context("a Secret")?;
        let token = base64::engine::general_purpose::STANDARD.decode(text(&secret["data"]["token"]))?;
        let id = computer_operator::credentials::ComputerId { namespace: TEAM.into(), name: name.clone(), uid: uid.clone() }.encode();
        found.push(Target { name, uid, id, key: String::from_utf8(token)? });
    }
    // The first use of a connection is not measured.
    let warm = Shot { method: Method::GET, url: format!("{}/openapi.json", stage.api), token: "none".into(), body: None };
    measure("warm", http, load, vec![warm; load]).await?;
    Ok(found)
}

/// Waits until only this many are left: the operator's work for one side must not slow down the other.
async fn gone(stage: &Stage, left: usize) -> Result<()> {
    until("the deletions are complete", async || {
        Ok(stage.kubectl(&["get", "computers", "-n", TEAM, "-o", "name"], "")?.lines().count() == left)
    })
    .await
}

/// Sends all requests, with this many in flight.
async fn measure(what: &'static str, http: &reqwest::Client, load: usize, shots: Vec<Shot>) -> Result<Line> {
    let (count, queue) = (shots.len(), Arc::new(Mutex::new(VecDeque::from(shots))));
    let (began, mut tasks) = (Instant::now(), tokio::task::JoinSet::new());
    for _ in 0..load {
        let (http, queue) = (http.clone(), Arc::clone(&queue));
        tasks.spawn(async move {
            let mut times = Vec::new();
            loop {
                let next = queue.lock().ok().and_then(|mut q| q.pop_front());
                let Some(shot) = next else { return anyhow::Ok(times) };
                let mut request = http.request(shot.method, &shot.url).bearer_auth(&shot.token);
                if let Some(body) = &shot.body {
                    request = request.json(body);
                }
                let sent = Instant::now();
                let answer = request.send().await?;
                let status = answer.status();
                answer.bytes().await?;
                times.push(sent.elapsed());
                ensure!(status.is_success(), "{}: {status}", shot.url);
            }
        });
    }
    let mut times = Vec::new();
    while let Some(some) = tasks.join_next().await {
        times.extend(some??);
    }
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default();
    #[allow(clippy::cast_precision_loss)] // a few thousand
    let rate = count as f64 / began.elapsed().as_secs_f64();
    Ok(Line { what, load, count, p50: at(50), p99: at(99), rate })
}

fn table(lines: &[Line], before: &str, build: Build) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let build = build.name();
    let date = jiff::Timestamp::now().to_string();
    let mut text = format!(
        "# Latency of the HTTP API\n\n\
        Written by `cargo xtask bench http` on {}. {cores} processors, shared by etcd, the API server, the controllers, the operator, one server\n\
        of the HTTP API (build profile {build}, plain HTTP) and the client; load average before the run {before}. Computers are `BYOM`, and their keys\n\
        authenticate. \"API server\" is the same request sent to the API server over TLS, by the same client in the same run: GET of the `Computer`, or\n\
        DELETE with a UID precondition. An HTTP GET with a key makes three parallel reads and one more; with a ServiceAccount a TokenReview, a\n\
        SubjectAccessReview and a read; a DELETE makes the same, the deletion, and a read and a patch of the record. During DELETEs the operator\n\
        cleans up the deleted computers on the same processors.\n\n\
        | request | in flight | requests | p50 ms | p99 ms | a second |\n|---|---|---|---|---|---|\n",
        date.split('T').next().unwrap_or_default()
    );
    for line in lines {
        let (p50, p99) = (line.p50.as_secs_f64() * 1e3, line.p99.as_secs_f64() * 1e3);
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {} | {} | {} | {p50:.1} | {p99:.1} | {:.0} |", line.what, line.load, line.count, line.rate);
    }
    text
}
