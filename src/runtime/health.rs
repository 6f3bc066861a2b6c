//! `/livez`, `/readyz` and `/metrics`. Ready means initialised, not leading: a standby is ready.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;

/// Turns `/readyz` to 200.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    /// Everything is initialised.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Serves until `stop`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>, stop: CancellationToken, tasks: &mut JoinSet<()>) -> std::io::Result<Ready> {
    let ready = Ready::default();
    let flag = ready.clone();
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route(
            "/readyz",
            get(move || async move {
                if flag.0.load(Ordering::Relaxed) { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "starting") }
            }),
        )
        .route("/metrics", get(move || async move { metrics.text().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR) }));
    let listener = tokio::net::TcpListener::bind(address).await?;
    tasks.spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await {
            tracing::error!(%error, "the health endpoint ended");
        }
    });
    Ok(ready)
}
