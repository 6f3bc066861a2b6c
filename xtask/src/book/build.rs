//! Builds the book with mdBook, which is built once and kept in the cache folder by its version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::tools;

/// The version that is built.
const VERSION: &str = "0.5.4";

/// Builds the book into `target/book`. Returns the folder.
///
/// # Errors
/// When mdBook cannot be built, or reports an error or a warning.
pub fn run(workspace: &Path) -> Result<PathBuf> {
    let folder = workspace.join("target/book");
    let output = Command::new(program()?)
        .args(["build", "--dest-dir"])
        .arg(&folder)
        .arg(workspace.join("docs/book"))
        .stdin(Stdio::null())
        .output()
        .context("start mdbook")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let problem = |line: &&str| line.contains("ERROR") || line.contains("WARN") && !line.contains("Caused By");
    let problems: Vec<&str> = said.lines().filter(problem).collect();
    ensure!(output.status.success(), "mdbook failed: {}", said.trim());
    ensure!(problems.is_empty(), "mdbook reports problems:\n{}", problems.join("\n"));
    ensure!(folder.join("index.html").exists(), "mdbook wrote no index.html to {}", folder.display());
    Ok(folder)
}

fn program() -> Result<PathBuf> {
    let folder = tools::cache_folder()?.join(format!("mdbook-{VERSION}"));
    let program = folder.join("bin/mdbook");
    if program.exists() {
        return Ok(program);
    }
    eprintln!("building mdbook {VERSION}, some minutes the first time");
    fs::create_dir_all(&folder)?;
    let version = format!("={VERSION}");
    // Outside the workspace, whose lock file and settings do not apply to this program.
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["install", "mdbook", "--version", &version, "--locked", "--debug", "--quiet"])
        .args(["--no-default-features", "--features", "search", "--root"])
        .arg(&folder)
        .current_dir(&folder)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .stdin(Stdio::null())
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "mdbook {VERSION} cannot be built. It needs the crate registry the first time");
    Ok(program)
}
