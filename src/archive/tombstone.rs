//! Tombstones: which archives were removed from the store, when, why, and by whose decision. One is written before anything is removed, at a key of
//! its own, create-only, and never removed. After a crash the removal continues from it. When the manifests that it names are gone, a record beside it says so.

use futures::StreamExt as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::store::{ReceiptPut, Store, StoreError};

/// Largest tombstone.
const LARGEST: u64 = 64 * 1024;
/// Tombstones of one UID that are read.
const MOST: usize = 64;

/// A decision to remove the archives of a computer, and what it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tombstone {
    /// `computer-operator.dev/v1alpha1`.
    pub api_version: String,
    /// `Tombstone`.
    pub kind: String,
    /// The computer.
    pub computer: Target,
    /// Who decided it, and why.
    pub decision: Decision,
    /// When the tombstone was written: before anything was removed.
    pub written_at: Timestamp,
    /// The manifests that are removed. A manifest that is stored later is that of another deletion, and stays.
    pub manifests: Vec<RemovedManifest>,
    /// Objects under the UID at that time, with the manifests.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A deleted computer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Its namespace.
    pub namespace: String,
    /// UID of that namespace, as far as the receipt says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_uid: Option<String>,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Kind of the object that decided, for example `ArchiveErasure`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its UID, which is a part of the tombstone's key.
    pub uid: String,
    /// Who asked for it.
    pub requested_by: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<Timestamp>,
    /// Why.
    pub reason: String,
}

/// A manifest that is removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedManifest {
    /// Its key.
    pub key: String,
    /// Its SHA-256, which the receipt names.
    pub digest: String,
}

/// Key of the tombstone of a decision.
pub fn tombstone_key(uid: &str, decision: &str) -> String {
    format!("{}{decision}.json", folder(uid))
}

/// Key of the record that the manifests of a tombstone are removed. No UID has a dot.
pub(super) fn removed_key(uid: &str, decision: &str) -> String {
    format!("{}{decision}.removed.json", folder(uid))
}

/// Records that the manifests of a tombstone are removed.
///
/// # Errors
/// When the outcome is not known.
pub(super) async fn put_removed(store: &Store, tombstone: &Tombstone) -> Result<(), StoreError> {
    let (uid, decision) = (&tombstone.computer.uid, &tombstone.decision.uid);
    let record = json!({"apiVersion": tombstone.api_version, "kind": "ManifestsRemoved", "computer": uid, "decision": decision});
    let key = removed_key(uid, decision);
    match store.put_once(&key, record.to_string().into_bytes()).await? {
        ReceiptPut::Created | ReceiptPut::SameAlready => Ok(()),
        ReceiptPut::Other(_) => Err(StoreError::Corrupt(format!("{key} has other content"))),
    }
}

/// Whether it is recorded that a manifest was removed. A tombstone only says that it is to be removed.
///
/// # Errors
/// When the store does not answer.
pub(super) async fn is_removed(store: &Store, tombstones: &[Tombstone], digest: &str) -> Result<bool, StoreError> {
    for tombstone in tombstones.iter().filter(|tombstone| tombstone.manifests.iter().any(|manifest| manifest.digest == digest)) {
        match store.size(&removed_key(&tombstone.computer.uid, &tombstone.decision.uid)).await {
            Err(StoreError::NotFound(_)) => {}
            size => return size.map(|_| true),
        }
    }
    Ok(false)
}

/// What the keys of all tombstones of a computer begin with.
pub(super) fn folder(uid: &str) -> String {
    format!("erasures/{uid}/")
}

impl Tombstone {
    /// Its key.
    pub fn key(&self) -> String {
        tombstone_key(&self.computer.uid, &self.decision.uid)
    }

    /// One sentence for a reader who looks for the archive.
    pub fn sentence(&self) -> String {
        let Decision { kind, name, requested_by, reason, .. } = &self.decision;
        let (uid, at) = (&self.computer.uid, self.written_at.strftime("%Y-%m-%dT%H:%M:%SZ"));
        format!("the archive of {uid} was erased: {kind} {name} of user {requested_by}, decided at {at}, reason: {reason}")
    }
}

/// The tombstone of a decision, if it was written.
///
/// # Errors
/// When it cannot be read, or is that of another computer or decision.
pub async fn get(store: &Store, uid: &str, decision: &str) -> Result<Option<Tombstone>, StoreError> {
    let key = tombstone_key(uid, decision);
    let read = match store.size(&key).await {
        Ok(size) if size > LARGEST => return Err(StoreError::Corrupt(format!("{key} is too large"))),
        Ok(_) => store.get(&key).await,
        Err(error) => Err(error),
    };
    match read {
        Ok(bytes) => parse(&key, &bytes).map(Some),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a tombstone. Returns the one that is stored: it may be that of an earlier attempt, or of another leader.
///
/// # Errors
/// When the outcome is not known.
pub async fn put(store: &Store, tombstone: &Tombstone) -> Result<Tombstone, StoreError> {
    let (key, bytes) = (tombstone.key(), serde_json::to_vec_pretty(tombstone).map_err(|e| StoreError::Config(e.to_string()))?);
    match store.put_once(&key, bytes).await? {
        ReceiptPut::Created | ReceiptPut::SameAlready => Ok(tombstone.clone()),
        ReceiptPut::Other(existing) => parse(&key, &existing),
    }
}

/// All tombstones of a computer, the oldest first.
///
/// # Errors
/// When the store does not answer, or one of them cannot be read.
pub async fn all(store: &Store, uid: &str) -> Result<Vec<Tombstone>, StoreError> {
    let (folder, mut decisions, mut listed) = (folder(uid), Vec::new(), store.list_tombstones(uid));
    while let Some(key) = listed.next().await {
        let key = key?;
        let decision = key.strip_prefix(&folder).and_then(|rest| rest.strip_suffix(".json"));
        decisions.extend(decision.filter(|decision| !decision.contains(['/', '.'])).map(str::to_owned));
        if decisions.len() > MOST {
            return Err(StoreError::Corrupt(format!("there are more than {MOST} tombstones in {folder}")));
        }
    }
    let mut all = Vec::new();
    for decision in decisions {
        all.extend(get(store, uid, &decision).await?);
    }
    all.sort_by_key(|tombstone| tombstone.written_at);
    Ok(all)
}

/// Why a computer has no archive, if its archive was erased: for a reader.
///
/// # Errors
/// As [`all`].
pub async fn explained(store: &Store, uid: &str) -> Result<Option<String>, StoreError> {
    Ok(all(store, uid).await?.last().map(Tombstone::sentence))
}

/// A tombstone in its place: what it says decides what is removed.
fn parse(key: &str, bytes: &[u8]) -> Result<Tombstone, StoreError> {
    let tombstone: Tombstone = serde_json::from_slice(bytes).map_err(|e| StoreError::Corrupt(format!("{key}: {e}")))?;
    if tombstone.key() != key {
        return Err(StoreError::Corrupt(format!("{key} is the tombstone of another computer or decision")));
    }
    Ok(tombstone)
}
