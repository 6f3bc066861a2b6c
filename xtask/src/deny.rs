//! The dependencies against `deny.toml`: licenses, bans and sources, checked by cargo-deny.
//!
//! cargo-deny is built once, without optimization, and kept in the cache folder by its version (a minute and a half of processor
//! time). The check itself needs no network. Advisories do, so they are not part of it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::cargo_tools::{self, CargoTool};

const CARGO_DENY: CargoTool = CargoTool { name: "cargo-deny", version: "0.20.2", arguments: &[], time: "about a minute" };
/// The target of `deny.toml`.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Checks the workspace.
///
/// # Errors
/// When a dependency is not allowed, or cargo-deny cannot be built.
pub fn run(workspace: &Path) -> Result<()> {
    // The check itself never downloads, and on a new machine some packages are not in the cache yet.
    cargo_tools::cargo(&["fetch", "--locked", "--target", TARGET], workspace)?;
    let status = Command::new(CARGO_DENY.program()?)
        .args(["--offline", "--locked", "--workspace", "check", "bans", "licenses", "sources"])
        .current_dir(workspace)
        .status()
        .context("start cargo-deny")?;
    ensure!(status.success(), "a dependency is not allowed by deny.toml");
    Ok(())
}
