//! Tests of the store in a folder: create-only, digests, and what does not prove absence.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&format!("file://{}", folder.path().display())).expect("a store");
    (folder, store)
}

fn body(bytes: &'static [u8]) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Unpin {
    futures::stream::iter(bytes.chunks(3).map(|c| Ok(Bytes::from_static(c))))
}

#[tokio::test]
async fn what_is_there_is_never_overwritten() {
    let (_folder, store) = store();
    assert_eq!(store.put_once("receipts/a.json", b"one".to_vec()).await.expect("put"), ReceiptPut::Created);
    assert_eq!(store.put_once("receipts/a.json", b"one".to_vec()).await.expect("put"), ReceiptPut::SameAlready);
    assert_eq!(store.put_once("receipts/a.json", b"two".to_vec()).await.expect("put"), ReceiptPut::Other(b"one".to_vec()));
    assert_eq!(store.get("receipts/a.json").await.expect("get"), b"one");
}

#[tokio::test]
async fn bytes_of_another_digest_never_become_visible() {
    let (_folder, store) = store();
    let digest = hex::encode(Sha256::digest(b"hello world"));
    let key = super::super::object_key("u", &digest);
    assert!(matches!(store.put_addressed(&key, &digest, 11, body(b"hello mars!")).await, Err(StoreError::Corrupt(_))));
    assert!(matches!(store.size(&key).await, Err(StoreError::NotFound(_))));
    for size in [10, 12] {
        let put = store.put_addressed(&key, &digest, size, body(b"hello world")).await;
        assert!(matches!(&put, Err(StoreError::Corrupt(why)) if why.contains(&format!("not the {size}"))), "{put:?}");
        assert!(matches!(store.size(&key).await, Err(StoreError::NotFound(_))));
    }
    store.put_addressed(&key, &digest, 11, body(b"hello world")).await.expect("put");
    assert_eq!(store.size(&key).await.expect("head"), 11);
    assert_eq!(store.uids().await.expect("list"), ["u"]);
}

#[test]
fn a_url_that_cannot_be_used_says_what_can() {
    let error = Store::open("ftp://x").expect_err("refused").to_string();
    assert!(error.contains("file:///path or s3://"), "{error}");
}

/// S1: a volume that is no longer mounted is an empty folder, and an empty folder proves nothing about the archives.
#[tokio::test]
async fn a_missing_or_replaced_folder_does_not_prove_absence() {
    let outer = tempfile::tempdir().expect("a folder");
    let root = outer.path().join("store");
    let store = Store::open(&format!("file://{}", root.display())).expect("a store");
    assert!(matches!(store.get("archives/u/manifest.json").await, Err(StoreError::NotFound(_))), "an honest absence");
    assert_eq!(store.uids().await.expect("list"), Vec::<String>::new());
    for make in [false, true] {
        std::fs::rename(&root, outer.path().join(format!("away-{make}"))).expect("moved");
        if make {
            std::fs::create_dir(&root).expect("another one");
        }
        let looks = [
            store.get("archives/u/manifest.json").await.map(drop),
            store.size("archives/u/manifest.json").await.map(drop),
            store.stream("archives/u/manifest.json").await.map(drop),
            store.uids().await.map(drop),
        ];
        for look in looks {
            assert!(matches!(&look, Err(StoreError::Unavailable(why)) if why.contains("check its volume")), "{make} {look:?}");
        }
        if !make {
            std::fs::rename(outer.path().join("away-false"), &root).expect("back");
            assert!(matches!(store.get("archives/u/manifest.json").await, Err(StoreError::NotFound(_))), "mounted again");
        }
    }
}

#[test]
fn a_misspelt_folder_is_not_an_empty_store() {
    let outer = tempfile::tempdir().expect("a folder");
    let misspelt = outer.path().join("stroe");
    assert!(Store::open_existing(&format!("file://{}", misspelt.display())).is_err());
    assert!(!misspelt.exists(), "reading made it");
}

#[test]
fn an_error_about_a_url_does_not_show_its_keys() {
    let error = Store::open("s3://b?secret_access_key=hunter2&nonsense=1").expect_err("refused").to_string();
    assert!(!error.contains("hunter2"), "{error}");
}

/// A buffer of a connection, of which a few bytes are a chunk.
struct Buffer(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

/// L9: a sender of one byte at a time had a buffer of 8 KiB kept for each until a part was full: 64 GiB for one of 8 MiB.
#[tokio::test]
async fn an_upload_holds_its_bytes_and_not_the_buffers_that_they_came_in() {
    let (_folder, store) = store();
    let (held, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let size = 20_000;
    let chunks = futures::stream::iter((0..size).map({
        let (held, most) = (Arc::clone(&held), Arc::clone(&most));
        move |_| {
            most.fetch_max(held.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            Ok(Bytes::from_owner(Buffer(vec![b'x'; 8192], Arc::clone(&held))).slice(..1))
        }
    }));
    let digest = hex::encode(Sha256::digest(vec![b'x'; size]));
    let key = super::super::object_key("u", &digest);
    store.put_addressed(&key, &digest, size as u64, chunks).await.expect("put");
    assert!(most.load(Ordering::Relaxed) < 4, "{most:?} buffers were kept");
    assert_eq!(store.size(&key).await.expect("head"), size as u64);
}
