//! Tests of the handlers: bounds on parallel uploads, authentication before reading, and two deletions of one UID.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStoreExt, PutPayload};

use super::*;
use crate::archive::chunk_key;
use crate::archive::manifest::Chunk;
use crate::archive::manifest::tests::empty;

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

/// Each chunk of a manifest is looked up before it is stored, and the archive pod waits meanwhile.
#[tokio::test(start_paused = true)]
async fn a_manifest_of_many_chunks_is_stored_in_time_in_a_store_with_high_latency() {
    let memory = InMemory::new();
    let (mut manifest, mut lines) = (empty(UID), Vec::new());
    for n in 0..20_000 {
        let chunk = Chunk { digest: format!("{n:064x}"), size: 1 };
        memory.put(&chunk_key(UID, &chunk.digest).as_str().into(), PutPayload::from_static(b"x")).await.unwrap();
        lines.extend(serde_json::to_vec(&chunk).unwrap());
        lines.push(b'\n');
    }
    let piece = |lines: &[u8]| {
        let bytes = zstd::bulk::compress(lines, 3).unwrap();
        (Chunk { digest: hex::encode(Sha256::digest(&bytes)), size: bytes.len() as u64 }, bytes)
    };
    for lines in lines.chunks(lines.len() / 4) {
        let (chunk, bytes) = piece(lines);
        memory.put(&chunk_key(UID, &chunk.digest).as_str().into(), bytes.into()).await.unwrap();
        manifest.chunks.pieces.push(chunk);
    }
    manifest.chunks.count = 20_000;
    let config = ThrottleConfig { wait_get_per_call: Duration::from_millis(30), ..ThrottleConfig::default() };
    let store = Store::new(Arc::new(ThrottledStore::new(memory, config)));
    let began = tokio::time::Instant::now();
    all_there(&store, UID, &manifest).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let (chunk, bytes) = piece(&[&serde_json::to_vec(&Chunk { digest: "0".repeat(64), size: 2 }).unwrap()[..], b"\n"].concat());
    store.put_once(&chunk_key(UID, &chunk.digest), bytes).await.unwrap();
    (manifest.chunks.count, manifest.chunks.pieces) = (1, vec![chunk]);
    assert!(all_there(&store, UID, &manifest).await.unwrap_err().1.contains("with the stated size"));
}

/// The archive pod is not trusted to keep to the bound of its class.
#[tokio::test]
async fn an_archive_has_no_more_bytes_than_its_class_allows() {
    let store = Arc::new(Store::new(Arc::new(InMemory::new())));
    let fixed = Authenticator::Fixed { token: "good", uid: UID, custody_claim: "claim", max_bytes: 150 };
    let shared = Shared::new(store, fixed, Arc::default());
    let headers: HeaderMap = [(header::AUTHORIZATION, "Bearer good".parse().unwrap())].into_iter().collect();
    let put = async |data: &'static [u8]| {
        let at = Path((UID.to_owned(), hex::encode(Sha256::digest(data))));
        let answer = put_chunk(State(shared.clone()), at, headers.clone(), Body::from(data)).await;
        answer.map_or_else(|(status, _)| status, |answer| answer.status())
    };
    assert_eq!(put(&[1; 100]).await, StatusCode::CREATED);
    assert_eq!(put(&[1; 100]).await, StatusCode::OK, "what is sent again counts once");
    assert_eq!(put(&[2; 100]).await, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(put(&[3; 50]).await, StatusCode::CREATED);
    assert_eq!(put(&[4; 1]).await, StatusCode::PAYLOAD_TOO_LARGE);
    for (bytes, expected) in [(151, StatusCode::PAYLOAD_TOO_LARGE), (150, StatusCode::CREATED)] {
        let manifest = Manifest { stored_bytes: bytes, ..empty(UID) };
        let body = Body::from(serde_json::to_vec(&manifest).unwrap());
        let answer = put_manifest(State(shared.clone()), Path(UID.to_owned()), headers.clone(), body).await;
        assert_eq!(answer.map_or_else(|(status, _)| status, |answer| answer.status()), expected, "{bytes}");
    }
}

/// Every client that can connect can send: the body of an unknown client is not read, and an endless body is never accepted.
#[tokio::test]
async fn a_manifest_is_accepted_from_an_authenticated_client_when_there_is_room() {
    let store = Arc::new(Store::new(Arc::new(InMemory::new())));
    let shared =
        Shared::new(store, Authenticator::Fixed { token: "good", uid: UID, custody_claim: "claim", max_bytes: u64::MAX }, Arc::default());
    let send = |token: &'static str, body: Body| {
        let headers: HeaderMap = [(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())].into_iter().collect();
        let sent = put_manifest(State(shared.clone()), Path(UID.to_owned()), headers, body);
        async move {
            let answer = tokio::time::timeout(Duration::from_secs(10), sent).await.expect("no answer");
            answer.map_or_else(|(status, _)| status, |answer| answer.status())
        }
    };
    let endless = || Body::from_stream(futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 4096]))));
    assert_eq!(send("bad", endless()).await, StatusCode::UNAUTHORIZED);
    assert_eq!(send("good", endless()).await, StatusCode::LENGTH_REQUIRED);
    assert_eq!(send("good", Body::from(vec![b' '; MAX_BYTES + 1])).await, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(send("good", Body::from("{}")).await, StatusCode::BAD_REQUEST);
    assert_eq!(send("good", Body::from(serde_json::to_vec(&empty(UID)).unwrap())).await, StatusCode::CREATED);
    assert_eq!(shared.shares.free_for_manifests(), (2, 6), "the room is released");
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
    let put = |claim: &'static str, body: Bytes| put_once_per_deletion(&store, UID, claim, body);
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

/// A body that is never sent, of a stated size.
struct Stated(u64, Arc<AtomicUsize>, u32);

impl axum::body::HttpBody for Stated {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<std::io::Result<hyper::body::Frame<Bytes>>>> {
        self.1.fetch_or(1 << self.2, Ordering::SeqCst);
        Poll::Pending
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.0)
    }
}

/// L3: a chunk is in memory until it is stored, and the operator's memory is limited.
#[tokio::test(start_paused = true)]
async fn a_limited_number_of_chunks_is_received_in_parallel() {
    for (size, expected) in [(CHUNK, 3), (CHUNK / 2, 6), (1, 8)] {
        let store = Arc::new(Store::new(Arc::new(InMemory::new())));
        let shared = Shared::new(
            store,
            Authenticator::Fixed { token: "good", uid: UID, custody_claim: "claim", max_bytes: u64::MAX },
            Arc::default(),
        );
        let headers: HeaderMap = [(header::AUTHORIZATION, "Bearer good".parse().unwrap())].into_iter().collect();
        let read = Arc::new(AtomicUsize::new(0));
        let mut uploads = tokio::task::JoinSet::new();
        for n in 0..40 {
            let body = Body::new(Stated(size as u64, Arc::clone(&read), n));
            uploads.spawn(put_chunk(State(shared.clone()), Path((UID.to_owned(), format!("{n:064x}"))), headers.clone(), body));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(read.load(Ordering::SeqCst).count_ones(), expected, "{size}");
    }
}

/// A chunk that is larger than any is refused before it is read, and so is one without a length.
#[tokio::test]
async fn a_chunk_has_a_length_and_a_bound() {
    let store = Arc::new(Store::new(Arc::new(InMemory::new())));
    let shared =
        Shared::new(store, Authenticator::Fixed { token: "good", uid: UID, custody_claim: "claim", max_bytes: u64::MAX }, Arc::default());
    let headers: HeaderMap = [(header::AUTHORIZATION, "Bearer good".parse().unwrap())].into_iter().collect();
    let read = Arc::new(AtomicUsize::new(0));
    let put = |body: Body| put_chunk(State(shared.clone()), Path((UID.to_owned(), "0".repeat(64))), headers.clone(), body);
    let large = put(Body::new(Stated(CHUNK as u64 + 1, Arc::clone(&read), 0))).await.unwrap_err();
    assert_eq!((large.0, read.load(Ordering::SeqCst)), (StatusCode::PAYLOAD_TOO_LARGE, 0));
    let endless = Body::from_stream(futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(b"x"))));
    assert_eq!(put(endless).await.unwrap_err().0, StatusCode::LENGTH_REQUIRED);
}

/// What a request answers that has waited for its turn for a while, when its pod may do this at the end of the wait.
async fn after_a_wait(then: Access, send: impl AsyncFnOnce(Shared, HeaderMap) -> Result<Response, Outcome>) -> (StatusCode, bool) {
    let namespace = ("t".to_owned(), None);
    let caller = Caller { uid: UID.to_owned(), namespace, pod: "pod".to_owned(), custody_claim: String::new(), max_bytes: u64::MAX };
    let said = Arc::new(parking_lot::Mutex::new([("good".to_owned(), Access::Pod(caller))].into_iter().collect()));
    let store = Arc::new(Store::new(Arc::new(InMemory::new())));
    let shared = Shared::new(store, Authenticator::Said(Arc::clone(&said)), Arc::default());
    let (mut held, of) = (Vec::new(), ("t", UID));
    for _ in 0..3 {
        held.push(shared.shares.chunk(of, crate::archive::manifest::SMALL).await.unwrap());
        held.push(shared.shares.earlier(of).await.unwrap());
    }
    held.push(shared.shares.manifest(of, 1).await.unwrap());
    let headers: HeaderMap = [(header::AUTHORIZATION, "Bearer good".parse().unwrap())].into_iter().collect();
    let ended = async {
        tokio::time::sleep(KNOWN + Duration::from_secs(1)).await;
        said.lock().insert("good".to_owned(), then);
        drop(held);
    };
    let (answer, ()) = tokio::join!(send(shared.clone(), headers), ended);
    let answer = answer.unwrap();
    (answer.status(), answer.headers().contains_key(header::RETRY_AFTER))
}

/// S7: a chunk once was stored although the archive had been decided while it waited. And a token that has ended must not end the upload: the pod has the
/// next one, and 401 is final for it.
#[tokio::test(start_paused = true)]
async fn a_request_that_has_waited_is_authorized_again() {
    let digest = || hex::encode(Sha256::digest(b"data"));
    for (then, expected) in [
        (Access::Refused("decided"), (StatusCode::FORBIDDEN, false)),
        (Access::Unknown, (StatusCode::TOO_MANY_REQUESTS, true)),
        (Access::NotYet, (StatusCode::SERVICE_UNAVAILABLE, false)),
    ] {
        let put = async |shared, headers| put_chunk(State(shared), Path((UID.to_owned(), digest())), headers, Body::from("data")).await;
        assert_eq!(after_a_wait(then.clone(), put).await, expected, "PUT of a chunk");
        for method in [Method::GET, Method::HEAD] {
            let ask = async |shared, headers| ask_chunk(method, State(shared), Path((UID.to_owned(), digest())), headers).await;
            assert_eq!(after_a_wait(then.clone(), ask).await, expected, "a question");
        }
        let body = serde_json::to_vec(&empty(UID)).unwrap();
        let put = async |shared, headers| put_manifest(State(shared), Path(UID.to_owned()), headers, Body::from(body)).await;
        assert_eq!(after_a_wait(then, put).await, expected, "PUT of a manifest");
    }
}
