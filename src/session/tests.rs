#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::archive::old_format::{OldManifest, OldSession};
use crate::archive::{Store, manifest_key};

/// An API server of Sessions that delays each response by a second.
#[derive(Default)]
struct Server {
    now: AtomicUsize,
    most: AtomicUsize,
    limits: Mutex<Vec<String>>,
    written: Mutex<Vec<(String, Value)>>,
}

impl Server {
    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
        let session = |name: &str, uid: &str, path: &str| {
            json!({
                "apiVersion": "computer-operator.dev/v1alpha1", "kind": "Session", "metadata": {"name": name, "uid": name},
                "spec": {"computerName": "c", "computerUID": uid, "path": path, "settings": {"a": "b"}},
            })
        };
        let answer = if *request.method() == Method::GET {
            self.limits.lock().push(query.clone());
            let (items, more) = if query.contains("continue=next") {
                (vec![session("two", "u0", "elsewhere")], "")
            } else {
                (vec![session("one", "u0", "a/one.jsonl"), session("other", "another", "a/one.jsonl")], "next")
            };
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"continue": more}, "items": items})
        } else {
            let body = request.into_body().collect_bytes().await.unwrap();
            let name = path.split('/').rev().nth(1).unwrap().to_owned();
            self.written.lock().push((name.clone(), serde_json::from_slice(&body).unwrap()));
            session(&name, "u0", "")
        };
        Response::new(Body::from(answer.to_string().into_bytes()))
    }
}

/// L3. Found in a security review: a namespace full of Sessions occupied a worker until all of them were written, one by one.
#[tokio::test(start_paused = true)]
async fn marking_sessions_never_blocks_a_worker_and_is_bounded() {
    let store = Arc::new(Store::new(Arc::new(object_store::memory::InMemory::new())));
    let manifest = old(&[entry("a/one", '1')]);
    store.put_once(&manifest_key("u0"), serde_json::to_vec(&manifest).unwrap()).await.unwrap();
    let (checked, _) = mpsc::channel(1);
    let server = Arc::new(Server::default());
    let seen = Arc::clone(&server);
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = Arc::clone(&seen);
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let marker = Marker::new(Client::new(service, "t"), Arc::new(Archives::new(store, checked)));
    let began = tokio::time::Instant::now();
    let deleted: jiff::Timestamp = "2026-11-28T17:00:00Z".parse().unwrap();
    for n in 0..20 {
        marker.mark("team".to_owned(), format!("u{n}"), Time(deleted));
    }
    assert!(began.elapsed().is_zero(), "mark() waited");
    let mut tasks = std::mem::take(&mut *marker.tasks.lock());
    while tasks.join_next().await.is_some() {}
    assert_eq!(server.most.load(Ordering::SeqCst), 2);
    assert!(server.limits.lock().iter().all(|query| query.contains("limit=10")));
    let written = server.written.lock().clone();
    let status = |n: usize| written[n].1[1]["value"].clone();
    assert_eq!(
        written.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["one", "two"],
        "only Sessions of the computer are written"
    );
    assert_eq!(written[0].1[0], json!({"op": "test", "path": "/metadata/uid", "value": "one"}), "S4");
    assert_eq!((&status(0)["phase"], &status(0)["archiveDigest"]), (&json!("Archived"), &json!("1".repeat(64))));
    assert_eq!((&status(1)["phase"], status(1).get("archiveDigest")), (&json!("Ended"), None), "none of its files were archived");
    assert_eq!(status(0)["completedTime"], "2026-11-28T17:00:00Z");
}

fn old(sessions: &[OldSession]) -> OldManifest {
    let manifest = json!({"version": 1, "computer": {"namespace": "t", "name": "c", "uid": "u0"}, "createdAt": 1, "sessionPaths": [],
        "sessions": sessions, "problems": [], "problemCount": 0});
    serde_json::from_value(manifest).unwrap()
}

fn entry(id: &str, digest: char) -> OldSession {
    OldSession { id: id.to_owned(), files: 1, bytes: 1, digest: digest.to_string().repeat(64), size: 1, last_modified: 0 }
}

#[tokio::test]
async fn a_path_belongs_to_the_session_with_the_longest_matching_id() {
    let archive = Archive::Old(Arc::new(old(&[entry("a/x", '1'), entry("a/x.y/z", '2'), entry("b", '3')])));
    let store = Store::new(Arc::new(object_store::memory::InMemory::new()));
    let yes = [("a/x", '1'), ("a/x.jsonl", '1'), ("a/x/deep/in", '1'), ("a/x.y/z.jsonl", '2'), ("a/x.y/other", '1'), ("b.é/é.ü", '3')];
    let no = ["a/xy", "a", "", "c.d/e"];
    let paths = yes.iter().map(|(path, _)| *path).chain(no);
    let mut places = Places::of(&store, "archives/u0/manifest.json", &archive, paths).await.unwrap();
    let first = |places: &Places, path: &str| places.holding(path).and_then(|(_, digest)| digest.chars().next());
    for (path, digest) in yes {
        assert_eq!(first(&places, path), Some(digest), "{path}");
    }
    for path in no {
        assert_eq!(first(&places, path), None, "{path}");
    }
    places.found.insert(".".to_owned(), "4".to_owned());
    assert_eq!(first(&places, "c.d/e"), Some('4'));
}

/// S12: of two deletions of one UID, the key once led to the older archive, with the digest of the newer one.
#[tokio::test]
async fn the_key_of_an_archived_session_is_that_of_the_manifest_that_lists_it() {
    let archived = crate::archive::test_archives::archived(&[("s/a.b.jsonl", b"one")]).await;
    let places =
        Places::of(&archived.store, "archives/u/manifest-claim.json", &archived.archive, ["s/a.b.jsonl"].into_iter()).await.unwrap();
    assert_eq!(places.holding("s/a.b.jsonl").unwrap().0, "archives/u/manifest-claim.json");
    assert_eq!(crate::archive::manifest::ids_of_path(&"a.".repeat(500), false).count(), 2, "dots are no candidates");
}
