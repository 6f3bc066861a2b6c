//! Peers that are slow, silent or greedy. Whatever they do, others are served meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Scenario;
use crate::client::{Ask, RawAnswer};
use crate::harness::{Bench, Replica, eventually};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![
        a_thousand_idle_connections_keep_nobody_out,
        slow_headers_keep_nobody_out,
        one_tenants_slow_bodies_keep_no_other_out,
        ten_megabytes_are_refused_and_the_refusal_is_read,
        a_peer_that_never_reads_is_put_out,
    ]
}

const IDLE: usize = 1000;
/// Within which others are served, on a machine that does other things too.
const SOON: Duration = Duration::from_secs(5);

fn flags(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// Somebody else asks for their list, and gets it soon.
async fn served(bench: &Bench, replica: &Replica, token: &str) -> Result<()> {
    let began = Instant::now();
    Ask::get("/api/v0/computers").by(token).send(&bench.http, &replica.base).await?.is(200)?;
    ensure!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
    Ok(())
}

/// Reads until the server closes.
async fn rest(mut stream: TcpStream, limit: Duration) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    // A reset is an end as well.
    let _ = tokio::time::timeout(limit, stream.read_to_end(&mut all)).await.context("the server keeps it open")?;
    Ok(all)
}

async fn a_thousand_idle_connections_keep_nobody_out(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("idle").await?;
    let replica = bench.replica("idle", &flags(&["--read-seconds=8"])).await?;
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(TcpStream::connect(replica.address).await?);
    }
    for _ in 0..5 {
        served(&bench, &replica, &token).await?;
    }
    // And they do not stay for ever.
    let mut ends = tokio::task::JoinSet::new();
    for stream in idle {
        ends.spawn(rest(stream, Duration::from_secs(40)));
    }
    while let Some(end) = ends.join_next().await {
        end??;
    }
    served(&bench, &replica, &token).await
}

async fn slow_headers_keep_nobody_out(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("drip").await?;
    let replica = bench.replica("slow-headers", &flags(&["--read-seconds=3", "--max-in-flight=8"])).await?;
    let mut drips = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let address = replica.address;
        drips.spawn(async move {
            let (began, mut stream) = (Instant::now(), TcpStream::connect(address).await?);
            stream.write_all(b"GET /api/v0/computers HTTP/1.1\r\nHost: h\r\nx: ").await?;
            // Each byte comes in time; the whole never does.
            while began.elapsed() < Duration::from_secs(30) {
                if stream.write_all(b"y").await.is_err() {
                    return Ok(began.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            anyhow::bail!("it was let go on for 30 s")
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

async fn one_tenants_slow_bodies_keep_no_other_out(bench: Arc<Bench>) -> Result<()> {
    let ((_, greedy), (_, other)) = (bench.tenant("greedy").await?, bench.tenant("patient").await?);
    let replica = bench.replica("slow-bodies", &flags(&["--read-seconds=6", "--max-in-flight=8"])).await?;
    let head = format!(
        "POST /api/v0/computers HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {greedy}\r\nContent-Type: application/json\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{{"
    );
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(replica.address).await?;
        stream.write_all(head.as_bytes()).await?;
        streams.push(stream);
    }
    // Once it is known whose they are, all but half of the slots are free again.
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
    ensure!(slow == 4 && refused == 16, "{slow} were waited for, {refused} refused");
    served(&bench, &replica, &greedy).await
}

/// A client that sends everything before it reads still gets to read why it was refused.
async fn ten_megabytes_are_refused_and_the_refusal_is_read(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("large").await?;
    let body = vec![b'x'; 10 * 1024 * 1024];
    for (credential, code) in [(token.as_str(), 413), ("nobody", 401)] {
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

/// It asks for large answers on and on and takes none.
async fn a_peer_that_never_reads_is_put_out(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("deaf").await?;
    let replica = bench.replica("deaf", &[]).await?;
    let mut stream = TcpStream::connect(replica.address).await?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        let request = b"GET /openapi.json HTTP/1.1\r\nHost: h\r\n\r\n";
        // When the server stops reading, this waits; when it closes, this fails.
        match tokio::time::timeout(Duration::from_secs(45), stream.write_all(request)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return served(&bench, &replica, &token).await,
            Err(_) => anyhow::bail!("a peer that reads nothing keeps its connection"),
        }
    }
    let body = json!({"note": "the peer is still connected"});
    anyhow::bail!("{body}")
}
