//! The metrics of the HTTP API. Labels must be bounded: never a path, a name or a namespace.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::credentials::Denied;
use crate::runtime::request_metrics::REQUESTS;

/// Labels of a request. They are bounded: the template of the route instead of the path.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    method: String,
    route: String,
    code: u16,
}

/// Whose credential was denied, and why: both from fixed lists.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DeniedLabels {
    credential: &'static str,
    reason: &'static str,
}

/// Metrics of the HTTP API.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Histogram, fn() -> Histogram>,
    in_flight: Gauge<i64, AtomicI64>,
    ready: Gauge,
    denied: Family<DeniedLabels, Counter>,
}

/// Buckets from one millisecond to about half a minute.
fn buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("computer_operator"),
            requests: Family::new_with_constructor(buckets),
            in_flight: Gauge::default(),
            ready: Gauge::default(),
            denied: Family::default(),
        };
        let Self { mut registry, requests, in_flight, ready, denied } = metrics;
        registry.register("http_request_duration_seconds", "HTTP requests by method, route and code", requests.clone());
        registry.register("http_requests_in_flight", "HTTP requests in flight", in_flight.clone());
        registry.register("http_ready", "Whether this replica of the HTTP API is ready", ready.clone());
        registry.register(
            "http_denied_credentials",
            "Requests with a computer's key or a token of an ApiKey that is not valid, by credential (Key, ApiKey) and reason",
            denied.clone(),
        );
        registry.register(
            "api_requests",
            "Requests to the Kubernetes API by verb, resource and code (none: no response)",
            REQUESTS.clone(),
        );
        Self { registry, requests, in_flight, ready, denied }
    }
}

impl Metrics {
    /// Counts a request in flight until the result is dropped.
    pub fn begins(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// Counts a response.
    pub fn answered(&self, method: &str, route: &str, code: u16, took: Duration) {
        let labels = Labels { method: method.to_owned(), route: route.to_owned(), code };
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts a request whose credential is not valid.
    pub fn denied(&self, credential: &'static str, denied: Denied) {
        self.denied.get_or_create(&DeniedLabels { credential, reason: denied.reason() }).inc();
    }

    /// The number of requests in flight.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// Reports whether this replica is ready.
    pub fn set_ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    /// The metrics in the text format.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// A request in flight, until it is dropped: it was answered, or cancelled by its client.
#[derive(Debug)]
pub struct InFlight(Gauge<i64, AtomicI64>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
