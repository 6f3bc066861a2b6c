//! The archive in S3, against a real server (versitygw on loopback): objects are create-only, and an archive can be read back, in chunks and over any
//! connection that makes progress.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "s3/bench.rs"]
mod bench;
#[path = "s3/erasing.rs"]
mod erasing;
#[path = "s3/failing.rs"]
mod failing;
#[path = "s3/fair.rs"]
mod fair;
#[path = "s3/moving.rs"]
mod moving;
#[path = "s3/slow_line.rs"]
mod slow_line;
#[path = "../src/archive/test_relay.rs"]
mod test_relay;

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use computer_operator::archive::chunks::{Blob, Sizes};
use computer_operator::archive::manifest::{Manifest, ManifestComputer};
use computer_operator::archive::pack::{self, Request};
use computer_operator::archive::store::{ReceiptPut, Store, StoreError};
use computer_operator::archive::store_check::{Checker, short};
use computer_operator::archive::transport::Idle;
use computer_operator::archive::{Unreadable, Verification, chunk_key, manifest_key, verify};
use sha2::{Digest as _, Sha256};
use xtask::tools::{self, Tool};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(folder: &std::path::Path) -> (Server, String) {
    let port = free_port();
    let server = serve_with(folder, port, "tester-secret", &[]);
    let credentials = "access_key_id=tester&secret_access_key=tester-secret";
    (server, format!("s3://archives/of-a-cluster?endpoint=http://127.0.0.1:{port}&region=us-east-1&allow_http=true&{credentials}"))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server at this port, with this secret key and further arguments.
fn serve_with(folder: &std::path::Path, port: u16, secret: &str, more: &[&str]) -> Server {
    let program = tools::ensure(&[Tool::VersityGw]).expect("versitygw");
    std::fs::create_dir_all(folder.join("archives")).unwrap();
    let child = Command::new(program.path(Tool::VersityGw))
        .args(["--access", "tester", "--secret", secret, "--port", &format!("127.0.0.1:{port}")])
        .args(more)
        .arg("posix")
        .arg(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("versitygw starts");
    let server = Server(child);
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "versitygw does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
    server
}

/// Performs every operation of a store and returns the errors.
async fn errors_of_all_operations(store: &Store) -> Vec<(&'static str, StoreError)> {
    vec![
        ("get", store.get(&manifest_key("uid")).await.unwrap_err()),
        ("size", store.size(&manifest_key("uid")).await.unwrap_err()),
        ("stream", store.stream(&manifest_key("uid")).await.map(drop).unwrap_err()),
        ("uids", store.uids().await.unwrap_err()),
        ("put_once", store.put_once("receipts/uid.json", b"{}".to_vec()).await.unwrap_err()),
        ("get_sized", store.get_sized(&chunk_key("uid", "a"), 4).await.unwrap_err()),
    ]
}

/// S1: a missing bucket or wrong credentials must not count as "the archive does not exist". S3 varies the text of its errors (request id, duration); the
/// operator must not, or every attempt would cause a status update.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_or_permission_is_reported_as_unavailable_with_a_constant_message() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let (_server, url) = serve(folder.path());
    let good = Store::open(&url).unwrap();
    assert!(matches!(good.size(&manifest_key("uid")).await, Err(StoreError::NotFound(_))), "the object does not exist");
    assert!(matches!(good.get(&manifest_key("uid")).await, Err(StoreError::NotFound(_))), "the object does not exist");
    assert_eq!(good.uids().await.unwrap(), Vec::<String>::new());
    for (broken, words) in [
        (url.replace("s3://archives/", "s3://archvies/"), "no such bucket"),
        (url.replace("tester-secret", "another-secret"), "credentials"),
        (url.replace("access_key_id=tester&", "access_key_id=stranger&"), "credentials"),
    ] {
        let store = Store::open(&broken).unwrap();
        let (first, second) = (errors_of_all_operations(&store).await, errors_of_all_operations(&store).await);
        for ((what, error), (_, again)) in first.iter().zip(&second) {
            assert!(matches!(error, StoreError::Unavailable(why) if why.contains(words)), "{what}: {error:?}");
            assert_eq!(error.to_string(), again.to_string(), "{what}");
        }
        assert!(matches!(verify::verify(&store, "uid").await, Verification::Unavailable(_)), "{words}");
    }
}

/// The check of the store at the start, on a server that refuses to overwrite: 32 creators of one object, one winner.
#[tokio::test(flavor = "multi_thread")]
async fn the_check_passes_and_names_what_is_wrong() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let (_server, url) = serve(folder.path());
    let store = Store::open(&url).unwrap();
    for _ in 0..3 {
        assert_eq!(Checker::default().whole(&store).await, Ok(()));
        assert_eq!(short(&store).await, Ok(()));
    }
    let left: Vec<_> =
        std::fs::read_dir(folder.path().join("archives/of-a-cluster/checks")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["exists"], "the check removes its objects");
    for (broken, words) in [
        (url.replace("s3://archives/", "s3://archvies/"), "no such bucket"),
        (url.replace("tester-secret", "another-secret"), "check the access key"),
        (url.replace("endpoint=http://127.0.0.1:", "endpoint=http://127.0.0.2:"), "check that it is running"),
    ] {
        let store = Store::open(&broken).unwrap();
        for result in [Checker::default().whole(&store).await, short(&store).await] {
            let why = result.unwrap_err().to_string();
            assert!(why.contains(words) && why.contains("writing an object failed"), "{why}");
        }
    }
}

/// A rotated key needed a restart of the operator.
#[tokio::test(flavor = "multi_thread")]
async fn rotated_credentials_are_used_without_a_restart() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (folder, secret) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mounted = |key: &str| {
        std::fs::write(secret.path().join("AWS_ACCESS_KEY_ID"), "tester").unwrap();
        std::fs::write(secret.path().join("AWS_SECRET_ACCESS_KEY"), key).unwrap();
    };
    let port = free_port();
    let server = serve_with(folder.path(), port, "first-secret", &[]);
    mounted("first-secret");
    let endpoint = format!("endpoint=http://127.0.0.1:{port}&region=us-east-1&allow_http=true");
    let store = Store::open(&format!("s3://archives?{endpoint}&credentials_folder={}", secret.path().display())).unwrap();
    assert_eq!(Checker::default().whole(&store).await, Ok(()));
    drop(server);
    let _server = serve_with(folder.path(), port, "second-secret", &[]);
    let why = short(&store).await.unwrap_err().to_string();
    assert!(why.contains("check the access key"), "{why}");
    mounted("second-secret");
    assert_eq!(short(&store).await, Ok(()));
}

/// A private certificate authority could not be configured.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_certificate_authority_is_trusted_and_no_other_one() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (folder, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |name: &str| files.path().join(name).display().to_string();
    let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(path("tls.crt"), signed.cert.pem()).unwrap();
    std::fs::write(path("tls.key"), signed.signing_key.serialize_pem()).unwrap();
    std::fs::write(path("other.crt"), other.cert.pem()).unwrap();
    let port = free_port();
    let _server = serve_with(folder.path(), port, "tester-secret", &["--cert", &path("tls.crt"), "--key", &path("tls.key")]);
    let url =
        format!("s3://archives?endpoint=https://127.0.0.1:{port}&region=us-east-1&access_key_id=tester&secret_access_key=tester-secret");
    let trusting = |name: &str| Store::open(&format!("{url}&ca_file={}", path(name))).unwrap();
    assert_eq!(Checker::default().whole(&trusting("tls.crt")).await, Ok(()));
    for store in [Store::open(&url).unwrap(), trusting("other.crt")] {
        let why = short(&store).await.unwrap_err().to_string();
        assert!(why.contains("certificate of the archive store is not accepted"), "{why}");
    }
    assert!(Store::open(&format!("{url}&ca_file={}", path("missing.crt"))).unwrap_err().to_string().contains("missing.crt"));
}

/// Without a server, and with a proxy that responds to everything with 404.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_not_s3_is_reported_as_unavailable() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = proxy.local_addr().unwrap().port();
    let url = format!("s3://a/b?endpoint=http://127.0.0.1:{port}&region=us-east-1&allow_http=true&access_key_id=a&secret_access_key=b");
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        while let Ok((mut stream, _)) = proxy.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 8192]).await;
                let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            });
        }
    });
    for (what, error) in errors_of_all_operations(&Store::open(&url).unwrap()).await {
        assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("a proxy")), "{what}: {error:?}");
    }
    let closed = url.replace(&port.to_string(), "9");
    let error = Store::open(&closed).unwrap().get(&manifest_key("uid")).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("Connection refused")), "{error:?}");
}

fn through(url: &str, line: SocketAddr) -> String {
    let (before, after) = url.split_once("endpoint=http://").unwrap();
    let (_, after) = after.split_once('&').unwrap();
    format!("{before}endpoint=http://{line}&{after}")
}

fn server_of(url: &str) -> SocketAddr {
    url.split_once("endpoint=http://").unwrap().1.split_once('&').unwrap().0.parse().unwrap()
}

/// Incompressible bytes and their digest.
fn noise(size: usize) -> (Bytes, String) {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    let digest = hex::encode(Sha256::digest(&bytes));
    (Bytes::from(bytes), digest)
}

/// Uploads an object over a connection and reads it back. Returns the duration of each.
async fn upload_and_read(store: &Store, size: usize) -> (Duration, Duration) {
    let (bytes, digest) = noise(size);
    let key = chunk_key("uid", &digest);
    let began = Instant::now();
    assert_eq!(store.put_once(&key, bytes.clone()).await.expect("put"), ReceiptPut::Created);
    let put = began.elapsed();
    let began = Instant::now();
    assert!(store.get_sized(&key, size as u64).await.expect("get") == bytes);
    (put, began.elapsed())
}

/// H2 of the review: a request was cancelled after 30 s and a read after 180 s, even if it made progress.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_connection_that_makes_progress_is_not_cancelled() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let (_server, url) = serve(folder.path());
    let line = test_relay::relay(server_of(&url), 1_000_000, u64::MAX);
    let idle = Idle { silence: Duration::from_secs(2), answer: Duration::from_secs(5) };
    let store = Store::open_with(&through(&url, line), idle).unwrap();
    let (put, read) = upload_and_read(&store, 8 << 20).await;
    assert!(put > Duration::from_secs(3) && read > Duration::from_secs(6), "the connection is not slow: {put:?} {read:?}");
}

/// Uploads and reads without progress fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_connection_ends_with_an_error() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let (_server, url) = serve(folder.path());
    let (bytes, digest) = noise(8 << 20);
    let key = chunk_key("uid", &digest);
    Store::open(&url).unwrap().put_once(&key, bytes.clone()).await.unwrap();
    let line = test_relay::relay(server_of(&url), 50_000_000, 1_000_000);
    let idle = Idle { silence: Duration::from_secs(1), answer: Duration::from_secs(2) };
    let store = Store::open_with(&through(&url, line), idle).unwrap();
    // After each interruption the read resumes: it returns the whole object or an error, never less.
    let read = tokio::time::timeout(Duration::from_secs(240), store.get_sized(&key, 8 << 20)).await.expect("a read hangs");
    assert!(read.is_err() || read.is_ok_and(|read| read == bytes), "truncated read");
    let (other, digest) = noise((8 << 20) + 1);
    let key = chunk_key("uid", &digest);
    let put = store.put_once(&key, other);
    let put = tokio::time::timeout(Duration::from_secs(240), put).await.expect("an upload hangs");
    assert!(matches!(put, Err(StoreError::Unavailable(_))), "{put:?}");
}

/// Packs a home of noise, as an archive pod does.
fn packed(home: &std::path::Path) -> (Manifest, Vec<Blob>) {
    let mut manifest = Manifest::empty(
        ManifestComputer { namespace: "t".to_owned(), namespace_uid: None, name: "c".to_owned(), uid: "uid".to_owned() },
        1,
    );
    let mut blobs = Vec::new();
    let mut take = |blob| {
        blobs.push(blob);
        Ok(())
    };
    let (progress, tally) = (Arc::default(), Arc::default());
    let request = Request { home, session_paths: &[], unreadable: Unreadable::Block, sizes: Sizes::default(), progress, tally };
    pack::pack(&request, &mut manifest, &mut take).unwrap();
    (manifest, blobs)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_in_s3_is_create_only_and_reads_back() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (folder, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_server, url) = serve(folder.path());
    let store = Store::open(&url).expect("a store");
    // Several chunks, and small sessions beside a large one.
    std::fs::write(home.path().join("a.jsonl"), noise(20_000_000).0).unwrap();
    for n in 0..20 {
        std::fs::write(home.path().join(format!("small-{n}")), noise(1000 + n).0).unwrap();
    }
    let (manifest, blobs) = packed(home.path());
    assert!(manifest.chunks.count >= 3 && manifest.sessions == 21, "{manifest:?}");
    for blob in &blobs {
        let key = chunk_key("uid", &blob.chunk.digest);
        assert_eq!(store.put_once(&key, blob.bytes.clone()).await.expect("put"), ReceiptPut::Created);
        // The server refuses a large one while it is still being sent, and closes the connection: archive pod and operator ask first.
        if blob.bytes.len() < 64 * 1024 {
            assert_eq!(store.put_once(&key, blob.bytes.clone()).await.expect("put"), ReceiptPut::SameAlready);
        }
        assert_eq!(store.size(&key).await.expect("head"), blob.chunk.size);
    }
    let bytes = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(verify::verify(&store, "uid").await, Verification::Missing);
    assert_eq!(store.put_once(&manifest_key("uid"), bytes.clone()).await.expect("put"), ReceiptPut::Created);
    assert_eq!(store.put_once(&manifest_key("uid"), bytes.clone()).await.expect("put"), ReceiptPut::SameAlready);
    assert_eq!(store.put_once(&manifest_key("uid"), b"other".to_vec()).await.expect("put"), ReceiptPut::Other(bytes), "S7");
    let verified = verify::verify(&store, "uid").await;
    assert!(matches!(&verified, Verification::Valid(summary) if summary.sessions == 21), "{verified:?}");
    assert_eq!(store.uids().await.expect("list"), ["uid"]);
    // A chunk is lost.
    let lost = folder.path().join("archives/of-a-cluster").join(chunk_key("uid", &blobs[1].chunk.digest));
    std::fs::remove_file(lost).unwrap();
    assert!(matches!(verify::verify(&store, "uid").await, Verification::Invalid(_)), "a chunk is missing");
}

/// L1, L8: an archive is read back over a slow connection, chunk by chunk.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_read_back_over_a_slow_connection() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (folder, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_server, url) = serve(folder.path());
    let store = Store::open(&url).expect("a store");
    std::fs::write(home.path().join("a.jsonl"), noise(12_000_000).0).unwrap();
    let (manifest, blobs) = packed(home.path());
    for blob in &blobs {
        store.put_once(&chunk_key("uid", &blob.chunk.digest), blob.bytes.clone()).await.expect("put");
    }
    store.put_once(&manifest_key("uid"), serde_json::to_vec(&manifest).unwrap()).await.expect("put");
    let line = test_relay::relay(server_of(&url), 1_000_000, u64::MAX);
    let idle = Idle { silence: Duration::from_secs(2), answer: Duration::from_secs(5) };
    let slow = Store::open_with(&through(&url, line), idle).unwrap();
    let began = Instant::now();
    let verified = verify::verify(&slow, "uid").await;
    assert!(matches!(verified, Verification::Valid(_)), "{verified:?}");
    assert!(began.elapsed() > Duration::from_secs(5), "the connection is not slow: {:?}", began.elapsed());
}
