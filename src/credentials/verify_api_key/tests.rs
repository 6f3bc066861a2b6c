//! The decision, and verification against an API server that rejects requests, does not respond, or sends invalid responses.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Barrier;

use super::*;

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";
const OTHER: &str = "00000000-e89b-12d3-a456-426614174000";

fn token() -> ApiToken {
    let id = ApiKeyId { namespace: "t".into(), name: "k".into(), uid: UID.into(), service_account: "ci".into() };
    ApiToken::new(id, [3; 32])
}

fn record(token_state: &Value) -> Value {
    json!({"metadata": {"name": UID}, "spec": {"namespace": "t", "apiKey": "k", "serviceAccountName": "ci", "token": token_state}})
}

fn live_token(more: &Value) -> Value {
    let mut token = json!({"state": "Live", "hash": token().hash(), "serviceAccountUID": "account"});
    more.as_object().unwrap().iter().for_each(|(k, v)| token[k] = v.clone());
    token
}

fn key(meta: &Value, spec: &Value) -> Value {
    let mut key = json!({"metadata": {"name": "k", "namespace": "t", "uid": UID}, "spec": {"serviceAccountName": "ci"}});
    meta.as_object().unwrap().iter().for_each(|(k, v)| key["metadata"][k] = v.clone());
    spec.as_object().unwrap().iter().for_each(|(k, v)| key["spec"][k] = v.clone());
    key
}

/// The objects in the order of the reads: record, `ApiKey`, namespace, ServiceAccount; `None` if not found.
type World = [Option<Value>; 4];

fn world() -> World {
    [
        Some(record(&live_token(&json!({})))),
        Some(key(&json!({}), &json!({}))),
        Some(json!({"metadata": {"name": "t"}, "status": {"phase": "Active"}})),
        Some(json!({"metadata": {"name": "ci", "uid": "account"}})),
    ]
}

fn ask(world: World) -> Result<Verified, Denied> {
    fn parsed<T: serde::de::DeserializeOwned>(value: Option<Value>) -> Option<T> {
        value.map(|v| serde_json::from_value(v).unwrap())
    }
    let [record, key, namespace, account] = world;
    let found = Found { record: parsed(record), key: parsed(key), namespace: Arc::new(parsed(namespace)), account: parsed(account) };
    decide(&token(), &found, "2026-06-01T00:00:00Z".parse().unwrap())
}

fn with(place: usize, value: Option<Value>) -> World {
    let mut world = world();
    world[place] = value;
    world
}

#[test]
fn any_sign_of_revocation_or_deletion_denies() {
    let (past, deleted) = (json!({"expiresAt": "2026-06-01T00:00:00Z"}), json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}));
    for (world, denied) in [
        (with(0, None), Denied::NoRecord),
        (with(0, Some(record(&live_token(&json!({"hash": ""}))))), Denied::WrongSecret),
        (with(0, Some(record(&live_token(&json!({"hash": ApiToken::new(token().id, [4; 32]).hash()}))))), Denied::WrongSecret),
        (with(0, Some(record(&live_token(&json!({"state": "Revoked"}))))), Denied::Revoked),
        (with(0, Some(record(&live_token(&json!({"state": "Pending"}))))), Denied::NotLive),
        (with(0, Some(record(&live_token(&past)))), Denied::Expired),
        (with(0, Some(record(&live_token(&json!({"rotation": "2"}))))), Denied::Rotated),
        (with(0, Some(record(&live_token(&json!({"serviceAccountUID": "another"}))))), Denied::ServiceAccountGone),
        (with(1, None), Denied::ApiKeyGone),
        (with(1, Some(key(&json!({"uid": OTHER}), &json!({})))), Denied::ApiKeyGone),
        (with(1, Some(key(&deleted, &json!({})))), Denied::ApiKeyDeleting),
        (with(1, Some(key(&json!({}), &past))), Denied::Expired),
        (with(1, Some(key(&json!({}), &json!({"rotation": "2"})))), Denied::Rotated),
        (with(1, Some(key(&json!({}), &json!({"serviceAccountName": "root"})))), Denied::Rotated),
        (with(2, None), Denied::NamespaceTerminating),
        (with(2, Some(json!({"metadata": {"name": "t"}, "status": {"phase": "Terminating"}}))), Denied::NamespaceTerminating),
        (with(2, Some(json!({"metadata": deleted, "status": {"phase": "Active"}}))), Denied::NamespaceTerminating),
        (with(3, None), Denied::ServiceAccountGone),
        (with(3, Some(json!({"metadata": {"uid": "re-created"}}))), Denied::ServiceAccountGone),
        (with(3, Some(json!({"metadata": {"uid": "account", "deletionTimestamp": "2026-01-01T00:00:00Z"}}))), Denied::ServiceAccountGone),
    ] {
        assert_eq!(ask(world.clone()), Err(denied), "{world:?}");
    }
    assert!(ask(world()).is_ok());
    let later = json!({"expiresAt": "2026-06-01T00:00:01Z"});
    let mut both = with(0, Some(record(&live_token(&later))));
    both[1] = Some(key(&json!({}), &later));
    assert!(ask(both).is_ok(), "a token is valid until its expiry");
}

#[test]
fn a_token_cannot_be_changed_to_another_namespace_name_or_account() {
    for changed in [
        json!({"namespace": "other", "apiKey": "k", "serviceAccountName": "ci"}),
        json!({"namespace": "t", "apiKey": "other", "serviceAccountName": "ci"}),
        json!({"namespace": "t", "apiKey": "k", "serviceAccountName": "root"}),
    ] {
        let mut theirs = record(&live_token(&json!({})));
        changed.as_object().unwrap().iter().for_each(|(k, v)| theirs["spec"][k] = v.clone());
        assert_eq!(ask(with(0, Some(theirs))), Err(Denied::WrongSecret));
    }
}

#[derive(Clone)]
enum Answer {
    Status(u16, String),
    Hang,
}

/// A client whose server responds only after all four requests have arrived.
fn client(answers: [Answer; 4]) -> Client {
    let paths = [
        format!("/apis/computer-operator.dev/v1alpha1/namespaces/op/apikeyrecords/{UID}"),
        "/apis/computer-operator.dev/v1alpha1/namespaces/t/apikeys/k".to_owned(),
        "/api/v1/namespaces/t".to_owned(),
        "/api/v1/namespaces/t/serviceaccounts/ci".to_owned(),
    ];
    let answers: Arc<HashMap<String, Answer>> = Arc::new(paths.into_iter().zip(answers).collect());
    let together = Arc::new(Barrier::new(4));
    Client::new(
        tower::service_fn(move |request: Request<Body>| {
            let (answers, together) = (Arc::clone(&answers), Arc::clone(&together));
            async move {
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
        }),
        "op",
    )
}

fn answers() -> [Answer; 4] {
    world().map(|v| Answer::Status(200, v.unwrap().to_string()))
}

#[tokio::test(start_paused = true)]
async fn a_live_token_authenticates_with_four_parallel_reads() {
    let verified = verify_api_key(&client(answers()), "op", &token().token()).await.unwrap().unwrap();
    assert_eq!((verified.id, verified.service_account_uid.as_str()), (token().id, "account"));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_of_any_read_never_authenticates() {
    let refused = |code: u16| Answer::Status(code, json!({"kind": "Status", "reason": "x", "message": "x", "code": code}).to_string());
    for place in 0..4 {
        for unknown in [
            refused(401),
            refused(403),
            refused(500),
            Answer::Status(404, "404 page not found".to_owned()),
            Answer::Status(200, "{".to_owned()),
            Answer::Status(200, "<html>a proxy</html>".to_owned()),
            Answer::Hang,
        ] {
            let mut answers = answers();
            answers[place] = unknown;
            assert!(verify_api_key(&client(answers), "op", &token().token()).await.is_err(), "read {place}");
        }
    }
}

#[tokio::test]
async fn invalid_text_is_denied_without_a_request() {
    for text in ["", "coa_", "coa_x.y", "Bearer abc", "../../secrets"] {
        assert_eq!(verify_api_key(&client(answers()), "op", text).await.unwrap(), Err(Denied::Malformed));
    }
}
