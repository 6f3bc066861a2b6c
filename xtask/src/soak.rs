//! `cargo xtask soak`: what is too long for `cargo xtask test`: the mix of everything for as long as wanted, and every matrix of the
//! simulator in full.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Seed after seed for so many minutes.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// And so many hours.
    #[arg(long, default_value_t = 0)]
    hours: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Computers of each round.
    #[arg(long, default_value_t = 200)]
    computers: u64,
    /// One round only: to run a seed again that failed.
    #[arg(long)]
    once: bool,
    /// Every matrix in full (some 97,000 runs, an hour) in place of the mix.
    #[arg(long, conflicts_with_all = ["minutes", "hours", "seed", "computers", "once"])]
    matrices: bool,
}

/// Runs it, optimised.
///
/// # Errors
/// When something is found.
pub fn run(workspace: &Path, options: &Options) -> Result<()> {
    let minutes = if options.once { 0 } else { options.minutes + 60 * options.hours };
    let more = if options.matrices {
        vec!["--full".to_owned()]
    } else {
        let (minutes, seed, computers) = (minutes.to_string(), options.seed.to_string(), options.computers.to_string());
        ["soak", "--minutes", &minutes, "--seed", &seed, "--computers", &computers].map(str::to_owned).to_vec()
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let simulator = ["test", "--profile", "simulator", "--features", "guards-off", "--test", "simulator", "--"];
    let status = Command::new(cargo).args(simulator).args(more).current_dir(workspace).status()?;
    ensure!(status.success(), "the soak has found something");
    Ok(())
}
