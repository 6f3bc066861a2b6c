//! The goals of a life with the figures of a run. Pure.

use super::Limits;
use super::contender::Contender;
use super::figures::{How, Line, Pass, median, total};
use super::usage::Program;
use crate::bench::performance::goal::{Bound, Goal};

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
    Goal { what: what.to_owned(), unit: figure.unit(), before, bound, floor, measured: of(contender) }
}

/// All of them.
pub fn all(passes: &[Pass]) -> Vec<Goal> {
    MEASURED.iter().map(|row| goal(passes, *row)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::figures::sample;
    use super::*;

    #[test]
    fn every_goal_has_a_row_and_missing_figures_say_so() {
        let text: String = all(&[sample::pass(Limits::Default)]).iter().map(Goal::row).collect();
        let row = |what: &str| text.lines().find(|line| line.contains(what)).unwrap();
        assert!(row("API-server CPU").ends_with("| 200.0 ms | 200.0 ms | ≤ 120 ms | **no** | 260 ms |"), "{text}");
        assert!(row("without an archive").contains("| 2.5 | ≤ 24 | yes |"), "{text}");
        assert!(row("default limits: create→ready").contains("| 5.0/s | 5.0/s | ≥ 0.95 of the floor | yes |"), "{text}");
        assert!(row("raised limits: create→ready").contains("| not measured | ≥ 20/s | not measured |"), "{text}");
        assert!(row("one deletion alone").contains("| 20.0 ms | 20.0 ms | ≤ 80 ms | yes |"), "{text}");
        assert_eq!(text.lines().count(), MEASURED.len());
    }
}
