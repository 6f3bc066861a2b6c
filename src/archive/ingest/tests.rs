//! The endpoint over real HTTPS, with a folder as its store.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::archive::manifest::tests::empty;
use crate::archive::sender::Sender;
use crate::archive::transport::Idle;
use crate::archive::{Store, Verification, object_key, test_relay, verify};
use sha2::{Digest, Sha256};

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

struct Endpoint {
    address: SocketAddr,
    ca: String,
    base: String,
    client: reqwest::Client,
    store: Arc<Store>,
    _folder: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

async fn endpoint() -> Endpoint {
    endpoint_of(|folder| Store::open(&format!("file://{}", folder.display())).unwrap()).await
}

async fn endpoint_of(store: impl FnOnce(&std::path::Path) -> Store) -> Endpoint {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(store(folder.path()));
    // It has no address in it: the Service may get another one.
    let certificate = tls::Certificate::new("https://$(INGEST_SERVICE_HOST):8443").unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let base = format!("https://{}:{}/ingest/v1/{UID}", tls::SERVER_NAME, address.port());
    let stop = CancellationToken::new();
    let router = handlers::router(Arc::clone(&store), auth::Authenticator::Fixed { token: "good", uid: UID }, Arc::default(), 0);
    tokio::spawn(server::run(listener, Some(certificate.acceptor().unwrap()), router, LIMITS, stop.clone()));
    let client = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(certificate.ca_pem.as_bytes()).unwrap()])
        .resolve(tls::SERVER_NAME, address)
        .no_proxy()
        .build()
        .unwrap();
    Endpoint { address, ca: certificate.ca_pem.clone(), base, client, store, _folder: folder, _stop: stop.drop_guard() }
}

impl Endpoint {
    async fn put(&self, path: &str, token: &str, body: Vec<u8>) -> u16 {
        self.client.put(format!("{}/{path}", self.base)).bearer_auth(token).body(body).send().await.unwrap().status().as_u16()
    }
}

#[tokio::test]
async fn only_the_pod_of_a_computer_writes_its_archive() {
    let endpoint = endpoint().await;
    let digest = hex::encode(Sha256::digest(b"data"));
    let path = format!("objects/{digest}");
    assert_eq!(endpoint.put(&path, "bad", b"data".to_vec()).await, 401);
    let other = endpoint.base.replace(UID, "00000000-e89b-12d3-a456-426614174000");
    let answer = endpoint.client.put(format!("{other}/{path}")).bearer_auth("good").body("data").send().await.unwrap();
    assert_eq!(answer.status(), 403);
    let none = endpoint.client.put(format!("{}/{path}", endpoint.base)).body("data").send().await.unwrap();
    assert_eq!(none.status(), 401);
    assert_eq!(endpoint.put(&path, "good", b"data".to_vec()).await, 201);
    assert_eq!(endpoint.put(&path, "good", b"data".to_vec()).await, 200);
}

#[tokio::test]
async fn wrong_bytes_wrong_names_and_a_second_archive_are_refused() {
    let endpoint = endpoint().await;
    let digest = hex::encode(Sha256::digest(b"data"));
    assert_eq!(endpoint.put(&format!("objects/{digest}"), "good", b"other".to_vec()).await, 400);
    assert_eq!(endpoint.put("objects/..%2f..%2fmanifest.json", "good", b"x".to_vec()).await, 400);
    assert!(endpoint.store.size(&object_key(UID, &digest)).await.is_err(), "wrong bytes became visible");
    let mut manifest = empty(UID);
    assert_eq!(endpoint.put("manifest", "good", serde_json::to_vec(&empty("another")).unwrap()).await, 400);
    manifest.sessions.push(crate::archive::SessionEntry { id: "s".into(), files: 1, bytes: 1, digest, size: 4, last_modified: 0 });
    assert_eq!(endpoint.put("manifest", "good", serde_json::to_vec(&manifest).unwrap()).await, 400, "an object is missing");
    manifest.sessions.clear();
    let bytes = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(endpoint.put("manifest", "good", bytes.clone()).await, 201);
    assert_eq!(endpoint.put("manifest", "good", bytes).await, 200);
    manifest.created_at += 1;
    assert_eq!(endpoint.put("manifest", "good", serde_json::to_vec(&manifest).unwrap()).await, 409, "S7");
    assert!(matches!(verify::verify(&endpoint.store, UID).await, Verification::Valid(_)));
}

/// The archive pod's client, over a separate connection.
fn sender(endpoint: &Endpoint, line: SocketAddr, silence: Duration) -> (tempfile::NamedTempFile, Sender) {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "good").unwrap();
    let sender = Sender::new(&format!("https://{line}"), &endpoint.ca, UID, token.path()).unwrap();
    (token, sender.with_limits(silence, 1))
}

fn file(size: usize) -> (tempfile::NamedTempFile, String) {
    let bytes: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    (file, hex::encode(Sha256::digest(&bytes)))
}

/// A limit that counted from the start of the request once ended every upload that took two minutes.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_may_take_as_long_as_it_makes_progress() {
    let endpoint = endpoint().await;
    let line = test_relay::relay(endpoint.address, 1_500_000, u64::MAX);
    let (_token, sender) = sender(&endpoint, line, Duration::from_secs(2));
    let (file, digest) = file(16_000_000);
    let began = std::time::Instant::now();
    sender.object(&digest, 16_000_000, file.path()).await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(6), "the connection is not slow: {:?}", began.elapsed());
    assert_eq!(endpoint.store.size(&object_key(UID, &digest)).await.unwrap(), 16_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_makes_no_progress_ends() {
    let silence = Duration::from_secs(2);
    let idle = Idle { silence, answer: silence };
    let endpoint = endpoint_of(|folder| Store::open_with(&format!("file://{}", folder.display()), idle).unwrap()).await;
    let line = test_relay::relay(endpoint.address, 50_000_000, 1_000_000);
    let (_token, sender) = sender(&endpoint, line, Duration::from_secs(2));
    let (file, digest) = file(16_000_000);
    let ended = tokio::time::timeout(Duration::from_secs(60), sender.object(&digest, 16_000_000, file.path())).await;
    let error = format!("{:#}", ended.expect("it hangs").unwrap_err());
    assert!(error.contains("no progress"), "{error}");
}

/// A request that waits for a slot or for a slow store is not a connection that hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_long_is_waited_for_while_the_operator_works() {
    use object_store::throttle::{ThrottleConfig, ThrottledStore};
    let config = ThrottleConfig { wait_put_per_call: Duration::from_secs(4), ..ThrottleConfig::default() };
    let slow = ThrottledStore::new(object_store::memory::InMemory::new(), config);
    let endpoint = endpoint_of(|_| Store::new(Arc::new(slow))).await;
    let (_token, sender) = sender(&endpoint, endpoint.address, Duration::from_secs(1));
    let (file, digest) = file(100);
    let began = std::time::Instant::now();
    sender.object(&digest, 100, file.path()).await.unwrap();
    sender.manifest(&serde_json::to_vec(&empty(UID)).unwrap()).await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(6), "{:?}", began.elapsed());
    let error = sender.manifest(b"{}").await.unwrap_err().to_string();
    assert!(error.contains("refused") && error.contains("manifest"), "{error}");
}
