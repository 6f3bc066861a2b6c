//! Tests of the archive pod's client beside an endpoint that answers as a test says.

use std::sync::Mutex;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Method, header};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::archive::home_size::Amount;
use crate::archive::ingest::{LIMITS, tls};
use crate::archive::manifest::Chunk;
use crate::runtime::server;

/// The answer to a request, by its method and token.
type Answers = Arc<dyn Fn(&Method, &str) -> StatusCode + Send + Sync>;

/// Requests so far: their methods and tokens.
type Seen = Arc<Mutex<Vec<(Method, String)>>>;

async fn answer(State((answers, seen)): State<(Answers, Seen)>, method: Method, headers: HeaderMap, _: Bytes) -> StatusCode {
    let token = headers[header::AUTHORIZATION].to_str().unwrap().trim_start_matches("Bearer ").to_owned();
    let status = answers(&method, &token);
    seen.lock().unwrap().push((method, token));
    status
}

/// A pod with this file as its token.
async fn pod(token: &Path, answers: impl Fn(&Method, &str) -> StatusCode + Send + Sync + 'static) -> (Sender, Seen, DropGuard) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let certificate = tls::Certificate::new("https://$(INGEST_SERVICE_HOST):8443").unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop, seen) = (listener.local_addr().unwrap(), CancellationToken::new(), Seen::default());
    let answers: Answers = Arc::new(answers);
    let router = Router::new().fallback(answer).with_state((answers, Arc::clone(&seen)));
    tokio::spawn(server::run(listener, Some(certificate.acceptor().unwrap()), router, LIMITS, stop.clone()));
    let sender = Sender::new(&format!("https://{address}"), &certificate.ca_pem, "u", token).unwrap();
    (sender.with_limits(Duration::from_secs(10), Duration::from_secs(60)), seen, stop.drop_guard())
}

/// So large that the pod asks about it.
fn chunk() -> Blob {
    let bytes = Bytes::from(vec![1; SMALL + 1]);
    Blob { chunk: Chunk { digest: "0".repeat(64), size: bytes.len() as u64 }, bytes }
}

fn so_far() -> SoFar {
    SoFar { done: Amount { sessions: 1, bytes: 1 }, total: None }
}

/// The operator reads a chunk to answer. It once was asked again each time that the chunk could not be stored.
#[tokio::test]
async fn a_pod_asks_about_a_chunk_once() {
    let token = tempfile::NamedTempFile::new().unwrap();
    let puts = AtomicU64::new(0);
    let (pod, seen, _stop) = pod(token.path(), move |method, _| match *method {
        Method::GET => StatusCode::NOT_FOUND,
        _ if puts.fetch_add(1, Ordering::SeqCst) == 0 => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::CREATED,
    })
    .await;
    pod.chunk(&chunk(), so_far).await.unwrap();
    let methods: Vec<Method> = seen.lock().unwrap().iter().map(|(method, _)| method.clone()).collect();
    assert_eq!(methods, [Method::GET, Method::PUT, Method::PUT]);
}

/// Why the endpoint answers 429, and not 401, when a token has ended while a request waited for its turn (`ingest/handlers.rs`).
#[tokio::test]
async fn a_pod_whose_token_has_ended_comes_back_after_429_and_not_after_401() {
    for (status, comes_back) in [(StatusCode::TOO_MANY_REQUESTS, true), (StatusCode::UNAUTHORIZED, false)] {
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "first").unwrap();
        let path = token.path().to_owned();
        let (pod, seen, _stop) = pod(token.path(), move |method, sent| {
            // The kubelet renews it.
            std::fs::write(&path, "second").unwrap();
            if *method != Method::PUT || sent == "second" { StatusCode::CREATED } else { status }
        })
        .await;
        assert_eq!(pod.manifest(b"{}".to_vec()).await.is_ok(), comes_back, "{status}");
        assert_eq!(seen.lock().unwrap().len(), if comes_back { 2 } else { 1 });
    }
}
