//! One replica of the operator: the unchanged leader, with its own client, store and process. It is restarted whenever it was killed.

use std::sync::Arc;
use std::time::Duration;

use computer_operator::archive::Archives;
use computer_operator::archive::ingest::{auth, handlers};
use computer_operator::archive::store::Store;
use computer_operator::operator::Leader;
use computer_operator::runtime::settings::{ArchivePod, Settings};
use tokio_util::sync::CancellationToken;

use crate::api::Actor;
use crate::moves::SYSTEM;
use crate::store::Shelf;
use crate::world::{Caller, World};

const ACCOUNT: &str = "computer-operator-archive";

fn settings() -> Settings {
    Settings {
        namespace: SYSTEM.to_owned(),
        image: "computer-operator:simulated".to_owned(),
        archive_service_account: ACCOUNT.to_owned(),
        ingest_url: "https://ingest.simulated:8443".to_owned(),
        ingest_ca: "no certificate".to_owned(),
        api_url: "http://api.simulated".to_owned(),
        archive_pod: ArchivePod::default(),
        archive_max_bytes: 1 << 40,
    }
}

/// Runs until the simulation ends.
pub async fn run(world: World, replica: usize, concurrency: usize) {
    loop {
        let caller = Caller::new(Actor::Operator(replica));
        world.note(format!("        -- replica {replica} starts"));
        tokio::select! {
            // A process that is to die is dead, even if it could do something at the same moment.
            biased;
            () = caller.process.died.notified() => {}
            result = lead(&world, &caller, replica, concurrency, CancellationToken::new()) => {
                if let Err(error) = result {
                    world.note(format!("        -- replica {replica} ended by itself: {}", unnumbered(&format!("{error:#}"))));
                    // One of its tasks panicked, so it must exit: the Deployment restarts it.
                    if world.faults().died.take().is_none() {
                        world.with(|s| s.observer.violation(format!("replica {replica} ended by itself: {error:#}")));
                    }
                }
            }
        }
        let down = *caller.process.down.lock().unwrap();
        tokio::time::sleep(down.max(Duration::from_millis(50))).await;
    }
}

/// Without the number of the task, which counts those of all runs of this process.
fn unnumbered(text: &str) -> String {
    text.split(' ').filter(|word| word.parse::<u64>().is_err()).collect::<Vec<_>>().join(" ")
}

/// Leads until `stop`.
pub async fn lead(world: &World, caller: &Caller, replica: usize, concurrency: usize, stop: CancellationToken) -> anyhow::Result<()> {
    let client = world.client(caller);
    let (checked, mut finished) = tokio::sync::mpsc::channel(1024);
    let store = Arc::new(Store::new(Arc::new(Shelf::new(world, caller))));
    let pods = auth::PodTokens::new(client.clone(), SYSTEM.to_owned(), ACCOUNT.to_owned());
    let archives = Arc::new(Archives::new(Arc::clone(&store), checked));
    let router = handlers::router(store, auth::Authenticator::Pods(Arc::new(pods)), Arc::clone(archives.uploads()));
    world.serve(replica, &caller.process, router);
    let leader = Leader {
        client,
        settings: settings(),
        archives,
        metrics: world.new_figures(replica),
        concurrency,
        collect_leftovers: false,
        erase_archives: false,
        sources: world.sources(),
    };
    leader.lead(&mut finished, stop).await
}
