//! Builds the book with mdBook, which is built once and kept in the cache folder by its version.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::cargo_tools::CargoTool;

const MDBOOK: CargoTool =
    CargoTool { name: "mdbook", version: "0.5.4", arguments: &["--no-default-features", "--features", "search"], time: "some minutes" };

/// Builds the book into `target/book`. Returns the folder.
///
/// # Errors
/// When mdBook cannot be built, or reports an error or a warning.
pub fn run(workspace: &Path) -> Result<PathBuf> {
    let folder = workspace.join("target/book");
    let output = Command::new(MDBOOK.program()?)
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
