//! Removes the archives of a deleted computer, after an authorized decision: the exception of S7. Whatever decides (an `ArchiveErasure` now, an expiry later)
//! calls [`remove`], so that all of them keep the same order:
//!
//! 1. the receipt says that the deletion of exactly this computer is over;
//! 2. a tombstone is written, create-only: who decided what, when and why. It names the manifests that are removed;
//! 3. these manifests are removed, and a record beside the tombstone says so. From then on there is no archive;
//! 4. objects that no other manifest of the UID names are removed, with the code that removes leftovers.
//!
//! A request that was sent before the deletion ended may still store something. So a removal is over only when nothing was found a day later
//! ([`Progress::again`]).
//!
//! Directly before each removal the holds are asked. A hold that appears before step 3 saves the whole archive. One that appears later keeps what is
//! left. Each part can be repeated: after a crash everything is derived again from the tombstone and what the store lists.
//!
//! It must never remove a receipt, a tombstone, anything of another computer, or anything that a manifest names that the tombstone does not name.

pub mod figures;

use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::holds::{Holds, Permit, Stop, Subject};
use super::leftovers::{AGE, Found, MANIFESTS, Object, Sweep, first_is_listed, is_erased, is_uid, manifests, small};
use super::manifest::MAX_BYTES;
use super::store::leftovers::{Listed, Purpose, is_manifest};
use super::store::{Store, StoreError};
use super::tombstone::{self, Decision, RemovedManifest, Target, Tombstone};
use super::{Archive, receipt_key};

/// What is to be removed, and by whose decision.
#[derive(Clone, Debug)]
pub struct Request {
    /// The computer. The UID of its namespace is that of the receipt.
    pub target: Target,
    /// The decision.
    pub decision: Decision,
}

/// How far a removal is, also when it was stopped.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The tombstone, once it is written. Without one, nothing was removed.
    pub tombstone: Option<Tombstone>,
    /// Objects and bytes that existed when the tombstone was written and no longer exist, if the store can be listed.
    pub removed: Option<(u64, u64)>,
    /// Objects that stay because another archive of the UID names them.
    pub kept: u64,
    /// Whether the store was asked for the tombstone and had none, so that this decision has removed nothing.
    pub untouched: bool,
    /// When the removal must be repeated, although it succeeded: until then a request that was sent before may store something.
    pub again: Option<Timestamp>,
}

/// Removes the archives of a deleted computer. If it succeeds without a tombstone, there was nothing to remove. It is over if `progress.again` is empty.
///
/// # Errors
/// When it was stopped; `progress` says how far it is. It can be repeated.
pub async fn remove(store: &Store, request: &Request, holds: &dyn Holds, now: Timestamp, progress: &mut Progress) -> Result<(), Stop> {
    let (target, decision) = (&request.target, &request.decision);
    if !is_uid(&target.uid) || !is_uid(&decision.uid) {
        return Err(Stop::Mismatch(format!("{:?} is not the UID of a computer", target.uid)));
    }
    let receipt = Receipt::of(store, target).await?;
    let subject = Subject { computer_uid: target.uid.clone(), namespace_uid: receipt.computer.namespace_uid.clone() };
    let permit = Permit { holds, subject: &subject };
    let mut known = tombstone::get(store, &target.uid, &decision.uid).await?;
    progress.untouched = known.is_none();
    if progress.untouched {
        permit.ask().await?;
        known = match decide(store, request, &receipt, now).await? {
            Some(new) => Some(tombstone::put(store, &new).await?),
            // Another leader may have done all of it meanwhile.
            None => tombstone::get(store, &target.uid, &decision.uid).await?,
        };
    }
    let Some(tombstone) = known else {
        progress.again = again(receipt.written_at, now, false);
        return Ok(());
    };
    let done = destroy(store, &tombstone, permit, now, &mut progress.kept).await;
    if let Ok(left) = Contents::of(store, &target.uid).await {
        progress.removed = Some((tombstone.objects.saturating_sub(left.objects), tombstone.bytes.saturating_sub(left.bytes)));
    }
    if let Ok(found) = done {
        progress.again = again(tombstone.written_at, now, found);
    }
    progress.tombstone = Some(tombstone);
    done.map(|_| ())
}

/// When a removal must be repeated: `AGE` after this time, and after a pass that has found something.
fn again(since: Timestamp, now: Timestamp, found: bool) -> Option<Timestamp> {
    let over = since.checked_add(SignedDuration::from_secs(AGE)).unwrap_or(Timestamp::MAX);
    (found || now < over).then(|| over.max(now))
}

/// The parts of a receipt that decide.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Receipt {
    computer: ReceiptComputer,
    written_at: Timestamp,
    archive: Option<ReceiptArchive>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReceiptComputer {
    #[serde(default)]
    namespace: String,
    namespace_uid: Option<String>,
    #[serde(default)]
    name: String,
    uid: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReceiptArchive {
    manifest_digest: String,
}

impl Receipt {
    /// The receipt of this computer.
    async fn of(store: &Store, target: &Target) -> Result<Self, Stop> {
        let key = receipt_key(&target.uid);
        let read = match store.size(&key).await {
            Ok(size) if size > MAX_BYTES as u64 => return Err(Stop::Unreadable(format!("{key} is too large to be a receipt"))),
            Ok(_) => store.get(&key).await,
            Err(error) => Err(error),
        };
        let bytes = match read {
            Err(StoreError::NotFound(_)) => return Err(Stop::NoReceipt(format!("the archive store has no {key}"))),
            read => read?,
        };
        let receipt: Self = serde_json::from_slice(&bytes).map_err(|e| Stop::Unreadable(format!("{key}: {e}")))?;
        let found = &receipt.computer;
        if (&found.namespace, &found.name, &found.uid) != (&target.namespace, &target.name, &target.uid) {
            return Err(Stop::Mismatch(format!(
                "the receipt of UID {} is that of Computer {}/{}, not of {}/{}",
                target.uid, found.namespace, found.name, target.namespace, target.name
            )));
        }
        Ok(receipt)
    }
}

/// What the store has under a UID.
#[derive(Debug, Default)]
struct Contents {
    manifests: Vec<String>,
    objects: u64,
    bytes: u64,
    /// The first object that this version does not know.
    unknown: Option<String>,
}

impl Contents {
    async fn of(store: &Store, uid: &str) -> Result<Self, StoreError> {
        let (mut all, mut listed) = (Self::default(), store.list_archive(uid));
        while let Some(object) = listed.next().await {
            let Listed { key, bytes, .. } = object?;
            all.objects += 1;
            all.bytes += bytes;
            if is_manifest(uid, &key) {
                all.manifests.push(key);
                if all.manifests.len() > MANIFESTS {
                    return Err(StoreError::Config(format!("archives/{uid} has too many manifests")));
                }
            } else if Object::of(uid, &key).is_none() {
                all.unknown.get_or_insert(key);
            }
        }
        all.manifests.sort();
        Ok(all)
    }
}

fn unknown(key: &str) -> Stop {
    Stop::Unreadable(format!("this version of the operator does not know the object {key} in the archive store"))
}

/// The tombstone of a removal that has not begun. `None`: there is nothing to remove.
async fn decide(store: &Store, request: &Request, receipt: &Receipt, now: Timestamp) -> Result<Option<Tombstone>, Stop> {
    let uid = &request.target.uid;
    let contents = Contents::of(store, uid).await?;
    first_is_listed(store, uid, &contents.manifests).await.map_err(|error| StoreError::Unavailable(error.to_string()))?;
    if let Some(key) = &contents.unknown {
        return Err(unknown(key));
    }
    let mut manifests = Vec::new();
    for key in contents.manifests {
        let digest = identified(store, request, receipt, &key).await?;
        manifests.push(RemovedManifest { key, digest });
    }
    names_what_is_here(store, uid, receipt, &manifests).await?;
    if contents.objects == 0 && partial_files(store, uid, now, false).await? == 0 {
        return Ok(None);
    }
    let namespace_uid = receipt.computer.namespace_uid.clone();
    Ok(Some(Tombstone {
        api_version: "computer-operator.dev/v1alpha1".to_owned(),
        kind: "Tombstone".to_owned(),
        computer: Target { namespace_uid, ..request.target.clone() },
        decision: request.decision.clone(),
        written_at: now,
        manifests,
        objects: contents.objects,
        bytes: contents.bytes,
    }))
}

/// Refuses if the manifest that the receipt names is neither here nor in a tombstone: the archive may be in another store.
async fn names_what_is_here(store: &Store, uid: &str, receipt: &Receipt, manifests: &[RemovedManifest]) -> Result<(), Stop> {
    let Some(named) = receipt.archive.as_ref().map(|archive| &archive.manifest_digest) else { return Ok(()) };
    if manifests.iter().any(|manifest| manifest.digest == *named) || is_erased(&tombstone::all(store, uid).await?, named) {
        return Ok(());
    }
    let why = format!("the receipt of UID {uid} names the manifest with sha256 {named}, and the archive store does not have it");
    Err(Stop::Unreadable(format!("{why}: check that this is the store of that archive")))
}

/// The digest of a manifest of this computer: the receipt names it, or the manifest names the computer. One of version 1 may be very large, and is only
/// hashed.
async fn identified(store: &Store, request: &Request, receipt: &Receipt, key: &str) -> Result<String, Stop> {
    let gone = || StoreError::Unavailable(format!("{key} was listed and cannot be found"));
    let digest = digest(store, key).await?.ok_or_else(gone)?;
    let (size, target) = (store.size(key).await?, &request.target);
    if size <= MAX_BYTES as u64 {
        let archive = Archive::parse(&store.get(key).await?).map_err(|e| Stop::Unreadable(format!("{key}: {e}")))?;
        let found = archive.computer();
        if (&found.namespace, &found.name, &found.uid) != (&target.namespace, &target.name, &target.uid) {
            return Err(Stop::Unreadable(format!("{key} is that of Computer {}/{} with UID {}", found.namespace, found.name, found.uid)));
        }
    } else if receipt.archive.as_ref().is_none_or(|archive| archive.manifest_digest != digest) {
        return Err(Stop::Unreadable(format!("{key} is large, and the receipt does not name it")));
    }
    Ok(digest)
}

/// The SHA-256 of an object, in hexadecimal. `None`: it does not exist.
async fn digest(store: &Store, key: &str) -> Result<Option<String>, Stop> {
    let mut stream = match store.stream(key).await {
        Err(StoreError::NotFound(_)) => return Ok(None),
        stream => stream?,
    };
    let mut hash = Sha256::new();
    while let Some(part) = stream.next().await {
        hash.update(part.map_err(|e| StoreError::Unavailable(e.to_string()))?);
    }
    Ok(Some(hex::encode(hash.finalize())))
}

/// Removes what the tombstone names, and objects that no other manifest names. Returns whether there was something.
async fn destroy(store: &Store, tombstone: &Tombstone, permit: Permit<'_>, now: Timestamp, kept: &mut u64) -> Result<bool, Stop> {
    let uid = tombstone.computer.uid.as_str();
    let mut found = false;
    for manifest in &tombstone.manifests {
        // After a removal, another deletion of the UID may have stored its own archive under the same key.
        if digest(store, &manifest.key).await?.as_ref() == Some(&manifest.digest) {
            found = true;
            permit.ask().await?;
            store.delete_manifest(uid, &manifest.key).await?;
        }
    }
    tombstone::put_removed(store, tombstone).await?;
    let removed = sweep(store, uid, Some(permit)).await?;
    if partial_files(store, uid, now, false).await? > 0 {
        found = true;
        permit.ask().await?;
        partial_files(store, uid, now, true).await?;
    }
    found |= removed.unnamed > 0;
    let left = if removed.unnamed > 0 { sweep(store, uid, None).await? } else { removed };
    *kept = left.named + left.manifests;
    if let Some(key) = Contents::of(store, uid).await?.unknown {
        return Err(unknown(&key));
    }
    if left.unnamed > 0 {
        let why = format!("the archive store still lists objects in archives/{uid} that were removed");
        return Err(StoreError::Unavailable(why).into());
    }
    store.settle_removal(uid).await?;
    Ok(found)
}

/// Removes the objects that no manifest names, or counts them.
async fn sweep(store: &Store, uid: &str, permit: Option<Permit<'_>>) -> Result<Found, Stop> {
    let keys = store.list_manifests(uid).await?;
    small(store, &keys).await?;
    let manifests = manifests(store, uid, &keys, None).await?;
    let mut found = Found { manifests: keys.len() as u64, ..Found::default() };
    let remove = permit.map(|_| Purpose::Erasure);
    Sweep { store, uid, remove, permit, until: i64::MAX, keys, manifests }.run(&mut found).await?;
    Ok(found)
}

/// Counts or removes what interrupted writes have left in a local store, without tombstones.
async fn partial_files(store: &Store, uid: &str, now: Timestamp, remove: bool) -> Result<u64, StoreError> {
    let of = uid.to_owned();
    let known = move |key: &str| Object::of(&of, key).is_some() || is_manifest(&of, key);
    store.partial_files(uid, known, now.as_second().saturating_add(1), remove).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
