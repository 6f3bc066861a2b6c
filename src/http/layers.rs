//! Around every request: an id, a bound on how many are in flight, one line of log, the figures, and an answer even when a
//! handler panics. Logs and figures name the route, never the path: a path holds ids.

use std::sync::atomic::AtomicI64;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use rand::RngCore;

use super::Shared;
use super::auth::Caller;
use super::error::ApiError;
use super::shares::Share;
use crate::runtime::requests::REQUESTS;

const REQUEST_ID: &str = "x-request-id";

/// Who the caller turned out to be, for the log line, and its share of the requests in flight for as long as this one takes.
#[derive(Clone, Debug, Default)]
pub struct Who(Arc<OnceLock<(String, Share)>>);

impl Who {
    /// The caller is known.
    pub fn note(&self, caller: &Caller, share: Share) {
        let _ = self.0.set((caller.describe(), share));
    }
}

/// Labels of a request: bounded, the route's template and not its path.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    method: String,
    route: String,
    code: u16,
}

/// Figures of the HTTP API.
pub struct Figures {
    registry: Registry,
    requests: Family<Labels, Histogram, fn() -> Histogram>,
    in_flight: Gauge<i64, AtomicI64>,
}

/// From a millisecond to half a minute.
fn buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

impl Default for Figures {
    fn default() -> Self {
        let figures = Self {
            registry: Registry::with_prefix("computer_operator"),
            requests: Family::new_with_constructor(buckets),
            in_flight: Gauge::default(),
        };
        let Self { mut registry, requests, in_flight } = figures;
        registry.register("http_request_duration_seconds", "HTTP requests by method, route and code", requests.clone());
        registry.register("http_requests_in_flight", "HTTP requests that are being answered", in_flight.clone());
        registry.register("api_requests", "Requests to the Kubernetes API by verb, resource and code (none: given up)", REQUESTS.clone());
        Self { registry, requests, in_flight }
    }
}

impl Figures {
    /// Text exposition.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Takes one down when it is dropped, whether the request was answered or given up by its client.
struct InFlight<'a>(&'a Gauge<i64, AtomicI64>);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The layer around every route.
pub async fn observe(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(&request);
    let method = method_label(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or_else(|| "none".to_owned(), |m| m.as_str().to_owned());
    let who = Who::default();
    request.extensions_mut().insert(who.clone());
    shared.figures.in_flight.inc();
    let counted = InFlight(&shared.figures.in_flight);
    let mut response = match shared.slots.try_acquire() {
        Ok(_slot) => next.run(request).await,
        Err(_) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests are in flight: try again in a second").into_response(),
    };
    drop(counted);
    let (code, took) = (response.status().as_u16(), began.elapsed());
    shared.figures.requests.get_or_create(&Labels { method: method.to_owned(), route: route.clone(), code }).observe(took.as_secs_f64());
    let caller = who.0.get().map_or("-", |known| &known.0);
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(target: "computer_operator::access", %id, method, route, code, millis, caller);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The caller's own id if it is harmless, or a new one.
fn request_id(request: &Request) -> String {
    let given = request.headers().get(REQUEST_ID).and_then(|v| v.to_str().ok());
    let harmless = |id: &&str| (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    given.filter(harmless).map_or_else(
        || {
            let mut bytes = [0; 16];
            rand::rng().fill_bytes(&mut bytes);
            hex::encode(bytes)
        },
        str::to_owned,
    )
}

/// A client can invent methods without end.
fn method_label(method: &axum::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// What a handler's panic comes to. The panic's text may hold anything: it is in the log of the process, not in the answer.
#[allow(clippy::needless_pass_by_value)] // the layer's signature
pub fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::internal("this request met a fault of the server: try again, and tell its admin the x-request-id").into_response()
}
