//! The metrics of the time until a turn, and of those who must come back: they distinguish a store that is slow from one that is shared by many.

use std::sync::LazyLock;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// For what: chunks, manifests, checks. Never of whom.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Label {
    /// The name of the [`super::Turns`].
    pub slot: &'static str,
}

/// Seconds until each turn, by what it is for.
#[allow(clippy::type_complexity)] // `xtask/src/book/metrics.rs` reads the type here.
pub static WAITS: LazyLock<Family<Label, Histogram, fn() -> Histogram>> = LazyLock::new(|| Family::new_with_constructor(buckets));

/// Those who were turned away, by what for.
pub static REFUSALS: LazyLock<Family<Label, Counter>> = LazyLock::new(Family::default);

/// From a sixteenth of a second to about ten minutes.
fn buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.0625, 2.0, 14))
}
