//! Tests of when leftovers are removed. What may be removed is tested in `leftovers/tests.rs`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;

use super::*;
use crate::archive::Verification;
use crate::archive::holds::{Stop, Subject};
use crate::archive::leftovers::tests::World;
use crate::archive::test_archives::UID;
use crate::archive::verify::verify;

/// Holds everything, or nothing.
#[derive(Default)]
struct Switch(AtomicBool);

#[async_trait::async_trait]
impl Holds for Switch {
    async fn permit(&self, _: &Subject) -> Result<(), Stop> {
        if self.0.load(Ordering::SeqCst) { Err(Stop::Held("ArchiveHold h".to_owned())) } else { Ok(()) }
    }
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
    let world = World::new().await;
    let (before, at, stop) = (world.keys().await, now(), CancellationToken::new());
    let time = Arc::new(Mutex::new(at));
    let clock = Arc::clone(&time);
    // The store has no receipt of the first one. That does not delay the second one.
    let list = move || vec![ended("without-a-receipt", at), ended(UID, at)];
    let task =
        tokio::spawn(run((Arc::new(world.store.clone()), Arc::new(Switch::default())), list, move || *clock.lock().unwrap(), stop.clone()));
    tokio::time::sleep(3 * INTERVAL).await;
    assert_eq!(world.keys().await, before, "the deletions have just ended");
    *time.lock().unwrap() = at + AGE + 1;
    tokio::time::sleep(2 * INTERVAL).await;
    assert!(world.keys().await.len() < before.len());
    assert!(matches!(verify(&world.store, UID).await, Verification::Valid(_)));
    stop.cancel();
    task.await.unwrap();
}

/// Without the right to delete, or during an outage, nothing fails.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_removed_is_tried_again_after_a_day() {
    let world = World::new().await;
    world.test.keeps.store(true, Ordering::Relaxed);
    let (before, at, stop) = (world.keys().await, now(), CancellationToken::new());
    let held = (Arc::new(world.store.clone()), Arc::<Switch>::default() as Arc<dyn Holds>);
    let task = tokio::spawn(run(held, move || vec![ended(UID, at)], move || at + AGE + 1, stop.clone()));
    tokio::time::sleep(2 * INTERVAL).await;
    assert_eq!(world.keys().await, before);
    world.test.keeps.store(false, Ordering::Relaxed);
    tokio::time::sleep(2 * INTERVAL).await;
    assert_eq!(world.keys().await, before, "not tried again before a day has passed");
    tokio::time::sleep(AGAIN).await;
    assert!(world.keys().await.len() < before.len());
    stop.cancel();
    task.await.unwrap();
}

/// While an archive is held, its leftovers stay as well: they may be what an erasure has left of it.
#[tokio::test(start_paused = true)]
async fn leftovers_of_what_is_held_stay() {
    let world = World::new().await;
    let (before, at, stop) = (world.keys().await, now(), CancellationToken::new());
    let holds = Arc::new(Switch(AtomicBool::new(true)));
    let held = (Arc::new(world.store.clone()), Arc::<Switch>::clone(&holds) as Arc<dyn Holds>);
    let task = tokio::spawn(run(held, move || vec![ended(UID, at)], move || at + AGE + 1, stop.clone()));
    tokio::time::sleep(2 * INTERVAL).await;
    assert_eq!(world.keys().await, before);
    holds.0.store(false, Ordering::SeqCst);
    tokio::time::sleep(AGAIN + INTERVAL).await;
    assert!(world.keys().await.len() < before.len());
    stop.cancel();
    task.await.unwrap();
}
