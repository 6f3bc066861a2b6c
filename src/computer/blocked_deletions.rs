//! Deletions that are blocked: how many, by what, how often, and for how long. The alert on blocked deletions relies on it, so an entry
//! must be removed whenever the deletion is no longer blocked, and never by a reconcile that failed or was interrupted.
//!
//! Each step decides whether it is blocked (`State::Blocked` in `step.rs`); here they are only counted.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::report::Report;
use crate::resources::steps::CurrentStep;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Blocked {
    step: &'static str,
    reason: &'static str,
}

/// The metrics, and what blocks each UID since when.
#[derive(Default)]
pub struct BlockedDeletions {
    blocked: Family<Blocked, Gauge>,
    blocks: Family<Blocked, Counter>,
    longest: Gauge<f64, AtomicU64>,
    of: Mutex<HashMap<String, (Blocked, Instant)>>,
}

impl BlockedDeletions {
    /// Registers the metrics.
    pub fn add_to(&self, registry: &mut Registry) {
        registry.register(
            "deletions_blocked",
            "Deletions that are blocked until something outside changes, by step and reason",
            self.blocked.clone(),
        );
        registry.register("deletion_blocks", "How often a deletion became blocked, by step and reason", self.blocks.clone());
        let longest = "How long the deletion that is blocked the longest has been blocked, 0 if none is";
        registry.register("deletion_blocked_longest_seconds", longest, self.longest.clone());
    }

    /// Notes what blocks a deletion; `None`: nothing does. `already` is how long its condition has said so, if it does.
    pub fn set(&self, uid: &str, report: Option<&Report>, already: Duration) {
        let blocker = report.and_then(|r| r.blocker.as_ref().map(|b| (r, b)));
        let now = blocker.map(|(r, b)| Blocked { step: r.current.map_or("", CurrentStep::id), reason: b.reason.as_str() });
        let mut all = self.of.lock();
        let before = all.remove(uid);
        let began = Instant::now();
        let since = before.as_ref().map_or_else(|| began.checked_sub(already).unwrap_or(began), |(_, since)| *since);
        if let Some(now) = &now {
            all.insert(uid.to_owned(), (now.clone(), since));
        }
        let before = before.map(|(blocked, _)| blocked);
        if before == now {
            return;
        }
        if let Some(before) = before {
            self.blocked.get_or_create(&before).dec();
        }
        if let Some(now) = now {
            self.blocked.get_or_create(&now).inc();
            self.blocks.get_or_create(&now).inc();
        }
    }

    /// Whether a deletion is noted as blocked at this step.
    pub fn is_at(&self, uid: &str, step: CurrentStep) -> bool {
        let all = self.of.lock();
        all.get(uid).is_some_and(|(blocked, _)| blocked.step == step.id())
    }

    /// This process no longer reconciles: the next leader counts what is blocked.
    pub fn forget_all(&self) {
        let mut all = self.of.lock();
        for (_, (before, _)) in all.drain() {
            self.blocked.get_or_create(&before).dec();
        }
    }

    /// Measures. Called for each scrape.
    pub fn measure(&self) {
        let all = self.of.lock();
        self.longest.set(all.values().map(|(_, since)| since.elapsed().as_secs_f64()).fold(0.0, f64::max));
    }

    /// The blocked deletions.
    #[cfg(test)]
    pub fn remembered(&self) -> String {
        format!("{:?}", self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::computer::report::Blocker;
    use crate::resources::reasons::Reason;

    fn by(reason: Reason) -> Report {
        Report { blocker: Some(Blocker { reason, message: String::new() }), ..Report::default() }
    }

    fn longest(all: &BlockedDeletions) -> f64 {
        all.measure();
        all.longest.get()
    }

    /// An operator that restarts, or another reason, must not make an old problem look new.
    #[tokio::test(start_paused = true)]
    async fn the_longest_counts_from_the_condition_and_through_every_reason() {
        let all = BlockedDeletions::default();
        tokio::time::advance(Duration::from_secs(7200)).await;
        all.set("a", Some(&by(Reason::PodHeld)), Duration::from_secs(3600));
        all.set("b", Some(&by(Reason::PodHeld)), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(60)).await;
        all.set("a", Some(&by(Reason::VolumeAttached)), Duration::ZERO);
        assert!((longest(&all) - 3660.0).abs() < 1.0, "{}", longest(&all));
        all.set("a", None, Duration::ZERO);
        assert!((longest(&all) - 60.0).abs() < 1.0, "{}", longest(&all));
        let times = |reason: Reason| all.blocks.get_or_create(&Blocked { step: "", reason: reason.as_str() }).get();
        assert_eq!((times(Reason::PodHeld), times(Reason::VolumeAttached)), (2, 1));
        all.forget_all();
        assert!(longest(&all).abs() < 1.0);
    }
}
