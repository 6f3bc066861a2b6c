//! Which stores pass, and what a store that does not pass may be used for.

use object_store::memory::InMemory;

use super::*;
use crate::archive::receipt_key;
use crate::archive::test_store::{Create, TestStore};

fn store_that(create: Create) -> Store {
    Store::new(Arc::new(TestStore { create, ..TestStore::default() }))
}

async fn whole(store: &Store) -> Result<(), Failed> {
    Checker::default().whole(store).await
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
    assert!(why.starts_with("reading an object failed: "), "{why}");
    let denied = || StoreError::Unavailable("the archive store denies access (HTTP 403, AccessDenied)".to_owned());
    let why = while_trying("listing objects", "s3:ListBucket")(denied()).to_string();
    assert!(why.starts_with("listing objects failed, which needs s3:ListBucket: "), "{why}");
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
    // An outage of writes: what is written later is as safe as before.
    slow.down.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(checked.recv().await, Some(false));
    assert!(!health.report().0 && store.refusal().is_none(), "{:?}", health.report());
    slow.down.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(checked.recv().await, Some(true));
    assert!(store.create(&receipt_key("v"), Bytes::new()).await.unwrap() && health.report().0);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(health.report().0);
    stop.cancel();
    watching.await.unwrap();
    tokio::time::sleep(STALE * 2).await;
    let (usable, text) = health.report();
    assert!(!usable && text.contains("does not answer"), "a check that hangs is not a good one: {text}");
}

/// Some stores accept one write a second for each key, and some throttle.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_most_creators_passes_if_one_wins() {
    for failing in [1, 31, 34] {
        let store = Arc::new(TestStore::default());
        store.fail_puts.store(failing, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(whole(&Store::new(store)).await, Ok(()), "{failing}");
    }
    let store = Arc::new(TestStore::default());
    store.down.store(true, std::sync::atomic::Ordering::SeqCst);
    let why = whole(&Store::new(store)).await.unwrap_err().to_string();
    assert!(why.starts_with("writing an object failed: "), "{why}");
}

/// Without the rights to list and to delete, the check is repeated again and again.
#[tokio::test]
async fn a_check_that_is_repeated_leaves_one_object() {
    let broken = Arc::new(TestStore { create: Create::Once, ..TestStore::default() });
    broken.fail(|key| key.contains("absent-"));
    broken.keeps.store(true, std::sync::atomic::Ordering::SeqCst);
    let store = Store::new(Arc::clone(&broken) as Arc<dyn object_store::ObjectStore>);
    let mut checker = Checker::default();
    for _ in 0..5 {
        let why = checker.whole(&store).await.unwrap_err().to_string();
        assert!(why.starts_with("looking for an object that does not exist failed"), "{why}");
    }
    let objects = object_store::ObjectStore::list(&broken.inner, None);
    assert_eq!(futures::StreamExt::count(objects).await, 2, "one of the race, and one that exists");
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
    assert!(store.space().await.is_err());
}
