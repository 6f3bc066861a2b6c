//! The endpoint over real HTTPS, with a folder as its store.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::archive::manifest::tests::empty;
use crate::archive::{Store, Verification, object_key, verify};
use sha2::{Digest, Sha256};

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

struct Endpoint {
    base: String,
    client: reqwest::Client,
    store: Arc<Store>,
    _folder: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

async fn endpoint() -> Endpoint {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&format!("file://{}", folder.path().display())).unwrap());
    let certificate = tls::Certificate::new("https://127.0.0.1:1").unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://{}/ingest/v1/{UID}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let router = handlers::router(Arc::clone(&store), auth::Authenticator::Fixed { token: "good", uid: UID }, Arc::default());
    tokio::spawn(server::run(listener, Some(certificate.acceptor().unwrap()), router, LIMITS, stop.clone()));
    let client = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(certificate.ca_pem.as_bytes()).unwrap()])
        .no_proxy()
        .build()
        .unwrap();
    Endpoint { base, client, store, _folder: folder, _stop: stop.drop_guard() }
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
