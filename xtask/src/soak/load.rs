//! The tests on a busy machine: the scenarios that depend on time, ten times at a load of 8, then every stage twice at a load of 4.
//! What fails once is a fault of the product or of the scenario.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::cargo;
use super::folder::{Folder, Mode, Report};

/// Everything that the tests are built from.
const SOURCES: [&str; 9] = ["Cargo.toml", "Cargo.lock", "api", "kubectl-computer", "src", "charts", "crds", "tests", "xtask"];

/// Scenarios of `real_cluster` with a deadline, a rate or a race in them.
const TIMED: [&str; 8] = [
    "time_to_live",
    "suspended_and_resumed",
    "same_name_is_created_again_at_once",
    "steady_state_is_silent",
    "children_deleted_by_force_during",
    "names_taken_over_during_the_deletion",
    "a_deletion_waits_for_no_resync",
    "a_deletion_stays_within_its_budget_of_writes",
];

/// How often the timed scenarios run, and with how many busy threads.
const TIMED_ROUNDS: (usize, usize) = (10, 8);
/// The same for the whole suite.
const WHOLE_ROUNDS: (usize, usize) = (2, 4);

/// Runs or reports all rounds for the source as it is now.
///
/// # Errors
/// When a round failed, or another soak of the same source is running.
pub fn run(workspace: &Path, mode: Mode, again: bool) -> Result<()> {
    let folder = Folder::of(workspace, "load", &SOURCES)?;
    let parts = parts();
    if mode == Mode::Status {
        print!("{}", folder.status(&parts));
        return Ok(());
    }
    let Some(_lock) = folder.start(mode, again, &["soak", "--load"])? else { return Ok(()) };
    folder.run(&parts, |part| round(workspace, &folder, part))
}

fn parts() -> Vec<String> {
    let timed = (1..=TIMED_ROUNDS.0).map(|n| format!("timed-{n:02}"));
    timed.chain((1..=WHOLE_ROUNDS.0).map(|n| format!("whole-{n}"))).collect()
}

fn round(workspace: &Path, folder: &Folder, part: &str) -> Result<Report> {
    let timed = part.starts_with("timed");
    let (busy, arguments): (usize, Vec<&str>) = if timed {
        (TIMED_ROUNDS.1, ["test", "--test", "real_cluster", "--"].into_iter().chain(TIMED).collect())
    } else {
        (WHOLE_ROUNDS.1, vec!["xtask", "test", "--keep-going"])
    };
    println!("\n{part}: cargo {} beside {busy} busy threads", arguments.join(" "));
    let began = Instant::now();
    let _load = Load::new(busy);
    let mut child = cargo().args(arguments).current_dir(workspace).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let line = folder.follow(part, child.stdout.take().context("no output")?, |line| line.contains(" passed"))?;
    let status = child.wait()?;
    // Only the tests' own exit is a result. After a signal the round runs again.
    ensure!(status.code().is_some(), "the tests were ended in {part}: {status}; run the command again to continue");
    Ok(Report { passed: status.success(), seconds: began.elapsed().as_secs(), line })
}

/// Threads that compute for as long as this exists.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn new(threads: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let busy = |stop: Arc<AtomicBool>| {
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..threads).map(|_| busy(Arc::clone(&stop))).collect();
        Self { stop, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timed_rounds_come_first() {
        let parts = parts();
        assert_eq!(parts.len(), 12);
        assert_eq!((parts[0].as_str(), parts[9].as_str(), parts[10].as_str()), ("timed-01", "timed-10", "whole-1"));
    }
}
