//! The archive in S3, against a real server (versitygw on loopback): create-only holds there too, wrong bytes never become visible,
//! and an archive reads back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use computer_operator::archive::Unreadable;
use computer_operator::archive::pack::{self, Problems};
use computer_operator::archive::store::{ReceiptPut, Store, StoreError};
use computer_operator::archive::{Verification, manifest_key, object_key, verify};
use serde_json::json;
use xtask::tools::{self, Tool};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(folder: &std::path::Path) -> (Server, String) {
    let program = tools::ensure(&[Tool::VersityGw]).expect("versitygw");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::fs::create_dir_all(folder.join("archives")).unwrap();
    let child = Command::new(program.path(Tool::VersityGw))
        .args(["--access", "tester", "--secret", "tester-secret", "--port", &format!("127.0.0.1:{port}"), "posix"])
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
    let credentials = "access_key_id=tester&secret_access_key=tester-secret";
    (server, format!("s3://archives/of-a-cluster?endpoint=http://127.0.0.1:{port}&region=us-east-1&allow_http=true&{credentials}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_in_s3_is_create_only_and_reads_back() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (folder, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_server, url) = serve(folder.path());
    let store = Store::open(&url).expect("a store");
    // Larger than one part of an upload.
    let content: Vec<u8> = (0..20_000_000_u32).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    std::fs::write(home.path().join("a.jsonl"), &content).unwrap();
    let found = pack::find(home.path(), &[], Unreadable::Block).unwrap();
    let (id, files) = found.sessions.iter().next().unwrap();
    let packed = pack::pack(home.path(), folder.path(), id, files, Unreadable::Block, &mut Problems::default()).unwrap().unwrap();
    let object = Bytes::from(std::fs::read(packed.object.path()).unwrap());
    let key = object_key("uid", &packed.entry.digest);
    let body = |bytes: Bytes| futures::stream::iter([Ok(bytes)]);

    let wrong = store.put_addressed(&key, &packed.entry.digest, body(object.slice(1..))).await;
    assert!(matches!(wrong, Err(StoreError::Corrupt(_))), "{wrong:?}");
    assert!(matches!(store.size(&key).await, Err(StoreError::NotFound(_))), "wrong bytes became visible");
    assert_eq!(store.put_addressed(&key, &packed.entry.digest, body(object)).await.expect("put"), packed.entry.size);

    let manifest = json!({"version": 1, "computer": {"namespace": "t", "name": "c", "uid": "uid"}, "createdAt": 1, "sessionPaths": [],
        "sessions": [packed.entry], "problems": [], "problemCount": 0});
    let bytes = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(verify::verify(&store, "uid").await, Verification::Missing);
    assert_eq!(store.put_once(&manifest_key("uid"), bytes.clone()).await.expect("put"), ReceiptPut::Created);
    assert_eq!(store.put_once(&manifest_key("uid"), bytes.clone()).await.expect("put"), ReceiptPut::SameAlready);
    assert_eq!(store.put_once(&manifest_key("uid"), b"other".to_vec()).await.expect("put"), ReceiptPut::Other(bytes), "S7");
    assert!(matches!(verify::verify(&store, "uid").await, Verification::Valid(_)));
    assert_eq!(store.uids().await.expect("list"), ["uid"]);
}
