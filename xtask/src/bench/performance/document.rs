//! The whole document. Pure: figures in, Markdown out.

use super::goal::{Bound, Goal};
use super::{All, real_node};
use crate::bench::lifecycle::{document as life, goals};
use crate::bench::scale::document as scale;

const NONE: &str = "Not measured yet.\n";

/// The whole document.
pub fn document(all: &All) -> String {
    let life = all.lifecycle.as_ref().map_or_else(|| NONE.to_owned(), life::section);
    let many = all.scale.as_ref().map_or_else(|| NONE.to_owned(), scale::section);
    let node = all.deletions.as_ref().map_or_else(|| NONE.to_owned(), real_node::section);
    format!(
        "{}\n## Goals\n\n{}\n## A life\n\n{life}\n## Many computers\n\n{many}\n## A deletion on a real node\n\n{node}",
        include_str!("introduction.md"),
        table(all)
    )
}

/// The table of all goals.
fn table(all: &All) -> String {
    let passes = all.lifecycle.as_ref().map(|lifecycle| lifecycle.figures.passes.as_slice()).unwrap_or_default();
    let mut text = String::from(
        "The floor of managed computers is pods with claims, that of BYOM computers bare pods.\n\n\
         | | floor, this run | measured | goal | met | when the goal was set |\n\
         |---|---|---|---|---|---|\n",
    );
    text.extend(goals::all(passes).iter().map(Goal::row));
    text.extend(others(all).iter().map(Goal::row));
    text + "| `cargo xtask demo` on a fresh machine | | not measured here | ≤ 20 CPU minutes | not measured | 39 CPU minutes |\n"
}

/// Goals whose figures come from other measurements.
fn others(all: &All) -> Vec<Goal> {
    let goal = |what: &str, unit, before, bound, measured| Goal { what: what.to_owned(), unit, before, bound, floor: None, measured };
    let scale = all.scale.as_ref().map(|scale| &scale.figures).filter(|scale| scale.computers >= scale::WHOLE);
    let http = all.http.as_ref().map(|http| http.figures);
    let life = all.life.as_ref().map(|life| f64::from(u32::try_from(life.figures.requests).unwrap_or(u32::MAX)));
    let deletions = all.deletions.as_ref().and_then(|deletions| deletions.figures.beside_the_grace());
    let memory = Bound::AtMost(scale::MEMORY);
    let requests = "requests of the operator for a managed life, with an archive, S3's live reads included";
    let http_goal = Bound::Times(2.5, "the API server");
    let delete =
        goal("HTTP DELETE with 100 in flight, p50 (`cargo xtask bench http`)", " ms", "745 ms", http_goal, http.map(|http| http.ours));
    vec![
        goal(requests, "", "", Bound::AtMost(34.0), life),
        goal("real node, tiny home, delete→gone, beside the pod's own grace", " s", "19 to 22 s", Bound::AtMost(5.0), deletions),
        goal(
            "memory of the operator with 10,000 BYOM computers, after the burst",
            " MB",
            "190 MB",
            memory,
            scale.map(|s| s.burst.megabytes()),
        ),
        goal("the same after a restart", " MB", "106 MB", memory, scale.map(|scale| scale.restart.memory.megabytes())),
        Goal { floor: http.map(|http| http.api_server), ..delete },
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Recorded;
    use super::*;
    use crate::bench::http::Deletes;
    use crate::bench::performance::real_node::Life;
    use crate::bench::{lifecycle, scale};

    fn row<'a>(text: &'a str, what: &str) -> &'a str {
        text.lines().find(|line| line.starts_with(&format!("| {what}"))).unwrap()
    }

    #[test]
    fn a_part_that_was_not_measured_says_so() {
        let text = document(&All::default());
        assert_eq!(text.matches(NONE).count(), 3);
        assert!(!text.contains("| yes |") && !text.contains("**no**"), "{text}");
        let text = document(&All { lifecycle: Some(Recorded::now("release", lifecycle::sample())), ..All::default() });
        assert_eq!(text.matches(NONE).count(), 2);
        assert!(row(&text, "API-server CPU").contains("**no**"), "{text}");
    }

    #[test]
    fn the_goals_take_the_figures_of_all_measurements() {
        let all = All {
            scale: Some(Recorded::now("release", scale::sample(10_000))),
            http: Some(Recorded::now("release", Deletes { api_server: 200.0, ours: 501.0 })),
            deletions: Some(Recorded::now("image", real_node::sample())),
            life: Some(Recorded::now("image", Life { requests: 34 })),
            ..All::default()
        };
        let text = document(&all);
        assert!(row(&text, "memory of the operator").contains("| 120.0 MB | ≤ 100 MB | **no** |"), "{text}");
        assert!(row(&text, "the same after a restart").contains("| 100.0 MB | ≤ 100 MB | yes |"), "{text}");
        assert!(row(&text, "HTTP DELETE").contains("| 200.0 ms | 501.0 ms | ≤ 2.5 × the API server | **no** |"), "{text}");
        assert!(row(&text, "real node").contains("| 4.5 s | ≤ 5 s | yes |"), "{text}");
        assert!(row(&text, "requests of the operator for a managed life").contains("| 34.0 | ≤ 34 | yes |"), "{text}");
        let small = All { scale: Some(Recorded::now("release", scale::sample(1000))), ..all };
        assert!(row(&document(&small), "memory of the operator").contains("| not measured | ≤ 100 MB | not measured |"));
    }
}
