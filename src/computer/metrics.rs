//! Prometheus metrics of the operator. Blocked deletions are counted in `blocked_deletions`, computers and records in `fleet`. Labels
//! must be bounded: steps, reasons and classes, never names or UIDs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::blocked_deletions::BlockedDeletions;
use super::fleet::Fleet;
use super::provisioning_times::ProvisioningTimes;
use super::report::{Next, Plan};
use crate::archive::removal::figures;
use crate::archive::store::Space;
use crate::archive::store::leftovers::LEFTOVERS;
use crate::archive::store_failure::STORE_ERRORS;
use crate::archive::turns::{REFUSALS, WAITS};
use crate::resources::steps::{DeletionStep, Sequence};
use crate::resources::{ComputerRecord, Deletion, Phase};
use crate::runtime::caches::Caches;
use crate::runtime::client::ErrorClass;
use crate::runtime::queue::PANICS;
use crate::runtime::request_metrics::REQUESTS;

/// Deletions that are remembered as counted: a stale cache may show the end of one twice.
const REMEMBERED: usize = 1024;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    path: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StepLabel {
    step: &'static str,
}

/// A metric that does not exist until it is set.
type NoLabels = [(&'static str, &'static str); 0];

/// All metrics of the operator.
pub struct Metrics {
    registry: Registry,
    reconciles: Family<Outcome, Counter>,
    reconcile_seconds: Histogram,
    blocked: BlockedDeletions,
    provisioning: ProvisioningTimes,
    fleet: Fleet,
    deletions: Histogram,
    steps: Family<StepLabel, Histogram, fn() -> Histogram>,
    orphans: Family<Kind, Gauge>,
    leader: Gauge,
    store_not_retained: Gauge,
    store_usable: Gauge,
    store_free: Family<NoLabels, Gauge>,
    store_size: Family<NoLabels, Gauge>,
    archived: Counter,
    archived_sessions: Counter,
    counted: Mutex<VecDeque<String>>,
    scrape: Mutex<()>,
}

/// Measures a reconcile until it is dropped. See [`Metrics::time`].
#[must_use = "a reconcile is measured until this is dropped"]
pub struct ReconcileTimer<'a> {
    histogram: &'a Histogram,
    began: Instant,
}

impl Drop for ReconcileTimer<'_> {
    fn drop(&mut self) {
        self.histogram.observe(self.began.elapsed().as_secs_f64());
    }
}

/// From a tenth of a second to about an hour: a deletion is a request or two, or a store that is down.
fn deletion_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.1, 2.0, 16))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything under `computer_operator_`.
    pub fn new() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("computer_operator"),
            reconciles: Family::default(),
            reconcile_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            blocked: BlockedDeletions::default(),
            provisioning: ProvisioningTimes::default(),
            fleet: Fleet::default(),
            deletions: deletion_buckets(),
            steps: Family::new_with_constructor(deletion_buckets),
            orphans: Family::default(),
            leader: Gauge::default(),
            store_not_retained: Gauge::default(),
            store_usable: Gauge::default(),
            store_free: Family::default(),
            store_size: Family::default(),
            archived: Counter::default(),
            archived_sessions: Counter::default(),
            counted: Mutex::default(),
            scrape: Mutex::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("reconcile", "Reconciles by path (provision, delete) and outcome", self.reconciles.clone());
        registry.register("reconcile_duration_seconds", "Duration of a reconcile, including its requests", self.reconcile_seconds.clone());
        self.blocked.add_to(registry);
        self.provisioning.add_to(registry);
        self.fleet.add_to(registry);
        let archived = "Stored, compressed bytes of the archives of completed deletions";
        registry.register_with_unit("archived", archived, Unit::Bytes, self.archived.clone());
        registry.register("archived_sessions", "Sessions in the archives of completed deletions", self.archived_sessions.clone());
        registry.register("deletion_duration_seconds", "From deletedAt to the stored receipt", self.deletions.clone());
        registry.register("deletion_step_duration_seconds", "From the end of the step before to the end of this one", self.steps.clone());
        registry.register("orphans", "Objects with the operator's label that belong to no computer, by kind", self.orphans.clone());
        registry.register(
            "is_leader",
            "Whether this replica reconciles: it holds the lease, or leader election is off",
            self.leader.clone(),
        );
        registry.register(
            "store_volume_not_retained",
            "Whether the volume of the local archive store is not Retain, or could not be checked",
            self.store_not_retained.clone(),
        );
        registry.register(
            "archive_store_usable",
            "Whether the archive store passed the last check of this replica",
            self.store_usable.clone(),
        );
        let free = "Free space of an archive store in a volume, without what is reserved for the system";
        registry.register_with_unit("archive_store_free", free, Unit::Bytes, self.store_free.clone());
        registry.register_with_unit("archive_store_size", "Size of an archive store in a volume", Unit::Bytes, self.store_size.clone());
        registry.register("archive_slot_wait_seconds", "Time that work on archives waited for its turn, by kind of work", WAITS.clone());
        registry.register(
            "archive_slot_refusals",
            "Requests that were refused because too many were waiting, by kind of work",
            REFUSALS.clone(),
        );
        registry.register("archive_store_errors", "Failed requests to the archive store by reason", STORE_ERRORS.clone());
        registry.register("archive_leftovers_removed", "Leftover objects that were removed from the archive store", LEFTOVERS.clone());
        figures::register(registry);
        registry.register("reconcile_panics", "Reconciles that panicked: each one is a bug", PANICS.clone());
        registry.register(
            "api_requests",
            "Requests to the Kubernetes API by verb, resource and code (none: no response)",
            REQUESTS.clone(),
        );
        self
    }

    /// Reports whether the volume of the archive store is `Retain`.
    pub fn set_store_retained(&self, retained: bool) {
        self.store_not_retained.set(i64::from(!retained));
    }

    /// Measures a reconcile until the result is dropped: `let _timer = metrics.time();`.
    pub fn time(&self) -> ReconcileTimer<'_> {
        ReconcileTimer { histogram: &self.reconcile_seconds, began: Instant::now() }
    }

    /// From now on computers, records and deletions are counted in these caches.
    pub fn follow(&self, caches: Caches) {
        self.fleet.follow(Some(caches));
    }

    /// Text exposition.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        // One scrape at a time: another one would count into the gauges that this one writes.
        let _scrape = self.scrape.lock();
        self.fleet.count();
        self.blocked.measure();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts one reconcile and notes what it reports. `blocked_for`: how long the computer's condition has said that it is blocked.
    pub fn observe(&self, uid: &str, plan: &Plan, error: Option<ErrorClass>, record: Option<&ComputerRecord>, blocked_for: Duration) {
        let deleting = plan.report.phase == Some(Phase::Deleting);
        let outcome = match (&plan.next, error) {
            (_, Some(class)) => class.label(),
            (Next::Wait(_), None) if plan.report.blocker.is_some() => "blocked",
            (Next::Wait(_), None) => "waiting",
            (Next::Settled | Next::Finished(_), None) => "settled",
            (Next::Do(_), None) => "yielded",
        };
        self.reconciles.get_or_create(&Outcome { path: if deleting { "delete" } else { "provision" }, outcome }).inc();
        let now = Some(&plan.report).filter(|report| deleting && report.blocker.is_some());
        // A running archive check, a failed request or a reconcile that did not reach its end does not show that the deletion makes progress:
        // clearing the gauge for that long would reset the alert's timer each time.
        let moved = plan.report.unfinished && plan.report.current.is_some_and(|step| !self.blocked.is_at(uid, step));
        let known = now.is_some() || moved || !(plan.report.checking || plan.report.unfinished || error.is_some());
        if known {
            self.blocked.set(uid, now, blocked_for);
        }
        self.provisioning.note(uid, &plan.report);
        if matches!(plan.next, Next::Finished(_)) && error.is_none() {
            self.finished(uid, record);
        }
    }

    /// The computer is gone, or nothing is left to do for it: its deletion is not blocked.
    pub fn forget(&self, uid: &str) {
        self.blocked.set(uid, None, Duration::ZERO);
        self.provisioning.forget(uid);
    }

    /// This process no longer reconciles: the next leader counts.
    pub fn forget_all(&self) {
        self.blocked.forget_all();
        self.provisioning.forget_all();
        self.fleet.follow(None);
    }

    /// What is remembered by UID.
    #[cfg(test)]
    pub fn remembered(&self) -> String {
        format!("{} {}", self.blocked.remembered(), self.provisioning.remembered())
    }

    fn finished(&self, uid: &str, record: Option<&ComputerRecord>) {
        let deletion = record.and_then(|r| r.spec.state.deletion.as_ref());
        let Some((deletion, receipt)) = deletion.and_then(|d| Some((d, d.receipt.as_ref()?))) else { return };
        let mut counted = self.counted.lock();
        if counted.iter().any(|c| c == uid) {
            return;
        }
        counted.push_back(uid.to_owned());
        if counted.len() > REMEMBERED {
            counted.pop_front();
        }
        drop(counted);
        self.deletions.observe(receipt.at.0.duration_since(deletion.deleted_at.0).as_secs_f64());
        for (step, seconds) in step_seconds(deletion) {
            self.steps.get_or_create(&StepLabel { step: step.id() }).observe(seconds);
        }
        if let Some(archive) = &deletion.archive {
            self.archived.inc_by(u64::try_from(archive.bytes).unwrap_or(0));
            self.archived_sessions.inc_by(u64::try_from(archive.sessions).unwrap_or(0));
        }
    }

    /// Objects that the sweeper found.
    pub fn set_orphans(&self, kind: &str, count: usize) {
        self.orphans.get_or_create(&Kind { kind: kind.to_owned() }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Whether the archive store passed its last check, and its space if it is a volume.
    pub fn set_store(&self, usable: bool, space: Option<Space>) {
        self.store_usable.set(i64::from(usable));
        let Some(space) = space.filter(|space| space.size > 0) else {
            self.store_free.remove(&[]);
            self.store_size.remove(&[]);
            return;
        };
        let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.store_free.get_or_create(&[]).set(bytes(space.free));
        self.store_size.get_or_create(&[]).set(bytes(space.size));
    }

    /// Whether this replica leads.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }
}

/// How long each step took. They end in their order, one after the other; the record's times are whole seconds, so that times that
/// are equal say nothing about which came first.
fn step_seconds(deletion: &Deletion) -> Vec<(DeletionStep, f64)> {
    let mut before = deletion.deleted_at.0;
    let mut all = Vec::with_capacity(DeletionStep::ALL.len());
    for step in DeletionStep::ALL {
        let Some(at) = deletion.finished_at(*step) else { continue };
        all.push((*step, at.0.duration_since(before).as_secs_f64().max(0.0)));
        before = before.max(at.0);
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::computer::report::{Blocker, Report};
    use crate::resources::reasons::Reason;
    use crate::resources::steps::CurrentStep;

    /// The steps take 0, 1, 2, 0, 1, ... seconds.
    fn released() -> ComputerRecord {
        let at = |seconds: usize| format!("2026-01-01T00:00:{seconds:02}Z");
        let (mut deletion, mut second) = (json!({"deletedAt": at(0), "cause": "ComputerDeleted", "steps": {}}), 0);
        for (i, step) in DeletionStep::ALL.iter().enumerate() {
            second += i % 3;
            if *step == DeletionStep::WriteReceipt {
                deletion["receipt"] = json!({"digest": "d", "at": at(second)});
            } else {
                deletion["steps"][step.id()] = json!({"result": "Verified", "detail": "", "at": at(second)});
            }
        }
        let spec = json!({"namespace": "t", "computer": "c", "state": {"deletion": deletion}});
        serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_deletion_and_its_steps_are_measured_once() {
        let metrics = Metrics::new();
        let plan = Plan { next: Next::Finished(None), report: Report { phase: Some(Phase::Deleting), ..Report::default() } };
        for _ in 0..2 {
            metrics.observe("u", &plan, None, Some(&released()), Duration::ZERO);
        }
        let text = metrics.text().unwrap();
        let whole: usize = (0..DeletionStep::ALL.len()).map(|i| i % 3).sum();
        assert!(text.contains(&format!("computer_operator_deletion_duration_seconds_sum {whole}.0")), "{text}");
        for (i, step) in DeletionStep::ALL.iter().enumerate() {
            let sum = format!("computer_operator_deletion_step_duration_seconds_sum{{step=\"{}\"}} {}.0", step.id(), i % 3);
            assert!(text.contains(&sum), "{sum}: {text}");
        }
    }

    #[test]
    fn metrics_without_labels_exist_from_the_start() {
        let metrics = Metrics::new();
        drop(metrics.time());
        metrics.set_orphans("Pod", 2);
        metrics.set_leader(true);
        let text = metrics.text().unwrap();
        for line in ["reconcile_duration_seconds_count 1", "deletion_duration_seconds_count 0", "orphans{kind=\"Pod\"} 2", "is_leader 1"] {
            // The whole line: help texts contain the names, too.
            assert!(text.lines().any(|l| l == format!("computer_operator_{line}")), "{line}: {text}");
        }
    }

    #[test]
    fn a_blocked_deletion_is_counted_once_until_it_makes_progress() {
        let metrics = Metrics::new();
        let blocker = Some(Blocker { reason: Reason::StoreUnavailable, message: String::new() });
        let report = Report {
            phase: Some(Phase::Deleting),
            current: Some(CurrentStep::Deletion(DeletionStep::ArchiveSessions)),
            blocker,
            ..Report::default()
        };
        let mut plan = Plan { next: Next::Wait(Duration::from_secs(1)), report };
        metrics.observe("a", &plan, None, None, Duration::ZERO);
        metrics.observe("a", &plan, None, None, Duration::ZERO);
        let line = "deletions_blocked{step=\"archive-sessions\",reason=\"StoreUnavailable\"}";
        assert!(metrics.text().unwrap().contains(&format!("{line} 1")));
        plan.report.blocker = None;
        metrics.observe("a", &plan, None, None, Duration::ZERO);
        assert!(metrics.text().unwrap().contains(&format!("{line} 0")));
    }

    /// C9: the alert on a blocked deletion resolved when a read before the plan failed. B2: it fired forever when the computer was gone.
    #[test]
    fn a_failed_reconcile_leaves_a_blocked_deletion_counted_until_its_end() {
        let metrics = Metrics::new();
        let blocker = Some(Blocker { reason: Reason::ComputerHeld, message: String::new() });
        let report = Report { phase: Some(Phase::Deleting), current: Some(CurrentStep::Release), blocker, ..Report::default() };
        let held = Plan { next: Next::Finished(None), report };
        let count = |n| assert!(metrics.text().unwrap().contains(&format!("{{step=\"release\",reason=\"ComputerHeld\"}} {n}")), "{n}");
        metrics.observe("a", &held, None, None, Duration::ZERO);
        metrics.observe("b", &held, None, None, Duration::ZERO);
        count(2);
        metrics.observe("a", &Plan { next: Next::Settled, report: Report::default() }, Some(ErrorClass::Forbidden), None, Duration::ZERO);
        count(2);
        metrics.forget("a");
        metrics.forget("a");
        count(1);
        metrics.forget_all();
        count(0);
    }
}
