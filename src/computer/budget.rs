//! How much one pass may do before other computers get their turn: a number of requests and a time. A pass that did not end within that
//! gets twice as much the next time, so that one with very much to read (a hundred pods on record) or a very slow API server ends, too.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Requests of a pass; a whole life needs fewer.
const REQUESTS: usize = 60;
/// Time of a pass, beyond which it begins no further request.
const TIME: Duration = Duration::from_secs(60);
/// At most 16 times as much.
const DOUBLINGS: u32 = 4;

/// By UID: how often in a row a pass did not end within its turn.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<String, u32>>);

/// What one pass may use up.
#[derive(Debug)]
pub struct Turn {
    requests: usize,
    ends: Instant,
}

impl Turn {
    /// Whether one more request may begin after so many.
    pub fn over(&self, made: usize) -> bool {
        made >= self.requests || Instant::now() >= self.ends
    }
}

impl Turns {
    fn all(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        // A count is consistent whenever the lock is free.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pass begins.
    pub fn begin(&self, uid: &str) -> Turn {
        let factor = 1 << self.all().get(uid).copied().unwrap_or(0);
        Turn { requests: REQUESTS * factor as usize, ends: Instant::now() + TIME * factor }
    }

    /// It did not end within its turn.
    pub fn ran_out(&self, uid: &str) {
        let mut all = self.all();
        let times = all.entry(uid.to_owned()).or_default();
        *times = (*times + 1).min(DOUBLINGS);
    }

    /// It ended, or the computer is gone.
    pub fn reset(&self, uid: &str) {
        self.all().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pass_that_does_not_end_gets_more_the_next_time_and_never_without_bound() {
        let turns = Turns::default();
        let turn = turns.begin("a");
        assert!(!turn.over(59) && turn.over(60));
        tokio::time::advance(TIME).await;
        assert!(turn.over(0));
        (0..100).for_each(|_| turns.ran_out("a"));
        let turn = turns.begin("a");
        assert!(!turn.over(959) && turn.over(960));
        turns.reset("a");
        assert!(turns.begin("a").over(60));
    }
}
