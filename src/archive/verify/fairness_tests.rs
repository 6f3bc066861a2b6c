//! Tests of large archives of several tenants that are read back at the same time.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::archive::Unreadable;
use crate::archive::test_archives::{SMALL, home, noise, packed, put};
use crate::archive::test_store::TestStore;

/// Stores archives of as much noise under these UIDs, which are namespaces too, and begins to check them. Returns how many chunks each has.
pub(super) async fn checked(bytes: usize, uids: &[&str]) -> (Arc<TestStore>, Verifier, mpsc::Receiver<String>, u64) {
    let test = Arc::new(TestStore { delay: Duration::from_millis(500), ..TestStore::default() });
    let store = Arc::new(Store::new(Arc::<TestStore>::clone(&test)));
    let mut packed = packed(home(&[("s/a.jsonl", &noise(bytes, 1))]).path(), &["s"], Unreadable::Block, SMALL);
    let (sender, checked) = mpsc::channel(8);
    let verifier = Verifier::new(Arc::clone(&store), sender);
    for uid in uids {
        packed.manifest.computer.uid = (*uid).to_owned();
        put(&store, uid, &packed).await;
    }
    (test, verifier, checked, packed.manifest.chunks.count)
}

/// The check of a computer whose UID begins with its namespace.
pub(super) fn check(verifier: &Verifier, uid: &str) -> Verification {
    let namespace = uid.split('-').next().unwrap().to_owned();
    verifier.check(uid, &Origin { namespace, ..Origin::default() })
}

/// Asks about each of these until all are valid, when a check has ended and every 15 s, as deletions do.
pub(super) async fn all_valid(verifier: &Verifier, ended: &mut mpsc::Receiver<String>, uids: &[&str]) {
    let (mut left, began) = (uids.to_vec(), Instant::now());
    while !left.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(3600), "{left:?}");
        let _ = tokio::time::timeout(Duration::from_secs(15), ended.recv()).await;
        left.retain(|uid| match check(verifier, uid) {
            Verification::Valid(_) => false,
            Verification::Running | Verification::Unavailable(_) => true,
            other => panic!("{uid}: {other:?}"),
        });
    }
}

/// L3: the third archive once waited until one of the others had been read to its end, for hours.
#[tokio::test(start_paused = true)]
async fn a_large_archive_gives_its_place_up_and_continues_where_it_was() {
    let uids = ["one", "two", "three"];
    let (test, verifier, mut ended, all) = checked(6_000_000, &uids).await;
    assert!(all > 1000, "{all} chunks");
    for uid in uids {
        assert_eq!(check(&verifier, uid), Verification::Running);
    }
    tokio::time::sleep(Duration::from_secs(50)).await;
    let read = uids.map(|uid| verifier.progress(uid).map(|read| read.read));
    assert!(read.iter().all(Option::is_some) && ended.try_recv().is_err(), "{read:?} of {all}");
    all_valid(&verifier, &mut ended, &uids).await;
    // A tenth more: the index, and what was read ahead of a pause.
    let reads = test.read.lock().unwrap().len() as u64;
    assert!(reads <= 3 * all * 11 / 10, "{reads} reads of three times {all} chunks");
}

/// L8: an outage once threw away what paused checks had read, and all but three of those that had their turn.
#[tokio::test(start_paused = true)]
async fn after_an_outage_every_check_continues_where_it_was() {
    let uids = ["one", "two", "three", "four", "five"];
    let (test, verifier, mut ended, all) = checked(6_000_000, &uids).await;
    for uid in uids {
        assert_eq!(check(&verifier, uid), Verification::Running);
    }
    tokio::time::sleep(Duration::from_secs(70)).await;
    let read = uids.map(|uid| verifier.progress(uid).map_or(0, |read| read.read));
    assert!(read.iter().all(|read| *read > 100) && ended.try_recv().is_err(), "{read:?} of {all}");
    let until = Instant::now() + Duration::from_secs(700);
    test.fail(move |_| Instant::now() < until);
    all_valid(&verifier, &mut ended, &uids).await;
    let reads = test.read.lock().unwrap().len() as u64;
    assert!(reads <= 5 * all * 11 / 10, "{reads} reads of five times {all} chunks");
}

/// L3: an object that the store never delivers once held its turn for ten minutes, and one tenant could hold all turns so.
#[tokio::test(start_paused = true)]
async fn what_the_store_does_not_deliver_is_given_up_for_others() {
    for (bytes, large) in [(1_200_000, true), (100_000, false)] {
        let stuck: Vec<String> = (0..8).map(|n| format!("stuck-{n}")).collect();
        let uids: Vec<&str> = stuck.iter().map(String::as_str).chain(["other"]).collect();
        let (test, verifier, mut ended, all) = checked(bytes, &uids).await;
        assert_eq!(all > 256, large, "{all} chunks");
        test.fail(|key| key.contains("stuck") && key.contains("chunks/a"));
        for uid in &stuck {
            assert_eq!(check(&verifier, uid), Verification::Running);
        }
        tokio::time::sleep(Duration::from_secs(100)).await;
        let began = Instant::now();
        assert_eq!(check(&verifier, "other"), Verification::Running);
        while ended.recv().await.unwrap() != "other" {}
        assert!(
            matches!(check(&verifier, "other"), Verification::Valid(_)) && began.elapsed() < Duration::from_secs(120),
            "{:?}",
            began.elapsed()
        );
    }
}

/// L3: a small home with millions of pipes once was read in one go in a place for small archives, for as long as its list of problems took.
#[test]
fn an_archive_with_a_long_list_of_problems_is_large() {
    let mut manifest = packed(home(&[("s/a.jsonl", b"one")]).path(), &["s"], Unreadable::Block, SMALL).manifest;
    let is_large = |manifest: &crate::archive::Manifest| Archive::New(Box::new(manifest.clone())).is_large();
    assert!(!is_large(&manifest));
    manifest.problems.pieces = vec![crate::archive::manifest::Chunk { digest: "0".repeat(64), size: 1 << 20 }; 8];
    assert!(is_large(&manifest));
    manifest.problems.pieces.clear();
    manifest.problems.nested = true;
    assert!(is_large(&manifest));
}
