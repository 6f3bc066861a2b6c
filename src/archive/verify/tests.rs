//! Tests of verification: damaged and missing objects, results that are kept, and archives of earlier deletions.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::archive::old_format::{OldManifest, OldSession, object_key};
use crate::archive::test_archives::{SMALL, home, packed, put};
use crate::archive::{Unreadable, chunk_key};

/// An archive of the current version in a folder. Returns the key of its chunk.
async fn archived(folder: &std::path::Path) -> (Store, String) {
    let packed = packed(home(&[("a.jsonl", b"hello")]).path(), &[], Unreadable::Block, SMALL);
    let store = Store::open(&format!("file://{}", folder.display())).unwrap();
    put(&store, "u", &packed).await;
    (store, chunk_key("u", &packed.chunks()[0].chunk.digest))
}

fn old_manifest(uid: &str, sessions: &[OldSession]) -> OldManifest {
    serde_json::from_value(serde_json::json!({"version": 1, "computer": {"namespace": "t", "name": "c", "uid": uid}, "createdAt": 1,
        "sessionPaths": [], "sessions": sessions, "problems": [], "problemCount": 0}))
    .unwrap()
}

/// An archive of version 1, as b296e59 wrote it. Returns the key of its object.
async fn old_archive(folder: &std::path::Path, files: u64) -> (Store, String) {
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["s/a.jsonl", &format!("s/{}b", "long/".repeat(40))] {
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &b"hello"[..]).unwrap();
    }
    let object = zstd::encode_all(tar.into_inner().unwrap().as_slice(), 3).unwrap();
    let digest = hex::encode(Sha256::digest(&object));
    let session = OldSession { id: "s/a".into(), files, bytes: 10, digest: digest.clone(), size: object.len() as u64, last_modified: 0 };
    let store = Store::open(&format!("file://{}", folder.display())).unwrap();
    let key = object_key("u", &digest);
    store.put_once(&key, object).await.unwrap();
    store.put_once(&manifest_key("u"), serde_json::to_vec(&old_manifest("u", &[session])).unwrap()).await.unwrap();
    (store, key)
}

/// Found by the simulator: with a failing store, every deletion checked and reported without a pause.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_is_checked_again_after_a_pause_and_the_result_is_kept_until_then() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&format!("file://{}", folder.path().display())).unwrap());
    let (sender, mut checked) = mpsc::channel(8);
    let verifier = Verifier::new(store, sender);
    let in_the_way = folder.path().join("archives");
    std::fs::write(&in_the_way, "no folder").unwrap();
    assert_eq!(verifier.check("u", &Origin::default()), Verification::Running);
    checked.recv().await.unwrap();
    let first = verifier.check("u", &Origin::default());
    assert!(matches!(first, Verification::Unavailable(_)), "{first:?}");
    assert_eq!(verifier.check("u", &Origin::default()), first);
    assert!(checked.try_recv().is_err(), "it was checked again at once");
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(verifier.check("u", &Origin::default()), first, "the result is kept while it is checked again");
    std::fs::remove_file(in_the_way).unwrap();
    checked.recv().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_archive_that_is_read_back_completely_is_valid() {
    for old in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (store, key) = if old { old_archive(folder.path(), 2).await } else { archived(folder.path()).await };
        let valid = verify(&store, "u").await;
        assert!(matches!(valid, Verification::Valid(Summary { sessions: 1, .. })), "{valid:?}");
        assert_eq!(verify(&store, "nobody").await, Verification::Missing);
        let file = folder.path().join(&key);
        let whole = std::fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for (what, bytes) in
            [("a byte short", &whole[..whole.len() - 1]), ("a byte longer", &[&whole[..], b"x"].concat()), ("a bit", &flipped)]
        {
            std::fs::write(&file, bytes).unwrap();
            let found = verify(&store, "u").await;
            assert!(matches!(found, Verification::Invalid(_)), "{what}: {found:?}");
        }
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(verify(&store, "u").await, Verification::Invalid(_)), "an object is missing");
    }
}

/// What the index or the manifest says must be what is in the chunks, or in the objects.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_with_other_content_than_its_manifest_says_is_invalid() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = old_archive(folder.path(), 3).await;
    assert!(matches!(verify(&store, "u").await, Verification::Invalid(_)), "a file less");
    for change in 0..7 {
        let folder = tempfile::tempdir().unwrap();
        let home = home(&[("s/a.jsonl", b"one"), ("s/b.jsonl", b"two")]);
        std::os::unix::fs::symlink("/etc/passwd", home.path().join("s/link")).unwrap();
        let mut packed = packed(home.path(), &["s"], Unreadable::Block, SMALL);
        let manifest = &mut packed.manifest;
        match change {
            0 => manifest.files += 1,
            1 => manifest.sessions -= 1,
            2 => manifest.stored_bytes -= 1,
            3 => manifest.tar_bytes += 512,
            // A loss that the list of problems does not have, or that the manifest does not count.
            4 => manifest.lost_count += 1,
            5 => manifest.bytes += 1,
            _ => manifest.entries.count -= 1,
        }
        let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
        put(&store, "u", &packed).await;
        let found = verify(&store, "u").await;
        assert!(matches!(found, Verification::Invalid(_)), "{change}: {found:?}");
    }
}

/// Each object of an archive is read back: those of the index as well, and the list of what was lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_without_one_of_its_objects_is_invalid() {
    let home = home(&[("s/a.jsonl", b"one"), ("s/b.jsonl", &[7; 9000])]);
    std::os::unix::fs::symlink("/etc/passwd", home.path().join("s/link")).unwrap();
    let packed = packed(home.path(), &["s"], Unreadable::Block, SMALL);
    assert_eq!(packed.manifest.problems.pieces.len(), 1);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
    put(&store, "u", &packed).await;
    for blob in &packed.blobs {
        let file = folder.path().join(chunk_key("u", &blob.chunk.digest));
        let mut flipped = blob.bytes.to_vec();
        flipped[blob.bytes.len() / 2] ^= 1;
        std::fs::write(&file, flipped).unwrap();
        assert!(matches!(verify(&store, "u").await, Verification::Invalid(_)), "{:?} is damaged", blob.chunk);
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(verify(&store, "u").await, Verification::Invalid(_)), "{:?} is missing", blob.chunk);
        std::fs::write(&file, &blob.bytes).unwrap();
    }
    assert!(matches!(verify(&store, "u").await, Verification::Valid(_)));
}

/// L3: Sessions were once looked up in the index while the only permit to read a manifest was held.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_into_one_index_does_not_delay_the_checks_of_other_archives() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = archived(folder.path()).await;
    let (sender, mut checked) = mpsc::channel(8);
    let verifier = Arc::new(Verifier::new(Arc::new(store), sender));
    let (looking, looks) = tokio::sync::oneshot::channel();
    let other = Arc::clone(&verifier);
    let look = tokio::spawn(async move {
        let endless = async |_: &Store, _: &str, _| {
            looking.send(()).unwrap();
            std::future::pending::<Result<(), StoreError>>().await
        };
        other.with_archive(("t", "u"), endless).await
    });
    looks.await.unwrap();
    assert_eq!(verifier.check("u", &Origin::default()), Verification::Running);
    tokio::time::timeout(Duration::from_secs(10), checked.recv()).await.expect("the check waits for the look");
    look.abort();
}

/// L3: some archives are huge, or their objects are not delivered.
#[tokio::test(flavor = "multi_thread")]
async fn large_archives_do_not_delay_small_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = archived(folder.path()).await;
    let mut pipes = Vec::new();
    for n in 0..reader::LARGE.0 {
        let uid = format!("large-{n}");
        let digest = "0".repeat(64);
        let session = OldSession { id: "s".into(), files: 1, bytes: 1 << 40, digest: digest.clone(), size: 1, last_modified: 0 };
        let manifest = old_manifest(&uid, &[session]);
        store.put_once(&manifest_key(&uid), serde_json::to_vec(&manifest).unwrap()).await.unwrap();
        // Opening a pipe for reading blocks until there is a writer.
        let pipe = folder.path().join(object_key(&uid, &digest));
        std::fs::create_dir_all(pipe.parent().unwrap()).unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        pipes.push((uid, pipe));
    }
    let (checked, mut ended) = mpsc::channel(16);
    let verifier = Verifier::new(Arc::new(store), checked);
    for (uid, _) in &pipes {
        assert_eq!(verifier.check(uid, &Origin::default()), Verification::Running);
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    verifier.check("u", &Origin::default());
    let first = tokio::time::timeout(std::time::Duration::from_secs(10), ended.recv()).await;
    for (_, pipe) in &pipes {
        // Unblocks all readers permanently: opening for reading and writing never blocks, and later readers find nothing.
        let both = std::fs::OpenOptions::new().read(true).write(true).open(pipe).unwrap();
        std::fs::remove_file(pipe).unwrap();
        drop(both);
    }
    assert_eq!(first.unwrap().as_deref(), Some("u"));
}

/// S1: etcd was restored from a backup, the home has changed since, and the store still has the archive of a deletion that the cluster no
/// longer knows.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_an_earlier_deletion_of_the_same_uid_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = old_archive(folder.path(), 2).await;
    let origin = |claim: &str, deleted_at| Origin {
        custody_claim: Some(claim.to_owned()),
        deleted_at,
        namespace: "t".to_owned(),
        ..Origin::default()
    };
    let shared = &store;
    let state_of = |origin: Origin| async move {
        match of_deletion(shared, "u", &origin).await {
            Ok(contents) => {
                let mut reading = Reading::new(&contents.archive, None, Nothing);
                read_all(shared, contents, &mut reading, || false).await
            }
            Err(other) => other,
        }
    };
    // Written by an earlier version at second 1, which names no claim: its time decides.
    assert!(matches!(state_of(origin("now", 1)).await, Verification::Valid(_)), "that of this deletion, begun before an upgrade");
    assert_eq!(state_of(origin("now", 2)).await, Verification::Missing);
    let mut packed = packed(home(&[]).path(), &[], Unreadable::Block, SMALL);
    packed.manifest.custody_claim = "now".into();
    for blob in &packed.blobs {
        store.put_once(&chunk_key("u", &blob.chunk.digest), blob.bytes.clone()).await.unwrap();
    }
    store.put_once(&later_manifest_key("u", "now"), serde_json::to_vec(&packed.manifest).unwrap()).await.unwrap();
    assert!(matches!(state_of(origin("now", 2)).await, Verification::Valid(Summary { sessions: 0, .. })));
    assert_eq!(state_of(origin("another", 2)).await, Verification::Missing);
    assert!(matches!(verify(&store, "u").await, Verification::Valid(Summary { sessions: 0, .. })), "the newest one is shown");
}

/// S1: the answer of a check that began before the archive pod stored its manifest is older than the archive.
#[tokio::test]
async fn a_missing_archive_is_looked_for_again_once_its_pod_has_ended() {
    let (checked, mut finished) = tokio::sync::mpsc::channel(4);
    let verifier = Verifier::new(std::sync::Arc::new(Store::new(std::sync::Arc::new(object_store::memory::InMemory::new()))), checked);
    let (before, after) = (Origin::default(), Origin { ended_pod: Some("pod".to_owned()), ..Origin::default() });
    assert_eq!(verifier.check("u", &before), Verification::Running);
    finished.recv().await;
    assert_eq!(verifier.check("u", &after), Verification::Running, "the result is from before the end");
    finished.recv().await;
    assert_eq!(verifier.check("u", &after), Verification::Missing);
}
