//! Builds what is measured, starts the measurement in a program that is as optimized as what it measures, and describes both.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::Options;
use super::contenders::Programs;
use crate::tools::{self, Tool};

/// The profile in `Cargo.toml`.
const PROFILE: &str = "measure";

/// Builds the operator and this program, and continues in the latter with the same arguments.
pub fn build_and_continue(workspace: &Path) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), Into::into);
    let mut build = Command::new(cargo);
    build.args(["build", "--profile", PROFILE, "--package", "computer-operator", "--package", "xtask"]);
    build.args(["--bin", "computer-operator", "--bin", "xtask"]).current_dir(workspace);
    ensure!(build.status().context("run cargo")?.success(), "the build failed");
    let program = target.join(PROFILE).join("xtask");
    // Returns only with an error.
    let error = Command::new(&program).args(std::env::args_os().skip(1)).arg("--built").exec();
    Err(error).with_context(|| format!("start {}", program.display()))
}

/// The programs, beside this one and of Go modules.
pub fn programs(options: &Options) -> Result<Programs> {
    let xtask = std::env::current_exe()?;
    let operator = xtask.with_file_name("computer-operator");
    ensure!(operator.is_file(), "{} does not exist: run `cargo xtask bench archive` without --built", operator.display());
    let wanted = |contender, tool| options.contenders().contains(&contender).then_some(tool);
    let tools = [Some(Tool::VersityGw), wanted(super::Contender::Kopia, Tool::Kopia), wanted(super::Contender::Restic, Tool::Restic)];
    let bins = tools::ensure(&tools.into_iter().flatten().collect::<Vec<_>>())?;
    let path = |tool| bins.path(tool).to_owned();
    Ok(Programs { operator, xtask, versitygw: path(Tool::VersityGw), kopia: path(Tool::Kopia), restic: path(Tool::Restic) })
}

/// The document: what was measured, and the table.
pub fn document(programs: &Programs, options: &Options, before: &str, table: &str) -> String {
    let date = jiff::Timestamp::now().to_string();
    let mut text = INTRODUCTION
        .replace("DATE", date.split('T').next().unwrap_or_default())
        .replace("MACHINE", &crate::bench::machine())
        .replace("LOAD", before)
        .replace("ROUNDS", &options.rounds.to_string())
        .replace("VERSIONS", &versions(programs));
    // Writing to a string does not fail.
    let _ = write!(text, "\n{table}");
    text
}

/// The first line that each program prints about its version.
fn versions(programs: &Programs) -> String {
    let first = |program: &Path, argument: &str| {
        let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
    };
    let name = |name: &str| Path::new(name).to_owned();
    let all = [
        (programs.operator.clone(), "--version"),
        (name("tar"), "--version"),
        (name("zstd"), "--version"),
        (name("curl"), "--version"),
        (name("sha256sum"), "--version"),
        (name("openssl"), "version"),
    ];
    let mut versions: Vec<_> = all.iter().filter_map(|(program, argument)| first(program, argument)).collect();
    versions.extend(["kopia", "restic", "s3"].into_iter().filter_map(tools::module_version));
    versions.join("; ")
}

const INTRODUCTION: &str = include_str!("introduction.md");
