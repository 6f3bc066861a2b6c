//! The promises on a real cluster: a real API server, real controllers, a real kubelet. Two operators are active at once, without a
//! lease, during all shared scenarios (S10). Run by `cargo xtask test`; `cargo test --test real_cluster -- NAME…` runs some.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod archives;
mod deletion;
mod disruption;
mod harness;
mod operators;
mod requests;
mod rights;
mod tenants;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use harness::Bench;

pub type Run = Pin<Box<dyn Future<Output = Result<()>> + Send>>;
/// A scenario: its name and what it does.
pub type Scenario = (&'static str, fn(Arc<Bench>) -> Run);

/// Names functions and boxes their futures.
macro_rules! scenarios {
    ($($function:path),* $(,)?) => {
        vec![$((stringify!($function), (|bench| Box::pin($function(bench))) as fn(std::sync::Arc<$crate::harness::Bench>) -> $crate::Run)),*]
    };
}
pub(crate) use scenarios;

/// Shared scenarios at the same time: more would only wait for two cores.
const AT_ONCE: usize = 5;
/// Longest time for one scenario.
const LIMIT: Duration = Duration::from_secs(420);

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let names: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let chosen = |(name, _): &Scenario| names.is_empty() || names.iter().any(|n| name.contains(n.as_str()));
    let shared: Vec<Scenario> =
        [deletion::all(), archives::all(), tenants::all(), rights::all()].concat().into_iter().filter(chosen).collect();
    let serial: Vec<Scenario> = [disruption::all(), requests::all()].concat().into_iter().filter(chosen).collect();
    if let Some(obstacle) = xtask::node::obstacle() {
        for (name, _) in shared.iter().chain(&serial) {
            println!("test {name} ... skipped: no real node can run here: {obstacle}");
        }
        println!("0 passed, 0 failed, {} skipped", shared.len() + serial.len());
        return ExitCode::SUCCESS;
    }
    match run(shared, serial, names.is_empty()).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the cluster: {error:#}");
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(shared: Vec<Scenario>, serial: Vec<Scenario>, whole: bool) -> Result<usize> {
    let bench = Arc::new(Bench::up("test", 2, false).await?);
    let total = shared.len() + serial.len();
    let mut failed = 0;
    if !shared.is_empty() {
        let _operators = (bench.usual_operator(9443).await?, bench.usual_operator(9543).await?);
        failed += concurrently(&bench, shared.into()).await;
    }
    for scenario in serial {
        failed += one(&bench, scenario).await;
    }
    let total = total + usize::from(whole);
    if whole {
        failed += every_right_was_used(&bench)?;
    }
    println!("{} passed, {failed} failed", total - failed);
    if failed == 0
        && let Ok(bench) = Arc::try_unwrap(bench).map_err(|_| ())
    {
        bench.cluster.down().await?;
    }
    Ok(failed)
}

/// Only after the whole suite: a part of it leaves rights unused.
fn every_right_was_used(bench: &Bench) -> Result<usize> {
    let unused = rights::unused(&bench.audit_log)?;
    if unused.is_empty() {
        println!("test rights::every_right_was_used ... ok");
    } else {
        println!("test rights::every_right_was_used ... FAILED\n    allowed, and never done: {}", unused.join(", "));
    }
    Ok(usize::from(!unused.is_empty()))
}

async fn concurrently(bench: &Arc<Bench>, mut waiting: VecDeque<Scenario>) -> usize {
    let (mut running, mut failed) = (tokio::task::JoinSet::new(), 0);
    loop {
        while running.len() < AT_ONCE {
            let Some(scenario) = waiting.pop_front() else { break };
            let bench = Arc::clone(bench);
            running.spawn(async move { one(&bench, scenario).await });
        }
        match running.join_next().await {
            Some(result) => failed += result.unwrap_or(1),
            None => return failed,
        }
    }
}

async fn one(bench: &Arc<Bench>, (name, scenario): Scenario) -> usize {
    let start = Instant::now();
    // A panic is that scenario's failure, not the end of the others.
    let task = tokio::spawn(tokio::time::timeout(LIMIT, scenario(Arc::clone(bench))));
    let result = match task.await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(anyhow::anyhow!("not finished within {} s", LIMIT.as_secs())),
        Err(panic) => Err(panic.into()),
    };
    match result {
        Ok(()) => {
            println!("test {name} ... ok ({:.1} s)", start.elapsed().as_secs_f64());
            0
        }
        Err(error) => {
            println!("test {name} ... FAILED ({:.1} s)\n    {error:#}", start.elapsed().as_secs_f64());
            1
        }
    }
}
