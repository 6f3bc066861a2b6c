//! `cargo xtask soak`: simulator runs that are too long for `cargo xtask test`: random faults for as long as wanted, and every
//! matrix in full.

mod fingerprint;
mod matrices;

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

/// What to run.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools)] // Flags of a command line.
pub struct Options {
    /// Run seed after seed for this many minutes.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Add this many hours.
    #[arg(long, default_value_t = 0)]
    hours: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Computers in each round.
    #[arg(long, default_value_t = 200)]
    computers: u64,
    /// Run one round only: repeats a seed that failed.
    #[arg(long)]
    once: bool,
    /// Run every matrix in full instead (about 97,000 runs, an hour). Continues where an interrupted run of the same source stopped.
    #[arg(long, conflicts_with_all = ["minutes", "hours", "seed", "computers", "once"])]
    matrices: bool,
    /// Run in the background; `--status` reports progress.
    #[arg(long, requires = "matrices")]
    detach: bool,
    /// Report what is finished and run nothing.
    #[arg(long, requires = "matrices", conflicts_with_all = ["detach", "again"])]
    status: bool,
    /// Discard the results for this source and start over.
    #[arg(long, requires = "matrices")]
    again: bool,
}

/// Runs it, with an optimised build.
///
/// # Errors
/// When a promise is broken, or the simulator cannot be built.
pub fn run(workspace: &Path, options: &Options) -> Result<()> {
    if options.matrices {
        let mode = if options.status {
            matrices::Mode::Status
        } else if options.detach {
            matrices::Mode::Detach
        } else {
            matrices::Mode::Run
        };
        return matrices::run(workspace, mode, options.again);
    }
    let minutes = if options.once { 0 } else { options.minutes + 60 * options.hours };
    let (minutes, seed, computers) = (minutes.to_string(), options.seed.to_string(), options.computers.to_string());
    let status = cargo()
        .args(SIMULATOR)
        .args(["--", "soak", "--minutes", &minutes, "--seed", &seed, "--computers", &computers])
        .current_dir(workspace)
        .status()?;
    ensure!(status.success(), "the soak found a broken promise");
    Ok(())
}

/// Builds the simulator with some optimisation, which makes it ten times as fast.
const SIMULATOR: [&str; 7] = ["test", "--profile", "simulator", "--features", "guards-off", "--test", "simulator"];

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
