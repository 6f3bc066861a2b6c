//! Backoff of failures, keyed by UID: full jitter below a bound that doubles from 1 s to 5 min. A computer that is created again under the
//! same name starts without one, and the failures of one computer never delay another (L3). Nothing is kept for a UID without failures. A caller may lower
//! the bound ([`Backoff::failed_up_to`]): `computer/reconcile.rs` does for refused requests.
//!
//! A watch event ends a pause early only if what the caller observes has changed ([`Backoff::left`]). Without that rule, a status that
//! quotes an error text with a changing part (a port, a duration, a request id) would queue the next reconcile as soon as it is written,
//! and the backoff would never take effect (L6).
//!
//! [`WatchBackoff`] is the backoff of a watch. Both take their randomness from a seed, so that a simulation can be repeated. Own code: kube's
//! `DefaultBackoff` has the same bounds but no seed, and backon's seeded one would need the same two trait implementations and a dependency.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::time_and_random::Sources;

/// Consecutive conflicts that count as lost races: another client changed the object first, and its event queues the next reconcile. More
/// of them are not races: something answers 409 to every request, which must be reported.
pub const LOST_RACES: u32 = 4;

const FIRST: Duration = Duration::from_secs(1);
/// Minimum wait: full jitter may be close to zero.
const SHORTEST: Duration = Duration::from_millis(100);

/// Failures in a row of each UID.
#[derive(Debug)]
pub struct Backoff(Mutex<State>);

#[derive(Debug)]
struct State {
    failures: HashMap<String, Failing>,
    random: StdRng,
}

#[derive(Debug)]
struct Failing {
    count: u32,
    /// The end of the pause.
    until: Instant,
    /// Digest of what the last failed attempt was based on.
    seen: u64,
}

impl Backoff {
    /// The longest pause.
    pub const LONGEST: Duration = Duration::from_secs(300);

    /// The jitter is the same for the same seed.
    pub fn with_seed(seed: u64) -> Self {
        Self(Mutex::new(State { failures: HashMap::new(), random: StdRng::seed_from_u64(seed) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A count and a generator are whole at any time.
        self.0.lock()
    }

    /// One more failure: how long to wait. `seen` is a digest of what the failed attempt was based on, for [`Backoff::left`].
    /// `at_least` is the wait that the server asked for (`Retry-After`); it is bounded, too.
    pub fn failed(&self, uid: &str, seen: u64, at_least: Option<Duration>) -> Duration {
        self.failed_up_to(Self::LONGEST, uid, seen, at_least)
    }

    /// The same with a smaller bound.
    pub fn failed_up_to(&self, longest: Duration, uid: &str, seen: u64, at_least: Option<Duration>) -> Duration {
        let mut state = self.state();
        let jitter = state.random.random();
        let count = state.failures.get(uid).map_or(1, |f| f.count.saturating_add(1));
        let wait = delay(count, jitter, longest).max(at_least.unwrap_or_default().min(longest));
        state.failures.insert(uid.to_owned(), Failing { count, until: Instant::now() + wait, seen });
        wait
    }

    /// The rest of the pause, as long as nothing has changed since the failure. `None`: retry now.
    pub fn left(&self, uid: &str, seen: u64) -> Option<Duration> {
        let state = self.state();
        let failing = state.failures.get(uid).filter(|f| f.seen == seen)?;
        Some(failing.until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    /// Ends the pause: what the attempt waits for has happened, and no digest shows it (the archive store has answered). The failures
    /// still count.
    pub fn wake(&self, uid: &str) {
        if let Some(failing) = self.state().failures.get_mut(uid) {
            failing.until = Instant::now();
        }
    }

    /// Failures in a row.
    pub fn count(&self, uid: &str) -> u32 {
        self.state().failures.get(uid).map_or(0, |f| f.count)
    }

    /// Forgets the UID: a success, or the computer is gone.
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

/// Pure: a random wait below the bound, which doubles with every failure. Full jitter spreads the retries of many computers that failed
/// together (a store or an API server that was down) most evenly.
fn delay(failures: u32, jitter: f64, longest: Duration) -> Duration {
    let bound = FIRST.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16))).min(longest);
    bound.mul_f64(jitter.clamp(0.0, 1.0)).max(SHORTEST)
}

/// Backoff of one watch, with the bounds of kube's own: from 0.8 s to 30 s plus jitter, reset by every event.
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

    /// After an admin has granted a right or raised a quota, a deletion waited for up to five minutes.
    #[test]
    fn a_smaller_bound_holds_after_any_number_of_failures() {
        let backoff = Backoff::with_seed(7);
        let bound = Duration::from_secs(60);
        let worst = (0..200).map(|_| backoff.failed_up_to(bound, "u", 0, None)).max().unwrap();
        assert!((bound / 2..=bound).contains(&worst), "{worst:?}");
        assert_eq!(backoff.failed_up_to(bound, "u", 0, Some(Duration::from_secs(300))), bound, "the server asks for more");
    }

    #[test]
    fn the_bound_doubles_from_a_second_to_five_minutes() {
        for (failures, bound) in [(0, 1), (1, 1), (2, 2), (4, 8), (9, 256), (10, 300), (u32::MAX, 300)] {
            assert_eq!(delay(failures, 1.0, Backoff::LONGEST), Duration::from_secs(bound), "{failures}");
            assert_eq!(delay(failures, 0.5, Backoff::LONGEST), Duration::from_secs(bound) / 2, "{failures}");
            assert_eq!(delay(failures, 0.0, Backoff::LONGEST), SHORTEST, "{failures}");
        }
    }

    #[test]
    fn a_uid_starts_again_after_a_success_and_slows_no_other() {
        let backoff = Backoff::with_seed(7);
        let worst = (0..40).map(|_| backoff.failed("a", 0, None)).max().unwrap();
        assert!(worst > Backoff::LONGEST / 2, "{worst:?}");
        assert!(backoff.failed("b", 0, None) <= FIRST, "another UID is not slowed");
        backoff.reset("a");
        assert!(backoff.failed("a", 0, None) <= FIRST);
        backoff.reset("a");
        backoff.reset("b");
        assert!(backoff.is_empty(), "nothing is kept of what works or is gone");
    }

    /// An event during the pause does not shorten it unless something has changed since the failure.
    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_early_only_when_something_has_changed() {
        let backoff = Backoff::with_seed(3);
        let wait = (0..6).map(|_| backoff.failed("a", 7, None)).last().unwrap();
        assert_eq!((backoff.left("a", 7), backoff.count("a")), (Some(wait), 6));
        assert_eq!((backoff.left("a", 8), backoff.left("b", 7)), (None, None));
        tokio::time::advance(wait).await;
        assert_eq!(backoff.left("a", 7), None, "the pause is over");
        while backoff.failed("a", 7, None) < Duration::from_secs(2) {}
        let failures = backoff.count("a");
        backoff.wake("a");
        assert_eq!((backoff.left("a", 7), backoff.count("a")), (None, failures), "the failures still count");
        backoff.wake("unknown");
        assert_eq!(backoff.failed("b", 0, Some(Duration::from_secs(20))), Duration::from_secs(20), "as long as the server asks for");
        assert_eq!(backoff.failed("b", 0, Some(Duration::from_secs(86_400))), Backoff::LONGEST);
    }

    #[test]
    fn a_crowd_that_failed_together_does_not_come_back_together() {
        let backoff = Backoff::with_seed(1);
        for i in 0..1000 {
            (0..4).for_each(|_| {
                backoff.failed(&i.to_string(), 0, None);
            });
        }
        // The fifth failure is spread over 16 s: about 62 come back in each second.
        let mut seconds = [0_u32; 16];
        (0..1000).for_each(|i| seconds[usize::try_from(backoff.failed(&i.to_string(), 0, None).as_secs()).unwrap().min(15)] += 1);
        assert!(seconds.iter().all(|n| (30..=110).contains(n)), "{seconds:?}");
    }

    proptest! {
        #[test]
        fn the_same_seed_gives_the_same_waits_and_all_are_within_bounds(seed: u64, failures in 1_usize..64) {
            let run = || { let b = Backoff::with_seed(seed); (0..failures).map(|_| b.failed("a", 0, None)).collect::<Vec<_>>() };
            let waits = run();
            prop_assert_eq!(&waits, &run());
            prop_assert!(waits.iter().all(|w| (SHORTEST..=Backoff::LONGEST).contains(w)));
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
