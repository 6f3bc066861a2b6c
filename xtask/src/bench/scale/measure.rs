//! The measurements, one after the other on the same cluster, so that what comes later is measured beside the computers of the burst.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use computer_operator::resources::Computer;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::fleet::Fleet;
use super::{Emptied, Options, Poison, Restart, Scale};
use crate::bench::lifecycle::figures::Memory;
use crate::bench::lifecycle::requests::{Request, Requests};
use crate::bench::lifecycle::{self, CLASS};
use crate::bench::stage::{Running, Stage, until, until_every};

/// The namespace of the computers that stay.
const FLEET: &str = "fleet";
/// That of computers that a new leader provisions.
const TAKEOVER: &str = "takeover";
/// The one that is deleted.
const CROWD: &str = "crowd";
/// That of healthy managed computers.
const OTHERS: &str = "others";
/// That of computers whose pods a quota refuses.
const REFUSED: &str = "refused";
/// Requests of the client in flight.
const FLIGHT: usize = 32;
/// How long the operator must send no request to be idle.
const QUIET: Duration = Duration::from_secs(2);
/// How long it may take to be idle.
const SETTLED: Duration = Duration::from_secs(120);
/// Most computers of the namespace that is deleted.
const MOST_CROWD: usize = 1000;
/// Most healthy computers beside those that cannot be provisioned.
const MOST_OTHERS: usize = 150;
/// One of so many healthy computers has another beside it that cannot be provisioned.
const PART: usize = 10;

/// A computer to create: namespace, name, spec.
type New = (&'static str, String, Value);

/// The running system without its operator, which is replaced.
struct Bench<'a> {
    stage: &'a Stage,
    client: kube::Client,
    fleet: Fleet,
}

/// Everything. The operator of the stage ends.
pub async fn all(stage: &mut Stage, options: &Options) -> Result<Scale> {
    let operator = stage.take_operator()?;
    lifecycle::class(stage)?;
    let client = stage.client().await?;
    let mut bench = Bench { stage, fleet: Fleet::start(&client), client };
    bench.namespaces()?;
    settled(&operator).await?;
    let empty = memory(&operator, "without computers")?;
    let began = Instant::now();
    bench.create((0..options.computers).map(|number| byom(FLEET, number))).await?;
    bench.fleet.ready(FLEET, options.computers).await?;
    let created = began.elapsed();
    settled(&operator).await?;
    let burst = memory(&operator, "after the burst")?;
    tokio::time::sleep(Duration::from_secs(options.idle)).await;
    let idle = memory(&operator, "idle")?;
    operator.stop(Signal::SIGTERM).await?;
    let (operator, restart) = bench.restarted(options.computers).await?;
    let (operator, stopped) = bench.takeover(operator, Signal::SIGTERM).await.context("the leader stops")?;
    let (operator, killed) = bench.takeover(operator, Signal::SIGKILL).await.context("the leader is killed")?;
    let namespace = bench.emptied(&operator, options.computers.min(MOST_CROWD)).await.context("a namespace is deleted")?;
    let poison = bench.poison(&operator, options).await.context("computers that cannot be provisioned")?;
    let (computers, idle_seconds, load) = (options.computers, options.idle, Default::default());
    Ok(Scale { computers, idle_seconds, empty, created, burst, idle, restart, stopped, killed, namespace, poison, load })
}

fn memory(operator: &Running, when: &str) -> Result<Memory> {
    let memory = Memory::of(operator.pid()?)?;
    eprintln!("memory of the operator {when}: {:.1} MB, peak {:.1} MB", memory.megabytes(), memory.peak_megabytes());
    Ok(memory)
}

/// The requests that the operator has sent, once it is idle. It never ends checking that the Secrets of keys exist.
async fn settled(operator: &Running) -> Result<Requests> {
    let deadline = Instant::now() + SETTLED;
    let others = |all: &Requests| Requests(all.0.iter().filter(|(request, _)| !is_check(request)).map(|(r, n)| (r.clone(), *n)).collect());
    let mut last = Requests::parse(&operator.figures().await?)?;
    loop {
        tokio::time::sleep(QUIET).await;
        let now = Requests::parse(&operator.figures().await?)?;
        if others(&now) == others(&last) {
            return Ok(now);
        }
        if Instant::now() > deadline {
            let added: Vec<String> = now.since(&last).0.iter().map(|(request, count)| format!("{count} {request}")).collect();
            bail!("the operator still sends requests after {} s: {}", SETTLED.as_secs(), added.join(", "));
        }
        last = now;
    }
}

/// Whether a request checks that the Secret of a key exists, if no computer is being deleted: a DELETE that is only a dry run.
fn is_check(request: &Request) -> bool {
    request.verb == "delete" && request.resource == "secrets"
}

/// Whether a request is of a sort that the operator also sends as a dry run: to check keys and classes. Its own metric does not say which it was.
pub fn may_be_dry(request: &Request) -> bool {
    is_check(request) || (request.verb == "create" && request.resource == "pods")
}

/// Whether a request changes an object. A review is a read.
pub fn is_write(request: &Request) -> bool {
    let changes = ["create", "update", "patch", "delete"].contains(&request.verb.as_str());
    changes && !request.resource.ends_with("reviews") && !may_be_dry(request)
}

/// Pods and Secrets that were created, changed or deleted, dry runs left out, by the metric of the API server.
fn written(text: &str) -> u64 {
    let counts = |line: &&str| {
        let label = |name: &str| line.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split('"').next()).unwrap_or_default();
        label("dry_run").is_empty()
            && label("code").starts_with('2')
            && label("subresource").is_empty()
            && ["pods", "secrets"].contains(&label(",resource"))
            && ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"].contains(&label("verb"))
    };
    let lines = text.lines().filter(|line| line.starts_with("apiserver_request_total{")).filter(counts);
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// The reconciles of a process, by its metric.
fn reconciles(text: &str) -> u64 {
    let lines = text.lines().filter(|line| line.starts_with("computer_operator_reconcile_total{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn byom(namespace: &'static str, number: usize) -> New {
    (namespace, format!("box-{number}"), json!({"provider": "BYOM"}))
}

/// Healthy managed computers; if asked, every tenth with one beside it that cannot be provisioned.
fn managed(prefix: &str, others: usize, poison: bool) -> Vec<New> {
    let mut all = Vec::new();
    for number in 0..others {
        all.push((OTHERS, format!("{prefix}-{number}"), json!({"className": CLASS})));
        if poison && number % PART == 0 {
            // In turn: a class that does not exist, and pods that a quota refuses.
            let class = if number % (2 * PART) == 0 { "absent" } else { CLASS };
            all.push((REFUSED, format!("{prefix}-{number}"), json!({"className": class})));
        }
    }
    all
}

/// The 99th percentile.
fn percentile(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get((times.len() * 99).div_ceil(100).checked_sub(1)?).copied()
}

impl Bench<'_> {
    fn namespaces(&self) -> Result<()> {
        let named = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}).to_string();
        self.stage.kubectl(&["apply", "-f", "-"], &[FLEET, TAKEOVER, CROWD, OTHERS, REFUSED].map(named).join("\n---\n"))?;
        self.stage.kubectl(&["create", "quota", "none", "-n", REFUSED, "--hard=pods=0"], "")?;
        let effective = ["wait", "quota/none", "-n", REFUSED, "--for=jsonpath={.status.hard.pods}=0", "--timeout=60s"];
        self.stage.kubectl(&effective, "").map(drop)
    }

    fn written(&self) -> Result<u64> {
        Ok(written(&self.stage.kubectl(&["get", "--raw", "/metrics"], "")?))
    }

    /// Starts an operator. Returns it, and its way until it has reconciled all computers and is idle.
    async fn restarted(&self, computers: usize) -> Result<(Running, Restart)> {
        let (before, wanted) = (self.written()?, u64::try_from(computers)?);
        let operator = self.stage.replica()?;
        until_every(Duration::from_millis(20), "the restarted operator is ready", async || operator.is_ready().await).await?;
        let ready = operator.since.elapsed();
        let done = async || Ok(reconciles(&operator.figures().await?) >= wanted);
        until_every(Duration::from_millis(100), "the restarted operator has reconciled all computers", done).await?;
        let reconciled = operator.since.elapsed();
        let requests = settled(&operator).await?;
        let written = self.written()?.saturating_sub(before);
        eprintln!("restart: ready after {:.1} s, all reconciled after {:.1} s", ready.as_secs_f64(), reconciled.as_secs_f64());
        let memory = memory(&operator, "after a restart")?;
        Ok((operator, Restart { ready, reconciled, requests, written, memory }))
    }

    fn computers(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<Computer>(&()))
    }

    /// Creates computers, a limited number at once, and returns when each request was sent.
    async fn create(&self, computers: impl Iterator<Item = New>) -> Result<HashMap<String, Instant>> {
        let one = |(namespace, name, spec): New| async move {
            let metadata = json!({"name": name});
            let object = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": metadata, "spec": spec});
            let object: DynamicObject = serde_json::from_value(object)?;
            let sent = Instant::now();
            self.computers(namespace)
                .create(&PostParams::default(), &object)
                .await
                .with_context(|| format!("create {namespace}/{name}"))?;
            anyhow::Ok((format!("{namespace}/{name}"), sent))
        };
        stream::iter(computers).map(one).buffer_unordered(FLIGHT).try_collect().await
    }

    /// Starts another operator, ends the leader, and creates a computer. Returns the new leader, and the time from the signal until it is ready.
    async fn takeover(&mut self, leader: Running, signal: Signal) -> Result<(Running, Duration)> {
        let standby = self.stage.replica()?;
        until("the standby is ready", async || standby.is_ready().await).await?;
        let (before, _) = self.fleet.count(TAKEOVER);
        let began = Instant::now();
        leader.stop(signal).await?;
        self.create(std::iter::once(byom(TAKEOVER, before))).await?;
        self.fleet.ready(TAKEOVER, before + 1).await?;
        let took = began.elapsed();
        eprintln!("{signal} to the leader: a new computer is ready after {:.1} s", took.as_secs_f64());
        settled(&standby).await?;
        Ok((standby, took))
    }

    /// Deletes a namespace with that many computers.
    async fn emptied(&mut self, operator: &Running, computers: usize) -> Result<Emptied> {
        self.create((0..computers).map(|number| byom(CROWD, number))).await?;
        self.fleet.ready(CROWD, computers).await?;
        settled(operator).await?;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let began = Instant::now();
        namespaces.delete(CROWD, &DeleteParams::default()).await?;
        self.fleet.gone(CROWD).await?;
        let gone = began.elapsed();
        until("the namespace is gone", async || Ok(namespaces.get_opt(CROWD).await?.is_none())).await?;
        let namespace = began.elapsed();
        eprintln!("namespace with {computers} computers: gone after {:.1} s", namespace.as_secs_f64());
        settled(operator).await?;
        Ok(Emptied { computers, gone, namespace })
    }

    /// Bursts of managed computers, in turn without and with others that cannot be provisioned.
    async fn poison(&mut self, operator: &Running, options: &Options) -> Result<Poison> {
        let others = (options.computers / 5).clamp(PART, MOST_OTHERS);
        let (mut without, mut with) = (Vec::new(), Vec::new());
        // The first burst fills caches, and is not measured.
        self.burst(operator, managed("warm", PART, false)).await?;
        for round in 1..=options.rounds {
            // Neither is always the first.
            for poison in [round % 2 == 0, round % 2 != 0] {
                let took = self.burst(operator, managed(&format!("round{round}-{poison}"), others, poison)).await?;
                eprintln!("round {round}, refused computers: {poison}: p99 of the others {:.1} s", took.as_secs_f64());
                if poison { &mut with } else { &mut without }.push(took);
            }
        }
        Ok(Poison { others, poison: others.div_ceil(PART), without, with })
    }

    /// Creates computers, waits until the healthy ones are ready, and deletes all. Returns the 99th percentile of the time until they were ready.
    async fn burst(&mut self, operator: &Running, computers: Vec<New>) -> Result<Duration> {
        let healthy = computers.iter().filter(|(namespace, ..)| *namespace == OTHERS).count();
        let refused = computers.len() - healthy;
        let sent = self.create(computers.into_iter()).await?;
        self.fleet.ready(OTHERS, healthy).await?;
        let ready = self.fleet.ready_since(OTHERS);
        let took = ready.iter().filter_map(|(name, at)| Some(at.duration_since(*sent.get(&format!("{OTHERS}/{name}"))?))).collect();
        let seen = self.fleet.count(REFUSED);
        ensure!(seen == (refused, 0), "{} computers that cannot be provisioned, {} of them ready, not {refused} and 0", seen.0, seen.1);
        for namespace in [OTHERS, REFUSED] {
            self.computers(namespace).delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
            self.fleet.gone(namespace).await?;
        }
        settled(operator).await?;
        percentile(took).context("no computers")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_tenth_healthy_computer_has_a_refused_one_beside_it() {
        let all = managed("a", 40, true);
        let refused: Vec<&New> = all.iter().filter(|(namespace, ..)| *namespace == REFUSED).collect();
        assert_eq!((all.len(), refused.len()), (44, 4));
        assert_eq!(refused.iter().filter(|(_, _, spec)| spec["className"] == "absent").count(), 2);
        assert!(managed("a", 40, false).iter().all(|(namespace, ..)| *namespace == OTHERS));
    }

    #[test]
    fn the_percentile_is_a_measured_time() {
        let seconds = |all: std::ops::RangeInclusive<u64>| percentile(all.map(Duration::from_secs).collect());
        assert_eq!(seconds(1..=200), Some(Duration::from_secs(198)));
        assert_eq!(seconds(1..=10), Some(Duration::from_secs(10)));
        assert_eq!(percentile(Vec::new()), None);
    }

    #[test]
    fn reviews_and_dry_runs_are_no_writes() {
        let request = |verb: &str, resource: &str| Request { verb: verb.into(), resource: resource.into(), refused: String::new() };
        assert!(is_write(&request("patch", "computers/status")) && is_write(&request("create", "events")));
        assert!(!is_write(&request("create", "subjectaccessreviews")) && !is_write(&request("list", "pods")));
        assert!(!is_write(&request("delete", "secrets")) && !is_write(&request("create", "pods")));
        assert!(is_write(&request("delete", "pods")) && is_write(&request("create", "secrets")));
    }

    #[test]
    fn the_api_server_says_which_requests_were_no_dry_runs() {
        let line = |verb: &str, resource: &str, dry: &str, code: &str| {
            format!(
                "apiserver_request_total{{code=\"{code}\",component=\"apiserver\",dry_run=\"{dry}\",group=\"\",resource=\"{resource}\",scope=\"resource\",subresource=\"\",verb=\"{verb}\",version=\"v1\"}} 3\n"
            )
        };
        assert_eq!(written(&line("DELETE", "secrets", "All", "200")), 0);
        assert_eq!(written(&line("DELETE", "secrets", "", "200")), 3);
        assert_eq!(written(&(line("POST", "pods", "", "201") + &line("PATCH", "pods", "", "200"))), 6);
        let others = [line("GET", "pods", "", "200"), line("POST", "pods", "", "403"), line("PUT", "leases", "", "200")];
        assert_eq!(others.iter().map(|text| written(text)).sum::<u64>(), 0);
    }

    #[test]
    fn reconciles_of_all_sorts_are_added() {
        let text = "# TYPE computer_operator_reconcile counter\n\
            computer_operator_reconcile_total{path=\"provision\",outcome=\"wait\"} 5\n\
            computer_operator_reconcile_total{path=\"delete\",outcome=\"done\"} 2\n\
            computer_operator_reconcile_duration_seconds_sum 9.0\n";
        assert_eq!(reconciles(text), 7);
    }
}
