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

/// What is measured for a goal, and in which unit.
#[derive(Clone, Copy, Debug)]
enum Figure {
    ApiServer,
    Requests,
    Created,
    Deleted,
    DeletedAlone,
}

impl Figure {
    fn of(self, line: &Line) -> Option<f64> {
        match self {
            Self::ApiServer => line.cpu(How::Burst, Program::ApiServer),
            Self::Requests => (!line.bursts.is_empty()).then(|| total(&line.requests(How::Burst))),
            Self::Created => median(line.created()),
            Self::Deleted => median(line.deleted()),
            Self::DeletedAlone => line.alone_deleted(),
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::ApiServer | Self::DeletedAlone => " ms",
            Self::Requests => "",
            Self::Created | Self::Deleted => "/s",
        }
    }

    /// Whether a bare client has this figure.
    const fn has_floor(self) -> bool {
        !matches!(self, Self::Requests)
    }
}

/// What, the figure when the goal was set, who, under which limits, the figure, and what it must be.
type Row = (&'static str, &'static str, Contender, Limits, Figure, Bound);

const MEASURED: [Row; 9] = {
    use Bound::{AtLeast, AtMost, OfFloor};
    use Contender::{Byom, Managed};
    use Figure::{ApiServer, Created, Deleted, DeletedAlone, Requests};
    use Limits::{Default, Raised};
    [
        ("API-server CPU for each managed life", "260 ms", Managed, Default, ApiServer, AtMost(120.0)),
        ("requests of the operator for each managed life, without an archive", "about 46", Managed, Default, Requests, AtMost(24.0)),
        ("burst, managed, default limits: create→ready", "6.0–6.3/s", Managed, Default, Created, OfFloor(0.95)),
        ("burst, managed, default limits: delete→gone", "8.4–9.2/s", Managed, Default, Deleted, OfFloor(0.95)),
        ("burst, managed, raised limits: create→ready", "11/s", Managed, Raised, Created, AtLeast(20.0)),
        ("burst, managed, raised limits: delete→gone", "11.5/s", Managed, Raised, Deleted, AtLeast(28.0)),
        ("burst, BYOM, default limits: create→ready", "60–64/s", Byom, Default, Created, AtLeast(75.0)),
        ("burst, BYOM, default limits: delete→gone", "71–76/s", Byom, Default, Deleted, AtLeast(100.0)),
        ("one deletion alone, managed", "190 ms", Managed, Default, DeletedAlone, AtMost(80.0)),
    ]
};

/// The row's goal with the figures of these passes.
fn goal(passes: &[Pass], row: Row) -> Goal {
    let (what, before, contender, limits, figure, bound) = row;
    let pass = passes.iter().find(|pass| pass.limits == limits);
    let of = |contender| pass?.line(contender).and_then(|line| figure.of(line));
    let floor = figure.has_floor().then(|| of(contender.floor())).flatten();
    Goal { what, unit: figure.unit(), before, bound, floor, measured: of(contender) }
}

/// The table of all goals.
pub fn table(passes: &[Pass]) -> String {
    let mut text = String::from(
        "| | floor, this run | measured | goal | met | when the goal was set |\n\
         |---|---|---|---|---|---|\n",
    );
    text.extend(MEASURED.iter().map(|row| goal(passes, *row).row()));
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
        assert_eq!(text.lines().count(), 2 + MEASURED.len() + ELSEWHERE.len());
    }
}
