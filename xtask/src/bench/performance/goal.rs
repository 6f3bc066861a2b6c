//! A goal with what was measured: whether it is met is computed, never written by hand. Pure.

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Not more.
    AtMost(f64),
    /// Not less.
    AtLeast(f64),
    /// At least this part of the floor's figure.
    OfFloor(f64),
    /// At most that many times the figure of what it is compared with, which has this name.
    Times(f64, &'static str),
    /// Anything.
    Free,
}

/// One goal with what was measured.
#[derive(Clone, Debug)]
pub struct Goal {
    /// What is measured.
    pub what: String,
    /// The unit, with a blank before it if it needs one.
    pub unit: &'static str,
    /// The figure when the goal was set.
    pub before: &'static str,
    /// The goal.
    pub bound: Bound,
    /// The figure that it is compared with.
    pub floor: Option<f64>,
    /// The figure.
    pub measured: Option<f64>,
}

impl Goal {
    /// The value that the figure is compared with.
    fn limit(&self) -> Option<f64> {
        match self.bound {
            Bound::AtMost(limit) | Bound::AtLeast(limit) => Some(limit),
            Bound::OfFloor(part) | Bound::Times(part, _) => self.floor.map(|floor| part * floor),
            Bound::Free => None,
        }
    }

    /// `None`: it was not measured, or there is no goal.
    pub fn met(&self) -> Option<bool> {
        let (measured, limit) = self.measured.zip(self.limit())?;
        Some(if matches!(self.bound, Bound::AtMost(_) | Bound::Times(..)) { measured <= limit } else { measured >= limit })
    }

    fn figure(&self, value: Option<f64>) -> String {
        value.map_or_else(|| "not measured".to_owned(), |value| format!("{value:.1}{}", self.unit))
    }

    fn goal(&self) -> String {
        match self.bound {
            Bound::AtMost(limit) => format!("≤ {limit}{}", self.unit),
            Bound::AtLeast(limit) => format!("≥ {limit}{}", self.unit),
            Bound::OfFloor(part) => format!("≥ {part} of the floor"),
            Bound::Times(times, other) => format!("≤ {times} × {other}"),
            Bound::Free => String::new(),
        }
    }

    fn answer(&self) -> &'static str {
        match self.met() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None if self.bound == Bound::Free => "",
            None => "not measured",
        }
    }

    /// A row of the table of all goals: what, the floor, the figure, the goal, whether it is met, the figure before.
    pub fn row(&self) -> String {
        let floor = self.floor.map(|floor| self.figure(Some(floor))).unwrap_or_default();
        format!("| {} | {floor} | {} | {} | {} | {} |\n", self.what, self.figure(self.measured), self.goal(), self.answer(), self.before)
    }

    /// A row of a table without a floor: what, the figure, the goal, whether it is met.
    pub fn short_row(&self) -> String {
        format!("| {} | {} | {} | {} |\n", self.what, self.figure(self.measured), self.goal(), self.answer())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_by_its_figure_only() {
        let goal = |bound, measured| Goal { what: "x".into(), unit: "/s", before: "1/s", bound, floor: Some(10.0), measured };
        assert_eq!(goal(Bound::AtMost(5.0), Some(5.0)).met(), Some(true));
        assert_eq!(goal(Bound::AtMost(5.0), Some(5.1)).met(), Some(false));
        assert_eq!(goal(Bound::AtLeast(5.0), Some(4.9)).met(), Some(false));
        assert_eq!(goal(Bound::OfFloor(0.95), Some(9.5)).met(), Some(true));
        assert_eq!(goal(Bound::OfFloor(0.95), Some(9.4)).met(), Some(false));
        assert_eq!(goal(Bound::Times(2.5, "y"), Some(25.0)).met(), Some(true));
        assert_eq!(goal(Bound::Times(2.5, "y"), Some(25.1)).met(), Some(false));
        assert_eq!(goal(Bound::AtLeast(5.0), None).met(), None, "what was not measured is not met");
        let without = Goal { floor: None, ..goal(Bound::OfFloor(0.95), Some(9.4)) };
        assert_eq!(without.met(), None, "nor what has no floor");
        assert_eq!(goal(Bound::OfFloor(0.95), Some(9.4)).row(), "| x | 10.0/s | 9.4/s | ≥ 0.95 of the floor | **no** | 1/s |\n");
        assert_eq!(goal(Bound::Times(2.5, "y"), None).short_row(), "| x | not measured | ≤ 2.5 × y | not measured |\n");
        assert_eq!(goal(Bound::Free, Some(1.0)).short_row(), "| x | 1.0/s |  |  |\n", "a figure without a goal");
    }
}
