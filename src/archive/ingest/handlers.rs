//! The three requests: is an object there, store an object, store the manifest. Errors are short texts for the archive pod's log.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::put;
use bytes::Bytes;
use futures::TryStreamExt;

use super::auth::Authenticator;
use crate::archive::manifest::{MAX_BYTES, is_digest};
use crate::archive::store::{ReceiptPut, Store, StoreError};
use crate::archive::{Manifest, manifest_key, object_key};
use crate::guards::{self, Guard};

#[derive(Clone)]
struct Shared {
    store: Arc<Store>,
    authenticator: Authenticator,
}

type Answer = Result<StatusCode, (StatusCode, String)>;

/// The routes.
pub fn router(store: Arc<Store>, authenticator: Authenticator) -> Router {
    let shared = Shared { store, authenticator };
    Router::new()
        .route("/ingest/v1/{uid}/objects/{digest}", put(put_object).head(head_object))
        .route("/ingest/v1/{uid}/manifest", put(put_manifest).layer(DefaultBodyLimit::max(MAX_BYTES)))
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

async fn put_object(State(shared): State<Shared>, Path((uid, digest)): Path<(String, String)>, headers: HeaderMap, body: Body) -> Answer {
    valid(&uid, &digest)?;
    authorize(&shared, &headers, &uid).await?;
    let key = object_key(&uid, &digest);
    match shared.store.size(&key).await {
        // Content-addressed: what is there was verified when it came (S7).
        Ok(_) => return Ok(StatusCode::OK),
        Err(StoreError::NotFound(_)) => {}
        Err(error) => return Err(failed(&error)),
    }
    let stream = Box::pin(body.into_data_stream().map_err(std::io::Error::other));
    match shared.store.put_addressed(&key, &digest, stream).await {
        Ok(size) => {
            tracing::debug!(uid, size, "object stored");
            Ok(StatusCode::CREATED)
        }
        Err(error) => Err(failed(&error)),
    }
}

async fn put_manifest(State(shared): State<Shared>, Path(uid): Path<String>, headers: HeaderMap, body: Bytes) -> Answer {
    valid(&uid, &"0".repeat(64))?;
    authorize(&shared, &headers, &uid).await?;
    let manifest = Manifest::parse(&body).map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))?;
    if manifest.computer.uid != uid {
        return Err((StatusCode::BAD_REQUEST, "the manifest is that of another computer".to_owned()));
    }
    for session in &manifest.sessions {
        match shared.store.size(&object_key(&uid, &session.digest)).await {
            Ok(size) if size == session.size => {}
            Ok(_) | Err(StoreError::NotFound(_)) => {
                return Err((StatusCode::BAD_REQUEST, format!("object {} is not in the store as stated", session.digest)));
            }
            Err(error) => return Err(failed(&error)),
        }
    }
    match shared.store.put_once(&manifest_key(&uid), body.to_vec()).await {
        Ok(ReceiptPut::Created) => {
            tracing::info!(uid, sessions = manifest.sessions.len(), problems = manifest.problem_count, "manifest stored");
            Ok(StatusCode::CREATED)
        }
        Ok(ReceiptPut::SameAlready) => Ok(StatusCode::OK),
        Ok(ReceiptPut::Other(_)) => {
            Err((StatusCode::CONFLICT, "there is an archive of this computer already; it stays as it is".to_owned()))
        }
        Err(error) => Err(failed(&error)),
    }
}

fn failed(error: &StoreError) -> (StatusCode, String) {
    let status = match error {
        StoreError::Corrupt(_) => StatusCode::BAD_REQUEST,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, error.to_string())
}
