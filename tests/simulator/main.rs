//! The simulator: the unchanged operator on an API server, a store, controllers and a kubelet in memory, on a clock of its own.
//! `cargo test --features guards-off --test simulator -- [STAGE…]`; `--case JSON` runs one case again and tells its story.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod actors;
mod api;
mod checks;
mod faults;
mod life;
mod matrix;
mod moves;
mod observer;
mod replica;
mod run;
mod store;
mod teeth;
mod world;

use std::process::ExitCode;

use run::{Case, run};

fn main() -> ExitCode {
    run::notice_panics();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let case = arguments.iter().position(|a| a == "--case").and_then(|i| arguments.get(i + 1));
    if let Some(case) = case {
        return tell(&serde_json::from_str(case).expect("a case"));
    }
    let full = arguments.iter().any(|a| a == "--full");
    let jobs = std::thread::available_parallelism().map_or(2, usize::from);
    if arguments.iter().any(|a| a == "teeth") {
        return if teeth::run_all(jobs) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let names: Vec<String> = arguments.into_iter().filter(|a| !a.starts_with('-')).collect();
    if matrix::run_stages(&names, full, jobs) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One case, with its whole journal.
fn tell(case: &Case) -> ExitCode {
    let outcome = run(case);
    outcome.story.iter().for_each(|line| println!("{line}"));
    println!("{} requests, {} changes, {} s simulated", outcome.requests, outcome.changes, outcome.simulated.as_secs());
    outcome.wrong.iter().for_each(|w| println!("WRONG: {w}"));
    if outcome.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
