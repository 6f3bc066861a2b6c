//! Runs every matrix of the simulator in full, in parts, one after the other. An interrupted soak continues with the part that it was in.
//!
//! The simulator is built once and copied to the soak's folder: edits of the source during the soak must never affect it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::folder::{Folder, Mode, Report};
use super::{SIMULATOR, cargo};
use crate::process;

/// Parts of each matrix: the largest takes about two minutes on two processors, so an interruption costs no more.
const PARTS: usize = 12;

/// Everything that the simulator is built from.
const SOURCES: [&str; 5] = ["Cargo.toml", "Cargo.lock", "api", "src", "tests/simulator"];

/// Runs or reports all matrices for the source as it is now.
///
/// # Errors
/// When a matrix failed, another soak of the same source is running, or the simulator cannot be built.
pub fn run(workspace: &Path, mode: Mode, again: bool) -> Result<()> {
    let folder = Folder::of(workspace, "matrices", &SOURCES)?;
    let program = folder.path("simulator");
    if mode == Mode::Status {
        if program.exists() {
            print!("{}", folder.status(&parts(&names(&program)?)));
        } else {
            println!("no soak of this source ({}) has begun", folder.name());
        }
        return Ok(());
    }
    let Some(_lock) = folder.start(mode, again, &["soak", "--matrices"])? else { return Ok(()) };
    remove_other_programs(&program);
    build(workspace, &folder, &program)?;
    folder.run(&parts(&names(&program)?), |part| matrix(&folder, &program, part))
}

/// Programs of other sources that no soak uses: each takes some 100 MB. Their results stay.
fn remove_other_programs(program: &Path) {
    let own = program.parent();
    for entry in own.and_then(Path::parent).and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten().flatten() {
        let unused = File::open(entry.path().join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
        if unused && Some(entry.path().as_path()) != own {
            fs::remove_file(entry.path().join("simulator")).ok();
        }
    }
}

/// The simulator, built from this source.
fn build(workspace: &Path, folder: &Folder, program: &Path) -> Result<()> {
    if program.exists() {
        return Ok(());
    }
    let output = cargo()
        .args(SIMULATOR)
        .args(["--no-run", "--message-format=json-render-diagnostics"])
        .current_dir(workspace)
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the simulator does not build");
    let built = executable(&String::from_utf8_lossy(&output.stdout)).context("cargo did not say where the simulator is")?;
    ensure!(Folder::of(workspace, "matrices", &SOURCES)?.name() == folder.name(), "the source changed while it was built; start again");
    let partial = folder.path(".simulator.partial");
    fs::copy(built, &partial)?;
    Ok(fs::rename(partial, program)?)
}

/// Every part of every matrix: `crash-3` is the third of `crash`.
fn parts(matrices: &[String]) -> Vec<String> {
    matrices.iter().flat_map(|name| (1..=PARTS).map(move |part| format!("{name}-{part}"))).collect()
}

fn matrix(folder: &Folder, program: &Path, part: &str) -> Result<Report> {
    println!("\n{part}");
    let (name, number) = part.rsplit_once('-').context("the name of a part")?;
    let began = Instant::now();
    let mut child = process::tied(program, None)?
        .args(["--stages", name, "--full", "--part", &format!("{number}/{PARTS}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the simulator")?;
    let line = folder.follow(part, child.stdout.take().context("no output")?, |line| verdict(line, name))?;
    let status = child.wait()?;
    // Only the simulator's own exit is a result. After a signal the matrix runs again.
    ensure!(status.code().is_some(), "the simulator was ended in {part}: {status}; run the command again to continue");
    Ok(Report { passed: status.success(), seconds: began.elapsed().as_secs(), line })
}

/// Whether a line of the simulator is the verdict on a matrix.
fn verdict(line: &str, name: &str) -> bool {
    let mut words = line.split_whitespace();
    matches!(words.next(), Some("ok" | "FAILED")) && words.next() == Some(name)
}

/// The simulator's matrices, in its own order: it lists them as the values of `--stages`.
fn names(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program).arg("--help").stdin(Stdio::null()).output().context("ask the simulator for its matrices")?;
    values_of_stages(&String::from_utf8_lossy(&output.stdout)).context("the simulator's --help does not list the values of --stages")
}

fn values_of_stages(help: &str) -> Option<Vec<String>> {
    let (_, rest) = help.split_once("--stages")?;
    let (_, rest) = rest.split_once("[possible values:")?;
    let (values, _) = rest.split_once(']')?;
    Some(values.split(',').map(|value| value.trim().to_owned()).collect())
}

/// The test program among cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = |message: &Value| {
        let simulator = message.pointer("/target/name").and_then(Value::as_str) == Some("simulator");
        message.get("executable").and_then(Value::as_str).filter(|_| simulator).map(PathBuf::from)
    };
    messages.filter_map(|message| program(&message)).next_back()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_matrices_are_those_of_the_help() {
        let help = "      --stages <STAGES>\n          These matrices only\n\n          [possible values: undisturbed, crash, lost]\n\n      --full\n";
        assert_eq!(values_of_stages(help).unwrap(), ["undisturbed", "crash", "lost"]);
        assert_eq!(values_of_stages("Usage: simulator"), None);
    }

    #[test]
    fn the_program_is_the_one_that_cargo_names() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"xtask\"},\"executable\":\"/a\"}\nnoise\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"simulator\"},\"executable\":\"/b\"}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/b")));
    }

    #[test]
    fn every_matrix_runs_in_all_its_parts() {
        let all = parts(&["crash".to_owned(), "lost".to_owned()]);
        assert_eq!((all.len(), all[0].as_str(), all[PARTS].as_str()), (2 * PARTS, "crash-1", "lost-1"));
    }

    #[test]
    fn a_verdict_is_distinguished_from_other_lines() {
        assert!(verdict("    ok  crash         3236 of  3236 runs, 0 failed, 9 s: killed", "crash"));
        assert!(verdict("FAILED  crash         3236 of  3236 runs, 1 failed, 9 s: killed", "crash"));
        assert!(!verdict("FAILED  regression: crash", "crash"));
    }
}
