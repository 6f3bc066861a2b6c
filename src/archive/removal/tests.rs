//! Tests of removals: the order, a crash at each request, holds at each question, and what stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex};

use async_trait::async_trait;
use futures::TryStreamExt as _;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use serde_json::json;

use super::*;
use crate::archive::test_archives::{Packed, SMALL, home, noise, packed, put};
use crate::archive::verify::verify;
use crate::archive::{Unreadable, Verification, chunk_key, cli, later_manifest_key, manifest_key, old_format};

mod crashing_store;
mod refusals;

use crashing_store::{Crash, CrashingStore};

/// UID of the computer of these archives.
const UID: &str = crate::archive::test_archives::UID;
/// Another computer, with the same content.
const OTHER: &str = "v";

/// The answer to the n-th question.
type Answer = dyn FnMut(usize) -> Result<(), Stop> + Send;

/// Holds as a test says, and how often it was asked.
struct Script(Mutex<(usize, Box<Answer>)>);

impl Script {
    fn new(answer: impl FnMut(usize) -> Result<(), Stop> + Send + 'static) -> Self {
        Self(Mutex::new((0, Box::new(answer))))
    }

    /// Nothing is held.
    fn free() -> Self {
        Self::new(|_| Ok(()))
    }

    /// Held from the n-th question on.
    fn held_from(n: usize) -> Self {
        Self::new(move |asked| if asked < n { Ok(()) } else { Err(Stop::Held("ArchiveHold h".to_owned())) })
    }

    fn asked(&self) -> usize {
        self.0.lock().unwrap().0
    }
}

#[async_trait]
impl Holds for Script {
    async fn permit(&self, archive: &Subject) -> Result<(), Stop> {
        assert_eq!((archive.computer_uid.as_str(), archive.namespace_uid.as_deref()), (UID, Some("ns-uid")));
        let mut script = self.0.lock().unwrap();
        script.0 += 1;
        let asked = script.0;
        (script.1)(asked)
    }
}

fn packed_home(uid: &str, seed: u64) -> Packed {
    let home = home(&[("s/a.jsonl", &noise(30_000, seed)), ("s/b.jsonl", b"two"), ("s/c.jsonl", &noise(12_000, 2))]);
    let mut packed = packed(home.path(), &["s"], Unreadable::Block, SMALL);
    let computer = &mut packed.manifest.computer;
    (computer.namespace, computer.name, computer.uid) = ("team".to_owned(), "box".to_owned(), uid.to_owned());
    packed
}

fn receipt(uid: &str, digest: Option<&str>) -> Vec<u8> {
    let computer = json!({"namespace": "team", "namespaceUid": "ns-uid", "name": "box", "uid": uid});
    let archive = digest.map(|digest| json!({"manifestDigest": digest}));
    json!({"computer": computer, "writtenAt": Timestamp::now().to_string(), "archive": archive}).to_string().into_bytes()
}

/// The archives of the two computers: packed once, because one test needs them at each request.
static HOMES: LazyLock<[Packed; 2]> = LazyLock::new(|| [UID, OTHER].map(|uid| packed_home(uid, 1)));

/// What a test looks for in the store.
type Snapshot = BTreeMap<String, Vec<u8>>;

/// Two computers with the same content, each with a receipt; the first one also with a leftover chunk.
struct World {
    objects: Arc<CrashingStore>,
    store: Store,
}

impl World {
    async fn new() -> Self {
        let objects = Arc::new(CrashingStore::default());
        let store = Store::new(Arc::<CrashingStore>::clone(&objects));
        for (uid, packed) in [UID, OTHER].into_iter().zip(&*HOMES) {
            put(&store, uid, packed).await;
            let digest = hex::encode(Sha256::digest(serde_json::to_vec(&packed.manifest).unwrap()));
            store.put_once(&receipt_key(uid), receipt(uid, Some(&digest))).await.unwrap();
        }
        store.put_once(&chunk_key(UID, &"0".repeat(64)), b"left".to_vec()).await.unwrap();
        Self { objects, store }
    }

    async fn snapshot(&self) -> Snapshot {
        let mut all = Snapshot::new();
        let listed: Vec<_> = self.objects.inner.list(None).try_collect().await.unwrap();
        for object in listed {
            let bytes = self.objects.inner.get(&object.location).await.unwrap().bytes().await.unwrap();
            all.insert(object.location.to_string(), bytes.to_vec());
        }
        all
    }

    async fn erase(&self, holds: &Script) -> (Result<(), Stop>, Progress) {
        let mut progress = Progress::default();
        let done = remove(&self.store, &request("team", "box", UID), holds, Timestamp::now(), &mut progress).await;
        (done, progress)
    }
}

fn request(namespace: &str, name: &str, uid: &str) -> Request {
    let text = str::to_owned;
    Request {
        target: Target { namespace: text(namespace), namespace_uid: None, name: text(name), uid: text(uid) },
        decision: Decision {
            kind: text("ArchiveErasure"),
            name: text("erase-box"),
            uid: text("decision-1"),
            requested_by: text("ann"),
            requested_at: None,
            reason: text("request 7 of the owner"),
        },
    }
}

fn of_archive(key: &str) -> bool {
    key.starts_with(&format!("archives/{UID}/"))
}

/// Only the archive may be missing, and only after the tombstone was written and its manifest was removed.
fn assert_in_order(before: &Snapshot, now: &Snapshot, when: &str) {
    let missing: Vec<&String> = before.keys().filter(|key| !now.contains_key(*key)).collect();
    assert!(missing.iter().all(|key| of_archive(key)), "{when}: {missing:?}");
    assert!(before.iter().all(|(key, bytes)| now.get(key).is_none_or(|now| now == bytes)), "{when}: something was changed");
    let tombstone = now.contains_key(&tombstone::tombstone_key(UID, "decision-1"));
    assert!(missing.is_empty() || tombstone, "{when}: removed without a tombstone: {missing:?}");
    assert!(missing.is_empty() || !now.contains_key(&manifest_key(UID)), "{when}: the manifest names what is gone: {missing:?}");
}

fn assert_erased(before: &Snapshot, now: &Snapshot) {
    let expected: BTreeSet<String> = before
        .keys()
        .filter(|key| !of_archive(key))
        .cloned()
        .chain([tombstone::tombstone_key(UID, "decision-1"), tombstone::removed_key(UID, "decision-1")])
        .collect();
    assert_eq!(now.keys().cloned().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test]
async fn an_archive_is_erased_and_what_belongs_to_others_stays() {
    let world = World::new().await;
    let before = world.snapshot().await;
    let (done, progress) = world.erase(&Script::free()).await;
    done.unwrap();
    let now = world.snapshot().await;
    assert_in_order(&before, &now, "at the end");
    assert_erased(&before, &now);
    assert!(matches!(verify(&world.store, OTHER).await, Verification::Valid(_)), "the same content under another UID");
    let erased: Vec<_> = before.iter().filter(|(key, _)| of_archive(key)).collect();
    let bytes = erased.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    assert_eq!((progress.removed, progress.kept), (Some((erased.len() as u64, bytes)), 0));
    let tombstone = progress.tombstone.unwrap();
    assert_eq!((tombstone.objects, tombstone.bytes, tombstone.manifests.len()), (erased.len() as u64, bytes, 1));
    assert_eq!((tombstone.decision.requested_by.as_str(), tombstone.computer.namespace_uid.as_deref()), ("ann", Some("ns-uid")));
    let (again, progress) = world.erase(&Script::held_from(1)).await;
    again.unwrap();
    assert_eq!(progress.removed, Some((erased.len() as u64, bytes)), "nothing is left that could be held");
    assert_eq!(world.snapshot().await, now);
}

/// Each request fails once, before or after it took effect, and the process dies with it.
#[tokio::test]
async fn a_crash_at_any_request_loses_nothing_else_and_the_removal_continues() {
    for crash in [Crash::Before, Crash::After] {
        let mut n = 0;
        loop {
            let world = World::new().await;
            let before = world.snapshot().await;
            world.objects.die_at(n, crash);
            let (done, _) = world.erase(&Script::free()).await;
            let alive = world.objects.revive();
            assert_in_order(&before, &world.snapshot().await, &format!("request {n}, {crash:?}"));
            // The listing that only counts comes last, so a removal may have succeeded without it.
            assert!(alive || done.is_err() || n > 20, "request {n}, {crash:?}: success in spite of a crash");
            let (done, progress) = world.erase(&Script::free()).await;
            done.unwrap_or_else(|error| panic!("request {n}, {crash:?}: {error}"));
            assert_erased(&before, &world.snapshot().await);
            let planned = before.keys().filter(|key| of_archive(key)).count() as u64;
            let removed = progress.removed.map(|(objects, _)| objects);
            assert_eq!(removed, Some(planned), "request {n}, {crash:?}");
            if alive {
                break;
            }
            n += 1;
        }
        assert!(n > 30, "{n} requests");
    }
}

#[tokio::test]
async fn a_held_archive_is_not_touched_and_unknown_means_held() {
    let world = World::new().await;
    let before = world.snapshot().await;
    let (done, progress) = world.erase(&Script::held_from(1)).await;
    assert!(matches!(done, Err(Stop::Held(_))) && progress.tombstone.is_none(), "{done:?}");
    let (done, _) = world.erase(&Script::new(|_| Err(Stop::HoldsUnknown("no answer".to_owned())))).await;
    assert!(matches!(done, Err(Stop::HoldsUnknown(_))), "{done:?}");
    assert_eq!(world.snapshot().await, before, "not even a tombstone");
}

/// A hold that is created after the tombstone, and before the removal of the manifest, saves the whole archive: it can be read, and it is erased when the
/// hold is gone.
#[tokio::test]
async fn a_hold_between_tombstone_and_removal_saves_the_archive() {
    let world = World::new().await;
    let before = world.snapshot().await;
    let (done, progress) = world.erase(&Script::held_from(2)).await;
    assert!(matches!(done, Err(Stop::Held(_))) && progress.tombstone.is_some(), "{done:?}");
    assert_eq!(progress.removed, Some((0, 0)));
    let now = world.snapshot().await;
    assert!(before.iter().all(|(key, bytes)| now.get(key) == Some(bytes)) && now.len() == before.len() + 1);
    assert!(matches!(verify(&world.store, UID).await, Verification::Valid(_)), "it is archived as before");
    assert!(cli::open(&world.store, UID).await.is_ok(), "and can be read");
    world.erase(&Script::free()).await.0.unwrap();
    assert_erased(&before, &world.snapshot().await);
}

/// Nothing is destroyed after a question that was answered with a hold, whichever it is.
#[tokio::test]
async fn a_hold_at_any_question_ends_the_removal_and_the_rest_stays() {
    let free = Script::free();
    World::new().await.erase(&free).await.0.unwrap();
    assert!(free.asked() > 3, "{} questions", free.asked());
    for n in 1..=free.asked() {
        let world = World::new().await;
        let before = world.snapshot().await;
        let held = Script::held_from(n);
        let (done, progress) = world.erase(&held).await;
        assert!(matches!(done, Err(Stop::Held(_))), "question {n}: {done:?}");
        assert_eq!(held.asked(), n, "it does not ask on");
        let now = world.snapshot().await;
        assert_in_order(&before, &now, &format!("question {n}"));
        let (planned, left) = (before.keys().filter(|key| of_archive(key)).count(), now.keys().filter(|key| of_archive(key)).count());
        assert!(left > 0, "question {n}");
        let removed = progress.removed.map(|(objects, _)| objects);
        assert_eq!(removed, (n > 1).then_some((planned - left) as u64), "question {n}");
        world.erase(&held).await.0.unwrap_err();
        assert_eq!(world.snapshot().await, now, "question {n}: repeated while it is held");
        world.erase(&Script::free()).await.0.unwrap();
        assert_erased(&before, &world.snapshot().await);
    }
}

/// Etcd was restored from a backup, and the computer was deleted again while its first archive was being erased.
#[tokio::test]
async fn an_archive_that_the_tombstone_does_not_name_stays() {
    for key in [manifest_key(UID), later_manifest_key(UID, "claim")] {
        let world = World::new().await;
        let stopped = Script::held_from(if key == manifest_key(UID) { 3 } else { 2 });
        world.erase(&stopped).await.0.unwrap_err();
        let second = packed_home(UID, 9);
        for blob in &second.blobs {
            world.store.put_once(&chunk_key(UID, &blob.chunk.digest), blob.bytes.clone()).await.unwrap();
        }
        assert_eq!(
            world.store.put_once(&key, serde_json::to_vec(&second.manifest).unwrap()).await.unwrap(),
            crate::archive::ReceiptPut::Created,
            "{key}"
        );
        let (done, progress) = world.erase(&Script::free()).await;
        done.unwrap();
        assert_eq!(progress.kept, second.blobs.len() as u64 + 1);
        assert!(matches!(verify(&world.store, UID).await, Verification::Valid(_)), "{key}");
        let named: BTreeSet<String> = second.blobs.iter().map(|blob| chunk_key(UID, &blob.chunk.digest)).chain([key]).collect();
        assert_eq!(world.snapshot().await.into_keys().filter(|key| of_archive(key)).collect::<BTreeSet<_>>(), named);
    }
}

/// An archive of version 1 has other objects, and its manifest may be too large to be parsed here.
#[tokio::test]
async fn an_archive_of_version_1_is_erased() {
    for large in [false, true] {
        let (objects, digest) = (Arc::new(CrashingStore::default()), "1".repeat(64));
        let world = World { store: Store::new(Arc::<CrashingStore>::clone(&objects)), objects };
        let session = json!({"id": "s", "digest": digest, "files": 1, "bytes": 1, "size": 1, "lastModified": 1});
        let manifest = json!({"version": 1, "computer": {"namespace": "team", "name": "box", "uid": UID}, "createdAt": 7, "sessionPaths": [],
            "sessions": [session], "problems": [], "problemCount": 0});
        let padding = if large { " ".repeat(MAX_BYTES) } else { String::new() };
        let manifest = format!("{manifest}{padding}").into_bytes();
        let digest_of_it = hex::encode(Sha256::digest(&manifest));
        world.store.put_once(&old_format::object_key(UID, &digest), b"x".to_vec()).await.unwrap();
        world.store.put_once(&manifest_key(UID), manifest).await.unwrap();
        world.store.put_once(&receipt_key(UID), receipt(UID, Some(&digest_of_it))).await.unwrap();
        let before = world.snapshot().await;
        world.erase(&Script::free()).await.0.unwrap();
        assert_erased(&before, &world.snapshot().await);
    }
}

/// A deletion without an archive, and one whose archive was given up after a part of it was sent.
#[tokio::test]
async fn without_an_archive_there_is_nothing_to_erase_except_what_was_sent() {
    let objects = Arc::new(CrashingStore::default());
    let world = World { store: Store::new(Arc::<CrashingStore>::clone(&objects)), objects };
    world.store.put_once(&receipt_key(UID), receipt(UID, None)).await.unwrap();
    let before = world.snapshot().await;
    let (done, progress) = world.erase(&Script::free()).await;
    done.unwrap();
    assert!(progress.tombstone.is_none() && world.snapshot().await == before, "no tombstone for nothing");
    world.store.put_once(&chunk_key(UID, &"0".repeat(64)), b"sent".to_vec()).await.unwrap();
    let (done, progress) = world.erase(&Script::free()).await;
    done.unwrap();
    assert_eq!(progress.removed, Some((1, 4)));
    assert_erased(&before, &world.snapshot().await);
}

/// Runs the whole removal as another leader while the first question is being answered.
struct OtherLeader<'a>(&'a World, std::sync::atomic::AtomicBool);

#[async_trait]
impl Holds for OtherLeader<'_> {
    async fn permit(&self, _: &Subject) -> Result<(), Stop> {
        if !self.1.swap(true, std::sync::atomic::Ordering::SeqCst) {
            self.0.erase(&Script::free()).await.0?;
        }
        Ok(())
    }
}

/// S10: the second of two leaders reports what the first one has removed.
#[tokio::test]
async fn another_leader_that_was_faster_is_harmless() {
    let world = World::new().await;
    let before = world.snapshot().await;
    let (holds, mut progress) = (OtherLeader(&world, false.into()), Progress::default());
    remove(&world.store, &request("team", "box", UID), &holds, Timestamp::now(), &mut progress).await.unwrap();
    assert_erased(&before, &world.snapshot().await);
    let planned = before.keys().filter(|key| of_archive(key)).count() as u64;
    assert!(progress.tombstone.is_some() && progress.removed.is_some_and(|(objects, _)| objects == planned), "{progress:?}");
}
