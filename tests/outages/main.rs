//! Deletions under outages on a real cluster: the operator killed at random moments, the API server killed, etcd paused, the store down, the
//! clock changed, a paused leader that resumes. The scenarios run one at a time, on a separate cluster whose control plane may be killed.
//! Each ends with a check of the promises for every computer: S1, S2, S3, S6, L1.
//!
//! Run by `cargo xtask test`; `cargo test --test outages -- NAME…` runs some. The long run: `OUTAGES_DELETIONS=200`
//! (deletions under SIGKILL), `OUTAGES_STORE_SECONDS=120` (the store is down). `OUTAGES_SEED` repeats the moments of a run.
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

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use harness::Bench;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use xtask::scenarios::{self, Names, Runner};

/// A scenario of this suite.
pub type Scenario = scenarios::Scenario<Bench>;

/// Longest time for one scenario.
const LIMIT: Duration = Duration::from_secs(1200);

/// A number from the environment.
pub fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}

/// The random moments of a scenario. The seed is printed, so that a run can be repeated.
pub fn moments(what: &str) -> StdRng {
    let seed = setting("OUTAGES_SEED", rand::random::<u32>().into());
    println!("    {what}: OUTAGES_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut all = Names::asked().chosen([killed::all(), control_plane::all(), store::all(), clock::all(), leaders::all()]);
    if let Some(obstacle) = xtask::node::obstacle() {
        return scenarios::skipped(all.iter().map(|(name, _)| *name), &format!("no real node can run here: {obstacle}"));
    }
    if let Err(obstacle) = clock::library() {
        let skipped = |(name, _): &Scenario| clock::all().iter().any(|(other, _)| other == name);
        all.iter().filter(|s| skipped(s)).for_each(|(name, _)| println!("test {name} ... skipped: {obstacle:#}"));
        all.retain(|s| !skipped(s));
    }
    scenarios::ended("the cluster", run(all).await)
}

async fn run(all: Vec<Scenario>) -> Result<usize> {
    let runner = Runner { bench: Arc::new(Bench::up("outages", 1, true).await?), limit: LIMIT, at_once: 1 };
    let total = all.len();
    let failed = runner.in_turn(all).await;
    println!("{} passed, {failed} failed", total - failed);
    if failed == 0
        && let Some(bench) = Arc::into_inner(runner.bench)
    {
        bench.cluster.down().await?;
    }
    Ok(failed)
}
