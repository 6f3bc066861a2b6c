//! `cargo xtask bench archive`: how fast a home is archived and read back, and what it costs, beside a pipe of standard tools, kopia and restic, in
//! alternating rounds of the same run. Writes `docs/archive-performance.md`.

mod build;
mod contenders;
mod home;
pub mod operator_side;
mod server;
mod stub_api;
mod table;
mod usage;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

pub use contenders::{Contender, Programs};
use home::Home;
pub use home::Kind;
use server::Server;
pub use table::Line;

/// Bytes of a home, unless the command says otherwise.
const SIZE: u64 = 2_000_000_000;
/// Rounds, unless the command says otherwise.
const ROUNDS: usize = 2;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Bytes of each generated home. `docs/archive-performance.md` is only written with the default.
    #[arg(long, default_value_t = SIZE)]
    pub size: u64,
    /// How often each contender archives each home. `docs/archive-performance.md` is only written with the default or more.
    #[arg(long, default_value_t = ROUNDS)]
    pub rounds: usize,
    /// Only these contenders. `docs/archive-performance.md` is only written with all of them.
    #[arg(long, value_enum)]
    pub only: Vec<Contender>,
    /// Only these homes. `docs/archive-performance.md` is only written with all of them.
    #[arg(long, value_enum)]
    pub home: Vec<Kind>,
    /// Folder of source code. Default: the sources of this project's dependencies in cargo's folder, and `docs/archive-performance.md` is only written with it.
    #[arg(long)]
    pub tree: Option<PathBuf>,
    /// The programs are built: the command starts itself with this.
    #[arg(long, hide = true)]
    pub built: bool,
}

impl Options {
    /// Whether the measurement replaces the document.
    fn complete(&self) -> bool {
        let Self { size, rounds, only, home, tree, built: _ } = self;
        *size == SIZE && *rounds >= ROUNDS && only.is_empty() && home.is_empty() && tree.is_none()
    }

    fn contenders(&self) -> Vec<Contender> {
        Contender::ALL.into_iter().filter(|contender| self.only.is_empty() || self.only.contains(contender)).collect()
    }

    fn homes(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| self.home.is_empty() || self.home.contains(kind)).collect()
    }

    fn tree(&self) -> Result<PathBuf> {
        if let Some(tree) = &self.tree {
            return Ok(tree.clone());
        }
        let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let cargo = cargo.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo"))).context("HOME is not set")?;
        Ok(cargo.join("registry/src"))
    }
}

/// Builds, measures, and prints or writes the table.
///
/// # Errors
/// When a program cannot be built, or a contender fails.
pub fn run(workspace: &Path, options: &Options) -> Result<()> {
    if !options.built {
        return build::build_and_continue(workspace);
    }
    let (programs, before) = (build::programs(options)?, super::load_average());
    let lines = measure(&programs, options)?;
    let text = build::document(&programs, options, &before, &table::table(&lines));
    println!("{text}");
    if options.complete() {
        std::fs::write(workspace.join("docs/archive-performance.md"), text)?;
    }
    Ok(())
}

/// Measures. What is written is removed at the end, also after a failure.
///
/// # Errors
/// When a contender fails.
pub fn measure(programs: &Programs, options: &Options) -> Result<Vec<Line>> {
    ensure!(options.rounds > 0, "--rounds must not be 0");
    let tree = options.tree()?;
    let mut lines = Vec::new();
    for kind in options.homes() {
        let folder = tempfile::tempdir()?;
        let home = home::prepare(kind, folder.path(), options.size, &tree)?;
        let mut of_home: Vec<_> = options.contenders().into_iter().map(|who| Line::new((&home.name, home.bytes), who)).collect();
        for round in 1..=options.rounds {
            for line in &mut of_home {
                once(programs, &home, line).with_context(|| format!("{} with {}", line.contender.name(), home.name))?;
                eprintln!("{}, {}: round {round} of {}, {:.0} MB/s", home.name, line.contender.name(), options.rounds, line.speed());
            }
        }
        lines.extend(of_home);
    }
    Ok(lines)
}

/// One measurement, with an empty store.
fn once(programs: &Programs, home: &Home, line: &mut Line) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let server = Server::start(&programs.versitygw, scratch.path())?;
    // What others have written is not written to the disk meanwhile.
    nix::unistd::sync();
    let place = contenders::Place { programs, server: &server, scratch: scratch.path() };
    let run = line.contender.run(&place, home)?;
    let (used, stored) = server.stop()?;
    line.walls.push(run.wall);
    line.used.extend(run.used);
    line.server.push(used);
    line.stored = stored;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of one round, or of another folder, once replaced the document.
    #[test]
    fn only_a_run_with_the_defaults_replaces_the_document() {
        let usual = || Options { size: SIZE, rounds: ROUNDS, only: Vec::new(), home: Vec::new(), tree: None, built: true };
        assert!(usual().complete() && Options { rounds: ROUNDS + 1, ..usual() }.complete());
        for other in [
            Options { size: SIZE / 2, ..usual() },
            Options { rounds: ROUNDS - 1, ..usual() },
            Options { only: vec![Contender::Operator], ..usual() },
            Options { home: vec![Kind::Text], ..usual() },
            Options { tree: Some("/tmp".into()), ..usual() },
        ] {
            assert!(!other.complete(), "{other:?}");
        }
    }
}
