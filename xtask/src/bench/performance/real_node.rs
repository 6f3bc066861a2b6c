//! Figures that the scenarios of `tests/real_cluster` measure on a real node, with real archives. Pure: figures in, text out.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::{Figures, Recorded};
use crate::bench::lifecycle::figures::median;

/// What is observed when the machine's pod is gone.
pub const MACHINE_GONE: &str = "machine gone";
/// What is observed at the end.
pub const RELEASED: &str = "released";

/// One deletion: what was first observed after how many seconds, in this order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deletion(pub Vec<(String, f64)>);

impl Deletion {
    fn at(&self, what: &str) -> Option<f64> {
        self.0.iter().find(|(name, _)| name == what).map(|(_, seconds)| *seconds)
    }

    /// Seconds from when the machine's pod was gone, which has its own grace, until the computer was.
    fn beside_the_grace(&self) -> Option<f64> {
        Some(self.at(RELEASED)? - self.at(MACHINE_GONE)?)
    }
}

/// Deletions of computers with a tiny home, one after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deletions(pub Vec<Deletion>);

impl Figures for Deletions {
    const FILE: &'static str = "real-node-deletions";
}

/// Requests of the operator for one managed life whose sessions are archived, watches and the lease left out.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Life {
    /// All of them.
    pub requests: u64,
}

impl Figures for Life {
    const FILE: &'static str = "real-node-requests";
}

impl Deletions {
    /// Median seconds beside the grace of the machine's pod.
    pub fn beside_the_grace(&self) -> Option<f64> {
        median(self.0.iter().filter_map(Deletion::beside_the_grace).collect())
    }
}

/// The section with the parts of the deletions.
pub fn section(deletions: &Recorded<Deletions>) -> String {
    let all = &deletions.figures.0;
    let origin = deletions.origin(&format!("{}=docs/performance cargo test --test real_cluster -- no_resync", super::FOLDER));
    let mut text = format!(
        "{origin} {} deletions of a computer with a tiny home, one after the other, whose sessions are archived. Seconds from the DELETE until each object\n         was first observed in this state, by requests every 50 ms.\n\n| observed | median, s | each, s |\n|---|---|---|\n",
        all.len()
    );
    let names = all.first().map(|first| first.0.iter().map(|(name, _)| name)).into_iter().flatten();
    for name in names {
        let times: Vec<f64> = all.iter().filter_map(|deletion| deletion.at(name)).collect();
        let each: Vec<String> = times.iter().map(|time| format!("{time:.1}")).collect();
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {name} | {:.1} | {} |", median(times).unwrap_or_default(), each.join(", "));
    }
    text
}

/// Made-up deletions.
#[cfg(test)]
pub fn sample() -> Deletions {
    let one = |gone: f64, released: f64| Deletion(vec![(MACHINE_GONE.into(), gone), (RELEASED.into(), released)]);
    Deletions(vec![one(1.0, 4.0), one(2.0, 9.0), one(0.5, 5.0)])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_grace_of_the_pod_is_left_out() {
        assert_eq!(sample().beside_the_grace(), Some(4.5));
        assert_eq!(
            Deletions(vec![Deletion(vec![(RELEASED.into(), 4.0)])]).beside_the_grace(),
            None,
            "the pod was never observed to be gone"
        );
        let text = section(&Recorded::now("image", sample()));
        assert!(text.ends_with("| machine gone | 1.0 | 1.0, 2.0, 0.5 |\n| released | 5.0 | 4.0, 9.0, 5.0 |\n"), "{text}");
    }
}
