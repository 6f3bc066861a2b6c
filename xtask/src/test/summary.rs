//! The list of stages, and the table at the end. Pure: what happened in, text out.

use std::fmt::Write as _;
use std::time::Duration;

use super::stages::{Needs, Stage};

/// How a stage ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// The command that failed, or what was found.
    Failed(String),
    /// Why this machine cannot run it.
    Skipped(String),
    /// Why it was not started. Counts as a failure of the whole run.
    NotRun(String),
}

impl Outcome {
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "FAILED",
            Self::Skipped(_) => "skipped",
            Self::NotRun(_) => "not run",
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Passed => "",
            Self::Failed(reason) | Self::Skipped(reason) | Self::NotRun(reason) => reason,
        }
    }
}

/// A line of the table.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub outcome: Outcome,
    pub time: Duration,
}

/// What `--list` prints.
pub fn list(stages: &[&Stage]) -> String {
    let width = stages.iter().map(|stage| stage.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for stage in stages {
        let needs = match stage.needs {
            Needs::Rust => "",
            Needs::Go => " (needs Go)",
            Needs::Node(_) => " (needs Go and root)",
        };
        let mark = match (stage.fast.is_some(), stage.named_only) {
            (true, _) => "*",
            (_, true) => "-",
            _ => " ",
        };
        let _ = writeln!(text, "{mark} {:<width$}  {}{needs}", stage.name, stage.proves);
    }
    text.push_str("\n* part of --fast\n- runs only with --only\n");
    text
}

/// The table. Its last line, `N passed, N failed, N skipped`, is read by CI and must stay alone on its line.
pub fn table(rows: &[Row], total: Duration) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default().max(5);
    let mut text = format!("\n{:<width$}  {:<7}  {:>7}\n", "stage", "result", "seconds");
    for row in rows {
        let seconds = format!("{:.1}", row.time.as_secs_f64());
        let line = format!("{:<width$}  {:<7}  {seconds:>7}  {}", row.name, row.outcome.word(), row.outcome.reason());
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let count = |word| rows.iter().filter(|row| row.outcome.word() == word).count();
    let failed: Vec<&str> = rows.iter().filter(|row| matches!(row.outcome, Outcome::Failed(_))).map(|row| row.name).collect();
    let _ = writeln!(text, "{:<width$}  {:<7}  {:>7.1}\n", "total", "", total.as_secs_f64());
    if !failed.is_empty() {
        let _ = writeln!(text, "To repeat what failed: cargo xtask test --only {}", failed.join(" "));
    }
    if count("not run") > 0 {
        let _ = writeln!(text, "{} stages were not run: nothing is known about them", count("not run"));
    }
    let _ = writeln!(text, "{} passed, {} failed, {} skipped", count("passed"), failed.len(), count("skipped"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, outcome: Outcome, millis: u64) -> Row {
        Row { name, outcome, time: Duration::from_millis(millis) }
    }

    #[test]
    fn the_table_names_every_failure_and_closes_with_the_line_for_ci() {
        let rows = [
            row("format", Outcome::Passed, 1_260),
            row("clippy", Outcome::Failed("cargo clippy".into()), 61_000),
            row("unit", Outcome::Failed("cargo test".into()), 500),
            row("outages", Outcome::Skipped("no real node can run here: not root".into()), 0),
            row("s3", Outcome::NotRun("needs xtask-program, which failed".into()), 0),
        ];
        let text = table(&rows, Duration::from_millis(62_800));
        assert!(text.contains("format   passed       1.3\n"), "{text}");
        assert!(text.contains("clippy   FAILED      61.0  cargo clippy\n"), "{text}");
        assert!(text.contains("s3       not run      0.0  needs xtask-program, which failed\n"), "{text}");
        assert!(text.contains("cargo xtask test --only clippy unit\n"), "{text}");
        assert!(text.contains("1 stages were not run"), "{text}");
        assert!(text.ends_with("\n1 passed, 2 failed, 1 skipped\n"), "{text}");
    }

    #[test]
    fn a_clean_run_reports_only_the_table() {
        let text = table(&[row("format", Outcome::Passed, 1_000)], Duration::from_secs(1));
        assert!(!text.contains("repeat") && !text.contains("not run"), "{text}");
        assert!(text.ends_with("\n1 passed, 0 failed, 0 skipped\n"), "{text}");
    }

    #[test]
    fn the_list_says_what_a_stage_needs() {
        let stages: Vec<&Stage> = super::super::STAGES.iter().collect();
        let text = list(&stages);
        assert!(text.contains("* format "), "{text}");
        assert!(text.contains("  outages ") && text.contains("- csi "), "{text}");
        assert!(text.contains("(needs Go and root)"), "{text}");
    }
}
