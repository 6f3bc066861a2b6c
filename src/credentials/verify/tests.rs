//! Verification against an API server that rejects requests, does not respond, or sends invalid responses.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Barrier;

use super::*;

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

/// Responses to the three reads, in this order: record, Computer, namespace.
type Answers = [Answer; 3];

#[derive(Clone)]
enum Answer {
    Status(u16, String),
    Hang,
}

fn key() -> Key {
    Key::new(ComputerId { namespace: "t".into(), name: "c".into(), uid: UID.into() }, [3; 32])
}

fn says(value: &Value) -> Answer {
    Answer::Status(200, value.to_string())
}

fn refused(code: u16, reason: &str) -> Answer {
    Answer::Status(code, json!({"kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": code}).to_string())
}

fn record(state: &Value) -> Answer {
    says(&json!({"metadata": {"name": UID}, "spec": {"namespace": "t", "computer": "c", "state": state}}))
}

fn computer(uid: &str, deleted: Option<&str>) -> Answer {
    says(&json!({"metadata": {"name": "c", "namespace": "t", "uid": uid, "deletionTimestamp": deleted}, "spec": {}}))
}

fn namespace(phase: &str, deleted: Option<&str>) -> Answer {
    says(&json!({"metadata": {"name": "t", "deletionTimestamp": deleted}, "status": {"phase": phase}}))
}

fn live() -> Answers {
    [record(&json!({"credential": "Live", "keyHash": key().hash()})), computer(UID, None), namespace("Active", None)]
}

fn with(place: usize, answer: Answer) -> Answers {
    let mut answers = live();
    answers[place] = answer;
    answers
}

/// A client whose server counts requests and responds only after all three have arrived.
fn client(answers: Answers) -> (Client, Arc<AtomicUsize>) {
    let paths = [
        format!("/apis/computer-operator.dev/v1alpha1/namespaces/op/computerrecords/{UID}"),
        "/apis/computer-operator.dev/v1alpha1/namespaces/t/computers/c".to_owned(),
        "/api/v1/namespaces/t".to_owned(),
    ];
    let answers: Arc<HashMap<String, Answer>> = Arc::new(paths.into_iter().zip(answers).collect());
    let (together, asked) = (Arc::new(Barrier::new(3)), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (answers, together, asked) = (Arc::clone(&answers), Arc::clone(&together), Arc::clone(&asked));
        async move {
            asked.fetch_add(1, Ordering::SeqCst);
            assert!(
                !request.uri().query().is_some_and(|q| q.contains("resourceVersion")),
                "a read that may be served from the API server's cache"
            );
            together.wait().await;
            match answers[request.uri().path()].clone() {
                Answer::Status(code, body) => {
                    Ok::<_, Infallible>(Response::builder().status(code).body(Body::from(body.into_bytes())).unwrap())
                }
                Answer::Hang => std::future::pending().await,
            }
        }
    });
    (Client::new(service, "op"), count)
}

async fn ask(answers: Answers, key: &Key) -> Result<Result<VerifiedKey, Denied>, CallError> {
    verify(&client(answers).0, "op", &key.token()).await
}

#[tokio::test(start_paused = true)]
async fn a_live_key_authenticates_with_three_parallel_reads() {
    let (client, asked) = client(live());
    assert_eq!(
        verify(&client, "op", &key().token()).await.unwrap(),
        Ok(VerifiedKey { computer: key().computer, rights: KeyRights::default() })
    );
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn any_sign_of_revocation_or_deletion_denies() {
    let hash = key().hash();
    let deleted = Some("2026-01-01T00:00:00Z");
    for (answers, denied) in [
        (with(0, refused(404, "NotFound")), Denied::NoRecord),
        (with(0, record(&json!({"credential": "Live"}))), Denied::WrongSecret),
        (with(0, record(&json!({"credential": "Live", "keyHash": ""}))), Denied::WrongSecret),
        (with(0, record(&json!({"credential": "Revoked", "keyHash": hash}))), Denied::Revoked),
        (with(0, record(&json!({"credential": "Pending", "keyHash": hash}))), Denied::NotLive),
        (with(0, record(&json!({"keyHash": hash}))), Denied::NotLive),
        (with(1, refused(404, "NotFound")), Denied::ComputerGone),
        (with(1, computer("00000000-e89b-12d3-a456-426614174000", None)), Denied::ComputerGone),
        (with(1, computer(UID, deleted)), Denied::ComputerDeleting),
        (with(2, refused(404, "NotFound")), Denied::NamespaceTerminating),
        (with(2, namespace("Terminating", None)), Denied::NamespaceTerminating),
        (with(2, namespace("Active", deleted)), Denied::NamespaceTerminating),
    ] {
        assert_eq!(ask(answers, &key()).await.unwrap(), Err(denied));
    }
    let wrong = Key::new(key().computer, [4; 32]);
    assert_eq!(ask(live(), &wrong).await.unwrap(), Err(Denied::WrongSecret));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_of_any_read_never_authenticates() {
    for place in 0..3 {
        for unknown in [
            refused(401, "Unauthorized"),
            refused(403, "Forbidden"),
            refused(500, "InternalError"),
            Answer::Status(404, "404 page not found".to_owned()),
            Answer::Status(200, "{".to_owned()),
            Answer::Status(200, "<html>a proxy</html>".to_owned()),
            Answer::Hang,
        ] {
            assert!(ask(with(place, unknown), &key()).await.is_err(), "read {place}");
        }
    }
}

#[tokio::test]
async fn invalid_text_is_denied_without_a_request() {
    let (client, asked) = client(live());
    for token in ["", "cok_", "cok_x.y", "Bearer abc", "../../secrets"] {
        assert_eq!(verify(&client, "op", token).await.unwrap(), Err(Denied::Malformed));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_key_with_another_computers_name_does_not_authenticate() {
    // The hash binds secret and UID; the UID of the live Computer proves namespace and name.
    let moved = Key::new(ComputerId { namespace: "t".into(), name: "c".into(), uid: UID.into() }, [3; 32]);
    let theirs = computer("99999999-e89b-12d3-a456-426614174000", None);
    assert_eq!(ask(with(1, theirs), &moved).await.unwrap(), Err(Denied::ComputerGone));
}

/// The answers for a computer with another rotation than the one that its key was issued for, and for the key before the last rotation.
fn rotated(record_rotation: &str, spec_rotation: &str, overlap: i64, former_until: Option<&str>) -> Answers {
    let mut state = json!({"credential": "Live", "keyHash": key().hash(), "keyRotation": record_rotation});
    if let Some(until) = former_until {
        state["keyHash"] = json!(Key::new(key().computer, [4; 32]).hash());
        state["formerKey"] = json!({"hash": key().hash(), "until": until});
    }
    let spec = json!({"key": {"rotation": spec_rotation, "overlapSeconds": overlap}});
    let computer = says(&json!({"metadata": {"name": "c", "namespace": "t", "uid": UID}, "spec": spec}));
    [record(&state), computer, namespace("Active", None)]
}

#[tokio::test(start_paused = true)]
async fn a_rotation_ends_the_old_key_at_once_or_after_its_overlap() {
    let (past, future) = (Some("2026-01-01T00:00:00Z"), Some("2100-01-01T00:00:00Z"));
    for (answers, expected, what) in [
        (rotated("1", "1", 0, None), Ok(key().computer), "no rotation"),
        (rotated("1", "2", 0, None), Err(Denied::Rotated), "the operator has not issued the new key yet"),
        (rotated("1", "2", 60, None), Ok(key().computer), "the same with an overlap"),
        (rotated("2", "2", 60, future), Ok(key().computer), "the old key in the overlap"),
        (rotated("2", "2", 60, past), Err(Denied::Rotated), "the old key after the overlap"),
        (rotated("2", "2", 0, future), Err(Denied::Rotated), "the overlap was taken back"),
        (rotated("2", "3", 0, future), Err(Denied::Rotated), "another rotation without an overlap"),
    ] {
        assert_eq!(ask(answers, &key()).await.unwrap().map(|key| key.computer), expected, "{what}");
    }
}

/// The rights are in the record that is read anyway, so they need no further request, and an older record has none.
#[tokio::test]
async fn a_key_has_the_rights_of_its_record() {
    for (words, allowed) in [(json!(null), 5), (json!([]), 0), (json!(["get", "sessions"]), 2), (json!(["get", "fly"]), 1)] {
        let state = json!({"credential": "Live", "keyHash": key().hash(), "keyAllow": words});
        let (client, asked) = client(with(0, record(&state)));
        let rights = verify(&client, "op", &key().token()).await.unwrap().unwrap().rights;
        let count = crate::resources::KeyRight::ALL.into_iter().filter(|right| rights.allow(*right)).count();
        assert_eq!((count, asked.load(Ordering::SeqCst)), (allowed, 3), "{words}");
    }
}
