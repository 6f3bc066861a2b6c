//! Limits one reconcile, by requests and by time, so that other computers are reconciled too. Each time a reconcile exceeds them, they are
//! doubled for its next run, up to a maximum, so that one that must read very much (a hundred pods on record), or has a very slow API
//! server, completes too.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// Requests of a reconcile. A computer's whole life usually needs fewer.
const REQUESTS: usize = 60;
/// After this time a reconcile starts no further request.
const TIME: Duration = Duration::from_secs(60);
/// At most 16 times as much.
const DOUBLINGS: u32 = 4;

/// By UID: how many consecutive reconciles exceeded their limits.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<String, u32>>);

/// The limits of one reconcile.
#[derive(Debug)]
pub struct Turn {
    requests: usize,
    ends: Instant,
}

impl Turn {
    /// Whether the limits are reached after this many requests.
    pub fn over(&self, made: usize) -> bool {
        made >= self.requests || Instant::now() >= self.ends
    }
}

impl Turns {
    fn all(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.0.lock()
    }

    /// Starts a reconcile.
    pub fn begin(&self, uid: &str) -> Turn {
        let factor = 1 << self.all().get(uid).copied().unwrap_or(0);
        Turn { requests: REQUESTS * factor as usize, ends: Instant::now() + TIME * factor }
    }

    /// The reconcile exceeded its limits.
    pub fn ran_out(&self, uid: &str) {
        let mut all = self.all();
        let times = all.entry(uid.to_owned()).or_default();
        *times = (*times + 1).min(DOUBLINGS);
    }

    /// Whether the last reconcile exceeded its limits.
    pub fn exceeded(&self, uid: &str) -> bool {
        self.all().contains_key(uid)
    }

    /// The reconcile ended within its limits, or the computer is gone.
    pub fn reset(&self, uid: &str) {
        self.all().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reconcile_that_exceeds_its_limits_has_more_the_next_time_up_to_a_bound() {
        let turns = Turns::default();
        let turn = turns.begin("a");
        assert!(!turn.over(59) && turn.over(60));
        tokio::time::advance(TIME).await;
        assert!(turn.over(0));
        (0..100).for_each(|_| turns.ran_out("a"));
        let turn = turns.begin("a");
        assert!(!turn.over(959) && turn.over(960));
        assert!(turns.exceeded("a"));
        turns.reset("a");
        assert!(!turns.exceeded("a") && turns.begin("a").over(60));
    }
}
