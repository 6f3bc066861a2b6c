//! Tests of the removal of what no manifest names: what stays, whatever happens.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::TryStreamExt as _;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use serde_json::json;

use super::*;
use crate::archive::test_archives::{Packed, SMALL, UID, home, noise, packed, put};
use crate::archive::test_store::TestStore;
use crate::archive::verify::verify;
use crate::archive::{Unreadable, Verification, later_manifest_key};

/// Two days after the objects of a test were stored.
fn later() -> i64 {
    Timestamp::now().as_second() + 2 * AGE
}

fn packed_home(seed: u64) -> Packed {
    let home = home(&[("s/a.jsonl", &noise(60_000, seed)), ("s/b.jsonl", b"two"), ("s/c.jsonl", &noise(30_000, 2))]);
    packed(home.path(), &["s"], Unreadable::Block, SMALL)
}

/// A store with an archive, its receipt, and what an aborted attempt left: chunks, a damaged copy of one that is named, and of one that is not.
pub(in crate::archive) struct World {
    pub test: Arc<TestStore>,
    pub store: Store,
    archived: Packed,
}

impl World {
    pub async fn new() -> Self {
        let test = Arc::new(TestStore::default());
        let store = Store::new(Arc::<TestStore>::clone(&test));
        let archived = packed_home(1);
        put(&store, UID, &archived).await;
        let world = Self { test, store, archived };
        world.receipt(Some(&hex::encode(Sha256::digest(serde_json::to_vec(&world.archived.manifest).unwrap()))), 0).await;
        for blob in &packed_home(9).blobs {
            world.store.put_once(&chunk(&blob.chunk.digest), blob.bytes.clone()).await.unwrap();
        }
        for digest in [&world.archived.blobs[0].chunk.digest, &"0".repeat(64)] {
            world.store.put_once(&copies::copy_key(UID, digest, 1), b"damaged".to_vec()).await.unwrap();
        }
        world
    }

    /// The receipt of a deletion that has ended this long ago.
    async fn receipt(&self, digest: Option<&str>, ago: i64) {
        let archive = digest.map(|digest| json!({"manifestDigest": digest, "sessions": 3, "bytes": 1, "problems": 0}));
        let at = Timestamp::from_second(Timestamp::now().as_second() - ago).unwrap().to_string();
        let receipt = json!({"computer": {"uid": UID}, "writtenAt": at, "archive": archive});
        self.test.inner.put(&receipt_key(UID).as_str().into(), receipt.to_string().into()).await.unwrap();
    }

    pub async fn keys(&self) -> BTreeSet<String> {
        self.test.inner.list(None).map_ok(|object| object.location.to_string()).try_collect().await.unwrap()
    }

    /// Removes. Nothing may be removed.
    async fn removes_nothing(&self, now: i64, why: &str) {
        let before = self.keys().await;
        let error = clean(&self.store, UID, Work::Remove, now).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(self.keys().await, before, "{why}");
    }
}

fn chunk(digest: &str) -> String {
    crate::archive::chunk_key(UID, digest)
}

#[tokio::test]
async fn what_no_manifest_names_is_removed_and_the_archive_is_whole() {
    let world = World::new().await;
    let before = world.keys().await;
    let dry = clean(&world.store, UID, Work::List, later()).await.unwrap();
    assert_eq!(world.keys().await, before, "without --remove");
    assert!(dry.unnamed > 10 && dry.named > 10 && (dry.manifests, dry.removed, dry.unknown) == (1, 0, 0), "{dry:?}");
    let found = clean(&world.store, UID, Work::Remove, later()).await.unwrap();
    assert_eq!(found, Found { removed: dry.unnamed, ..dry });
    assert_eq!(world.keys().await.len(), before.len() - usize::try_from(dry.unnamed).unwrap());
    assert!(world.keys().await.contains(&copies::copy_key(UID, &world.archived.blobs[0].chunk.digest, 1)), "another copy of what is named");
    assert!(matches!(verify(&world.store, UID).await, Verification::Valid(_)));
    assert_eq!(clean(&world.store, UID, Work::Remove, later()).await.unwrap(), Found { unnamed: 0, ..dry }, "nothing is left");
}

/// Counts the questions, and holds everything.
#[derive(Default)]
struct Held(std::sync::atomic::AtomicUsize);

#[async_trait::async_trait]
impl Holds for Held {
    async fn permit(&self, _: &Subject) -> Result<(), Stop> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Err(Stop::Held("ArchiveHold h".to_owned()))
    }
}

/// Otherwise each ended deletion would cost a list of all holds, and one that is held would be reported and checked again every day.
#[tokio::test]
async fn the_holds_are_asked_only_if_there_is_something_to_remove() {
    let world = World::new().await;
    let held = Held::default();
    assert!(clean_unless_held(&world.store, UID, Work::Collect, later(), Some(&held)).await.is_err());
    assert_eq!(held.0.load(std::sync::atomic::Ordering::SeqCst), 1);
    clean(&world.store, UID, Work::Remove, later()).await.unwrap();
    let clean = clean_unless_held(&world.store, UID, Work::Collect, later(), Some(&held)).await.unwrap();
    assert_eq!((clean.unnamed, held.0.load(std::sync::atomic::Ordering::SeqCst)), (0, 1));
}

/// S7: etcd was restored from a backup, and another deletion of the UID has stored another archive beside the first one.
#[tokio::test]
async fn the_archives_of_all_deletions_stay() {
    let world = World::new().await;
    let second = serde_json::to_vec(&packed_home(9).manifest).unwrap();
    world.store.put_once(&later_manifest_key(UID, "claim"), second).await.unwrap();
    let found = clean(&world.store, UID, Work::Remove, later()).await.unwrap();
    assert_eq!((found.manifests, found.removed), (2, 1), "only the damaged copy of nothing: {found:?}");
}

/// An admin skipped the archive: there is no manifest, and nothing is named.
#[tokio::test]
async fn without_an_archive_all_chunks_are_removed_and_nothing_else() {
    let world = World::new().await;
    world.receipt(None, 0).await;
    world.test.inner.delete(&manifest_key(UID).as_str().into()).await.unwrap();
    world.store.put_once(&format!("archives/{UID}/notes/of-an-admin"), b"x".to_vec()).await.unwrap();
    world.store.put_once(&old_format::object_key(UID, &"1".repeat(64)), b"x".to_vec()).await.unwrap();
    world.store.put_once(&crate::archive::chunk_key("another", &"1".repeat(64)), b"x".to_vec()).await.unwrap();
    world.removes_nothing(later(), "use --ignore-holds").await;
    let found = clean(&world.store, UID, Work::RemoveIgnoringHolds, later()).await.unwrap();
    assert!(found.manifests == 0 && found.named == 0 && found.unknown == 1, "{found:?}");
    let left = ["archives/another/chunks/", &format!("archives/{UID}/notes"), "receipts/"];
    let keys = world.keys().await;
    assert!(keys.len() == 3 && keys.iter().all(|key| left.iter().any(|left| key.starts_with(left))), "{keys:?}");
}

/// A local store writes an object beside its place first. A crash leaves it there, and no listing shows it.
#[tokio::test]
async fn partial_files_of_a_local_store_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
    let receipt = json!({"computer": {"uid": UID}, "writtenAt": Timestamp::now().to_string(), "archive": null});
    store.put_once(&receipt_key(UID), receipt.to_string().into_bytes()).await.unwrap();
    let chunk = chunk(&"1".repeat(64));
    for key in [chunk.clone(), manifest_key(UID), receipt_key(UID)] {
        let path = folder.path().join(format!("{key}#1"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "half").unwrap();
    }
    let stays = [format!("{}#1", receipt_key("another")), format!("{chunk}#not-a-number"), format!("archives/{UID}/notes-of-an-admin#2")];
    for key in &stays {
        let path = folder.path().join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "stays").unwrap();
    }
    let now = Timestamp::now().as_second();
    assert_eq!(store.partial_files(UID, |_| true, now - AGE, true).await.unwrap(), 0, "they may still be written");
    let listed = clean(&store, UID, Work::List, later()).await.unwrap();
    assert_eq!((listed.unnamed, listed.removed), (3, 0), "{listed:?}");
    let removed = clean(&store, UID, Work::RemoveIgnoringHolds, later()).await.unwrap();
    assert_eq!(removed.removed, 3, "{removed:?}");
    assert!(stays.iter().all(|key| folder.path().join(key).exists()));
    assert_eq!(clean(&store, UID, Work::List, later()).await.unwrap().unnamed, 0);
    assert!(store.get(&receipt_key(UID)).await.is_ok());
}

/// S1: what was stored before an archive was given up may be all that is left of the sessions.
#[tokio::test]
async fn the_operator_keeps_what_an_archive_that_was_given_up_has_stored() {
    let world = World::new().await;
    world.receipt(None, 0).await;
    let before = world.keys().await;
    assert_eq!(clean(&world.store, UID, Work::Collect, later()).await.unwrap(), Found::default());
    assert_eq!(world.keys().await, before);
}

/// S7: another deletion of the UID stores its archive while leftovers are removed.
#[tokio::test]
async fn an_archive_that_is_stored_meanwhile_ends_the_removal() {
    let world = World::new().await;
    let before = world.keys().await.len();
    let second = serde_json::to_vec(&packed_home(9).manifest).unwrap();
    *world.test.appears.lock().unwrap() = Some((1, later_manifest_key(UID, "claim"), second));
    let error = clean(&world.store, UID, Work::Remove, later()).await.unwrap_err().to_string();
    assert!(error.contains("another manifest was stored meanwhile"), "{error}");
    assert_eq!(world.keys().await.len(), before - AT_A_TIME + 1, "one part was removed, and the manifest was added");
}

/// S7: a store that overwrites objects may have lost the manifest that references them.
#[tokio::test]
async fn nothing_is_removed_while_writes_are_refused() {
    let world = World::new().await;
    world.store.refuse_writes(Some("the archive store overwrites existing objects".to_owned()));
    world.removes_nothing(later(), "overwrites existing objects").await;
}

/// L9: a manifest of version 1 can need 64 MiB.
#[tokio::test]
async fn the_operator_does_not_read_a_large_manifest_for_it() {
    let world = World::new().await;
    let large = vec![b' '; MAX_BYTES + 1];
    world.test.inner.put(&later_manifest_key(UID, "claim").as_str().into(), large.into()).await.unwrap();
    world.test.read.lock().unwrap().clear();
    let error = clean(&world.store, UID, Work::Collect, later()).await.unwrap_err().to_string();
    assert!(error.contains("is large"), "{error}");
    assert!(!world.test.read.lock().unwrap().iter().any(|key| key.contains("manifest")), "no manifest was read");
}

#[tokio::test]
async fn a_deletion_that_may_not_be_over_loses_nothing() {
    let world = World::new().await;
    let now = Timestamp::now().as_second();
    world.removes_nothing(now, "ended less than a day ago").await;
    // The receipt is that of an earlier deletion, and another one is sending.
    world.receipt(None, 3 * AGE).await;
    world.removes_nothing(now, "stored less than a day ago").await;
    world.test.inner.put(&receipt_key(UID).as_str().into(), "{}".into()).await.unwrap();
    world.removes_nothing(later(), "does not say").await;
    world.test.inner.delete(&receipt_key(UID).as_str().into()).await.unwrap();
    world.removes_nothing(later(), "no receipt").await;
    for bad in ["", "..", "u/chunks", "a b"] {
        assert!(clean(&world.store, bad, Work::Remove, later()).await.is_err(), "{bad}");
    }
}

/// S7: what cannot be read may name anything.
#[tokio::test]
async fn an_archive_that_cannot_be_read_keeps_everything() {
    let world = World::new().await;
    let replace = async |key: &str, bytes: &[u8]| {
        let path = object_store::path::Path::from(key);
        let before = world.test.inner.get(&path).await.unwrap().bytes().await.unwrap();
        world.test.inner.put(&path, bytes.to_vec().into()).await.unwrap();
        before
    };
    let key = manifest_key(UID);
    let manifest = replace(&key, b"{}").await;
    world.removes_nothing(later(), "manifest.json").await;
    replace(&key, &serde_json::to_vec(&packed_home(5).manifest).unwrap()).await;
    world.removes_nothing(later(), "which the receipt names").await;
    replace(&key, &manifest).await;
    let piece = chunk(&world.archived.manifest.chunks.pieces[0].digest);
    let right = replace(&piece, b"damaged").await;
    world.removes_nothing(later(), "damaged").await;
    replace(&piece, &right).await;
    world.test.inner.delete(&key.as_str().into()).await.unwrap();
    world.removes_nothing(later(), "which the receipt names").await;
}

/// A store without the right to delete, or with Object Lock.
#[tokio::test]
async fn a_store_that_does_not_delete_is_an_error_and_loses_nothing() {
    let world = World::new().await;
    world.test.keeps.store(true, Ordering::SeqCst);
    world.removes_nothing(later(), "the archive store").await;
}

#[test]
fn only_the_key_of_an_object_is_one() {
    let digest = "0123456789abcdef".repeat(4);
    for (name, is) in [
        (format!("chunks/{digest}.zst"), true),
        (format!("chunks/{digest}-2.zst"), true),
        (format!("objects/{digest}.tar.zst"), true),
        (format!("chunks/{digest}-3.zst"), false),
        (format!("chunks/{digest}"), false),
        (format!("chunks/{}.zst", digest.to_uppercase()), false),
        (format!("objects/{digest}.zst"), false),
        (format!("other/{digest}.zst"), false),
        ("manifest.json".to_owned(), false),
        (format!("manifest-{digest}.json"), false),
    ] {
        let key = format!("archives/{UID}/{name}");
        assert_eq!(Object::of(UID, &key).map(|object| object.key(UID)), is.then_some(key), "{name}");
    }
}
