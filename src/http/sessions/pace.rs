//! Limits how often the keys of a namespace's computers write its sessions. An agent may report after each line that it reads, and every report, change
//! or new session is a write to etcd, which all tenants share. The limit is per replica and per namespace, because that is the tenant of a key.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Writes that a namespace may make at once.
const BURST: f64 = 100.0;
/// Writes per second after that.
const PER_SECOND: f64 = 10.0;
/// Time after which an unused namespace may make all of them again, and is forgotten.
const FULL: Duration = Duration::from_secs(10);
/// Maximum number of namespaces that are remembered, a few MB. If all have written a moment ago, no further one may. Keys belong to computers that exist, so no
/// client can invent namespaces; this is more than a cluster of 10,000 computers has.
const REMEMBERED: usize = 16_384;

/// What each namespace may still write, and since when.
#[derive(Debug, Default)]
pub struct Pace(Mutex<HashMap<String, (f64, Instant)>>);

impl Pace {
    /// Whether the namespace may make one more write now. If so, it is counted.
    pub fn take(&self, namespace: &str) -> bool {
        let now = Instant::now();
        let mut all = self.0.lock();
        if all.len() >= REMEMBERED && !all.contains_key(namespace) {
            all.retain(|_, (_, at)| now.saturating_duration_since(*at) < FULL);
            if all.len() >= REMEMBERED {
                return false;
            }
        }
        let (left, at) = all.entry(namespace.to_owned()).or_insert((BURST, now));
        *left = (*left + now.saturating_duration_since(*at).as_secs_f64() * PER_SECOND).min(BURST);
        *at = now;
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_namespace_has_a_burst_and_a_rate_and_disturbs_no_other() {
        let pace = Pace::default();
        let taken = |namespace: &str| (0..1000).filter(|_| pace.take(namespace)).count();
        assert_eq!((taken("a"), taken("a"), taken("b")), (100, 0, 100));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!((taken("a"), taken("a")), (30, 0));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(taken("a"), 100, "no more than the burst");
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_namespaces_is_bounded() {
        let pace = Pace::default();
        for n in 0..REMEMBERED {
            assert!(pace.take(&n.to_string()));
        }
        assert!(!pace.take("late") && pace.take("0"));
        tokio::time::advance(FULL).await;
        assert!(pace.take("late"));
        assert_eq!(pace.0.lock().len(), 1);
    }
}
