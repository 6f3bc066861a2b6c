//! `cargo xtask test`: everything that must hold before a change lands, in the order in which it fails fastest.
//!
//! A stage that this machine cannot run is reported as skipped by name, never as passed.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::node;

/// A stage: what it proves, and the cargo command that does it.
struct Stage {
    name: &'static str,
    arguments: &'static [&'static str],
    /// What it needs a real node for: more arguments, given where one can run.
    node: Option<&'static [&'static str]>,
}

const fn stage(name: &'static str, arguments: &'static [&'static str]) -> Stage {
    Stage { name, arguments, node: None }
}

const fn node_stage(name: &'static str, arguments: &'static [&'static str], node: &'static [&'static str]) -> Stage {
    Stage { name, arguments, node: Some(node) }
}

/// A part of the matrices; `cargo xtask soak --matrices` runs all of them.
const SIMULATOR: &[&str] = &[
    "test",
    "--features",
    "guards-off",
    "--test",
    "simulator",
    "--",
    "--stages",
    "undisturbed,crash,lost,refused,recreated",
    "--thin",
    "5",
];
const SOAK: &[&str] = &["test", "--features", "guards-off", "--test", "simulator", "--", "soak", "--computers", "20"];
const TEETH: &[&str] = &["test", "--features", "guards-off", "--test", "simulator", "--", "teeth"];
const MODEL: &[&str] = &["test", "--features", "guards-off", "--test", "simulator", "--", "model"];
const CONFORMANCE: &[&str] = &["test", "--features", "guards-off", "--test", "simulator", "--", "conformance"];

const STAGES: &[Stage] = &[
    stage("formatting", &["fmt", "--all", "--check"]),
    stage("clippy, pedantic", &["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]),
    stage("unit, property and model tests", &["test", "--workspace", "--lib", "--bins"]),
    stage("generated definitions and API description", &["test", "--test", "crds", "--test", "openapi"]),
    stage("the simulator: lives disturbed, a sample of five matrices", SIMULATOR),
    stage("the simulator: everything at once, a fixed seed", SOAK),
    stage("the simulator: every guard, switched off, is missed", TEETH),
    stage("the deletion, model-checked", MODEL),
    // The tests below start clusters through the program itself.
    stage("the xtask program", &["build", "--package", "xtask"]),
    stage("the archive in a real S3 server", &["test", "--test", "s3"]),
    stage("the kinds on a real API server", &["test", "--test", "api_server"]),
    stage("the simulator answers as a real API server", CONFORMANCE),
    stage("ApiKeys on a real control plane", &["test", "--test", "api_keys"]),
    stage("the HTTP API over real HTTP", &["test", "--test", "http"]),
    stage("the chart, rendered and on a real API server", &["test", "--test", "chart"]),
    stage("clusters come up, are found, and end without a trace", &["test", "--package", "xtask", "--test", "lifecycle"]),
    // Without a node the test runner names them as ignored, the one below as skipped.
    node_stage("real nodes", &["test", "--package", "xtask", "--test", "nodes"], &["--", "--include-ignored"]),
    node_stage("the chart on a real node: install, upgrade, uninstall", &["test", "--test", "chart_cluster"], &[]),
    node_stage("the promises on a real cluster", &["test", "--test", "real_cluster"], &[]),
    node_stage("outages: operators, API server, etcd, store and clock fail under deletions", &["test", "--test", "outages"], &[]),
];

/// Runs all stages, up to the first that fails.
///
/// # Errors
/// When a stage fails.
pub fn run(workspace: &Path) -> Result<()> {
    let obstacle = node::obstacle();
    let (start, mut passed, mut skipped) = (Instant::now(), 0, 0);
    for (i, stage) in STAGES.iter().enumerate() {
        println!("\n[{}/{}] {}", i + 1, STAGES.len(), stage.name);
        let mut arguments = stage.arguments.to_vec();
        match (stage.node, &obstacle) {
            (Some(_), Some(obstacle)) => println!("no real node can run here: {obstacle}"),
            (Some(more), None) => arguments.extend(more),
            (None, _) => {}
        }
        let began = Instant::now();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo).args(&arguments).current_dir(workspace).status()?;
        if !status.success() {
            println!("\n{passed} passed, 1 failed, {skipped} skipped, {} not run", STAGES.len() - i - 1);
            bail!("{} failed: cargo {}", stage.name, arguments.join(" "));
        }
        println!("[{}/{}] {}: {} s", i + 1, STAGES.len(), stage.name, began.elapsed().as_secs());
        if stage.node.is_some() && obstacle.is_some() {
            skipped += 1;
        } else {
            passed += 1;
        }
    }
    println!("\nall stages in {} s", start.elapsed().as_secs());
    println!("{passed} passed, 0 failed, {skipped} skipped");
    Ok(())
}
