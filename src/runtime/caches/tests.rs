use std::convert::Infallible;

use axum::http::{Request, Response};
use kube::client::Body;
use serde_json::json;

use super::*;
use crate::runtime::queue;

#[tokio::test]
async fn an_object_that_cannot_be_deserialized_hides_no_other() {
    let service = tower::service_fn(|request: Request<Body>| async move {
        if request.uri().query().is_some_and(|q| q.contains("watch=true")) {
            std::future::pending::<()>().await;
        }
        let class = |name: &str, paths: serde_json::Value| json!({"metadata": {"name": name, "uid": name}, "spec": {"podTemplate": {}, "sessionPaths": paths}});
        let list = json!({
            "apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerClassList", "metadata": {"resourceVersion": "1"},
            "items": [class("poison", json!(7)), class("good", json!(["a"]))],
        });
        Ok::<_, Infallible>(Response::new(Body::from(list.to_string().into_bytes())))
    });
    let client = Client::new(service, "t");
    let ((queue, _work), mut tasks, stop) = (queue::queue(), JoinSet::new(), CancellationToken::new());
    let mut spawn = Spawn { queue: &queue, tasks: &mut tasks, stop: &stop, sources: &Sources::default() };
    let classes =
        spawn
            .watch(Api::<DeserializeGuard<ComputerClass>>::all(client), watcher::Config::default(), cached_fields::managed, |_| Vec::new());
    tokio::time::timeout(std::time::Duration::from_secs(10), classes.wait_until_ready()).await.unwrap().unwrap();
    assert_eq!(classes.state().iter().map(|c| c.name_any()).collect::<Vec<_>>(), ["good"]);
    stop.cancel();
    while tasks.join_next().await.is_some() {}
}

/// B5: eight kinds shared one log line without a kind.
#[test]
fn a_log_names_the_kind() {
    assert_eq!((kind_of::<Computer>(), kind_of::<PersistentVolumeClaim>()), ("Computer", "PersistentVolumeClaim"));
}

/// A change of a class is reported at once, not at the next event of a pod.
#[tokio::test]
async fn a_class_concerns_the_computers_that_were_made_from_it() {
    let (reader, mut writer) = reflector::store::<Computer>();
    let computer = |uid: &str, phase: &str, class: &str| -> Computer {
        let status = json!({"phase": phase, "className": class});
        serde_json::from_value(json!({"metadata": {"name": uid, "namespace": "t", "uid": uid}, "spec": {}, "status": status})).unwrap()
    };
    writer.apply_watcher_event(&watcher::Event::Init);
    for c in [computer("runs", "Active", "std"), computer("other", "Active", "big"), computer("waits", "Error", "big")] {
        writer.apply_watcher_event(&watcher::Event::InitApply(c));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
    let mut uids = of_class(&reader, "std");
    uids.sort();
    assert_eq!(uids, ["runs", "waits"]);
}

/// Found with an API server that was killed: a relist arrives in pages, and the cache shows none of them before the last one. A UID that
/// was queued at its page was reconciled with the old object, and not again: a deletion made no progress.
#[tokio::test(start_paused = true)]
async fn a_relist_queues_changed_and_missing_objects_when_the_cache_shows_it() {
    let class =
        |name: &str, size: &str| json!({"metadata": {"name": name, "uid": name, "generation": size.len()}, "spec": {"podTemplate": {}}});
    let lists = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (query, lists) = (request.uri().query().unwrap_or_default().to_owned(), Arc::clone(&lists));
        let list = |items: &[serde_json::Value], more: &str| json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1", "continue": more}, "items": items});
        async move {
            let expired = json!({"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": ""}});
            let answer = if query.contains("continue=next") {
                // Time for a UID that was queued too early.
                tokio::time::sleep(std::time::Duration::from_secs(5)).await;
                list(&[class("b", "")], "")
            } else if !query.contains("watch=true") {
                match lists.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
                    0 => list(&[class("a", ""), class("gone", "")], ""),
                    _ => list(&[class("a", "new")], "next"),
                }
            } else if lists.load(std::sync::atomic::Ordering::SeqCst) == 1 {
                expired
            } else {
                std::future::pending().await
            };
            Ok::<_, Infallible>(Response::new(Body::from(format!("{answer}\n").into_bytes())))
        }
    });
    let ((queue, work), mut tasks, stop) = (queue::queue(), JoinSet::new(), CancellationToken::new());
    let api = Api::<DeserializeGuard<ComputerClass>>::all(Client::new(service, "t"));
    let mut spawn = Spawn { queue: &queue, tasks: &mut tasks, sources: &Sources::default(), stop: &stop };
    let named = |e: &watcher::Event<ComputerClass>| touched(e).map(ResourceExt::name_any).into_iter().collect();
    let classes = spawn.watch(api, watcher::Config::default(), cached_fields::managed, named);
    let reads: Arc<RwLock<HashMap<String, Option<i64>>>> = Arc::default();
    let seen = Arc::clone(&reads);
    let run = work.run(4, stop.clone(), move |name| {
        let found = classes.get(&ObjectRef::new(&name)).map(|c| c.metadata.generation.unwrap_or_default());
        seen.write().unwrap().insert(name, found);
        async { None }
    });
    let _ = tokio::time::timeout(std::time::Duration::from_secs(120), run).await;
    stop.cancel();
    let last = reads.read().unwrap().clone();
    assert_eq!(last, [("a".to_owned(), Some(3)), ("b".to_owned(), Some(0)), ("gone".to_owned(), None)].into());
}
