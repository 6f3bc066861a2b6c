//! Finds and removes leftovers of crashes and aborted attempts: objects that no manifest of the same UID references. The leader removes them
//! (`collector.rs`), and an admin lists and removes them with `archives leftovers` (docs/archive-format.md, point 4).
//!
//! Nothing that a manifest names is ever removed (S7), and nothing at all unless the receipt in the store says that the deletion is over for
//! longer than a day. Every manifest of the UID counts, also those of other deletions of it; what cannot be read completely removes nothing.
//! An object that was stored within the last day keeps everything: another deletion of the UID may be sending. If one sends nothing and only
//! uses what it finds, its manifest is refused while a chunk is missing, and its read-back comes before anything is destroyed (S1).
//!
//! `removal.rs` removes archives with the same [`Sweep`], once it has removed their manifests. Where an erasure has begun, what is left of it may be held:
//! only who can ask the holds removes it.

use std::collections::HashMap;

use futures::StreamExt as _;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::holds::{Holds, Permit, Stop, Subject};
use super::index::{Lines, Pieces};
use super::manifest::{Chunk, MAX_BYTES, is_digest};
use super::store::leftovers::{Listed, Purpose};
use super::store::{Store, StoreError};
use super::tombstone::{self, Tombstone};
use super::{Archive, copies, manifest_key, old_format, receipt_key};

/// Time since the receipt, and since each object was stored, before anything is removed. A request of an archive pod that was sent before the
/// receipt has ended by then.
pub(super) const AGE: i64 = 24 * 3600;
/// Objects that are compared with the manifests at once: the names of a chunk take some 100 bytes.
const AT_ONCE: usize = if cfg!(test) { 10 } else { 20_000 };
/// Manifests of one UID. Each deletion of it writes one.
pub(super) const MANIFESTS: usize = 4;
/// Objects that are deleted before the manifests are listed again.
const AT_A_TIME: usize = if cfg!(test) { 3 } else { 64 };
/// Objects that are deleted in parallel, after one question to the holds.
const DELETIONS: usize = 8;

/// An object that a manifest can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    digest: [u8; 32],
    kind: Kind,
}

/// Where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// A chunk, or a piece of the index: which copy.
    Chunk(u32),
    /// A session of version 1.
    Old,
}

impl Object {
    /// Its key.
    pub fn key(&self, uid: &str) -> String {
        let digest = hex::encode(self.digest);
        match self.kind {
            Kind::Chunk(copy) => copies::copy_key(uid, &digest, copy),
            Kind::Old => old_format::object_key(uid, &digest),
        }
    }

    /// The object with this key, if the key is the one that is built from its digest. `None`: a manifest, or something that this version does not know.
    pub(super) fn of(uid: &str, key: &str) -> Option<Self> {
        let name = key.rsplit('/').next()?;
        let mut digest = [0; 32];
        hex::decode_to_slice(name.get(..64).filter(|digest| is_digest(digest))?, &mut digest).ok()?;
        let kinds = (0..copies::COPIES).map(Kind::Chunk).chain([Kind::Old]);
        kinds.map(|kind| Self { digest, kind }).find(|object| object.key(uid) == key)
    }
}

/// What to do with unreferenced objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Count them.
    List,
    /// Remove them.
    Remove,
    /// Remove them, also where a hold may name them and cannot be asked: what an archive that was given up has stored.
    RemoveIgnoringHolds,
    /// Remove them while the operator does other work. Fails if a manifest is larger than this version writes, because reading it takes too much memory.
    Collect,
}

/// What was found under a UID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Manifests.
    pub manifests: u64,
    /// Objects that a manifest names.
    pub named: u64,
    /// Objects that no manifest references, and partial files that an interrupted write left in a local store.
    pub unnamed: u64,
    /// Those of them that were removed.
    pub removed: u64,
    /// Objects that this version does not know. They stay.
    pub unknown: u64,
}

fn refused(why: impl std::fmt::Display) -> StoreError {
    StoreError::Config(format!("nothing is removed: {why}"))
}

/// Looks for what no manifest of a UID names, without access to the cluster. `now`: the time, in Unix seconds.
///
/// # Errors
/// When the deletion is not over, a manifest or its index is damaged, an erasure has left something, or the store does not answer or does not delete.
pub async fn clean(store: &Store, uid: &str, work: Work, now: i64) -> Result<Found, StoreError> {
    clean_unless_held(store, uid, work, now, None).await
}

/// As [`clean`], and asks the holds before each removal.
///
/// # Errors
/// As [`clean`], or when the archive is held.
pub async fn clean_unless_held(store: &Store, uid: &str, work: Work, now: i64, holds: Option<&dyn Holds>) -> Result<Found, StoreError> {
    if !is_uid(uid) {
        return Err(refused(format_args!("{uid:?} is not the UID of a computer")));
    }
    let (archived, namespace_uid) = ended(store, uid, now).await?;
    if work == Work::Collect && archived.is_none() {
        // The archive was given up, or there was nothing to archive. What was stored before may be all that is left of the sessions: an admin decides.
        return Ok(Found::default());
    }
    let erased = tombstone::all(store, uid).await?;
    if work != Work::List && holds.is_none() && !erased.is_empty() {
        return Err(refused("an erasure of this UID has begun, and ArchiveHolds cannot be read here: the operator removes what is left"));
    }
    let (mut found, keys) = survey(store, uid, now).await?;
    if work == Work::Remove && archived.is_none() && holds.is_none() {
        return Err(refused(
            "the deletion had no archive, so this may be all that is left of the sessions, and ArchiveHolds cannot be read here. \
             Check that no ArchiveHold names the computer or its namespace, then use --ignore-holds",
        ));
    }
    if work == Work::Collect {
        small(store, &keys).await?;
    }
    let archived = match archived {
        Some(digest) if tombstone::is_removed(store, &erased, &digest).await? => None,
        archived => archived,
    };
    let manifests = manifests(store, uid, &keys, archived).await?;
    found.manifests = manifests.len() as u64;
    let subject = Subject { computer_uid: uid.to_owned(), namespace_uid };
    let permit = holds.map(|holds| Permit { holds, subject: &subject });
    let remove = (work != Work::List).then_some(Purpose::Leftovers);
    let sweep = Sweep { store, uid, remove, permit, until: now - AGE, keys, manifests };
    sweep.run(&mut found).await?;
    let unfinished = store.partial_files(uid, known_keys(uid), now - AGE, false).await?;
    found.unnamed += unfinished;
    if unfinished > 0 && work != Work::List {
        if let Some(permit) = permit {
            permit.ask().await?;
        }
        found.removed += store.partial_files(uid, known_keys(uid), now - AGE, true).await?;
    }
    Ok(found)
}

/// Whether a key is one of those that the operator writes for a UID.
fn known_keys(uid: &str) -> impl Fn(&str) -> bool + Send + 'static {
    let (of, receipt) = (uid.to_owned(), receipt_key(uid));
    let begins = [format!("archives/{uid}/manifest"), tombstone::folder(uid)];
    move |key| Object::of(&of, key).is_some() || key == receipt || begins.iter().any(|begin| key.starts_with(begin))
}

/// Whether this can be the UID of a computer: it becomes a part of keys.
pub(super) fn is_uid(uid: &str) -> bool {
    !uid.is_empty() && uid.len() <= 64 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Whether a tombstone names this manifest.
pub(super) fn is_erased(erased: &[Tombstone], digest: &str) -> bool {
    erased.iter().flat_map(|tombstone| &tombstone.manifests).any(|manifest| manifest.digest == digest)
}

/// The SHA-256 of the manifest that the receipt names (`None`: the deletion ended without an archive), and the UID of the computer's namespace.
async fn ended(store: &Store, uid: &str, now: i64) -> Result<(Option<String>, Option<String>), StoreError> {
    let receipt = match store.get(&receipt_key(uid)).await {
        Err(StoreError::NotFound(_)) => return Err(refused("the store has no receipt of this UID, so its deletion may not be over")),
        read => read?,
    };
    let receipt: Value = serde_json::from_slice(&receipt).map_err(|e| refused(format_args!("the receipt cannot be read: {e}")))?;
    let written = receipt["writtenAt"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
    let Some(written) = written.filter(|_| receipt["computer"]["uid"] == uid) else {
        return Err(refused("the receipt does not say that the deletion of this UID is over"));
    };
    if written.as_second() > now - AGE {
        return Err(refused("the deletion ended less than a day ago, and requests of its archive pod may be on their way"));
    }
    let namespace = receipt["computer"]["namespaceUid"].as_str().map(str::to_owned);
    match &receipt["archive"] {
        Value::Null => Ok((None, namespace)),
        archive => {
            let digest = archive["manifestDigest"].as_str().filter(|digest| is_digest(digest));
            let digest = digest.ok_or_else(|| refused("the receipt does not name the manifest of its archive"))?;
            Ok((Some(digest.to_owned()), namespace))
        }
    }
}

fn young(key: &str) -> StoreError {
    refused(format_args!("{key} was stored less than a day ago, so another deletion of this UID may be sending its archive"))
}

/// Goes through everything once before anything is removed. Returns the keys of the manifests.
async fn survey(store: &Store, uid: &str, now: i64) -> Result<(Found, Vec<String>), StoreError> {
    let (mut found, mut manifests, mut listed) = (Found::default(), Vec::new(), store.list_archive(uid));
    let prefix = format!("archives/{uid}/manifest");
    while let Some(object) = listed.next().await {
        let Listed { key, stored, .. } = object?;
        if stored > now - AGE {
            return Err(young(&key));
        }
        let manifest = key.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('/'));
        if manifest && manifests.len() < MANIFESTS {
            manifests.push(key);
        } else if manifest {
            return Err(refused("there are too many manifests"));
        } else if Object::of(uid, &key).is_none() {
            found.unknown += 1;
        }
    }
    manifests.sort();
    Ok((found, manifests))
}

/// Refuses manifests that are too large to be read while the operator does other work.
pub(super) async fn small(store: &Store, keys: &[String]) -> Result<(), StoreError> {
    for key in keys {
        if store.size(key).await? > MAX_BYTES as u64 {
            return Err(refused(format_args!("{key} is large: use `archives leftovers --remove`")));
        }
    }
    Ok(())
}

/// Some stores list an object late, so the first manifest is asked for by its key.
pub(super) async fn first_is_listed(store: &Store, uid: &str, keys: &[String]) -> Result<(), StoreError> {
    let first = manifest_key(uid);
    if !keys.contains(&first) && !matches!(store.size(&first).await, Err(StoreError::NotFound(_))) {
        return Err(refused(format_args!("{first} exists, or may exist, and is not listed")));
    }
    Ok(())
}

/// The manifests of a UID, completely.
pub(super) async fn manifests(store: &Store, uid: &str, keys: &[String], archived: Option<String>) -> Result<Vec<Archive>, StoreError> {
    first_is_listed(store, uid, keys).await?;
    let (mut all, mut digests) = (Vec::new(), Vec::new());
    for key in keys {
        let bytes = store.get(key).await?;
        let archive = Archive::parse(&bytes).map_err(|e| refused(format_args!("{key}: {e}")))?;
        if archive.computer().uid != uid {
            return Err(refused(format_args!("{key} is that of another computer")));
        }
        digests.push(hex::encode(Sha256::digest(&bytes)));
        all.push(archive);
        if matches!(all.last(), Some(Archive::New(_))) && bytes.len() > MAX_BYTES {
            return Err(refused(format_args!("{key} is too large")));
        }
    }
    match archived.filter(|archived| !digests.contains(archived)) {
        Some(digest) => Err(refused(format_args!("the manifest with sha256 {digest}, which the receipt names, is not in the store"))),
        None => Ok(all),
    }
}

/// Compares everything under a UID with its manifests.
pub(super) struct Sweep<'a> {
    /// Where.
    pub store: &'a Store,
    /// Whose.
    pub uid: &'a str,
    /// Why objects that no manifest names are removed. `None`: they are counted.
    pub remove: Option<Purpose>,
    /// What is asked before each group of removals.
    pub permit: Option<Permit<'a>>,
    /// An object that was stored later keeps everything, Unix seconds.
    pub until: i64,
    /// The keys of the manifests.
    pub keys: Vec<String>,
    /// The manifests.
    pub manifests: Vec<Archive>,
}

type Batch = HashMap<[u8; 32], Vec<Object>>;

fn count(batch: &Batch) -> u64 {
    batch.values().map(|objects| objects.len() as u64).sum()
}

impl Sweep<'_> {
    /// Does it.
    pub async fn run(&self, found: &mut Found) -> Result<(), Stop> {
        let (mut listed, mut batch) = (self.store.list_archive(self.uid), Batch::new());
        while let Some(object) = listed.next().await {
            let Listed { key, stored, .. } = object?;
            if let Some(object) = Object::of(self.uid, &key) {
                if stored > self.until {
                    return Err(young(&key).into());
                }
                batch.entry(object.digest).or_insert_with(Vec::new).push(object);
            }
            if batch.len() >= AT_ONCE {
                self.sift(std::mem::take(&mut batch), found).await?;
            }
        }
        self.sift(batch, found).await
    }

    /// Takes out of a batch what the manifests name, and removes the rest.
    async fn sift(&self, mut batch: Batch, found: &mut Found) -> Result<(), Stop> {
        let all = count(&batch);
        for archive in &self.manifests {
            take_named(self.store, self.uid, archive, &mut batch).await?;
        }
        found.named += all - count(&batch);
        found.unnamed += count(&batch);
        let Some(purpose) = self.remove.filter(|_| !batch.is_empty()) else { return Ok(()) };
        let objects: Vec<Object> = batch.into_values().flatten().collect();
        for part in objects.chunks(AT_A_TIME) {
            // Reading the indexes, and deleting the part before, may have taken long.
            if self.store.list_manifests(self.uid).await? != self.keys {
                return Err(refused("another manifest was stored meanwhile").into());
            }
            for group in part.chunks(DELETIONS) {
                if let Some(permit) = &self.permit {
                    permit.ask().await?;
                }
                let deletions = group.iter().map(|object| self.store.delete_object(self.uid, object, purpose));
                // All of them, also when one fails: each one that has begun is counted.
                let done = futures::future::join_all(deletions).await;
                found.removed += done.iter().filter(|deleted| deleted.is_ok()).count() as u64;
                done.into_iter().collect::<Result<(), StoreError>>()?;
            }
        }
        Ok(())
    }
}

/// Takes out what a manifest names: its index, and what that names. All copies of an object count as named.
async fn take_named(store: &Store, uid: &str, archive: &Archive, batch: &mut Batch) -> Result<(), StoreError> {
    let mut take = |digest: &str| {
        let mut bytes = [0; 32];
        hex::decode_to_slice(digest, &mut bytes).map_err(|e| refused(format_args!("a digest of the manifest cannot be read: {e}")))?;
        batch.remove(&bytes);
        Ok::<_, StoreError>(())
    };
    let manifest = match archive {
        Archive::Old(old) => return old.sessions.iter().try_for_each(|session| take(&session.digest)),
        Archive::New(manifest) => manifest,
    };
    manifest.pieces().try_for_each(|piece| take(&piece.digest))?;
    for list in [&manifest.entries, &manifest.problems].into_iter().filter(|list| list.nested) {
        let mut pieces = Pieces::new(store, uid, list);
        while let Some(piece) = pieces.next().await? {
            take(&piece.digest)?;
        }
    }
    let mut chunks = Lines::<Chunk>::new(store, uid, &manifest.chunks);
    while let Some(chunk) = chunks.next().await? {
        take(&chunk.digest)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests;
