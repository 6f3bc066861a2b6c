//! Property tests: arbitrary requests through the complete router, with a cluster that permits everything. No request may make a handler panic, and every
//! error is the published error object.

use std::sync::LazyLock;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, header};
use http_body_util::BodyExt as _;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

use super::error::ErrorBody;
use crate::credentials::ComputerId;

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

/// A cluster in which every caller is `robot` in `team` with all permissions; it has one computer and one session.
fn cluster(request: &Request<kube::client::Body>) -> (u16, Value) {
    let meta = json!({"name": "box", "namespace": "team", "uid": UID, "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"});
    let computer =
        json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": meta, "spec": {"provider": "Managed"}});
    let session = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Session", "metadata": meta,
        "spec": {"computerName": "box", "computerUID": UID, "path": "s"}});
    let user = json!({"username": "system:serviceaccount:team:robot", "groups": ["system:authenticated"]});
    let last: Vec<&str> = request.uri().path().rsplit('/').take(2).collect();
    let answer = match (request.method().as_str(), last[0], last[1]) {
        (_, "tokenreviews", _) => json!({"spec": {}, "status": {"authenticated": true, "user": user, "audiences": ["computer-operator"]}}),
        (_, "subjectaccessreviews", _) => json!({"spec": {}, "status": {"allowed": true}}),
        ("GET", "computers" | "sessions" | "computerrecords", _) => {
            json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": []})
        }
        (_, "sessions", _) | (_, _, "sessions") => session,
        (_, _, "namespaces") => json!({"metadata": {"name": "team"}}),
        (_, _, "computerrecords") => {
            return (404, json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": ""}));
        }
        _ => computer,
    };
    (if request.method() == Method::POST { 201 } else { 200 }, answer)
}

fn served() -> Router {
    static ROUTER: LazyLock<Router> = LazyLock::new(|| super::router(super::tests::shared_with(cluster)));
    ROUTER.clone()
}

/// Sends a request and asserts that the response conforms to the published API.
fn conforms(request: Request<Body>) -> Result<u16, TestCaseError> {
    // One runtime for all cases: the client spawns a task in the runtime in which it was created.
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
    let shown = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
    let (status, kind, body) = RUNTIME.block_on(async {
        let response = served().oneshot(request).await.unwrap();
        let kind = response.headers().get(header::CONTENT_TYPE).cloned();
        (response.status().as_u16(), kind, response.into_body().collect().await.unwrap().to_bytes())
    });
    let text = String::from_utf8_lossy(&body);
    prop_assert!(status != 500 && status != 503, "{shown}: {status} {text}");
    if status >= 400 {
        prop_assert_eq!(kind, Some(HeaderValue::from_static("application/json")), "{}", shown);
        let error: Result<ErrorBody, _> = serde_json::from_slice(&body);
        prop_assert!(error.as_ref().is_ok_and(|e| e.status == status && !e.detail.is_empty() && !e.title.is_empty()), "{shown}: {text}");
    }
    Ok(status)
}

fn id() -> String {
    ComputerId { namespace: "team".into(), name: "box".into(), uid: UID.into() }.encode()
}

/// Operations with a request body.
fn with_body() -> impl Strategy<Value = (Method, String)> {
    prop_oneof![
        Just((Method::POST, "/api/v0/computers".to_owned())),
        Just((Method::PATCH, format!("/api/v0/computers/{}", id()))),
        Just((Method::POST, format!("/api/v0/computers/{}/restart", id()))),
        Just((Method::POST, "/api/v0/sessions".to_owned())),
        Just((Method::PATCH, format!("/api/v0/sessions/{}", id()))),
        Just((Method::POST, format!("/api/v0/sessions/{}/messages", id()))),
        Just((Method::POST, format!("/api/v0/sessions/{}/interrupt", id()))),
    ]
}

/// Names of known and unknown fields.
fn field() -> impl Strategy<Value = String> {
    const KNOWN: [&str; 10] =
        ["name", "remoteUser", "provider", "repos", "hostId", "autoInstallDeps", "computerId", "sessionSettings", "cwd", "text"];
    prop_oneof![9 => proptest::sample::select(&KNOWN[..]).prop_map(str::to_owned), 1 => any::<String>()]
}

fn any_json() -> impl Strategy<Value = Value> {
    const WORDS: [&str; 7] = ["byom", "e2b", "box", UID, "https://example.com/a", "", "null"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        proptest::sample::select(&WORDS[..]).prop_map(Value::from),
        Just(Value::from(id())),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            btree_map(field(), inner, 0..6).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

/// Valid JSON, truncated JSON, deeply nested JSON, and arbitrary bytes.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let object = btree_map(field(), any_json(), 0..6).prop_map(|map| Value::from_iter(map).to_string().into_bytes());
    prop_oneof![
        6 => object,
        2 => any_json().prop_map(|json| json.to_string().into_bytes()),
        1 => (any_json(), any::<proptest::sample::Index>()).prop_map(|(json, cut)| {
            let mut bytes = json.to_string().into_bytes();
            bytes.truncate(cut.index(bytes.len() + 1));
            bytes
        }),
        1 => (1_usize..5000).prop_map(|depth| "[".repeat(depth).into_bytes()),
        1 => (1_usize..5000).prop_map(|depth| "{\"sessionSettings\":".repeat(depth).into_bytes()),
        1 => vec(any::<u8>(), 0..300),
    ]
}

fn header_value() -> impl Strategy<Value = HeaderValue> {
    vec(prop_oneof![32_u8..127, 128_u8..=255], 0..60).prop_map(|bytes| HeaderValue::from_bytes(&bytes).unwrap())
}

/// A percent-encoded part of a path or a query.
fn encoded() -> impl Strategy<Value = String> {
    let anything = vec(any::<u8>(), 1..60).prop_map(|bytes| bytes.iter().map(|b| format!("%{b:02x}")).collect::<Vec<_>>().concat());
    prop_oneof![anything, Just(id()), "[A-Za-z0-9_-]{1,80}", "[a-z0-9./=%-]{1,40}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_body_is_handled_and_errors_are_the_published_object((method, path) in with_body(), body in any_body(), kind: bool) {
        let kind = if kind { "application/json" } else { "application/merge-patch+json; charset=utf-8" };
        let request = Request::builder().method(method).uri(path).header("authorization", "Bearer a.b.c").header("content-type", kind);
        conforms(request.body(Body::from(body)).unwrap())?;
    }

    #[test]
    fn any_headers_are_handled_and_errors_are_the_published_object(
        (method, path) in with_body(),
        names in vec(proptest::sample::select(&["authorization", "content-type", "if-match", "content-length", "accept", "x-request-id"][..]), 1..4),
        values in vec(header_value(), 4),
        body in any_body(),
    ) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in names.iter().zip(values) {
            request = request.header(*name, value);
        }
        conforms(request.body(Body::from(body)).unwrap())?;
    }

    #[test]
    fn any_path_and_query_are_handled_and_errors_are_the_published_object(
        method in proptest::sample::select(&[Method::GET, Method::PATCH, Method::POST, Method::DELETE, Method::PUT][..]),
        place in proptest::sample::select(&["computers", "computers/name", "sessions", "deletions", ""][..]),
        parts in vec(encoded(), 0..3),
        tail in proptest::sample::select(&["", "/deletion", "/archive", "/archive/export", "/archive/sessions/%ff", "/metrics", "/restart", "/refresh", "/install-deps", "/messages", "/interrupt"][..]),
        names in vec(proptest::sample::select(&["limit", "cursor", "computerId", "namespace", "hostId", "includeProvisioningSteps", "dryRun", "state", "x"][..]), 0..3),
        values in vec(encoded(), 3),
    ) {
        let path = parts.iter().map(|part| format!("/{part}")).collect::<Vec<_>>().concat();
        let query: Vec<_> = names.iter().zip(values).map(|(name, value)| format!("{name}={value}")).collect();
        let uri = format!("/api/v0/{place}{path}{tail}?{}", query.join("&"));
        let Ok(request) = Request::builder().method(method).uri(uri).header("authorization", "Bearer a.b.c").body(Body::empty()) else { return Ok(()) };
        conforms(request)?;
    }
}

/// Serde deserializes a struct from an array, and a unit variant from `{"e2b": null}`; the API must reject both. The HTTP fuzzer found that
/// `[null, null, null]` created a session.
#[test]
fn arrays_and_maps_that_only_serde_accepts_are_rejected() {
    let send = |method: &str, path: &str, body: Value| {
        let request = Request::builder().method(method).uri(path).header("authorization", "Bearer a.b.c");
        conforms(request.header("content-type", "application/json").body(Body::from(format!(" \n{body}"))).unwrap()).unwrap()
    };
    let (computer, session) = (format!("/api/v0/computers/{}", id()), format!("/api/v0/sessions/{}", id()));
    let lists = [
        ("POST", "/api/v0/computers", json!(["box", "dev", null, null, null, null])),
        ("PATCH", &computer, json!([null, "other", null])),
        ("POST", "/api/v0/sessions", json!([id(), null, null])),
        ("PATCH", &session, json!([{}])),
    ];
    for (method, path, body) in lists {
        assert_eq!(send(method, path, body), 400, "{method} {path}");
    }
    assert_eq!(send("POST", "/api/v0/computers", json!({"name": "box", "remoteUser": "dev", "provider": {"e2b": null}})), 400);
    assert_eq!(send("POST", "/api/v0/computers", json!({"name": "box", "remoteUser": "dev", "provider": "e2b"})), 201);
    assert_eq!(send("POST", "/api/v0/computers", json!({"name": "box", "remoteUser": "dev", "provider": null})), 201);
}

/// The cluster of these tests serves valid requests, so the properties above are not trivially true.
#[test]
fn valid_requests_succeed() {
    let send = |method: &str, path: &str, body: Value| {
        let request = Request::builder().method(method).uri(path).header("authorization", "Bearer a.b.c");
        conforms(request.header("content-type", "application/json").body(Body::from(body.to_string())).unwrap()).unwrap()
    };
    assert_eq!(send("POST", "/api/v0/computers", json!({"name": "box", "remoteUser": "dev"})), 201);
    assert_eq!(send("PATCH", &format!("/api/v0/computers/{}", id()), json!({"remoteUser": "other"})), 200);
    assert_eq!(send("POST", "/api/v0/sessions", json!({"computerId": id()})), 201);
    assert_eq!(send("PATCH", &format!("/api/v0/sessions/{}", id()), json!({"sessionSettings": {}})), 200);
    assert_eq!(send("GET", "/api/v0/computers", Value::Null), 200);
}
