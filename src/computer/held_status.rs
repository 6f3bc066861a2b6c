//! Statuses that are not written yet. A status that only shows progress is held for a moment: most are replaced by then, and a write of a status is
//! the most expensive request of a life (issue 15 asks for at most five in a healthy one; with an archive six were seen). What needs the attention of a user is never held: see
//! `status::is_progress`.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::report::Report;

/// How long the first status of a creation or a deletion is held: longer than most steps take.
pub const FIRST: Duration = Duration::from_millis(500);
/// How long the next ones are held: progress is written once in this time at most, and a step that is shorter may not be shown.
pub const NEXT: Duration = Duration::from_secs(10);
/// How long after a write a status is one of the next ones.
const AFTER: Duration = Duration::from_secs(60);

/// What is held of each UID.
#[derive(Debug, Default)]
pub struct HeldStatus(Mutex<HashMap<String, State>>);

#[derive(Debug)]
enum State {
    /// The status is behind.
    Held {
        /// When it must be written.
        due: Instant,
        /// The newest report.
        report: Box<Report>,
        /// The time of its reconcile, so that the status shows when a step really began and ended.
        at: Timestamp,
    },
    /// Progress was written at this time.
    Written(Instant),
}

impl HeldStatus {
    /// Holds the report of a reconcile in place of an earlier one. `false`: the status has been behind for long enough, so it must be written
    /// now.
    pub fn hold(&self, uid: &str, report: &Report, at: Timestamp) -> bool {
        let mut all = self.0.lock();
        let due = match all.get(uid) {
            Some(State::Held { due, .. }) => *due,
            Some(State::Written(last)) if last.elapsed() < AFTER => Instant::now() + NEXT,
            _ => Instant::now() + FIRST,
        };
        all.insert(uid.to_owned(), State::Held { due, report: Box::new(report.clone()), at });
        due > Instant::now()
    }

    /// In how long the held status must be written. `None`: none is held.
    pub fn left(&self, uid: &str) -> Option<Duration> {
        match self.0.lock().get(uid)? {
            State::Held { due, .. } => Some(due.saturating_duration_since(Instant::now())),
            State::Written(_) => None,
        }
    }

    /// The held report and its time, if it must be written now.
    pub fn due(&self, uid: &str) -> Option<(Report, Timestamp)> {
        match self.0.lock().get(uid)? {
            State::Held { due, report, at } if *due <= Instant::now() => Some(((**report).clone(), *at)),
            _ => None,
        }
    }

    /// Progress is written: nothing is held any more.
    pub fn note_written(&self, uid: &str) {
        self.0.lock().insert(uid.to_owned(), State::Written(Instant::now()));
    }

    /// The status is up to date without a write, or shows something else than progress, or the computer is gone.
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
        tokio::time::advance(FIRST / 2).await;
        assert!(held.hold("u", &report(Phase::Deleting), at(2)) && held.due("u").is_none());
        assert_eq!((held.left("u"), held.left("another")), (Some(FIRST / 2), None));
        tokio::time::advance(FIRST / 2).await;
        assert_eq!(held.due("u"), Some((report(Phase::Deleting), at(2))));
        assert!(!held.hold("u", &report(Phase::Deleting), at(3)), "a step that changes often is shown, too");
        held.note_written("u");
        assert_eq!((held.due("u"), held.left("u")), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_after_a_write_is_held_for_longer() {
        let (held, at) = (HeldStatus::default(), Timestamp::UNIX_EPOCH);
        held.note_written("u");
        assert!(held.hold("u", &Report::default(), at));
        assert_eq!(held.left("u"), Some(NEXT));
        held.note_written("u");
        tokio::time::advance(AFTER).await;
        assert!(held.hold("u", &Report::default(), at));
        assert_eq!(held.left("u"), Some(FIRST), "another deletion, or a step that has lasted");
        held.forget("u");
        assert!(held.left("u").is_none() && held.hold("u", &Report::default(), at));
        assert_eq!(held.left("u"), Some(FIRST));
    }
}
