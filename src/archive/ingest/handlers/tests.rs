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
use crate::archive::manifest::tests::empty;

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

/// L1: the archive pod gives a request 120 s, and every attempt would fail in the same way.
#[tokio::test(start_paused = true)]
async fn a_manifest_of_many_sessions_is_stored_in_time_in_a_store_with_high_latency() {
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

/// Every client that can connect can send: the body of an unknown client is not read, and an endless body is never accepted.
#[tokio::test]
async fn a_manifest_is_accepted_from_an_authenticated_client_when_there_is_room() {
    let store = Arc::new(Store::new(Arc::new(InMemory::new())));
    let shared = Shared::new(store, Authenticator::Fixed { token: "good", uid: UID }, Arc::default(), UPLOADS);
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
    assert_eq!(shared.manifests.available_permits(), MANIFESTS, "the room is released");
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

/// L3: received bytes are kept in parts of 8 MiB or more, and the operator's memory is limited.
#[tokio::test(start_paused = true)]
async fn a_limited_number_of_objects_is_received_in_parallel() {
    let tib = 1 << 40;
    for (size, expected) in [(1, 6), (10_000 * 8 * MIB, 6), (200 << 30, 6), (500 << 30, 2), (tib, 1), (tib + tib / 4, 1)] {
        let store = Arc::new(Store::new(Arc::new(InMemory::new())));
        let shared = Shared::new(store, Authenticator::Fixed { token: "good", uid: UID }, Arc::default(), UPLOADS);
        let headers: HeaderMap = [(header::AUTHORIZATION, "Bearer good".parse().unwrap())].into_iter().collect();
        let read = Arc::new(AtomicUsize::new(0));
        let mut uploads = tokio::task::JoinSet::new();
        for n in 0..40 {
            let body = Body::new(Stated(size, Arc::clone(&read), n));
            uploads.spawn(put_object(State(shared.clone()), Path((UID.to_owned(), format!("{n:064x}"))), headers.clone(), body));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(read.load(Ordering::SeqCst).count_ones(), expected, "{size}");
    }
}

/// What does not fit is refused with what to do, and fits when that was done.
#[tokio::test]
async fn an_object_that_the_memory_has_no_room_for_says_what_to_do() {
    let put = |size: u64, limit: u64| {
        let store = Arc::new(Store::new(Arc::new(InMemory::new())));
        let shared = Shared::new(store, Authenticator::Fixed { token: "good", uid: UID }, Arc::default(), uploads_of(limit * MIB));
        room_of_object(&shared, size)
    };
    assert_eq!(put(10_000 * 143 * MIB, 512), Ok(144));
    let (status, text) = put(5 << 40, 512).unwrap_err();
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(text.contains("controller.resources.limits.memory) to 894Mi"), "{text}");
    assert_eq!(put(5 << 40, 894), Ok(526));
    assert_eq!((uploads_of(0), uploads_of(u64::MAX)), (UPLOADS, 4096));
}
