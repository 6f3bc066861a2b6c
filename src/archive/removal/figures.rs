//! Metrics of removals. They have no labels: a name or a UID must never be one.

use std::sync::LazyLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::archive::store::leftovers::ERASED;

/// Erasures that this process has completed.
pub static ERASURES: LazyLock<Counter> = LazyLock::new(Counter::default);
/// Bytes that they removed.
pub static ERASED_BYTES: LazyLock<Counter> = LazyLock::new(Counter::default);
/// Erasures that are blocked now, if this process leads.
pub static BLOCKED: LazyLock<Gauge> = LazyLock::new(Gauge::default);

/// Registers them.
pub fn register(registry: &mut Registry) {
    registry.register("archive_erasures", "ArchiveErasures that were completed", ERASURES.clone());
    registry.register("archive_erasures_blocked", "ArchiveErasures that are blocked, for example by a hold", BLOCKED.clone());
    registry.register("archive_erased_objects", "Objects of erased archives that were removed from the archive store", ERASED.clone());
    registry.register_with_unit("archive_erased", "Bytes that completed erasures removed", Unit::Bytes, ERASED_BYTES.clone());
}
