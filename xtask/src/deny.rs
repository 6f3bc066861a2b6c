//! The dependencies against `deny.toml`: licenses, bans and sources, checked by cargo-deny.
//!
//! cargo-deny is built once, without optimization, and kept in the cache folder by its version (a minute and a half of processor
//! time). The check itself needs no network. Advisories do, so they are not part of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::tools;

/// The version that is built.
const VERSION: &str = "0.20.2";
/// The target of `deny.toml`.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Checks the workspace.
///
/// # Errors
/// When a dependency is not allowed, or cargo-deny cannot be built.
pub fn run(workspace: &Path) -> Result<()> {
    // The check itself never downloads, and on a new machine some packages are not in the cache yet.
    cargo(&["fetch", "--locked", "--target", TARGET], workspace)?;
    let program = program()?;
    let status = Command::new(program)
        .args(["--offline", "--locked", "--workspace", "check", "bans", "licenses", "sources"])
        .current_dir(workspace)
        .status()
        .context("start cargo-deny")?;
    ensure!(status.success(), "a dependency is not allowed by deny.toml");
    Ok(())
}

fn program() -> Result<PathBuf> {
    let folder = tools::cache_folder()?.join(format!("cargo-deny-{VERSION}"));
    let program = folder.join("bin/cargo-deny");
    if program.exists() {
        return Ok(program);
    }
    eprintln!("building cargo-deny {VERSION}, about a minute the first time");
    fs::create_dir_all(&folder)?;
    let root = folder.to_string_lossy();
    let version = format!("={VERSION}");
    // Outside the workspace, whose lock file and settings do not apply to this program.
    cargo(&["install", "cargo-deny", "--version", &version, "--locked", "--debug", "--quiet", "--root", &root], &folder)
        .context("build cargo-deny")?;
    Ok(program)
}

fn cargo(arguments: &[&str], folder: &Path) -> Result<()> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(arguments)
        .current_dir(folder)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .stdin(Stdio::null())
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}
