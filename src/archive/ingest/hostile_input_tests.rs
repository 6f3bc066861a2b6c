//! Tests with arbitrary requests to the port: no path and no header bypasses the token or leaves the caller's own archive.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, StatusCode};
use proptest::collection::vec;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use tower::ServiceExt as _;

use super::{auth, handlers};
use crate::archive::manifest::tests::empty;
use crate::archive::{Manifest, Store, chunk_key};

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";
const OTHER: &str = "00000000-e89b-12d3-a456-426614174000";

/// Sends a request to an endpoint with a new store; returns the status and the files in the store afterwards.
fn sent(request: Request<Body>) -> (StatusCode, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("one/two/store");
    let store = Arc::new(Store::open(&format!("file://{}", root.display())).unwrap());
    let router = handlers::router(
        store,
        auth::Authenticator::Fixed { token: "good", uid: UID, custody_claim: "claim", max_bytes: u64::MAX },
        Arc::default(),
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let status = runtime.block_on(async { router.oneshot(request).await.unwrap().status() });
    let files = walkdir::WalkDir::new(folder.path()).into_iter().map(Result::unwrap).filter(|e| e.file_type().is_file());
    // A file outside the store keeps its whole path, which is not a key.
    let keys = files.map(|e| e.path().strip_prefix(&root).unwrap_or(e.path()).display().to_string());
    (status, keys.collect())
}

fn segment() -> impl Strategy<Value = String> {
    let encoded = vec(any::<u8>(), 0..40).prop_map(|bytes| bytes.iter().map(|b| format!("%{b:02X}")).collect::<Vec<_>>().concat());
    prop_oneof![
        Just(UID.to_owned()),
        Just(OTHER.to_owned()),
        Just("chunks".to_owned()),
        Just("manifest".to_owned()),
        Just("..%2f..%2fmanifest.json".to_owned()),
        "[0-9a-f]{64}",
        encoded,
        "[a-zA-Z0-9.%_-]{0,70}"
    ]
}

fn token() -> impl Strategy<Value = Option<HeaderValue>> {
    let anything = vec(prop_oneof![32_u8..127, 128_u8..=255], 0..60).prop_map(|bytes| HeaderValue::from_bytes(&bytes).ok());
    prop_oneof![
        Just(Some(HeaderValue::from_static("Bearer good"))),
        Just(Some(HeaderValue::from_static("bearer good"))),
        Just(None),
        anything
    ]
}

/// A manifest of this computer that names no object, as bytes, with some of them changed.
fn manifest() -> impl Strategy<Value = Vec<u8>> {
    vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3).prop_map(|changes| {
        let mut bytes = serde_json::to_vec(&empty(UID)).unwrap();
        let length = bytes.len();
        for (at, byte) in changes {
            bytes[at.index(length)] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn stored_objects_belong_to_the_caller_and_match_their_names(
        method in proptest::sample::select(&[Method::PUT, Method::HEAD, Method::GET, Method::POST, Method::DELETE][..]),
        uid in segment(), what in segment(), name in segment(), deep: bool,
        token in token(),
        length in proptest::option::of("[0-9]{1,22}|-1|x"),
        body in prop_oneof![manifest(), vec(any::<u8>(), 0..400)],
    ) {
        let own = hex::encode(Sha256::digest(&body));
        let name = if deep { name } else { own.clone() };
        let path = if what == "manifest" { format!("/ingest/v2/{uid}/manifest") } else { format!("/ingest/v2/{uid}/{what}/{name}") };
        let mut request = Request::builder().method(method.clone()).uri(path);
        if let Some(token) = &token {
            request = request.header("authorization", token);
        }
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let Ok(request) = request.body(Body::from(body.clone())) else { return Ok(()) };
        let (status, files) = sent(request);
        prop_assert!(!status.is_server_error(), "{status}");
        if token != Some(HeaderValue::from_static("Bearer good")) || method != Method::PUT {
            prop_assert!(files.is_empty() && status != StatusCode::CREATED, "{status} {files:?}");
        }
        prop_assert_eq!(files.len(), usize::from(status == StatusCode::CREATED), "{:?}", files);
        for file in files {
            let whole = file == format!("archives/{UID}/manifest.json") && Manifest::parse(&body).is_ok_and(|m| m.computer.uid == UID);
            prop_assert!(whole || file == chunk_key(UID, &own), "{file}");
        }
    }
}
