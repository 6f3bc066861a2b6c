//! The promises on a real cluster: a real API server, real controllers and a real kubelet. Two operators without a lease are active during
//! all shared scenarios (S10). Run by `cargo xtask test`; `cargo test --test real_cluster -- NAME…` runs some.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod archives;
mod deletion;
mod disruption;
mod erasure;
mod exec;
mod harness;
mod machine_keys;
mod operators;
mod pace;
mod requests;
mod rights;
mod root_classes;
mod tenants;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use harness::Bench;
use xtask::scenarios::{self, Names, Runner};

/// A scenario of this suite.
pub type Scenario = scenarios::Scenario<Bench>;

/// Parallel shared scenarios: more would only wait for two cores.
const AT_ONCE: usize = 5;
/// Longest time for one scenario.
const LIMIT: Duration = Duration::from_secs(420);

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let names = Names::asked();
    let shared = names.chosen([
        deletion::all(),
        archives::all(),
        erasure::all(),
        tenants::all(),
        rights::all(),
        machine_keys::all(),
        root_classes::shared(),
        exec::all(),
    ]);
    let serial = names.chosen([disruption::all(), root_classes::serial(), requests::all(), pace::all()]);
    if let Some(obstacle) = xtask::node::obstacle() {
        let why = format!("no real node can run here: {obstacle}");
        return scenarios::skipped(shared.iter().chain(&serial).map(|(name, _)| *name), &why);
    }
    scenarios::ended("the cluster", run(shared, serial, names.all()).await)
}

async fn run(shared: Vec<Scenario>, serial: Vec<Scenario>, whole: bool) -> Result<usize> {
    let runner = Runner { bench: Arc::new(Bench::up("test", 2, false).await?), limit: LIMIT, at_once: AT_ONCE };
    let total = shared.len() + serial.len() + usize::from(whole);
    let mut failed = 0;
    if !shared.is_empty() {
        let _operators = (runner.bench.usual_operator(9443).await?, runner.bench.usual_operator(9543).await?);
        failed += runner.concurrently(shared).await;
    }
    failed += runner.in_turn(serial).await;
    if whole {
        failed += every_right_was_used(&runner.bench)?;
    }
    println!("{} passed, {failed} failed", total - failed);
    if failed == 0
        && let Some(bench) = Arc::into_inner(runner.bench)
    {
        bench.cluster.down().await?;
    }
    Ok(failed)
}

/// Only after the whole suite: a part of it does not use every right.
fn every_right_was_used(bench: &Bench) -> Result<usize> {
    let unused = rights::unused(&bench.audit_log)?;
    if unused.is_empty() {
        println!("test rights::every_right_was_used ... ok");
    } else {
        println!("test rights::every_right_was_used ... FAILED\n    allowed, but never used: {}", unused.join(", "));
    }
    Ok(usize::from(!unused.is_empty()))
}
