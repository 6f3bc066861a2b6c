//! The promises on volumes that are attached to nodes, on a real cluster: two real nodes, a CSI driver, and the Kubernetes project's own
//! external-provisioner, external-attacher and external-resizer. The driver (`xtask/csi`) lets a volume be used only where it is attached,
//! attaches it to one node at a time, and records every call in a wrong order as a violation: there may be none.
//!
//! Two operators without a lease are active all the time (S10). `cargo xtask test --only csi` runs all, `cargo test --test csi -- NAME…` some.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod detach;
#[allow(dead_code, reason = "shared with the tests of tests/real_cluster, which use more of it")]
#[path = "../real_cluster/harness.rs"]
mod harness;
mod life;
mod nodes;
#[allow(dead_code, reason = "as above")]
#[path = "../real_cluster/operators.rs"]
mod operators;
mod storage;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use world::World;
use xtask::scenarios::{self, Names, Runner};

/// A scenario of this suite.
pub type Scenario = scenarios::Scenario<World>;

/// Parallel scenarios: more would only wait for two cores.
const AT_ONCE: usize = 5;
/// Longest time for one scenario.
const LIMIT: Duration = Duration::from_secs(420);

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let names = Names::asked();
    let shared = names.chosen([life::all()]);
    // They stop the attacher or empty a node.
    let serial = names.chosen([detach::all(), nodes::all()]);
    if let Some(obstacle) = xtask::node::obstacle() {
        let why = format!("no real node can run here: {obstacle}");
        return scenarios::skipped(shared.iter().chain(&serial).map(|(name, _)| *name), &why);
    }
    scenarios::ended("the cluster", run(shared, serial).await)
}

async fn run(shared: Vec<Scenario>, serial: Vec<Scenario>) -> Result<usize> {
    let runner = Runner { bench: Arc::new(World::up().await?), limit: LIMIT, at_once: AT_ONCE };
    let operators = (runner.bench.usual_operator(9443).await?, runner.bench.usual_operator(9543).await?);
    let total = shared.len() + serial.len();
    let failed = runner.concurrently(shared).await + runner.in_turn(serial).await;
    drop(operators);
    println!("{} passed, {failed} failed", total - failed);
    if failed == 0
        && let Some(world) = Arc::into_inner(runner.bench)
    {
        world.down().await?;
    }
    Ok(failed)
}
