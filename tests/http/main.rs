//! The HTTP API over real HTTP: a control plane of its own, the real operator, and three replicas of `computer-operator api` as
//! processes with no more rights than their ServiceAccounts have. Computers of provider `BYOM` become active without a node, so
//! nothing here needs root. Run by `cargo xtask test`; `cargo test --test http -- NAME…` runs some scenarios.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api_keys;
mod client;
mod computers;
mod contract;
mod deletion;
mod errors;
mod fuzz;
mod harness;
mod hostile;
mod jwt;
mod matrix;
mod operations;
mod process;
mod race;
mod receipts;
mod sessions;
mod shutdown;

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
const AT_ONCE: usize = 4;
/// Longest time for one scenario.
const LIMIT: Duration = Duration::from_secs(240);

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let names: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    match run(&names).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the control plane: {error:#}");
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(names: &[String]) -> Result<usize> {
    let chosen = |(name, _): &Scenario| names.is_empty() || names.iter().any(|n| name.contains(n.as_str()));
    let shared = [
        computers::all(),
        operations::all(),
        contract::all(),
        sessions::all(),
        errors::all(),
        matrix::all(),
        jwt::all(),
        deletion::all(),
        receipts::all(),
        hostile::all(),
        shutdown::all(),
    ];
    let serial = [race::all(), fuzz::all(), deletion::without_an_operator()];
    let shared: VecDeque<Scenario> = shared.concat().into_iter().filter(chosen).collect();
    let serial: Vec<Scenario> = serial.concat().into_iter().filter(chosen).collect();
    let bench = Arc::new(Bench::up().await?);
    let total = shared.len() + serial.len() + 1;
    let mut failed = concurrently(&bench, shared).await;
    for scenario in serial {
        failed += one(&bench, scenario).await;
    }
    failed += one(&bench, ("no token is in any log", |bench| Box::pin(async move { bench.logs_hold_no_token() }))).await;
    println!("{} passed, {failed} failed", total - failed);
    if failed > 0 {
        println!("the logs are in {}", bench.logs().display());
    }
    Ok(failed)
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
