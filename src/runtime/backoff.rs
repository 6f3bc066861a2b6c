//! Backoff of failures, keyed by UID: full jitter below a bound that doubles from 1 s to 5 min. A computer re-created under the
//! same name starts afresh, and no computer's failures slow another one (L3). Nothing is kept for a UID that does not fail.
//! [`WatchBackoff`] is that of a watch. Both get their randomness from a seed, so that a simulation can be run again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::sources::Sources;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// Full jitter may come to nothing; nobody is tried again sooner than this.
const SHORTEST: Duration = Duration::from_millis(100);

/// Failures in a row of each UID.
#[derive(Debug)]
pub struct Backoff(Mutex<State>);

#[derive(Debug)]
struct State {
    failures: HashMap<String, u32>,
    random: StdRng,
}

impl Backoff {
    /// The jitter is the same for the same seed.
    pub fn with_seed(seed: u64) -> Self {
        Self(Mutex::new(State { failures: HashMap::new(), random: StdRng::seed_from_u64(seed) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A count and a generator are whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more failure: how long to wait.
    pub fn next(&self, uid: &str) -> Duration {
        let mut state = self.state();
        let jitter = state.random.random();
        let failures = state.failures.entry(uid.to_owned()).or_default();
        *failures = failures.saturating_add(1);
        delay(*failures, jitter)
    }

    /// A success, or the computer is gone: forgotten.
    pub fn reset(&self, uid: &str) {
        self.state().failures.remove(uid);
    }

    /// UIDs that have failed since their last success.
    pub fn len(&self) -> usize {
        self.state().failures.len()
    }

    /// Whether nothing fails.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Pure: anywhere below the bound, which doubles with every failure. Full jitter takes a crowd that failed together (a store or an
/// API server that was down) apart the most.
fn delay(failures: u32, jitter: f64) -> Duration {
    let bound = FIRST.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16))).min(LONGEST);
    bound.mul_f64(jitter.clamp(0.0, 1.0)).max(SHORTEST)
}

/// Backoff of one watch, with the figures of kube's own: from 0.8 s to 30 s, jitter on top, fresh after every event.
#[derive(Debug)]
pub struct WatchBackoff {
    failures: u32,
    random: StdRng,
}

impl WatchBackoff {
    const FIRST: Duration = Duration::from_millis(800);
    const LONGEST: Duration = Duration::from_secs(30);

    /// The jitter is the same for the same randomness.
    pub fn new(sources: &Sources) -> Self {
        Self { failures: 0, random: StdRng::seed_from_u64(u64::from_le_bytes(sources.bytes())) }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let bound = Self::FIRST.saturating_mul(2_u32.saturating_pow(self.failures.min(16))).min(Self::LONGEST);
        self.failures = self.failures.saturating_add(1);
        Some(bound.mul_f64(1.0 + self.random.random::<f64>()))
    }
}

impl kube::runtime::utils::Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bound_doubles_from_a_second_to_five_minutes() {
        for (failures, bound) in [(0, 1), (1, 1), (2, 2), (4, 8), (9, 256), (10, 300), (u32::MAX, 300)] {
            assert_eq!(delay(failures, 1.0), Duration::from_secs(bound), "{failures}");
            assert_eq!(delay(failures, 0.5), Duration::from_secs(bound) / 2, "{failures}");
            assert_eq!(delay(failures, 0.0), SHORTEST, "{failures}");
        }
    }

    #[test]
    fn a_uid_starts_again_after_a_success_and_slows_no_other() {
        let backoff = Backoff::with_seed(7);
        let worst = (0..40).map(|_| backoff.next("a")).max().unwrap();
        assert!(worst > LONGEST / 2, "{worst:?}");
        assert!(backoff.next("b") <= FIRST, "another UID is not slowed");
        backoff.reset("a");
        assert!(backoff.next("a") <= FIRST);
        backoff.reset("a");
        backoff.reset("b");
        assert!(backoff.is_empty(), "nothing is kept of what works or is gone");
    }

    #[test]
    fn a_crowd_that_failed_together_does_not_come_back_together() {
        let backoff = Backoff::with_seed(1);
        for i in 0..1000 {
            (0..4).for_each(|_| {
                backoff.next(&i.to_string());
            });
        }
        // The fifth failure is spread over 16 s: about 62 come back in each second.
        let mut seconds = [0_u32; 16];
        (0..1000).for_each(|i| seconds[usize::try_from(backoff.next(&i.to_string()).as_secs()).unwrap().min(15)] += 1);
        assert!(seconds.iter().all(|n| (30..=110).contains(n)), "{seconds:?}");
    }

    proptest! {
        #[test]
        fn the_same_seed_gives_the_same_waits_and_all_are_within_bounds(seed: u64, failures in 1_usize..64) {
            let run = || { let b = Backoff::with_seed(seed); (0..failures).map(|_| b.next("a")).collect::<Vec<_>>() };
            let waits = run();
            prop_assert_eq!(&waits, &run());
            prop_assert!(waits.iter().all(|w| (SHORTEST..=LONGEST).contains(w)));
        }
    }

    #[test]
    fn a_watch_that_cannot_be_opened_is_tried_less_and_less_often_and_at_once_after_it_has_worked() {
        let mut backoff = WatchBackoff::new(&Sources::new(jiff::Timestamp::now, |bytes| bytes.fill(7)));
        let first = backoff.next().unwrap();
        assert!((WatchBackoff::FIRST..=2 * WatchBackoff::FIRST).contains(&first), "{first:?}");
        let worst = (0..40).filter_map(|_| backoff.next()).max().unwrap();
        assert!((WatchBackoff::LONGEST..=2 * WatchBackoff::LONGEST).contains(&worst), "{worst:?}");
        kube::runtime::utils::Backoff::reset(&mut backoff);
        assert!(backoff.next().unwrap() <= 2 * WatchBackoff::FIRST);
    }
}
