//! Counts how long deletions have waited while nothing worked on their archive. `BestEffort` uses the sum before it gives up the sessions.
//!
//! It uses only the monotonic clock of a running operator, from one reconcile to the next, and never counts more than [`INTERVAL`]: time in
//! which an operator was down or frozen, or by which a clock was set forward, must never count. The record keeps the sum for the next process
//! (`Deletion::waited_seconds`).

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// The maximum that counts between two reconciles. A waiting deletion is reconciled more often.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// A deletion that is not reconciled any more is dropped after this time.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// How long a deletion has waited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// In total, since an object was last stored for it.
    pub total: Duration,
    /// The part that this process has observed itself.
    pub here: Duration,
    /// What the API server answered when it refused the last request.
    pub refused: Option<String>,
}

/// How a reconcile has left a deletion that waits for its archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing works on its archive.
    Waiting,
    /// The API server has refused the next request, with this answer. That is no work, either.
    Refused(String),
    /// The archive is being checked. What was refused before may be the next request again.
    Checking,
    /// Something works on its archive.
    Working,
}

/// One deletion.
struct Known {
    waited: Waited,
    /// The last value in its record.
    recorded: Duration,
    /// Since when it waits. `None`: its archive is being worked on.
    since: Option<Instant>,
    asked: Instant,
}

impl Known {
    fn count(&mut self) {
        if let Some(since) = &mut self.since {
            let passed = since.elapsed().min(INTERVAL);
            self.waited.total += passed;
            self.waited.here += passed;
            *since = Instant::now();
        }
    }
}

/// The deletions that wait, by UID.
#[derive(Default)]
pub struct Waits(Mutex<HashMap<String, Known>>);

impl Waits {
    fn locked(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        // No critical section leaves an entry inconsistent.
        self.0.lock()
    }

    /// How long a deletion has waited. `recorded` is the value in its record.
    pub fn waited(&self, uid: &str, recorded: Duration) -> Waited {
        let now = Instant::now();
        let mut all = self.locked();
        // Only a new deletion adds an entry. Every reconcile would look at those of all others.
        if !all.contains_key(uid) {
            all.retain(|_, known| known.asked.elapsed() < FORGOTTEN);
        }
        let begin = || Known { waited: Waited { total: recorded, ..Waited::default() }, recorded, since: None, asked: now };
        let known = all.entry(uid.to_owned()).or_insert_with(begin);
        known.asked = now;
        known.count();
        if recorded < known.recorded {
            // Another process has observed progress.
            known.waited = Waited { total: recorded, ..Waited::default() };
        }
        known.recorded = recorded;
        known.waited.clone()
    }

    /// How a reconcile has left a deletion that was asked about.
    pub fn note(&self, uid: &str, left: Left) {
        if let Some(known) = self.locked().get_mut(uid) {
            known.count();
            known.since = matches!(left, Left::Waiting | Left::Refused(_)).then(Instant::now);
            known.waited.refused = match left {
                Left::Refused(answer) => Some(answer),
                Left::Checking => known.waited.refused.take(),
                Left::Waiting | Left::Working => None,
            };
        }
    }

    /// An object was stored for a deletion: the wait restarts.
    pub fn stored(&self, uid: &str) {
        if let Some(known) = self.locked().get_mut(uid) {
            known.waited = Waited::default();
            known.since = known.since.map(|_| Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// Reconciles every `every` seconds that find it waiting.
    async fn waits(waits: &Waits, passes: u32, every: u64) {
        for _ in 0..passes {
            waits.note("u", Left::Waiting);
            tokio::time::sleep(seconds(every)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_time_between_reconciles_that_found_it_waiting_counts() {
        let all = Waits::default();
        assert_eq!(all.waited("u", seconds(100)), Waited { total: seconds(100), ..Waited::default() }, "the value in the record");
        tokio::time::sleep(seconds(500)).await;
        assert_eq!(all.waited("u", seconds(100)).total, seconds(100), "no reconcile has found it waiting");
        waits(&all, 4, 30).await;
        all.note("u", Left::Working);
        tokio::time::sleep(seconds(900)).await;
        assert_eq!(all.waited("u", seconds(100)), Waited { total: seconds(220), here: seconds(120), refused: None });
    }

    /// Found by the simulator: each check of the archive between two refusals made the deletion forget that it is refused.
    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_known_until_the_request_is_made() {
        let all = Waits::default();
        let refused = || all.waited("u", Duration::ZERO).refused;
        assert_eq!(refused(), None);
        all.note("u", Left::Refused("exceeded quota".to_owned()));
        tokio::time::sleep(seconds(30)).await;
        all.note("u", Left::Checking);
        tokio::time::sleep(seconds(30)).await;
        assert_eq!(refused().as_deref(), Some("exceeded quota"));
        assert_eq!(all.waited("u", Duration::ZERO).total, seconds(30), "a check is work");
        all.note("u", Left::Waiting);
        assert_eq!(refused(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_frozen_has_waited_for_one_interval() {
        let all = Waits::default();
        all.waited("u", Duration::ZERO);
        waits(&all, 1, 3000).await;
        assert_eq!(all.waited("u", Duration::ZERO).total, INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stored_object_restarts_the_wait_in_every_process() {
        let all = Waits::default();
        all.waited("u", seconds(300));
        waits(&all, 2, 30).await;
        all.stored("u");
        tokio::time::sleep(seconds(10)).await;
        assert_eq!(all.waited("u", seconds(300)), Waited { total: seconds(10), here: seconds(10), refused: None });
        all.waited("v", seconds(300));
        assert_eq!(all.waited("v", seconds(5)).total, seconds(5), "the record of another process");
        all.stored("nobody");
        assert_eq!(all.locked().len(), 2, "only deletions that are reconciled are kept");
    }
}
