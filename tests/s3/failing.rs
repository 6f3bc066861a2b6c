//! A real S3 server behind a relay that fails some requests: storms of 503, a right that is missing, and conditions that are ignored.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What becomes of a request, given its method and its target: `None`, it is forwarded, or this status and code.
type Decide = dyn Fn(&str, &str) -> Option<(u16, &'static str)> + Send + Sync;

/// Forwards requests to `to`, one on each connection, or answers them itself.
async fn relay(to: SocketAddr, decide: Arc<Decide>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let decide = Arc::clone(&decide);
            tokio::spawn(async move { one(client, to, &*decide).await });
        }
    });
    address
}

/// One request. Neither side uses the connection again: each request is decided by itself.
async fn one(mut client: TcpStream, to: SocketAddr, decide: &Decide) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.ok()?);
    }
    let text = String::from_utf8(head).ok()?;
    let mut words = text.split(' ');
    if let Some((status, code)) = decide(words.next()?, words.next()?) {
        // The rest of the request is read, so that the answer is not lost by a reset.
        let length = |line: &str| line.to_ascii_lowercase().strip_prefix("content-length: ")?.trim().parse::<u64>().ok();
        let body = text.lines().find_map(length).unwrap_or(0);
        tokio::io::copy(&mut (&mut client).take(body), &mut tokio::io::sink()).await.ok()?;
        let xml = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
        let answer =
            format!("HTTP/1.1 {status} no\r\ncontent-type: application/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", xml.len());
        let xml = if text.starts_with("HEAD") { String::new() } else { xml };
        return client.write_all((answer + &xml).as_bytes()).await.ok();
    }
    let mut server = TcpStream::connect(to).await.ok()?;
    let head = text.strip_suffix("\r\n")?;
    server.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await.ok()?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.ok().map(drop)
}

/// A store behind such a relay, and one without it.
async fn stores(
    folder: &std::path::Path,
    decide: impl Fn(&str, &str) -> Option<(u16, &'static str)> + Send + Sync + 'static,
) -> (Server, Store, Store) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (server, url) = serve(folder);
    let line = relay(server_of(&url), Arc::new(decide)).await;
    (server, Store::open(&through(&url, line)).unwrap(), Store::open(&url).unwrap())
}

/// S12: each request fails many times, and then succeeds. Nothing is lost, and nothing counts as missing meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_503_that_ends_is_survived() {
    let (folder, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let refusals = Arc::new(AtomicUsize::new(0));
    let left = Arc::clone(&refusals);
    let slow_down = move |_: &str, _: &str| {
        let blows = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        blows.then_some((503, "SlowDown"))
    };
    let (_server, store, _) = stores(folder.path(), slow_down).await;
    std::fs::write(home.path().join("a.jsonl"), noise(9_000_000).0).unwrap();
    let (manifest, blobs) = packed(home.path());
    let (bytes, digest) = noise(1000);
    refusals.store(1000, Ordering::SeqCst);
    for (what, error) in errors_of_all_operations(&store).await {
        // The answer to a HEAD has no code.
        let words = if what == "size" { "HTTP 503" } else { "limits requests" };
        assert!(matches!(&error, StoreError::Unavailable(why) if why.contains(words)), "{what}: {error:?}");
    }
    assert!(matches!(verify::verify(&store, "uid").await, Verification::Unavailable(_)), "it is not missing");
    refusals.store(3, Ordering::SeqCst);
    assert_eq!(
        store.put_once(&chunk_key("uid", &digest), bytes).await.unwrap(),
        ReceiptPut::Created,
        "a short storm ends within the request"
    );
    refusals.store(0, Ordering::SeqCst);
    for blob in &blobs {
        assert_eq!(store.put_once(&chunk_key("uid", &blob.chunk.digest), blob.bytes.clone()).await.unwrap(), ReceiptPut::Created);
    }
    store.put_once(&manifest_key("uid"), serde_json::to_vec(&manifest).unwrap()).await.unwrap();
    // The objects are read again until the storm has ended; the manifest has no such patience.
    let reading = tokio::spawn({
        let store = store.clone();
        async move { verify::verify(&store, "uid").await }
    });
    refusals.store(2, Ordering::SeqCst);
    let verified = tokio::time::timeout(Duration::from_secs(120), reading).await.expect("it hangs").unwrap();
    assert!(matches!(verified, Verification::Valid(_)), "{verified:?}");
}

/// The message names the right that is missing, and S1: without the right to list, S3 answers 403 for an object that does not exist.
#[tokio::test(flavor = "multi_thread")]
async fn one_missing_right_is_named() {
    // The listing of a bucket has a query, the reading of an object has none.
    let list = |method: &str, target: &str| method == "GET" && target.contains('?');
    for right in ["s3:PutObject", "s3:GetObject", "s3:ListBucket"] {
        let folder = tempfile::tempdir().unwrap();
        let deny = move |method: &str, target: &str| {
            let needs = match method {
                "PUT" => "s3:PutObject",
                _ if list(method, target) => "s3:ListBucket",
                _ => "s3:GetObject",
            };
            (needs == right && method != "DELETE").then_some((403, "AccessDenied"))
        };
        let (_server, store, good) = stores(folder.path(), deny).await;
        assert_eq!(Checker::default().whole(&good).await, Ok(()));
        let why = Checker::default().whole(&store).await.unwrap_err().to_string();
        assert!(why.contains("denies access") && why.contains(&format!("which needs {right}")), "{right}: {why}");
        let found = (store.get(&manifest_key("uid")).await, store.size(&manifest_key("uid")).await, store.uids().await);
        match right {
            "s3:GetObject" => {
                assert!(matches!((&found.0, &found.1), (Err(StoreError::Unavailable(_)), Err(StoreError::Unavailable(_)))), "{found:?}");
            }
            "s3:ListBucket" => assert!(matches!(found.2, Err(StoreError::Unavailable(_))), "an empty listing would be wrong: {found:?}"),
            _ => assert!(matches!(found.0, Err(StoreError::NotFound(_))) && found.2.is_ok(), "{found:?}"),
        }
    }
}

/// S7: the relay removes the object before each write, as if the server did not look at the condition. Nothing may be written to such a store.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ignores_the_condition_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let root: PathBuf = folder.path().into();
    let overwrite = move |method: &str, target: &str| {
        if method == "PUT" {
            let _ = std::fs::remove_file(root.join(target.trim_start_matches('/').split('?').next().unwrap_or_default()));
        }
        None
    };
    let (_server, store, good) = stores(folder.path(), overwrite).await;
    for result in [Checker::default().whole(&store).await, short(&store).await] {
        let why = result.unwrap_err().to_string();
        assert!(why.contains("overwrites existing objects"), "{why}");
    }
    assert_eq!(Checker::default().whole(&good).await, Ok(()), "the server itself is right");
}
