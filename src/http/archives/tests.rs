//! Exports through the complete router, a real ingest endpoint with TLS, and a store in memory.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt as _;

use crate::archive::ingest::{LIMITS, readers, reads, tls};
use crate::archive::remote::{Endpoint, Remote};
use crate::archive::test_archives::{Packed, home, noise, packed, put};
use crate::archive::{Store, Unreadable, chunk_key, chunks, receipt_key};
use crate::credentials::ComputerId;
use crate::http::Shared;
use crate::runtime::server;

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

/// What the cluster says.
#[derive(Clone)]
struct World {
    /// Namespaces in which the caller may get `computers/archive`; an empty one: everywhere.
    allowed: Vec<&'static str>,
    /// UID of the namespace `team` as it is now.
    namespace: Option<&'static str>,
    record: Option<Value>,
}

impl World {
    fn answer(&self, path: &str, body: &Value) -> (u16, Value) {
        let attributes = &body["spec"]["resourceAttributes"];
        let asked = attributes["namespace"].as_str().unwrap_or_default();
        let archive = (&attributes["resource"], &attributes["subresource"], &attributes["verb"])
            == (&json!("computers"), &json!("archive"), &json!("get"));
        let user = json!({"username": "system:serviceaccount:team:reader", "groups": []});
        let found = match path.rsplit('/').nth(1).unwrap_or_default() {
            _ if path.ends_with("/tokenreviews") => {
                Some(json!({"spec": {}, "status": {"authenticated": true, "user": user, "audiences": ["computer-operator"]}}))
            }
            _ if path.ends_with("/subjectaccessreviews") => {
                let allowed = archive && self.allowed.iter().any(|namespace| namespace.is_empty() || *namespace == asked);
                Some(json!({"spec": {}, "status": {"allowed": allowed}}))
            }
            "namespaces" => {
                let uid = self.namespace.filter(|_| path.ends_with("/team") || path.ends_with("/other"));
                uid.map(|uid| json!({"metadata": {"name": "team", "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"}}))
            }
            "computerrecords" => self.record.clone(),
            _ => None,
        };
        let missing = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": ""});
        found.map_or((404, missing), |found| (200, found))
    }
}

fn client(world: World) -> Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let world = world.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or_default();
            let (code, answer) = world.answer(parts.uri.path(), &body);
            let body = kube::client::Body::from(answer.to_string().into_bytes());
            Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
        }
    });
    Client::new(service, "default")
}

/// That of the manifest.
fn digest(packed: &Packed) -> String {
    hex::encode(Sha256::digest(serde_json::to_vec(&packed.manifest).unwrap()))
}

struct Bench {
    packed: Packed,
    remote: Arc<Remote>,
    objects: Arc<InMemory>,
    folder: tempfile::TempDir,
    _stop: DropGuard,
}

impl Bench {
    async fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let files: [(&str, &[u8]); 3] = [("s/one.jsonl", &noise(20_000, 1)), ("s/two.jsonl", &noise(9000, 2)), ("s/a b.jsonl", b"small")];
        let mut packed = packed(home(&files).path(), &["s"], Unreadable::Block, chunks::Sizes { frame: 4096, chunk: 3000 });
        let of = &mut packed.manifest.computer;
        (of.namespace, of.namespace_uid, of.name, of.uid) = ("team".into(), Some("original".into()), "box".into(), UID.into());
        let objects = Arc::new(InMemory::new());
        let store = Store::new(Arc::<InMemory>::clone(&objects));
        put(&store, UID, &packed).await;
        let receipt = json!({"computer": {"uid": UID}, "archive": {"manifestDigest": digest(&packed)}});
        objects.put(&receipt_key(UID).as_str().into(), receipt.to_string().into()).await.unwrap();
        let certificate = tls::Certificate::new("https://$(INGEST_SERVICE_HOST):8443").unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop, folder) = (listener.local_addr().unwrap(), CancellationToken::new(), tempfile::tempdir().unwrap());
        let router = reads::router(Arc::new(store), readers::Readers::Fixed("good"));
        tokio::spawn(server::run(listener, Some(certificate.acceptor().unwrap()), router, LIMITS, stop.clone()));
        let (ca, token) = (folder.path().join("ca.crt"), folder.path().join("token"));
        std::fs::write(&ca, &certificate.ca_pem).unwrap();
        std::fs::write(&token, "good\n").unwrap();
        let remote = Arc::new(Remote::new(Endpoint::Address(address.to_string()), ca, token));
        Self { packed, remote, objects, folder, _stop: stop.drop_guard() }
    }

    /// The API in a cluster that is as usual, except for a change.
    fn api(&self, change: impl FnOnce(&mut World)) -> Router {
        let archive = json!({"manifestDigest": digest(&self.packed), "sessions": 3, "bytes": 1, "problems": 0});
        let deletion = json!({"deletedAt": "2026-01-01T00:00:00Z", "cause": "ComputerDeleted", "archive": archive});
        let spec = json!({"namespace": "team", "namespaceUid": "original", "computer": "box", "state": {"deletion": deletion}});
        let record =
            json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerRecord", "metadata": {"name": UID}, "spec": spec});
        let mut world = World { allowed: vec!["team"], namespace: Some("original"), record: Some(record) };
        change(&mut world);
        let mut shared = Shared::new(client(world), &crate::http::tests::config(), CancellationToken::new());
        shared.archives = Some(Arc::clone(&self.remote));
        crate::http::router(Arc::new(shared))
    }

    /// The chunks in order.
    fn stored(&self) -> Vec<u8> {
        self.packed.chunks().iter().flat_map(|blob| blob.bytes.to_vec()).collect()
    }
}

fn path(namespace: &str, rest: &str) -> String {
    let id = ComputerId { namespace: namespace.into(), name: "box".into(), uid: UID.into() };
    format!("/api/v0/computers/{}/archive{rest}", id.encode())
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    /// `None`: it was cut off.
    body: Option<Bytes>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(self.body.as_ref().unwrap()).unwrap()
    }
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

async fn ask(api: &Router, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get(path).header("authorization", "Bearer a.b.c");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = api.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = response.into_body().collect().await.ok().map(http_body_util::Collected::to_bytes);
    // A copy: the bytes of the response keep its place until they are dropped.
    Answer { status, headers, body: body.map(|bytes| Bytes::copy_from_slice(&bytes)) }
}

#[tokio::test]
async fn an_archive_is_sent_whole_and_in_parts() {
    let bench = Bench::new().await;
    let (api, stored) = (bench.api(|_| {}), bench.stored());
    let whole = ask(&api, &path("team", "/export"), &[]).await;
    assert_eq!((whole.status, whole.body.as_deref()), (StatusCode::OK, Some(&stored[..])));
    assert_eq!(whole.header("content-length"), stored.len().to_string());
    assert_eq!((whole.header("content-type"), whole.header("x-content-type-options")), ("application/octet-stream", "nosniff"));
    assert_eq!(whole.header("content-disposition"), format!("attachment; filename=\"box-{UID}.tar.zst\""));
    let digest = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, Sha256::digest(&stored));
    assert_eq!(whole.header("repr-digest"), format!("sha-256=:{digest}:"));
    // HEAD has the headers of GET and no body. The plugin does not use it: one GET gives it everything.
    let request = Request::head(path("team", "/export")).header("authorization", "Bearer a.b.c");
    let head = api.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let but_the_id =
        |headers: &HeaderMap| headers.iter().filter(|(name, _)| *name != "x-request-id").map(|(n, v)| (n.clone(), v.clone())).collect();
    let [asked, sent]: [Vec<_>; 2] = [head.headers(), &whole.headers].map(but_the_id);
    assert_eq!((head.status(), asked), (StatusCode::OK, sent));
    assert!(head.into_body().collect().await.unwrap().to_bytes().is_empty());
    let tag = whole.header("etag").to_owned();
    for (range, from, to) in [("bytes=0-", 0, stored.len()), ("bytes=5000-5999", 5000, 6000), ("bytes=-7", stored.len() - 7, stored.len())]
    {
        let part = ask(&api, &path("team", "/export"), &[("range", range), ("if-range", &tag)]).await;
        assert_eq!((part.status, part.body.as_deref()), (StatusCode::PARTIAL_CONTENT, Some(&stored[from..to])), "{range}");
        assert_eq!(part.header("content-range"), format!("bytes {from}-{}/{}", to - 1, stored.len()));
        assert_eq!(part.header("content-length"), (to - from).to_string());
    }
    let other = ask(&api, &path("team", "/export"), &[("range", "bytes=5-"), ("if-range", "\"other\"")]).await;
    assert_eq!((other.status, other.body.map(|b| b.len())), (StatusCode::OK, Some(stored.len())), "a part of other bytes");
    let after = ask(&api, &path("team", "/export"), &[("range", "bytes=999999999-")]).await;
    assert_eq!((after.status, &after.json()["metadata"]["length"]), (StatusCode::RANGE_NOT_SATISFIABLE, &json!(stored.len())));
}

#[tokio::test]
async fn the_document_lists_every_session_and_each_can_be_exported() {
    let bench = Bench::new().await;
    let (api, stored) = (bench.api(|_| {}), bench.stored());
    let answer = ask(&api, &path("team", ""), &[]).await;
    let document: super::document::ArchiveDocument = serde_json::from_slice(answer.body.as_ref().unwrap()).unwrap();
    assert_eq!((document.session_count, document.stored_bytes), (3, stored.len() as u64));
    assert_eq!(document.stored_digest, Some(hex::encode(Sha256::digest(&stored))));
    assert_eq!((document.namespace_uid.as_deref(), document.problems.len()), (Some("original"), 0));
    for session in &document.sessions {
        let id = session.id.replace('/', "%2F").replace(' ', "%20");
        let one = ask(&api, &path("team", &format!("/sessions/{id}")), &[]).await;
        assert_eq!(one.status, StatusCode::OK, "{id}");
        let body = one.body.clone().unwrap();
        let tar = zstd::decode_all(&body[..]).unwrap();
        assert_eq!((body.len() as u64, tar.len() as u64), (session.stored_bytes, session.tar_bytes));
        assert_eq!(hex::encode(Sha256::digest(&tar)), session.tar_digest);
        assert_eq!(one.header("computer-tar-sha256"), session.tar_digest);
        assert!(!one.header("content-disposition").contains("one"), "a tenant chose the name");
        // A client resumes with the digests that the document has.
        let tag = format!("\"{}-{}\"", session.tar_digest, document.manifest_digest);
        assert_eq!(one.header("etag"), tag);
        let part = ask(&api, &path("team", &format!("/sessions/{id}")), &[("range", "bytes=3-"), ("if-range", &tag)]).await;
        assert_eq!((part.status, part.body.as_deref()), (StatusCode::PARTIAL_CONTENT, Some(&body[3..])));
    }
    for id in ["none", "..%2F..%2Freceipts", "%00", "s"] {
        assert_eq!(ask(&api, &path("team", &format!("/sessions/{id}")), &[]).await.status, StatusCode::NOT_FOUND, "{id}");
    }
}

type Change = fn(&mut World);

fn recorded(world: &mut World) -> &mut Value {
    world.record.as_mut().unwrap()
}

/// S13: everybody else gets the same answer as for an archive that does not exist.
#[tokio::test]
async fn without_a_right_in_the_namespace_of_the_computer_there_is_no_archive() {
    let bench = Bench::new().await;
    let changes: [(&str, Change); 7] = [
        ("no right", |w| w.allowed = vec!["other"]),
        ("the namespace was created again", |w| w.namespace = Some("another")),
        ("the namespace is gone", |w| w.namespace = None),
        ("the record has expired, and the namespace was created again", |w| (w.record, w.namespace) = (None, Some("another"))),
        ("the record has expired, and the namespace is gone", |w| (w.record, w.namespace) = (None, None)),
        ("it is not verified", |w| recorded(w)["spec"]["state"]["deletion"]["archive"] = Value::Null),
        ("a record of an earlier version, older than the namespace", |w| {
            recorded(w)["spec"]["namespaceUid"] = Value::Null;
            recorded(w)["metadata"]["creationTimestamp"] = json!("2025-12-31T23:59:59Z");
        }),
    ];
    let id = ComputerId { namespace: "team".into(), name: "box".into(), uid: UID.replace("123e", "0000") };
    let missing = ask(&bench.api(|_| {}), &format!("/api/v0/computers/{}/archive", id.encode()), &[]).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    for (why, change) in changes {
        let api = bench.api(change);
        for rest in ["", "/export", "/sessions/s%2Fone"] {
            let answer = ask(&api, &path("team", rest), &[]).await;
            assert_eq!((answer.status, answer.body), (StatusCode::NOT_FOUND, missing.body.clone()), "{why} {rest}");
        }
    }
    // The id names a namespace in which the caller has the right, with the UID of another tenant's computer.
    for change in [(|w| w.allowed = vec!["other"]) as Change, |w| (w.allowed, w.record) = (vec!["other"], None)] {
        let stolen = ask(&bench.api(change), &path("other", "/export"), &[]).await;
        assert_eq!((stolen.status, stolen.body), (StatusCode::NOT_FOUND, missing.body.clone()));
    }
}

#[tokio::test]
async fn a_right_in_the_namespace_or_everywhere_is_enough() {
    let bench = Bench::new().await;
    let changes: [(&str, Change); 5] = [
        ("in the namespace", |_| {}),
        ("without a record", |w| w.record = None),
        ("the record is that of another computer, so the manifest decides", |w| recorded(w)["spec"]["computer"] = json!("else")),
        ("everywhere, after the namespace", |w| (w.allowed, w.namespace) = (vec![""], None)),
        ("everywhere, in a new namespace", |w| (w.allowed, w.namespace, w.record) = (vec![""], Some("another"), None)),
    ];
    for (why, change) in changes {
        assert_eq!(ask(&bench.api(change), &path("team", "/export"), &[]).await.status, StatusCode::OK, "{why}");
    }
}

/// S13: after the record has expired, an archive that no deletion has verified was sent.
#[tokio::test]
async fn without_a_record_only_the_archive_that_the_receipt_names_is_sent() {
    let bench = Bench::new().await;
    let (api, key) = (bench.api(|w| w.record = None), receipt_key(UID).as_str().into());
    let ask = async || ask(&api, &path("team", "/export"), &[]).await.status;
    assert_eq!(ask().await, StatusCode::OK);
    let digest = digest(&bench.packed);
    for (why, receipt) in [
        ("another manifest was verified", json!({"computer": {"uid": UID}, "archive": {"manifestDigest": "0".repeat(64)}})),
        ("the deletion ended without an archive", json!({"computer": {"uid": UID}, "archive": null})),
        ("the receipt of another computer", json!({"computer": {"uid": "other"}, "archive": {"manifestDigest": digest}})),
        ("not a receipt", json!("")),
    ] {
        bench.objects.put(&key, receipt.to_string().into()).await.unwrap();
        assert_eq!(ask().await, StatusCode::NOT_FOUND, "{why}");
    }
    bench.objects.delete(&key).await.unwrap();
    assert_eq!(ask().await, StatusCode::NOT_FOUND, "the deletion has not ended");
}

/// S12: a failure in the middle is never a shorter success.
#[tokio::test]
async fn a_damaged_chunk_cuts_the_export_off_and_is_never_sent() {
    let bench = Bench::new().await;
    let chunks = bench.packed.chunks();
    let last = chunks.last().unwrap();
    let key = chunk_key(UID, &last.chunk.digest).as_str().into();
    let mut wrong = last.bytes.to_vec();
    wrong[0] ^= 1;
    bench.objects.put(&key, wrong.into()).await.unwrap();
    let api = bench.api(|_| {});
    let answer = ask(&api, &path("team", "/export"), &[]).await;
    assert!(answer.status == StatusCode::OK && answer.body.is_none(), "it looks whole");
    // Another manifest than the one that the deletion has verified.
    let api = bench.api(|w| w.record.as_mut().unwrap()["spec"]["state"]["deletion"]["archive"]["manifestDigest"] = json!("other"));
    assert_eq!(ask(&api, &path("team", "/export"), &[]).await.status, StatusCode::INTERNAL_SERVER_ERROR);
}

/// L9: what is read slowly, or not at all, has a bounded number of places, and each tenant a part of them.
#[tokio::test]
async fn a_tenant_has_two_exports_at_a_time() {
    let bench = Bench::new().await;
    let api = bench.api(|_| {});
    let begin = |api: Router| async move {
        let request = Request::builder().method(Method::GET).uri(path("team", "/export")).header("authorization", "Bearer a.b.c");
        api.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    };
    let held = [begin(api.clone()).await, begin(api.clone()).await];
    let third = begin(api.clone()).await;
    assert_eq!((third.status(), third.headers()["retry-after"].to_str().unwrap()), (StatusCode::TOO_MANY_REQUESTS, "1"));
    drop(held);
    assert_eq!(begin(api).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn an_operator_that_cannot_be_reached_or_trusted_is_503() {
    let bench = Bench::new().await;
    std::fs::write(bench.folder.path().join("token"), "another").unwrap();
    assert_eq!(ask(&bench.api(|_| {}), &path("team", "/export"), &[]).await.status, StatusCode::SERVICE_UNAVAILABLE);
    std::fs::write(bench.folder.path().join("token"), "good").unwrap();
    // A pod that pretends to be the operator.
    let other = tls::Certificate::new("https://$(INGEST_SERVICE_HOST):8443").unwrap();
    std::fs::write(bench.folder.path().join("ca.crt"), &other.ca_pem).unwrap();
    assert_eq!(ask(&bench.api(|_| {}), &path("team", "/export"), &[]).await.status, StatusCode::SERVICE_UNAVAILABLE);
}
