//! The endpoint over real HTTPS, with a folder as its store.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::archive::chunks::Blob;
use crate::archive::home_size::{Amount, SoFar};
use crate::archive::manifest::Chunk;
use crate::archive::manifest::tests::empty;
use crate::archive::sender::Sender;
use crate::archive::test_archives::{SMALL, home, noise, packed};
use crate::archive::transport::Idle;
use crate::archive::uploads::{Upload, Uploads};
use crate::archive::{Store, Unreadable, Verification, chunk_key, index, test_relay, verify};
use sha2::{Digest, Sha256};

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

/// What is archived with a chunk.
fn so_far() -> SoFar {
    SoFar { done: Amount { sessions: 1, bytes: 2_000_000 }, total: Some(Amount { sessions: 4, bytes: 9_000_000 }) }
}

struct Endpoint {
    address: SocketAddr,
    ca: String,
    base: String,
    client: reqwest::Client,
    store: Arc<Store>,
    uploads: Arc<Uploads>,
    folder: tempfile::TempDir,
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
    let base = format!("https://{}:{}/ingest/v2/{UID}", tls::SERVER_NAME, address.port());
    let stop = CancellationToken::new();
    let uploads = Arc::<Uploads>::default();
    let router = handlers::router(
        Arc::clone(&store),
        auth::Authenticator::Fixed { token: "good", uid: UID, custody_claim: "claim", max_bytes: u64::MAX },
        Arc::clone(&uploads),
    );
    tokio::spawn(server::run(listener, Some(certificate.acceptor().unwrap()), router, LIMITS, stop.clone()));
    let client = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(certificate.ca_pem.as_bytes()).unwrap()])
        .resolve(tls::SERVER_NAME, address)
        .no_proxy()
        .build()
        .unwrap();
    Endpoint { address, ca: certificate.ca_pem.clone(), base, client, store, uploads, folder, _stop: stop.drop_guard() }
}

impl Endpoint {
    async fn put(&self, path: &str, token: &str, body: Vec<u8>) -> u16 {
        self.client.put(format!("{}/{path}", self.base)).bearer_auth(token).body(body).send().await.unwrap().status().as_u16()
    }
}

/// L2: the status of the computer shows it while the pod runs.
#[tokio::test]
async fn what_becomes_of_an_object_is_known() {
    let endpoint = endpoint().await;
    let look = || endpoint.uploads.look(UID);
    let path = |data: &[u8]| format!("chunks/{}", hex::encode(Sha256::digest(data)));
    assert_eq!(endpoint.put(&path(b"data"), "bad", b"data".to_vec()).await, 401);
    assert_eq!(look(), None, "no client without the right token is listed");
    endpoint.put(&path(b"data"), "good", b"data".to_vec()).await;
    let sent = Upload { pod: "pod".to_owned(), objects: 1, bytes: 4, ..Upload::default() };
    assert_eq!(look(), Some(sent.clone()));
    endpoint.client.head(format!("{}/{}", endpoint.base, path(b"data"))).bearer_auth("good").send().await.unwrap();
    assert_eq!(look(), Some(Upload { objects: 2, ..sent }));
    // The volume of the store is gone.
    std::fs::remove_dir_all(endpoint.folder.path()).unwrap();
    let manifest = serde_json::to_vec(&empty(UID)).unwrap();
    for refused in [(path(b"more"), b"more".to_vec()), ("manifest".to_owned(), manifest)] {
        endpoint.uploads.found((UID, "pod"), None);
        for failing in [false, true] {
            assert_eq!(endpoint.put(&refused.0, "good", refused.1.clone()).await, 503);
            assert_eq!(look().unwrap().failing.is_some(), failing, "{}", refused.0);
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(31)).await;
            tokio::time::resume();
        }
    }
}

/// GET and HEAD were answered by two functions. A client that understands lines gets none with HEAD, so the status is the outcome.
#[tokio::test]
async fn get_and_head_of_a_chunk_say_the_same() {
    let endpoint = endpoint().await;
    let path = format!("chunks/{}", hex::encode(Sha256::digest(b"data")));
    for (there, token, expected) in [(false, "good", 404), (true, "good", 200), (true, "bad", 401)] {
        if there {
            endpoint.put(&path, "good", b"data".to_vec()).await;
        }
        for (method, lines) in [(reqwest::Method::GET, false), (reqwest::Method::HEAD, false), (reqwest::Method::HEAD, true)] {
            let mut request = endpoint.client.request(method.clone(), format!("{}/{path}", endpoint.base)).bearer_auth(token);
            if lines {
                request = request.header(super::keep_alive::HEADER, "1");
            }
            assert_eq!(request.send().await.unwrap().status(), expected, "{method} {lines}");
        }
    }
}

/// S13: who may read an archive depends on the namespace in its manifest, so a pod cannot give it to another one.
#[tokio::test]
async fn a_manifest_names_the_namespace_of_the_record() {
    let endpoint = endpoint().await;
    let manifest = |namespace: &str, uid: Option<&str>| {
        let mut manifest = empty(UID);
        (manifest.computer.namespace, manifest.computer.namespace_uid) = (namespace.to_owned(), uid.map(str::to_owned));
        serde_json::to_vec(&manifest).unwrap()
    };
    for (namespace, uid) in [("other", None), ("other", Some("namespace")), ("t", Some("another"))] {
        assert_eq!(endpoint.put("manifest", "good", manifest(namespace, uid)).await, 403, "{namespace} {uid:?}");
    }
    assert_eq!(endpoint.put("manifest", "good", manifest("t", Some("namespace"))).await, 201);
}

#[tokio::test]
async fn only_the_pod_of_a_computer_writes_its_archive() {
    let endpoint = endpoint().await;
    let digest = hex::encode(Sha256::digest(b"data"));
    let path = format!("chunks/{digest}");
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
    assert_eq!(endpoint.put(&format!("chunks/{digest}"), "good", b"other".to_vec()).await, 400);
    assert_eq!(endpoint.put("chunks/..%2f..%2fmanifest.json", "good", b"x".to_vec()).await, 400);
    assert!(endpoint.store.size(&chunk_key(UID, &digest)).await.is_err(), "wrong bytes became visible");
    let mut manifest = empty(UID);
    assert_eq!(endpoint.put("manifest", "good", serde_json::to_vec(&empty("another")).unwrap()).await, 400);
    manifest.chunks.pieces.push(Chunk { digest, size: 4 });
    assert_eq!(endpoint.put("manifest", "good", serde_json::to_vec(&manifest).unwrap()).await, 400, "a piece of the index is missing");
    let mut packed = packed(home(&[("s/a", b"one")]).path(), &["s"], Unreadable::Block, SMALL);
    let chunk = packed.chunks()[0].chunk.digest.clone();
    manifest = packed.manifest;
    manifest.computer.uid = UID.to_owned();
    packed.blobs.sort_by_key(|blob| blob.chunk.digest == chunk);
    let last = packed.blobs.pop().unwrap();
    for blob in &packed.blobs {
        assert_eq!(endpoint.put(&format!("chunks/{}", blob.chunk.digest), "good", blob.bytes.to_vec()).await, 201);
    }
    assert_eq!(endpoint.put("manifest", "good", serde_json::to_vec(&manifest).unwrap()).await, 400, "a chunk is missing");
    assert_eq!(endpoint.put(&format!("chunks/{chunk}"), "good", last.bytes.to_vec()).await, 201);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(endpoint.put("manifest", "good", bytes.clone()).await, 201);
    assert_eq!(endpoint.put("manifest", "good", bytes).await, 200);
    manifest.created_at += 1;
    assert_eq!(endpoint.put("manifest", "good", serde_json::to_vec(&manifest).unwrap()).await, 409, "S7");
    assert!(matches!(verify::verify(&endpoint.store, UID).await, Verification::Valid(_)));
    // Each claim has a key: a pod could once store any number of manifests.
    manifest.custody_claim = "another".to_owned();
    assert_eq!(endpoint.put("manifest", "good", serde_json::to_vec(&manifest).unwrap()).await, 403, "that of another deletion");
}

/// An archive pod of b296e59 or of any version with one object a session, in the middle of its upload while the operator is upgraded: it is
/// refused at once, with the reason, so that the operator creates a pod of its own version. Nothing of it is stored.
#[tokio::test]
async fn a_pod_of_an_earlier_version_is_refused_and_says_why() {
    let endpoint = endpoint().await;
    let old = endpoint.base.replace("/v2/", "/v1/");
    let url = format!("{old}/objects/{}", hex::encode(Sha256::digest(b"data")));
    let head = endpoint.client.head(&url).bearer_auth("good").send().await.unwrap().status();
    assert!(head.is_client_error() && head != 404, "{head}");
    for url in [url, format!("{old}/manifest")] {
        let answer = endpoint.client.put(url).bearer_auth("good").body("data").send().await.unwrap();
        assert_eq!(answer.status(), 410, "the pod must not try again");
        assert!(answer.text().await.unwrap().contains("the operator replaces it"));
    }
    assert_eq!(endpoint.store.uids().await.unwrap(), Vec::<String>::new());
}

/// The archive pod's client, over a separate connection.
fn sender(endpoint: &Endpoint, line: SocketAddr, silence: Duration) -> (tempfile::NamedTempFile, Sender) {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "good").unwrap();
    let sender = Sender::new(&format!("https://{line}"), &endpoint.ca, UID, token.path()).unwrap();
    (token, sender.with_limits(silence, Duration::ZERO))
}

fn blob(size: usize) -> Blob {
    let bytes = bytes::Bytes::from(noise(size, 1));
    Blob { chunk: Chunk { digest: hex::encode(Sha256::digest(&bytes)), size: size as u64 }, bytes }
}

/// A limit that counted from the start of the request once ended every upload that took two minutes.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_may_take_as_long_as_it_makes_progress() {
    let endpoint = endpoint().await;
    let line = test_relay::relay(endpoint.address, 1_000_000, u64::MAX);
    let (_token, sender) = sender(&endpoint, line, Duration::from_secs(2));
    let blob = blob(8_000_000);
    let began = std::time::Instant::now();
    sender.chunk(&blob, so_far).await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(6), "the connection is not slow: {:?}", began.elapsed());
    assert_eq!(endpoint.store.size(&chunk_key(UID, &blob.chunk.digest)).await.unwrap(), 8_000_000);
    let archived = || endpoint.uploads.look(UID).and_then(|upload| upload.archived);
    assert_eq!(archived(), Some(so_far()));
    let more = || SoFar { done: Amount { sessions: 2, ..so_far().done }, ..so_far() };
    sender.chunk(&blob, more).await.unwrap();
    assert_eq!(archived(), Some(more()), "a chunk of an earlier attempt is archived as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_makes_no_progress_ends() {
    let silence = Duration::from_secs(2);
    let idle = Idle { silence, answer: silence };
    let endpoint = endpoint_of(|folder| Store::open_with(&format!("file://{}", folder.display()), idle).unwrap()).await;
    let line = test_relay::relay(endpoint.address, 50_000_000, 1_000_000);
    let (_token, sender) = sender(&endpoint, line, Duration::from_secs(2));
    let ended = tokio::time::timeout(Duration::from_secs(60), sender.chunk(&blob(8_000_000), so_far)).await;
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
    let began = std::time::Instant::now();
    sender.chunk(&blob(100), so_far).await.unwrap();
    sender.manifest(serde_json::to_vec(&empty(UID)).unwrap()).await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(6), "{:?}", began.elapsed());
    let error = sender.manifest(b"{}".to_vec()).await.unwrap_err().to_string();
    assert!(error.contains("refused") && error.contains("manifest"), "{error}");
}

/// A body that never ends, one byte at a time.
fn trickle() -> reqwest::Body {
    reqwest::Body::wrap_stream(futures::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Some((Ok::<_, std::io::Error>("x"), ()))
    }))
}

/// L3: six bodies of a byte a minute once held all of the room forever.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_hardly_sends_anything_is_ended() {
    let endpoint = endpoint().await;
    let url = format!("{}/chunks/{}", endpoint.base, "0".repeat(64));
    let request = endpoint.client.put(url).bearer_auth("good").header("content-length", 8_000_000).body(trickle()).send();
    let answer = tokio::time::timeout(Duration::from_secs(30), request).await.expect("it holds its room");
    assert_eq!(answer.unwrap().status(), 408);
}

/// L1: a chunk that an earlier attempt left damaged once counted as stored, and the archive could never be verified.
#[tokio::test]
async fn damaged_chunks_of_an_earlier_attempt_are_stored_again_beside_them() {
    let endpoint = endpoint().await;
    let (_token, sender) = sender(&endpoint, endpoint.address, Duration::from_secs(5));
    for n in 0..3 {
        let blob = blob(100 + n);
        let mut damaged = blob.bytes.to_vec();
        match n {
            0 => damaged.truncate(50),
            1 => damaged.clear(),
            _ => damaged[50] ^= 1,
        }
        endpoint.store.put_once(&chunk_key(UID, &blob.chunk.digest), damaged.clone()).await.unwrap();
        sender.chunk(&blob, so_far).await.unwrap();
        assert_eq!(index::blob(&endpoint.store, UID, &blob.chunk).await.unwrap(), blob.bytes);
        assert_eq!(endpoint.store.get(&chunk_key(UID, &blob.chunk.digest)).await.unwrap(), damaged, "S7: an object is never changed");
        assert_eq!(endpoint.put(&format!("chunks/{}", blob.chunk.digest), "good", blob.bytes.to_vec()).await, 200, "once is enough");
    }
}
