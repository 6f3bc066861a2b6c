//! Every matrix of the simulator in full, one after the other. A finished matrix leaves its result in a folder that is named after
//! the source, so an interrupted soak continues with the matrix that it was in.
//!
//! The simulator is built once and copied there: edits of the source while the soak runs do not mix into it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{SIMULATOR, cargo, fingerprint};
use crate::process;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Run what has no result yet.
    Run,
    /// The same, in a process that outlives this one.
    Detach,
    /// Report only.
    Status,
}

/// What a finished matrix leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Report {
    passed: bool,
    seconds: u64,
    /// The simulator's own line: how many runs, how many failed.
    line: String,
}

/// Runs or reports all matrices for the source as it is now.
///
/// # Errors
/// When a matrix failed, another soak of the same source is running, or the simulator cannot be built.
pub fn run(workspace: &Path, mode: Mode, again: bool) -> Result<()> {
    let folder = Folder::of(workspace)?;
    if mode == Mode::Status {
        print!("{}", folder.status()?);
        return Ok(());
    }
    let lock = File::create(folder.0.join("lock"))?;
    if lock.try_lock().is_err() {
        bail!("a soak of this source is running: see `cargo xtask soak --matrices --status`, or {}", folder.log().display());
    }
    if again {
        folder.discard()?;
    }
    if mode == Mode::Detach {
        drop(lock);
        return folder.detach();
    }
    folder.remove_other_programs();
    let program = folder.program(workspace)?;
    let names = names(&program)?;
    for name in &names {
        if folder.report(name).is_none() {
            let report = folder.run(&program, name)?;
            folder.keep(name, &report)?;
        }
    }
    let rows: Vec<_> = names.iter().map(|name| (name.clone(), folder.report(name))).collect();
    print!("\nsource {}, logs in {}\n{}", folder.name(), folder.0.display(), table(&rows));
    ensure!(rows.iter().all(|(_, report)| report.as_ref().is_some_and(|r| r.passed)), "the matrices found a broken promise");
    Ok(())
}

/// `target/soak/SOURCE`: the program, and for each matrix a log and a result.
struct Folder(PathBuf);

impl Folder {
    fn of(workspace: &Path) -> Result<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
        let folder = target.join("soak").join(fingerprint::of(workspace)?);
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    fn name(&self) -> std::borrow::Cow<'_, str> {
        self.0.file_name().unwrap_or_default().to_string_lossy()
    }

    fn log(&self) -> PathBuf {
        self.0.join("soak.log")
    }

    fn result(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.json"))
    }

    /// An unreadable result counts as none: the matrix runs again.
    fn report(&self, name: &str) -> Option<Report> {
        serde_json::from_slice(&fs::read(self.result(name)).ok()?).ok()
    }

    /// Atomic: a kill leaves either no result or a whole one.
    fn keep(&self, name: &str, report: &Report) -> Result<()> {
        let partial = self.0.join(format!(".{name}.partial"));
        fs::write(&partial, serde_json::to_vec_pretty(report)?)?;
        Ok(fs::rename(partial, self.result(name))?)
    }

    fn discard(&self) -> Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn status(&self) -> Result<String> {
        let program = self.0.join("simulator");
        if !program.exists() {
            return Ok(format!("no soak of this source ({}) has begun\n", self.name()));
        }
        let running = File::open(self.0.join("lock")).is_ok_and(|lock| lock.try_lock_shared().is_err());
        let rows: Vec<_> = names(&program)?.into_iter().map(|name| (name.clone(), self.report(&name))).collect();
        Ok(format!("source {}, {}\n{}", self.name(), if running { "running" } else { "not running" }, table(&rows)))
    }

    /// In a process group of its own, so that neither Ctrl-C nor the end of a terminal reaches it.
    fn detach(&self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let child = Command::new(process::own_program()?)
            .args(["soak", "--matrices"])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the soak in the background")?;
        println!("process {} runs in the background; follow it with\n  tail -f {}", child.id(), self.log().display());
        println!("  cargo xtask soak --matrices --status");
        Ok(())
    }

    /// Programs of other sources that no soak uses: each takes some 100 MB. Their results stay.
    fn remove_other_programs(&self) {
        for entry in self.0.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten().flatten() {
            let unused = File::open(entry.path().join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
            if unused && entry.path() != self.0 {
                fs::remove_file(entry.path().join("simulator")).ok();
            }
        }
    }

    /// The simulator, built from this source.
    fn program(&self, workspace: &Path) -> Result<PathBuf> {
        let program = self.0.join("simulator");
        if program.exists() {
            return Ok(program);
        }
        let output = cargo()
            .args(SIMULATOR)
            .args(["--no-run", "--message-format=json-render-diagnostics"])
            .current_dir(workspace)
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "the simulator does not build");
        let built = executable(&String::from_utf8_lossy(&output.stdout)).context("cargo did not say where the simulator is")?;
        ensure!(fingerprint::of(workspace)? == self.name(), "the source changed while it was built; start again");
        let partial = self.0.join(".simulator.partial");
        fs::copy(built, &partial)?;
        fs::rename(partial, &program)?;
        Ok(program)
    }

    fn run(&self, program: &Path, name: &str) -> Result<Report> {
        println!("\n{name}");
        let (began, mut log) = (Instant::now(), File::create(self.0.join(format!("{name}.log")))?);
        let mut child = process::tied(program, None)?
            .args(["--stages", name, "--full"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the simulator")?;
        let mut last = String::new();
        for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
            let line = line?;
            writeln!(log, "{line}")?;
            println!("{line}");
            if verdict(&line, name) {
                line.trim().clone_into(&mut last);
            }
        }
        let status = child.wait()?;
        // Only the simulator's own exit is a result. After a signal the matrix runs again.
        ensure!(status.code().is_some(), "the simulator was ended in {name}: {status}; run the command again to continue");
        Ok(Report { passed: status.success(), seconds: began.elapsed().as_secs(), line: last })
    }
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

fn table(rows: &[(String, Option<Report>)]) -> String {
    let mut text = String::from("matrix        result   seconds\n");
    for (name, report) in rows {
        let _ = match report {
            Some(Report { passed, seconds, line }) => {
                let word = if *passed { "passed" } else { "FAILED" };
                writeln!(text, "{name:<12}  {word:<7}  {seconds:>7}  {line}")
            }
            None => writeln!(text, "{name:<12}  no result"),
        };
    }
    let count = |wanted| rows.iter().filter(|(_, report)| report.as_ref().map(|r| r.passed) == wanted).count();
    let _ = writeln!(text, "\n{} passed, {} failed, {} not finished", count(Some(true)), count(Some(false)), count(None));
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn report(passed: bool) -> Report {
        Report { passed, seconds: 12, line: "ok  crash 9 of 9 runs, 0 failed, 12 s: killed".into() }
    }

    #[test]
    fn a_result_is_found_again_and_a_broken_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Folder(folder.path().to_owned());
        assert_eq!(folder.report("crash"), None);
        folder.keep("crash", &report(true)).unwrap();
        assert_eq!(folder.report("crash"), Some(report(true)));
        fs::write(folder.result("lost"), "{").unwrap();
        assert_eq!(folder.report("lost"), None);
        folder.discard().unwrap();
        assert_eq!(folder.report("crash"), None);
    }

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
    fn a_verdict_is_told_from_other_lines() {
        assert!(verdict("    ok  crash         3236 of  3236 runs, 0 failed, 9 s: killed", "crash"));
        assert!(verdict("FAILED  crash         3236 of  3236 runs, 1 failed, 9 s: killed", "crash"));
        assert!(!verdict("FAILED  once: crash", "crash"));
    }

    #[test]
    fn the_table_counts_what_is_not_finished() {
        let rows = [("crash".to_owned(), Some(report(true))), ("lost".to_owned(), Some(report(false))), ("moves".to_owned(), None)];
        let text = table(&rows);
        assert!(text.contains("moves         no result\n"), "{text}");
        assert!(text.ends_with("\n1 passed, 1 failed, 1 not finished\n"), "{text}");
    }
}
