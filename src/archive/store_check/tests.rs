//! Which stores pass, and what a store that does not pass may be used for.

use object_store::memory::InMemory;

use super::*;
use crate::archive::receipt_key;
use crate::archive::test_store::{Create, TestStore};

fn store_that(create: Create) -> Store {
    Store::new(Arc::new(TestStore { create, ..TestStore::default() }))
}

fn folder() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
    (folder, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_passes_and_only_one_object_remains() {
    let (folder, store) = folder();
    for _ in 0..3 {
        assert_eq!(whole(&store).await, Ok(()));
        assert_eq!(short(&store).await, Ok(()));
    }
    let left: Vec<_> = std::fs::read_dir(folder.path().join("checks")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["exists"]);
    assert_eq!(store.uids().await.unwrap(), Vec::<String>::new());
}

/// S7: each of these stores would lose an archive or a receipt.
#[tokio::test(start_paused = true)]
async fn a_store_that_replaces_objects_does_not_pass() {
    for create in [Create::Overwrites, Create::Races, Create::KeepsTheLast] {
        assert_eq!(whole(&store_that(create)).await, Err(Failed::Overwrites), "{create:?}");
    }
    assert_eq!(short(&store_that(Create::Overwrites)).await, Err(Failed::Overwrites));
    let refused = whole(&store_that(Create::Refused)).await.unwrap_err().to_string();
    assert!(refused.contains("refused to create") && refused.contains("conditional writes"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_failure_names_what_was_tried_and_the_right_that_it_needs() {
    let broken = TestStore::default();
    broken.fail(|key| key.contains("race-"));
    let why = whole(&Store::new(Arc::new(broken))).await.unwrap_err().to_string();
    assert!(why.contains("reading an object failed, which needs s3:GetObject"), "{why}");
}

/// Runs the watch until it has checked once.
async fn watched(store: &Arc<Store>) -> (bool, String) {
    refuse_until_checked(store);
    let (health, stop) = (Arc::new(Health::default()), CancellationToken::new());
    let checked = {
        let stop = stop.clone();
        move |_| stop.cancel()
    };
    watch(Arc::clone(store), Arc::clone(&health), checked, stop).await;
    health.report()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_to_a_store_that_overwrites() {
    let receipt = || Bytes::from_static(b"{}");
    let store = Arc::new(store_that(Create::Overwrites));
    let (passed, text) = watched(&store).await;
    assert!(!passed && text.contains("If-None-Match"), "{text}");
    let error = store.create(&receipt_key("u"), receipt()).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(why) if why == OVERWRITES), "{error}");
    assert!(matches!(store.get(&receipt_key("u")).await, Err(StoreError::NotFound(_))), "nothing was written");

    let store = Arc::new(Store::new(Arc::new(InMemory::new())));
    let (passed, text) = watched(&store).await;
    assert!(passed && text.contains("passed its check"), "{text}");
    assert!(store.create(&receipt_key("u"), receipt()).await.unwrap());
}

/// The first check may take long. Until then the store may be one that overwrites.
#[tokio::test(start_paused = true)]
async fn nothing_is_written_before_the_first_check_and_an_outage_later_refuses_nothing() {
    let slow = Arc::new(TestStore { delay: Duration::from_secs(10), ..TestStore::default() });
    let store = Arc::new(Store::new(Arc::clone(&slow) as Arc<dyn object_store::ObjectStore>));
    let (health, stop) = (Arc::new(Health::default()), CancellationToken::new());
    refuse_until_checked(&store);
    let (results, mut checked) = tokio::sync::mpsc::unbounded_channel();
    let watching = tokio::spawn(watch(Arc::clone(&store), Arc::clone(&health), move |passed| results.send(passed).unwrap(), stop.clone()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(health.report(), (false, "the archive store is being checked".to_owned()));
    assert!(store.create(&receipt_key("u"), Bytes::new()).await.is_err(), "not checked yet");
    assert_eq!(checked.recv().await, Some(true));
    assert!(store.create(&receipt_key("u"), Bytes::new()).await.unwrap());
    // The store loses the object of the check, and cannot be read.
    slow.fail(|_| true);
    store.delete_check("checks/exists").await.unwrap();
    assert_eq!(checked.recv().await, Some(true), "a short check reads nothing");
    assert!(store.create(&receipt_key("v"), Bytes::new()).await.unwrap());
    stop.cancel();
    watching.await.unwrap();
}

#[tokio::test]
async fn a_check_deletes_only_its_own_objects() {
    let (_folder, store) = folder();
    store.create(&receipt_key("u"), Bytes::new()).await.unwrap();
    for key in ["receipts/u.json", "archives/u/manifest.json", "", "checksum"] {
        assert!(store.delete_check(key).await.is_err(), "{key}");
    }
    assert!(store.get("receipts/u.json").await.is_ok());
}

/// A volume that is no longer mounted leaves an empty folder, which would accept everything.
#[tokio::test]
async fn an_unmounted_volume_does_not_pass_and_takes_no_receipt() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("store");
    let store = Store::open(&format!("file://{}", root.display())).unwrap();
    assert_eq!(short(&store).await, Ok(()));
    std::fs::rename(&root, outer.path().join("away")).unwrap();
    std::fs::create_dir(&root).unwrap();
    for result in [short(&store).await, whole(&store).await] {
        assert!(matches!(&result, Err(Failed::Unusable(why)) if why.contains("check its volume")), "{result:?}");
    }
    assert!(store.create(&receipt_key("u"), Bytes::new()).await.is_err());
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "nothing was written");
    assert!(store.space().is_err());
}
