//! Fairness (L3): large archives of some tenants, and small ones of others, behind a slow line. Archive pods send to the operator's endpoint, which
//! authenticates them by the API server's answers, and which stores to a real S3 server.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::LazyLock;

use axum::http::{Request, Response};
use computer_operator::archive::home_size::{Amount, SoFar};
use computer_operator::archive::ingest::{self, auth, handlers, tls};
use computer_operator::archive::manifest::Chunk;
use computer_operator::archive::sender::Sender;
use computer_operator::archive::{Archives, Origin};
use computer_operator::computer::metrics::Metrics;
use computer_operator::resources::UID_LABEL;
use computer_operator::runtime::server;
use futures::{StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;

/// The metric of waits belongs to the process, so one test at a time uses it.
static ALONE: LazyLock<Mutex<()>> = LazyLock::new(Mutex::default);

/// The namespace of a computer of these tests.
fn namespace(uid: &str) -> &str {
    uid.split_once("--").unwrap().0
}

/// What the API server says about archive pods, whose tokens are the UIDs of their computers.
fn answer(path: &str, body: &Value) -> Value {
    let name = path.rsplit('/').next().unwrap();
    match path.split('/').rev().nth(1).unwrap() {
        "pods" => json!({"metadata": {"name": name, "uid": name, "labels": {UID_LABEL: name}}}),
        "computerrecords" => {
            json!({"metadata": {"name": name}, "spec": {"namespace": namespace(name), "computer": "c", "state": {"deletion":
            {"deletedAt": "2026-01-01T00:00:00Z", "cause": "ComputerDeleted", "custody": {"claimUid": "claim", "podUid": name}}}}})
        }
        _ => {
            let uid = &body["spec"]["token"];
            let extra = json!({"authentication.kubernetes.io/pod-name": [uid], "authentication.kubernetes.io/pod-uid": [uid]});
            let user = json!({"username": "system:serviceaccount:ops:archive", "extra": extra});
            json!({"spec": {}, "status": {"authenticated": true, "audiences": [auth::AUDIENCE], "user": user}})
        }
    }
}

fn api_server() -> kube::Client {
    let service = tower::service_fn(|request: Request<Body>| async move {
        let (parts, body) = request.into_parts();
        let body = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or_default();
        Ok::<_, Infallible>(Response::new(Body::from(answer(parts.uri.path(), &body).to_string().into_bytes())))
    });
    kube::Client::new(service, "ops")
}

/// The operator's endpoint and verification.
pub struct Operator {
    pub address: SocketAddr,
    ca: String,
    archives: Arc<Archives>,
    checked: tokio::sync::broadcast::Sender<String>,
    tokens: tempfile::TempDir,
    _stop: DropGuard,
}

impl Operator {
    pub fn of(store: Store) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (sender, mut ended) = tokio::sync::mpsc::channel(64);
        let archives = Arc::new(Archives::new(Arc::new(store), sender));
        let checked = tokio::sync::broadcast::Sender::new(1024);
        let ended_checks = checked.clone();
        tokio::spawn(async move {
            while let Some(uid) = ended.recv().await {
                let _ = ended_checks.send(uid);
            }
        });
        let pods = auth::PodTokens::new(api_server(), "ops".to_owned(), "archive".to_owned());
        let pods = auth::Authenticator::Pods(Arc::new(pods));
        let router = handlers::router(Arc::clone(archives.store()), pods, Arc::clone(archives.uploads()));
        let certificate = tls::Certificate::new("https://$(INGEST_SERVICE_HOST):8443").unwrap();
        let listener = server::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        tokio::spawn(server::run(listener, Some(certificate.acceptor().unwrap()), router, ingest::LIMITS, stop.clone()));
        let tokens = tempfile::tempdir().unwrap();
        Self { address, ca: certificate.ca_pem, archives, checked, tokens, _stop: stop.drop_guard() }
    }

    /// An archive pod that reaches the endpoint at this address.
    pub fn pod(&self, uid: &str, line: SocketAddr) -> Sender {
        let token = self.tokens.path().join(uid);
        std::fs::write(&token, uid).unwrap();
        Sender::new(&format!("https://{line}"), &self.ca, uid, &token).unwrap()
    }

    /// Reads an archive back, as a deletion does.
    pub async fn verified(&self, uid: &str) -> Verification {
        let mut checked = self.checked.subscribe();
        let origin =
            Origin { custody_claim: Some("claim".to_owned()), deleted_at: 0, namespace: namespace(uid).to_owned(), ended_pod: None };
        loop {
            match self.archives.check(uid, &origin) {
                Verification::Running => while checked.recv().await.unwrap() != uid {},
                ended => return ended,
            }
        }
    }
}

/// An archive of one session of noise.
pub fn archive(uid: &str, bytes: usize, sizes: Sizes) -> (Manifest, Vec<Blob>) {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("a.jsonl"), noise(bytes).0).unwrap();
    let of = ManifestComputer { namespace: namespace(uid).to_owned(), namespace_uid: None, name: "c".to_owned(), uid: uid.to_owned() };
    let (mut manifest, mut blobs) = (Manifest::empty(of, 1), Vec::new());
    "claim".clone_into(&mut manifest.custody_claim);
    let (progress, tally) = (Arc::default(), Arc::default());
    let request = pack::Request { home: home.path(), session_paths: &[], unreadable: Unreadable::Block, sizes, progress, tally };
    let mut take = |blob| {
        blobs.push(blob);
        Ok(())
    };
    pack::pack(&request, &mut manifest, &mut take).unwrap();
    (manifest, blobs)
}

/// Sends an archive as its pod does: three chunks at once, then the manifest.
pub async fn send(pod: &Sender, (manifest, blobs): (Manifest, Vec<Blob>)) {
    let so_far = || SoFar { done: Amount { sessions: 1, bytes: 1 }, total: None };
    let chunks = futures::stream::iter(blobs).map(|blob| async move { pod.chunk(&blob, so_far).await });
    chunks.buffer_unordered(3).try_collect::<()>().await.unwrap();
    pod.manifest(serde_json::to_vec(&manifest).unwrap()).await.unwrap();
}

/// The slots that small archives need.
const SMALL_SLOTS: [&str; 3] = ["small-chunk", "small-manifest", "small-verification"];

/// Requests that were turned away, by slot.
fn refusals() -> BTreeMap<String, u64> {
    let text = Metrics::new().text().unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("computer_operator_archive_slot_refusals_total{slot=\""));
    lines.filter_map(|line| line.split_once("\"} ")).map(|(slot, count)| (slot.to_owned(), count.parse().unwrap())).collect()
}

/// Waits for a slot until now: by slot, all of them and those of at most 2 s.
fn waits() -> BTreeMap<String, (u64, u64)> {
    let mut waits = BTreeMap::<_, (u64, u64)>::new();
    for line in Metrics::new().text().unwrap().lines() {
        let Some(rest) = line.strip_prefix("computer_operator_archive_slot_wait_seconds_") else { continue };
        let (labels, value) = rest.rsplit_once(' ').unwrap();
        let slot = labels.split_once("slot=\"").unwrap().1.split('"').next().unwrap();
        let of = waits.entry(slot.to_owned()).or_default();
        match labels.split_once('{').unwrap().0 {
            "count" => of.0 = value.parse().unwrap(),
            "bucket" if labels.contains("le=\"2.0\"") => of.1 = value.parse().unwrap(),
            _ => {}
        }
    }
    waits
}

/// Three giants of three tenants upload, and three others are read back, over one slow line to the store. Meanwhile twenty small archives of twenty
/// other tenants are stored and read back: none of them waits for more than 2 s for any slot. All archives are stored and verified.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn small_archives_do_not_wait_for_giants() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let (_server, url) = serve(folder.path());
    let line = test_relay::shared_line(server_of(&url), 6_000_000);
    let operator = Arc::new(Operator::of(Store::open(&through(&url, line)).unwrap()));
    let (direct, mut giants) = (Store::open(&url).unwrap(), JoinSet::new());
    let mut packed = Vec::new();
    for n in 0..3 {
        let (sent, stored) = (format!("sent-{n}--giant"), format!("stored-{n}--giant"));
        packed.push((sent.clone(), archive(&sent, 17_000_000, Sizes::default())));
        // Of so many objects that it is large.
        let (manifest, blobs) = archive(&stored, 12_000_000, Sizes { frame: 20_000, chunk: 40_000 });
        for blob in &blobs {
            direct.put_once(&chunk_key(&stored, &blob.chunk.digest), blob.bytes.clone()).await.unwrap();
        }
        direct.put_once(&manifest_key(&stored), serde_json::to_vec(&manifest).unwrap()).await.unwrap();
        let operator = Arc::clone(&operator);
        giants.spawn(async move { operator.verified(&stored).await });
    }
    for (uid, archive) in packed {
        let operator = Arc::clone(&operator);
        giants.spawn(async move { sent(&operator, &uid, archive).await });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, began, mut small) = (waits(), Instant::now(), JoinSet::new());
    for n in 0..20 {
        let (uid, operator) = (format!("small-{n}--box"), Arc::clone(&operator));
        // Archive pods do not start at the same moment.
        tokio::time::sleep(Duration::from_millis(100)).await;
        small.spawn(async move { sent(&operator, &uid, archive(&uid, 20_000, Sizes::default())).await });
    }
    all_valid(&mut small).await;
    let (took, after) = (began.elapsed(), waits());
    println!("twenty small archives in {took:?}; waits for slots, all and of at most 2 s: {before:?} before, {after:?} after");
    while let Some(ended) = giants.try_join_next() {
        assert!(matches!(ended.unwrap(), Verification::Valid(_)));
    }
    assert!(!giants.is_empty(), "the giants have ended before");
    assert_short(&before, &after);
    let refused = refusals();
    assert!(
        SMALL_SLOTS.iter().all(|slot| !refused.contains_key(*slot)),
        "small archives were turned away, which no wait shows: {refused:?}"
    );
    let rest = giants.len();
    all_valid(&mut giants).await;
    println!("the last {rest} giants took {:?} more", began.elapsed().saturating_sub(took));
}

/// Sends an archive and reads it back.
async fn sent(operator: &Operator, uid: &str, archive: (Manifest, Vec<Blob>)) -> Verification {
    send(&operator.pod(uid, operator.address), archive).await;
    operator.verified(uid).await
}

/// At most one in a hundred waits was longer than 2 s, of each slot that small archives need.
fn assert_short(before: &BTreeMap<String, (u64, u64)>, after: &BTreeMap<String, (u64, u64)>) {
    for slot in SMALL_SLOTS {
        let of = |waits: &BTreeMap<String, (u64, u64)>| waits.get(slot).copied().unwrap_or_default();
        let (all, short) = (of(after).0 - of(before).0, of(after).1 - of(before).1);
        assert!(all >= 20, "{slot}: {all} waits");
        assert!(all - short <= all / 100, "{slot}: {} of {all} waited for more than 2 s", all - short);
    }
}

async fn all_valid(archives: &mut JoinSet<Verification>) {
    while let Some(ended) = archives.join_next().await {
        assert!(matches!(ended.unwrap(), Verification::Valid(_)));
    }
}

/// Six archive pods of one namespace share a line of this many bytes per second to the operator.
async fn six_uploads(rate: u64, bytes: usize) {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let (_server, url) = serve(folder.path());
    let operator = Arc::new(Operator::of(Store::open(&url).unwrap()));
    let line = test_relay::shared_line(operator.address, rate);
    let (began, mut uploads) = (Instant::now(), JoinSet::new());
    for n in 0..6 {
        let (uid, operator) = (format!("team--{n}"), Arc::clone(&operator));
        uploads.spawn(async move {
            send(&operator.pod(&uid, line), archive(&uid, bytes, Sizes::default())).await;
            operator.verified(&uid).await
        });
    }
    all_valid(&mut uploads).await;
    let (took, least) = (began.elapsed(), Duration::from_secs(6 * bytes as u64 / rate));
    println!("six uploads of {bytes} bytes at {rate} bytes per second: {took:?}");
    assert!(took >= least, "the line is not slow: {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn six_uploads_that_share_500_kilobytes_per_second_all_finish() {
    six_uploads(500_000, 1_500_000).await;
}

/// The same with chunks of the largest size: one of them takes 100 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes eight minutes; run it with cargo test --test s3 large_uploads -- --ignored --nocapture"]
async fn six_large_uploads_that_share_500_kilobytes_per_second_all_finish() {
    six_uploads(500_000, 40_000_000).await;
}

/// A hundred archive pods of one tenant, each with three chunks on their way, once had all connections of the endpoint for as long as they sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_tenant_with_a_hundred_archive_pods_leaves_connections_to_others() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let (_server, url) = serve(folder.path());
    let line = test_relay::shared_line(server_of(&url), 1_000_000);
    let operator = Arc::new(Operator::of(Store::open(&through(&url, line)).unwrap()));
    let (bytes, digest) = noise(2_000_000);
    let blob = Blob { chunk: Chunk { digest, size: bytes.len() as u64 }, bytes };
    let (sent, mut pods) = (Arc::new(tokio::sync::Semaphore::new(0)), JoinSet::new());
    for n in 0..100 {
        let (pod, blob, sent) = (Arc::new(operator.pod(&format!("giant--{n}"), operator.address)), blob.clone(), Arc::clone(&sent));
        for _ in 0..3 {
            let (pod, blob, sent) = (Arc::clone(&pod), blob.clone(), Arc::clone(&sent));
            pods.spawn(async move {
                pod.chunk(&blob, || SoFar { done: Amount { sessions: 1, bytes: 1 }, total: None }).await.unwrap();
                sent.add_permits(1);
            });
        }
    }
    drop(sent.acquire_many(3).await.unwrap());
    let began = Instant::now();
    send(&operator.pod("small--box", operator.address), archive("small--box", 1000, Sizes::default())).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert!(sent.available_permits() < 200, "the giants have ended");
    println!("a small archive was stored in {took:?}");
}
