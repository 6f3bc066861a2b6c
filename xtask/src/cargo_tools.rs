//! Programs from the crate registry that are built once, without optimization, and kept in the cache folder by their version.
//!
//! It must never run such a program from the `PATH` instead: the version decides what it accepts and writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::tools;

/// A program of a crate with the same name.
#[derive(Debug)]
pub struct CargoTool {
    /// The crate and its program.
    pub name: &'static str,
    /// The version that is built.
    pub version: &'static str,
    /// More arguments of `cargo install`.
    pub arguments: &'static [&'static str],
    /// How long the build takes on two cores, for people.
    pub time: &'static str,
}

impl CargoTool {
    /// The program. Builds it if it is not in the cache.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn program(&self) -> Result<PathBuf> {
        let Self { name, version, arguments, time } = self;
        let folder = tools::cache_folder()?.join(format!("{name}-{version}"));
        let program = folder.join("bin").join(name);
        if program.exists() {
            return Ok(program);
        }
        eprintln!("building {name} {version}, {time} the first time");
        fs::create_dir_all(&folder)?;
        let (root, version) = (folder.to_string_lossy(), format!("={version}"));
        let fixed = ["install", name, "--version", &version, "--locked", "--debug", "--quiet", "--root", &root];
        // Outside the workspace, whose lock file and settings do not apply to this program.
        cargo(&[&fixed, *arguments].concat(), &folder)
            .with_context(|| format!("{name} cannot be built. It needs the crate registry the first time"))?;
        Ok(program)
    }
}

/// Runs cargo in a folder.
///
/// # Errors
/// When it fails.
pub fn cargo(arguments: &[&str], folder: &Path) -> Result<()> {
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
