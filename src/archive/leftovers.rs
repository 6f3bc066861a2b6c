//! Finds and removes leftovers of crashes and aborted attempts: objects that no manifest of the same UID references. The leader removes them
//! (`collector.rs`), and an admin lists and removes them with `archives leftovers` (docs/archive-format.md, point 4).
//!
//! Nothing that a manifest names is ever removed (S7), and nothing at all unless the receipt in the store says that the deletion is over for
//! longer than a day. Every manifest of the UID counts, also those of other deletions of it; what cannot be read completely removes nothing.
//! An object that was stored within the last day keeps everything: another deletion of the UID may be sending. If one sends nothing and only
//! uses what it finds, its manifest is refused while a chunk is missing, and its read-back comes before anything is destroyed (S1).

use std::collections::HashMap;

use futures::StreamExt as _;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::index::{Lines, Pieces};
use super::manifest::{Chunk, MAX_BYTES, is_digest};
use super::store::{Store, StoreError};
use super::{Archive, copies, manifest_key, old_format, receipt_key};

/// Time since the receipt, and since each object was stored, before anything is removed. A request of an archive pod that was sent before the
/// receipt has ended by then.
pub(super) const AGE: i64 = 24 * 3600;
/// Objects that are compared with the manifests at once: the names of a chunk take some 100 bytes.
const AT_ONCE: usize = if cfg!(test) { 10 } else { 20_000 };
/// Manifests of one UID. Each deletion of it writes one.
const MANIFESTS: usize = 4;
/// Objects that are deleted before the manifests are listed again.
const AT_A_TIME: usize = if cfg!(test) { 3 } else { 64 };
/// Objects that are deleted in parallel.
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

    /// The object with this key. `None`: a manifest, or something that this version does not know.
    fn of(uid: &str, key: &str) -> Option<Self> {
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

/// Looks for what no manifest of a UID names. `now`: the time, in Unix seconds.
///
/// # Errors
/// When the deletion is not over, a manifest or its index is damaged, or the store does not answer or does not delete.
pub async fn clean(store: &Store, uid: &str, work: Work, now: i64) -> Result<Found, StoreError> {
    if uid.is_empty() || uid.len() > 64 || !uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(refused(format_args!("{uid:?} is not the UID of a computer")));
    }
    let archived = ended(store, uid, now).await?;
    if work == Work::Collect && archived.is_none() {
        // The archive was given up, or there was nothing to archive. What was stored before may be all that is left of the sessions: an admin decides.
        return Ok(Found::default());
    }
    let (mut found, keys) = survey(store, uid, now).await?;
    if work == Work::Collect {
        small(store, &keys).await?;
    }
    let manifests = manifests(store, uid, &keys, archived).await?;
    found.manifests = manifests.len() as u64;
    let sifter = Sifter { store, uid, remove: work != Work::List, keys, manifests };
    let (mut listed, mut batch) = (store.list_archive(uid), Batch::new());
    while let Some(object) = listed.next().await {
        let (key, stored) = object?;
        if let Some(object) = Object::of(uid, &key) {
            if stored > now - AGE {
                return Err(young(&key));
            }
            batch.entry(object.digest).or_insert_with(Vec::new).push(object);
        }
        if batch.len() >= AT_ONCE {
            sifter.sift(std::mem::take(&mut batch), &mut found).await?;
        }
    }
    sifter.sift(batch, &mut found).await?;
    let (of, (manifest, receipt)) = (uid.to_owned(), (format!("archives/{uid}/manifest"), receipt_key(uid)));
    let known = move |key: &str| Object::of(&of, key).is_some() || key.starts_with(&manifest) || key == receipt;
    let unfinished = store.partial_files(uid, known, now - AGE, work != Work::List).await?;
    found.unnamed += unfinished;
    found.removed += if work == Work::List { 0 } else { unfinished };
    Ok(found)
}

/// The SHA-256 of the manifest that the receipt names. `None`: the deletion ended without an archive.
async fn ended(store: &Store, uid: &str, now: i64) -> Result<Option<String>, StoreError> {
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
    match &receipt["archive"] {
        Value::Null => Ok(None),
        archive => {
            let digest = archive["manifestDigest"].as_str().filter(|digest| is_digest(digest));
            digest.map(|digest| Some(digest.to_owned())).ok_or_else(|| refused("the receipt does not name the manifest of its archive"))
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
        let (key, stored) = object?;
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
async fn small(store: &Store, keys: &[String]) -> Result<(), StoreError> {
    for key in keys {
        if store.size(key).await? > MAX_BYTES as u64 {
            return Err(refused(format_args!("{key} is large: use `archives leftovers --remove`")));
        }
    }
    Ok(())
}

/// The manifests of a UID, completely. Some stores list an object late, so the first one is asked for by its key.
async fn manifests(store: &Store, uid: &str, keys: &[String], archived: Option<String>) -> Result<Vec<Archive>, StoreError> {
    let first = manifest_key(uid);
    if !keys.contains(&first) && !matches!(store.size(&first).await, Err(StoreError::NotFound(_))) {
        return Err(refused(format_args!("{first} exists, or may exist, and is not listed")));
    }
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

/// Compares objects with the manifests.
struct Sifter<'a> {
    store: &'a Store,
    uid: &'a str,
    remove: bool,
    /// The keys of the manifests.
    keys: Vec<String>,
    manifests: Vec<Archive>,
}

type Batch = HashMap<[u8; 32], Vec<Object>>;

fn count(batch: &Batch) -> u64 {
    batch.values().map(|objects| objects.len() as u64).sum()
}

impl Sifter<'_> {
    /// Takes out of a batch what the manifests name, and removes the rest.
    async fn sift(&self, mut batch: Batch, found: &mut Found) -> Result<(), StoreError> {
        let all = count(&batch);
        for archive in &self.manifests {
            take_named(self.store, self.uid, archive, &mut batch).await?;
        }
        found.named += all - count(&batch);
        found.unnamed += count(&batch);
        if !self.remove || batch.is_empty() {
            return Ok(());
        }
        let objects: Vec<Object> = batch.into_values().flatten().collect();
        for part in objects.chunks(AT_A_TIME) {
            // Reading the indexes, and deleting the part before, may have taken long.
            if self.store.list_manifests(self.uid).await? != self.keys {
                return Err(refused("another manifest was stored meanwhile"));
            }
            let deletions = part.iter().copied().map(|object| async move { self.store.delete_leftover(self.uid, &object).await });
            let mut deleted = futures::stream::iter(deletions).buffer_unordered(DELETIONS);
            while let Some(result) = deleted.next().await {
                result?;
                found.removed += 1;
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

/// A key is that of an object if it is built from its digest.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests;
