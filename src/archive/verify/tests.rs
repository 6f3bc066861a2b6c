//! Tests of verification: damaged and missing objects, results that are kept, and archives of earlier deletions.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::archive::pack;
use crate::archive::problems::Problems;
use crate::archive::{SessionEntry, Unreadable};

async fn archived(folder: &std::path::Path) -> (Store, String) {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("a.jsonl"), b"hello").unwrap();
    let found = pack::find(home.path(), &[], Unreadable::Block).unwrap();
    let (id, files) = found.sessions.iter().next().unwrap();
    let packed = pack::pack(home.path(), folder, id, files, Unreadable::Block, &mut Problems::default()).unwrap().unwrap();
    let store = Store::open(&format!("file://{}", folder.display())).unwrap();
    let key = object_key("u", &packed.entry.digest);
    let body = futures::stream::iter([Ok(bytes::Bytes::from(std::fs::read(packed.object.path()).unwrap()))]);
    store.put_addressed(&key, &packed.entry.digest, packed.entry.size, body).await.unwrap();
    let mut manifest = crate::archive::manifest::tests::empty("u");
    manifest.sessions.push(packed.entry);
    store.put_once(&manifest_key("u"), serde_json::to_vec(&manifest).unwrap()).await.unwrap();
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
    let folder = tempfile::tempdir().unwrap();
    let (store, key) = archived(folder.path()).await;
    assert!(matches!(verify(&store, "u").await, Verification::Valid(Summary { sessions: 1, .. })));
    assert_eq!(verify(&store, "nobody").await, Verification::Missing);
    let file = folder.path().join(&key);
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(verify(&store, "u").await, Verification::Invalid(_)), "a byte short");
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(verify(&store, "u").await, Verification::Invalid(_)), "an object is missing");
}

/// L3: some archives are huge, or their objects are not delivered.
#[tokio::test(flavor = "multi_thread")]
async fn large_archives_do_not_delay_small_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = archived(folder.path()).await;
    let mut pipes = Vec::new();
    for n in 0..AT_ONCE {
        let uid = format!("large-{n}");
        let digest = "0".repeat(64);
        let mut manifest = crate::archive::manifest::tests::empty(&uid);
        manifest.sessions.push(SessionEntry {
            id: "s".into(),
            files: 1,
            bytes: 1 << 40,
            digest: digest.clone(),
            size: 1,
            last_modified: 0,
        });
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
    let (store, _) = archived(folder.path()).await;
    let origin = |claim: &str, deleted_at| Origin { custody_claim: Some(claim.to_owned()), deleted_at };
    let shared = &store;
    let stands = |origin: Origin| async move {
        match of_deletion(shared, "u", &origin).await {
            Ok(contents) => read_all(shared, "u", contents).await,
            Err(other) => other,
        }
    };
    // Written by an earlier version at second 1, which names no claim: its time decides.
    assert!(matches!(stands(origin("now", 1)).await, Verification::Valid(_)), "that of this deletion, begun before an upgrade");
    assert_eq!(stands(origin("now", 2)).await, Verification::Missing);
    let mut manifest = crate::archive::manifest::tests::empty("u");
    manifest.custody_claim = "now".into();
    store.put_once(&later_manifest_key("u", "now"), serde_json::to_vec(&manifest).unwrap()).await.unwrap();
    assert!(matches!(stands(origin("now", 2)).await, Verification::Valid(Summary { sessions: 0, .. })));
    assert_eq!(stands(origin("another", 2)).await, Verification::Missing);
    assert!(matches!(verify(&store, "u").await, Verification::Valid(Summary { sessions: 0, .. })), "the newest one is shown");
}
