//! The reading half of the endpoint, for the HTTP API: the newest manifest of a computer, and objects by their digest. Whom the content is for is the
//! API's decision. Nothing is sent before its digest is verified, and no object outside of archives can be named.
//!
//! There is no limit for the time until an object is read (L8): the line of the store may be slow, and others may have the room. Meanwhile the API gets a
//! sign of life every few seconds (`keep_alive.rs`). A store that sends nothing ends its own read.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;

use super::keep_alive;
use super::readers::Readers;
use super::shares::{self, busy};
use crate::archive::manifest::{MAX_BYTES, is_digest};
use crate::archive::store::{Store, StoreError};
use crate::archive::turns::{BoundedTurns, Turn};
use crate::archive::{Archive, copies, receipt_writer};

/// Header with the namespace of the computer, for its share. Only the API is believed.
pub const NAMESPACE: HeaderName = HeaderName::from_static("computer-operator-namespace");

#[derive(Clone)]
struct Shared {
    store: Arc<Store>,
    readers: Arc<Readers>,
    turns: BoundedTurns,
}

type Refused = (StatusCode, String);

/// The routes.
pub fn router(store: Arc<Store>, readers: Readers) -> Router {
    Router::new()
        .route("/read/v1/{uid}/manifest", get(manifest))
        .route("/read/v1/{uid}/verified", get(verified))
        .route("/read/v1/{uid}/chunks/{digest}", get(chunk))
        .with_state(Shared { store, readers: Arc::new(readers), turns: shares::reads() })
}

/// The manifest that counts. One of version 1 may be very large, and its sessions are objects of any size: only the tools of an admin read it.
async fn manifest(State(shared): State<Shared>, Path(uid): Path<String>, headers: HeaderMap) -> Result<Response, Refused> {
    authorize(&shared, &headers, &uid, None).await?;
    let namespace = namespace(&headers, &uid);
    Ok(keep_alive::object(&headers, async move { read_manifest(&shared, &namespace, &uid).await }).await)
}

async fn read_manifest(shared: &Shared, namespace: &str, uid: &str) -> Result<Bytes, Refused> {
    let room = shared.turns.take(namespace, uid, 1).await.map_err(busy)?;
    let key = shared.store.newest_manifest(uid).await.map_err(failed)?;
    let old = || (StatusCode::GONE, "the archive is of version 1".to_owned());
    if shared.store.size(&key).await.map_err(failed)? > MAX_BYTES as u64 {
        return Err(old());
    }
    let bytes = shared.store.get(&key).await.map_err(failed)?;
    match Archive::parse(&bytes) {
        Ok(Archive::New(manifest)) if manifest.computer.uid == uid => Ok(held(bytes, room)),
        Ok(Archive::Old(_)) => Err(old()),
        Ok(Archive::New(_)) => Err(damaged(uid, "its manifest names another computer")),
        Err(error) => Err(damaged(uid, &error.to_string())),
    }
}

/// The digest of the manifest that the deletion has verified. The rest of a receipt is not for readers of archives.
async fn verified(State(shared): State<Shared>, Path(uid): Path<String>, headers: HeaderMap) -> Result<Response, Refused> {
    authorize(&shared, &headers, &uid, None).await?;
    let namespace = namespace(&headers, &uid);
    let read = async move {
        let room = shared.turns.take(&namespace, &uid, 1).await.map_err(busy)?;
        let digest = receipt_writer::verified(&shared.store, &uid).await.map_err(failed)?;
        digest
            .map(|digest| held(digest.into_bytes(), room))
            .ok_or_else(|| (StatusCode::NOT_FOUND, "the receipt names no archive".to_owned()))
    };
    Ok(keep_alive::object(&headers, read).await)
}

async fn chunk(State(shared): State<Shared>, Path((uid, digest)): Path<(String, String)>, headers: HeaderMap) -> Result<Response, Refused> {
    authorize(&shared, &headers, &uid, Some(&digest)).await?;
    let namespace = namespace(&headers, &uid);
    let read = async move {
        let room = shared.turns.take(&namespace, &uid, 1).await.map_err(busy)?;
        match copies::with_digest(&shared.store, &uid, &digest).await {
            Ok(bytes) => Ok(held(bytes, room)),
            Err(StoreError::Corrupt(why)) => Err(damaged(&uid, &why)),
            Err(error) => Err(failed(error)),
        }
    };
    Ok(keep_alive::object(&headers, read).await)
}

/// Everything in the path becomes part of a key in the store, so it must be exactly a UID and a digest.
async fn authorize(shared: &Shared, headers: &HeaderMap, uid: &str, digest: Option<&str>) -> Result<(), Refused> {
    let token = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    let Some(token) = token else { return Err((StatusCode::UNAUTHORIZED, "no bearer token".to_owned())) };
    match shared.readers.accept(token).await {
        Ok(true) => {}
        Ok(false) => return Err((StatusCode::UNAUTHORIZED, "not the token of the HTTP API".to_owned())),
        Err(error) => return Err((StatusCode::SERVICE_UNAVAILABLE, format!("the token cannot be checked: {error}"))),
    }
    let uid = (1..=64).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let named = uid && digest.is_none_or(is_digest);
    named.then_some(()).ok_or_else(|| (StatusCode::BAD_REQUEST, "not a UID and a SHA-256".to_owned()))
}

/// Whose share a request uses. An API of an earlier version does not say it: then the computer's own.
fn namespace(headers: &HeaderMap, uid: &str) -> String {
    headers.get(NAMESPACE).and_then(|name| name.to_str().ok()).unwrap_or(uid).to_owned()
}

/// Bytes that keep their room until the last one has been sent.
fn held(bytes: Vec<u8>, room: Turn) -> Bytes {
    Bytes::from_owner(Held { bytes, _room: room })
}

struct Held {
    bytes: Vec<u8>,
    _room: Turn,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn failed(error: StoreError) -> Refused {
    match error {
        StoreError::NotFound(_) => (StatusCode::NOT_FOUND, "there is no such object".to_owned()),
        error => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

/// Bytes that are wrong in the store do not become right: a reader must not ask again.
fn damaged(uid: &str, why: &str) -> Refused {
    tracing::error!(uid, why, "an archive cannot be read for the HTTP API: it is damaged in the store");
    (StatusCode::UNPROCESSABLE_ENTITY, "it is damaged in the store".to_owned())
}
