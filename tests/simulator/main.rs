//! The simulator: the unchanged operator on an in-memory API server, store, controllers and kubelet, with simulated time.
//! `cargo test --features guards-off --test simulator -- --stages crash,lost`; `--full` runs each matrix completely, `teeth` checks the
//! guards, `soak` injects random faults. `--case JSON` repeats one case and prints its journal; `--without GUARD` switches a guard off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod actors;
mod api;
mod checks;
mod conformance;
mod contested;
mod faults;
mod hints;
mod keys;
mod lasting;
mod life;
mod liveness;
mod matrix;
mod model;
mod move_kinds;
mod moves;
mod observer;
mod pace;
mod pod_checks;
mod regressions;
mod repeatable;
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

/// Run lives of computers on a simulated cluster, with a fault at each request. Without a command: a sample of each matrix.
#[derive(Parser)]
#[command(name = "cargo test --features guards-off --test simulator --")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Repeat one case, as a failing run prints it, and print its journal, request by request.
    #[arg(long, value_name = "JSON", value_parser = case)]
    case: Option<Case>,
    /// Guards to switch off: with `--case`, or with `teeth` to find a run that breaks a promise without them.
    #[arg(long, value_name = "GUARD", value_delimiter = ',', value_parser = teeth::named)]
    without: Vec<Guard>,
    /// Run only these matrices.
    #[arg(long, value_delimiter = ',', value_parser = matrix::STAGES.map(|s| s.name), global = true)]
    stages: Vec<String>,
    /// Run every matrix and the model completely.
    #[arg(long, global = true)]
    full: bool,
    /// Run only every n-th case.
    #[arg(long, default_value_t = 1, global = true)]
    thin: usize,
    /// Run only the K-th of N parts of each matrix. The parts together are the whole.
    #[arg(long, value_name = "K/N", value_parser = part, default_value = "1/1", global = true)]
    part: (usize, usize),
    /// Number of parallel runs. Default: one per processor.
    #[arg(long, global = true)]
    jobs: Option<usize>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the same request scripts against the simulated API server and a real one, which it starts. Needs Go, not root.
    Conformance,
    /// Check a model of two computers with the same name, in every order of events.
    Model,
    /// Switch each guard off alone: a run must break a promise. With `WRITE_GUARDS=1` it writes docs/guards.md.
    Teeth,
    /// Run many computers under random faults.
    Soak {
        /// Minutes to run seed after seed. 0: one seed.
        #[arg(long, default_value_t = 0)]
        minutes: u64,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Computers in each round.
        #[arg(long, default_value_t = 200)]
        computers: usize,
    },
}

/// A run makes and drops many small objects; this allocator is the faster one for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `K/N`, from 1 on.
fn part(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    numbers.filter(|(k, n)| (1..=*n).contains(k)).ok_or_else(|| format!("{text} is not a part: for example 1/4, 2/4, 3/4 and 4/4"))
}

fn case(text: &str) -> Result<Case, String> {
    serde_json::from_str(text).map_err(|error| format!("invalid case: {error}"))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    run::notice_panics();
    if let Some(case) = &cli.case {
        return repeat(&cli.without, case);
    }
    let jobs = cli.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from));
    let well = match cli.command {
        Some(Command::Conformance) => conformance::run_all(),
        Some(Command::Model) => model::run_all(cli.full),
        Some(Command::Teeth) if !cli.without.is_empty() => teeth::search(&cli.without, &cli.stages, cli.thin, jobs),
        Some(Command::Teeth) => teeth::run_all(jobs),
        Some(Command::Soak { minutes, seed, computers }) => soak::run_for(seed, computers, Duration::from_secs(60 * minutes)),
        None => matrix::run_stages(&cli.stages, cli.full, cli.thin, cli.part, jobs),
    };
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one case and prints its journal.
fn repeat(off: &[Guard], case: &Case) -> ExitCode {
    println!("simulated seconds, number of the request (`at` counts these; lists and watches have none), client, request, answer;");
    println!("!! a fault, ** a move of the tenant or the admin, -- another event");
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
