//! The operator as a static program that shares its compiled dependencies with `cargo xtask`: the same profile, the same features, the same
//! folder. Only the operator itself, without the simulator's feature, and the link are left to do.
//!
//! It must never be released or measured: it is not optimized.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// The program in `Cargo.toml` of this package. It belongs to this package because cargo then resolves the features of all dependencies as it
/// did for `cargo xtask`.
pub const PROGRAM: &str = "demo-operator";

/// Compiles the operator and returns its path.
///
/// # Errors
/// When it does not compile.
pub fn build(workspace: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = Command::new(cargo)
        .current_dir(workspace)
        .args(["rustc", "--package", "xtask", "--bin", PROGRAM, "--message-format", "json-render-diagnostics"])
        // Only for the link of the program: as a flag of every crate, they would all be compiled again.
        .args(["--", "-C", "target-feature=+crt-static", "-C", "strip=symbols"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo")?;
    ensure!(output.status.success(), "building the operator failed: {}", output.status);
    executable(&String::from_utf8_lossy(&output.stdout)).with_context(|| format!("cargo does not report where {PROGRAM} is"))
}

/// The path of the program in cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages.lines().rev().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == PROGRAM).then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_where_cargo_reports_it() {
        let messages = [
            r#"{"reason":"compiler-artifact","target":{"name":"xtask"},"executable":null}"#,
            r#"{"reason":"compiler-artifact","target":{"name":"demo-operator"},"executable":"/t/debug/demo-operator"}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ];
        assert_eq!(executable(&messages.join("\n")), Some(PathBuf::from("/t/debug/demo-operator")));
        assert_eq!(executable(messages[0]), None);
    }
}
