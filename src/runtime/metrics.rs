//! Prometheus figures. Labels are bounded: steps, reasons and classes, never names or UIDs.

use std::collections::HashMap;
use std::sync::Mutex;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::client::ErrorClass;
use crate::computer::plan::{Next, Plan};
use crate::resources::{ComputerRecord, Phase};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    path: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Blocked {
    step: String,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: String,
}

/// All figures of the operator.
pub struct Metrics {
    registry: Registry,
    passes: Family<Outcome, Counter>,
    blocked: Family<Blocked, Gauge>,
    deletions: Histogram,
    orphans: Family<Kind, Gauge>,
    leader: Gauge,
    /// What each UID is blocked by now, so that a gauge goes down again.
    blocked_by: Mutex<HashMap<String, Blocked>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything under `computer_operator_`.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("computer_operator");
        let deletions = Histogram::new(exponential_buckets(0.5, 2.0, 16));
        let metrics = Self {
            passes: Family::default(),
            blocked: Family::default(),
            deletions,
            orphans: Family::default(),
            leader: Gauge::default(),
            blocked_by: Mutex::default(),
            registry: Registry::default(),
        };
        registry.register("reconcile", "Passes by path (provision, delete) and outcome", metrics.passes.clone());
        registry.register(
            "deletions_blocked",
            "Deletions that wait for something that does not come by itself, by step and reason",
            metrics.blocked.clone(),
        );
        registry.register("deletion_duration_seconds", "From deletedAt to the release", metrics.deletions.clone());
        registry.register("orphans", "Objects with our label that no computer answers for, by kind", metrics.orphans.clone());
        registry.register("is_leader", "1 while this replica holds the lease", metrics.leader.clone());
        Self { registry, ..metrics }
    }

    /// Text exposition.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts one pass, and keeps the gauge of blocked deletions.
    pub fn observe_pass(&self, uid: &str, plan: &Plan, error: Option<ErrorClass>, record: Option<&ComputerRecord>) {
        let deleting = plan.report.phase == Some(Phase::Deleting);
        let outcome = match (&plan.next, error) {
            (_, Some(class)) => class.label(),
            (Next::Wait(_), None) if plan.report.blocker.is_some() => "blocked",
            (Next::Wait(_), None) => "waiting",
            (Next::Settled | Next::Finished(_), None) => "settled",
            (Next::Do(_), None) => "yielded",
        };
        self.passes.get_or_create(&Outcome { path: if deleting { "delete" } else { "provision" }, outcome }).inc();
        let blocker = plan.report.blocker.as_ref().filter(|_| deleting);
        let now = blocker.map(|b| Blocked { step: plan.report.current.clone().unwrap_or_default(), reason: b.reason.to_owned() });
        self.set_blocked(uid, now);
        if matches!(plan.next, Next::Finished(_)) && error.is_none() {
            self.finished(record);
        }
    }

    fn set_blocked(&self, uid: &str, now: Option<Blocked>) {
        let Ok(mut all) = self.blocked_by.lock() else { return };
        let before = match &now {
            Some(blocked) => all.insert(uid.to_owned(), blocked.clone()),
            None => all.remove(uid),
        };
        if before == now {
            return;
        }
        if let Some(before) = before {
            self.blocked.get_or_create(&before).dec();
        }
        if let Some(now) = now {
            self.blocked.get_or_create(&now).inc();
        }
    }

    fn finished(&self, record: Option<&ComputerRecord>) {
        let deletion = record.and_then(|r| r.spec.state.deletion.as_ref());
        if let Some((deletion, receipt)) = deletion.and_then(|d| Some((d, d.receipt.as_ref()?))) {
            self.deletions.observe(receipt.at.0.duration_since(deletion.deleted_at.0).as_secs_f64());
        }
    }

    /// Objects that the sweeper found.
    pub fn set_orphans(&self, kind: &str, count: usize) {
        self.orphans.get_or_create(&Kind { kind: kind.to_owned() }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Whether this replica leads.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;
    use crate::computer::plan::{Blocker, Report};
    use std::time::Duration;

    #[test]
    fn a_blocked_deletion_is_counted_once_and_taken_off_when_it_goes_on() {
        let metrics = Metrics::new();
        let blocker = Some(Blocker { reason: "StoreUnavailable", message: String::new() });
        let report = Report { phase: Some(Phase::Deleting), current: Some("archive-sessions".into()), blocker, ..Report::default() };
        let mut plan = Plan { next: Next::Wait(Duration::from_secs(1)), report };
        metrics.observe_pass("a", &plan, None, None);
        metrics.observe_pass("a", &plan, None, None);
        let line = "deletions_blocked{step=\"archive-sessions\",reason=\"StoreUnavailable\"}";
        assert!(metrics.text().expect("text").contains(&format!("{line} 1")));
        plan.report.blocker = None;
        metrics.observe_pass("a", &plan, None, None);
        assert!(metrics.text().expect("text").contains(&format!("{line} 0")));
    }
}
