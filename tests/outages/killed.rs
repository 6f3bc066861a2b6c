//! The operator is killed (SIGKILL) repeatedly at random moments.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::Rng as _;

use crate::crowd::{Crowd, seconds};
use crate::harness::Bench;
use crate::{Scenario, moments, setting};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![killed_at_random]
}

const PORTS: [u16; 2] = [9643, 9743];

/// The operator is killed and restarted at random times while computers are being deleted, first alone, then with a second operator:
/// each deletion ends normally.
async fn killed_at_random(bench: Arc<Bench>) -> Result<()> {
    let mut random = moments("operator killed");
    let total = usize::try_from(setting("OUTAGES_DELETIONS", 40))?;
    let mut operators = vec![bench.usual_operator(PORTS[0]).await?];
    let start = Instant::now();
    let crowd = Arc::new(Crowd::born(&bench, "killed", total - total / 10, total / 10).await?);
    let born = seconds(start);
    let deleting = {
        let (bench, crowd, mut random) = (Arc::clone(&bench), Arc::clone(&crowd), random.clone());
        tokio::spawn(async move { crowd.delete(&bench, &mut random, Duration::from_millis(800)).await })
    };
    let (start, mut kills, mut in_vain) = (Instant::now(), 0, 0);
    // Until every delete is accepted, and a few times more.
    while !deleting.is_finished() || kills < total / 4 {
        tokio::time::sleep(Duration::from_millis(random.random_range(100..3000))).await;
        let done = crowd.released(&bench).await?;
        if done == total {
            in_vain += 1;
            break;
        }
        if done > total / 2 && operators.len() == 1 {
            operators.push(bench.usual_operator(PORTS[1]).await?);
        }
        let victim = random.random_range(0..operators.len());
        operators[victim].kill();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        operators[victim] = bench.usual_operator(PORTS[victim]).await?;
        kills += 1;
    }
    deleting.await??;
    crowd.ended(&bench).await?;
    println!(
        "    {total} deletions ({} with real pods and archives), {kills} kills, finished after {} (ready after {born}){}",
        total / 10,
        seconds(start),
        if in_vain > 0 { ", the last ones finished before the next kill" } else { "" }
    );
    ensure!(kills > 0, "nothing was killed");
    Ok(())
}
