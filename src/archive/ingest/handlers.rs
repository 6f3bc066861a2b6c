//! The three requests: check a chunk, store a chunk, store the manifest. Errors are short texts for the archive pod's log. A handler must never
//! write for another UID than the caller's, overwrite an object, or store bytes under a name that is not their digest.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use axum::routing::{any, put};
use bytes::Bytes;
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout_at};

use super::auth::{Access, Authenticator, Caller};
use super::keep_alive::{self, Outcome};
use super::named_objects::{all_there, failed};
use super::shares::Shares;
use crate::archive::copies;
use crate::archive::home_size::{self, SoFar};
use crate::archive::manifest::{CHUNK, MAX_BYTES, is_digest};
use crate::archive::store::{ReceiptPut, Store, StoreError};
use crate::archive::turns::Turn;
use crate::archive::uploads::Uploads;
use crate::archive::{Archive, Manifest, later_manifest_key, manifest_key};
use crate::guards::{self, Guard};

/// Longest time without a byte of a body. Waiting for a slot or for the store is not limited here: a request that holds a slot ends when it
/// makes no progress, so each request that waits gets a slot.
const SILENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });
/// Fewest bytes of a body in that time: slow senders of two tenants could otherwise hold all of the room.
const LEAST: usize = 64 * 1024;
/// How long a request that was authorized may wait without another look at what its pod may do.
const KNOWN: Duration = Duration::from_secs(30);
/// The answer to an archive pod of version 1. It ends with an error, and the operator creates one of its own version.
const OLD: &str = "this operator stores archives in chunks, and this archive pod is from an earlier version: the operator replaces it";

#[derive(Clone)]
struct Shared {
    store: Arc<Store>,
    authenticator: Authenticator,
    uploads: Arc<Uploads>,
    shares: Shares,
}

impl Shared {
    fn new(store: Arc<Store>, authenticator: Authenticator, uploads: Arc<Uploads>) -> Self {
        Self { store, authenticator, uploads, shares: Shares::default() }
    }
}

impl Shared {
    /// The answer for an object that the store did not take.
    fn refused(&self, of: (&str, &str), error: &StoreError) -> Outcome {
        self.noted(of, failed(error))
    }

    /// An answer about the store. What it says of the pod's bytes is not the store's failure.
    fn noted(&self, of: (&str, &str), answer: Outcome) -> Outcome {
        if answer.0 == StatusCode::SERVICE_UNAVAILABLE {
            self.uploads.refused(of, &answer.1);
        }
        answer
    }
}

/// The routes. What becomes of each object is reported to `uploads`.
pub fn router(store: Arc<Store>, authenticator: Authenticator, uploads: Arc<Uploads>) -> Router {
    Router::new()
        .route("/ingest/v2/{uid}/chunks/{digest}", put(put_chunk).get(ask_chunk).head(ask_chunk))
        .route("/ingest/v2/{uid}/manifest", put(put_manifest))
        .route("/ingest/v1/{*rest}", any(|| async { (StatusCode::GONE, OLD) }))
        .with_state(Shared::new(store, authenticator, uploads))
}

/// The caller, if it may write for this UID.
async fn authorize(shared: &Shared, headers: &HeaderMap, uid: &str) -> Result<Caller, Outcome> {
    let token = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    let Some(token) = token else { return Err((StatusCode::UNAUTHORIZED, "no bearer token".to_owned())) };
    match shared.authenticator.access(token).await {
        Ok(Access::Pod(caller)) if caller.uid == uid || !guards::on(Guard::IngestUid) => Ok(caller),
        Ok(Access::Pod(_)) => Err((StatusCode::FORBIDDEN, "this pod belongs to another computer".to_owned())),
        Ok(Access::Refused(why)) => Err((StatusCode::FORBIDDEN, format!("this pod may not write: {why}"))),
        Ok(Access::NotYet) => Err((StatusCode::SERVICE_UNAVAILABLE, "the record of the computer does not name this pod yet".to_owned())),
        Ok(Access::Unknown) => Err((StatusCode::UNAUTHORIZED, "not the token of an archive pod".to_owned())),
        Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, format!("the token cannot be checked: {error}"))),
    }
}

/// A pod that may write, at that time.
struct Known {
    caller: Caller,
    since: Instant,
}

impl Known {
    async fn by(shared: &Shared, headers: &HeaderMap, uid: &str) -> Result<Self, Outcome> {
        Ok(Self { caller: authorize(shared, headers, uid).await?, since: Instant::now() })
    }

    /// What it may write after it has waited for its turn: meanwhile the deletion may have been decided without this archive. A token may have ended as
    /// well. For the archive pod 401 is final, but it reads its token again for each request: so it is asked to come back.
    async fn now(self, shared: &Shared, headers: &HeaderMap, uid: &str) -> Result<Caller, Outcome> {
        if self.since.elapsed() <= KNOWN {
            return Ok(self.caller);
        }
        authorize(shared, headers, uid).await.map_err(|refused| match refused {
            (StatusCode::UNAUTHORIZED, _) => (
                StatusCode::TOO_MANY_REQUESTS,
                "the token expired while the request waited; the archive pod retries with a new token".to_owned(),
            ),
            other => other,
        })
    }
}

fn valid(uid: &str, digest: &str) -> Result<(), Outcome> {
    let uid = uid.len() <= 64 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if uid && is_digest(digest) { Ok(()) } else { Err((StatusCode::BAD_REQUEST, "not a UID and a SHA-256".to_owned())) }
}

/// Whether a chunk of an earlier attempt is in the store. An archive pod waits for the answer for as long as the operator works on it. One of an earlier
/// version asks with HEAD, and waits for a minute.
async fn ask_chunk(
    method: Method,
    State(shared): State<Shared>,
    Path((uid, digest)): Path<(String, String)>,
    mut headers: HeaderMap,
) -> Result<Response, Outcome> {
    valid(&uid, &digest)?;
    let known = Known::by(&shared, &headers, &uid).await?;
    if method == Method::HEAD {
        // The answer has no lines, so its status must be the outcome.
        headers.remove(keep_alive::HEADER);
    }
    let again = headers.clone();
    // Nothing is written: all of it ends when the pod goes away.
    let asked = Box::pin(async move { Ok((is_there(&shared, (&uid, known), &digest, &again).await?, String::new())) });
    Ok(keep_alive::answer(&headers, asked, |answer| async { Ok(answer) }).await)
}

/// It is read back before it is used again: if it is damaged, the pod must send it while it has its bytes.
async fn is_there(shared: &Shared, (uid, known): (&str, Known), digest: &str, headers: &HeaderMap) -> Result<StatusCode, Outcome> {
    let namespace = known.caller.namespace.0.clone();
    let _turn = shared.shares.earlier((&namespace, uid)).await?;
    let caller = known.now(shared, headers, uid).await?;
    let of = (uid, caller.pod.as_str());
    match copies::is_whole(&shared.store, uid, digest).await {
        Ok(true) => {
            shared.uploads.found(of, so_far(headers));
            Ok(StatusCode::OK)
        }
        Ok(false) => Ok(StatusCode::NOT_FOUND),
        Err(error) => Err(shared.refused(of, &error)),
    }
}

async fn put_chunk(
    State(shared): State<Shared>,
    Path((uid, digest)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Outcome> {
    valid(&uid, &digest)?;
    let known = Known::by(&shared, &headers, &uid).await?;
    let (size, so_far) = (length(&body, CHUNK, "chunk")?, so_far(&headers));
    let (queue, of, again) = (shared.clone(), uid.clone(), headers.clone());
    let turn = Box::pin(async move {
        let namespace = known.caller.namespace.0.clone();
        let turn = queue.shares.chunk((&namespace, &of), size as usize).await?;
        Ok((known.now(&queue, &again, &of).await?, turn))
    });
    let store = move |(caller, turn)| async move { store_chunk(shared, (uid, caller), digest, (size, body, turn), so_far).await };
    Ok(keep_alive::answer(&headers, turn, store).await)
}

/// What is archived when this object is stored, as the pod says. Only for what is shown.
fn so_far(headers: &HeaderMap) -> Option<SoFar> {
    headers.get(home_size::HEADER)?.to_str().ok()?.parse().ok()
}

/// No part of a body is read before the sender is authenticated and the body has room.
fn length(body: &Body, most: usize, what: &str) -> Result<u32, Outcome> {
    let length = body.size_hint().exact().ok_or_else(|| (StatusCode::LENGTH_REQUIRED, "no Content-Length".to_owned()))?;
    let too_long = || (StatusCode::PAYLOAD_TOO_LARGE, format!("a {what} has {most} bytes at most"));
    u32::try_from(length).ok().filter(|length| *length as usize <= most).ok_or_else(too_long)
}

async fn store_chunk(
    shared: Shared,
    (uid, caller): (String, Caller),
    digest: String,
    (size, body, _turn): (u32, Body, Turn),
    so_far: Option<SoFar>,
) -> Result<Outcome, Outcome> {
    let bytes = Bytes::from(receive(body, size).await?);
    let found = hex::encode(Sha256::digest(&bytes));
    if found != digest && guards::on(Guard::ObjectDigest) {
        return Err((StatusCode::BAD_REQUEST, format!("the bytes have sha256 {found}, not {digest}")));
    }
    let (of, size) = ((uid.as_str(), caller.pod.as_str()), u64::from(size));
    if !shared.uploads.reserve(of, size, caller.max_bytes) {
        // The answer to an earlier request was lost: the chunk is in the store, and counts once.
        return match copies::is_whole(&shared.store, &uid, &digest).await {
            Ok(true) => Ok((StatusCode::OK, String::new())),
            Ok(false) => Err(too_large(caller.max_bytes)),
            Err(error) => Err(shared.refused(of, &error)),
        };
    }
    let stored = copies::store(&shared.store, &uid, &digest, &bytes).await;
    if !matches!(stored, Ok(true)) {
        shared.uploads.release(of, size);
    }
    match stored {
        Ok(created) => {
            tracing::debug!(uid, size, created, "chunk stored");
            if created {
                shared.uploads.stored(of, size, so_far);
            } else {
                shared.uploads.found(of, so_far);
            }
            Ok((if created { StatusCode::CREATED } else { StatusCode::OK }, String::new()))
        }
        Err(error) => Err(shared.refused(of, &error)),
    }
}

/// The answer for what an honest archive pod does not send.
fn too_large(most: u64) -> Outcome {
    (StatusCode::PAYLOAD_TOO_LARGE, format!("the archive of this home may have {most} bytes at most: see archive.maxBytes of its class"))
}

async fn put_manifest(State(shared): State<Shared>, Path(uid): Path<String>, headers: HeaderMap, body: Body) -> Result<Response, Outcome> {
    valid(&uid, &"0".repeat(64))?;
    let known = Known::by(&shared, &headers, &uid).await?;
    let size = length(&body, MAX_BYTES, "manifest")?;
    // Until it is checked, a pod that goes away gives its place up.
    let (of, to_check, again) = (uid.clone(), shared.clone(), headers.clone());
    let received = Box::pin(async move { received(&to_check, (&of, known), (size, body), &again).await });
    let store = move |received| async move { store_manifest(shared, uid, received).await };
    Ok(keep_alive::answer(&headers, received, store).await)
}

/// A manifest that its pod may store, and the turn to check it.
struct Received {
    caller: Caller,
    body: Vec<u8>,
    manifest: Manifest,
    _turn: Turn,
}

async fn received(
    shared: &Shared,
    (uid, known): (&str, Known),
    (size, body): (u32, Body),
    headers: &HeaderMap,
) -> Result<Received, Outcome> {
    let namespace = known.caller.namespace.0.clone();
    let turn = shared.shares.manifest((&namespace, uid), size as usize).await?;
    let body = receive(body, size).await?;
    let manifest = Manifest::parse(&body).map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))?;
    allowed(uid, &known.caller, &manifest)?;
    let turn = shared.shares.check((&namespace, uid), turn, body.len(), &manifest).await?;
    let caller = known.now(shared, headers, uid).await?;
    Ok(Received { caller, body, manifest, _turn: turn })
}

/// Whether this pod may store this manifest.
fn allowed(uid: &str, caller: &Caller, manifest: &Manifest) -> Result<(), Outcome> {
    if manifest.computer.uid != uid {
        return Err((StatusCode::BAD_REQUEST, "the manifest is that of another computer".to_owned()));
    }
    // Who may read the archive later depends on its namespace. An archive pod of an earlier version does not know the UID.
    let (namespace, namespace_uid) = &caller.namespace;
    let named = &manifest.computer;
    if named.namespace != *namespace || (named.namespace_uid.is_some() && named.namespace_uid != *namespace_uid) {
        return Err((StatusCode::FORBIDDEN, "the manifest names another namespace than the record of the computer".to_owned()));
    }
    // A pod that was created before the claim had a UID does not know it. Otherwise it becomes part of a key, and each deletion has one.
    if !manifest.custody_claim.is_empty() && manifest.custody_claim != caller.custody_claim {
        return Err((StatusCode::FORBIDDEN, format!("the manifest names the claim {:?}, the deletion another", manifest.custody_claim)));
    }
    if manifest.stored_bytes > caller.max_bytes {
        return Err(too_large(caller.max_bytes));
    }
    Ok(())
}

async fn store_manifest(shared: Shared, uid: String, received: Received) -> Result<Outcome, Outcome> {
    let Received { caller, body, manifest, _turn } = received;
    let of = (uid.as_str(), caller.pod.as_str());
    all_there(&shared.store, &uid, &manifest).await.map_err(|answer| shared.noted(of, answer))?;
    let (sessions, problems, claim) = (manifest.sessions, manifest.problems.count, manifest.custody_claim);
    match put_once_per_deletion(&shared.store, &uid, &claim, body.into()).await {
        Ok(ReceiptPut::Created) => {
            tracing::info!(uid, sessions, problems, "manifest stored");
            shared.uploads.found(of, None);
            Ok((StatusCode::CREATED, String::new()))
        }
        Ok(ReceiptPut::SameAlready) => Ok((StatusCode::OK, String::new())),
        Ok(ReceiptPut::Other(_)) => Err((StatusCode::CONFLICT, "this deletion already has an archive, which is never replaced".to_owned())),
        Err(error) => Err(shared.refused(of, &error)),
    }
}

/// Stores a manifest, create-only. If another deletion of this UID has stored a manifest, this one gets a separate key (S7).
async fn put_once_per_deletion(store: &Store, uid: &str, claim: &str, body: Bytes) -> Result<ReceiptPut, StoreError> {
    // A server that refuses a large object while it is being sent closes the connection, so the store is asked first.
    let first = match store.get(&manifest_key(uid)).await {
        Ok(existing) if existing == body => ReceiptPut::SameAlready,
        Ok(existing) => ReceiptPut::Other(existing),
        Err(StoreError::NotFound(_)) => store.put_once(&manifest_key(uid), body.clone()).await?,
        Err(error) => return Err(error),
    };
    let other = |existing: &[u8]| !Archive::parse(existing).is_ok_and(|archive| archive.custody_claim() == claim);
    match first {
        ReceiptPut::Other(existing) if !claim.is_empty() && other(&existing) => {
            drop(existing);
            tracing::info!(uid, "keeping the archive of an earlier deletion of this UID; this one is stored beside it");
            store.put_once(&later_manifest_key(uid, claim), body).await
        }
        first => Ok(first),
    }
}

/// A body of this length. It may take as long as it makes progress: [`LEAST`] bytes in [`SILENCE`].
async fn receive(body: Body, length: u32) -> Result<Vec<u8>, Outcome> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::with_capacity(length as usize);
    let silent = |_| (StatusCode::REQUEST_TIMEOUT, "the request makes no progress: its sender sends hardly anything".to_owned());
    let (mut since, mut had) = (Instant::now(), 0);
    while let Some(chunk) = timeout_at(since + SILENCE, stream.next()).await.map_err(silent)? {
        match chunk {
            Ok(chunk) if bytes.len() + chunk.len() <= length as usize => bytes.extend_from_slice(&chunk),
            _ => break,
        }
        if bytes.len() - had >= LEAST {
            (since, had) = (Instant::now(), bytes.len());
        }
    }
    let complete = bytes.len() == length as usize;
    let broken = || (StatusCode::REQUEST_TIMEOUT, "the request is incomplete: the connection was closed".to_owned());
    if complete { Ok(bytes) } else { Err(broken()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
