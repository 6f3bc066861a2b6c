//! How many requests to the Kubernetes API an operation sends, and how many times it waits for one: time is paused, and each round trip takes the same
//! time. Fewer must never mean that an answer is older than the request that uses it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use kube::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tower::ServiceExt as _;

use super::Shared;
use crate::credentials::{ApiKeyId, ApiToken, ComputerId, Key};

const UID: &str = "0b4f9f3e-5d1c-4a53-8a0e-3a9c0f8f6f11";
const ROUND_TRIP: Duration = Duration::from_millis(10);
const JWT: &str = "a.b.c";

/// A Kubernetes API with one computer. It decides when a request arrives, and answers after a round trip.
#[derive(Clone, Default)]
struct Server {
    seen: Arc<Mutex<Vec<&'static str>>>,
    /// The computer's key is revoked.
    revoked: Arc<AtomicBool>,
    /// Reviews deny, and a computer is read slowly.
    denies: bool,
}

fn id(name: &str) -> ComputerId {
    ComputerId { namespace: "t".into(), name: name.into(), uid: UID.into() }
}

fn key(name: &str) -> Key {
    Key::new(id(name), [7; 32])
}

fn api_token() -> ApiToken {
    let id = ApiKeyId { namespace: "t".into(), name: "k".into(), uid: UID.into(), service_account: "ci".into() };
    ApiToken::new(id, [7; 32])
}

/// What a request asks for.
fn name(request: &Request<kube::client::Body>) -> &'static str {
    let path = request.uri().path();
    let ends = |part: &str| path.contains(part);
    match *request.method() {
        Method::DELETE => "delete",
        Method::PATCH if ends("/computerrecords/") => "revoke",
        Method::PATCH => "change",
        Method::POST if ends("tokenreviews") => "token",
        Method::POST if ends("subjectaccessreviews") => "review",
        Method::POST => "create",
        _ if ends("/computerrecords/") => "record",
        _ if ends("/computerrecords") => "records",
        _ if ends("/apikeyrecords/") => "key record",
        _ if ends("/apikeys/") => "key",
        _ if ends("/serviceaccounts/") => "account",
        _ if ends("/sessions/") => "session",
        _ if ends("/computers/") => "computer",
        _ => "namespace",
    }
}

impl Server {
    fn answer(&self, asked: &str, path: &str) -> (u16, Value) {
        let object = path.rsplit('/').next().unwrap_or_default();
        let metadata = json!({"namespace": "t", "name": object, "uid": UID, "resourceVersion": "1"});
        let allowed = !self.denies;
        let spec = match asked {
            "token" => {
                let user = json!({"authenticated": true, "audiences": ["computer-operator"], "user": {"username": "anna"}});
                return (201, json!({"spec": {}, "status": user}));
            }
            "review" => return (201, json!({"spec": {}, "status": {"allowed": allowed}})),
            "delete" => return (200, json!({"kind": "Status", "status": "Success"})),
            "record" | "revoke" => {
                let credential = if self.revoked.load(Ordering::SeqCst) { "Revoked" } else { "Live" };
                json!({"namespace": "t", "computer": "c", "state": {"phase": "Live", "credential": credential, "keyHash": key("c").hash()}})
            }
            "key record" => json!({"namespace": "t", "apiKey": "k", "serviceAccountName": "ci", "token": {
                "state": "Live", "hash": api_token().hash(), "serviceAccountUID": UID}}),
            "key" => {
                let used = json!({"lastUsedTime": jiff::Timestamp::now().to_string()});
                return (200, json!({"metadata": metadata, "spec": {"serviceAccountName": "ci"}, "status": used}));
            }
            "records" => return (200, json!({"metadata": {}, "items": []})),
            "session" | "create" => json!({"computerName": "c", "computerUID": UID}),
            _ => json!({}),
        };
        (if asked == "create" { 201 } else { 200 }, json!({"metadata": metadata, "spec": spec}))
    }

    fn shared(&self) -> Arc<Shared> {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let asked = name(&request);
            server.seen.lock().unwrap().push(asked);
            let (code, body) = server.answer(asked, request.uri().path());
            let slow = server.denies && asked == "computer";
            async move {
                sleep(ROUND_TRIP * if slow { 500 } else { 1 }).await;
                let body = kube::client::Body::from(body.to_string().into_bytes());
                Ok::<_, std::convert::Infallible>(Response::builder().status(code).body(body).unwrap())
            }
        });
        crate::http::tests::shared_by(Client::new(service, "default"))
    }

    /// The requests since the last call, sorted.
    fn seen(&self) -> Vec<&'static str> {
        let mut seen = std::mem::take(&mut *self.seen.lock().unwrap());
        seen.sort_unstable();
        seen
    }

    fn count(&self, asked: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| **seen == asked).count()
    }
}

async fn send(shared: Arc<Shared>, method: Method, path: String, token: String) -> StatusCode {
    let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"));
    let request = request.header("content-type", "application/json");
    let body = format!(r#"{{"computerId": "{}"}}"#, id("c").encode());
    crate::http::router(shared).oneshot(request.body(Body::from(body)).unwrap()).await.unwrap().status()
}

fn computer(name: &str) -> String {
    format!("/api/v0/computers/{}", id(name).encode())
}

#[tokio::test(start_paused = true)]
async fn an_operation_waits_for_no_request_that_it_does_not_need() {
    let server = Server::default();
    let shared = server.shared();
    let (jwt, own, api) = (JWT.to_owned(), key("c").token(), api_token().token());
    let (at, sessions) = (computer("c"), "/api/v0/sessions".to_owned());
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    let session = format!("{sessions}/{}", id("c").encode());
    for (method, path, token, code, round_trips, requests) in [
        (&get, &at, &jwt, 200, 2, "computer review token"),
        (&delete, &at, &jwt, 204, 4, "computer delete review revoke token"),
        (&get, &at, &own, 200, 1, "computer namespace record"),
        (&delete, &at, &own, 204, 3, "computer delete namespace record revoke"),
        (&get, &at, &api, 200, 2, "account computer key key record namespace review"),
        (&delete, &at, &api, 204, 4, "account computer delete key key record namespace review revoke"),
        (&get, &"/api/v0/computers".to_owned(), &own, 200, 1, "computer namespace record"),
        (&get, &"/api/v0/computers/name/c".to_owned(), &own, 200, 1, "computer namespace record"),
        (&get, &format!("{at}/deletion"), &jwt, 404, 2, "computer record review token"),
        (&get, &"/api/v0/deletions?namespace=t".to_owned(), &jwt, 200, 4, "namespace records review review token"),
        (&get, &session, &jwt, 200, 2, "review session token"),
        (&post, &sessions, &jwt, 201, 3, "computer create review review token"),
    ] {
        let began = Instant::now();
        let answered = send(Arc::clone(&shared), method.clone(), path.clone(), token.clone()).await;
        let waited = began.elapsed().as_millis() / ROUND_TRIP.as_millis();
        assert_eq!((answered.as_u16(), waited, server.seen().join(" ").as_str()), (code, round_trips, requests), "{method} {path}");
    }
}

/// What is read before the review has ended must not show whether it exists.
#[tokio::test(start_paused = true)]
async fn a_refusal_takes_as_long_as_the_reviews_whatever_is_read_meanwhile() {
    let server = Server { denies: true, ..Server::default() };
    let shared = server.shared();
    for (method, reviews) in [(Method::DELETE, 1), (Method::GET, 1)] {
        let began = Instant::now();
        let answered = send(Arc::clone(&shared), method.clone(), computer("c"), JWT.to_owned()).await;
        assert_eq!((answered, began.elapsed()), (StatusCode::NOT_FOUND, ROUND_TRIP * (1 + reviews)), "{method}");
        assert_eq!(server.count("review"), usize::try_from(reviews).unwrap(), "{method}");
        assert!(!server.seen().contains(&"delete"), "{method}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_at_the_same_time_share_the_verification_of_their_token() {
    let server = Server::default();
    let shared = server.shared();
    let mut all = JoinSet::new();
    for _ in 0..100 {
        all.spawn(send(Arc::clone(&shared), Method::GET, computer("c"), JWT.to_owned()));
    }
    assert!(all.join_all().await.into_iter().all(|code| code == StatusCode::OK));
    assert_eq!((server.count("token"), server.count("review"), server.count("computer")), (2, 100, 100));
    // Others with other keys share what is the same for them.
    let (server, mut all) = (Server::default(), JoinSet::new());
    let shared = server.shared();
    for i in 0..100 {
        let name = format!("c{i}");
        all.spawn(send(Arc::clone(&shared), Method::GET, computer(&name), key(&name).token()));
    }
    assert!(all.join_all().await.into_iter().all(|code| code == StatusCode::OK));
    assert_eq!((server.count("namespace"), server.count("record"), server.count("computer")), (2, 100, 100));
}

/// S2: whatever is shared, a request is never authenticated by what was read before it arrived.
#[tokio::test(start_paused = true)]
async fn a_request_after_the_revocation_is_not_authenticated_by_a_verification_that_runs() {
    let server = Server::default();
    let shared = server.shared();
    let ask = || tokio::spawn(send(Arc::clone(&shared), Method::GET, computer("c"), key("c").token()));
    let mut before = vec![ask()];
    sleep(ROUND_TRIP / 2).await;
    before.push(ask());
    sleep(ROUND_TRIP / 4).await;
    server.revoked.store(true, Ordering::SeqCst);
    let after = [ask(), ask()];
    assert_eq!(before.remove(0).await.unwrap(), StatusCode::OK, "it was answered with what was true when it arrived");
    for late in after {
        assert_eq!(late.await.unwrap(), StatusCode::UNAUTHORIZED, "S2");
    }
}
