//! Runs the scenarios of a suite against what all of them share: those that were named, each with a limit, and tells them in the form
//! that `cargo xtask test` counts. A scenario that fails or panics never ends the others.

use std::collections::VecDeque;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// A scenario under way.
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

/// What the command line asks for.
pub struct Names(Vec<String>);

impl Names {
    /// Of this process. Options are for the test harness of others and mean nothing here.
    pub fn asked() -> Self {
        Self(std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect())
    }

    /// Whether no scenario was named: all are run.
    pub fn all(&self) -> bool {
        self.0.is_empty()
    }

    /// Those whose name contains one of the words.
    pub fn chosen<B>(&self, suites: impl IntoIterator<Item = Vec<Scenario<B>>>) -> Vec<Scenario<B>> {
        let wanted = |name: &str| self.all() || self.0.iter().any(|word| name.contains(word));
        suites.into_iter().flatten().filter(|(name, _)| wanted(name)).collect()
    }
}

/// Tells that none of them can be run on this machine: no failure.
pub fn skipped<'a>(names: impl IntoIterator<Item = &'a str>, why: &str) -> ExitCode {
    let names: Vec<&str> = names.into_iter().collect();
    for name in &names {
        println!("test {name} ... skipped: {why}");
    }
    println!("0 passed, 0 failed, {} skipped", names.len());
    ExitCode::SUCCESS
}

/// The end of a suite: how many failed, or why its `ground` could not be laid.
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
    /// What they share.
    pub bench: Arc<B>,
    /// Longest time for one.
    pub limit: Duration,
    /// How many run at the same time, where they may.
    pub at_once: usize,
}

impl<B: Send + Sync + 'static> Runner<B> {
    /// Some at the same time. How many failed.
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

    /// One after the other. How many failed.
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
    async fn whatever_one_scenario_does_the_others_are_run_and_it_is_counted() {
        let runner = Runner { bench: Arc::new(7), limit: Duration::from_millis(50), at_once: 2 };
        assert_eq!((runner.concurrently(all()).await, runner.in_turn(all()).await), (3, 3));
    }

    #[test]
    fn a_word_chooses_what_contains_it_and_none_chooses_all() {
        let chosen = |words: &[&str]| {
            let names = Names(words.iter().map(|w| (*w).to_owned()).collect());
            names.chosen([all()]).iter().map(|(name, _)| *name).collect::<Vec<_>>()
        };
        assert_eq!(chosen(&[]).len(), 5);
        assert_eq!(chosen(&["ends", "fail"]), ["fails", "never_ends"]);
    }
}
