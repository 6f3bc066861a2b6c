//! The API server is killed, etcd is paused: the operator never acts on an unknown outcome.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::Rng as _;
use xtask::cluster::Signal;
use xtask::tools::Tool;

use crate::crowd::{Crowd, seconds};
use crate::harness::{Bench, LONG, eventually};
use crate::{Scenario, moments};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![api_server_killed, etcd_paused]
}

const PORTS: [u16; 2] = [9643, 9743];
const PAUSE: Duration = Duration::from_secs(20);

/// Two operators with the lease. Each is restarted when it exits, as a kubelet does: an operator that loses the lease exits.
async fn with_operators<T>(bench: &Bench, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut operators = [bench.leading_operator(PORTS[0]).await?, bench.leading_operator(PORTS[1]).await?];
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
        for (operator, port) in operators.iter_mut().zip(PORTS) {
            if operator.has_ended()? {
                *operator = bench.leading_operator(port).await?;
            }
        }
    }
}

async fn api_server_killed(bench: Arc<Bench>) -> Result<()> {
    let mut random = moments("API server killed");
    let work = async {
        let crowd = Crowd::born(&bench, "api-server", 18, 2).await?;
        let (start, mut outages) = (Instant::now(), Vec::new());
        let mut order = random.clone();
        let deletes = crowd.delete(&bench, &mut order, Duration::from_millis(1500));
        let kills = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_millis(random.random_range(500..4000))).await;
                let down = Instant::now();
                bench.cluster.signal(Tool::Apiserver, Signal::SIGKILL)?;
                eventually("the API server is back", LONG, || async { Ok(bench.client.apiserver_version().await.ok()) }).await?;
                outages.push(seconds(down));
            }
            anyhow::Ok(())
        };
        tokio::try_join!(deletes, kills)?;
        crowd.ended(&bench).await?;
        println!("    20 deletions, the API server killed 3 times and down for {}; finished after {}", outages.join(", "), seconds(start));
        Ok(())
    };
    Box::pin(with_operators(&bench, work)).await
}

async fn etcd_paused(bench: Arc<Bench>) -> Result<()> {
    let mut random = moments("etcd paused");
    let work = async {
        let crowd = Crowd::born(&bench, "etcd", 18, 2).await?;
        let start = Instant::now();
        let mut order = random.clone();
        let deletes = crowd.delete(&bench, &mut order, Duration::from_millis(400));
        let pause = async {
            tokio::time::sleep(Duration::from_millis(random.random_range(1000..4000))).await;
            bench.cluster.signal(Tool::Etcd, Signal::SIGSTOP)?;
            tokio::time::sleep(PAUSE).await;
            bench.cluster.signal(Tool::Etcd, Signal::SIGCONT)
        };
        tokio::try_join!(deletes, pause)?;
        crowd.ended(&bench).await?;
        println!("    20 deletions, etcd paused for {} s meanwhile; finished after {}", PAUSE.as_secs(), seconds(start));
        Ok(())
    };
    Box::pin(with_operators(&bench, work)).await
}
