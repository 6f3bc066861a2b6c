//! Gauges of everything there is: computers, deletions in progress, records. They are counted in the caches when Prometheus asks, so they
//! need no bookkeeping and cannot drift. Only the leader has caches: a standby exposes none of them, and a sum counts each object once.
//!
//! Labels are bounded: a tenant can name any class, so a class that does not exist has the label `unknown`.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

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
        *self.caches.lock().unwrap_or_else(PoisonError::into_inner) = caches;
    }

    /// Counts. Called for each scrape.
    pub fn count(&self) {
        let caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
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
