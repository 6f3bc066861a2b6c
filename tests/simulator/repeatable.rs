//! Checks that the same case gives the same run: a case that failed once can be repeated, and the requests of two runs can be compared by
//! their number.

use std::sync::Mutex;

use crate::life::Life;
use crate::matrix::{self, Reference, STAGES, parallel};
use crate::run::{Case, run};

/// Of every matrix, each case at this distance runs twice.
const STRIDE: usize = 1999;

/// The journal of a run. The names of events are left out: they have the time of the real clock.
fn story(case: &Case) -> Vec<String> {
    let nameless = |line: String| line.split_once("/events").map_or(line.clone(), |(before, _)| before.to_owned());
    run(case).story.into_iter().map(nameless).collect()
}

/// Whether the run uses no threads. An archive is hashed on others, so of two leaders that read it back at the same moment either goes
/// first.
fn alone(case: &Case) -> bool {
    case.leaders == 1 || matches!(case.life, Life::Unarchived | Life::Byom)
}

/// Runs a few cases of every matrix twice. Returns whether their journals are equal.
pub fn run_all(references: &[Reference], jobs: usize) -> bool {
    let cases: Vec<Case> = STAGES.iter().flat_map(|stage| matrix::cases(stage, references, stage.few(STRIDE)).0).filter(alone).collect();
    let failed: Mutex<usize> = Mutex::new(0);
    parallel(&cases, jobs, |case| {
        let (first, second) = (story(case), story(case));
        let differs = (0..first.len().max(second.len())).find(|i| first.get(*i) != second.get(*i));
        if let Some(line) = differs {
            println!(
                "FAILED  two runs of a case differ\n        {}\n        {}\n        {}",
                first.get(line).map_or("(the end)", String::as_str),
                second.get(line).map_or("(the end)", String::as_str),
                case.command()
            );
            *failed.lock().unwrap() += 1;
        }
    });
    let failed = failed.into_inner().unwrap();
    println!("{:>6}  repeatable   {:>5} cases twice, {failed} differ", if failed == 0 { "ok" } else { "FAILED" }, cases.len());
    failed == 0
}
