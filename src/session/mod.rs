//! Updates the status of Sessions: once the archive of a computer has been verified, each of its Sessions shows where its copy is. The status is only
//! a view. Nothing may be decided from it, and a Session that is deleted with its namespace is no loss, because the manifest is authoritative.
//!
//! Tenants decide how many Sessions there are and how large they are. The updates therefore run outside the reconciler's workers, which never wait for
//! them (L3), for a few computers at a time, in small pages, and for a limited time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, ApiResource, ListParams, Patch, PatchParams};
use kube::core::Object;
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::archive::manifest::ids_of_path;
use crate::archive::old_format::object_key;
use crate::archive::store::StoreError;
use crate::archive::{Archive, Archives, Store};
use crate::resources::{Session, SessionPhase, SessionStatus};
use crate::runtime::client::{CallError, ErrorClass, call, classify};
use crate::runtime::patch;

/// Sessions in one page of a list; one may have 1.5 MiB.
const PAGE: u32 = 10;
/// Sessions that are looked up in the archive at once: its index is read once for them.
const LOOKED_UP: usize = 500;
/// Memory for the sessions that may contain their paths, in bytes; a page adds 8 MiB at most. A tenant decides how many folders a path has.
const LOOKED_UP_BYTES: usize = 1 << 20;
/// Memory of a session besides its id: digest, and what the table takes.
const BESIDES_ID: usize = 300;
/// Number of computers whose Sessions are marked concurrently.
const AT_ONCE: usize = 2;
/// Time limit for the Sessions of one computer; shorter than the lifetime of a list's continue token.
const LIMIT: Duration = Duration::from_secs(240);

/// Marks Sessions as archived or ended. Dropping it cancels running updates.
pub struct Marker {
    client: Client,
    archives: Arc<Archives>,
    slots: Arc<Semaphore>,
    tasks: Mutex<JoinSet<()>>,
}

impl Marker {
    /// Reads the manifests from this store.
    pub fn new(client: Client, archives: Arc<Archives>) -> Self {
        Self { client, archives, slots: Arc::new(Semaphore::new(AT_ONCE)), tasks: Mutex::default() }
    }

    /// Marks the Sessions of a computer whose archive has just been recorded. Best effort, and never waits.
    pub fn mark(&self, namespace: String, uid: String, deleted_at: Time) {
        let (client, archives, slots) = (self.client.clone(), Arc::clone(&self.archives), Arc::clone(&self.slots));
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            // The semaphore is never closed.
            let _slot = slots.acquire().await;
            match tokio::time::timeout(LIMIT, mark_archived(&client, &archives, (&namespace, &uid), &deleted_at)).await {
                Ok(Ok(written)) => tracing::debug!(uid, namespace, written, "updated the status of the computer's sessions"),
                Ok(Err(error)) => {
                    tracing::warn!(uid, namespace, %error, "cannot update the status of the computer's sessions; their archive is not affected");
                }
                Err(_) => tracing::warn!(
                    uid,
                    namespace,
                    "timed out after {} s while updating the status of the computer's sessions: too many sessions or a slow API server; their archive is not affected",
                    LIMIT.as_secs()
                ),
            }
        });
    }
}

/// A Session without the fields that are not needed: deserialized settings are many times larger than on the wire.
type Listed = Object<ListedSpec, SessionStatus>;

/// The needed part of the spec.
#[derive(Clone, Debug, Deserialize)]
struct ListedSpec {
    #[serde(rename = "computerUID")]
    computer_uid: String,
    path: Option<String>,
}

/// A Session that waits to be looked up, without annotations, labels and managed fields: a tenant decides how large they are.
fn bounded(session: Listed) -> Listed {
    let ObjectMeta { name, namespace, uid, resource_version, .. } = session.metadata;
    Listed { metadata: ObjectMeta { name, namespace, uid, resource_version, ..ObjectMeta::default() }, ..session }
}

/// Most memory for the sessions that may contain a path.
fn memory(path: &str) -> usize {
    ids_of_path(path, true).map(|id| id.len() + BESIDES_ID).sum()
}

/// Writes the status of every Session of a computer that is not marked yet. Returns how many were written.
async fn mark_archived(client: &Client, archives: &Archives, of: (&str, &str), deleted_at: &Time) -> Result<usize, MarkError> {
    let (namespace, uid) = of;
    let api: Api<Listed> = Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<Session>(&()));
    let marked = |s: &Listed| matches!(s.status.as_ref().and_then(|s| s.phase), Some(SessionPhase::Archived | SessionPhase::Ended));
    let waits = |s: &Listed| s.spec.computer_uid == uid && !marked(s);
    let (mut params, mut waiting, mut written) = (ListParams::default().limit(PAGE), Vec::new(), 0);
    loop {
        let page = call(api.list(&params)).await?;
        waiting.extend(page.items.into_iter().filter(waits).map(bounded));
        let next = page.metadata.continue_.filter(|next| !next.is_empty());
        let bytes: usize = waiting.iter().filter_map(|s: &Listed| s.spec.path.as_deref()).map(memory).sum();
        if !waiting.is_empty() && (waiting.len() >= LOOKED_UP || bytes >= LOOKED_UP_BYTES || next.is_none()) {
            let paths = waiting.iter().filter_map(|s| s.spec.path.as_deref());
            let places = archives.with_archive(of, async |store, key, archive| Places::of(store, key, &archive, paths).await).await;
            let places = places.map_err(|e| MarkError::Store(e.to_string()))?;
            for session in waiting.drain(..) {
                written += usize::from(write(&api, &session, ended(&session, &places, deleted_at)).await?);
            }
        }
        let Some(next) = next else { return Ok(written) };
        params = params.continue_token(&next);
    }
}

/// Writes a status with the UID as a precondition. Returns `false` if the Session has been deleted or replaced.
async fn write(api: &Api<Listed>, session: &Listed, status: SessionStatus) -> Result<bool, CallError> {
    let patch = patch::status(&session.metadata, json!(status));
    match call(api.patch_status(&session.name_any(), &PatchParams::default(), &Patch::<()>::Json(patch))).await {
        Ok(_) => Ok(true),
        Err(error) => match classify(&error) {
            ErrorClass::NotFound | ErrorClass::Conflict | ErrorClass::Invalid => Ok(false),
            _ => Err(error),
        },
    }
}

/// Why Sessions were not marked.
#[derive(Debug, thiserror::Error)]
enum MarkError {
    /// A request to the API server failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The manifest could not be read from the store.
    #[error("archive store: {0}")]
    Store(String),
}

/// Digests of archived sessions, by id: those that may contain the paths that were looked up.
struct Places {
    found: HashMap<String, String>,
    uid: String,
    /// Key of the manifest.
    manifest: String,
    /// The archive has version 1.
    old: bool,
}

impl Places {
    /// Reads the index once. An archive may have millions of sessions, so only those that are needed are kept.
    async fn of(store: &Store, manifest: &str, archive: &Archive, paths: impl Iterator<Item = &str>) -> Result<Self, StoreError> {
        let old = matches!(archive, Archive::Old(_));
        let wanted: HashSet<&str> = paths.flat_map(|path| ids_of_path(path, old)).collect();
        let (mut entries, mut found) = (archive.entries(store), HashMap::new());
        while let Some(entry) = entries.next().await? {
            if entry.files > 0 && wanted.contains(entry.id.as_str()) {
                found.insert(entry.id, entry.digest);
            }
        }
        Ok(Self { found, uid: archive.computer().uid.clone(), manifest: manifest.to_owned(), old })
    }

    /// Key and digest of the session that contains a path.
    fn holding(&self, path: &str) -> Option<(String, String)> {
        let digest = ids_of_path(path, self.old).find_map(|id| self.found.get(id))?;
        let key = if self.old { object_key(&self.uid, digest) } else { self.manifest.clone() };
        Some((key, digest.clone()))
    }
}

/// The status of a session whose computer was deleted: `Archived` if the archive contains its path, otherwise `Ended`.
fn ended(session: &Listed, places: &Places, deleted_at: &Time) -> SessionStatus {
    let old = session.status.clone().unwrap_or_default();
    let place = session.spec.path.as_deref().and_then(|path| places.holding(path));
    SessionStatus {
        phase: Some(if place.is_some() { SessionPhase::Archived } else { SessionPhase::Ended }),
        completed_time: Some(deleted_at.clone()),
        archive_key: place.as_ref().map(|(key, _)| key.clone()),
        archive_digest: place.map(|(_, digest)| digest),
        ..old
    }
}

#[cfg(test)]
mod tests;
