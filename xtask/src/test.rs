//! `cargo xtask test`: the checks that every change must pass, as named stages.
//!
//! `stages` is the list, `select` decides what runs, `summary` reports. A stage that this machine cannot run is reported as
//! skipped, never as passed.

mod select;
mod stages;
mod summary;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::{book, deny, node};
use select::Choice;
use stages::{Check, Needs, STAGES, Stage};
use summary::{Outcome, Row};

/// Which stages to run, and what a failure does to the rest.
#[derive(Debug, Default, clap::Args)]
pub struct Options {
    /// List the stages and exit.
    #[arg(long)]
    list: bool,
    /// Run only these stages.
    #[arg(long, value_name = "STAGE", value_delimiter = ',', num_args = 1.., conflicts_with = "fast")]
    only: Vec<String>,
    /// Run all stages except these.
    #[arg(long, value_name = "STAGE", value_delimiter = ',', num_args = 1..)]
    skip: Vec<String>,
    /// Run the short loop: a part of the checks that needs neither Go nor root.
    #[arg(long)]
    fast: bool,
    /// After a failure, run the remaining stages too, and report all failures together.
    #[arg(long)]
    keep_going: bool,
    /// Start no further stage after this many minutes. Stages that did not run count as a failure.
    #[arg(long, value_name = "MINUTES")]
    budget: Option<u64>,
}

/// The documentation is for developers and built with private items, so links to those are fine.
const DOC_FLAGS: &str = "-D warnings -A rustdoc::private_intra_doc_links";

/// Runs the chosen stages and prints a summary, whose last line CI reads. Returns whether everything passed.
///
/// # Errors
/// When a stage name does not exist.
pub fn run(workspace: &Path, options: &Options) -> Result<bool> {
    let choice = Choice { only: &options.only, skip: &options.skip, fast: options.fast };
    let chosen = select::select(STAGES, &choice)?;
    if options.list {
        let all = choice.only.is_empty() && choice.skip.is_empty() && !choice.fast;
        print!("{}", summary::list(&if all { STAGES.iter().collect() } else { chosen }));
        return Ok(true);
    }
    let runner = Runner { workspace, obstacle: node::obstacle(), fast: options.fast };
    let limits = Limits { keep_going: options.keep_going, budget: options.budget.map(|minutes| Duration::from_secs(60 * minutes)) };
    let start = Instant::now();
    let mut rows: Vec<Row> = Vec::new();
    for (i, stage) in chosen.iter().enumerate() {
        let (outcome, time) = if let Some(reason) = limits.reason_not_to_run(stage, &rows, start.elapsed()) {
            (Outcome::NotRun(reason), Duration::ZERO)
        } else {
            println!("\n[{}/{}] {}: {}", i + 1, chosen.len(), stage.name, stage.proves);
            let began = Instant::now();
            let outcome = runner.run(stage);
            println!("[{}/{}] {}: {}, {} s", i + 1, chosen.len(), stage.name, outcome.word(), began.elapsed().as_secs());
            (outcome, began.elapsed())
        };
        rows.push(Row { name: stage.name, outcome, time });
    }
    print!("{}", summary::table(&rows, start.elapsed()));
    Ok(!rows.iter().any(|row| matches!(row.outcome, Outcome::Failed(_) | Outcome::NotRun(_))))
}

/// When a stage is not started.
struct Limits {
    keep_going: bool,
    budget: Option<Duration>,
}

impl Limits {
    fn reason_not_to_run(&self, stage: &Stage, rows: &[Row], elapsed: Duration) -> Option<String> {
        let failed = |row: &&Row| matches!(row.outcome, Outcome::Failed(_));
        if let Some(row) = rows.iter().filter(failed).find(|row| stage.after.contains(&row.name)) {
            return Some(format!("needs {}, which failed", row.name));
        }
        if let Some(row) = rows.iter().find(failed).filter(|_| !self.keep_going) {
            return Some(format!("{} failed; --keep-going runs the rest too", row.name));
        }
        let budget = self.budget.filter(|budget| elapsed >= *budget)?;
        Some(format!("the budget of {} min is used up", budget.as_secs() / 60))
    }
}

/// Runs one stage after the other.
struct Runner<'a> {
    workspace: &'a Path,
    /// Why no real node can run on this machine.
    obstacle: Option<String>,
    fast: bool,
}

impl Runner<'_> {
    fn run(&self, stage: &Stage) -> Outcome {
        let check = if self.fast { stage.fast.as_ref().unwrap_or(&stage.check) } else { &stage.check };
        let result = match check {
            Check::Deny => deny::run(self.workspace).map_err(|error| format!("{error:#}")),
            Check::Book => book::build::run(self.workspace).map(drop).map_err(|error| format!("{error:#}")),
            Check::Cargo(arguments) => self.cargo(arguments, &self.extra(stage), &[]),
            Check::Docs(arguments) => self.cargo(arguments, &[], &[("RUSTDOCFLAGS", DOC_FLAGS)]),
        };
        match (result, stage.needs, &self.obstacle) {
            (Err(reason), _, _) => Outcome::Failed(reason),
            (Ok(()), Needs::Node(_), Some(obstacle)) => Outcome::Skipped(format!("no real node can run here: {obstacle}")),
            (Ok(()), _, _) => Outcome::Passed,
        }
    }

    /// Without a node the command runs without these arguments: it compiles, and names the skipped tests.
    fn extra(&self, stage: &Stage) -> Vec<&'static str> {
        match stage.needs {
            Needs::Node(more) if self.obstacle.is_none() => more.to_vec(),
            _ => Vec::new(),
        }
    }

    fn cargo(&self, arguments: &[&str], more: &[&str], environment: &[(&str, &str)]) -> Result<(), String> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(arguments)
            .args(more)
            .envs(environment.iter().copied())
            .current_dir(self.workspace)
            .status()
            .context("run cargo")
            .map_err(|error| format!("{error:#}"))?;
        let command = format!("cargo {}", [arguments, more].concat().join(" "));
        match status.code() {
            Some(0) => Ok(()),
            Some(_) => Err(command),
            // Ended by a signal: not a finding of the check.
            None => Err(format!("{command} ({status})")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, outcome: Outcome) -> Row {
        Row { name, outcome, time: Duration::ZERO }
    }

    fn stage(name: &str) -> &'static Stage {
        STAGES.iter().find(|stage| stage.name == name).expect("a stage")
    }

    #[test]
    fn a_failure_ends_the_run_unless_keep_going_is_set() {
        let rows = [row("format", Outcome::Passed), row("clippy", Outcome::Failed("cargo clippy".into()))];
        let reason = |keep_going| Limits { keep_going, budget: None }.reason_not_to_run(stage("unit"), &rows, Duration::ZERO);
        assert_eq!(reason(true), None);
        assert_eq!(reason(false).as_deref(), Some("clippy failed; --keep-going runs the rest too"));
    }

    #[test]
    fn a_stage_does_not_run_when_one_that_it_needs_failed() {
        let rows = [row("xtask-program", Outcome::Failed("cargo build".into()))];
        let limits = Limits { keep_going: true, budget: None };
        let reason = |name| limits.reason_not_to_run(stage(name), &rows, Duration::ZERO);
        assert_eq!(reason("api-server").as_deref(), Some("needs xtask-program, which failed"));
        assert_eq!(reason("unit"), None);
    }

    #[test]
    fn no_stage_starts_after_the_budget() {
        let limits = Limits { keep_going: true, budget: Some(Duration::from_secs(60)) };
        assert_eq!(limits.reason_not_to_run(stage("unit"), &[], Duration::from_secs(59)), None);
        assert!(limits.reason_not_to_run(stage("unit"), &[], Duration::from_secs(60)).is_some());
    }
}
