//! Statuses that are not written yet. A status that only shows progress is held for half a second: most are replaced by then, and a write of a
//! status is the most expensive request of a life (issue 15). What needs the attention of a user is never held: see `status::is_progress`.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::report::Report;

/// How long a status that only shows progress is held.
pub const HOLD: Duration = Duration::from_millis(500);

/// What is held of each UID.
#[derive(Debug, Default)]
pub struct HeldStatus(Mutex<HashMap<String, Held>>);

#[derive(Debug)]
struct Held {
    /// Since when the status is behind.
    since: Instant,
    /// The newest report.
    report: Report,
    /// The time of its reconcile, so that the status shows when a step really began and ended.
    at: Timestamp,
}

impl HeldStatus {
    /// Holds the report of a reconcile in place of an earlier one. `false`: the status has been behind for long enough, so it must be written
    /// now.
    pub fn hold(&self, uid: &str, report: &Report, at: Timestamp) -> bool {
        let mut all = self.0.lock();
        let since = all.get(uid).map_or_else(Instant::now, |held| held.since);
        all.insert(uid.to_owned(), Held { since, report: report.clone(), at });
        since.elapsed() < HOLD
    }

    /// In how long the held status must be written. `None`: none is held.
    pub fn left(&self, uid: &str) -> Option<Duration> {
        self.0.lock().get(uid).map(|held| HOLD.saturating_sub(held.since.elapsed()))
    }

    /// The held report and its time, if it must be written now.
    pub fn due(&self, uid: &str) -> Option<(Report, Timestamp)> {
        self.0.lock().get(uid).filter(|held| held.since.elapsed() >= HOLD).map(|held| (held.report.clone(), held.at))
    }

    /// Nothing is held any more: the status was written, or the computer is gone.
    pub fn forget(&self, uid: &str) {
        self.0.lock().remove(uid);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::resources::Phase;

    #[tokio::test(start_paused = true)]
    async fn the_newest_report_is_held_and_its_time_counts_from_the_first() {
        let held = HeldStatus::default();
        let report = |phase| Report { phase: Some(phase), ..Report::default() };
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(held.hold("u", &report(Phase::Provisioning), at(1)));
        tokio::time::advance(HOLD / 2).await;
        assert!(held.hold("u", &report(Phase::Deleting), at(2)) && held.due("u").is_none());
        assert_eq!((held.left("u"), held.left("another")), (Some(HOLD / 2), None));
        tokio::time::advance(HOLD / 2).await;
        assert_eq!(held.due("u"), Some((report(Phase::Deleting), at(2))));
        assert!(!held.hold("u", &report(Phase::Deleting), at(3)), "a step that changes often is shown twice a second");
        held.forget("u");
        assert_eq!((held.due("u"), held.left("u")), (None, None));
        assert!(held.hold("u", &report(Phase::Deleting), at(3)), "after a write it begins again");
    }
}
