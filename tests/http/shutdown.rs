//! SIGTERM: new requests are accepted during the shutdown delay, then no more; requests in flight are answered, waiting deletions return their state, and
//! the process exits.

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
    xtask::scenarios![requests_in_flight_are_finished, new_requests_are_served_during_the_shutdown_delay]
}

/// Proxies and clients notice the removal of an endpoint later than the process; their requests must not fail.
async fn new_requests_are_served_during_the_shutdown_delay(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("withdrawn").await?;
    let delay = Duration::from_secs(4);
    let mut replica = bench.replica("withdrawn", &[format!("--shutdown-delay-seconds={}", delay.as_secs())]).await?;
    let began = Instant::now();
    replica.process.terminate()?;
    eventually("the replica is not ready", || async {
        let answer = bench.http.get(format!("http://{}/readyz", replica.metrics)).send().await?;
        Ok((answer.status() == 503).then_some(()))
    })
    .await?;
    ensure!(began.elapsed() < delay, "the machine is too busy: readiness was reported too late");
    let mut served = 0;
    let refused = loop {
        // A new connection for each request, like a load balancer that has not noticed the shutdown.
        let fresh = reqwest::Client::builder().pool_max_idle_per_host(0).build()?;
        let sent = began.elapsed();
        match Ask::get("/api/v0/computers").by(&token).send(&fresh, &replica.base).await {
            Ok(answer) => drop(answer.is(200)?),
            Err(_) => break sent,
        }
        served += 1;
        ensure!(sent < Duration::from_secs(30), "the replica does not stop");
    };
    ensure!(
        served > 0 && refused + Duration::from_millis(500) > delay,
        "{served} requests were served, the first was rejected after {refused:?}"
    );
    let status = replica.process.ended(Duration::from_secs(15)).await?;
    ensure!(status.success(), "{status}");
    Ok(())
}

async fn requests_in_flight_are_finished(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("stop").await?;
    let mut replica = bench.replica("stopping", &["--shutdown-delay-seconds=1".to_owned()]).await?;
    let held = bench.byom(&token, "held").await?;
    bench.hold(&held).await?;
    // A waiting deletion, a request with half of its body, and an idle connection.
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
    eventually("the deletion has begun", || async { Ok(bench.object(&held).await?.metadata.deletion_timestamp) }).await?;
    // Both requests are in their handlers once a later request on another connection has been answered.
    Ask::get("/api/v0/computers").by(&token).send(&bench.http, &replica.base).await?.is(200)?;
    let began = Instant::now();
    replica.process.terminate()?;
    let waited = waiting.await??.is(204)?;
    ensure!(waited.header("deletion-state") == "InProgress" && began.elapsed() < Duration::from_secs(10), "{waited:?}");
    eventually("new connections are refused", || async { Ok(TcpStream::connect(replica.address).await.err()) }).await?;
    half.write_all(&body.as_bytes()[10..]).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), half.read_to_end(&mut answer)).await??;
    let answer = RawAnswer::parse(&answer)?;
    ensure!(answer.status == 201, "{answer:?}");
    let status = replica.process.ended(Duration::from_secs(15)).await?;
    ensure!(status.success(), "{status}");
    ensure!(idle.read(&mut [0]).await.unwrap_or(0) == 0, "the idle connection is still open");
    bench.send(Ask::get("/api/v0/computers/name/late").by(&token)).await?.is(200)?;
    bench.release(&held).await
}
