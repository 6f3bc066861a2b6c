//! A 204 and its `Deletion-State` must never say more than is proved.

use axum::body::Body;
use axum::http::{Method, Request};
use tower::ServiceExt as _;

use super::*;

const UID: &str = "0b4f9f3e-5d1c-4a53-8a0e-3a9c0f8f6f11";

/// An API server with a webhook that rejects a DELETE with an arbitrary code. The computer is not deleted.
fn refusing(request: &Request<kube::client::Body>, code: u16, reason: &str) -> (u16, serde_json::Value) {
    let path = request.uri().path();
    match *request.method() {
        Method::DELETE => {
            (code, json!({"kind": "Status", "status": "Failure", "message": "denied the request", "reason": reason, "code": code}))
        }
        Method::POST if path.contains("tokenreviews") => {
            (201, json!({"spec": {}, "status": {"authenticated": true, "audiences": ["computer-operator"], "user": {"username": "anna"}}}))
        }
        Method::POST => (201, json!({"spec": {}, "status": {"allowed": true}})),
        _ if path.contains("computerrecords") => (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404})),
        _ => (200, json!({"metadata": {"namespace": "t", "name": "c", "uid": UID, "resourceVersion": "1"}, "spec": {}})),
    }
}

/// 204 promises that the deletion is durable. A rejection with 404 or 409 is neither an absence nor another UID.
#[tokio::test]
async fn a_rejected_deletion_is_never_204() {
    for (code, reason) in [(409, "Conflict"), (404, "NotFound"), (403, "Forbidden"), (500, "InternalError")] {
        let shared = crate::http::tests::shared_with(move |request| refusing(request, code, reason));
        let id = ComputerId { namespace: "t".into(), name: "c".into(), uid: UID.into() }.encode();
        let request = Request::delete(format!("/api/v0/computers/{id}")).header("authorization", "Bearer a.b.c");
        let response = crate::http::router(shared).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert!(response.status().as_u16() >= 400, "{code} {reason}: {}", response.status());
    }
}

#[test]
fn a_dry_run_right_after_the_creation_shows_whether_a_key_would_be_revoked() {
    let id = ComputerId { namespace: "t".into(), name: "c".into(), uid: UID.into() };
    let computer = |deleted: Option<&str>| -> Computer {
        serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "t", "uid": UID, "deletionTimestamp": deleted}, "spec": {}}))
            .unwrap()
    };
    let record = |state: serde_json::Value| -> ComputerRecord {
        serde_json::from_value(json!({"metadata": {"name": UID}, "spec": {"namespace": "t", "computer": "c", "state": state}})).unwrap()
    };
    let revokes = |record: Option<ComputerRecord>, deleted| preview(&id, &computer(deleted), record.as_ref()).revokes_key;
    assert!(revokes(None, None), "the operator has not reconciled the computer yet");
    for (state, expected) in [("Pending", true), ("Live", true), ("Revoked", false)] {
        assert_eq!(revokes(Some(record(json!({"credential": state, "keyHash": "h"}))), None), expected, "{state}");
    }
    assert!(!revokes(Some(record(json!({"credential": "Pending"}))), None), "a key whose hash was lost is invalid");
    assert!(!revokes(Some(record(json!({"credential": "Live", "keyHash": "h"}))), Some("2026-01-01T00:00:00Z")));
}

/// Review H7: a user who trusted the README lost the data outside of the three default directories.
#[test]
fn a_dry_run_shows_what_is_archived_and_what_is_lost() {
    let id = ComputerId { namespace: "t".into(), name: "c".into(), uid: UID.into() };
    let computer: Computer = serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "t", "uid": UID}, "spec": {}})).unwrap();
    let shown = |paths: serde_json::Value, policy: &str, reclaim: &str| {
        let record: ComputerRecord = serde_json::from_value(json!({"metadata": {"name": UID}, "spec": {"namespace": "t", "computer": "c",
            "snapshot": {"sessionPaths": paths, "archive": {"policy": policy}},
            "state": {"children": {"volume": {"name": "v", "uid": "v", "originalReclaimPolicy": reclaim}}}}}))
        .unwrap();
        let preview = preview(&id, &computer, Some(&record));
        (preview.archived_paths.join(" "), preview.not_archived.join("\n"))
    };
    let (archived, lost) = shown(json!([".claude/projects"]), "Required", "Delete");
    assert!(archived == ".claude/projects" && lost.contains("outside of .claude/projects: it is destroyed with the volume"), "{lost}");
    let (_, lost) = shown(json!([".claude/projects"]), "Required", "Retain");
    assert!(lost.contains("it is kept on the volume"), "{lost}");
    for whole in [json!(["."]), json!([])] {
        let (archived, lost) = shown(whole, "Required", "Delete");
        assert!(archived == "." && !lost.contains("outside of") && lost.contains("symbolic links"), "{archived}: {lost}");
    }
    let (archived, lost) = shown(json!([".claude/projects"]), "None", "Delete");
    assert!(archived.is_empty() && lost.contains("The whole home"), "{archived}: {lost}");
    let (_, lost) = shown(json!(["."]), "BestEffort", "Delete");
    assert!(lost.contains("Everything, if for 3600 s in total no archive can be made"), "{lost}");
}

#[tokio::test]
async fn waiting_requests_leave_slots_for_others() {
    let shared = crate::http::tests::shared_with(|request| refusing(request, 500, "InternalError"));
    let id = ComputerId { namespace: "t".into(), name: "c".into(), uid: UID.into() };
    let free = shared.waiting.available_permits();
    assert!((1..=shared.slots.available_permits() / 4).contains(&free));
    let _all = shared.waiting.try_acquire_many(u32::try_from(free).unwrap()).unwrap();
    let asked = tokio::time::timeout(Duration::from_secs(5), finished(&shared, &id, Some(300))).await;
    assert_eq!(asked.unwrap(), "InProgress");
}

fn id() -> ComputerId {
    ComputerId { namespace: "t".into(), name: "c".into(), uid: UID.into() }
}

/// An API server on which the Computer is gone, with this record.
fn without_a_computer(phase: Option<&'static str>) -> Arc<Shared> {
    crate::http::tests::shared_with(move |request| match (request.uri().path(), phase) {
        (path, Some(phase)) if path.contains("computerrecords") => {
            let state = json!({"phase": phase, "credential": "Revoked",
                "deletion": {"deletedAt": "2026-11-27T10:00:00Z", "cause": "NamespaceDeleted", "handedOff": true}});
            (200, json!({"metadata": {"name": UID}, "spec": {"namespace": "t", "computer": "c", "state": state}}))
        }
        (path, None) if path.contains("computerrecords") => {
            (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}))
        }
        _ => (200, json!({"kind": "ComputerList", "metadata": {"resourceVersion": "1"}, "items": []})),
    })
}

/// Found in a hostile review: the namespace was released before the sessions were archived, and the response said that the deletion is complete.
#[tokio::test(start_paused = true)]
async fn a_deletion_is_complete_only_once_the_record_is_released() {
    for (phase, expected) in
        [(Some("Deleting"), "InProgress"), (Some("Live"), "InProgress"), (Some("Released"), "Completed"), (None, "Completed")]
    {
        assert_eq!(finished(&without_a_computer(phase), &id(), Some(5)).await, expected, "{phase:?}");
    }
}

/// Found in a hostile review: a webhook that rejected the change of the record with 404 was taken for the absence of the record.
#[tokio::test]
async fn a_rejected_revocation_is_never_204() {
    for (code, reason) in [(409, "Conflict"), (404, "NotFound"), (403, "Forbidden"), (500, "InternalError")] {
        let shared = crate::http::tests::shared_with(move |request| match (request.method(), request.uri().path()) {
            (&Method::PATCH, _) => refusing(&Request::delete("/").body(kube::client::Body::empty()).unwrap(), code, reason),
            (&Method::GET, path) if path.contains("computerrecords") => {
                let state = json!({"phase": "Live", "credential": "Live", "keyHash": "h"});
                (200, json!({"metadata": {"name": UID}, "spec": {"namespace": "t", "computer": "c", "state": state}}))
            }
            (&Method::DELETE, _) => (200, json!({"kind": "Status", "status": "Success"})),
            _ => refusing(request, code, reason),
        });
        let request = Request::delete(format!("/api/v0/computers/{}", id().encode())).header("authorization", "Bearer a.b.c");
        let response = crate::http::router(shared).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), 500, "{code} {reason}");
    }
}

/// The change is sent without reading the record first. A refusal is no failure if the record says that there is no key to revoke.
#[tokio::test]
async fn a_refused_revocation_is_204_only_if_the_record_shows_that_no_key_is_left() {
    let record = |computer: &str, credential: &str| {
        let state = json!({"phase": "Deleting", "credential": credential, "keyHash": "h"});
        (200, json!({"metadata": {"name": UID}, "spec": {"namespace": "t", "computer": computer, "state": state}}))
    };
    let missing = (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}));
    for (code, reason, found, expected) in [
        (404, "NotFound", missing.clone(), 204),
        (422, "Invalid", record("other", "Live"), 204),
        (403, "Forbidden", record("c", "Revoked"), 204),
        (422, "Invalid", record("c", "Live"), 500),
        (403, "Forbidden", (500, json!({"kind": "Status", "status": "Failure", "reason": "InternalError", "code": 500})), 500),
    ] {
        let shared = crate::http::tests::shared_with(move |request| match (request.method(), request.uri().path()) {
            (&Method::PATCH, _) => refusing(&Request::delete("/").body(kube::client::Body::empty()).unwrap(), code, reason),
            (&Method::GET, path) if path.contains("computerrecords") => found.clone(),
            (&Method::DELETE, _) => (200, json!({"kind": "Status", "status": "Success"})),
            _ => refusing(request, code, reason),
        });
        let request = Request::delete(format!("/api/v0/computers/{}", id().encode())).header("authorization", "Bearer a.b.c");
        let response = crate::http::router(shared).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), expected, "{code} {reason}");
    }
}

/// The operator creates the record between the change that finds none and the read after it (seen on a real API server).
#[tokio::test]
async fn a_record_that_is_created_during_the_deletion_is_revoked() {
    let changes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&changes);
    let shared = crate::http::tests::shared_with(move |request| match (request.method(), request.uri().path()) {
        (&Method::PATCH, path) if path.contains("computerrecords") && count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 => {
            (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}))
        }
        (_, path) if path.contains("computerrecords") => {
            let state = json!({"phase": "Live", "credential": "Live", "keyHash": "h"});
            (200, json!({"metadata": {"name": UID}, "spec": {"namespace": "t", "computer": "c", "state": state}}))
        }
        (&Method::DELETE, _) => (200, json!({"kind": "Status", "status": "Success"})),
        _ => refusing(request, 500, "InternalError"),
    });
    let request = Request::delete(format!("/api/v0/computers/{}", id().encode())).header("authorization", "Bearer a.b.c");
    let response = crate::http::router(shared).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!((response.status().as_u16(), changes.load(std::sync::atomic::Ordering::SeqCst)), (204, 2));
}
