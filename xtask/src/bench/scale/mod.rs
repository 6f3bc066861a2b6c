//! `cargo xtask bench scale`: the memory of an operator with many computers, and what it does to them when it restarts, when the leader changes, when a
//! namespace is deleted, and when some computers cannot be provisioned. Writes its part of `docs/performance.md`.
//!
//! Nothing here may wait without a deadline, and the client's memory and time for each event must not grow with the number of computers.

pub(super) mod document;
mod fleet;
mod measure;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::lifecycle::Limits;
use super::lifecycle::figures::Memory;
use super::lifecycle::requests::Requests;
use super::performance::{self, All, Figures, Recorded};
use super::stage::{Build, Setup, Stage};
use crate::cluster::Profile;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// `BYOM` computers that are created at once. The goals for memory are for 10000.
    #[arg(long, default_value_t = 1000)]
    pub computers: usize,
    /// Seconds from the end of the burst until the memory of the idle operator is read.
    #[arg(long, default_value_t = 60)]
    pub idle: u64,
    /// How often computers are created with and without others that cannot be provisioned, in turn.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Build to measure.
    #[arg(long, value_enum, default_value = "release")]
    pub build: Build,
    /// Write `docs/performance.md` although there are fewer than 10000 computers, or it is not a release.
    #[arg(long)]
    pub write: bool,
}

/// What a restarted operator has done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Restart {
    /// From its start until `/readyz` succeeded.
    pub ready: Duration,
    /// From its start until it had made as many reconciles as there are computers.
    pub reconciled: Duration,
    /// What it has sent until it was idle.
    pub requests: Requests,
    /// Pods and Secrets that were created, changed or deleted meanwhile, dry runs left out, as the API server counts.
    pub written: u64,
    /// Its memory then.
    pub memory: Memory,
}

/// A namespace that was deleted with its computers.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Emptied {
    /// Its computers.
    pub computers: usize,
    /// From the deletion until they were gone.
    pub gone: Duration,
    /// From the deletion until the namespace was gone.
    pub namespace: Duration,
}

/// Managed computers that were created together with others that cannot be provisioned.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Poison {
    /// Healthy ones of each burst.
    pub others: usize,
    /// Those that cannot be provisioned.
    pub poison: usize,
    /// The 99th percentile of create→ready of the healthy ones, in each round without the others.
    pub without: Vec<Duration>,
    /// The same with the others.
    pub with: Vec<Duration>,
}

/// What one run has measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scale {
    /// Computers of the burst.
    pub computers: usize,
    /// Seconds between the end of the burst and the reading of the idle memory.
    pub idle_seconds: u64,
    /// A new process without computers.
    pub empty: Memory,
    /// From the first creation until all were ready.
    pub created: Duration,
    /// After the burst.
    pub burst: Memory,
    /// Later.
    pub idle: Memory,
    /// After a restart.
    pub restart: Restart,
    /// From SIGTERM to the leader until the next one had provisioned a new computer.
    pub stopped: Duration,
    /// The same with SIGKILL.
    pub killed: Duration,
    /// A deleted namespace.
    pub namespace: Emptied,
    /// Computers that cannot be provisioned.
    pub poison: Poison,
    /// The load average before and after.
    pub load: (String, String),
}

impl Figures for Scale {
    const FILE: &'static str = "scale";
}

/// Measures, prints the document, and writes it.
///
/// # Errors
/// When a program cannot be started, or computers are not ready or gone before their deadline.
pub async fn run(workspace: &'static Path, options: &Options) -> Result<()> {
    ensure!(options.computers >= 10 && options.rounds > 0, "--computers must be at least 10, and --rounds must not be 0");
    let profile = Profile::Kwok { nodes: super::lifecycle::NODES };
    // With its own limits the controller manager, which binds and removes volumes, would hide what the operator does.
    let setup = Setup { name: "bench-scale", profile, controller_manager: Limits::Raised.arguments(), http_api: false };
    let mut stage = Stage::up(workspace, options.build, setup).await?;
    let before = super::load_average();
    let measured =
        measure::all(&mut stage, options).await.with_context(|| format!("the operator's log ends with\n{}", stage.operator_log()));
    let figures = Scale { load: (before, super::load_average()), ..measured? };
    let recorded = Recorded::now(options.build.name(), figures);
    println!("{}", All { scale: Some(recorded.clone()), ..All::default() }.document());
    let whole = options.computers >= document::WHOLE && options.build == Build::Release;
    if whole || options.write {
        return performance::publish(workspace, &recorded);
    }
    eprintln!("docs/performance.md is not written (fewer than {} computers, or not a release); --write writes it", document::WHOLE);
    Ok(())
}

/// Made-up figures of that many computers.
#[cfg(test)]
pub(super) fn sample(computers: usize) -> Scale {
    use super::lifecycle::figures::sample::usage;
    let memory = |megabytes: u64| Memory { peak: (megabytes + 10) * 1_000_000, resident: megabytes * 1_000_000 };
    let requests = usage(0, &[("list", "pods", "", 3), ("get", "secrets", "", 2), ("delete", "secrets", "", 7)]).requests;
    Scale {
        computers,
        idle_seconds: 60,
        empty: memory(20),
        created: Duration::from_secs(100),
        burst: memory(120),
        idle: memory(110),
        restart: Restart { ready: Duration::from_secs(2), reconciled: Duration::from_secs(8), requests, written: 0, memory: memory(100) },
        stopped: Duration::from_secs(3),
        killed: Duration::from_secs(21),
        namespace: Emptied { computers: 1000, gone: Duration::from_secs(10), namespace: Duration::from_secs(12) },
        poison: Poison {
            others: 200,
            poison: 20,
            without: [10, 20, 11].map(Duration::from_secs).to_vec(),
            with: [12, 13, 60].map(Duration::from_secs).to_vec(),
        },
        load: ("0.50".into(), "2.00".into()),
    }
}
