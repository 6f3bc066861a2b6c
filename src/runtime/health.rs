//! `/livez`, `/readyz` and `/metrics`. Ready means initialised, not leading: a standby is ready. A peer that is slow or silent
//! must never hold a connection for long, nor keep the process from ending.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;

const CONNECTIONS: usize = 256;
/// A request's header must be there within this time.
const HEADER: Duration = Duration::from_secs(5);
/// A connection serves one request and is closed after this time at the latest.
const CONNECTION: Duration = Duration::from_secs(10);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Turns `/readyz` to 200.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    /// Everything is initialised.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Serves until `stop`; then what runs has [`CONNECTION`] at most to end.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>, stop: CancellationToken, tasks: &mut JoinSet<()>) -> std::io::Result<Ready> {
    let ready = Ready::default();
    let listener = TcpListener::bind(address).await?;
    tasks.spawn(accept(listener, router(ready.clone(), metrics), stop));
    Ok(ready)
}

fn router(ready: Ready, metrics: Arc<Metrics>) -> Router {
    let readyz = move || async move { if ready.is_set() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "starting") } };
    let text =
        move || async move { metrics.text().map(|t| ([(CONTENT_TYPE, OPENMETRICS)], t)).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR) };
    Router::new().route("/livez", get(|| async { "ok" })).route("/readyz", get(readyz)).route("/metrics", get(text))
}

async fn accept(listener: TcpListener, router: Router, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            Some((listener.accept().await, slot))
        };
        let (accepted, slot) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => match next { Some(next) => next, None => break },
        };
        match accepted {
            Ok((stream, _)) => {
                let router = router.clone();
                connections.spawn(async move {
                    connection(stream, router).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: trying again at once would only burn the processor.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, router: Router) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER).keep_alive(false);
    let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection ended"),
        Err(_) => tracing::debug!("a connection took too long and was closed"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn start() -> (SocketAddr, Ready, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, ready, stop) = (listener.local_addr().unwrap(), Ready::default(), CancellationToken::new());
        let task = tokio::spawn(accept(listener, router(ready.clone(), Arc::default()), stop.clone()));
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
    async fn alive_at_once_ready_when_initialised() {
        let (address, ready, stop, task) = start().await;
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        ready.set();
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let metrics = get(address, "/metrics").await;
        assert!(metrics.contains(OPENMETRICS) && metrics.ends_with("# EOF\n"), "{metrics}");
        assert!(get(address, "/other").await.starts_with("HTTP/1.1 404"));
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_sends_half_a_request_is_put_out_and_does_not_hold_up_the_end() {
        let (address, _ready, stop, task) = start().await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /livez HTT").await.unwrap();
        let mut answer = Vec::new();
        let began = tokio::time::Instant::now();
        // The server closes; what it says before, if anything, is no 200.
        let _ = slow.read_to_end(&mut answer).await;
        assert!(began.elapsed() <= CONNECTION && !answer.starts_with(b"HTTP/1.1 200"));
        let _silent = TcpStream::connect(address).await.unwrap();
        stop.cancel();
        tokio::time::timeout(CONNECTION * 2, task).await.unwrap().unwrap();
    }
}
