//! The three requests: check an object, store an object, store the manifest. Errors are short texts for the archive pod's log. A handler
//! must never write for another UID than the caller's, or overwrite an object.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use axum::routing::put;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use super::auth::Authenticator;
use super::progress::{self, Outcome};
use crate::archive::manifest::{MAX_BYTES, is_digest};
use crate::archive::store::{ReceiptPut, Store, StoreError};
use crate::archive::waiting_time::Waits;
use crate::archive::{Manifest, SessionEntry, later_manifest_key, manifest_key, object_key};
use crate::guards::{self, Guard};

const MIB: u64 = 1024 * 1024;
/// Least memory for objects that are received in parallel, MiB: six, each of up to three parts of 8 MiB when the store is slow.
const UPLOADS: u32 = 144;
/// Memory that the operator needs besides the uploads, MiB: see docs/memory.md.
const BESIDE: u64 = 368;
/// Total bytes of manifests that are received in parallel: as much as the largest one.
const MANIFESTS: usize = MAX_BYTES;
/// Longest time without a byte of a manifest. Waiting for a slot or for the store is not limited here: a request that holds a slot ends
/// when it makes no progress, so each request gets a slot.
const SILENCE: Duration = Duration::from_secs(60);
/// Objects of one manifest that are checked in parallel.
const LOOKS: usize = 64;

#[derive(Clone)]
struct Shared {
    store: Arc<Store>,
    authenticator: Authenticator,
    waits: Arc<Waits>,
    /// MiB of memory for uploads, all of them, and those that are free.
    room: u32,
    uploads: Arc<Semaphore>,
    manifests: Arc<Semaphore>,
}

impl Shared {
    fn new(store: Arc<Store>, authenticator: Authenticator, waits: Arc<Waits>, room: u32) -> Self {
        let slots = |n| Arc::new(Semaphore::new(n));
        Self { store, authenticator, waits, room, uploads: slots(room as usize), manifests: slots(MANIFESTS) }
    }
}

type Answer = Result<StatusCode, (StatusCode, String)>;

/// MiB for uploads in a process of this limit of memory, bytes. A process with a higher limit stores larger objects.
fn uploads_of(limit: u64) -> u32 {
    u32::try_from((limit / MIB).saturating_sub(BESIDE)).unwrap_or(u32::MAX).clamp(UPLOADS, 4096)
}

/// The routes, in a process that may take this many bytes of memory. Each stored object is reported to `waits`.
pub fn router(store: Arc<Store>, authenticator: Authenticator, waits: Arc<Waits>, memory: u64) -> Router {
    let shared = Shared::new(store, authenticator, waits, uploads_of(memory));
    Router::new()
        .route("/ingest/v1/{uid}/objects/{digest}", put(put_object).head(head_object))
        .route("/ingest/v1/{uid}/manifest", put(put_manifest))
        .with_state(shared)
}

/// Whether the caller may write for this UID.
async fn authorize(shared: &Shared, headers: &HeaderMap, uid: &str) -> Result<(), (StatusCode, String)> {
    let token = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    let Some(token) = token else { return Err((StatusCode::UNAUTHORIZED, "no bearer token".to_owned())) };
    match shared.authenticator.computer_of(token).await {
        Ok(Some(own)) if own == uid || !guards::on(Guard::IngestUid) => Ok(()),
        Ok(Some(_)) => Err((StatusCode::FORBIDDEN, "this pod belongs to another computer".to_owned())),
        Ok(None) => Err((StatusCode::UNAUTHORIZED, "not the token of an archive pod".to_owned())),
        Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, format!("the token cannot be checked: {error}"))),
    }
}

fn valid(uid: &str, digest: &str) -> Result<(), (StatusCode, String)> {
    let uid = uid.len() <= 64 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if uid && is_digest(digest) { Ok(()) } else { Err((StatusCode::BAD_REQUEST, "not a UID and a SHA-256".to_owned())) }
}

async fn head_object(State(shared): State<Shared>, Path((uid, digest)): Path<(String, String)>, headers: HeaderMap) -> Answer {
    valid(&uid, &digest)?;
    authorize(&shared, &headers, &uid).await?;
    match shared.store.size(&object_key(&uid, &digest)).await {
        Ok(_) => Ok(StatusCode::OK),
        Err(StoreError::NotFound(_)) => Ok(StatusCode::NOT_FOUND),
        Err(error) => Err(failed(&error)),
    }
}

async fn put_object(
    State(shared): State<Shared>,
    Path((uid, digest)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, (StatusCode, String)> {
    valid(&uid, &digest)?;
    authorize(&shared, &headers, &uid).await?;
    let size = length(&body)?;
    let room = room_of_object(&shared, size)?;
    Ok(progress::answer(&headers, store_object(shared, uid, digest, (size, room), body)).await)
}

fn length(body: &Body) -> Result<u64, Outcome> {
    body.size_hint().exact().ok_or_else(|| (StatusCode::LENGTH_REQUIRED, "no Content-Length".to_owned()))
}

/// MiB that an object takes while it is stored.
fn room_of_object(shared: &Shared, size: u64) -> Result<u32, Outcome> {
    let needed = shared.store.upload_memory(size).div_ceil(MIB);
    u32::try_from(needed).ok().filter(|needed| *needed <= shared.room).ok_or_else(|| {
        let (limit, of) = (needed + BESIDE, size >> 30);
        let text = format!(
            "this object has {of} GiB, so the operator stores it in parts of {needed} MiB, and has memory for {} MiB. Raise the memory limit \
             of the operator (chart value controller.resources.limits.memory) to {limit}Mi or more",
            shared.room
        );
        (StatusCode::PAYLOAD_TOO_LARGE, text)
    })
}

async fn store_object(shared: Shared, uid: String, digest: String, (size, room): (u64, u32), body: Body) -> Outcome {
    let key = object_key(&uid, &digest);
    match shared.store.size(&key).await {
        // Content-addressed: an existing object was verified when it was stored (S7).
        Ok(_) => return (StatusCode::OK, String::new()),
        Err(StoreError::NotFound(_)) => {}
        Err(error) => return failed(&error),
    }
    // Never closed.
    let _turn = shared.uploads.acquire_many(room).await;
    let stream = Box::pin(body.into_data_stream().map_err(std::io::Error::other));
    match shared.store.put_addressed(&key, &digest, size, stream).await {
        Ok(()) => {
            tracing::debug!(uid, size, "object stored");
            shared.waits.stored(&uid);
            (StatusCode::CREATED, String::new())
        }
        Err(error) => failed(&error),
    }
}

async fn put_manifest(
    State(shared): State<Shared>,
    Path(uid): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, (StatusCode, String)> {
    valid(&uid, &"0".repeat(64))?;
    authorize(&shared, &headers, &uid).await?;
    let room = room(&body)?;
    Ok(progress::answer(&headers, async move { store_manifest(shared, uid, room, body).await.unwrap_or_else(|refused| refused) }).await)
}

async fn store_manifest(shared: Shared, uid: String, room: u32, body: Body) -> Result<Outcome, Outcome> {
    // Never closed.
    let _room = shared.manifests.acquire_many(room).await;
    let body = receive(body, room).await?;
    let manifest = Manifest::parse(&body).map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))?;
    if manifest.computer.uid != uid {
        return Err((StatusCode::BAD_REQUEST, "the manifest is that of another computer".to_owned()));
    }
    if !manifest.custody_claim.is_empty() {
        // It becomes part of a key.
        valid(&manifest.custody_claim, &"0".repeat(64))?;
    }
    all_there(&shared.store, &uid, &manifest).await?;
    let (sessions, problems, claim) = (manifest.sessions.len(), manifest.problem_count, manifest.custody_claim.clone());
    // The bytes are enough, while the store takes its time.
    drop(manifest);
    match put_once_per_deletion(&shared.store, &uid, &claim, body.into()).await {
        Ok(ReceiptPut::Created) => {
            tracing::info!(uid, sessions, problems, "manifest stored");
            Ok((StatusCode::CREATED, String::new()))
        }
        Ok(ReceiptPut::SameAlready) => Ok((StatusCode::OK, String::new())),
        Ok(ReceiptPut::Other(_)) => Err((StatusCode::CONFLICT, "this deletion already has an archive, which is never replaced".to_owned())),
        Err(error) => Err(failed(&error)),
    }
}

/// Stores a manifest, create-only. If another deletion of this UID has stored a manifest, this one gets a separate key (S7).
async fn put_once_per_deletion(store: &Store, uid: &str, claim: &str, body: Bytes) -> Result<ReceiptPut, StoreError> {
    let first = store.put_once(&manifest_key(uid), body.clone()).await?;
    let other = |existing: &[u8]| !Manifest::parse(existing).is_ok_and(|m| m.custody_claim == claim);
    match first {
        ReceiptPut::Other(existing) if !claim.is_empty() && other(&existing) => {
            drop(existing);
            tracing::info!(uid, "keeping the archive of an earlier deletion of this UID; this one is stored beside it");
            store.put_once(&later_manifest_key(uid, claim), body).await
        }
        first => Ok(first),
    }
}

/// No part of a body is read before the sender is authenticated and the body has room.
fn room(body: &Body) -> Result<u32, (StatusCode, String)> {
    let length = length(body)?;
    let too_long = || (StatusCode::PAYLOAD_TOO_LARGE, format!("a manifest has {MAX_BYTES} bytes at most"));
    u32::try_from(length).ok().filter(|l| *l as usize <= MANIFESTS).ok_or_else(too_long)
}

/// A body of this length. It may take as long as it makes progress.
async fn receive(body: Body, length: u32) -> Result<Vec<u8>, Outcome> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::with_capacity(length as usize);
    let silent = |_| (StatusCode::REQUEST_TIMEOUT, "the manifest makes no progress: its sender sends nothing".to_owned());
    while let Some(chunk) = tokio::time::timeout(SILENCE, stream.next()).await.map_err(silent)? {
        match chunk {
            Ok(chunk) if bytes.len() + chunk.len() <= length as usize => bytes.extend_from_slice(&chunk),
            _ => return Err((StatusCode::BAD_REQUEST, "the manifest is incomplete: the connection was closed".to_owned())),
        }
    }
    Ok(bytes)
}

/// A stored manifest is permanent, so it must not name objects that do not exist. Many are checked in parallel, because the pod waits.
async fn all_there(store: &Store, uid: &str, manifest: &Manifest) -> Result<(), (StatusCode, String)> {
    let there = |session: SessionEntry| async move {
        match store.size(&object_key(uid, &session.digest)).await {
            Ok(size) if size == session.size => Ok(()),
            Ok(_) | Err(StoreError::NotFound(_)) => {
                Err((StatusCode::BAD_REQUEST, format!("object {} is not in the store with the stated size", session.digest)))
            }
            Err(error) => Err(failed(&error)),
        }
    };
    futures::stream::iter(manifest.sessions.iter().cloned().map(there)).buffer_unordered(LOOKS).try_collect().await
}

fn failed(error: &StoreError) -> (StatusCode, String) {
    let status = match error {
        StoreError::Corrupt(_) => StatusCode::BAD_REQUEST,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
