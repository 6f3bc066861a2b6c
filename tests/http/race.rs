//! A computer's key during the deletion of the computer: 16 clients use it continuously on all replicas, and no request that began after the 204 is
//! authenticated (S2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use computer_operator::credentials::ComputerId;

use crate::Scenario;
use crate::client::Ask;
use crate::harness::{Bench, eventually};

const CLIENTS: usize = 16;
const ROUNDS: usize = 3;

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![no_request_after_the_204_is_authenticated, a_deletion_with_kubectl_revokes_the_key_at_once]
}

/// The start of each request and its status code.
type Seen = Vec<(Instant, u16)>;

/// Clients that send requests continuously until they are stopped.
struct Hammer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    clients: tokio::task::JoinSet<Result<Seen>>,
}

impl Hammer {
    fn start(bench: &Arc<Bench>, id: &str, key: &str) -> Self {
        let mut hammer = Self { stop: Arc::default(), count: Arc::default(), clients: tokio::task::JoinSet::new() };
        for i in 0..CLIENTS {
            let (bench, stop, count) = (Arc::clone(bench), Arc::clone(&hammer.stop), Arc::clone(&hammer.count));
            let ask = Ask::get(format!("/api/v0/computers/{id}")).by(key);
            hammer.clients.spawn(async move {
                let (mut seen, mut turn) = (Seen::new(), i);
                while !stop.load(Ordering::Relaxed) {
                    count.fetch_add(1, Ordering::Relaxed);
                    let began = Instant::now();
                    let answer = bench.send_to(turn % bench.replicas.len(), ask.clone()).await?;
                    seen.push((began, answer.status));
                    turn += 1;
                }
                Ok(seen)
            });
        }
        hammer
    }

    /// Waits until the clients have sent some more requests.
    async fn more(&self) -> Result<()> {
        let enough = self.count.load(Ordering::Relaxed) + 4 * CLIENTS;
        eventually("more requests", || async { Ok((self.count.load(Ordering::Relaxed) >= enough).then_some(())) }).await
    }

    async fn stop(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::new();
        while let Some(seen) = self.clients.join_next().await {
            all.extend(seen??);
        }
        Ok(all)
    }
}

/// Requires that the key was valid before, and that no request that began after `dead` was authenticated.
fn judge(seen: &Seen, dead: Instant) -> Result<()> {
    let late = seen.iter().filter(|(began, _)| *began > dead);
    let (alive, after) = (seen.iter().filter(|(_, code)| *code == 200).count(), late.clone().count());
    ensure!(alive >= CLIENTS && after >= CLIENTS, "too few requests: {alive} while the key was valid, {after} after it was revoked");
    if let Some((began, code)) = late.clone().find(|(_, code)| *code != 401) {
        bail!("S2: a request that began {} µs after the key was revoked was answered with {code}", (*began - dead).as_micros());
    }
    // A request that was authenticated just before the deletion gets 404; other codes are not allowed.
    let odd = seen.iter().find(|(_, code)| ![200, 401, 404].contains(code));
    ensure!(odd.is_none(), "{odd:?}");
    Ok(())
}

async fn no_request_after_the_204_is_authenticated(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("race").await?;
    for round in 0..ROUNDS * bench.replicas.len() {
        let replica = round % bench.replicas.len();
        let id = bench.byom(&token, &format!("box-{round}")).await?;
        let key = bench.key(&id).await?;
        let hammer = Hammer::start(&bench, &id, &key);
        hammer.more().await?;
        // Every third computer is deleted with its own key.
        let by = if round % 3 == 2 { &key } else { &token };
        bench.send_to(replica, Ask::delete(format!("/api/v0/computers/{id}")).by(by)).await?.is(204)?;
        let dead = Instant::now();
        hammer.more().await?;
        judge(&hammer.stop().await?, dead).with_context(|| format!("round {round}, replica {replica}"))?;
    }
    Ok(())
}

/// The deletion timestamp on the API server is sufficient, regardless of who requested the deletion.
async fn a_deletion_with_kubectl_revokes_the_key_at_once(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("kubectl").await?;
    for round in 0..ROUNDS {
        let id = bench.byom(&token, &format!("box-{round}")).await?;
        let key = bench.key(&id).await?;
        let hammer = Hammer::start(&bench, &id, &key);
        hammer.more().await?;
        let of = ComputerId::decode(&id).context("an id")?;
        bench.computers(&of.namespace).delete(&of.name, &kube::api::DeleteParams::default()).await?;
        let dead = Instant::now();
        hammer.more().await?;
        judge(&hammer.stop().await?, dead).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}
