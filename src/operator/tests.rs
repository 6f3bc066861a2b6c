use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use axum::http::{Request, Response};
use kube::client::Body;
use serde_json::json;

use super::*;

/// The watches that a leader opens within a minute: path → queries.
async fn watches() -> BTreeMap<String, Vec<String>> {
    let opened: Arc<Mutex<BTreeMap<String, Vec<String>>>> = Arc::default();
    let seen = Arc::clone(&opened);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
        let watch = query.contains("watch=true");
        if watch {
            seen.lock().unwrap().entry(path).or_default().push(query);
        }
        async move {
            if watch {
                std::future::pending::<()>().await;
            }
            let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": []});
            Ok::<_, kube::Error>(Response::new(Body::from(list.to_string().into_bytes())))
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let (checked, mut finished_checks) = tokio::sync::mpsc::channel(1);
    let leader = Leader {
        client: Client::new(service, "op"),
        settings: Settings { namespace: "op".into(), ..Settings::default() },
        archives: Arc::new(Archives::open(&format!("file://{}", folder.path().display()), checked).unwrap()),
        metrics: Arc::new(Metrics::new()),
        concurrency: 1,
        collect_leftovers: false,
        erase_archives: true,
        sources: Sources::default(),
    };
    let _ = tokio::time::timeout(Duration::from_secs(60), leader.lead(&mut finished_checks, CancellationToken::new())).await;
    let opened = opened.lock().unwrap();
    opened.clone()
}

/// A second watch of a kind costs the API server and the memory of this process twice. B6: without its own timeout, a load balancer may
/// close an idle watch, which goes unnoticed until the next change.
#[tokio::test(start_paused = true)]
async fn each_kind_is_watched_once_and_with_a_timeout() {
    let opened = watches().await;
    let kinds: Vec<&str> = opened.keys().filter_map(|path| path.rsplit('/').next()).collect();
    let expected = [
        "namespaces",
        "persistentvolumeclaims",
        "persistentvolumes",
        "pods",
        "serviceaccounts",
        "apikeys",
        "archiveerasures",
        "archiveholds",
        "computerclasses",
        "computers",
        "deletionoverrides",
        "apikeyrecords",
        "computerrecords",
    ];
    assert_eq!(kinds, expected, "{opened:?}");
    for (path, queries) in &opened {
        assert!(queries.len() == 1 && queries[0].contains("timeoutSeconds=200"), "{path}: {queries:?}");
    }
}

/// C17: a task that died, for example one that watches a kind, was not missed: the leader went on with a cache that no longer changed.
#[tokio::test]
async fn the_death_of_a_task_ends_the_work_with_an_error() {
    for ends in ["it panics", "it returns", "it is stopped"] {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let stopped = stop.clone();
        tasks.spawn(async move {
            match ends {
                "it panics" => panic!("{ends}"),
                "it returns" => {}
                _ => stopped.cancelled().await,
            }
        });
        if ends == "it is stopped" {
            stop.cancel();
        }
        let graceful = stop.clone();
        let work = async move {
            graceful.cancelled().await;
            Ok(())
        };
        let result = tokio::time::timeout(Duration::from_secs(20), beside(&mut tasks, "task", &stop, work)).await;
        assert_eq!(result.expect("the work continues without a task").is_ok(), ends == "it is stopped", "{ends}");
    }
}
