//! The HTTP API over real HTTP: a control plane for this suite, the real operator, and three replicas of `computer-operator api` as processes with exactly
//! the permissions of their ServiceAccounts. Computers with provider `BYOM` become active without a node, so no test needs root. Run by
//! `cargo xtask test`; `cargo test --test http -- NAME…` runs single scenarios.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api_keys;
mod archives;
mod client;
mod computers;
mod contract;
mod deletion;
mod errors;
mod fuzz;
mod harness;
mod hostile;
mod jwt;
mod key_rights;
mod matrix;
mod operations;
mod process;
mod race;
mod receipts;
mod sessions;
mod shutdown;
mod stores;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use harness::Bench;
use xtask::scenarios::{self, Names, Runner};

/// A scenario of this suite.
pub type Scenario = scenarios::Scenario<Bench>;

/// Number of scenarios that share the bench concurrently; more would only compete for two cores.
const AT_ONCE: usize = 4;
/// Time limit of one scenario.
const LIMIT: Duration = Duration::from_secs(240);

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    scenarios::ended("the control plane", run(&Names::asked()).await)
}

async fn run(names: &Names) -> Result<usize> {
    let shared = names.chosen([
        computers::all(),
        operations::all(),
        contract::all(),
        sessions::all(),
        errors::all(),
        matrix::all(),
        jwt::all(),
        key_rights::all(),
        deletion::all(),
        receipts::all(),
        archives::all(),
        hostile::all(),
        shutdown::all(),
    ]);
    let mut serial =
        names.chosen([race::all(), fuzz::all(), hostile::alone(), stores::alone(), archives::alone(), deletion::without_an_operator()]);
    serial.push(("no_token_is_logged", |bench| Box::pin(async move { bench.logs_hold_no_token() })));
    let total = shared.len() + serial.len();
    let runner = Runner { bench: Arc::new(Bench::up().await?), limit: LIMIT, at_once: AT_ONCE };
    let failed = runner.concurrently(shared).await + runner.in_turn(serial).await;
    println!("{} passed, {failed} failed", total - failed);
    if failed > 0 {
        println!("the logs are in {}", runner.bench.logs().display());
    }
    Ok(failed)
}
