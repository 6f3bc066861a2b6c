//! The three requests: is an object there, store an object, store the manifest. Errors are short texts for the archive pod's log.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::put;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::auth::Authenticator;
use crate::archive::manifest::{MAX_BYTES, is_digest};
use crate::archive::store::{ReceiptPut, Store, StoreError};
use crate::archive::waits::Waits;
use crate::archive::{Manifest, SessionEntry, later_manifest_key, manifest_key, object_key};
use crate::guards::{self, Guard};

/// Objects that are received at once: each holds up to three parts of 8 MiB when the store is slow.
const UPLOADS: usize = 6;
/// Manifests that are received at once, together: as much as the largest one.
const MANIFESTS: usize = MAX_BYTES;
/// Longest time that an upload waits for its turn; below the time that an archive pod waits for an answer.
const TURN: Duration = Duration::from_secs(60);
/// Objects of one manifest that are looked for at once.
const LOOKS: usize = 64;

#[derive(Clone)]
struct Shared {
    store: Arc<Store>,
    authenticator: Authenticator,
    waits: Arc<Waits>,
    uploads: Arc<Semaphore>,
    manifests: Arc<Semaphore>,
}

impl Shared {
    fn new(store: Arc<Store>, authenticator: Authenticator, waits: Arc<Waits>) -> Self {
        let slots = |n| Arc::new(Semaphore::new(n));
        Self { store, authenticator, waits, uploads: slots(UPLOADS), manifests: slots(MANIFESTS) }
    }
}

type Answer = Result<StatusCode, (StatusCode, String)>;

/// The routes. What is stored is told to `waits`.
pub fn router(store: Arc<Store>, authenticator: Authenticator, waits: Arc<Waits>) -> Router {
    let shared = Shared::new(store, authenticator, waits);
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
    let Ok(_turn) = tokio::time::timeout(TURN, shared.uploads.acquire()).await else {
        return Err((StatusCode::TOO_MANY_REQUESTS, "too many uploads at once: try again".to_owned()));
    };
    let stream = Box::pin(body.into_data_stream().map_err(std::io::Error::other));
    match shared.store.put_addressed(&key, &digest, stream).await {
        Ok(size) => {
            tracing::debug!(uid, size, "object stored");
            shared.waits.stored(&uid);
            Ok(StatusCode::CREATED)
        }
        Err(error) => Err(failed(&error)),
    }
}

async fn put_manifest(State(shared): State<Shared>, Path(uid): Path<String>, headers: HeaderMap, body: Body) -> Answer {
    valid(&uid, &"0".repeat(64))?;
    authorize(&shared, &headers, &uid).await?;
    let (body, _room) = receive(&shared, body).await?;
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
    match store_manifest(&shared.store, &uid, &claim, body.into()).await {
        Ok(ReceiptPut::Created) => {
            tracing::info!(uid, sessions, problems, "manifest stored");
            Ok(StatusCode::CREATED)
        }
        Ok(ReceiptPut::SameAlready) => Ok(StatusCode::OK),
        Ok(ReceiptPut::Other(_)) => Err((StatusCode::CONFLICT, "this deletion has an archive already; it stays as it is".to_owned())),
        Err(error) => Err(failed(&error)),
    }
}

/// Stores a manifest, create-only. Where another deletion of this UID has left its manifest, this one gets a key of its own (S7).
async fn store_manifest(store: &Store, uid: &str, claim: &str, body: Bytes) -> Result<ReceiptPut, StoreError> {
    let first = store.put_once(&manifest_key(uid), body.clone()).await?;
    let other = |existing: &[u8]| !Manifest::parse(existing).is_ok_and(|m| m.custody_claim == claim);
    match first {
        ReceiptPut::Other(existing) if !claim.is_empty() && other(&existing) => {
            drop(existing);
            tracing::info!(uid, "the archive of an earlier deletion of this UID stays; this one is stored beside it");
            store.put_once(&later_manifest_key(uid, claim), body).await
        }
        first => Ok(first),
    }
}

/// Nothing of a body is taken before it is known who sends it and that there is room for it.
async fn receive(shared: &Shared, body: Body) -> Result<(Vec<u8>, SemaphorePermit<'_>), (StatusCode, String)> {
    let Some(length) = body.size_hint().exact() else { return Err((StatusCode::LENGTH_REQUIRED, "no Content-Length".to_owned())) };
    let too_long = || (StatusCode::PAYLOAD_TOO_LARGE, format!("a manifest has {MAX_BYTES} bytes at most"));
    let room = u32::try_from(length).ok().filter(|l| *l as usize <= MANIFESTS).ok_or_else(too_long)?;
    let received = async {
        let room = shared.manifests.acquire_many(room).await.ok()?;
        let body = axum::body::to_bytes(body, MAX_BYTES).await.ok()?;
        Some((Vec::from(body), room))
    };
    match tokio::time::timeout(TURN, received).await {
        Ok(Some(received)) => Ok(received),
        Ok(None) => Err((StatusCode::BAD_REQUEST, "the manifest broke off".to_owned())),
        Err(_) => Err((StatusCode::TOO_MANY_REQUESTS, "too many manifests at once, or too slow: try again".to_owned())),
    }
}

/// A manifest is there for good once it is there: it must not name what is not. Many at a time, because a pod waits for the answer.
async fn all_there(store: &Store, uid: &str, manifest: &Manifest) -> Result<(), (StatusCode, String)> {
    let there = |session: SessionEntry| async move {
        match store.size(&object_key(uid, &session.digest)).await {
            Ok(size) if size == session.size => Ok(()),
            Ok(_) | Err(StoreError::NotFound(_)) => {
                Err((StatusCode::BAD_REQUEST, format!("object {} is not in the store as stated", session.digest)))
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
mod tests {
    use std::time::Duration;

    use object_store::memory::InMemory;
    use object_store::throttle::{ThrottleConfig, ThrottledStore};
    use object_store::{ObjectStoreExt, PutPayload};

    use super::*;
    use crate::archive::manifest::tests::empty;

    const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

    /// L1: the archive pod gives a request 120 s, and every attempt would come to the same end.
    #[tokio::test(start_paused = true)]
    async fn a_manifest_of_many_sessions_is_stored_in_time_on_a_store_that_is_far_away() {
        let memory = InMemory::new();
        let mut manifest = empty(UID);
        for n in 0..20_000 {
            let digest = format!("{n:064x}");
            memory.put(&object_key(UID, &digest).as_str().into(), PutPayload::from_static(b"x")).await.unwrap();
            manifest.sessions.push(SessionEntry { id: n.to_string(), files: 1, bytes: 1, digest, size: 1, last_modified: 0 });
        }
        let config = ThrottleConfig { wait_get_per_call: Duration::from_millis(30), ..ThrottleConfig::default() };
        let store = Store::new(Arc::new(ThrottledStore::new(memory, config)));
        let began = tokio::time::Instant::now();
        all_there(&store, UID, &manifest).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
        manifest.sessions[7].size = 2;
        assert!(all_there(&store, UID, &manifest).await.is_err());
    }

    /// Whoever reaches the port can send: a stranger's body is not even read, and one without an end is not taken from anybody.
    #[tokio::test]
    async fn a_manifest_is_taken_from_whom_is_known_and_where_there_is_room() {
        let store = Arc::new(Store::new(Arc::new(InMemory::new())));
        let shared = Shared::new(store, Authenticator::Fixed { token: "good", uid: UID }, Arc::default());
        let send = |token: &'static str, body: Body| {
            let headers: HeaderMap = [(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())].into_iter().collect();
            let sent = put_manifest(State(shared.clone()), Path(UID.to_owned()), headers, body);
            async move { tokio::time::timeout(Duration::from_secs(10), sent).await.expect("no answer").unwrap_or_else(|(status, _)| status) }
        };
        let endless = || Body::from_stream(futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 4096]))));
        assert_eq!(send("bad", endless()).await, StatusCode::UNAUTHORIZED);
        assert_eq!(send("good", endless()).await, StatusCode::LENGTH_REQUIRED);
        assert_eq!(send("good", Body::from(vec![b' '; MAX_BYTES + 1])).await, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(send("good", Body::from("{}")).await, StatusCode::BAD_REQUEST);
        assert_eq!(send("good", Body::from(serde_json::to_vec(&empty(UID)).unwrap())).await, StatusCode::CREATED);
        assert_eq!(shared.manifests.available_permits(), MANIFESTS, "room comes back");
    }

    /// S7, S1: the archive of an earlier deletion of the same UID stays, and this deletion gets its own.
    #[tokio::test]
    async fn a_second_deletion_of_a_uid_stores_its_manifest_beside_the_first() {
        let store = Store::new(Arc::new(InMemory::new()));
        let manifest = |claim: &str, left_out_by: &str| {
            let mut manifest = empty(UID);
            (manifest.custody_claim, manifest.left_out_by) = (claim.to_owned(), left_out_by.to_owned());
            Bytes::from(serde_json::to_vec(&manifest).unwrap())
        };
        let put = |claim: &'static str, body: Bytes| store_manifest(&store, UID, claim, body);
        assert_eq!(put("one", manifest("one", "")).await.unwrap(), ReceiptPut::Created);
        assert_eq!(put("one", manifest("one", "")).await.unwrap(), ReceiptPut::SameAlready);
        assert!(matches!(put("one", manifest("one", "changed")).await.unwrap(), ReceiptPut::Other(_)));
        assert_eq!(put("two", manifest("two", "")).await.unwrap(), ReceiptPut::Created);
        assert!(matches!(put("two", manifest("two", "changed")).await.unwrap(), ReceiptPut::Other(_)));
        assert!(matches!(put("", manifest("", "")).await.unwrap(), ReceiptPut::Other(_)), "an earlier version has no key of its own");
        assert_eq!(store.get(&manifest_key(UID)).await.unwrap(), manifest("one", ""));
        assert_eq!(store.get(&later_manifest_key(UID, "two")).await.unwrap(), manifest("two", ""));
        assert_eq!(store.newest_manifest(UID).await.unwrap(), later_manifest_key(UID, "two"));
    }

    /// L3: what is received is held in parts of 8 MiB, and the operator has 256 MiB.
    #[tokio::test]
    async fn only_so_many_objects_are_received_at_once() {
        let store = Arc::new(Store::new(Arc::new(InMemory::new())));
        let shared = Shared::new(store, Authenticator::Fixed { token: "good", uid: UID }, Arc::default());
        let headers: HeaderMap = [(header::AUTHORIZATION, "Bearer good".parse().unwrap())].into_iter().collect();
        let read = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut uploads = tokio::task::JoinSet::new();
        for n in 0..40 {
            let read = Arc::clone(&read);
            let body = Body::from_stream(futures::stream::poll_fn(move |_| {
                read.fetch_or(1 << n, std::sync::atomic::Ordering::SeqCst);
                std::task::Poll::<Option<std::io::Result<Bytes>>>::Pending
            }));
            uploads.spawn(put_object(State(shared.clone()), Path((UID.to_owned(), format!("{n:064x}"))), headers.clone(), body));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let at_once = read.load(std::sync::atomic::Ordering::SeqCst).count_ones();
        assert!((1..=8).contains(&at_once), "{at_once}");
    }
}
