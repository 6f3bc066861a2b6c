//! Tests of the search for what was read before: in batches, patiently, and once.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering;

use super::fairness_tests::{all_valid, check, checked};
use super::*;
use crate::archive::test_archives::{SMALL, UID, home, noise, packed, put};
use crate::archive::test_store::TestStore;
use crate::archive::{Unreadable, chunk_key};

/// L3: every object of an archive once was looked up in one go. A store with a high latency takes hours for those of a terabyte.
#[tokio::test(start_paused = true)]
async fn others_have_their_turn_while_the_objects_of_a_large_archive_are_looked_up() {
    let (test, verifier, mut ended, all) = checked(6_000_000, &["one", "two", "three"]).await;
    for uid in ["one", "two"] {
        check(&verifier, uid);
    }
    tokio::time::sleep(Duration::from_secs(45)).await;
    let read = ["one", "two"].map(|uid| verifier.progress(uid).map_or(0, |read| read.read));
    assert!(read.iter().all(|read| *read > 1000), "{read:?} of {all}");
    test.fail(|_| true);
    for _ in 0..2 {
        ended.recv().await.unwrap();
    }
    test.fail(|_| false);
    *test.look_delay.lock().unwrap() = Duration::from_secs(15);
    for uid in ["one", "two"] {
        assert!(matches!(check(&verifier, uid), Verification::Unavailable(_)));
    }
    tokio::time::sleep(Duration::from_secs(11)).await;
    let (before, began) = (test.looks.load(Ordering::SeqCst), Instant::now());
    for uid in ["one", "two"] {
        check(&verifier, uid);
    }
    while test.looks.load(Ordering::SeqCst) < before + 200 {
        assert!(began.elapsed() < Duration::from_secs(300), "nothing is looked up");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    check(&verifier, "three");
    // Coming back to where a turn ended takes 20 s here, so a turn has 200 s. All batches take five minutes.
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(verifier.progress("three").is_some(), "it has had no turn");
    all_valid(&verifier, &mut ended, &["one", "two", "three"]).await;
    let looks = test.looks.load(Ordering::SeqCst) as u64;
    assert!(looks < 3 * all + 200, "{looks} for three times {all} chunks: a search does not begin again at its next turn");
}

/// A store of an archive whose check has failed in its middle, and whether it fails again when it is continued.
async fn continued(look_fails: impl FnMut(&str) -> bool + Send + 'static) -> Verification {
    let packed = packed(home(&[("s/a.jsonl", &noise(900_000, 1))]).path(), &["s"], Unreadable::Block, SMALL);
    let test = Arc::new(TestStore::default());
    let store = Arc::new(Store::new(Arc::<TestStore>::clone(&test)));
    put(&store, UID, &packed).await;
    let failed = chunk_key(UID, &packed.chunks()[200].chunk.digest);
    test.fail(move |key| key == failed);
    let (sender, mut ended) = mpsc::channel(8);
    let verifier = Verifier::new(store, sender);
    verifier.check(UID, &Origin::default());
    ended.recv().await.unwrap();
    assert!(matches!(verifier.check(UID, &Origin::default()), Verification::Unavailable(_)));
    tokio::time::sleep(Duration::from_secs(11)).await;
    test.fail(|_| false);
    *test.look_fails.lock().unwrap() = Some(Box::new(look_fails));
    verifier.check(UID, &Origin::default());
    ended.recv().await.unwrap();
    verifier.check(UID, &Origin::default())
}

/// L8: one answer 503 of a hundred thousand once ended a check.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_for_a_minute_does_not_end_the_search() {
    let mut until = None;
    let found = continued(move |key| {
        key.contains("chunks") && Instant::now() < *until.get_or_insert_with(|| Instant::now() + Duration::from_secs(60))
    });
    let found = found.await;
    assert!(matches!(found, Verification::Valid(_)), "{found:?}");
    let found = continued(|key| key.contains("chunks")).await;
    assert!(matches!(found, Verification::Unavailable(_)), "{found:?}");
}

/// L9: every turn of a check that listed problems once began with a search for all chunks.
#[tokio::test]
async fn each_object_is_looked_up_once_however_many_turns_a_check_takes() {
    let home = home(&[("s/a.jsonl", &noise(300_000, 1))]);
    std::os::unix::fs::symlink("/etc/passwd", home.path().join("s/link")).unwrap();
    let packed = packed(home.path(), &["s"], Unreadable::Block, SMALL);
    let test = Arc::new(TestStore::default());
    let store = Store::new(Arc::<TestStore>::clone(&test));
    put(&store, UID, &packed).await;
    let before = test.looks.load(Ordering::SeqCst);
    let archive = Archive::New(Box::new(packed.manifest.clone()));
    let (mut reading, mut turns) = (Reading::new(&archive, None, Nothing), 0);
    while !(reading.run(&store, &archive, || true).await.unwrap()
        && reading.problems(&store, &archive, || true).await.unwrap()
        && reading.still_there(&store, &archive, || true).await.unwrap())
    {
        turns += 1;
        assert!(turns < 1000);
    }
    let (looks, all) = (test.looks.load(Ordering::SeqCst) - before, packed.blobs.len());
    assert!(turns > 50 && looks >= packed.chunks().len() - 1 && looks <= all, "{looks} for {all} objects in {turns} turns");
}
