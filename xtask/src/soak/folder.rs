//! Stores the results of a soak: one folder for each state of the source, one result for each finished part. An interrupted soak continues
//! with the part that it was in. A result must never count for another source.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::fingerprint;
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

/// What a finished part leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub passed: bool,
    pub seconds: u64,
    /// The program's own summary, for example how many runs, and how many failed.
    pub line: String,
}

/// `target/soak/KIND-SOURCE`.
pub struct Folder(PathBuf);

impl Folder {
    /// For the source as it is now: the files under `sources`.
    ///
    /// # Errors
    /// When the source cannot be read or the folder cannot be created.
    pub fn of(workspace: &Path, kind: &str, sources: &[&str]) -> Result<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
        let folder = target.join("soak").join(format!("{kind}-{}", fingerprint::of(workspace, sources)?));
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn name(&self) -> std::borrow::Cow<'_, str> {
        self.0.file_name().unwrap_or_default().to_string_lossy()
    }

    fn log(&self) -> PathBuf {
        self.path("soak.log")
    }

    fn result(&self, part: &str) -> PathBuf {
        self.path(&format!("{part}.json"))
    }

    /// An unreadable result counts as none: the part runs again.
    fn report(&self, part: &str) -> Option<Report> {
        serde_json::from_slice(&fs::read(self.result(part)).ok()?).ok()
    }

    /// Atomic: a kill leaves either no result or a whole one.
    fn keep(&self, part: &str, report: &Report) -> Result<()> {
        let partial = self.path(&format!(".{part}.partial"));
        fs::write(&partial, serde_json::to_vec_pretty(report)?)?;
        Ok(fs::rename(partial, self.result(part))?)
    }

    /// Starts a soak: locks the folder and, with `again`, discards its results. `None`: `cargo xtask ARGUMENTS` continues it in the background.
    ///
    /// # Errors
    /// When another soak of the same source is running, or the background process cannot be started.
    pub fn start(&self, mode: Mode, again: bool, arguments: &[&str]) -> Result<Option<File>> {
        let lock = self.lock()?;
        if again {
            self.discard()?;
        }
        if mode != Mode::Detach {
            return Ok(Some(lock));
        }
        drop(lock);
        self.detach(arguments)?;
        Ok(None)
    }

    /// Removes all results of this source.
    fn discard(&self) -> Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// The lock that is held while a soak runs. An error: another soak of the same source holds it.
    fn lock(&self) -> Result<File> {
        let lock = File::create(self.path("lock"))?;
        if lock.try_lock().is_err() {
            bail!("a soak of this source is running: see --status, or {}", self.log().display());
        }
        Ok(lock)
    }

    pub fn status(&self, parts: &[String]) -> String {
        let running = File::open(self.path("lock")).is_ok_and(|lock| lock.try_lock_shared().is_err());
        format!("source {}, {}\n{}", self.name(), if running { "running" } else { "not running" }, table(&self.rows(parts)))
    }

    /// Runs `cargo xtask ARGUMENTS` in its own process group, so that neither Ctrl-C nor the end of a terminal reaches it.
    fn detach(&self, arguments: &[&str]) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let child = Command::new(process::own_program()?)
            .args(arguments)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the soak in the background")?;
        println!("process {} runs in the background; follow it with\n  tail -f {}", child.id(), self.log().display());
        println!("  cargo xtask {} --status", arguments.join(" "));
        Ok(())
    }

    /// Runs every part that has no result, keeps each result, and prints the table.
    ///
    /// # Errors
    /// When a part failed or could not be run.
    pub fn run(&self, parts: &[String], mut one: impl FnMut(&str) -> Result<Report>) -> Result<()> {
        for part in parts {
            if self.report(part).is_none() {
                let report = one(part)?;
                self.keep(part, &report)?;
            }
        }
        let rows = self.rows(parts);
        print!("\nsource {}, logs in {}\n{}", self.name(), self.0.display(), table(&rows));
        ensure!(rows.iter().all(|(_, report)| report.as_ref().is_some_and(|r| r.passed)), "the soak found a failure");
        Ok(())
    }

    /// Copies a program's output to the log of its part and to the terminal. Returns the last line that `summary` accepts.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn follow(&self, part: &str, output: impl Read, summary: impl Fn(&str) -> bool) -> Result<String> {
        let (mut log, mut last) = (File::create(self.path(&format!("{part}.log")))?, String::new());
        for line in BufReader::new(output).lines() {
            let line = line?;
            writeln!(log, "{line}")?;
            println!("{line}");
            if summary(&line) {
                line.trim().clone_into(&mut last);
            }
        }
        Ok(last)
    }

    fn rows(&self, parts: &[String]) -> Vec<(String, Option<Report>)> {
        parts.iter().map(|part| (part.clone(), self.report(part))).collect()
    }
}

fn table(rows: &[(String, Option<Report>)]) -> String {
    let mut text = String::from("part          result   seconds\n");
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

    fn names(parts: &[&str]) -> Vec<String> {
        parts.iter().map(|part| (*part).to_owned()).collect()
    }

    #[test]
    fn only_parts_without_a_readable_result_run() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Folder(folder.path().to_owned());
        folder.keep("crash", &report(true)).unwrap();
        fs::write(folder.result("lost"), "{").unwrap();
        let mut ran = Vec::new();
        let parts = names(&["crash", "lost"]);
        folder
            .run(&parts, |part| {
                ran.push(part.to_owned());
                Ok(report(true))
            })
            .unwrap();
        assert_eq!(ran, ["lost"]);
        folder.discard().unwrap();
        assert!(folder.run(&parts, |part| Ok(report(part != "lost"))).is_err());
    }

    #[test]
    fn the_table_counts_what_is_not_finished() {
        let rows = [("crash".to_owned(), Some(report(true))), ("lost".to_owned(), Some(report(false))), ("moves".to_owned(), None)];
        let text = table(&rows);
        assert!(text.contains("moves         no result\n"), "{text}");
        assert!(text.ends_with("\n1 passed, 1 failed, 1 not finished\n"), "{text}");
    }
}
