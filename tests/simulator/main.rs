//! The simulator: the unchanged operator on an API server, a store, controllers and a kubelet in memory, on a clock of its own.
//! `cargo test --features guards-off --test simulator -- --stages crash,lost`; `--full` for all of each matrix, `teeth` for the
//! guards, `soak` for the mix of everything; `--case JSON` runs one case again and tells its story, `--without GUARD` without a guard.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod actors;
mod api;
mod checks;
mod conformance;
mod faults;
mod hints;
mod life;
mod matrix;
mod model;
mod moves;
mod observer;
mod regressions;
mod replica;
mod run;
mod scripts;
mod small;
mod soak;
mod store;
mod teeth;
mod world;

use std::process::ExitCode;

use computer_operator::guards::Guard;
use run::Case;

fn main() -> ExitCode {
    run::notice_panics();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| arguments.iter().position(|a| a == flag).and_then(|i| arguments.get(i + 1));
    let number = |flag: &str| value(flag).and_then(|v| v.parse::<u64>().ok());
    let off: Vec<Guard> = value("--without").map(|s| s.split(',').map(teeth::named).collect()).unwrap_or_default();
    if let Some(case) = value("--case") {
        return tell(&off, &serde_json::from_str(case).expect("a case"));
    }
    let full = arguments.iter().any(|a| a == "--full");
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    let jobs = number("--jobs").and_then(|n| usize::try_from(n).ok()).unwrap_or(processors);
    let thin = number("--thin").and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
    let stages: Vec<String> = value("--stages").map(|s| s.split(',').map(str::to_owned).collect()).unwrap_or_default();
    let well = match arguments.first().map(String::as_str) {
        Some("conformance") => conformance::run_all(),
        Some("model") => model::run_all(full),
        Some("teeth") if !off.is_empty() => teeth::search(&off, &stages, thin, jobs),
        Some("teeth") => teeth::run_all(jobs),
        Some("soak") => {
            let time = std::time::Duration::from_secs(60 * number("--minutes").unwrap_or(0));
            let computers = usize::try_from(number("--computers").unwrap_or(200)).unwrap_or(200);
            soak::run_for(number("--seed").unwrap_or(1), computers, time)
        }
        _ => matrix::run_stages(&stages, full, thin, jobs),
    };
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One case, with its whole journal.
fn tell(off: &[Guard], case: &Case) -> ExitCode {
    let outcome = run::run_without(off, case);
    outcome.story.iter().for_each(|line| println!("{line}"));
    println!("{} requests, {} changes, {} s simulated", outcome.requests, outcome.changes, outcome.simulated.as_secs());
    outcome.wrong.iter().for_each(|w| println!("WRONG: {w}"));
    if outcome.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
