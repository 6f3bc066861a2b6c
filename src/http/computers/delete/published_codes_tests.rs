//! The published DELETE answers 204, 401, 404 or 500, whatever the Kubernetes API answers. Clients of the published operation know no other code.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Method, Request};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::*;

const UID: &str = "0b4f9f3e-5d1c-4a53-8a0e-3a9c0f8f6f11";

/// The requests to the Kubernetes API of one DELETE. The record is read if its change is refused.
const CALLS: [&str; 6] = ["token", "delete right", "read", "delete", "read record", "revoke"];

/// Responses to one of these requests: the code, and the reason of a Status.
const ODD: [(u16, &str); 14] = [
    (200, "denied"),
    (400, "BadRequest"),
    (401, "Unauthorized"),
    (403, "Forbidden"),
    (403, "NamespaceTerminating"),
    (404, "NotFound"),
    (404, ""),
    (409, "Conflict"),
    (410, "Expired"),
    (413, "RequestEntityTooLarge"),
    (422, "Invalid"),
    (429, "TooManyRequests"),
    (500, "InternalError"),
    (503, "ServiceUnavailable"),
];

fn call(request: &Request<kube::client::Body>) -> &'static str {
    let path = request.uri().path();
    match (request.method(), path.contains("computerrecords")) {
        (&Method::POST, _) if path.contains("tokenreviews") => "token",
        (&Method::POST, _) => "delete right",
        (&Method::DELETE, _) => "delete",
        (&Method::PATCH, _) => "revoke",
        (_, true) => "read record",
        _ => "read",
    }
}

fn usual(call: &str) -> (u16, serde_json::Value) {
    match call {
        "token" => {
            (201, json!({"spec": {}, "status": {"authenticated": true, "audiences": ["computer-operator"], "user": {"username": "anna"}}}))
        }
        "delete right" => (201, json!({"spec": {}, "status": {"allowed": true}})),
        "delete" => (200, json!({"kind": "Status", "status": "Success"})),
        "read" => (200, json!({"metadata": {"namespace": "t", "name": "c", "uid": UID, "resourceVersion": "1"}, "spec": {}})),
        _ => {
            let state = json!({"phase": "Live", "credential": "Live", "keyHash": "h"});
            (200, json!({"metadata": {"name": UID}, "spec": {"namespace": "t", "computer": "c", "state": state}}))
        }
    }
}

fn odd(call: &str, (code, reason): (u16, &str)) -> (u16, serde_json::Value) {
    if reason == "denied" {
        return match call {
            "token" | "delete right" => (201, json!({"spec": {}, "status": {"allowed": false, "authenticated": false}})),
            _ => (200, json!({"unexpected": true})),
        };
    }
    let causes = json!({"causes": [{"reason": reason, "message": "m"}]});
    (code, json!({"kind": "Status", "status": "Failure", "message": "refused", "reason": reason, "code": code, "details": causes}))
}

/// The status code and body of a plain DELETE when these requests get these responses.
async fn answer(faults: Vec<(&'static str, (u16, &'static str))>, query: &str) -> (u16, String) {
    let shared = crate::http::tests::shared_with(move |request| {
        let call = call(request);
        let fault = faults.iter().find(|(of, _)| *of == call);
        fault.map_or_else(|| usual(call), |(_, response)| odd(call, *response))
    });
    let id = ComputerId { namespace: "t".into(), name: "c".into(), uid: UID.into() }.encode();
    let request = Request::delete(format!("/api/v0/computers/{id}{query}")).header("authorization", "Bearer a.b.c");
    let response = crate::http::router(shared).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn a_plain_delete_answers_only_with_published_codes() {
    let faults =
        |odd: &[(u16, &'static str)]| -> Vec<_> { CALLS.iter().flat_map(|call| odd.iter().map(move |odd| (*call, *odd))).collect() };
    let mut all: Vec<_> = faults(&ODD).into_iter().map(|one| vec![one]).collect();
    // A fault that is handled leads to another request, which can fail as well.
    let handled = faults(&[ODD[0], ODD[5], ODD[7], ODD[10]]);
    all.extend(handled.iter().enumerate().flat_map(|(i, one)| handled[..i].iter().map(|other| vec![*one, *other])));
    let mut seen = BTreeSet::from([answer(Vec::new(), "").await.0]);
    for faults in all {
        let (code, body) = answer(faults.clone(), "").await;
        assert!(matches!(code, 204 | 401 | 404 | 500), "{faults:?}: {code} {body}");
        seen.insert(code);
    }
    assert_eq!(seen, BTreeSet::from([204, 401, 404, 500]), "each of them occurs");
}

/// Otherwise the code shows a caller who may not delete it that the computer exists, and the published operation has no 403.
#[tokio::test]
async fn a_computer_that_may_be_seen_but_not_deleted_is_404_with_the_same_body() {
    let missing = answer(vec![("read", (404, "NotFound"))], "").await;
    assert_eq!(missing.0, 404);
    for query in ["", "?dryRun=All", "?wait=5"] {
        assert_eq!(answer(vec![("delete right", (200, "denied"))], query).await, missing, "{query}");
    }
}

/// The code of an extension: protection, by the field or by a policy of the cluster.
#[tokio::test]
async fn a_policy_that_forbids_the_deletion_is_409() {
    let shared = crate::http::tests::shared_with(|request| {
        let call = call(request);
        let message = "computers \"c\" is forbidden: ValidatingAdmissionPolicy 'co-deletion-protection' denied request: protected";
        match call {
            "delete" => (403, json!({"kind": "Status", "status": "Failure", "message": message, "reason": "Forbidden", "code": 403})),
            _ => usual(call),
        }
    });
    let id = ComputerId { namespace: "t".into(), name: "c".into(), uid: UID.into() }.encode();
    let request = Request::delete(format!("/api/v0/computers/{id}")).header("authorization", "Bearer a.b.c");
    let response = crate::http::router(shared).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::CONFLICT);
}
