//! An archive is erased from a real S3 server, with its rights and its listings: tombstone first, and nothing else is touched.

use async_trait::async_trait;
use computer_operator::archive::holds::{Holds, Stop, Subject};
use computer_operator::archive::removal::{Progress, Request, remove};
use computer_operator::archive::tombstone::{self, Decision, Target};
use computer_operator::archive::{Verification, chunk_key, manifest_key, receipt_key, verify};
use jiff::Timestamp;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{Store, noise, packed, serve};

struct Free;

#[async_trait]
impl Holds for Free {
    async fn permit(&self, _: &Subject) -> Result<(), Stop> {
        Ok(())
    }
}

struct Held;

#[async_trait]
impl Holds for Held {
    async fn permit(&self, archive: &Subject) -> Result<(), Stop> {
        Err(Stop::Held(format!("{} is held", archive.computer_uid)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_erased_from_s3_and_its_receipt_stays() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (folder, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_server, url) = serve(folder.path());
    let store = Store::open(&url).expect("a store");
    std::fs::write(home.path().join("a.jsonl"), noise(20_000_000).0).unwrap();
    let (manifest, blobs) = packed(home.path());
    for blob in &blobs {
        store.put_once(&chunk_key("uid", &blob.chunk.digest), blob.bytes.clone()).await.expect("put");
    }
    store.put_once(&chunk_key("uid2", &blobs[0].chunk.digest), blobs[0].bytes.clone()).await.expect("put");
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let digest = hex::encode(Sha256::digest(&bytes));
    store.put_once(&manifest_key("uid"), bytes).await.expect("put");
    let receipt = json!({"computer": {"namespace": "t", "name": "c", "uid": "uid"}, "writtenAt": "2026-01-01T00:01:00.000000Z",
        "archive": {"manifestDigest": digest}});
    store.put_once(&receipt_key("uid"), receipt.to_string().into_bytes()).await.expect("put");
    let text = str::to_owned;
    let request = Request {
        target: Target { namespace: text("t"), namespace_uid: None, name: text("c"), uid: text("uid") },
        decision: Decision {
            kind: text("ArchiveErasure"),
            name: text("e"),
            uid: text("decision"),
            requested_by: text("ann"),
            requested_at: None,
            reason: text("the owner has asked for it"),
        },
    };
    let mut progress = Progress::default();
    let held = remove(&store, &request, &Held, Timestamp::now(), &mut progress).await;
    assert!(matches!(held, Err(Stop::Held(_))) && progress.tombstone.is_none(), "{held:?}");
    assert!(matches!(verify::verify(&store, "uid").await, Verification::Valid(_)));
    remove(&store, &request, &Free, Timestamp::now(), &mut progress).await.expect("the removal");
    assert_eq!(progress.removed.map(|(objects, _)| objects), Some(blobs.len() as u64 + 1));
    assert_eq!(verify::verify(&store, "uid").await, Verification::Missing);
    assert_eq!(store.uids().await.expect("list"), ["uid2"], "the same bytes of another computer");
    assert_eq!(store.get(&receipt_key("uid")).await.expect("the receipt"), receipt.to_string().into_bytes());
    assert_eq!(tombstone::all(&store, "uid").await.expect("tombstones"), [progress.tombstone.unwrap()]);
    remove(&store, &request, &Held, Timestamp::now(), &mut Progress::default()).await.expect("nothing is left that could be held");
}
