//! What a deletion lives through on a real cluster: its operator killed at any moment, the API server killed, etcd paused, the store
//! out, the clock moved, a leader that comes back from the dead. One at a time, on a cluster of its own whose control plane may be
//! killed. At the end of each the promises of every computer are looked at: S1, S2, S3, S6, L1.
//!
//! Run by `cargo xtask test`; `cargo test --test outages -- NAME…` runs some. The long run: `OUTAGES_DELETIONS=200`
//! (deletions under SIGKILL), `OUTAGES_STORE_SECONDS=120` (the store is out). `OUTAGES_SEED` repeats the moments of a run.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod clock;
mod control_plane;
mod crowd;
#[allow(dead_code, reason = "shared with the tests of tests/real_cluster, which use more of it")]
#[path = "../real_cluster/harness.rs"]
mod harness;
mod killed;
mod leaders;
#[allow(dead_code, reason = "as above")]
#[path = "../real_cluster/operators.rs"]
mod operators;
mod store;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::FutureExt as _;
use harness::Bench;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

pub type Run = Pin<Box<dyn Future<Output = Result<()>>>>;
/// A scenario: its name and what it does.
pub type Scenario = (&'static str, fn(Arc<Bench>) -> Run);

/// Names functions and boxes their futures.
macro_rules! scenarios {
    ($($function:path),* $(,)?) => {
        vec![$((stringify!($function), (|bench| Box::pin($function(bench))) as fn(std::sync::Arc<$crate::harness::Bench>) -> $crate::Run)),*]
    };
}
pub(crate) use scenarios;

/// Longest time for one scenario.
const LIMIT: Duration = Duration::from_secs(1200);

/// A number from the environment.
pub fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}

/// The moments at which something is done to the cluster: told, so that a run can be repeated.
pub fn moments(what: &str) -> StdRng {
    let seed = setting("OUTAGES_SEED", rand::random::<u32>().into());
    println!("    {what}: OUTAGES_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let names: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let chosen = |(name, _): &Scenario| names.is_empty() || names.iter().any(|n| name.contains(n.as_str()));
    let all = [killed::all(), control_plane::all(), store::all(), clock::all(), leaders::all()].concat();
    let mut all: Vec<Scenario> = all.into_iter().filter(chosen).collect();
    if let Some(obstacle) = xtask::node::obstacle() {
        for (name, _) in &all {
            println!("test {name} ... skipped: no real node can run here: {obstacle}");
        }
        println!("0 passed, 0 failed, {} skipped", all.len());
        return ExitCode::SUCCESS;
    }
    if let Err(obstacle) = clock::library() {
        let skipped = |(name, _): &Scenario| clock::all().iter().any(|(other, _)| other == name);
        all.iter().filter(|s| skipped(s)).for_each(|(name, _)| println!("test {name} ... skipped: {obstacle:#}"));
        all.retain(|s| !skipped(s));
    }
    match run(all).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the cluster: {error:#}");
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(all: Vec<Scenario>) -> Result<usize> {
    let bench = Arc::new(Bench::up("outages", 1, true).await?);
    let (total, mut failed) = (all.len(), 0);
    for scenario in all {
        failed += one(&bench, scenario).await;
    }
    println!("{} passed, {failed} failed", total - failed);
    if failed == 0
        && let Ok(bench) = Arc::try_unwrap(bench).map_err(|_| ())
    {
        bench.cluster.down().await?;
    }
    Ok(failed)
}

async fn one(bench: &Arc<Bench>, (name, scenario): Scenario) -> usize {
    let start = Instant::now();
    // A panic is that scenario's failure, not the end of the others.
    let task = AssertUnwindSafe(tokio::time::timeout(LIMIT, scenario(Arc::clone(bench)))).catch_unwind();
    let result = match task.await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(anyhow::anyhow!("not finished within {} s", LIMIT.as_secs())),
        Err(_) => Err(anyhow::anyhow!("it panicked")),
    };
    match result {
        Ok(()) => println!("test {name} ... ok ({:.1} s)", start.elapsed().as_secs_f64()),
        Err(error) => {
            println!("test {name} ... FAILED ({:.1} s)\n    {error:#}", start.elapsed().as_secs_f64());
            return 1;
        }
    }
    0
}
