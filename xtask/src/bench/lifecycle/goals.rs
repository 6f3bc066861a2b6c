//! The goals, and whether a run meets them: computed from the figures, never written by hand. Pure.

use std::fmt::Write as _;

use super::Limits;
use super::contender::Contender;
use super::figures::{How, Line, Pass, median, total};
use super::usage::Program;

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// At least this part of the floor's figure.
    OfFloor(f64),
}

/// One goal with what was measured.
#[derive(Clone, Debug)]
struct Goal {
    what: &'static str,
    unit: &'static str,
    /// The figure when the goal was set.
    before: &'static str,
    bound: Bound,
    floor: Option<f64>,
    measured: Option<f64>,
}

/// Goals that this command does not measure: what, the figure when the goal was set, the goal.
const ELSEWHERE: &[[&str; 3]] = &[
    ["requests of the operator for each managed life, with an archive, S3's live reads included", "", "≤ 34"],
    ["real node, tiny home, delete→gone, beside the pod's own grace", "19 to 22 s", "≤ 5 s"],
    ["memory of the operator with 10,000 BYOM computers, after the burst and after a restart", "190 MB, 106 MB", "≤ 100 MB"],
    ["HTTP DELETE with 100 in flight, p50 (`cargo xtask bench http`)", "745 ms", "≤ 2.5 × the API server"],
    ["`cargo xtask demo` on a fresh machine", "39 CPU minutes", "≤ 20 CPU minutes"],
];

impl Goal {
    /// The value that the figure is compared with.
    fn limit(&self) -> Option<f64> {
        match self.bound {
            Bound::AtMost(limit) | Bound::AtLeast(limit) => Some(limit),
            Bound::OfFloor(part) => self.floor.map(|floor| part * floor),
        }
    }

    /// `None`: it was not measured.
    fn met(&self) -> Option<bool> {
        let (measured, limit) = self.measured.zip(self.limit())?;
        Some(if matches!(self.bound, Bound::AtMost(_)) { measured <= limit } else { measured >= limit })
    }

    fn row(&self) -> String {
        let figure = |value: Option<f64>| value.map_or_else(|| "not measured".to_owned(), |value| format!("{value:.1}{}", self.unit));
        let goal = match self.bound {
            Bound::AtMost(limit) => format!("≤ {limit}{}", self.unit),
            Bound::AtLeast(limit) => format!("≥ {limit}{}", self.unit),
            Bound::OfFloor(part) => format!("≥ {part} of the floor"),
        };
        let floor = self.floor.map(|floor| figure(Some(floor))).unwrap_or_default();
        let met = self.met().map_or("not measured", |met| if met { "yes" } else { "**no**" });
        format!("| {} | {floor} | {} | {goal} | {met} | {} |\n", self.what, figure(self.measured), self.before)
    }
}

/// A figure of a contender under some limits, if it was measured.
fn of(passes: &[Pass], limits: Limits, contender: Contender, figure: impl Fn(&Line) -> Option<f64>) -> Option<f64> {
    passes.iter().find(|pass| pass.limits == limits)?.line(contender).and_then(figure)
}

fn goals(passes: &[Pass]) -> Vec<Goal> {
    use Contender::{Byom, Managed, Pods, PodsWithClaims};
    use Limits::{Default, Raised};
    let api_server = |line: &Line| line.cpu(How::Burst, Program::ApiServer);
    let requests = |line: &Line| Some(total(&line.requests(How::Burst)));
    let created = |line: &Line| median(line.created());
    let deleted = |line: &Line| median(line.deleted());
    let ms = " ms";
    let row = |what, (unit, before), bound, floor, measured| Goal { what, unit, before, bound, floor, measured };
    let both =
        |limits, floor, ours, figure: &dyn Fn(&Line) -> Option<f64>| (of(passes, limits, floor, figure), of(passes, limits, ours, figure));
    let with = |what, about, bound, (floor, measured)| row(what, about, bound, floor, measured);
    let quick = of(passes, Default, Managed, requests);
    vec![
        with(
            "API-server CPU for each managed life",
            (ms, "260 ms"),
            Bound::AtMost(120.0),
            both(Default, PodsWithClaims, Managed, &api_server),
        ),
        row("requests of the operator for each managed life, without an archive", ("", "about 46"), Bound::AtMost(24.0), None, quick),
        with(
            "burst, managed, default limits: create→ready",
            ("/s", "6.0–6.3/s"),
            Bound::OfFloor(0.95),
            both(Default, PodsWithClaims, Managed, &created),
        ),
        with(
            "burst, managed, default limits: delete→gone",
            ("/s", "8.4–9.2/s"),
            Bound::OfFloor(0.95),
            both(Default, PodsWithClaims, Managed, &deleted),
        ),
        with(
            "burst, managed, raised limits: create→ready",
            ("/s", "11/s"),
            Bound::AtLeast(20.0),
            both(Raised, PodsWithClaims, Managed, &created),
        ),
        with(
            "burst, managed, raised limits: delete→gone",
            ("/s", "11.5/s"),
            Bound::AtLeast(28.0),
            both(Raised, PodsWithClaims, Managed, &deleted),
        ),
        with("burst, BYOM, default limits: create→ready", ("/s", "60–64/s"), Bound::AtLeast(75.0), both(Default, Pods, Byom, &created)),
        with("burst, BYOM, default limits: delete→gone", ("/s", "71–76/s"), Bound::AtLeast(100.0), both(Default, Pods, Byom, &deleted)),
        with(
            "one deletion alone, managed",
            (ms, "190 ms"),
            Bound::AtMost(80.0),
            both(Default, PodsWithClaims, Managed, &Line::alone_deleted),
        ),
    ]
}

/// The table of all goals.
pub fn table(passes: &[Pass]) -> String {
    let mut text = String::from(
        "| | floor, this run | measured | goal | met | when the goal was set |\n\
         |---|---|---|---|---|---|\n",
    );
    text.extend(goals(passes).iter().map(Goal::row));
    for [what, before, goal] in ELSEWHERE {
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {what} | | not measured here | {goal} | not measured | {before} |");
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::figures::sample;
    use super::*;

    #[test]
    fn a_goal_is_met_by_its_figure_only() {
        let goal = |bound, measured| Goal { what: "x", unit: "/s", before: "1/s", bound, floor: Some(10.0), measured };
        assert_eq!(goal(Bound::AtMost(5.0), Some(5.0)).met(), Some(true));
        assert_eq!(goal(Bound::AtMost(5.0), Some(5.1)).met(), Some(false));
        assert_eq!(goal(Bound::AtLeast(5.0), Some(4.9)).met(), Some(false));
        assert_eq!(goal(Bound::OfFloor(0.95), Some(9.5)).met(), Some(true));
        assert_eq!(goal(Bound::OfFloor(0.95), Some(9.4)).met(), Some(false));
        assert_eq!(goal(Bound::AtLeast(5.0), None).met(), None, "what was not measured is not met");
        let without = Goal { floor: None, ..goal(Bound::OfFloor(0.95), Some(9.4)) };
        assert_eq!(without.met(), None, "nor what has no floor");
        assert_eq!(goal(Bound::OfFloor(0.95), Some(9.4)).row(), "| x | 10.0/s | 9.4/s | ≥ 0.95 of the floor | **no** | 1/s |\n");
    }

    #[test]
    fn every_goal_has_a_row_and_missing_figures_say_so() {
        let text = table(&[sample::pass(Limits::Default)]);
        let row = |what: &str| text.lines().find(|line| line.contains(what)).unwrap();
        assert!(row("API-server CPU").ends_with("| 200.0 ms | 200.0 ms | ≤ 120 ms | **no** | 260 ms |"), "{text}");
        assert!(row("without an archive").contains("| 2.5 | ≤ 24 | yes |"), "{text}");
        assert!(row("default limits: create→ready").contains("| 5.0/s | 5.0/s | ≥ 0.95 of the floor | yes |"), "{text}");
        assert!(row("raised limits: create→ready").contains("| not measured | ≥ 20/s | not measured |"), "{text}");
        assert!(row("one deletion alone").contains("| 20.0 ms | 20.0 ms | ≤ 80 ms | yes |"), "{text}");
        assert_eq!(text.lines().count(), 2 + 9 + ELSEWHERE.len());
    }
}
