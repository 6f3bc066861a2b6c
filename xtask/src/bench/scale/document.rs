//! The section with the figures of many computers. Pure: figures in, Markdown out.

use std::fmt::Write as _;
use std::time::Duration;

use super::Scale;
use super::measure::{is_write, may_be_dry};
use crate::bench::lifecycle::figures::{float, median, rate};
use crate::bench::performance::Recorded;
use crate::bench::performance::goal::{Bound, Goal};

/// The number of computers that the goals for memory are for.
pub const WHOLE: usize = 10_000;
/// The goal for the memory of the operator with that many, in millions of bytes.
pub const MEMORY: f64 = 100.0;
/// Seconds until a new leader works: L4 in DESIGN.md.
const TAKEOVER: f64 = 20.0;
/// The 99th percentile of others beside 10 % of computers that cannot be provisioned, in percent of that without them.
const BESIDE_POISON: f64 = 120.0;

const METHOD: &str = include_str!("method.md");

/// The section of the document.
pub fn section(recorded: &Recorded<Scale>) -> String {
    let scale = &recorded.figures;
    let small = if scale.computers < WHOLE {
        format!("\n**A small run:** the goals for memory are for {} computers.\n", thousands(WHOLE))
    } else {
        String::new()
    };
    let introduction = METHOD
        .replace("ORIGIN", &recorded.origin("cargo xtask bench scale"))
        .replace("COMPUTERS", &thousands(scale.computers))
        .replace("CROWD", &thousands(scale.namespace.computers))
        .replace("OTHERS", &scale.poison.others.to_string())
        .replace("REFUSED", &scale.poison.poison.to_string())
        .replace("ROUNDS", &scale.poison.with.len().to_string())
        .replace("BEFORE", &scale.load.0)
        .replace("AFTER", &scale.load.1)
        .replace("SMALL", &small);
    let rows: String = rows(scale).iter().map(Goal::short_row).collect();
    format!("{introduction}\n| | measured | goal | met |\n|---|---|---|---|\n{rows}\n{}", requests(scale))
}

fn rows(scale: &Scale) -> Vec<Goal> {
    let Scale { computers, empty, burst, idle, restart, namespace, poison, .. } = scale;
    let goal = |what: String, unit, bound, measured| Goal { what, unit, before: "", bound, floor: None, measured };
    let free = |what: String, unit, measured: f64| goal(what, unit, Bound::Free, Some(measured));
    let at_most = |what: &str, unit, limit, measured: f64| goal(what.to_owned(), unit, Bound::AtMost(limit), Some(measured));
    let memory = |what: &str, measured| {
        let bound = if *computers >= WHOLE { Bound::AtMost(MEMORY) } else { Bound::Free };
        goal(format!("memory of the operator {what}"), " MB", bound, Some(measured))
    };
    let each = |megabytes: f64| (megabytes - empty.megabytes()) * 1e3 / float(*computers);
    let all = thousands(*computers);
    let removed = format!("a namespace with {} computers is deleted", thousands(namespace.computers));
    vec![
        free("memory of the operator without computers, a new process".into(), " MB", empty.megabytes()),
        memory(&format!("after the burst of {all}"), burst.megabytes()),
        free("its peak".into(), " MB", burst.peak_megabytes()),
        memory(&format!("{} s later", scale.idle_seconds), idle.megabytes()),
        memory("after a restart", restart.memory.megabytes()),
        free("its peak".into(), " MB", restart.memory.peak_megabytes()),
        free("memory for each computer after the burst".into(), " kB", each(burst.megabytes())),
        free("memory for each computer after a restart".into(), " kB", each(restart.memory.megabytes())),
        free(format!("burst of {all}: create→ready"), "/s", rate(*computers, scale.created)),
        free("restart: until `/readyz` succeeds".into(), " s", restart.ready.as_secs_f64()),
        free("restart: until all have been reconciled".into(), " s", restart.reconciled.as_secs_f64()),
        at_most("restart: writes", "", 0.0, writes(scale)),
        at_most("the leader stops: a new computer is ready after", " s", TAKEOVER, scale.stopped.as_secs_f64()),
        at_most("the leader is killed: a new computer is ready after", " s", TAKEOVER, scale.killed.as_secs_f64()),
        free(format!("{removed}: the computers are gone after"), " s", namespace.gone.as_secs_f64()),
        free(format!("{removed}: it is gone after"), " s", namespace.namespace.as_secs_f64()),
        free("p99 of create→ready, managed, without refused computers".into(), " s", middle(&poison.without)),
        free("p99 of create→ready, managed, beside 10 % of refused computers".into(), " s", middle(&poison.with)),
        at_most("the second beside the first", " %", BESIDE_POISON, 100.0 * middle(&poison.with) / middle(&poison.without)),
    ]
}

fn middle(times: &[Duration]) -> f64 {
    median(times.iter().map(Duration::as_secs_f64).collect()).unwrap_or_default()
}

/// What the restart has changed: the operator's own writes, and the pods and Secrets that it may also have sent as dry runs.
fn writes(scale: &Scale) -> f64 {
    let all = scale.restart.requests.0.iter().filter(|(request, _)| is_write(request));
    let all = scale.restart.written + all.map(|(_, count)| count).sum::<u64>();
    float(usize::try_from(all).unwrap_or(usize::MAX))
}

/// What the restarted operator has sent.
fn requests(scale: &Scale) -> String {
    let mut text = String::from(
        "Requests of the restarted operator until it was idle, without watches and the lease. Dry runs check that the Secrets of keys exist,\n\
         and what the pods of classes are; the API server's metric says whether all of these were dry runs.\n\n| request | number |\n|---|---|\n",
    );
    for (request, count) in &scale.restart.requests.0 {
        let note = if may_be_dry(request) && scale.restart.written == 0 { " (dry run)" } else { "" };
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {request}{note} | {count} |");
    }
    text
}

/// A number with a comma after its thousands.
fn thousands(number: usize) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", thousands(number / 1000), number % 1000) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bench::lifecycle::figures::sample::usage;
    use crate::bench::scale::sample;

    fn text(scale: Scale) -> String {
        section(&Recorded::now("release", scale))
    }

    #[test]
    fn every_row_has_its_goal_and_says_whether_it_is_met() {
        let text = text(sample(10_000));
        for row in [
            "| memory of the operator without computers, a new process | 20.0 MB |  |  |",
            "| memory of the operator after the burst of 10,000 | 120.0 MB | ≤ 100 MB | **no** |",
            "| memory of the operator 60 s later | 110.0 MB | ≤ 100 MB | **no** |",
            "| memory of the operator after a restart | 100.0 MB | ≤ 100 MB | yes |",
            "| memory for each computer after the burst | 10.0 kB |  |  |",
            "| memory for each computer after a restart | 8.0 kB |  |  |",
            "| burst of 10,000: create→ready | 100.0/s |  |  |",
            "| restart: until all have been reconciled | 8.0 s |  |  |",
            "| restart: writes | 0.0 | ≤ 0 | yes |",
            "| the leader stops: a new computer is ready after | 3.0 s | ≤ 20 s | yes |",
            "| the leader is killed: a new computer is ready after | 21.0 s | ≤ 20 s | **no** |",
            "| a namespace with 1,000 computers is deleted: it is gone after | 12.0 s |  |  |",
            "| p99 of create→ready, managed, without refused computers | 11.0 s |  |  |",
            "| the second beside the first | 118.2 % | ≤ 120 % | yes |",
            "| delete secrets (dry run) | 7 |",
            "| list pods | 3 |",
        ] {
            assert!(text.lines().any(|line| line == row), "{row}\n{text}");
        }
    }

    #[test]
    fn a_write_of_a_restart_fails_its_goal() {
        let mut scale = sample(10_000);
        scale.restart.requests = usage(0, &[("patch", "computers/status", "", 2), ("create", "events", "403", 1)]).requests;
        assert!(text(scale).contains("| restart: writes | 3.0 | ≤ 0 | **no** |"));
        let mut scale = sample(10_000);
        scale.restart.written = 1;
        let text = text(scale);
        assert!(text.contains("| restart: writes | 1.0 | ≤ 0 | **no** |") && !text.contains("(dry run)"), "{text}");
    }

    #[test]
    fn a_small_run_says_so_and_leaves_no_placeholder() {
        let small = text(sample(1000));
        assert!(small.contains("**A small run:** the goals for memory are for 10,000 computers."), "{small}");
        assert!(small.contains("| memory of the operator after the burst of 1,000 | 120.0 MB |  |  |"), "{small}");
        assert!(!text(sample(10_000)).contains("small run"));
        for word in ["ORIGIN", "COMPUTERS", "CROWD", "OTHERS", "REFUSED", "ROUNDS", "BEFORE", "AFTER", "SMALL"] {
            assert!(!small.contains(word), "{word}\n{small}");
        }
    }

    #[test]
    fn numbers_have_a_comma_after_their_thousands() {
        assert_eq!([7, 1000, 10_050, 1_000_000].map(thousands), ["7", "1,000", "10,050", "1,000,000"]);
    }
}
