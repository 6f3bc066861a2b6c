use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{Method, Request, Response};
use kube::client::Body;
use kube::runtime::events::{Recorder, Reporter};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tracing::instrument::WithSubscriber as _;

use super::*;
use crate::archive::Archives;
use crate::computer::action::{Fact, Subject};
use crate::computer::events::Events;
use crate::computer::held_status::FIRST;
use crate::computer::metrics::Metrics;
use crate::computer::report::Blocker;
use crate::computer::view::ClassState;
use crate::resources::reasons::Reason;
use crate::resources::steps::DeletionStep;
use crate::resources::{ComputerStatus, Phase};
use crate::runtime::telemetry::tests::{Lines, any_subscriber};
use crate::runtime::{caches, queue};

struct World {
    reconciler: Reconciler,
    _watches: JoinSet<()>,
    _store: tempfile::TempDir,
}

/// A reconciler whose API server holds these objects, by the plural of their kind, and accepts every write.
async fn world(objects: Vec<(&'static str, Value)>) -> World {
    world_where(objects, || (200, json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))).await
}

/// As [`world`], with this answer to each write: its status code and its body.
async fn world_where(objects: Vec<(&'static str, Value)>, written: impl Fn() -> (u16, Value) + Clone + Send + Sync + 'static) -> World {
    let service = tower::service_fn(move |request: Request<Body>| {
        let (path, watch) = (request.uri().path().to_owned(), request.uri().query().is_some_and(|q| q.contains("watch=true")));
        let items: Vec<_> = objects.iter().filter(|(plural, _)| path.ends_with(plural)).map(|(_, object)| object.clone()).collect();
        let (code, answer) = if request.method() == Method::GET {
            (200, json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items}))
        } else {
            written()
        };
        async move {
            if watch {
                std::future::pending::<()>().await;
            }
            Ok::<_, kube::Error>(Response::builder().status(code).body(Body::from(answer.to_string().into_bytes())).unwrap())
        }
    });
    let (client, sources, stop, mut tasks) = (Client::new(service, "op"), Sources::default(), CancellationToken::new(), JoinSet::new());
    let settings = Settings { namespace: "op".into(), ..Settings::default() };
    let (queue, _work) = queue::queue();
    let mut spawn = caches::Spawn { queue: &queue, tasks: &mut tasks, sources: &sources, stop: &stop };
    let caches = caches::start(&client, "op", &mut spawn, caches::Listeners::default());
    caches.ready().await.unwrap();
    let store = tempfile::tempdir().unwrap();
    let (checked, _) = tokio::sync::mpsc::channel(1);
    let archives = Arc::new(Archives::open(&format!("file://{}", store.path().display()), checked).unwrap());
    let reporter = Reporter { controller: "test".into(), instance: None };
    let reconciler = Reconciler {
        applier: Applier::new(client.clone(), Arc::clone(&archives), "op".into()),
        marker: Marker::new(client.clone(), archives),
        memory: Memory::new(&sources, Events::new(Recorder::new(client.clone(), reporter)), Arc::new(Metrics::new())),
        client,
        caches,
        settings,
        sources,
        stop,
    };
    World { reconciler, _watches: tasks, _store: store }
}

/// The archive of a deletion is being read back.
fn checking(blocker: Option<Reason>) -> Plan {
    let report = Report {
        phase: Some(Phase::Deleting),
        current: Some(CurrentStep::Deletion(DeletionStep::ArchiveSessions)),
        checking: true,
        blocker: blocker.map(|reason| Blocker { reason, message: String::new() }),
        ..Report::default()
    };
    Plan { next: Next::Wait(Duration::from_secs(15)), report }
}

/// A new leader whose first reconcile finds an overdue check already shown in the status raised no alert until the check ended.
#[tokio::test]
async fn a_reconcile_that_publishes_nothing_is_counted_and_sets_the_gauge() {
    let reconciler = world(vec![]).await.reconciler;
    let step = json!({"id": "archive-sessions", "name": "Archive the sessions", "status": "Blocked"});
    let status = json!({"phase": "Deleting", "step": "archive-sessions", "deletionSteps": [step]});
    let view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}, "status": status}));
    let plan = checking(Some(Reason::ArchiveOverdue));
    assert!(quiet(&view, &plan.report));
    let reading = View { read_back: Some(crate::archive::ReadBack { read: 1, all: 2 }), ..view.clone() };
    assert!(!quiet(&reading, &plan.report), "users see its progress");
    reconciler.conclude(&view, plan, None, 0).await;
    let text = reconciler.memory.metrics.text().unwrap();
    for line in [
        "deletions_blocked{step=\"archive-sessions\",reason=\"ArchiveOverdue\"} 1",
        "reconcile_total{path=\"delete\",outcome=\"blocked\"} 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

/// L6: each retry of a refused request after a read-back begins with another read-back. If that reset the backoff, the retries would come
/// every second, for as long as the request is refused.
#[tokio::test]
async fn a_running_read_back_keeps_the_backoff_and_progress_resets_it() {
    let reconciler = world(vec![]).await.reconciler;
    let mut view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}}));
    view.computer = None;
    for _ in 0..3 {
        reconciler.conclude(&view, checking(None), Some(Error::conflict("x")), 0).await;
    }
    assert!(!quiet(&view, &checking(None).report), "without a Computer there is no status to compare");
    reconciler.conclude(&view, checking(None), None, 0).await;
    assert_eq!(reconciler.memory.backoff.count("u"), 3);
    let mut plan = checking(None);
    plan.report.checking = false;
    reconciler.conclude(&view, plan, None, 0).await;
    assert_eq!(reconciler.memory.backoff.count("u"), 0);
}

/// B1: nothing happens any more to a computer that is settled, so no event would cause the write of its status to be repeated.
#[tokio::test(start_paused = true)]
async fn a_failed_write_of_the_status_is_repeated_without_an_event() {
    let computer = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer",
        "metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}});
    let (writes, answer) = (Arc::new(AtomicUsize::new(0)), computer.clone());
    let count = Arc::clone(&writes);
    let failure =
        json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 500, "reason": "InternalError", "message": "x"});
    let reconciler = world_where(vec![], move || match count.fetch_add(1, Ordering::Relaxed) {
        0 => (500, failure.clone()),
        _ => (200, answer.clone()),
    });
    let reconciler = reconciler.await.reconciler;
    let view = View::of(computer);
    let settled = || Plan { next: Next::Settled, report: Report { phase: Some(Phase::Active), ..Report::default() } };
    assert!(reconciler.conclude(&view, settled(), None, 0).await.0.is_some(), "requeued although the plan is settled");
    assert_eq!(writes.load(Ordering::Relaxed), 1);
    assert_eq!(reconciler.conclude(&view, settled(), None, 0).await.0, None);
    assert!(writes.load(Ordering::Relaxed) > 1, "written again");
}

/// C9: a reconcile that reached its limits, or lost a race, cleared the condition and the gauge for a moment, and the alert began again.
#[tokio::test]
async fn a_reconcile_that_does_not_reach_its_end_does_not_end_what_blocks() {
    let writes = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&writes);
    let success = move || {
        count.fetch_add(1, Ordering::Relaxed);
        (200, json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))
    };
    let reconciler = world_where(vec![], success).await.reconciler;
    let since = "2026-01-01T00:00:00Z";
    let condition = json!({"type": "Blocked", "status": "True", "reason": "StoreUnavailable", "message": "m", "lastTransitionTime": since});
    let status = json!({"phase": "Deleting", "step": "archive-sessions", "conditions": [condition]});
    let view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}, "status": status}));
    let plan = |unfinished: bool, blocker: Option<Reason>| {
        let report = Report { checking: false, unfinished, ..checking(blocker).report };
        Plan { next: Next::Wait(Duration::from_secs(1)), report }
    };
    let blocked =
        || reconciler.memory.metrics.text().unwrap().contains("deletions_blocked{step=\"archive-sessions\",reason=\"StoreUnavailable\"} 1");
    reconciler.conclude(&view, plan(false, Some(Reason::StoreUnavailable)), None, 0).await;
    writes.store(0, Ordering::Relaxed);
    reconciler.conclude(&view, plan(true, None), None, 0).await;
    assert!(blocked() && writes.load(Ordering::Relaxed) == 0, "it reached its limits");
    reconciler.conclude(&view, plan(false, None), Some(Error::conflict("x")), 0).await;
    assert!(blocked() && writes.load(Ordering::Relaxed) == 0, "it lost a race");
    let mut creation = plan(true, None);
    creation.report.phase = Some(Phase::Provisioning);
    let mut failing = view.clone();
    failing.computer.as_mut().unwrap().status.as_mut().unwrap().phase = Some(Phase::Error);
    reconciler.conclude(&failing, creation, None, 0).await;
    assert!(writes.load(Ordering::Relaxed) == 0, "a creation that is blocked");
    let mut next = plan(true, None);
    next.report.current = Some(CurrentStep::Deletion(DeletionStep::DeleteVolumes));
    reconciler.conclude(&view, next, None, 0).await;
    assert!(!blocked() && writes.load(Ordering::Relaxed) > 0, "another step");
    reconciler.conclude(&view, plan(false, Some(Reason::StoreUnavailable)), None, 0).await;
    writes.store(0, Ordering::Relaxed);
    reconciler.conclude(&view, plan(false, None), None, 0).await;
    assert!(!blocked() && writes.load(Ordering::Relaxed) > 0, "its step makes progress");
}

/// Issue 15: most steps are over within milliseconds, and a write of the status is the most expensive request. The rest is written without a
/// reconcile, which would read again.
#[tokio::test(start_paused = true)]
async fn progress_is_written_after_a_moment_and_what_needs_a_user_at_once() {
    let computer = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer",
        "metadata": {"name": "c", "namespace": "t", "uid": "u", "resourceVersion": "7", "finalizers": [crate::resources::DELETION_FINALIZER]}, "spec": {}});
    let (writes, answer) = (Arc::new(AtomicUsize::new(0)), computer.clone());
    let count = Arc::clone(&writes);
    let written = move || {
        count.fetch_add(1, Ordering::Relaxed);
        (200, answer.clone())
    };
    let reconciler = world_where(vec![], written).await.reconciler;
    let view = View::of(computer);
    let plan = |phase| Plan { next: Next::Settled, report: Report { phase: Some(phase), ..Report::default() } };
    reconciler.memory.waiting.begin("u");
    let (after, published) = reconciler.conclude(&view, plan(Phase::Provisioning), None, 0).await;
    assert_eq!((after, writes.load(Ordering::Relaxed)), (None, 0), "the plan does not wait for it");
    reconciler.wait(view.clone(), &view, published, after);
    tokio::time::advance(FIRST / 2).await;
    assert_eq!((reconciler.publish_held(&view, None).await, writes.load(Ordering::Relaxed)), (Some(FIRST / 2), 0), "an event");
    tokio::time::advance(FIRST / 2).await;
    assert_eq!((reconciler.publish_held(&view, None).await, writes.load(Ordering::Relaxed)), (None, 1));
    assert_eq!((reconciler.publish_held(&view, None).await, writes.load(Ordering::Relaxed)), (None, 1), "once");
    reconciler.conclude(&view, plan(Phase::Deleting), None, 0).await;
    reconciler.conclude(&view, plan(Phase::Active), None, 0).await;
    assert_eq!((writes.load(Ordering::Relaxed), reconciler.memory.held_status.left("u")), (3, None), "ready, with its event");
}

/// The record exists, but the cache does not have it: it is stale, or this version cannot read the record. What only the absence of the record implies
/// must not be shown: a computer that is used was shown as one that is being created.
#[tokio::test]
async fn nothing_is_shown_that_only_an_unproved_absence_of_the_record_implies() {
    let used = json!({"phase": "Active", "children": {"claimName": "home-1"}});
    for (status, failures) in [(used, 0), (json!({"phase": "Active"}), 0), (json!({"phase": "Active"}), 1)] {
        let metadata = json!({"name": "c", "namespace": "t", "uid": "u", "finalizers": [crate::resources::DELETION_FINALIZER]});
        let computer =
            json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": metadata, "spec": {}, "status": status});
        // Every read answers a list, so that neither the Computer nor the record can be read.
        let reconciler = world(vec![]).await.reconciler;
        let mut view = View { failures, ..View::of(computer) };
        let (plan, error) = reconciler.drive(&mut view).await;
        assert!(error.is_some() && plan.report.provisioning.is_empty() && plan.report.phase != Some(Phase::Provisioning), "{plan:?}");
    }
}

/// A computer keeps its class. The record may be known only after a live read, and another class may be the default by then.
#[tokio::test]
async fn the_class_is_that_of_the_record() {
    let class = |name: &str, default: bool| {
        let annotations = json!({crate::resources::DEFAULT_CLASS_ANNOTATION: default.to_string()});
        let spec = json!({"podTemplate": {}, "storage": {"size": "1Gi"}});
        json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerClass", "metadata": {"name": name, "annotations": annotations}, "spec": spec})
    };
    let computer = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}});
    let objects = vec![("computerclasses", class("old", false)), ("computerclasses", class("new", true)), ("computers", computer)];
    let reconciler = world(objects).await.reconciler;
    let mut view = observe(&reconciler.caches, &reconciler.settings, "u", &reconciler.sources).unwrap();
    let name = |view: &View| if let ClassState::Found(class) = &view.class { class.metadata.name.clone() } else { None };
    assert_eq!(name(&view).as_deref(), Some("new"));
    let mut found = record("u", "2026-01-01T00:00:00Z");
    found["spec"]["className"] = json!("old");
    view.record = Some(serde_json::from_value(found).unwrap());
    follow_record(&reconciler.caches, &mut view);
    assert_eq!(name(&view).as_deref(), Some("old"));
}

/// L6: each new attempt of a status write that is refused began its backoff again, because its report was held first.
#[tokio::test(start_paused = true)]
async fn a_status_write_that_is_refused_is_repeated_with_a_growing_pause() {
    let computer = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer",
        "metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}});
    let writes = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&writes);
    let refused = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "x"});
    let written = move || {
        count.fetch_add(1, Ordering::Relaxed);
        (403, refused.clone())
    };
    let reconciler = world_where(vec![], written).await.reconciler;
    let view = View::of(computer);
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(3600) {
        let plan =
            Plan { next: Next::Wait(Duration::from_secs(15)), report: Report { phase: Some(Phase::Provisioning), ..Report::default() } };
        let (after, _) = reconciler.conclude(&view, plan, None, 0).await;
        let after = reconciler.publish_held(&view, after).await;
        tokio::time::advance(after.unwrap()).await;
    }
    let writes = writes.load(Ordering::Relaxed);
    assert!((50..500).contains(&writes), "{writes} writes in an hour");
}

/// S1: the marks of a volume were removed as soon as the operator had set them. The caches showed it as they did before, so nothing seemed to have
/// changed, and the volume was not protected until the end of the wait, up to an hour later. The same with a pod that is gone again.
#[tokio::test]
async fn an_object_that_was_found_and_is_gone_again_is_a_change() {
    let reconciler = world(vec![]).await.reconciler;
    let start = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u", "resourceVersion": "1"}, "spec": {}}));
    let waits = |found: Option<(Subject, Fact)>| {
        reconciler.memory.waiting.begin("u");
        let mut end = start.clone();
        end.facts.extend(found);
        reconciler.wait(start.clone(), &end, Published::UpToDate, None);
        reconciler.memory.waiting.left(&start).is_some()
    };
    assert!(waits(None) && waits(Some((Subject::pod("t", "gone"), Fact::Gone))), "nothing has changed");
    for (subject, fact) in [
        (Subject::volume("pv"), Fact::Volume(Box::default())),
        (Subject::pod("t", "machine-1"), Fact::Pod(Box::default())),
        (Subject::claim("t", "home-1"), Fact::Claim(Box::default())),
    ] {
        assert!(!waits(Some((subject, fact))));
    }
}

/// S6: a reconcile may not reach its end, for example because of a panic. Only this process knows that the pod is the operator's.
#[tokio::test]
async fn a_created_pod_is_remembered_at_once() {
    let metadata = json!({"name": "machine-1", "namespace": "t", "uid": "2", "finalizers": [crate::resources::POD_FINALIZER]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata});
    let created = pod.clone();
    let reconciler = world_where(vec![], move || (201, created.clone())).await.reconciler;
    let mut view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}}));
    let create = Action::Create(crate::computer::action::Object::Machine(Box::new(pod)));
    reconciler.request(&mut view, create, &mut Accepted::default()).await.unwrap();
    assert_eq!(reconciler.memory.latest.created("u").into_values().collect::<Vec<_>>(), ["2"]);
}

/// A log can be filtered by computer.
#[tokio::test]
async fn a_log_line_names_the_computer_and_its_step() {
    let computer =
        json!({"metadata": {"name": "c", "namespace": "t", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}});
    let reconciler = world(vec![("computers", computer)]).await.reconciler;
    let (_any, lines) = (any_subscriber(), Lines::default());
    let writer = lines.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::DEBUG).with_writer(move || writer.clone()).finish();
    let view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}}));
    async {
        reconciler.run("u").await;
        let plan = checking(Some(Reason::ArchiveOverdue));
        reconciler.conclude(&view, plan, Some(Error::conflict("x")), 0).instrument(span(&view)).await;
    }
    .with_subscriber(subscriber)
    .await;
    let text = lines.text();
    for step in ["}", " step=\"archive-sessions\"}"] {
        let named = format!("reconcile{{kind=\"Computer\" namespace=\"t\" name=\"c\" uid=\"u\"{step}");
        assert!(text.lines().any(|line| line.contains("requeued") && line.contains(&named)), "{named}: {text}");
    }
}

/// A failed reconcile of a computer leaves traces in every part of the memory.
async fn fill(reconciler: &Reconciler, uid: &str) {
    let computer = json!({"metadata": {"name": "c", "namespace": "t", "uid": uid}, "spec": {}});
    let with_computer = View { uid: uid.to_owned(), ..View::of(computer) };
    let record = serde_json::from_value(record(uid, "2026-01-01T00:00:00Z")).unwrap();
    let with_record = View { computer: None, record: Some(record), ..with_computer.clone() };
    for view in [Box::new(with_record), Box::new(with_computer)] {
        reconciler.conclude(&view, checking(Some(Reason::ArchiveOverdue)), Some(Error::conflict("x")), 0).await;
    }
    reconciler.memory.written.note(uid, &ComputerStatus::default());
    reconciler.memory.turns.ran_out(uid);
}

/// A released record.
fn record(uid: &str, released: &str) -> Value {
    let receipt = json!({"digest": "d", "at": released});
    let deletion = json!({"deletedAt": "2026-01-01T00:00:00Z", "cause": "ComputerDeleted", "receipt": receipt});
    let spec = json!({"namespace": "t", "computer": "c", "state": {"phase": "Released", "deletion": deletion}});
    json!({"metadata": {"name": uid, "namespace": "op", "uid": "of-record"}, "spec": spec})
}

/// Memory is bounded by the computers that exist: whichever way a computer ends, nothing about its UID stays.
#[tokio::test(start_paused = true)]
async fn every_end_of_a_computer_leaves_nothing_in_memory() {
    let now = Sources::default().now().to_string();
    let records =
        vec![("computerrecords", record("settled-uid", &now)), ("computerrecords", record("expired-uid", "2020-01-01T00:00:00Z"))];
    let reconciler = world(records).await.reconciler;
    let memory = &reconciler.memory;
    for uid in ["missing-uid", "settled-uid", "expired-uid"] {
        fill(&reconciler, uid).await;
        let parts = [format!("{:?}", memory.backoff), format!("{:?}", memory.unwritten), format!("{:?}", memory.latest)];
        let parts = parts.into_iter().chain([format!("{:?}", memory.written), format!("{:?}", memory.turns), memory.events.remembered()]);
        for part in parts.chain([memory.metrics.remembered()]) {
            assert!(part.contains(uid), "{part}");
        }
        let again = reconciler.run(uid).await;
        assert_eq!(again.is_some(), uid == "settled-uid", "{uid}: {again:?}");
    }
    // Published events are kept for as long as a stale cache may show the computer.
    tokio::time::advance(Duration::from_secs(3600)).await;
    fill(&reconciler, "another-uid").await;
    let text = memory.text();
    for uid in ["missing-uid", "settled-uid", "expired-uid"] {
        assert!(!text.contains(uid), "{uid}: {text}");
    }
}
