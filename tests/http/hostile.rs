//! Clients that are slow, silent or greedy must not affect others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::Scenario;
use crate::client::{Ask, RawAnswer, raw};
use crate::harness::{Bench, Replica, SYSTEM, eventually};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![
        a_thousand_idle_connections_do_not_block_others,
        slow_headers_do_not_block_others,
        slow_bodies_of_one_tenant_do_not_block_others,
        slow_bodies_of_two_tenants_do_not_block_others,
        a_large_body_is_rejected_and_the_response_can_be_read,
        a_client_that_never_reads_is_disconnected,
        invalid_http_is_answered_with_the_error_object,
    ]
}

/// These scenarios run alone, because they measure the memory of processes that other scenarios use.
pub fn alone() -> Vec<Scenario> {
    xtask::scenarios![
        unfinished_heads_use_little_memory_of_the_api,
        unfinished_heads_use_little_memory_of_the_metrics_port,
        unfinished_heads_use_little_memory_of_the_operator,
    ]
}

const IDLE: usize = 1000;
/// Time within which other clients must be served, on a busy machine.
const SOON: Duration = Duration::from_secs(5);

fn flags(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// Requires that another client gets its list soon.
async fn served(bench: &Bench, replica: &Replica, token: &str) -> Result<()> {
    let began = Instant::now();
    Ask::get("/api/v0/computers").by(token).send(&bench.http, &replica.base).await?.is(200)?;
    ensure!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
    Ok(())
}

/// Reads until the server closes the connection.
async fn rest(mut stream: TcpStream, limit: Duration) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    // A reset also closes the connection.
    let _ = tokio::time::timeout(limit, stream.read_to_end(&mut all)).await.context("the server does not close the connection")?;
    Ok(all)
}

async fn a_thousand_idle_connections_do_not_block_others(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("idle").await?;
    let replica = bench.replica("idle", &flags(&["--read-seconds=8"])).await?;
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(TcpStream::connect(replica.address).await?);
    }
    for _ in 0..5 {
        served(&bench, &replica, &token).await?;
    }
    // Idle connections are closed in the end.
    let mut ends = tokio::task::JoinSet::new();
    for stream in idle {
        ends.spawn(rest(stream, Duration::from_secs(40)));
    }
    while let Some(end) = ends.join_next().await {
        end??;
    }
    served(&bench, &replica, &token).await
}

async fn slow_headers_do_not_block_others(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("drip").await?;
    let replica = bench.replica("slow-headers", &flags(&["--read-seconds=3", "--max-in-flight=8"])).await?;
    let mut drips = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let address = replica.address;
        drips.spawn(async move {
            let (began, mut stream) = (Instant::now(), TcpStream::connect(address).await?);
            stream.write_all(b"GET /api/v0/computers HTTP/1.1\r\nHost: h\r\nx: ").await?;
            // Every byte arrives in time, but the head is never complete.
            while began.elapsed() < Duration::from_secs(30) {
                if stream.write_all(b"y").await.is_err() {
                    return Ok(began.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            anyhow::bail!("the connection was not closed within 30 s")
        });
    }
    for _ in 0..5 {
        served(&bench, &replica, &token).await?;
    }
    while let Some(end) = drips.join_next().await {
        end??;
    }
    served(&bench, &replica, &token).await
}

/// Opens 20 requests with a body that never ends. Those that exceed the limits are rejected.
async fn slow_bodies(replica: &Replica, token: &str) -> Result<Vec<TcpStream>> {
    let head = format!(
        "POST /api/v0/computers HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{{"
    );
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(replica.address).await?;
        stream.write_all(head.as_bytes()).await?;
        streams.push(stream);
    }
    Ok(streams)
}

/// Opens requests with a body that never ends until the tenant holds as many slots as it can get. One round is not always enough: on a busy machine, requests
/// are rejected because the previous ones still hold their slots.
async fn greedy(bench: &Bench, replica: &Replica, token: &str) -> Result<Vec<TcpStream>> {
    let held = tokio::sync::Mutex::new(Vec::new());
    eventually("the tenant has its share", || async {
        held.lock().await.extend(slow_bodies(replica, token).await?);
        limited(bench, replica, token).await
    })
    .await?;
    Ok(held.into_inner())
}

/// Whether a tenant holds as many slots as it can get.
async fn limited(bench: &Bench, replica: &Replica, token: &str) -> Result<Option<()>> {
    let answer = Ask::get("/api/v0/computers").by(token).send(&bench.http, &replica.base).await?;
    match answer.status {
        429 => Ok(Some(())),
        200 | 503 => Ok(None),
        _ => anyhow::bail!("{answer:?}"),
    }
}

/// L9: two tenants with their halves held all slots, and every other tenant got 503, even for a DELETE.
async fn slow_bodies_of_two_tenants_do_not_block_others(bench: Arc<Bench>) -> Result<()> {
    let ((_, one), (_, two), (_, other)) =
        (bench.tenant("greedy-one").await?, bench.tenant("greedy-two").await?, bench.tenant("third").await?);
    let id = bench.byom(&other, "box").await?;
    let replica = bench.replica("two-slow", &flags(&["--read-seconds=60", "--max-in-flight=8"])).await?;
    let slow = greedy(&bench, &replica, &one).await?;
    let more = greedy(&bench, &replica, &two).await?;
    // The requests that were rejected hold slots until they have been answered.
    eventually("another tenant is served", || async { served(&bench, &replica, &other).await.map(Some) }).await?;
    for _ in 0..3 {
        served(&bench, &replica, &other).await?;
    }
    Ask::delete(format!("/api/v0/computers/{id}")).by(&other).send(&bench.http, &replica.base).await?.is(204)?;
    for token in [&one, &two] {
        ensure!(limited(&bench, &replica, token).await?.is_some(), "both tenants still hold what they got");
    }
    drop((slow, more));
    Ok(())
}

async fn slow_bodies_of_one_tenant_do_not_block_others(bench: Arc<Bench>) -> Result<()> {
    let ((_, greedy), (_, other)) = (bench.tenant("greedy").await?, bench.tenant("patient").await?);
    let replica = bench.replica("slow-bodies", &flags(&["--read-seconds=6", "--max-in-flight=8"])).await?;
    let streams = slow_bodies(&replica, &greedy).await?;
    // Once the tenant is authenticated, it keeps at most half of the slots.
    let busy = eventually("the tenant has its share", || async {
        let answer = Ask::get("/api/v0/computers").by(&greedy).send(&bench.http, &replica.base).await?;
        Ok((answer.status != 503).then_some(answer))
    })
    .await?;
    let busy = busy.says(429, "too many requests of your namespace")?;
    for _ in 0..5 {
        served(&bench, &replica, &other).await?;
    }
    ensure!(busy.header("retry-after") == "1", "{busy:?}");
    let (mut slow, mut refused) = (0, 0);
    for stream in streams {
        let answer = RawAnswer::parse(&rest(stream, Duration::from_secs(30)).await?)?;
        match answer.status {
            408 => slow += 1,
            429 | 503 => refused += 1,
            _ => anyhow::bail!("{answer:?}"),
        }
        answer.is_error(answer.status)?;
    }
    ensure!(slow == 4 && refused == 16, "{slow} timed out, {refused} were rejected");
    served(&bench, &replica, &greedy).await
}

/// A client that sends its whole body before it reads can still read why the request was rejected.
async fn a_large_body_is_rejected_and_the_response_can_be_read(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("large").await?;
    let body = vec![b'x'; 10 * 1024 * 1024];
    for (credential, code) in [(token.as_str(), 413), ("invalid", 401)] {
        for framing in [format!("Content-Length: {}", body.len()), "Transfer-Encoding: chunked".to_owned()] {
            let mut stream = TcpStream::connect(bench.replicas[0].address).await?;
            let head = format!(
                "POST /api/v0/computers HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {credential}\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await?;
            if framing.starts_with("Transfer") {
                stream.write_all(format!("{:x}\r\n", body.len()).as_bytes()).await?;
            }
            stream.write_all(&body).await.context("sending")?;
            if framing.starts_with("Transfer") {
                stream.write_all(b"\r\n0\r\n\r\n").await?;
            }
            let answer = RawAnswer::parse(&rest(stream, Duration::from_secs(20)).await?).with_context(|| format!("{framing}: {code}"))?;
            answer.is_error(code)?;
        }
        let answer = bench.send_to(0, Ask::post("/api/v0/computers").by(credential).raw("application/json", body.clone())).await?;
        answer.is(code)?;
    }
    served(&bench, &bench.replicas[0], &token).await
}

/// The client keeps requesting large responses and reads none.
async fn a_client_that_never_reads_is_disconnected(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("deaf").await?;
    let replica = bench.replica("deaf", &[]).await?;
    let mut stream = TcpStream::connect(replica.address).await?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        let request = b"GET /openapi.json HTTP/1.1\r\nHost: h\r\n\r\n";
        // This blocks when the server stops reading, and fails when it closes the connection.
        match tokio::time::timeout(Duration::from_secs(45), stream.write_all(request)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return served(&bench, &replica, &token).await,
            Err(_) => anyhow::bail!("a client that never reads is still connected"),
        }
    }
    let body = json!({"note": "the client is still connected"});
    anyhow::bail!("{body}")
}

/// Number of connections with unfinished heads, and size of each head in bytes.
const HEADS: (usize, usize) = (600, 400_000);
/// Maximum growth of the process in MiB, for each port. Buffers of the kernel are not included.
const API: u64 = 64;
const METRICS: u64 = 8;
const INGEST: u64 = 32;

/// Sends a hundred header lines of 4 KB without an end, from another address than the other clients.
async fn unfinished(address: std::net::SocketAddr, tls: Option<TlsConnector>) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.2:0".parse()?)?;
    let stream = socket.connect(address).await?;
    let mut head = b"GET /livez HTTP/1.1\r\nHost: h\r\n".to_vec();
    while head.len() < HEADS.1 {
        head.extend_from_slice(format!("x-{}: {}\r\n", head.len(), "a".repeat(4000)).as_bytes());
    }
    match tls {
        None => send_and_hold(stream, &head).await,
        Some(tls) => send_and_hold(tls.connect(ServerName::try_from("computer-operator-ingest")?, stream).await?, &head).await,
    }
}

async fn send_and_hold(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, head: &[u8]) -> Result<()> {
    stream.write_all(head).await?;
    stream.flush().await?;
    let _ = stream.read_to_end(&mut Vec::new()).await;
    Ok(())
}

/// Sends unfinished heads for eight seconds. Meanwhile `others` must be served, and the process must stay small.
async fn attacked<F: Future<Output = Result<()>>>(
    address: std::net::SocketAddr,
    tls: Option<TlsConnector>,
    bound: u64,
    memory: impl Fn() -> Result<u64>,
    others: impl Fn() -> F,
) -> Result<()> {
    let before = memory()?;
    let mut attackers = JoinSet::new();
    for _ in 0..HEADS.0 {
        attackers.spawn(unfinished(address, tls.clone()));
    }
    let (began, mut most, mut slowest, mut served) = (Instant::now(), before, Duration::ZERO, 0);
    let look = async {
        while began.elapsed() < Duration::from_secs(8) {
            most = most.max(memory()?);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    let ask = async {
        while began.elapsed() < Duration::from_secs(8) {
            let sent = Instant::now();
            // The attack runs in this process and competes for its CPU.
            tokio::time::timeout(2 * SOON, others()).await.context("other clients are not served")??;
            (slowest, served) = (slowest.max(sent.elapsed()), served + 1);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    };
    let (attacked, asked) = tokio::join!(look, ask);
    attackers.shutdown().await;
    let mib = |bytes: u64| bytes / 1024 / 1024;
    println!("    {} -> {} MiB, {served} others served, the slowest after {slowest:?}", mib(before), mib(most));
    attacked.and(asked)?;
    ensure!(mib(most) <= mib(before) + bound, "{} unfinished heads: {} MiB instead of {}", HEADS.0, mib(most), mib(before));
    Ok(())
}

async fn alive(bench: &Bench, metrics: std::net::SocketAddr) -> Result<()> {
    bench.http.get(format!("http://{metrics}/livez")).send().await?.error_for_status()?;
    Ok(())
}

async fn unfinished_heads_use_little_memory_of_the_api(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("heads").await?;
    let replica = bench.replica("heads", &[]).await?;
    let listed = || async {
        Ask::get("/api/v0/computers").by(&token).send(&bench.http, &replica.base).await?.is(200)?;
        Ok(())
    };
    attacked(replica.address, None, API, || replica.process.memory(), listed).await
}

async fn unfinished_heads_use_little_memory_of_the_metrics_port(bench: Arc<Bench>) -> Result<()> {
    let replica = bench.replica("metric-heads", &[]).await?;
    let alive = || alive(&bench, replica.metrics);
    attacked(replica.metrics, None, METRICS, || replica.process.memory(), alive).await
}

/// On both ports: the ingest endpoint with TLS, and the metrics.
async fn unfinished_heads_use_little_memory_of_the_operator(bench: Arc<Bench>) -> Result<()> {
    let (ingest, metrics) = bench.operator_at.lock().unwrap().context("an operator")?;
    let secrets: Api<Secret> = Api::namespaced(bench.client.clone(), SYSTEM);
    let secret = secrets.get("computer-operator-ingest-tls").await?;
    let pem = secret.data.and_then(|mut data| data.remove("tls.crt")).context("a certificate")?.0;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem)?)?;
    let tls = TlsConnector::from(Arc::new(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()));
    let memory = || bench.operator.lock().unwrap().as_ref().context("an operator")?.memory();
    let pods = reqwest::Client::builder().tls_certs_only([reqwest::Certificate::from_pem(&pem)?]).pool_max_idle_per_host(0).build()?;
    let path = format!("https://{ingest}/ingest/v2/{}/chunks/{}", "0".repeat(32), "0".repeat(64));
    let refused = || async {
        let answer = pods.head(&path).send().await?;
        ensure!(answer.status() == 401, "{answer:?}");
        Ok(())
    };
    attacked(ingest, Some(tls), INGEST, memory, refused).await?;
    let alive = || alive(&bench, metrics);
    attacked(metrics, None, METRICS, memory, alive).await
}

/// These requests never reach a handler, but the response is still the published error object.
async fn invalid_http_is_answered_with_the_error_object(bench: Arc<Bench>) -> Result<()> {
    let address = bench.replicas[0].address;
    let get = "GET /api/v0/computers HTTP/1.1\r\nHost: h\r\n";
    let lines = "x: y\r\n".repeat(150);
    for (what, head, code) in [
        ("a long head", format!("{get}x: {}\r\n\r\n", "y".repeat(300_000)), 431),
        ("a long path", format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "y".repeat(100_000)), 431),
        ("many lines", format!("{get}{lines}\r\n"), 431),
        ("not HTTP", "hello\r\n\r\n".to_owned(), 400),
        ("no version", "GET /api/v0/computers\r\n\r\n".to_owned(), 400),
        ("an invalid length", format!("{get}Content-Length: x\r\n\r\n"), 400),
        ("two lengths", format!("{get}Content-Length: 1\r\nContent-Length: 2\r\n\r\n"), 400),
        ("an unknown transfer coding", format!("{get}Transfer-Encoding: x\r\n\r\n"), 400),
        ("a name with a space", format!("{get}a b: c\r\n\r\n"), 400),
    ] {
        let answer = raw(address, head.as_bytes()).await.context(what)?;
        answer.is_error(code).context(what)?;
        ensure!(answer.head.contains("x-request-id: "), "{what}: {answer:?}");
    }
    Ok(())
}
