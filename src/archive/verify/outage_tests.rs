//! Tests of a store that fails while an archive is read back: what was read before is not read again.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use futures::FutureExt as _;
use object_store::ObjectStoreExt as _;

use super::reader::CONTINUED;
use super::*;
use crate::archive::test_archives::{SMALL, UID, home, noise, packed, put};
use crate::archive::test_store::TestStore;
use crate::archive::{Unreadable, chunk_key};

/// An archive of many chunks, and a verifier of it. Returns the keys of its chunks in order.
async fn archived() -> (Arc<TestStore>, Verifier, mpsc::Receiver<String>, Vec<String>) {
    let (test, verifier, checked) = empty_store();
    let keys = store_archive(&test, UID, 4_800_000).await;
    assert!(keys.len() > 1000, "{} chunks: such an archive is read in one turn", keys.len());
    (test, verifier, checked, keys)
}

fn empty_store() -> (Arc<TestStore>, Verifier, mpsc::Receiver<String>) {
    let test = Arc::new(TestStore::default());
    let (sender, checked) = mpsc::channel(8);
    (Arc::clone(&test), Verifier::new(Arc::new(Store::new(test)), sender), checked)
}

/// Stores an archive with a file of so much noise. Returns the keys of its chunks in order.
async fn store_archive(test: &Arc<TestStore>, uid: &str, bytes: usize) -> Vec<String> {
    let home = home(&[("s/a.jsonl", &noise(bytes, 1)), ("s/b.jsonl", b"two"), ("s/c.jsonl", &noise(30_000, 2))]);
    let mut packed = packed(home.path(), &["s"], Unreadable::Block, SMALL);
    uid.clone_into(&mut packed.manifest.computer.uid);
    put(&Store::new(Arc::<TestStore>::clone(test)), uid, &packed).await;
    packed.chunks().iter().map(|blob| chunk_key(uid, &blob.chunk.digest)).collect()
}

/// The result of one check.
async fn one_check(verifier: &Verifier, checked: &mut mpsc::Receiver<String>) -> Verification {
    check_of(UID, verifier, checked).await
}

async fn check_of(uid: &str, verifier: &Verifier, checked: &mut mpsc::Receiver<String>) -> Verification {
    verifier.check(uid, &Origin::default());
    tokio::time::timeout(Duration::from_secs(7200), checked.recv()).await.expect("the check does not end");
    verifier.check(uid, &Origin::default())
}

/// L8: a store that was restarted once made the check begin at the first byte again: a large archive was never verified.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_restarted_does_not_restart_the_read_back() {
    let (store, verifier, mut checked, keys) = archived().await;
    let (middle, until) = (keys[keys.len() / 2].clone(), Mutex::new(None));
    store.fail(move |key| {
        let mut until = until.lock();
        if key == middle && until.is_none() {
            *until = Some(Instant::now() + Duration::from_secs(60));
        }
        until.is_some_and(|until| Instant::now() < until)
    });
    let found = one_check(&verifier, &mut checked).await;
    assert!(matches!(found, Verification::Valid(_)), "{found:?}");
    let reads: Vec<usize> = keys.iter().map(|key| store.reads(key)).collect();
    assert!(reads.iter().all(|reads| *reads == 1), "{reads:?}");
}

/// L8: one object that cannot be read for a long time must not hold its slot, and the next check continues where this one ended.
#[tokio::test(start_paused = true)]
async fn a_check_that_a_long_outage_has_ended_is_continued() {
    let (store, verifier, mut checked, keys) = archived().await;
    for outage in 1..4 {
        let broken = keys[keys.len() * outage / 4].clone();
        store.fail(move |key| key == broken);
        let found = one_check(&verifier, &mut checked).await;
        assert!(matches!(found, Verification::Unavailable(_)), "{found:?}");
        tokio::time::sleep(Duration::from_secs(11)).await;
    }
    store.fail(|_| false);
    let found = one_check(&verifier, &mut checked).await;
    assert!(matches!(found, Verification::Valid(_)), "{found:?}");
    // Chunks that were read ahead when a check ended are read again.
    let reads: usize = keys.iter().map(|key| store.reads(key)).sum();
    assert!(reads <= keys.len() + 3 * 16, "{reads} reads of {} chunks", keys.len());
}

/// L8: an archive that is read in one turn once was read from its beginning after each outage: the first part of 64 MiB again and again.
#[tokio::test(start_paused = true)]
async fn the_check_of_an_archive_of_any_size_is_continued() {
    for bytes in [100_000, 1_200_000] {
        let (store, verifier, mut checked) = empty_store();
        let keys = store_archive(&store, UID, bytes).await;
        let (failed, before) = (keys[keys.len() * 3 / 4].clone(), &keys[..keys.len() * 3 / 4]);
        store.fail(move |key| key == failed);
        let found = one_check(&verifier, &mut checked).await;
        assert!(matches!(found, Verification::Unavailable(_)), "{found:?}");
        tokio::time::sleep(Duration::from_secs(11)).await;
        store.fail(|_| false);
        let found = one_check(&verifier, &mut checked).await;
        assert!(matches!(found, Verification::Valid(_)), "{found:?}");
        let again = before.iter().filter(|key| store.reads(key) != 1).count();
        assert_eq!(again, 0, "of {} chunks of {bytes} bytes, which were read before the outage", before.len());
    }
}

/// L8: the checks of small archives must not push out what was read of a large one in the same outage.
#[tokio::test(start_paused = true)]
async fn of_too_many_checks_those_that_have_read_most_are_kept() {
    let (store, verifier, mut checked) = empty_store();
    let large = store_archive(&store, "large", 1_200_000).await;
    let mut broken = vec![large[300].clone()];
    let small: Vec<String> = (0..8).map(|n| format!("small-{n}")).collect();
    for uid in &small {
        broken.push(store_archive(&store, uid, 100_000).await[20].clone());
    }
    store.fail(move |key| broken.iter().any(|broken| broken == key));
    for uid in std::iter::once("large").chain(small.iter().map(String::as_str)) {
        let found = check_of(uid, &verifier, &mut checked).await;
        assert!(matches!(found, Verification::Unavailable(_)), "{uid}: {found:?}");
    }
    tokio::time::sleep(Duration::from_secs(11)).await;
    store.fail(|_| false);
    let found = check_of("large", &verifier, &mut checked).await;
    assert!(matches!(found, Verification::Valid(_)), "{found:?}");
    assert!(large[..300].iter().all(|key| store.reads(key) == 1), "it was read from its beginning");
}

/// The manifest of a large archive once was read a second time, although its turn was free.
#[tokio::test(start_paused = true)]
async fn a_manifest_is_read_once_when_nobody_waits() {
    for bytes in [100_000, 1_200_000, 4_800_000] {
        let (store, verifier, mut checked) = empty_store();
        store_archive(&store, UID, bytes).await;
        let found = one_check(&verifier, &mut checked).await;
        assert!(matches!(found, Verification::Valid(_)), "{found:?}");
        assert_eq!(store.reads(&manifest_key(UID)), 1, "{bytes}");
    }
}

/// Nothing showed whether a read-back of hours makes progress. While the store is down it makes none.
#[tokio::test(start_paused = true)]
async fn a_slow_check_shows_its_progress() {
    let (store, verifier, mut checked, keys) = archived().await;
    let broken = keys[100].clone();
    store.fail(move |key| key == broken);
    verifier.check(UID, &Origin::default());
    assert_eq!(verifier.progress(UID), None);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let all = keys.len() as u64;
    assert_eq!(verifier.progress(UID), Some(ReadBack { read: 100, all }));
    checked.recv().await;
    assert!(matches!(verifier.check(UID, &Origin::default()), Verification::Unavailable(_)));
    assert_eq!(verifier.progress(UID), None, "no check is running");
    tokio::time::sleep(Duration::from_secs(60)).await;
    verifier.check(UID, &Origin::default());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(verifier.progress(UID), None, "this check has read nothing");
}

/// S1: the first objects of an archive can be gone when its last ones are read, for instance by a lifecycle rule of the bucket.
#[tokio::test(start_paused = true)]
async fn chunks_that_are_lost_after_they_were_read_are_noticed() {
    let (store, verifier, mut checked, keys) = archived().await;
    let broken = keys[keys.len() / 2].clone();
    store.fail(move |key| key == broken);
    let found = one_check(&verifier, &mut checked).await;
    assert!(matches!(found, Verification::Unavailable(_)), "{found:?}");
    store.inner.delete(&keys[0].as_str().into()).await.unwrap();
    store.fail(|_| false);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(51)).await;
        let found = one_check(&verifier, &mut checked).await;
        assert!(matches!(found, Verification::Invalid(_)), "{found:?}");
    }
}

/// S1: chunks that still exist may have changed since they were read.
#[tokio::test(start_paused = true)]
async fn a_check_that_began_long_ago_is_not_continued() {
    let (store, verifier, mut checked, keys) = archived().await;
    let broken = keys[keys.len() / 2].clone();
    store.fail(move |key| key == broken);
    let found = one_check(&verifier, &mut checked).await;
    assert!(matches!(found, Verification::Unavailable(_)), "{found:?}");
    damage(&store, &keys[0]).await;
    tokio::time::sleep(CONTINUED).await;
    store.fail(|_| false);
    let found = one_check(&verifier, &mut checked).await;
    assert!(matches!(found, Verification::Invalid(_)), "{found:?}");
}

/// Changes a byte of an object. Returns its bytes.
async fn damage(store: &TestStore, key: &str) -> Bytes {
    let path = object_store::path::Path::from(key);
    let right = store.inner.get(&path).await.unwrap().bytes().await.unwrap();
    let mut wrong = right.to_vec();
    wrong[10] ^= 1;
    store.inner.put(&path, wrong.into()).await.unwrap();
    right
}

/// Seen with several stores: one response has wrong bytes, and the next one is right.
#[tokio::test(start_paused = true)]
async fn wrong_bytes_are_read_a_second_time() {
    let (store, verifier, mut checked, keys) = archived().await;
    let (key, right) = (keys[5].clone(), damage(&store, &keys[5]).await);
    let (mut reads, inner) = (0, Arc::clone(&store));
    store.fail(move |read| {
        reads += usize::from(read == key);
        if reads == 2 {
            inner.inner.put(&key.as_str().into(), right.clone().into()).now_or_never().unwrap().unwrap();
        }
        false
    });
    let found = one_check(&verifier, &mut checked).await;
    assert!(matches!(found, Verification::Valid(_)), "{found:?}");
    assert_eq!(store.reads(&keys[5]), 2);
}

/// L9: an archive that is damaged was once read from its first byte to the damage every minute, for as long as nobody repaired it.
#[tokio::test(start_paused = true)]
async fn a_damaged_archive_is_not_read_from_its_beginning_again() {
    let (store, verifier, mut checked, keys) = archived().await;
    let last = keys.len() - 2;
    let right = damage(&store, &keys[last]).await;
    for _ in 0..3 {
        let found = one_check(&verifier, &mut checked).await;
        assert!(matches!(found, Verification::Invalid(_)), "{found:?}");
        tokio::time::sleep(Duration::from_secs(51)).await;
    }
    let reads: Vec<usize> = keys[..last].iter().map(|key| store.reads(key)).collect();
    assert!(reads.iter().all(|reads| *reads == 1), "{reads:?}");
    store.inner.put(&keys[last].as_str().into(), right.into()).await.unwrap();
    let found = one_check(&verifier, &mut checked).await;
    assert!(matches!(found, Verification::Valid(_)), "{found:?}");
}

/// L3: a tenant decides how many objects an archive has; a small archive must not wait for them.
#[test]
fn an_archive_of_many_objects_or_bytes_is_large() {
    let small = crate::archive::manifest::tests::empty(UID);
    let is_large = |change: fn(&mut crate::archive::Manifest)| {
        let mut manifest = small.clone();
        change(&mut manifest);
        Archive::New(Box::new(manifest)).is_large()
    };
    assert!(!is_large(|m| (m.tar_bytes, m.stored_bytes, m.chunks.count) = (60 << 20, 8 << 20, 100)));
    assert!(is_large(|m| m.tar_bytes = 65 << 20));
    assert!(is_large(|m| m.stored_bytes = 9 << 20));
    assert!(is_large(|m| m.chunks.count = 300));
    assert!(is_large(|m| m.problems.nested = true));
}
