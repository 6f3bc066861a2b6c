//! One run: a life with one kind of fault, from a seed. The same case gives the same run (`repeatable` checks it).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use computer_operator::guards::{self, Guard};
use serde::{Deserialize, Serialize};

use crate::api::kinds::Kind;
use crate::faults::{Fault, Faults};
use crate::life::{self, Life};
use crate::world::World;
use crate::{actors, replica};

/// Everything that a run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    pub life: Life,
    /// How many replicas run at once, without a lease.
    pub leaders: usize,
    pub seed: u64,
    /// How many changes every cache is always behind.
    #[serde(default)]
    pub lag: usize,
    #[serde(default)]
    pub faults: Vec<Fault>,
}

impl Case {
    pub fn new(life: Life, leaders: usize) -> Self {
        Self { life, leaders, seed: 1, lag: 0, faults: Vec::new() }
    }

    /// The command that repeats the run.
    pub fn command(&self) -> String {
        format!("cargo test --features guards-off --test simulator -- --case '{}'", self.json())
    }

    /// The case as JSON, as the command line accepts it.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    pub wrong: Vec<String>,
    pub requests: u64,
    pub creates: BTreeMap<Kind, usize>,
    pub deletes: BTreeMap<Kind, usize>,
    pub changes: usize,
    pub simulated: Duration,
    pub story: Vec<String>,
    /// Waits of the deletion that no change could end.
    pub idle: Vec<String>,
    /// Deletions that operators requested again.
    pub repeated: BTreeMap<String, usize>,
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A panic in a task is a finding. An injected panic is not printed as one.
pub fn notice_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.to_string();
        if text.contains(crate::world::INJECTED) {
            return;
        }
        if text.contains("tests/simulator/") {
            usual(info);
        }
        PANICS.with(|p| p.borrow_mut().push(text));
    }));
}

/// Runs a future with simulated time, which advances when every task is idle.
pub fn in_simulated_time<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // One thread, so that what is computed beside the runtime ends in the order in which it began.
    let runtime = runtime.enable_time().start_paused(true).max_blocking_threads(1).build().expect("a runtime");
    runtime.block_on(work)
}

/// Runs a case with some guards switched off, on this thread.
pub fn run_without(off: &[Guard], case: &Case) -> Outcome {
    guards::without(off, || run(case))
}

/// Runs a case.
pub fn run(case: &Case) -> Outcome {
    PANICS.with(|p| p.borrow_mut().clear());
    let mut outcome = in_simulated_time(async {
        let faults = Faults::new(case.faults.clone(), case.lag);
        let world = World::new(case.seed, faults);
        tokio::spawn(actors::run(world.clone()));
        for n in 0..case.leaders {
            tokio::spawn(replica::run(world.clone(), n, 8));
        }
        let wrong = life::live(&world, case.life).await;
        let outcome = outcome(&world, case.life, wrong);
        world.end();
        outcome
    });
    outcome.wrong.extend(PANICS.with(|p| p.borrow_mut().drain(..).map(|p| format!("a panic: {p}")).collect::<Vec<_>>()));
    outcome
}

/// Violations during the run come before those at the end.
fn outcome(world: &World, life: Life, at_the_end: Vec<String>) -> Outcome {
    world.with(|s| {
        let wrong = s.observer.violations().iter().cloned().chain(at_the_end).collect();
        Outcome {
            wrong,
            requests: world.counted(),
            creates: s.observer.creates.clone(),
            deletes: s.observer.deletes.clone(),
            changes: s.log.len(),
            simulated: world.elapsed(),
            story: world.whole_story(),
            idle: crate::pace::idle(s, life),
            repeated: s.observer.repeated.clone(),
        }
    })
}
