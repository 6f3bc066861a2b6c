//! No total time limit (L8): at 500 kB/s, everything that moves an archive takes longer than the limits that once existed, 120 s for an upload and 180 s for a
//! read, and succeeds. Each way has a line of its own, the clock is the real one, and every limit of the code is its default.

use std::convert::Infallible;

use axum::http::{Request, Response};
use computer_operator::archive::ingest::{LIMITS, readers, reads, tls};
use computer_operator::archive::reading::read;
use computer_operator::archive::remote::{Endpoint, Remote};
use computer_operator::archive::tar_scan::Sink;
use computer_operator::archive::{Archive, Verification};
use computer_operator::runtime::server;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::fair::{Operator, archive, send};
use super::*;

/// Bytes per second.
const RATE: u64 = 500_000;
/// The former limits.
const UPLOAD: Duration = Duration::from_secs(120);
const READ: Duration = Duration::from_secs(180);
/// More bytes than each lets through.
const UPLOADED: usize = 62_000_000;
const STORED: usize = 92_000_000;
/// What takes this long hangs. A machine that is busy with other work does not forward 500 kB/s.
const HANGS: Duration = Duration::from_secs(1200);

type Outcome = Result<(), String>;

/// Everything that runs at the same time, and what failed.
#[derive(Default)]
struct Legs(JoinSet<(&'static str, Duration, Duration, Outcome)>);

impl Legs {
    /// Begins one, which must take longer than `least`.
    fn begin(&mut self, name: &'static str, least: Duration, leg: impl Future<Output = Outcome> + Send + 'static) {
        self.0.spawn(async move {
            let began = Instant::now();
            let outcome = tokio::time::timeout(HANGS, leg).await.unwrap_or_else(|_| Err("it hangs".to_owned()));
            (name, least, began.elapsed(), outcome)
        });
    }

    async fn succeed(mut self) {
        let mut wrong = Vec::new();
        while let Some(ended) = self.0.join_next().await {
            let panicked = |error: tokio::task::JoinError| ("one of them", Duration::ZERO, Duration::ZERO, Err(error.to_string()));
            let (name, least, took, outcome) = ended.unwrap_or_else(panicked);
            println!("{name}: {took:?}, {outcome:?}");
            match outcome {
                Err(why) => wrong.push(format!("{name}: {why} after {took:?}")),
                Ok(()) if took < least => wrong.push(format!("{name}: took only {took:?}: it is not slow")),
                Ok(()) => {}
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// The reading half of the operator's endpoint, as the HTTP API reaches it over a slow line.
struct Reader {
    remote: Arc<Remote>,
    _folder: tempfile::TempDir,
    _stop: DropGuard,
}

impl Reader {
    fn of(store: Store) -> Self {
        let service = tower::service_fn(|_: Request<kube::client::Body>| async {
            let extra = json!({"authentication.kubernetes.io/pod-name": ["api"], "authentication.kubernetes.io/pod-uid": ["api"]});
            let user = json!({"username": "system:serviceaccount:ops:api", "extra": extra});
            let review = json!({"spec": {}, "status": {"authenticated": true, "audiences": [readers::AUDIENCE], "user": user}});
            Ok::<_, Infallible>(Response::new(kube::client::Body::from(review.to_string().into_bytes())))
        });
        let readers = readers::Readers::new(kube::Client::new(service, "ops"), "ops", Some("api"));
        let certificate = tls::Certificate::new("https://$(INGEST_SERVICE_HOST):8443").unwrap();
        let listener = server::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let router = reads::router(Arc::new(store), readers);
        tokio::spawn(server::run(listener, Some(certificate.acceptor().unwrap()), router, LIMITS, stop.clone()));
        let folder = tempfile::tempdir().unwrap();
        let (ca, token) = (folder.path().join("ca.crt"), folder.path().join("token"));
        std::fs::write(&ca, &certificate.ca_pem).unwrap();
        std::fs::write(&token, "token").unwrap();
        let line = test_relay::shared_line(address, RATE);
        let remote = Arc::new(Remote::new(Endpoint::Address(line.to_string()), ca, token));
        Self { remote, _folder: folder, _stop: stop.drop_guard() }
    }
}

/// The content is compared by the reader itself.
struct Compared;

impl Sink for Compared {}

fn valid(verification: &Verification) -> Outcome {
    if matches!(verification, Verification::Valid(_)) { Ok(()) } else { Err(format!("{verification:?}")) }
}

/// Runs `archives export`, whose output is read at this rate, and compares what has arrived with what the program says.
async fn exported(url: String, uid: &'static str, rate: u64) -> Outcome {
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_computer-operator"))
        .args(["archives", "--store", &url, "export", uid])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut out, mut buffer, mut bytes, mut hash) = (child.stdout.take().unwrap(), vec![0; 64 * 1024], 0, Sha256::new());
    let began = Instant::now();
    loop {
        let read = out.read(&mut buffer).await.unwrap();
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
        tokio::time::sleep(Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate).saturating_sub(began.elapsed())).await;
    }
    let ended = child.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    let expected = format!("tar: {bytes} bytes, sha256 {}", hex::encode(hash.finalize()));
    let whole = ended.status.success() && said.contains(&expected) && bytes > STORED as u64;
    if whole { Ok(()) } else { Err(format!("{:?}, {bytes} bytes: {said}", ended.status)) }
}

/// A total limit of any of these ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes four minutes; run it with cargo test --test s3 no_total_time_limit -- --ignored --nocapture"]
async fn what_makes_progress_has_no_total_time_limit() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let (_server, url) = serve(folder.path());
    let slow = || through(&url, test_relay::shared_line(server_of(&url), RATE));
    let direct = Store::open(&url).unwrap();

    let (manifest, blobs) = archive("stored--box", STORED, Sizes::default());
    for blob in &blobs {
        direct.put_once(&chunk_key("stored--box", &blob.chunk.digest), blob.bytes.clone()).await.unwrap();
    }
    direct.put_once(&manifest_key("stored--box"), serde_json::to_vec(&manifest).unwrap()).await.unwrap();
    let (bytes, digest) = noise(STORED);
    let (one_object, uploaded) = (chunk_key("stored--box", &digest), bytes.slice(..UPLOADED));
    direct.put_once(&one_object, bytes).await.unwrap();
    let sent = archive("sent--box", UPLOADED, Sizes::default());

    let mut legs = Legs::default();
    let store = Store::open(&slow()).unwrap();
    legs.begin("one request that writes to the store", UPLOAD, async move {
        store.put_once("archives/one/chunks/object", uploaded).await.map(drop).map_err(|e| e.to_string())
    });
    let store = Store::open(&slow()).unwrap();
    legs.begin("one request that reads from the store", READ, async move {
        store.get_sized(&one_object, STORED as u64).await.map(drop).map_err(|e| e.to_string())
    });
    let operator = Operator::of(direct.clone());
    legs.begin("the upload of an archive pod", UPLOAD, async move {
        let line = test_relay::shared_line(operator.address, RATE);
        send(&operator.pod("sent--box", line), sent).await;
        valid(&operator.verified("sent--box").await)
    });
    let operator = Operator::of(Store::open(&slow()).unwrap());
    legs.begin("the read-back of a deletion", READ, async move { valid(&operator.verified("stored--box").await) });
    let reader = Reader::of(direct);
    legs.begin("a download over the HTTP API, from the operator", READ, async move {
        let manifest = reader.remote.manifest("stored", "stored--box").await.map_err(|e| e.to_string())?;
        let archive = Archive::parse(&manifest).map_err(|e| e.to_string())?;
        read(&reader.remote.store("stored"), &archive, None, Compared).await.map(drop).map_err(|e| e.to_string())
    });
    legs.begin("an export from a slow store", READ, exported(slow(), "stored--box", u64::MAX));
    legs.begin("an export to a slow reader", READ, exported(url.clone(), "stored--box", RATE));
    legs.succeed().await;
}
