//! The archive of a computer: one compressed tar in content-addressed chunks, an index of its sessions, and a manifest that is written last
//! (docs/archive-format.md).
//!
//! An archive is create-only (S7) and must never be unpacked in the controller. Only `removal` destroys archives, after an authorized decision. Keys in the store come from the operator's configuration
//! and the UID, never from a custom resource.

pub mod chunks;
pub mod cli;
pub mod collector;
pub mod copies;
mod delivery;
mod fixed_size_reader;
mod folder_names;
mod frames;
pub mod holds;
mod holes;
pub mod home_size;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod hostile_input_tests;
pub mod index;
pub mod ingest;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod large_home_tests;
mod leftovers;
pub mod manifest;
pub mod old_format;
mod old_objects;
pub mod opened;
pub mod pack;
pub mod pod_program;
pub mod problems;
pub mod reading;
mod receipt_writer;
pub mod remote;
pub mod removal;
pub mod restore;
mod resumable_read;
pub mod sender;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod standard_tools_tests;
pub mod store;
pub mod store_check;
pub mod store_failure;
pub mod store_volume;
mod tar_header;
pub mod tar_scan;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod test_archives;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod test_relay;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod test_store;
pub mod tombstone;
pub mod transport;
pub mod turns;
pub mod unreadable;
pub mod uploads;
pub mod verify;
pub mod waiting_time;
pub mod walk;
mod while_hashed;

use std::sync::Arc;

use tokio::sync::mpsc;

pub use manifest::{Entry, Manifest};
pub use opened::Archive;
pub use store::{ReceiptPut, Store, StoreError};
pub use unreadable::Unreadable;
pub use verify::{Origin, ReadBack, Summary, Verification};

use receipt_writer::Receipts;
use uploads::Uploads;
use verify::Verifier;
use waiting_time::Waits;

/// Key of a chunk, or of a piece of the index, in the store.
pub fn chunk_key(uid: &str, digest: &str) -> String {
    format!("archives/{uid}/chunks/{digest}.zst")
}

/// Key of the manifest: its presence makes an archive.
pub fn manifest_key(uid: &str) -> String {
    format!("archives/{uid}/manifest.json")
}

/// Key of the manifest if an earlier deletion of the same UID has already stored one (for example, etcd was restored from a backup). The
/// earlier one is never changed (S7).
pub fn later_manifest_key(uid: &str, custody_claim: &str) -> String {
    format!("archives/{uid}/manifest-{custody_claim}.json")
}

/// Key of the receipt.
pub fn receipt_key(uid: &str) -> String {
    format!("receipts/{uid}.json")
}

/// The archives of all computers: what the reconciler sees of this module.
pub struct Archives {
    store: Arc<Store>,
    verifier: Verifier,
    receipts: Receipts,
    waits: Arc<Waits>,
    uploads: Arc<Uploads>,
}

impl Archives {
    /// Opens the store at `url`. The UID of every finished check, and of every receipt that was stored after its caller stopped waiting, is
    /// sent to `checked`.
    ///
    /// # Errors
    /// When the URL is invalid.
    pub fn open(url: &str, checked: mpsc::Sender<String>) -> Result<Self, StoreError> {
        Ok(Self::new(Arc::new(Store::open(url)?), checked))
    }

    /// The archives in a store; `checked` as in [`Archives::open`].
    pub fn new(store: Arc<Store>, checked: mpsc::Sender<String>) -> Self {
        let receipts = Receipts::new(Arc::clone(&store), checked.clone());
        let waits = Arc::<Waits>::default();
        let uploads = Arc::new(Uploads::new(Arc::clone(&waits)));
        Self { verifier: Verifier::new(Arc::clone(&store), checked), receipts, store, waits, uploads }
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// How long deletions have waited for their archives.
    pub fn waits(&self) -> &Arc<Waits> {
        &self.waits
    }

    /// What archive pods have sent to this process.
    pub fn uploads(&self) -> &Arc<Uploads> {
        &self.uploads
    }

    /// The state of this deletion's archive. Never waits: starts a check if none is running.
    pub fn check(&self, uid: &str, origin: &Origin) -> Verification {
        self.verifier.check(uid, origin)
    }

    /// How far the running read-back of a computer's archive is, for the status.
    pub fn read_back(&self, uid: &str) -> Option<ReadBack> {
        self.verifier.progress(uid)
    }

    /// The result of `look` on the key of the newest manifest of a computer, and on its archive. Manifests are read one at a time: no two are completely in memory.
    ///
    /// # Errors
    /// When it does not exist, it is damaged, or the store does not answer.
    pub async fn with_archive<T>(
        &self,
        (namespace, uid): (&str, &str),
        look: impl AsyncFnOnce(&Store, &str, Archive) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.verifier.with_archive((namespace, uid), look).await
    }

    /// Stores the receipt of a computer of this namespace, create-only. Returns the stored bytes, which may be those of an earlier attempt. Never waits for long.
    ///
    /// # Errors
    /// When the outcome is not known, or not known yet.
    pub async fn put_receipt(&self, namespace: &str, uid: &str, bytes: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        self.receipts.put(namespace, uid, bytes).await
    }
}
