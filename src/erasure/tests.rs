//! Tests of the controller: what it reads live, when it refuses, and what its status says. The order in the store is tested in `archive/removal/tests.rs`.

use axum::http::{Request as HttpRequest, Response};
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use kube::client::Body;
use object_store::ObjectStore as _;
use object_store::memory::InMemory;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::archive::holds::{Stop, Subject};
use crate::archive::test_archives::{SMALL, home, noise, packed, put};
use crate::archive::{Unreadable, receipt_key};
use crate::resources::reasons::Reason;

mod removing;

const UID: &str = "11111111-2222-3333-4444-55555555555a";
const NAMESPACE_UID: &str = "99999999-2222-3333-4444-555555555555";

/// A cluster that answers from these objects.
#[derive(Clone)]
struct Cluster {
    erasure: Option<Value>,
    record: Result<Value, u16>,
    computer: Result<Value, u16>,
    /// Pages of the list of holds, or an error.
    holds: Result<Vec<Vec<Value>>, u16>,
    /// Whether it does not answer.
    silent: bool,
    /// The erasure is deleted when the holds are read for the n-th time.
    withdrawn_at: Option<usize>,
    /// The computer counts as not released when the holds were read for the n-th time.
    restored_at: Option<usize>,
    /// Whether no status can be written.
    unwritable: bool,
    /// `Blocked` of the erasure at each read of the holds, and the paths of all requests.
    blocked: Vec<String>,
    paths: Vec<String>,
    /// How often a status was written, and how often holds were read.
    written: usize,
    asked: usize,
}

type Shared = Arc<Mutex<Cluster>>;

fn failure(code: u16) -> (u16, Value) {
    let reason = if code == 404 { "NotFound" } else { "InternalError" };
    // 410: a path that is not served has no reason, as when the kind is not installed.
    let (code, reason) = if code == 410 { (404, "") } else { (code, reason) };
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "message": "no", "code": code}),
    )
}

impl Cluster {
    fn answer(&mut self, path: &str, query: &str, change: Option<json_patch::Patch>) -> (u16, Value) {
        self.paths.push(path.to_owned());
        let object = |found: Result<Value, u16>| found.map_or_else(failure, |object| (200, object));
        if path.ends_with("/archiveholds") {
            self.asked += 1;
            let conditions =
                self.erasure.iter().flat_map(|erasure| erasure["status"]["conditions"].as_array().cloned().unwrap_or_default());
            let blocked = conditions.filter(|c| c["type"] == "Blocked").find_map(|c| c["status"].as_str().map(str::to_owned));
            self.blocked.push(blocked.unwrap_or_default());
            if self.restored_at == Some(self.asked) {
                self.record = Ok(record("Live", "box", None));
            }
            if self.withdrawn_at == Some(self.asked) {
                self.erasure = None;
            }
            let page = query.split('&').find_map(|part| part.strip_prefix("continue=")).map_or(0, |n| n.parse().unwrap());
            let listed = self.holds.clone().and_then(|pages| match pages.get(page) {
                Some(items) => Ok((items.clone(), page + 1 < pages.len())),
                None => Err(500),
            });
            let list = |(items, more): (Vec<Value>, bool)| {
                let next = if more { (page + 1).to_string() } else { String::new() };
                json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ArchiveHoldList", "metadata": {"continue": next}, "items": items})
            };
            return object(listed.map(list));
        }
        if path.contains("/computerrecords/") {
            return object(self.record.clone());
        }
        if path.contains("/computers/") {
            return object(self.computer.clone());
        }
        let Some(erasure) = self.erasure.as_mut().filter(|_| path.contains("/archiveerasures/")) else { return failure(404) };
        if let Some(change) = change {
            if self.unwritable {
                return failure(500);
            }
            self.written += 1;
            if json_patch::patch(erasure, &change).is_err() {
                return failure(422);
            }
            erasure["metadata"]["resourceVersion"] = json!((self.written + 1).to_string());
        }
        (200, erasure.clone())
    }
}

fn client(cluster: &Shared) -> Client {
    let cluster = Arc::clone(cluster);
    let service = tower::service_fn(move |request: HttpRequest<Body>| {
        let cluster = Arc::clone(&cluster);
        async move {
            let (parts, body) = request.into_parts();
            let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
            let bytes = body.collect_bytes().await.unwrap();
            let silent = cluster.lock().silent && path.ends_with("/archiveholds");
            if silent {
                std::future::pending::<()>().await;
            }
            let (code, value) = cluster.lock().answer(&path, &query, serde_json::from_slice(&bytes).ok());
            Ok::<_, kube::Error>(Response::builder().status(code).body(Body::from(value.to_string().into_bytes())).unwrap())
        }
    });
    Client::new(service, "op")
}

fn hold(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ArchiveHold", "metadata": {"name": name}, "spec": spec})
}

fn of_computer(name: &str, uid: &str) -> Value {
    hold(name, &json!({"computerUID": uid, "matter": "case 7", "reason": "because of case 7"}))
}

fn record(phase: &str, computer: &str, store_key: Option<&str>) -> Value {
    let receipt = json!({"storeKey": store_key, "digest": "d", "at": "2026-01-01T00:01:00.000000Z"});
    let deletion = json!({"deletedAt": "2026-01-01T00:00:00Z", "cause": "ComputerDeleted", "receipt": receipt});
    let state = json!({"phase": phase, "credential": "Revoked", "deletion": deletion});
    json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerRecord", "metadata": {"name": UID},
        "spec": {"namespace": "team", "computer": computer, "state": state}})
}

fn released() -> Value {
    record("Released", "box", Some("receipts/u.json"))
}

/// A released computer, its archive and receipt, and an erasure.
struct World {
    cluster: Shared,
    objects: Arc<InMemory>,
    reconciler: Reconciler,
    now: Arc<Mutex<Timestamp>>,
}

impl World {
    async fn new() -> Self {
        let objects = Arc::new(InMemory::new());
        let store = Arc::new(Store::new(Arc::<InMemory>::clone(&objects)));
        let home = home(&[("s/a.jsonl", &noise(20_000, 1)), ("s/b.jsonl", b"two")]);
        let mut packed = packed(home.path(), &["s"], Unreadable::Block, SMALL);
        let computer = &mut packed.manifest.computer;
        (computer.namespace, computer.name, computer.uid) = ("team".to_owned(), "box".to_owned(), UID.to_owned());
        put(&store, UID, &packed).await;
        let digest = hex::encode(Sha256::digest(serde_json::to_vec(&packed.manifest).unwrap()));
        let receipt = json!({"computer": {"namespace": "team", "namespaceUid": NAMESPACE_UID, "name": "box", "uid": UID},
            "writtenAt": "2026-01-01T00:01:00.000000Z", "archive": {"manifestDigest": digest}});
        store.put_once(&receipt_key(UID), receipt.to_string().into_bytes()).await.unwrap();
        let erasure = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ArchiveErasure",
            "metadata": {"name": "e", "uid": "e-uid", "resourceVersion": "1", "generation": 1, "creationTimestamp": "2026-01-02T00:00:00Z"},
            "spec": {"computer": {"namespace": "team", "name": "box", "uid": UID}, "requestedBy": "ann", "reason": "request 7 of the owner"}});
        let cluster = Cluster {
            erasure: Some(erasure),
            record: Ok(released()),
            computer: Err(404),
            holds: Ok(vec![vec![]]),
            silent: false,
            withdrawn_at: None,
            restored_at: None,
            unwritable: false,
            blocked: vec![],
            paths: vec![],
            written: 0,
            asked: 0,
        };
        let cluster = Arc::new(Mutex::new(cluster));
        let client = client(&cluster);
        let holds = Arc::new(LiveHolds::new(&client));
        let now = Arc::new(Mutex::new(Timestamp::now()));
        let clock = Arc::clone(&now);
        let sources = Sources::new(move || *clock.lock(), |bytes| bytes.fill(7));
        let (namespace, blocked) = ("op".to_owned(), Mutex::default());
        Self { now, objects, reconciler: Reconciler { client, namespace, store, holds, sources, blocked }, cluster }
    }

    fn set(&self, change: impl FnOnce(&mut Cluster)) {
        change(&mut self.cluster.lock());
    }

    fn erasure(&self) -> ArchiveErasure {
        serde_json::from_value(self.cluster.lock().erasure.clone().unwrap()).unwrap()
    }

    /// One pass, and the conditions after it, by type: status, reason and message.
    async fn pass(&self) -> HashMap<String, (String, String, String)> {
        self.reconciler.run(&self.erasure()).await;
        let conditions = self.erasure().status.unwrap_or_default().conditions;
        conditions.into_iter().map(|c| (c.type_, (c.status, c.reason, c.message))).collect()
    }

    /// A pass, and another one a day later.
    async fn passes(&self) -> HashMap<String, (String, String, String)> {
        self.pass().await;
        self.a_day_passes();
        self.pass().await
    }

    fn a_day_passes(&self) {
        *self.now.lock() += SignedDuration::from_hours(24);
    }

    async fn objects(&self) -> usize {
        let under = format!("archives/{UID}");
        self.objects.list(Some(&under.as_str().into())).count().await
    }
}

#[tokio::test]
async fn an_erasure_completes_and_says_what_was_removed() {
    let world = World::new().await;
    let before = world.objects().await;
    let conditions = world.passes().await;
    assert_eq!((conditions["Complete"].0.as_str(), conditions["Complete"].1.as_str()), ("True", "Erased"), "{conditions:?}");
    assert!(conditions["Blocked"].0 == "False" && !conditions.contains_key("Stalled"), "{conditions:?}");
    let status = world.erasure().status.unwrap();
    assert_eq!(status.removed_objects, i64::try_from(before).ok());
    assert!(status.removed_bytes.unwrap() > 20_000 && status.decided_at.is_some(), "{status:?}");
    assert_eq!(status.tombstone_key, Some(format!("erasures/{UID}/e-uid.json")));
    assert_eq!(world.objects().await, 0);
    let written = world.cluster.lock().written;
    world.pass().await;
    assert_eq!(world.cluster.lock().written, written, "L6: a complete erasure is not written again");
}

#[tokio::test]
async fn a_held_archive_blocks_with_the_name_of_the_hold_and_continues_without_it() {
    let world = World::new().await;
    let before = world.objects().await;
    world.set(|c| c.holds = Ok(vec![vec![of_computer("other", "another-uid")], vec![of_computer("case-7", UID)]]));
    let conditions = world.pass().await;
    let (status, reason, message) = &conditions["Blocked"];
    assert_eq!((status.as_str(), reason.as_str(), conditions["Complete"].0.as_str()), ("True", "ArchiveHeld", "False"));
    for part in ["ArchiveHold case-7 (matter case 7)", "nothing was removed", "To do: see the message, which names the hold"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!message.contains("other"), "{message}");
    let written = world.cluster.lock().written;
    world.pass().await;
    assert_eq!(world.cluster.lock().written, written, "L6");
    assert_eq!(world.objects().await, before);
    world.set(|c| c.holds = Ok(vec![vec![of_computer("other", "another-uid")]]));
    assert_eq!(world.passes().await["Complete"].1, "Erased");
}

#[tokio::test]
async fn a_computer_that_is_not_released_keeps_its_archive() {
    let live =
        json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": "box", "uid": UID}, "spec": {}});
    for (record, computer, reason, stalled) in [
        (Ok(record("Live", "box", None)), Err(404), "NotReleased", false),
        (Ok(record("Deleting", "box", Some("receipts/u.json"))), Err(404), "NotReleased", false),
        (Err(404), Ok(live), "NotReleased", false),
        (Ok(record("Released", "box", None)), Err(404), "NoReceipt", true),
        (Ok(record("Released", "another", Some("receipts/u.json"))), Err(404), "ErasureMismatch", true),
        (Err(500), Err(404), "ApiServerUnavailable", false),
        (Err(404), Err(500), "ApiServerUnavailable", false),
        (Err(410), Err(404), "ApiServerUnavailable", false),
    ] {
        let world = World::new().await;
        let before = world.objects().await;
        world.set(|c| (c.record, c.computer) = (record, computer));
        let conditions = world.pass().await;
        assert_eq!(conditions["Blocked"].1, reason, "{conditions:?}");
        assert!(conditions["Complete"].0 == "False" && conditions.contains_key("Stalled") == stalled, "{conditions:?}");
        assert_eq!(world.objects().await, before, "{reason}");
    }
}

/// The record expires after 30 days. Then the receipt in the store decides.
#[tokio::test]
async fn without_a_record_the_receipt_decides() {
    let another =
        json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": "box", "uid": "new"}, "spec": {}});
    for computer in [Err(404), Ok(another)] {
        let world = World::new().await;
        world.set(|c| (c.record, c.computer) = (Err(404), computer));
        assert_eq!(world.passes().await["Complete"].1, "Erased");
    }
    let world = World::new().await;
    world.set(|c| {
        c.record = Err(404);
        c.erasure.as_mut().unwrap()["spec"]["computer"]["uid"] = json!("22222222-2222-3333-4444-555555555555");
    });
    assert_eq!(world.pass().await["Blocked"].1, "NoReceipt");
    world.set(|c| c.erasure.as_mut().unwrap()["spec"]["computer"] = json!({"namespace": "other", "name": "box", "uid": UID}));
    assert_eq!(world.pass().await["Blocked"].1, "ErasureMismatch");
    assert!(world.objects().await > 0);
}

/// Deleting an erasure withdraws it. The cache may not show that yet.
#[tokio::test]
async fn a_withdrawn_or_replaced_erasure_is_not_executed() {
    let deleting = |e: &mut Value| e["metadata"]["deletionTimestamp"] = json!("2026-01-03T00:00:00Z");
    let replaced = |e: &mut Value| e["metadata"]["uid"] = json!("another");
    let changes: [Option<fn(&mut Value)>; 3] = [None, Some(deleting), Some(replaced)];
    for change in changes {
        let world = World::new().await;
        let (cached, before) = (world.erasure(), world.objects().await);
        world.set(|c| match change {
            Some(change) => change(c.erasure.as_mut().unwrap()),
            None => c.erasure = None,
        });
        assert_eq!(world.reconciler.run(&cached).await, None);
        assert_eq!((world.objects().await, world.cluster.lock().written), (before, 0));
    }
}

/// S10: the slower of two leaders does not overwrite what the other one has reported.
#[tokio::test]
async fn a_status_is_written_only_to_the_version_that_was_read() {
    let world = World::new().await;
    let mut old = world.erasure();
    world.passes().await;
    let state = State { reason: Reason::Erasing, message: "m".to_owned() };
    world.reconciler.publish(&mut old, &state, &Progress::default()).await.unwrap_err();
    assert!(is_complete(&world.erasure()));
}

fn subject(namespace_uid: Option<&str>) -> Subject {
    Subject { computer_uid: UID.to_owned(), namespace_uid: namespace_uid.map(str::to_owned) }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_answer_means_held() {
    let world = World::new().await;
    let unreadable = hold("of-another-version", &json!({"matter": 7}));
    let harmless = of_computer("other", "another-uid");
    let answers: [Result<Vec<Vec<Value>>, u16>; 6] = [
        Err(500),
        Err(403),
        Err(404),
        // The kind is not installed.
        Err(410),
        Ok(vec![vec![harmless.clone(), unreadable]]),
        Ok(vec![vec![harmless], vec![hold("x", &json!([]))]]),
    ];
    for holds in answers {
        world.set(|c| c.holds.clone_from(&holds));
        let stop = world.reconciler.holds.permit(&subject(Some(NAMESPACE_UID))).await.unwrap_err();
        assert!(matches!(stop, Stop::HoldsUnknown(_)), "{holds:?}: {stop:?}");
    }
    world.set(|c| c.silent = true);
    let stop = world.reconciler.holds.permit(&subject(Some(NAMESPACE_UID))).await.unwrap_err();
    assert!(matches!(&stop, Stop::HoldsUnknown(why) if why.contains("no answer")), "{stop:?}");
    let conditions = world.pass().await;
    assert_eq!((conditions["Blocked"].0.as_str(), conditions["Blocked"].1.as_str()), ("True", "HoldsUnknown"));
    assert!(world.objects().await > 0);
}

#[tokio::test]
async fn a_hold_names_a_computer_or_a_namespace() {
    let world = World::new().await;
    let of_namespace = |uid: &str| hold("of-namespace", &json!({"namespaceUID": uid, "matter": "m", "reason": "because of case 7"}));
    let neither = hold("of-another-version", &json!({"matter": "m", "reason": "because of case 7"}));
    for (hold, namespace, held) in [
        (of_computer("h", UID), Some(NAMESPACE_UID), true),
        (of_computer("h", &UID.to_uppercase()), Some(NAMESPACE_UID), true),
        (of_namespace(&UID.to_uppercase()), Some(UID), true),
        (of_computer("h", "another"), Some(NAMESPACE_UID), false),
        (of_namespace(NAMESPACE_UID), Some(NAMESPACE_UID), true),
        (of_namespace("another"), Some(NAMESPACE_UID), false),
        // An archive of an earlier version does not say which namespace it was in.
        (of_namespace("another"), None, true),
        (of_computer("h", "another"), None, false),
        (neither, Some(NAMESPACE_UID), true),
    ] {
        world.set(|c| c.holds = Ok(vec![vec![hold.clone()]]));
        let answer = world.reconciler.holds.permit(&subject(namespace)).await;
        assert_eq!(matches!(answer, Err(Stop::Held(_))), held, "{hold} {namespace:?}: {answer:?}");
        assert_eq!(answer.is_ok(), !held);
    }
    world.set(|c| c.holds = Ok(vec![["d", "b", "a", "c"].iter().map(|name| of_computer(name, UID)).collect()]));
    let stop = world.reconciler.holds.permit(&subject(None)).await.unwrap_err().to_string();
    assert!(stop.contains("ArchiveHold a (matter case 7), ArchiveHold b") && stop.contains("and 1 more"), "{stop}");
}
