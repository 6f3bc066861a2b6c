//! Runs the scenarios of a suite on a shared bench, each with a time limit, and prints the results like the test harness of Rust. A scenario
//! that fails or panics must never end the others.
//!
//! `cargo test --test http -- WORD` runs the scenarios whose name contains WORD. A case of the simulator is run by `tests/simulator/main.rs`
//! (`--case`).

use std::collections::VecDeque;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// A running scenario.
pub type Run = Pin<Box<dyn Future<Output = Result<()>> + Send>>;
/// A scenario: its name, and what it does with the suite's bench.
pub type Scenario<B> = (&'static str, fn(Arc<B>) -> Run);

/// Names async functions of an `Arc<Bench>` and boxes their futures.
#[macro_export]
macro_rules! scenarios {
    ($($function:path),* $(,)?) => {
        vec![$((stringify!($function), (|bench| Box::pin($function(bench))) as fn(std::sync::Arc<_>) -> $crate::scenarios::Run)),*]
    };
}

/// The names on the command line.
pub struct Names(Vec<String>);

impl Names {
    /// The names on the command line of this process. Options are meant for Rust's test harness and are ignored.
    pub fn asked() -> Self {
        Self(std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect())
    }

    /// Whether no scenario was named, so that all run.
    pub fn all(&self) -> bool {
        self.0.is_empty()
    }

    /// The scenarios whose name contains one of the words.
    pub fn chosen<B>(&self, suites: impl IntoIterator<Item = Vec<Scenario<B>>>) -> Vec<Scenario<B>> {
        let wanted = |name: &str| self.all() || self.0.iter().any(|word| name.contains(word));
        suites.into_iter().flatten().filter(|(name, _)| wanted(name)).collect()
    }
}

/// Reports that none of them can run on this machine. This is not a failure.
pub fn skipped<'a>(names: impl IntoIterator<Item = &'a str>, why: &str) -> ExitCode {
    let names: Vec<&str> = names.into_iter().collect();
    for name in &names {
        println!("test {name} ... skipped: {why}");
    }
    println!("0 passed, 0 failed, {} skipped", names.len());
    ExitCode::SUCCESS
}

/// The result of a suite: how many scenarios failed, or why the bench could not be set up.
pub fn ended(ground: &str, result: Result<usize>) -> ExitCode {
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{ground}: {error:#}");
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

/// Runs scenarios on a bench.
pub struct Runner<B> {
    /// The shared bench.
    pub bench: Arc<B>,
    /// Longest time for one scenario.
    pub limit: Duration,
    /// The maximum number of parallel scenarios.
    pub at_once: usize,
}

impl<B: Send + Sync + 'static> Runner<B> {
    /// Runs scenarios in parallel. Returns how many failed.
    pub async fn concurrently(&self, scenarios: Vec<Scenario<B>>) -> usize {
        let (mut waiting, mut running, mut failed) = (VecDeque::from(scenarios), tokio::task::JoinSet::new(), 0);
        loop {
            while running.len() < self.at_once {
                let Some(scenario) = waiting.pop_front() else { break };
                running.spawn(one(Arc::clone(&self.bench), self.limit, scenario));
            }
            match running.join_next().await {
                Some(result) => failed += result.unwrap_or(1),
                None => return failed,
            }
        }
    }

    /// Runs scenarios one after the other. Returns how many failed.
    pub async fn in_turn(&self, scenarios: Vec<Scenario<B>>) -> usize {
        let mut failed = 0;
        for scenario in scenarios {
            failed += one(Arc::clone(&self.bench), self.limit, scenario).await;
        }
        failed
    }
}

async fn one<B>(bench: Arc<B>, limit: Duration, (name, scenario): Scenario<B>) -> usize {
    let start = Instant::now();
    let result = match tokio::spawn(tokio::time::timeout(limit, scenario(bench))).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(anyhow!("not finished within {} s", limit.as_secs())),
        Err(panic) => Err(panic.into()),
    };
    let took = start.elapsed().as_secs_f64();
    match &result {
        Ok(()) => println!("test {name} ... ok ({took:.1} s)"),
        Err(error) => println!("test {name} ... FAILED ({took:.1} s)\n    {error:#}"),
    }
    usize::from(result.is_err())
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;

    async fn passes(bench: Arc<u8>) -> Result<()> {
        ensure!(*bench == 7);
        Ok(())
    }

    async fn fails(_: Arc<u8>) -> Result<()> {
        Err(anyhow!("it fails"))
    }

    #[allow(clippy::panic)]
    async fn panics(_: Arc<u8>) -> Result<()> {
        panic!("it panics")
    }

    async fn never_ends(_: Arc<u8>) -> Result<()> {
        std::future::pending().await
    }

    fn all() -> Vec<Scenario<u8>> {
        scenarios![passes, fails, panics, never_ends, passes]
    }

    #[tokio::test]
    async fn a_scenario_that_fails_or_panics_is_counted_and_the_others_run() {
        let runner = Runner { bench: Arc::new(7), limit: Duration::from_millis(50), at_once: 2 };
        assert_eq!((runner.concurrently(all()).await, runner.in_turn(all()).await), (3, 3));
    }

    #[test]
    fn a_word_selects_the_scenarios_that_contain_it_and_no_word_selects_all() {
        let chosen = |words: &[&str]| {
            let names = Names(words.iter().map(|w| (*w).to_owned()).collect());
            names.chosen([all()]).iter().map(|(name, _)| *name).collect::<Vec<_>>()
        };
        assert_eq!(chosen(&[]).len(), 5);
        assert_eq!(chosen(&["ends", "fail"]), ["fails", "never_ends"]);
    }
}
