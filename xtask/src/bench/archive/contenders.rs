//! What is measured: the operator and what it is compared with. Each one stores a home in the S3 server, and reads all of it back and checks it.

mod kopia;
mod operator;
mod pipe;
mod restic;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;

use super::home::Home;
use super::server::Server;
use super::usage::{Group, Usage};

/// A contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Contender {
    /// The archive pod, the ingest endpoint and the read-back.
    Operator,
    /// `tar | zstd`, curl and `sha256sum`.
    Pipe,
    /// The same pipe with `openssl sha256`, which uses the processor's instructions for it.
    OpensslPipe,
    /// kopia, with full verification.
    Kopia,
    /// restic, with `check --read-data`.
    Restic,
}

impl Contender {
    /// In the order of the table.
    pub const ALL: [Self; 5] = [Self::Operator, Self::Pipe, Self::OpensslPipe, Self::Kopia, Self::Restic];

    /// Its name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Operator => "computer-operator",
            Self::Pipe => "pipe",
            Self::OpensslPipe => "pipe, openssl",
            Self::Kopia => "kopia",
            Self::Restic => "restic",
        }
    }

    /// Stores the home and reads it back.
    ///
    /// # Errors
    /// When a program fails, or what was read back is not what was stored.
    pub fn run(self, place: &Place<'_>, home: &Home) -> Result<Run> {
        match self {
            Self::Operator => operator::run(place, home),
            Self::Pipe => pipe::run(place, home, ("sha256sum", &[])),
            Self::OpensslPipe => pipe::run(place, home, ("openssl", &["sha256", "-r"])),
            Self::Kopia => kopia::run(place, home),
            Self::Restic => restic::run(place, home),
        }
    }
}

/// The programs of the contenders.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `computer-operator`, whose `archive` command is the archive pod's program.
    pub operator: PathBuf,
    /// `xtask`, which has the operator's side.
    pub xtask: PathBuf,
    /// The S3 server.
    pub versitygw: PathBuf,
    /// kopia.
    pub kopia: PathBuf,
    /// restic.
    pub restic: PathBuf,
}

/// Where a contender runs.
pub struct Place<'a> {
    /// The programs.
    pub programs: &'a Programs,
    /// The server, with an empty bucket.
    pub server: &'a Server,
    /// An empty folder.
    pub scratch: &'a Path,
}

impl Place<'_> {
    /// Runs one program that ends by itself.
    fn measure(&self, name: &'static str, command: &mut Command) -> Result<Vec<Usage>> {
        let mut group = Group::new(self.scratch);
        group.start(name, command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        group.finish()
    }
}

/// A measurement.
#[derive(Debug)]
pub struct Run {
    /// From the first read of the home to the end of the check.
    pub wall: Duration,
    /// Every process, without the server.
    pub used: Vec<Usage>,
}
