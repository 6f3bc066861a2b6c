//! Tests of the store in a folder: create-only, digests, and what does not prove absence.

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&format!("file://{}", folder.path().display())).expect("a store");
    (folder, store)
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
async fn an_object_of_another_size_is_not_read() {
    let (_folder, store) = store();
    store.put_once("archives/u/chunks/a.zst", b"hello".to_vec()).await.expect("put");
    assert_eq!(store.get_sized("archives/u/chunks/a.zst", 5).await.expect("get"), b"hello");
    assert_eq!(store.uids().await.expect("list"), ["u"]);
    for size in [0, 4, 6, u64::MAX] {
        assert!(matches!(store.get_sized("archives/u/chunks/a.zst", size).await, Err(StoreError::Corrupt(_))), "{size}");
    }
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

/// A copy of a store has times of its own. The newest manifest of a UID that was deleted several times was once that which was copied last.
#[tokio::test]
async fn the_manifests_say_which_one_is_the_newest() {
    let (_folder, store) = store();
    let manifest = |created_at: i64| {
        let mut manifest = crate::archive::manifest::tests::empty("u");
        manifest.created_at = created_at;
        serde_json::to_vec(&manifest).expect("JSON")
    };
    let key = |claim: &str| crate::archive::later_manifest_key("u", claim);
    assert_eq!(store.newest_manifest("u").await.expect("a key"), crate::archive::manifest_key("u"));
    for (claim, created_at, newest) in [("b", 30, "b"), ("a", 20, "b"), ("d", 40, "d"), ("c", 10, "d")] {
        store.put_once(&key(claim), manifest(created_at)).await.expect("put");
        assert_eq!(store.newest_manifest("u").await.expect("a key"), key(newest), "after {claim}");
    }
    store.put_once(&key("0"), b"damaged".to_vec()).await.expect("put");
    assert_eq!(store.newest_manifest("u").await.expect("a key"), key("0"), "an older archive is not taken for one that cannot be read");
}
