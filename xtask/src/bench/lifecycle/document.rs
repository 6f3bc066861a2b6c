//! The section with the figures of a life. Pure: figures in, Markdown out.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::Lifecycle;
use super::contender::Contender;
use super::figures::{How, Pass, median, total};
use super::requests::Request;
use super::usage::Program;
use crate::bench::performance::Recorded;

const INTRODUCTION: &str = include_str!("introduction.md");
const REQUESTS: &str = "For each life, from the metric `computer_operator_api_requests_total`, without watches and the lease. \
                        `→ 404` is a request with that answer.";

/// The section of the document.
pub fn section(recorded: &Recorded<Lifecycle>) -> String {
    let Lifecycle { options, passes } = &recorded.figures;
    let load: Vec<String> =
        passes.iter().map(|pass| format!("{} before and {} after the {} limits", pass.load.0, pass.load.1, pass.limits.name())).collect();
    let smaller = match options.smaller() {
        how if how.is_empty() => String::new(),
        how => format!("\n**A small run:** {}. The goals are for a whole one.\n", how.join("; ")),
    };
    let introduction = INTRODUCTION
        .replace("ORIGIN", &recorded.origin("cargo xtask bench lifecycle"))
        .replace("COMPUTERS", &options.computers.to_string())
        .replace("ROUNDS", &options.rounds.to_string())
        .replace("LIVES", &options.lives.to_string())
        .replace("LOAD", &load.join(", "))
        .replace("SMALLER", &smaller);
    let of_each = |pass: &Pass| format!("With {} limits:\n\n{}", pass.limits.name(), requests(pass));
    [
        introduction,
        format!("### Bursts\n\nThe median of the rounds, and each round.\n\n{}", bursts(passes)),
        format!("### One at a time\n\nThe median of all lives.\n\n{}", singles(passes)),
        format!("### Requests of the operator\n\n{REQUESTS}\n\n{}", passes.iter().map(of_each).collect::<Vec<_>>().join("\n")),
        format!("### Memory of the operator\n\nAfter all rounds; records of deleted computers stay for 30 days.\n\n{}", memory(passes)),
    ]
    .join("\n")
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.1}"))
}

/// A row for each contender under each limits: the cells of `first`, then the processor time for each life.
fn rows(passes: &[Pass], how: How, first: impl Fn(&super::figures::Line) -> String) -> String {
    let mut text = String::new();
    for pass in passes {
        for line in &pass.lines {
            let cpu: Vec<String> = Program::ALL.into_iter().map(|program| number(line.cpu(how, program))).collect();
            let (limits, name) = (pass.limits.name(), line.contender.name());
            // Writing to a string does not fail.
            let _ = writeln!(text, "| {limits} | {name} | {} | {} |", first(line), cpu.join(" | "));
        }
    }
    text
}

/// The names of the columns with processor time, and the line below the heading.
fn heading(first: &str) -> String {
    let names: Vec<String> = Program::ALL.into_iter().map(|program| format!("{}, CPU ms", program.name())).collect();
    let columns = 2 + first.split(" | ").count() + names.len();
    format!("| limits | contender | {first} | {} |\n{}|\n", names.join(" | "), "|---".repeat(columns))
}

fn bursts(passes: &[Pass]) -> String {
    let each = |rates: Vec<f64>| {
        let all: Vec<String> = rates.iter().map(|rate| format!("{rate:.1}")).collect();
        format!("{} ({})", number(median(rates)), all.join(", "))
    };
    heading("create→ready /s | delete→gone /s")
        + &rows(passes, How::Burst, |line| format!("{} | {}", each(line.created()), each(line.deleted())))
}

fn singles(passes: &[Pass]) -> String {
    heading("create→ready ms | delete→gone ms")
        + &rows(passes, How::Single, |line| format!("{} | {}", number(line.alone_created()), number(line.alone_deleted())))
}

/// A row for each sort of request.
fn requests(pass: &Pass) -> String {
    let lines = pass.lines.iter().filter(|line| line.contender.is_ours());
    let columns: Vec<_> = lines.flat_map(|line| [How::Burst, How::Single].map(|how| (line.contender, how, line.requests(how)))).collect();
    let name = |contender: Contender, how| format!("{}, {}", contender.name(), if how == How::Burst { "burst" } else { "one at a time" });
    let names: Vec<String> = columns.iter().map(|(contender, how, _)| name(*contender, *how)).collect();
    let mut text = format!("| request | {} |\n|---{}|\n", names.join(" | "), "|---".repeat(names.len()));
    let cell = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
    let all: BTreeSet<&Request> = columns.iter().flat_map(|(_, _, counts)| counts.keys()).collect();
    for request in all {
        let cells: Vec<String> = columns.iter().map(|(_, _, counts)| cell(counts.get(request).copied())).collect();
        let _ = writeln!(text, "| {request} | {} |", cells.join(" | "));
    }
    let totals: Vec<String> = columns.iter().map(|(_, _, counts)| format!("**{:.2}**", total(counts))).collect();
    let _ = writeln!(text, "| **all** | {} |", totals.join(" | "));
    text
}

fn memory(passes: &[Pass]) -> String {
    let mut text = String::from("| limits | peak (VmHWM), MiB | at the end (VmRSS), MiB |\n|---|---|---|\n");
    for pass in passes {
        let _ = writeln!(text, "| {} | {} | {} |", pass.limits.name(), pass.memory.peak >> 20, pass.memory.resident >> 20);
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::figures::sample;
    use super::super::{Build, Limits, Options};
    use super::*;

    #[test]
    fn a_table_has_a_row_for_each_contender() {
        let text = bursts(&[sample::pass(Limits::Default)]);
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows.len(), 2 + Contender::ALL.len());
        assert_eq!(rows[4], "| default | BYOM | 6.2 (10.0, 2.5) | 3.1 (5.0, 1.2) | 250.0 | 1.0 | 1.0 | 1.0 | 1.0 |");
        assert!(rows.iter().all(|row| row.matches('|').count() == rows[0].matches('|').count()), "{text}");
        let text = singles(&[sample::pass(Limits::Raised)]);
        assert!(text.ends_with("| raised | managed | 20.0 | 20.0 | 30.0 | 3.3 | 3.3 | 3.3 | 3.3 |\n"), "{text}");
    }

    #[test]
    fn requests_have_a_column_for_each_way_and_a_total() {
        let text = requests(&sample::pass(Limits::Default));
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows[0], "| request | BYOM, burst | BYOM, one at a time | managed, burst | managed, one at a time |");
        assert_eq!(rows[2], "| create pods | 2.00 |  | 2.00 |  |");
        assert_eq!(rows[3], "| get pods → 404 | 0.50 |  | 0.50 |  |");
        assert_eq!(rows[4], "| **all** | **2.50** | **0.00** | **2.50** | **0.00** |");
    }

    #[test]
    fn the_section_says_that_a_run_is_small_and_leaves_no_placeholder() {
        let small = super::super::sample();
        let text = section(&Recorded::now("dev", small.clone()));
        assert!(text.contains("**A small run:** bursts of 10 computers, not 300; "), "{text}");
        assert!(text.contains("0.50 before and 2.00 after the default limits"), "{text}");
        assert!(text.contains("| default | 50 | 40 |"), "{text}");
        let placeholder = ["ORIGIN", "COMPUTERS", "ROUNDS", "LIVES", "LOAD", "SMALLER"];
        assert!(!placeholder.iter().any(|word| text.contains(word)), "{text}");
        let options = Options { computers: 300, rounds: 3, limits: Vec::new(), build: Build::Release, ..small.options };
        assert!(!section(&Recorded::now("release", Lifecycle { options, passes: Vec::new() })).contains("small run"));
    }
}
