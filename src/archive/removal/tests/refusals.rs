//! What is refused, what leftovers of a removal become, and what readers get.

use super::*;
use crate::archive::leftovers::{Work, clean, clean_unless_held};

const DAY: i64 = 24 * 3600;

#[tokio::test]
async fn another_computer_and_a_deletion_without_receipt_are_refused() {
    let world = World::new().await;
    let before = world.snapshot().await;
    let refused = async |request: &Request| {
        let done = remove(&world.store, request, &Script::free(), Timestamp::now(), &mut Progress::default()).await;
        done.unwrap_err()
    };
    for (namespace, name) in [("other", "box"), ("team", "other")] {
        let stop = refused(&request(namespace, name, UID)).await;
        assert!(matches!(&stop, Stop::Mismatch(why) if why.contains("team/box")), "{stop:?}");
    }
    assert!(matches!(refused(&request("team", "box", "w")).await, Stop::NoReceipt(_)));
    for bad in ["", "..", "u/chunks", "a b"] {
        assert!(matches!(refused(&request("team", "box", bad)).await, Stop::Mismatch(_)), "{bad}");
    }
    let mut bad = request("team", "box", UID);
    bad.decision.uid = "../receipts".to_owned();
    assert!(matches!(refused(&bad).await, Stop::Mismatch(_)));
    assert_eq!(world.snapshot().await, before);
    let path = receipt_key(UID).as_str().into();
    for (text, is) in [("{}".to_owned(), "unreadable"), (String::from_utf8(receipt(OTHER, None)).unwrap(), "another")] {
        world.objects.inner.put(&path, text.into()).await.unwrap();
        let stop = refused(&request("team", "box", UID)).await;
        assert!(matches!((is, &stop), ("unreadable", Stop::Unreadable(_)) | ("another", Stop::Mismatch(_))), "{stop:?}");
    }
}

/// S12: whole or failed. What is not understood may belong to the archive.
#[tokio::test]
async fn what_cannot_be_read_is_not_erased() {
    let world = World::new().await;
    let replace = async |key: &str, bytes: Option<&[u8]>| {
        let path = object_store::path::Path::from(key);
        match bytes {
            Some(bytes) => drop(world.objects.inner.put(&path, bytes.to_vec().into()).await.unwrap()),
            None => world.objects.inner.delete(&path).await.unwrap(),
        }
    };
    let refused = async |why: &str| {
        let before = world.snapshot().await;
        let (done, progress) = world.erase(&Script::free()).await;
        assert!(matches!(&done, Err(Stop::Unreadable(text)) if text.contains(why)), "{why}: {done:?}");
        assert!(progress.tombstone.is_none() && world.snapshot().await == before, "{why}");
    };
    let notes = format!("archives/{UID}/notes/of-an-admin");
    replace(&notes, Some(b"x")).await;
    refused("notes/of-an-admin").await;
    replace(&notes, None).await;
    let later = later_manifest_key(UID, "claim");
    replace(&later, Some(b"{}")).await;
    refused("manifest-claim.json").await;
    replace(&later, Some(&serde_json::to_vec(&packed_home(OTHER, 3).manifest).unwrap())).await;
    refused("with UID v").await;
    replace(&later, Some(&vec![b' '; MAX_BYTES + 1])).await;
    refused("the receipt does not name it").await;
}

/// Another store than that of the archive has nothing of it, which proves nothing.
#[tokio::test]
async fn a_store_without_the_manifest_that_the_receipt_names_erases_nothing() {
    let world = World::new().await;
    world.objects.inner.delete(&manifest_key(UID).as_str().into()).await.unwrap();
    let chunks: Vec<_> = world.snapshot().await.into_keys().filter(|key| of_archive(key)).collect();
    for without_chunks in [false, true] {
        if without_chunks {
            for key in &chunks {
                world.objects.inner.delete(&key.as_str().into()).await.unwrap();
            }
        }
        let before = world.snapshot().await;
        let (done, progress) = world.erase(&Script::free()).await;
        assert!(matches!(&done, Err(Stop::Unreadable(why)) if why.contains("check that this is the store of that archive")), "{done:?}");
        assert!(progress.tombstone.is_none() && progress.untouched && world.snapshot().await == before);
    }
    // After an erasure, its tombstone names the manifest.
    let world = World::new().await;
    world.erase(&Script::free()).await.0.unwrap();
    let mut second = request("team", "box", UID);
    second.decision.uid = "decision-2".to_owned();
    let mut progress = Progress::default();
    remove(&world.store, &second, &Script::free(), Timestamp::now(), &mut progress).await.unwrap();
    assert!(progress.tombstone.is_none() && progress.again.is_some(), "{progress:?}");
}

/// A request that was sent before the deletion ended may store something for a day.
#[tokio::test]
async fn a_removal_is_over_when_nothing_is_found_a_day_later() {
    let world = World::new().await;
    let (begin, day) = (Timestamp::now(), SignedDuration::from_secs(DAY));
    let again = async |at: Timestamp| {
        let mut progress = Progress::default();
        remove(&world.store, &request("team", "box", UID), &Script::free(), at, &mut progress).await.unwrap();
        progress.again
    };
    assert_eq!(again(begin).await, Some(begin + day));
    let late = chunk_key(UID, &"3".repeat(64));
    world.store.put_once(&late, b"late".to_vec()).await.unwrap();
    assert_eq!(again(begin + day).await, Some(begin + day), "something was found");
    assert!(!world.snapshot().await.contains_key(&late));
    assert_eq!(again(begin + day - SignedDuration::from_secs(1)).await, Some(begin + day));
    assert_eq!(again(begin + day).await, None);
}

/// S7: a store that overwrites objects may have lost anything.
#[tokio::test]
async fn nothing_is_erased_while_writes_are_refused() {
    let world = World::new().await;
    world.erase(&Script::held_from(2)).await.0.unwrap_err();
    let before = world.snapshot().await;
    world.store.refuse_writes(Some("it overwrites".to_owned()));
    let (done, _) = world.erase(&Script::free()).await;
    assert!(matches!(&done, Err(Stop::Store(why)) if why.to_string().contains("it overwrites")), "{done:?}");
    assert_eq!(world.snapshot().await, before);
}

/// What a withdrawn erasure has left is removed a day later, with the leftovers of crashes, and only where holds can be asked.
#[tokio::test]
async fn leftovers_of_an_erasure_are_removed_only_if_they_are_not_held() {
    let world = World::new().await;
    world.erase(&Script::held_from(3)).await.0.unwrap_err();
    let (before, later) = (world.snapshot().await, Timestamp::now().as_second() + 2 * DAY);
    assert!(clean(&world.store, UID, Work::List, later).await.unwrap().unnamed > 0, "the manifest that the receipt names was erased");
    let error = clean(&world.store, UID, Work::Remove, later).await.unwrap_err().to_string();
    assert!(error.contains("an erasure of this UID has begun"), "{error}");
    let held = clean_unless_held(&world.store, UID, Work::Collect, later, Some(&Script::held_from(1))).await.unwrap_err();
    assert!(held.to_string().contains("ArchiveHold h"), "{held}");
    assert_eq!(world.snapshot().await, before);
    clean_unless_held(&world.store, UID, Work::Collect, later, Some(&Script::free())).await.unwrap();
    assert!(!world.snapshot().await.keys().any(|key| of_archive(key)));
    assert!(world.snapshot().await.contains_key(&tombstone::tombstone_key(UID, "decision-1")));
}

/// A tombstone says what is to be removed. Until that is recorded as done, a manifest that is missing is a loss.
#[tokio::test]
async fn a_manifest_that_vanished_before_its_removal_keeps_everything() {
    let world = World::new().await;
    world.erase(&Script::held_from(2)).await.0.unwrap_err();
    world.objects.inner.delete(&manifest_key(UID).as_str().into()).await.unwrap();
    let (before, later) = (world.snapshot().await, Timestamp::now().as_second() + 2 * DAY);
    let error = clean_unless_held(&world.store, UID, Work::Collect, later, Some(&Script::free())).await.unwrap_err().to_string();
    assert!(error.contains("which the receipt names"), "{error}");
    assert_eq!(world.snapshot().await, before);
}

/// A local store has partial files of interrupted writes, and folders.
#[tokio::test]
async fn partial_files_and_folders_of_a_local_store_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
    for uid in [UID, OTHER] {
        put(&store, uid, &packed_home(uid, 1)).await;
        store.put_once(&receipt_key(uid), receipt(uid, None)).await.unwrap();
    }
    let chunk = chunk_key(UID, &"1".repeat(64));
    for key in [&chunk, &manifest_key(UID), &receipt_key(UID)] {
        std::fs::write(folder.path().join(format!("{key}#1")), "half").unwrap();
    }
    let mut progress = Progress::default();
    remove(&store, &request("team", "box", UID), &Script::free(), Timestamp::now(), &mut progress).await.unwrap();
    assert!(!folder.path().join(format!("archives/{UID}")).exists(), "no folder is left");
    assert_eq!(store.uids().await.unwrap(), [OTHER]);
    assert!(folder.path().join(format!("{}#1", receipt_key(UID))).exists(), "a receipt that is being written");
    assert!(matches!(verify(&store, OTHER).await, Verification::Valid(_)));
    assert_eq!(tombstone::all(&store, UID).await.unwrap(), [progress.tombstone.unwrap()]);
}

#[tokio::test]
async fn a_reader_gets_when_and_by_whose_decision_it_was_erased() {
    let world = World::new().await;
    world.erase(&Script::free()).await.0.unwrap();
    let error = cli::open(&world.store, UID).await.unwrap_err().to_string();
    for part in ["was erased", "ArchiveErasure erase-box of user ann", "request 7 of the owner", "archives receipt u"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let missing = cli::open(&world.store, "w").await.unwrap_err().to_string();
    assert!(missing.contains("there is no archive of w"), "{missing}");
    let mut out = Vec::new();
    cli::receipt(&world.store, UID, &mut out).await.unwrap();
    let documents: Vec<serde_json::Value> = serde_json::Deserializer::from_slice(&out).into_iter().map(Result::unwrap).collect();
    assert_eq!((&documents[0]["computer"]["uid"], &documents[1]["decision"]["requestedBy"]), (&json!(UID), &json!("ann")));
}
