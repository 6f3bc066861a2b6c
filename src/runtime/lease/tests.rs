//! Leader election against an API server that rejects requests, hangs and loses responses, in paused time.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::http::{Method, Request, Response, StatusCode};
use futures::future::BoxFuture;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

const TIMING: Timing = Timing { lease: Duration::from_secs(15), renew_deadline: Duration::from_secs(10), retry: Duration::from_secs(2) };

/// What happens to requests on the way to the server.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Open,
    /// Requests do not arrive, and no response is returned.
    Hangs,
    /// Writes arrive but their responses are lost. Reads work.
    LosesAnswers,
}

/// The lease with the optimistic concurrency control of an API server.
#[derive(Default)]
struct Server {
    lease: Mutex<(u64, Option<Value>)>,
    writes: AtomicUsize,
    reads: AtomicUsize,
}

impl Server {
    fn answer(&self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
        let refused = |code: u16, reason| {
            let status = StatusCode::from_u16(code).unwrap();
            (status, json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason}))
        };
        let mut held = self.lease.lock().unwrap();
        if *method == Method::GET {
            self.reads.fetch_add(1, Ordering::SeqCst);
            return held.1.clone().map_or_else(|| refused(404, "NotFound"), |lease| (StatusCode::OK, lease));
        }
        let mut new: Value = serde_json::from_slice(body).unwrap();
        match (&held.1, *method == Method::POST) {
            (Some(_), true) => return refused(409, "AlreadyExists"),
            (None, false) => return refused(404, "NotFound"),
            (Some(old), false) if old["metadata"]["resourceVersion"] != new["metadata"]["resourceVersion"] => {
                return refused(409, "Conflict");
            }
            _ => {}
        }
        self.writes.fetch_add(1, Ordering::SeqCst);
        held.0 += 1;
        new["metadata"]["resourceVersion"] = json!(held.0.to_string());
        held.1 = Some(new.clone());
        (StatusCode::OK, new)
    }

    fn holder(&self) -> String {
        self.lease
            .lock()
            .unwrap()
            .1
            .as_ref()
            .map_or_else(String::new, |l| l["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
    }

    /// Changes the lease manually.
    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut held = self.lease.lock().unwrap();
        held.0 += 1;
        let version = held.0.to_string();
        let lease = held.1.as_mut().unwrap();
        change(lease);
        lease["metadata"]["resourceVersion"] = json!(version);
    }
}

fn client(server: &Arc<Server>, way: &Arc<Mutex<Way>>) -> Client {
    let (server, way) = (Arc::clone(server), Arc::clone(way));
    let service = tower::service_fn(move |request: Request<Body>| -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        let (server, way) = (Arc::clone(&server), Arc::clone(&way));
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let before = *way.lock().unwrap();
            if before == Way::Hangs {
                std::future::pending::<()>().await;
            }
            let (status, answer) = server.answer(&parts.method, &body);
            if before == Way::LosesAnswers && parts.method != Method::GET {
                std::future::pending::<()>().await;
            }
            Ok(Response::builder().status(status).body(Body::from(answer.to_string().into_bytes())).unwrap())
        })
    });
    Client::new(service, "op")
}

/// One replica under test.
struct Replica {
    way: Arc<Mutex<Way>>,
    shutdown: CancellationToken,
    works: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

/// Starts a replica whose work needs `drain` to finish after it was cancelled. Two replicas must never work at the same time.
fn start(server: &Arc<Server>, at_work: &Arc<AtomicUsize>, drain: Duration) -> Replica {
    start_on(server, at_work, drain, Way::Open)
}

fn start_on(server: &Arc<Server>, at_work: &Arc<AtomicUsize>, drain: Duration, way: Way) -> Replica {
    let (way, shutdown, works) = (Arc::new(Mutex::new(way)), CancellationToken::new(), Arc::new(AtomicBool::new(false)));
    let (client, token, flag, count) = (client(server, &way), shutdown.clone(), Arc::clone(&works), Arc::clone(at_work));
    let task = tokio::spawn(async move {
        run_while_leading(
            client,
            "op",
            TIMING,
            token,
            |_| {},
            |stop| async move {
                assert_eq!(count.fetch_add(1, Ordering::SeqCst), 0, "two replicas work at the same time");
                flag.store(true, Ordering::SeqCst);
                stop.cancelled().await;
                sleep(drain).await;
                count.fetch_sub(1, Ordering::SeqCst);
                flag.store(false, Ordering::SeqCst);
                Ok(())
            },
        )
        .await
    });
    Replica { way, shutdown, works, task }
}

/// Waits until `condition` holds and returns how long that took.
async fn until(what: &str, condition: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(120), "timed out: {what}");
        sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

impl Replica {
    fn working(&self) -> bool {
        self.works.load(Ordering::SeqCst)
    }
}

fn seen(holder: &str, changed: Instant) -> Seen {
    let spec = LeaseSpec { holder_identity: Some(holder.to_owned()), lease_duration_seconds: Some(15), ..LeaseSpec::default() };
    Seen { lease: Lease { spec: Some(spec), ..Lease::default() }, changed }
}

#[tokio::test(start_paused = true)]
async fn a_lease_expires_only_by_our_own_clock() {
    let start = Instant::now();
    assert_eq!(holder(&seen("", start), "me", start), Holder::None);
    assert_eq!(holder(&seen("me", start), "me", start + Duration::from_secs(600)), Holder::Us);
    let other = seen("other", start);
    assert_eq!(holder(&other, "me", start + Duration::from_secs(15)), Holder::Other);
    assert_eq!(holder(&other, "me", start + Duration::from_secs(16)), Holder::Expired);
}

#[tokio::test(start_paused = true)]
async fn invalid_durations_neither_block_forever_nor_expire_at_once() {
    let start = Instant::now();
    for (seconds, respected) in [(Some(i32::MAX), 300), (Some(0), 1), (Some(-5), 15), (None, 15)] {
        let mut other = seen("other", start);
        other.lease.spec.as_mut().unwrap().lease_duration_seconds = seconds;
        assert_eq!(holder(&other, "me", start + Duration::from_secs(respected)), Holder::Other, "{seconds:?}");
        assert_eq!(holder(&other, "me", start + Duration::from_secs(respected + 1)), Holder::Expired, "{seconds:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_changed_spec_counts_as_a_renewal() {
    let start = Instant::now();
    let first = Seen::observe(None, seen("other", start).lease, start);
    let mut touched = first.lease.clone();
    touched.metadata.resource_version = Some("99".to_owned());
    let later = start + Duration::from_secs(20);
    let second = Seen::observe(Some(&first), touched.clone(), later);
    assert_eq!(holder(&second, "me", later), Holder::Expired, "an annotation does not renew a lease");
    touched.spec.as_mut().unwrap().renew_time = Some(MicroTime(Timestamp::UNIX_EPOCH));
    let third = Seen::observe(Some(&second), touched, later);
    assert_eq!(holder(&third, "me", later), Holder::Other);
}

#[test]
fn a_timing_that_would_allow_two_leaders_is_rejected() {
    let seconds = |lease, renew, retry| {
        Timing { lease: Duration::from_secs(lease), renew_deadline: Duration::from_secs(renew), retry: Duration::from_secs(retry) }
            .validate()
    };
    assert_eq!(seconds(15, 10, 2), Ok(TIMING));
    for (lease, renew, retry) in [(15, 15, 2), (0, 0, 0), (15, 10, 9), (15, 10, 0), (301, 10, 2)] {
        assert!(seconds(lease, renew, retry).is_err(), "{lease} {renew} {retry}");
    }
    let cut = Timing { lease: Duration::from_millis(10_900), renew_deadline: Duration::from_millis(10_500), retry: Duration::from_secs(2) };
    assert!(cut.validate().is_err(), "the Lease contains 10 s, so 10.5 s is too long");
}

#[tokio::test(start_paused = true)]
async fn a_graceful_shutdown_drains_while_renewing_and_then_releases_the_lease() {
    let (server, at_work) = (Arc::new(Server::default()), Arc::default());
    let first = start(&server, &at_work, Duration::from_secs(20));
    until("the first leads", || first.working()).await;
    let second = start(&server, &at_work, Duration::ZERO);
    sleep(Duration::from_secs(60)).await;
    assert!(first.working() && !second.working());
    first.shutdown.cancel();
    // Longer than the lease: no other replica starts only because the lease is still renewed.
    let drained = until("the first is done", || !first.working()).await;
    assert!(drained >= Duration::from_secs(20));
    assert!(until("the second leads", || second.working()).await <= TIMING.retry + Duration::from_millis(100));
    assert!(first.task.await.unwrap().is_ok());
    second.shutdown.cancel();
    assert!(second.task.await.unwrap().is_ok());
    assert_eq!(server.holder(), "", "released");
}

#[tokio::test(start_paused = true)]
async fn a_disconnected_leader_stops_before_another_one_starts() {
    let (server, at_work) = (Arc::new(Server::default()), Arc::default());
    let first = start(&server, &at_work, Duration::from_secs(1));
    until("the first leads", || first.working()).await;
    let second = start(&server, &at_work, Duration::ZERO);
    sleep(Duration::from_secs(31)).await;
    *first.way.lock().unwrap() = Way::Hangs;
    let taken = until("the second leads", || second.working()).await;
    assert!(taken <= Duration::from_secs(20), "fail-over took {taken:?} (L4)");
    assert!(first.task.await.unwrap().is_err(), "the process exits");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_gets_no_responses_stops_although_its_writes_arrive() {
    let (server, at_work) = (Arc::new(Server::default()), Arc::default());
    let first = start(&server, &at_work, Duration::ZERO);
    until("it leads", || first.working()).await;
    *first.way.lock().unwrap() = Way::LosesAnswers;
    let ended = until("it stops", || !first.working()).await;
    assert!(ended <= TIMING.renew_deadline + Duration::from_millis(100), "{ended:?}");
    assert!(first.task.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_lost_response_to_the_first_write_is_resolved_by_a_read() {
    let (server, at_work) = (Arc::new(Server::default()), Arc::default());
    let only = start_on(&server, &at_work, Duration::ZERO, Way::LosesAnswers);
    until("the write arrived", || !server.holder().is_empty()).await;
    assert!(!only.working(), "an unknown outcome must not count as success");
    *only.way.lock().unwrap() = Way::Open;
    until("it leads", || only.working()).await;
}

#[tokio::test(start_paused = true)]
async fn another_holder_ends_the_leadership_at_once() {
    let (server, at_work) = (Arc::new(Server::default()), Arc::default());
    let only = start(&server, &at_work, Duration::ZERO);
    until("it leads", || only.working()).await;
    server.edit(|lease| lease["spec"]["holderIdentity"] = json!("another-replica"));
    let ended = until("it stops", || !only.working()).await;
    assert!(ended <= TIMING.retry + Duration::from_millis(100), "{ended:?}");
    assert!(only.task.await.unwrap().is_err());
    assert_eq!(server.holder(), "another-replica", "another replica's lease must not be released");
}

#[tokio::test(start_paused = true)]
async fn a_changed_annotation_or_a_deleted_lease_does_not_end_the_leadership() {
    let (server, at_work) = (Arc::new(Server::default()), Arc::default());
    let only = start(&server, &at_work, Duration::ZERO);
    until("it leads", || only.working()).await;
    server.edit(|lease| lease["metadata"]["annotations"] = json!({"touched": "yes"}));
    sleep(Duration::from_secs(30)).await;
    server.lease.lock().unwrap().1 = None;
    sleep(Duration::from_secs(30)).await;
    assert!(only.working() && !server.holder().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_is_one_write_without_a_read() {
    let (server, at_work) = (Arc::new(Server::default()), Arc::default());
    let only = start(&server, &at_work, Duration::ZERO);
    until("it leads", || only.working()).await;
    let (reads, writes) = (server.reads.load(Ordering::SeqCst), server.writes.load(Ordering::SeqCst));
    sleep(Duration::from_secs(20)).await;
    assert_eq!(server.reads.load(Ordering::SeqCst), reads);
    assert!((9..=10).contains(&(server.writes.load(Ordering::SeqCst) - writes)));
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_not_released_if_the_work_does_not_finish() {
    let (server, at_work) = (Arc::new(Server::default()), Arc::default());
    let only = start(&server, &at_work, Duration::from_secs(3600));
    until("it leads", || only.working()).await;
    only.shutdown.cancel();
    let began = Instant::now();
    assert!(only.task.await.unwrap().is_err());
    assert!(began.elapsed() <= DRAIN + Duration::from_secs(1));
    assert!(!server.holder().is_empty(), "the lease must not be released while work may be running");
}

#[tokio::test(start_paused = true)]
async fn a_standby_exits_cleanly_and_an_error_of_the_work_is_returned() {
    let (server, at_work) = (Arc::new(Server::default()), Arc::default());
    let first = start(&server, &at_work, Duration::ZERO);
    until("it leads", || first.working()).await;
    let standby = start(&server, &at_work, Duration::ZERO);
    standby.shutdown.cancel();
    assert!(standby.task.await.unwrap().is_ok());
    first.shutdown.cancel();
    assert!(first.task.await.unwrap().is_ok());
    let client = client(&server, &Arc::new(Mutex::new(Way::Open)));
    let failed = |_| async { Err(anyhow::anyhow!("a watch ended")) };
    let result = run_while_leading(client, "op", TIMING, CancellationToken::new(), |_| {}, failed).await;
    assert_eq!(result.unwrap_err().to_string(), "a watch ended");
    assert_eq!(server.holder(), "", "the lease is released for the next start");
}
