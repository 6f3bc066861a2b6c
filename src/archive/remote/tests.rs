//! Slow and stalled stores behind the real endpoint with TLS, with simulated time, and endpoints that do not know what is asked.

use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::archive::ingest::{LIMITS, readers, reads, tls};
use crate::archive::manifest::{CHUNK, Chunk};
use crate::archive::test_archives::noise;
use crate::archive::{chunk_key, index, test_relay};
use crate::runtime::server;

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

struct Bench {
    store: Store,
    chunk: Chunk,
    _folder: tempfile::TempDir,
    _stop: DropGuard,
}

/// A chunk of the largest size in a store of this speed, and the endpoint behind a line that stops after so many bytes. The clock is simulated from here on.
async fn bench(a_byte: Duration, line: u64) -> Bench {
    let bytes = noise(CHUNK, 1);
    let chunk = Chunk { digest: hex::encode(Sha256::digest(&bytes)), size: CHUNK as u64 };
    let objects = InMemory::new();
    objects.put(&chunk_key(UID, &chunk.digest).as_str().into(), bytes.into()).await.unwrap();
    let slow = ThrottledStore::new(objects, ThrottleConfig { wait_get_per_byte: a_byte, ..ThrottleConfig::default() });
    let router = reads::router(Arc::new(Store::new(Arc::new(slow))), readers::Readers::Fixed("good"));
    let (remote, folder, stop) = served(router, line).await;
    tokio::time::pause();
    tokio::spawn(async {
        loop {
            // The kernel needs real time for what is on its way.
            tokio::time::sleep(Duration::from_millis(50)).await;
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    Bench { store: remote.store("t"), chunk, _folder: folder, _stop: stop }
}

/// An endpoint with these routes, behind a line that stops after so many bytes.
async fn served(router: axum::Router, line: u64) -> (Arc<Remote>, tempfile::TempDir, DropGuard) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let certificate = tls::Certificate::new("https://$(INGEST_SERVICE_HOST):8443").unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop, folder) = (listener.local_addr().unwrap(), CancellationToken::new(), tempfile::tempdir().unwrap());
    tokio::spawn(server::run(listener, Some(certificate.acceptor().unwrap()), router, LIMITS, stop.clone()));
    let (ca, token) = (folder.path().join("ca.crt"), folder.path().join("token"));
    std::fs::write(&ca, &certificate.ca_pem).unwrap();
    std::fs::write(&token, "good").unwrap();
    let address = if line == u64::MAX { address } else { test_relay::relay(address, 10_000_000, line) };
    (Arc::new(Remote::new(Endpoint::Address(address.to_string()), ca, token)), folder, stop.drop_guard())
}

/// L8: 500 kB/s is a supported line, on which the largest chunk takes 17 s, and two of one computer are read at a time.
#[tokio::test]
async fn a_slow_store_is_waited_for_and_so_is_room() {
    let bench = bench(Duration::from_micros(2), u64::MAX).await;
    let began = Instant::now();
    let reads = (0..4).map(|_| index::blob(&bench.store, UID, &bench.chunk));
    for bytes in futures::future::join_all(reads).await {
        assert_eq!(hex::encode(Sha256::digest(bytes.unwrap())), bench.chunk.digest);
    }
    let took = began.elapsed().as_secs();
    assert!((33..60).contains(&took), "each is read once: {took} s");
}

#[tokio::test]
async fn a_store_that_is_blocked_ends_the_read() {
    let bench = bench(Duration::from_secs(3600), u64::MAX).await;
    let began = Instant::now();
    let error = bench.store.get_sized(&chunk_key(UID, &bench.chunk.digest), bench.chunk.size).await.unwrap_err();
    assert!(matches!(error, crate::archive::StoreError::Unavailable(_)), "{error}");
    assert!(began.elapsed() < Duration::from_secs(400), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_endpoint_that_falls_silent_ends_the_read() {
    let bench = bench(Duration::from_micros(2), 5000).await;
    let began = Instant::now();
    let key = chunk_key(UID, &bench.chunk.digest);
    let read = tokio::time::timeout(Duration::from_secs(600), bench.store.get_sized(&key, bench.chunk.size));
    let error = read.await.expect("it hangs").unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(90), "{error} after {:?}", began.elapsed());
}

/// S1: during an upgrade, an operator of an earlier version answers 404 for a path that it does not know, and a proxy may do so at any time. That is
/// no statement about an archive. Only an answer of the reading half, which has its header, is.
#[tokio::test]
async fn a_404_of_something_else_is_not_the_absence_of_an_archive() {
    let (digest, bare) = ("0".repeat(64), axum::Router::new());
    let writes_only = axum::Router::new().route("/ingest/v2/{uid}/manifest", axum::routing::put(|| async {}));
    let lying = |status: StatusCode| axum::Router::new().fallback(move || async move { (status, "200\nlines\n") });
    for (router, status) in [
        (bare, "502"),
        (writes_only, "502"),
        (lying(StatusCode::OK), "502"),
        (lying(StatusCode::GONE), "502"),
        (lying(StatusCode::UNPROCESSABLE_ENTITY), "502"),
        (lying(StatusCode::SERVICE_UNAVAILABLE), "503"),
        (lying(StatusCode::UNAUTHORIZED), "401"),
    ] {
        let (remote, _folder, _stop) = served(router, u64::MAX).await;
        for read in [remote.manifest("t", UID).await, remote.verified("t", UID).await.map(String::into_bytes)] {
            assert!(matches!(&read, Err(Unread::Unavailable(why)) if why.contains(status)), "{status}: {read:?}");
        }
        let chunk = remote.store("t").get_sized(&chunk_key(UID, &digest), 1).await;
        assert!(matches!(chunk, Err(crate::archive::StoreError::Unavailable(_))), "{status}: {chunk:?}");
    }
    // The endpoint itself says it for each.
    let router = reads::router(Arc::new(Store::new(Arc::new(InMemory::new()))), readers::Readers::Fixed("good"));
    let (remote, _folder, _stop) = served(router, u64::MAX).await;
    assert!(matches!(remote.manifest("t", UID).await, Err(Unread::Missing)));
    assert!(matches!(remote.verified("t", UID).await, Err(Unread::Missing)));
    let chunk = remote.store("t").get_sized(&chunk_key(UID, &digest), 1).await;
    assert!(matches!(chunk, Err(crate::archive::StoreError::NotFound(_))), "{chunk:?}");
}
