//! `/livez`, `/readyz`, `/readyz/NAME` and `/metrics`. Ready means initialized, not leading: a standby replica is ready. A slow or silent client must never occupy a
//! connection for long or delay the shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::server::connections::Seat;
use super::server::{self, Limits};

/// Maximum lifetime of a connection, which serves one request.
const CONNECTION: Duration = Duration::from_secs(10);
/// Limits of this endpoint in every process.
pub const LIMITS: Limits = Limits {
    connections: 64,
    head: 8 * 1024,
    socket: (8 * 1024, 32 * 1024),
    header: Duration::from_secs(5),
    idle: CONNECTION,
    single: Some(CONNECTION),
    drain: CONNECTION,
    refusal: None,
};
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Renders the text of `/metrics`.
pub type Metrics = Arc<dyn Fn() -> Result<String, std::fmt::Error> + Send + Sync>;

/// Reports one thing that this process depends on: whether it is usable, and a sentence about it.
pub type Check = Arc<dyn Fn() -> (bool, String) + Send + Sync>;

/// The checks that are served at `/readyz/NAME`, by name.
pub type Checks = Vec<(&'static str, Check)>;

/// Whether `/readyz` responds with 200.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    /// `true` once everything is initialized; `false` if no new requests should be sent.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Serves until `stop` is cancelled; open connections then have [`CONNECTION`] to finish.
///
/// # Errors
/// When the address cannot be bound.
pub fn serve(
    address: SocketAddr,
    metrics: Metrics,
    checks: Checks,
    stop: CancellationToken,
    tasks: &mut JoinSet<()>,
) -> std::io::Result<Ready> {
    let ready = Ready::default();
    let listener = server::listen(address)?;
    tasks.spawn(server::run(listener, None, router(ready.clone(), metrics, checks), LIMITS, stop));
    Ok(ready)
}

fn router(ready: Ready, metrics: Metrics, checks: Checks) -> Router {
    let text = move || async move { metrics().map(|t| ([(CONTENT_TYPE, OPENMETRICS)], t)).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR) };
    let router = probes(ready).route("/metrics", get(text));
    checks.into_iter().fold(router, |router, (name, check)| {
        let report = move || async move {
            let (usable, text) = check();
            (if usable { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
        };
        router.route(&format!("/readyz/{name}"), get(report))
    })
}

/// `/livez` and `/readyz`, for a load balancer too: it checks the port that it sends requests to, without a credential.
pub fn probes(ready: Ready) -> Router {
    let readyz = move || async move {
        if ready.is_set() {
            "ok".into_response()
        } else {
            let detail = "not ready: the process is starting or shutting down, or something that it needs is not usable: see its log";
            (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], detail).into_response()
        }
    };
    Router::new().route("/livez", get(|| async { "ok" })).route("/readyz", get(readyz)).layer(from_fn(replaceable))
}

/// A client without a credential must not keep its connection by reading slowly: another connection may take its place.
async fn replaceable(request: Request, next: Next) -> Response {
    let seat = request.extensions().get::<Arc<Seat>>().cloned();
    let response = next.run(request).await;
    if let Some(seat) = seat {
        seat.waits();
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn start() -> (SocketAddr, Ready, CancellationToken, tokio::task::JoinHandle<()>) {
        let checks: Checks =
            vec![("good", Arc::new(|| (true, "fine".to_owned()))), ("bad", Arc::new(|| (false, "the volume is full".to_owned())))];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, ready, stop) = (listener.local_addr().unwrap(), Ready::default(), CancellationToken::new());
        let task = tokio::spawn(server::run(
            listener,
            None,
            router(ready.clone(), Arc::new(|| Ok("# EOF\n".to_owned())), checks),
            LIMITS,
            stop.clone(),
        ));
        (address, ready, stop, task)
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn live_at_once_and_ready_after_initialization() {
        let (address, ready, stop, task) = start().await;
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        let starting = get(address, "/readyz").await;
        assert!(starting.starts_with("HTTP/1.1 503") && starting.contains("see its log"), "{starting}");
        assert!(get(address, "/readyz/good").await.starts_with("HTTP/1.1 200"));
        let bad = get(address, "/readyz/bad").await;
        assert!(bad.starts_with("HTTP/1.1 503") && bad.ends_with("the volume is full"), "{bad}");
        ready.set(true);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        ready.set(false);
        let unready = get(address, "/readyz").await;
        assert!(unready.starts_with("HTTP/1.1 503") && unready.contains("retry-after: 1"), "{unready}");
        let metrics = get(address, "/metrics").await;
        assert!(metrics.contains(OPENMETRICS) && metrics.ends_with("# EOF\n"), "{metrics}");
        assert!(get(address, "/other").await.starts_with("HTTP/1.1 404"));
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_half_a_request_is_disconnected_and_does_not_delay_the_shutdown() {
        let (address, _ready, stop, task) = start().await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /livez HTT").await.unwrap();
        let mut answer = Vec::new();
        let began = tokio::time::Instant::now();
        // The server closes the connection, possibly after an error, but never with a 200.
        let _ = slow.read_to_end(&mut answer).await;
        assert!(began.elapsed() <= CONNECTION && !answer.starts_with(b"HTTP/1.1 200"));
        let _silent = TcpStream::connect(address).await.unwrap();
        stop.cancel();
        tokio::time::timeout(CONNECTION * 2, task).await.unwrap().unwrap();
    }
}
