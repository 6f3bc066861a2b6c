//! Backoff of failures, keyed by UID: 1 s to 5 min, doubled each time, with full jitter. A computer re-created under the same
//! name starts afresh, and no computer's failures slow another one (L3).

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use rand::Rng;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// Failures in a row of each UID.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<HashMap<String, u32>>);

impl Backoff {
    /// One more failure: how long to wait.
    pub fn next(&self, uid: &str) -> Duration {
        let failures = self.0.lock().map_or(1, |mut all| {
            let count = all.entry(uid.to_owned()).or_default();
            *count = count.saturating_add(1);
            *count
        });
        delay(failures, rand::rng().random())
    }

    /// A success.
    pub fn reset(&self, uid: &str) {
        if let Ok(mut all) = self.0.lock() {
            all.remove(uid);
        }
    }
}

/// Between half of the bound and the bound, which doubles with every failure.
fn delay(failures: u32, jitter: f64) -> Duration {
    let bound = FIRST.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16))).min(LONGEST);
    bound.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_five_minutes_and_starts_again_after_a_success() {
        assert_eq!(delay(1, 1.0), Duration::from_secs(1));
        assert_eq!(delay(4, 1.0), Duration::from_secs(8));
        assert_eq!(delay(4, 0.0), Duration::from_secs(4));
        assert_eq!(delay(u32::MAX, 1.0), LONGEST);
        let backoff = Backoff::default();
        (0..20).for_each(|_| {
            backoff.next("a");
        });
        assert!(backoff.next("a") >= LONGEST / 2);
        assert!(backoff.next("b") <= Duration::from_secs(1), "another UID is not slowed");
        backoff.reset("a");
        assert!(backoff.next("a") <= Duration::from_secs(1));
    }
}
