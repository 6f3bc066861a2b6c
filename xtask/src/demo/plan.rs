//! The numbered steps of a run with their remaining time. It must never show a time that does not come from recorded runs.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::durations::{Durations, clock};

/// One step of a run.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// Its name in the recorded durations.
    pub record: String,
    /// What it does, for users.
    pub title: String,
}

/// The steps of a run, in order.
#[derive(Debug)]
pub(super) struct Plan {
    steps: Vec<Planned>,
    durations: Durations,
    /// How many steps have begun.
    begun: usize,
    since: Instant,
}

impl Plan {
    pub fn new(steps: Vec<Planned>, durations: Durations) -> Self {
        Self { steps, durations, begun: 0, since: Instant::now() }
    }

    /// How long the rest takes, with what is built before it.
    pub fn remaining(&self, builds: &[String]) -> String {
        let rest = self.steps[self.begun..].iter().map(|step| &step.record);
        self.durations.estimate(builds.iter().chain(rest).map(String::as_str)).to_string()
    }

    /// The heading of the next step.
    fn heading(&self) -> Result<String> {
        let Some(step) = self.steps.get(self.begun) else { bail!("there is no further step") };
        Ok(format!("\n{}. {}\n   remaining: {}", self.begun + 1, step.title, self.remaining(&[])))
    }

    /// Begins the next step.
    pub fn begin(&mut self) -> Result<()> {
        println!("{}", self.heading()?);
        self.begun += 1;
        self.since = Instant::now();
        Ok(())
    }

    /// Begins the last step, also after a failure of an earlier one.
    pub fn leave(&mut self) -> Result<()> {
        self.begun = self.steps.len().saturating_sub(1);
        self.begin()
    }

    /// The current step was completed: only now its duration is recorded.
    pub fn done(&mut self) {
        let took = self.since.elapsed();
        if let Some(step) = self.begun.checked_sub(1).and_then(|at| self.steps.get(at)) {
            self.durations.record(&step.record, took);
        }
        println!("   done in {}", clock(took.as_secs()));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn step(id: &str) -> Planned {
        Planned { record: format!("demo {id}"), title: format!("Do {id}") }
    }

    #[test]
    fn the_remaining_time_is_unknown_in_the_first_run_and_recorded_for_the_second() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("durations.json");
        let mut first = Plan::new(vec![step("a"), step("b")], Durations::at(&file));
        assert_eq!(first.heading().unwrap(), "\n1. Do a\n   remaining: unknown (no run on this machine has recorded: demo a, demo b)");
        first.begin().unwrap();
        first.done();
        first.begin().unwrap();
        first.done();
        assert!(first.begin().is_err());
        let mut durations = Durations::at(&file);
        for (step, seconds) in [("demo a", 2), ("demo b", 3), ("build helm", 41)] {
            durations.record(step, Duration::from_secs(seconds));
        }
        let mut second = Plan::new(vec![step("a"), step("b")], durations);
        assert_eq!(second.remaining(&["build helm".into()]), "41 s to 46 s (from the last run on this machine)");
        second.begin().unwrap();
        assert_eq!(second.heading().unwrap(), "\n2. Do b\n   remaining: 0 s to 3 s (from the last 2 runs on this machine)");
    }

    #[test]
    fn a_step_that_failed_is_not_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("durations.json");
        let mut plan = Plan::new(vec![step("a"), step("b")], Durations::at(&file));
        plan.begin().unwrap();
        plan.leave().unwrap();
        plan.done();
        let plan = Plan::new(vec![step("a"), step("b")], Durations::at(&file));
        assert!(plan.remaining(&[]).contains("has recorded: demo a)"), "{}", plan.remaining(&[]));
    }
}
