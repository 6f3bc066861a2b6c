//! `cargo xtask soak`: what takes too long for `cargo xtask test`: simulated random faults for as long as wanted, every matrix of the
//! simulator in full, and the tests on a busy machine.

mod fingerprint;
mod folder;
mod load;
mod matrices;

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use folder::Mode;

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
    /// Run every matrix in full instead (about 250,000 runs). Continues where an interrupted run of the same source stopped.
    #[arg(long, group = "resumable", conflicts_with_all = ["minutes", "hours", "seed", "computers", "once"])]
    matrices: bool,
    /// Run the tests on a busy machine instead: the scenarios that depend on time, ten times at a load of 8, then every stage twice at a
    /// load of 4. Continues where an interrupted run of the same source stopped.
    #[arg(long, group = "resumable", conflicts_with_all = ["minutes", "hours", "seed", "computers", "once"])]
    load: bool,
    /// Run in the background; `--status` reports progress.
    #[arg(long, requires = "resumable")]
    detach: bool,
    /// Report what is finished and run nothing.
    #[arg(long, requires = "resumable", conflicts_with_all = ["detach", "again"])]
    status: bool,
    /// Discard the results for this source and start over.
    #[arg(long, requires = "resumable")]
    again: bool,
}

/// Runs the soak, with an optimized build.
///
/// # Errors
/// When a promise is broken, or the simulator cannot be built.
pub fn run(workspace: &Path, options: &Options) -> Result<()> {
    let mode = match (options.status, options.detach) {
        (true, _) => Mode::Status,
        (_, true) => Mode::Detach,
        _ => Mode::Run,
    };
    if options.matrices {
        return matrices::run(workspace, mode, options.again);
    }
    if options.load {
        return load::run(workspace, mode, options.again);
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

/// Builds the simulator with some optimization, which makes it ten times as fast.
const SIMULATOR: [&str; 7] = ["test", "--profile", "simulator", "--features", "guards-off", "--test", "simulator"];

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
