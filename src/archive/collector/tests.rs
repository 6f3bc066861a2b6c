//! Tests of when leftovers are removed. What may be removed is tested in `leftovers/tests.rs`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::TryStreamExt as _;
use jiff::Timestamp;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use serde_json::json;

use super::*;
use crate::archive::test_store::TestStore;
use crate::archive::{chunk_key, receipt_key};

/// A store with what aborted attempts of these deletions left, and their receipts, which were written now.
async fn world(uids: &[&str]) -> (Arc<TestStore>, Arc<Store>) {
    let test = Arc::new(TestStore::default());
    for uid in uids {
        let receipt = json!({"computer": {"uid": uid}, "writtenAt": Timestamp::now().to_string(), "archive": null});
        for (key, content) in [(receipt_key(uid), receipt.to_string()), (chunk_key(uid, &"1".repeat(64)), "chunk".to_owned())] {
            test.inner.put(&key.as_str().into(), content.into()).await.unwrap();
        }
    }
    let store = Arc::new(Store::new(Arc::<TestStore>::clone(&test)));
    (test, store)
}

async fn chunks(test: &TestStore) -> Vec<String> {
    let all: Vec<_> = test.inner.list(None).try_collect().await.unwrap();
    all.into_iter().map(|object| object.location.to_string()).filter(|key| key.contains("/chunks/")).collect()
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

fn ended(uid: &str, at: i64) -> Ended {
    Ended { uid: uid.to_owned(), at }
}

#[tokio::test(start_paused = true)]
async fn each_ended_deletion_is_checked_once_and_a_failed_one_again_after_a_day() {
    let mut seen = Seen::new();
    let all = || vec![ended("old", 0), ended("young", 100), ended("failed", 0)];
    assert_eq!(due(all(), &mut seen, AGE), ["old", "failed"], "the young one has to wait");
    seen.insert("old".to_owned(), None);
    seen.insert("failed".to_owned(), Some(Instant::now() + AGAIN));
    assert_eq!(due(all(), &mut seen, AGE + 100), ["young"]);
    tokio::time::advance(AGAIN).await;
    assert_eq!(due(all(), &mut seen, AGE + 100), ["young", "failed"]);
    assert!(due(vec![], &mut seen, AGE).is_empty() && seen.is_empty(), "nothing is kept of records that no longer exist");
}

#[tokio::test(start_paused = true)]
async fn leftovers_are_removed_a_day_after_the_end_and_not_before() {
    let (test, store) = world(&["first", "second", "living"]).await;
    let (removed, time, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(now())), CancellationToken::new());
    let clock = Arc::clone(&time);
    let count = Arc::clone(&removed);
    let at = now();
    let task = tokio::spawn(run(
        store,
        move || vec![ended("first", at), ended("second", at)],
        move || *clock.lock().unwrap(),
        move |objects| drop(count.fetch_add(objects, Ordering::Relaxed)),
        stop.clone(),
    ));
    tokio::time::sleep(3 * INTERVAL).await;
    assert_eq!((chunks(&test).await.len(), removed.load(Ordering::Relaxed)), (3, 0), "the deletions have just ended");
    *time.lock().unwrap() = at + AGE + 1;
    tokio::time::sleep(2 * INTERVAL).await;
    assert_eq!((chunks(&test).await, removed.load(Ordering::Relaxed)), (vec![chunk_key("living", &"1".repeat(64))], 2));
    stop.cancel();
    task.await.unwrap();
}

/// Without the right to delete, or during an outage, nothing fails, and another deletion is not delayed.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_removed_is_tried_again_after_a_day() {
    let (test, store) = world(&["first", "second"]).await;
    test.keeps.store(true, Ordering::Relaxed);
    let (at, stop) = (now(), CancellationToken::new());
    let list = move || vec![ended("first", at), ended("without-a-receipt", at), ended("second", at)];
    let task = tokio::spawn(run(store, list, move || at + AGE + 1, |_| {}, stop.clone()));
    tokio::time::sleep(2 * INTERVAL).await;
    assert_eq!(chunks(&test).await.len(), 2);
    test.keeps.store(false, Ordering::Relaxed);
    tokio::time::sleep(2 * INTERVAL).await;
    assert_eq!(chunks(&test).await.len(), 2, "not tried again before a day has passed");
    tokio::time::sleep(AGAIN).await;
    assert_eq!(chunks(&test).await.len(), 0);
    stop.cancel();
    task.await.unwrap();
}
