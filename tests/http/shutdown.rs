//! SIGTERM: who still sends new requests is served for a while, then nobody new is let in, what is in flight is answered, who waits is
//! told where things stand, and the process ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Scenario;
use crate::client::{Ask, RawAnswer};
use crate::harness::{Bench, eventually};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![what_is_in_flight_is_finished, new_requests_are_served_until_the_endpoint_is_withdrawn]
}

/// Proxies and other replicas' clients hear of an endpoint's end later than the process does: none of them must meet a closed door.
async fn new_requests_are_served_until_the_endpoint_is_withdrawn(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("withdrawn").await?;
    let delay = Duration::from_secs(4);
    let mut replica = bench.replica("withdrawn", &[format!("--shutdown-delay-seconds={}", delay.as_secs())]).await?;
    let began = Instant::now();
    replica.process.terminate()?;
    eventually("it is not ready any more", || async {
        let answer = bench.http.get(format!("http://{}/readyz", replica.metrics)).send().await?;
        Ok((answer.status() == 503).then_some(()))
    })
    .await?;
    ensure!(began.elapsed() < delay, "a busy machine: it was told too late whether it is ready");
    let mut served = 0;
    let refused = loop {
        // A connection of its own for each, as a balancer that knows nothing yet makes it.
        let fresh = reqwest::Client::builder().pool_max_idle_per_host(0).build()?;
        let sent = began.elapsed();
        match Ask::get("/api/v0/computers").by(&token).send(&fresh, &replica.base).await {
            Ok(answer) => drop(answer.is(200)?),
            Err(_) => break sent,
        }
        served += 1;
        ensure!(sent < Duration::from_secs(30), "it never ends");
    };
    ensure!(served > 0 && refused + Duration::from_millis(500) > delay, "{served} were served, the first was refused after {refused:?}");
    let status = replica.process.ended(Duration::from_secs(15)).await?;
    ensure!(status.success(), "{status}");
    Ok(())
}

async fn what_is_in_flight_is_finished(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("stop").await?;
    let mut replica = bench.replica("stopping", &["--shutdown-delay-seconds=1".to_owned()]).await?;
    let held = bench.byom(&token, "held").await?;
    bench.hold(&held).await?;
    // One that waits, one whose body is half there, one that is idle, one between two requests.
    let waiting = {
        let (http, base) = (bench.http.clone(), replica.base.clone());
        let ask = Ask::delete(format!("/api/v0/computers/{held}?wait=300")).by(&token);
        tokio::spawn(async move { ask.send(&http, &base).await })
    };
    let body = json!({"name": "late", "remoteUser": "dev", "provider": "byom"}).to_string();
    let mut half = TcpStream::connect(replica.address).await?;
    let request = format!(
        "POST /api/v0/computers HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
        body.len(),
        &body[..10]
    );
    half.write_all(request.as_bytes()).await?;
    let mut idle = TcpStream::connect(replica.address).await?;
    eventually("the deletion is under way", || async { Ok(bench.object(&held).await?.metadata.deletion_timestamp) }).await?;
    // Both are in their handlers: the third request behind them on another connection was answered.
    Ask::get("/api/v0/computers").by(&token).send(&bench.http, &replica.base).await?.is(200)?;
    let began = Instant::now();
    replica.process.terminate()?;
    let waited = waiting.await??.is(204)?;
    ensure!(waited.header("deletion-state") == "InProgress" && began.elapsed() < Duration::from_secs(10), "{waited:?}");
    eventually("nobody new is let in", || async { Ok(TcpStream::connect(replica.address).await.err()) }).await?;
    half.write_all(&body.as_bytes()[10..]).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), half.read_to_end(&mut answer)).await??;
    let answer = RawAnswer::parse(&answer)?;
    ensure!(answer.status == 201, "{answer:?}");
    let status = replica.process.ended(Duration::from_secs(15)).await?;
    ensure!(status.success(), "{status}");
    ensure!(idle.read(&mut [0]).await.unwrap_or(0) == 0, "an idle connection is closed");
    bench.send(Ask::get("/api/v0/computers/name/late").by(&token)).await?.is(200)?;
    bench.let_go(&held).await
}
