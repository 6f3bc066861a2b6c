//! `cargo xtask bench lifecycle`: how fast computers are created and deleted, and what each life costs the API server, etcd and the operator, beside a
//! bare client that creates pods, or pods with claims, in alternating rounds of the same run. Writes its part of `docs/performance.md`.
//!
//! Nothing here may wait without a deadline, and nothing may outlive the command: the cluster is bound to it.

pub(super) mod contender;
pub(super) mod document;
pub(super) mod figures;
pub(super) mod goals;
mod measure;
pub(super) mod requests;
mod usage;
mod watch;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::performance::{self, All, Figures, Recorded};
use super::stage::{Build, Setup, Stage};
use crate::cluster::Profile;
use contender::Contender;
use figures::{Line, Memory, Pass};
use measure::Bench;

/// Computers of a burst, unless the command says otherwise. The goals are for this number.
const COMPUTERS: usize = 300;
/// Rounds, unless the command says otherwise.
const ROUNDS: usize = 3;
/// Simulated nodes.
pub(super) const NODES: u32 = 5;
/// The class of the managed computers.
pub(super) const CLASS: &str = "bench";

/// Limits of the controller manager's client, which binds and removes volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Limits {
    /// Its own: 20 requests a second.
    Default,
    /// 1000 requests a second.
    Raised,
}

impl Limits {
    const ALL: [Self; 2] = [Self::Default, Self::Raised];

    /// The arguments of the controller manager.
    pub fn arguments(self) -> Vec<String> {
        match self {
            Self::Default => Vec::new(),
            Self::Raised => ["--kube-api-qps=1000", "--kube-api-burst=2000"].map(str::to_owned).to_vec(),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Raised => "raised",
        }
    }
}

/// What to measure.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub struct Options {
    /// Computers of each burst.
    #[arg(long, default_value_t = COMPUTERS)]
    pub computers: usize,
    /// How often each contender is measured under each of the limits.
    #[arg(long, default_value_t = ROUNDS)]
    pub rounds: usize,
    /// Lives one after the other, in each round.
    #[arg(long, default_value_t = 10)]
    pub lives: usize,
    /// Only these limits of the controller manager. Default: both, each in its own cluster.
    #[arg(long, value_enum)]
    pub limits: Vec<Limits>,
    /// Build to measure.
    #[arg(long, value_enum, default_value = "release")]
    pub build: Build,
    /// Write `docs/performance.md` although the run is smaller than the default, and say so in it.
    #[arg(long)]
    pub write: bool,
}

impl Options {
    fn limits(&self) -> Vec<Limits> {
        Limits::ALL.into_iter().filter(|limits| self.limits.is_empty() || self.limits.contains(limits)).collect()
    }

    /// How this run is smaller than the one that the goals are for.
    fn smaller(&self) -> Vec<String> {
        let mut how = Vec::new();
        if self.computers < COMPUTERS {
            how.push(format!("bursts of {} computers, not {COMPUTERS}", self.computers));
        }
        if self.rounds < ROUNDS {
            how.push(format!("{} round(s), not {ROUNDS}", self.rounds));
        }
        if self.build != Build::Release {
            let build = self.build.name();
            how.push(format!("build {build}, not release: the operator's processor time, memory and rates are not those of a release"));
        }
        how.extend((self.limits().len() < Limits::ALL.len()).then(|| "not both limits of the controller manager".to_owned()));
        how
    }
}

/// What one run has measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lifecycle {
    /// The size of the run.
    pub options: Options,
    /// The figures under each of the limits.
    pub passes: Vec<Pass>,
}

impl Figures for Lifecycle {
    const FILE: &'static str = "lifecycle";
}

/// Measures, prints the document, and writes it.
///
/// # Errors
/// When a program cannot be started, or objects are not ready or gone before their deadline.
pub async fn run(workspace: &'static Path, options: &Options) -> Result<()> {
    ensure!(options.computers > 0 && options.rounds > 0 && options.lives > 0, "--computers, --rounds and --lives must not be 0");
    let mut passes = Vec::new();
    for limits in options.limits() {
        passes.push(pass(workspace, options, limits).await.with_context(|| format!("with {} limits", limits.name()))?);
    }
    let recorded = Recorded::now(options.build.name(), Lifecycle { options: options.clone(), passes });
    println!("{}", All { lifecycle: Some(recorded.clone()), ..All::default() }.document());
    let smaller = options.smaller();
    if smaller.is_empty() || options.write {
        performance::publish(workspace, &recorded)?;
    } else {
        eprintln!("docs/performance.md is not written ({}); --write writes it", smaller.join("; "));
    }
    Ok(())
}

/// Everything under the same limits, in one cluster.
async fn pass(workspace: &'static Path, options: &Options, limits: Limits) -> Result<Pass> {
    let setup =
        Setup { name: "bench-lifecycle", profile: Profile::Kwok { nodes: NODES }, controller_manager: limits.arguments(), http_api: false };
    let stage = Stage::up(workspace, options.build, setup).await?;
    let before = super::load_average();
    let lines = lines(&stage, options).await.with_context(|| format!("the operator's log ends with\n{}", stage.operator_log()))?;
    let memory = Memory::of(stage.operator()?)?;
    Ok(Pass { limits, lines, memory, load: (before, super::load_average()) })
}

/// Creates the class of the managed computers.
pub(super) fn class(stage: &Stage) -> Result<()> {
    let class = json!({
        "apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerClass", "metadata": {"name": CLASS},
        "spec": {
            "podTemplate": {"spec": {"containers": [{"name": "machine", "image": contender::IMAGE}]}},
            "storage": {"size": "1Gi", "mountPath": "/home/user"},
            // A simulated node runs no program that could archive.
            "archive": {"policy": "None"},
        },
    });
    stage.kubectl(&["apply", "-f", "-"], &class.to_string()).map(drop)
}

async fn lines(stage: &Stage, options: &Options) -> Result<Vec<Line>> {
    class(stage)?;
    let bench = Bench::new(stage).await?;
    // The first life of each fills caches and connections, and is not measured.
    for contender in Contender::ALL {
        bench.one_at_a_time(contender, "warm", 1).await?;
    }
    let mut lines = Contender::ALL.map(|contender| Line { contender, bursts: Vec::new(), singles: Vec::new() });
    for round in 1..=options.rounds {
        for line in &mut lines {
            let burst = bench.burst(line.contender, &format!("burst{round}"), options.computers).await?;
            let (created, deleted) = (figures::rate(options.computers, burst.created), figures::rate(options.computers, burst.deleted));
            eprintln!("{}, round {round} of {}: {created:.1}/s ready, {deleted:.1}/s gone", line.contender.name(), options.rounds);
            line.bursts.push(burst);
        }
        for line in &mut lines {
            line.singles.push(bench.one_at_a_time(line.contender, &format!("single{round}"), options.lives).await?);
        }
    }
    Ok(lines.into())
}

/// Time that a wait for `count` objects may take.
fn deadline(count: usize) -> Duration {
    // The slowest rate that is not a failure, and a pause of a busy machine.
    Duration::from_secs(120) + Duration::from_secs(1) * u32::try_from(count).unwrap_or(u32::MAX)
}

/// Made-up figures of a small run.
#[cfg(test)]
pub(super) fn sample() -> Lifecycle {
    let options = Options { computers: 10, rounds: 2, lives: 3, limits: vec![Limits::Default], build: Build::Dev, write: false };
    Lifecycle { options, passes: vec![figures::sample::pass(Limits::Default)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_run_says_how_it_is_smaller() {
        let whole = Options { computers: COMPUTERS, rounds: ROUNDS, lives: 10, limits: Vec::new(), build: Build::Release, write: false };
        assert_eq!(whole.smaller(), Vec::<String>::new());
        let small = Options { computers: 30, rounds: 1, limits: vec![Limits::Raised], build: Build::Dev, ..whole };
        assert_eq!(small.limits(), [Limits::Raised]);
        assert_eq!(small.smaller().len(), 4);
        assert_eq!(small.smaller()[0], "bursts of 30 computers, not 300");
    }
}
