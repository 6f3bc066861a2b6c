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
mod lasting;
mod life;
mod liveness;
mod matrix;
mod model;
mod moves;
mod observer;
mod pace;
mod regressions;
mod replica;
mod run;
mod scripts;
mod small;
mod soak;
mod store;
mod teeth;
mod times;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use computer_operator::guards::Guard;
use run::Case;

/// Lives of computers on a simulated cluster, disturbed in every way. Without a command: the matrices, a sample of each.
#[derive(Parser)]
#[command(name = "cargo test --features guards-off --test simulator --")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// One case again, as a failing run prints it: tells its story, request by request.
    #[arg(long, value_name = "JSON", value_parser = case)]
    case: Option<Case>,
    /// Guards that are switched off: with `--case`, or with `teeth` to look for a run that misses them.
    #[arg(long, value_name = "GUARD", value_delimiter = ',', value_parser = teeth::named)]
    without: Vec<Guard>,
    /// These matrices only.
    #[arg(long, value_delimiter = ',', value_parser = matrix::STAGES.map(|s| s.name), global = true)]
    stages: Vec<String>,
    /// All of every matrix, and of the model.
    #[arg(long, global = true)]
    full: bool,
    /// Every n-th run only.
    #[arg(long, default_value_t = 1, global = true)]
    thin: usize,
    /// Runs at the same time; default: one for each processor.
    #[arg(long, global = true)]
    jobs: Option<usize>,
}

#[derive(Subcommand)]
enum Command {
    /// The same request scripts against the simulated API server and a real one, which it starts: needs Go, not root.
    Conformance,
    /// Two computers of one name, in every order.
    Model,
    /// Every guard switched off alone must be missed. With `WRITE_GUARDS=1` it writes docs/guards.md.
    Teeth,
    /// Many computers, everything going wrong by chance.
    Soak {
        /// Seed after seed for so long; 0: one.
        #[arg(long, default_value_t = 0)]
        minutes: u64,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Computers of each round.
        #[arg(long, default_value_t = 200)]
        computers: usize,
    },
}

/// A run makes and drops many small objects; this allocator is the faster one for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn case(text: &str) -> Result<Case, String> {
    serde_json::from_str(text).map_err(|error| format!("no case: {error}"))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    run::notice_panics();
    if let Some(case) = &cli.case {
        return tell(&cli.without, case);
    }
    let jobs = cli.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from));
    let well = match cli.command {
        Some(Command::Conformance) => conformance::run_all(),
        Some(Command::Model) => model::run_all(cli.full),
        Some(Command::Teeth) if !cli.without.is_empty() => teeth::search(&cli.without, &cli.stages, cli.thin, jobs),
        Some(Command::Teeth) => teeth::run_all(jobs),
        Some(Command::Soak { minutes, seed, computers }) => soak::run_for(seed, computers, Duration::from_secs(60 * minutes)),
        None => matrix::run_stages(&cli.stages, cli.full, cli.thin, jobs),
    };
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One case, with its whole journal.
fn tell(off: &[Guard], case: &Case) -> ExitCode {
    println!("simulated seconds, number of the request (`at` counts these; lists and watches have none), who, what, how it was answered;");
    println!("!! a fault, ** a move of the tenant or the admin, -- what else happened");
    let outcome = run::run_without(off, case);
    outcome.story.iter().for_each(|line| println!("{line}"));
    println!("{} requests, {} changes, {} s simulated", outcome.requests, outcome.changes, outcome.simulated.as_secs());
    for what in &outcome.wrong {
        println!("WRONG: {what}");
    }
    let without: Vec<String> = off.iter().map(|guard| format!("--without {guard:?} ")).collect();
    println!("again: {}", case.command().replace("-- --case", &format!("-- {}--case", without.concat())));
    if outcome.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
