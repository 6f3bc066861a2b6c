//! Gauges of everything there is: computers, deletions in progress, records. They are counted in the caches when Prometheus asks, so they
//! need no bookkeeping and cannot drift. Only the leader has caches: a standby exposes none of them, and a sum counts each object once.
//!
//! Labels are bounded: a tenant can name any class, so a class that does not exist has the label `unknown`.

use std::collections::HashSet;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::resources::steps::{CurrentStep, DeletionStep, Sequence};
use crate::resources::{Computer, ComputerRecord, Phase, Provider, RecordPhase};
use crate::runtime::caches::Caches;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ComputerLabels {
    phase: &'static str,
    class: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RecordLabels {
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StepLabels {
    step: &'static str,
}

/// The gauges, and the caches that they are counted in.
#[derive(Default)]
pub struct Fleet {
    computers: Family<ComputerLabels, Gauge>,
    records: Family<RecordLabels, Gauge>,
    deletions: Family<StepLabels, Gauge>,
    caches: Mutex<Option<Caches>>,
}

impl Fleet {
    /// Registers the gauges.
    pub fn add_to(&self, registry: &mut Registry) {
        registry.register("computers", "Computers by phase and class, as the leader sees them", self.computers.clone());
        registry.register("records", "ComputerRecords by phase, as the leader sees them", self.records.clone());
        registry.register(
            "deletions_in_progress",
            "Deletions that have begun and not ended, by the step that is next",
            self.deletions.clone(),
        );
    }

    /// From now on the gauges are counted in these caches. `None`: this process does not lead.
    pub fn follow(&self, caches: Option<Caches>) {
        *self.caches.lock() = caches;
    }

    /// Counts. Called for each scrape, one at a time.
    pub fn count(&self) {
        let caches = self.caches.lock();
        let Self { computers, records, deletions, .. } = self;
        computers.clear();
        records.clear();
        deletions.clear();
        let Some(caches) = caches.as_ref() else { return };
        let classes: HashSet<String> = caches.classes.state().iter().filter_map(|class| class.metadata.name.clone()).collect();
        for computer in caches.computers.state() {
            computers.get_or_create(&labels(&computer, &classes)).inc();
        }
        for record in caches.records.state() {
            records.get_or_create(&RecordLabels { phase: record_phase(record.spec.state.phase) }).inc();
            if let Some(step) = next_step(&record) {
                deletions.get_or_create(&StepLabels { step: step.id() }).inc();
            }
        }
    }
}

fn labels(computer: &Computer, classes: &HashSet<String>) -> ComputerLabels {
    let status = computer.status.as_ref();
    let phase = match status.and_then(|s| s.phase) {
        _ if computer.metadata.deletion_timestamp.is_some() => "Deleting",
        Some(Phase::Provisioning) | None => "Provisioning",
        Some(Phase::Active) => "Active",
        Some(Phase::Suspended) => "Suspended",
        Some(Phase::Error) => "Error",
        Some(Phase::Deleting) => "Deleting",
    };
    let class = status.and_then(|s| s.class_name.clone()).or_else(|| computer.spec.class_name.clone()).filter(|c| classes.contains(c));
    // A computer that an agent runs elsewhere has no class.
    let none = if computer.spec.provider == Provider::BYOM { "" } else { "unknown" };
    ComputerLabels { phase, class: class.unwrap_or_else(|| none.to_owned()) }
}

fn record_phase(phase: RecordPhase) -> &'static str {
    match phase {
        RecordPhase::Live => "Live",
        RecordPhase::Deleting => "Deleting",
        RecordPhase::Released => "Released",
    }
}

/// The step that comes next in a deletion that has begun and not ended.
fn next_step(record: &ComputerRecord) -> Option<CurrentStep> {
    let state = &record.spec.state;
    let deletion = state.deletion.as_ref().filter(|_| state.phase != RecordPhase::Released)?;
    let next = DeletionStep::ALL.iter().copied().find(|step| deletion.finished_at(*step).is_none());
    Some(next.map_or(CurrentStep::Release, CurrentStep::Deletion))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(class: Option<&str>, provider: &str, deleting: bool) -> (&'static str, String) {
        let at = deleting.then_some("2026-01-01T00:00:00Z");
        let metadata = json!({"name": "c", "namespace": "t", "deletionTimestamp": at});
        let spec = json!({"provider": provider, "className": class});
        let computer: Computer =
            serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": {"phase": "Active"}})).unwrap();
        let labels = labels(&computer, &HashSet::from(["small".to_owned()]));
        (labels.phase, labels.class)
    }

    /// A tenant chooses the name of the class: each would be a series for as long as the computer exists.
    #[test]
    fn a_class_that_does_not_exist_makes_no_label() {
        assert_eq!(of(Some("small"), "Managed", false), ("Active", "small".to_owned()));
        assert_eq!(of(Some("made-up"), "Managed", false), ("Active", "unknown".to_owned()));
        assert_eq!(of(None, "BYOM", true), ("Deleting", String::new()), "it runs elsewhere and has no class");
    }

    #[test]
    fn a_deletion_is_counted_at_the_step_that_is_next_until_it_is_released() {
        let next = |phase: &str, steps: serde_json::Value| {
            let deletion = json!({"deletedAt": "2026-01-01T00:00:00Z", "cause": "ComputerDeleted", "steps": steps});
            let spec = json!({"namespace": "t", "computer": "c", "state": {"phase": phase, "deletion": deletion}});
            next_step(&serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": spec})).unwrap()).map(CurrentStep::id)
        };
        let done = json!({"result": "Verified", "detail": "", "at": "2026-01-01T00:00:01Z"});
        let all: serde_json::Map<_, _> = DeletionStep::ALL.iter().map(|step| (step.id().to_owned(), done.clone())).collect();
        assert_eq!(next("Deleting", json!({})), Some("revoke-credentials"));
        assert_eq!(next("Deleting", json!({"revoke-credentials": done})), Some("stop-pods"));
        assert_eq!(next("Deleting", json!(all)), Some("release"));
        assert_eq!(next("Released", json!(all)), None);
    }
}
