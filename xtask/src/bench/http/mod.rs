//! `cargo xtask bench http`: the latency of GET and DELETE through the HTTP API with 1, 10 and 100 requests in flight, compared with the same
//! requests to the API server, alternating in the same run. Writes `docs/http-latency.md`.
//!
//! With `--beside` another program's HTTP API, for example an earlier build, is measured in turn with it, in the same cluster. Latencies depend on what
//! else the machine does, so only ratios of one run say something; the numbers of requests do not depend on it.

mod table;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::table::Lines;
use super::lifecycle::requests::Requests;
use super::performance::{self, Figures, Recorded};
use super::proc;
use super::stage::{Build, Served, Setup, Stage, TEAM, until};
use crate::cluster::Profile;
use crate::tools::Tool;

/// Requests in flight, and the number of measured GETs and DELETEs of each round.
const LOADS: [(usize, usize, usize); 3] = [(1, 300, 60), (10, 1000, 200), (100, 3000, 400)];
const KINDS: &str = "apis/computer-operator.dev/v1alpha1/namespaces";

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Build to measure.
    #[arg(long, value_enum, default_value = "release")]
    pub build: Build,
    /// How often everything is measured, in turn.
    #[arg(long, default_value_t = 1)]
    pub rounds: usize,
    /// Another program, for example an earlier build, whose HTTP API is measured in turn with it.
    #[arg(long)]
    pub beside: Option<PathBuf>,
    /// Only these numbers of requests in flight: 1, 10 or 100. Then the table is only printed.
    #[arg(long)]
    pub in_flight: Vec<usize>,
}

/// Median milliseconds of DELETE with 100 requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deletes {
    /// Of the API server.
    pub api_server: f64,
    /// Of the HTTP API.
    pub ours: f64,
}

impl Figures for Deletes {
    const FILE: &'static str = "http-deletes";
}

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

/// Who answers.
#[derive(Clone, Debug)]
enum Side {
    /// The API server.
    Bare,
    /// A server of the HTTP API, by its name in the table.
    Api(&'static str, Served),
}

/// The running system, and how it is asked.
struct Bench {
    stage: Stage,
    http: reqwest::Client,
    /// The caller's tokens for the HTTP API and for the API server.
    ours: String,
    theirs: String,
    sides: Vec<Side>,
}

/// Measures and writes the table.
///
/// # Errors
/// When a program cannot be started, or a request gets an unexpected answer.
pub async fn run(workspace: &'static Path, options: &Options) -> Result<()> {
    let before = super::load_average();
    let setup = Setup { name: "bench-http", profile: Profile::ControlPlane, controller_manager: Vec::new(), http_api: true };
    let mut stage = Stage::up(workspace, options.build, setup).await?;
    let mut sides = vec![Side::Bare, Side::Api("HTTP API", stage.api.clone().context("the HTTP API")?)];
    if let Some(program) = &options.beside {
        sides.push(Side::Api("HTTP API, earlier build", stage.beside(program).await?));
    }
    let authority = reqwest::Certificate::from_pem(&stage.authority)?;
    // As many connections as requests in flight, on both sides.
    let http = reqwest::Client::builder().tls_certs_only([authority]).http1_only().pool_max_idle_per_host(128).build()?;
    let (ours, theirs) = (stage.token(Some("computer-operator"))?, stage.token(None)?);
    let mut bench = Bench { stage, http, ours, theirs, sides };
    let mut lines = Lines::default();
    for (load, gets, deletes) in LOADS.into_iter().filter(|(load, ..)| options.in_flight.is_empty() || options.in_flight.contains(load)) {
        for _ in 0..options.rounds {
            bench.round(&mut lines, load, gets, deletes).await?;
            // Neither program is always the first.
            bench.sides[1..].reverse();
        }
    }
    let text = lines.document(&before, options);
    println!("{text}");
    if options.in_flight.is_empty() {
        std::fs::write(workspace.join("docs/http-latency.md"), text)?;
        let deletes = lines.deletes().context("DELETE with 100 requests in flight")?;
        performance::publish(workspace, &Recorded::now(options.build.name(), deletes))?;
    }
    Ok(())
}

impl Bench {
    /// Measures every request of every side once.
    async fn round(&self, lines: &mut Lines, load: usize, gets: usize, deletes: usize) -> Result<()> {
        // One half of the HTTP API's computers is deleted by a ServiceAccount, the other one with their keys.
        let count = (2 * self.sides.len() - 1) * deletes;
        let mut targets = VecDeque::from(self.targets(load, count).await?);
        for side in &self.sides {
            for by_key in side.callers() {
                let shots = targets.iter().cycle().take(gets).map(|t| self.shot(side, t, &Method::GET, *by_key)).collect();
                lines.add(side.name("GET", *by_key), load, self.measure(side, load, shots, None).await?);
            }
        }
        for side in &self.sides {
            for by_key in side.callers() {
                let some: Vec<_> = targets.drain(..deletes).collect();
                let shots = some.iter().map(|t| self.shot(side, t, &Method::DELETE, *by_key)).collect();
                lines.add(side.name("DELETE", *by_key), load, self.measure(side, load, shots, Some(targets.len())).await?);
            }
        }
        Ok(())
    }

    fn shot(&self, side: &Side, target: &Target, method: &Method, by_key: bool) -> Shot {
        let method = method.clone();
        match side {
            Side::Bare => {
                let exact = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": target.uid}});
                let body = (method == Method::DELETE).then_some(exact);
                let url = format!("{}/{KINDS}/{TEAM}/computers/{}", self.stage.server, target.name);
                Shot { method, url, token: self.theirs.clone(), body }
            }
            Side::Api(_, served) => {
                let token = if by_key { target.key.clone() } else { self.ours.clone() };
                Shot { method, url: format!("{}/api/v0/computers/{}", served.url, target.id), token, body: None }
            }
        }
    }

    /// Creates `BYOM` computers and waits until their keys authenticate.
    async fn targets(&self, load: usize, count: usize) -> Result<Vec<Target>> {
        let object = |i: usize| {
            let metadata = json!({"name": format!("box-{load}-{i}"), "namespace": TEAM, "finalizers": [computer_operator::resources::DELETION_FINALIZER]});
            json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": metadata, "spec": {"provider": "BYOM"}})
        };
        let all: Vec<String> = (0..count).map(|i| object(i).to_string()).collect();
        self.stage.kubectl(&["create", "-f", "-"], &all.join("\n---\n"))?;
        let list = |kind: &str| -> Result<Vec<Value>> {
            let all: Value = serde_json::from_str(&self.stage.kubectl(&["get", kind, "-n", TEAM, "-o", "json"], "")?)?;
            Ok(all["items"].as_array().cloned().unwrap_or_default())
        };
        until("all are active", async || Ok(list("computers")?.iter().filter(|c| c["status"]["phase"] == "Active").count() == count))
            .await?;
        let secrets = list("secrets")?;
        let mut found = Vec::new();
        for computer in list("computers")? {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (name, uid) = (text(&computer["metadata"]["name"]), text(&computer["metadata"]["uid"]));
            let secret =
                secrets.iter().find(|s| s["metadata"]["name"] == computer["status"]["credentialSecretName"]).context("a Secret")?;
            let token = base64::engine::general_purpose::STANDARD.decode(text(&secret["data"]["token"]))?;
            let id = computer_operator::credentials::ComputerId { namespace: TEAM.into(), name: name.clone(), uid: uid.clone() }.encode();
            found.push(Target { name, uid, id, key: String::from_utf8(token)? });
        }
        // The first use of a connection is not measured.
        for side in &self.sides {
            let url = match side {
                Side::Bare => format!("{}/version", self.stage.server),
                Side::Api(_, served) => format!("{}/openapi.json", served.url),
            };
            let warm = Shot { method: Method::GET, url, token: self.theirs.clone(), body: None };
            send(&self.http, load, vec![warm; load]).await?;
        }
        Ok(found)
    }

    /// Sends all requests, with this many in flight. After deletions it waits until only `left` computers are left: the operator's work for one side must
    /// not slow down the other, and counts as processor time of the API server on either side.
    async fn measure(&self, side: &Side, load: usize, shots: Vec<Shot>, left: Option<usize>) -> Result<Measured> {
        let (count, requests, cpu) = (shots.len(), self.requests(side).await?, self.cpu()?);
        let began = Instant::now();
        let times = send(&self.http, load, shots).await?;
        let took = began.elapsed();
        if let Some(left) = left {
            self.gone(left).await?;
        }
        let (requests, cpu) = (self.requests(side).await?.zip(requests), self.cpu()?.saturating_sub(cpu));
        ensure!(times.len() == count, "an answer is missing");
        Ok(Measured { times, took, requests: requests.map(|(after, before)| after.since(&before).0.values().sum()), cpu })
    }

    /// Waits until only this many computers are left.
    async fn gone(&self, left: usize) -> Result<()> {
        until("the deletions are complete", async || {
            Ok(self.stage.kubectl(&["get", "computers", "-n", TEAM, "-o", "name"], "")?.lines().count() == left)
        })
        .await
    }

    /// The requests that a server of the HTTP API has sent to the API server.
    async fn requests(&self, side: &Side) -> Result<Option<Requests>> {
        let Side::Api(_, served) = side else { return Ok(None) };
        Requests::parse(&self.http.get(format!("{}/metrics", served.metrics)).send().await?.text().await?).map(Some)
    }

    /// Processor time of the API server.
    fn cpu(&self) -> Result<Duration> {
        let pid = self.stage.pid(Tool::Apiserver)?;
        proc::cpu(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?).context("the processor time of the API server")
    }
}

impl Side {
    /// Whether a computer's key authenticates, for each caller.
    const fn callers(&self) -> &'static [bool] {
        match self {
            Self::Bare => &[false],
            Self::Api(..) => &[false, true],
        }
    }

    fn name(&self, method: &'static str, by_key: bool) -> String {
        match self {
            Self::Bare => format!("{method}, API server"),
            Self::Api(name, _) => format!("{method}, {name}, {}", if by_key { "a computer's key" } else { "a ServiceAccount" }),
        }
    }
}

/// What was measured.
struct Measured {
    times: Vec<Duration>,
    took: Duration,
    /// Requests to the API server; `None` if it was asked itself.
    requests: Option<u64>,
    /// Processor time of the API server.
    cpu: Duration,
}

/// Sends all requests, with this many in flight.
async fn send(http: &reqwest::Client, load: usize, shots: Vec<Shot>) -> Result<Vec<Duration>> {
    let queue = Arc::new(Mutex::new(VecDeque::from(shots)));
    let mut tasks = tokio::task::JoinSet::new();
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
    Ok(times)
}
