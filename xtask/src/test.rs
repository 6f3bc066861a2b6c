//! `cargo xtask test`: everything that must hold before a change lands, in the order in which it fails fastest.
//!
//! A stage that this machine cannot run is reported as skipped by name, never as passed.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::node;

/// A stage: what it proves, and the cargo command that does it.
struct Stage {
    name: &'static str,
    arguments: &'static [&'static str],
    needs_node: bool,
}

const STAGES: &[Stage] = &[
    Stage { name: "formatting", arguments: &["fmt", "--all", "--check"], needs_node: false },
    Stage { name: "clippy, pedantic", arguments: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], needs_node: false },
    Stage { name: "unit, property and model tests", arguments: &["test", "--workspace", "--lib", "--bins"], needs_node: false },
    Stage { name: "generated CustomResourceDefinitions", arguments: &["test", "--test", "crds"], needs_node: false },
    // The real cluster's tests start clusters through the program itself.
    Stage { name: "the xtask program", arguments: &["build", "--package", "xtask"], needs_node: false },
    Stage { name: "the archive in a real S3 server", arguments: &["test", "--test", "s3", "--", "--nocapture"], needs_node: false },
    Stage { name: "the promises on a real cluster", arguments: &["test", "--test", "real_cluster"], needs_node: true },
];

/// Runs all stages.
///
/// # Errors
/// At the first stage that fails.
pub fn run(workspace: &Path) -> Result<()> {
    let obstacle = node::obstacle();
    let (start, mut passed, mut skipped) = (Instant::now(), 0, 0);
    for (i, stage) in STAGES.iter().enumerate() {
        println!("\n[{}/{}] {}", i + 1, STAGES.len(), stage.name);
        if let (true, Some(obstacle)) = (stage.needs_node, &obstacle) {
            println!("no real node can run here: {obstacle}");
        }
        let began = Instant::now();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo).args(stage.arguments).current_dir(workspace).status()?;
        ensure!(status.success(), "{} failed: cargo {}", stage.name, stage.arguments.join(" "));
        println!("[{}/{}] {}: {} s", i + 1, STAGES.len(), stage.name, began.elapsed().as_secs());
        if stage.needs_node && obstacle.is_some() {
            skipped += 1;
        } else {
            passed += 1;
        }
    }
    println!("\nall stages in {} s", start.elapsed().as_secs());
    println!("{passed} passed, 0 failed, {skipped} skipped");
    Ok(())
}
