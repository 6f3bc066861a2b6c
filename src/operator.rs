//! `computer-operator run`: the composition root. Every replica serves ingest, health and metrics; only the leader reconciles. The lease avoids duplicate
//! work, but correctness must not depend on it (S10): `--leader-election=false` is safe as well.

use std::sync::Arc;

use anyhow::Context as _;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apikey;
use crate::archive::holds::Holds;
use crate::archive::{Archives, Store, collector, ingest, store_check, store_volume};
use crate::class;
use crate::computer::apply::Applier;
use crate::computer::ended_deletions;
use crate::computer::events::Events;
use crate::computer::memory::Memory;
use crate::computer::metrics::Metrics;
use crate::computer::reconcile::Reconciler;
use crate::computer::sweep;
use crate::erasure::{self, live_holds::LiveHolds};
use crate::resources::MANAGER;
use crate::runtime::config::Config;
use crate::runtime::settings::Settings;
use crate::runtime::time_and_random::Sources;
use crate::runtime::{caches, client, health, lease, queue, signal};
use crate::session::Marker;

/// Runs until SIGTERM or SIGINT, or until the lease is lost.
///
/// # Errors
/// When the configuration, the store or the Kubernetes API cannot be used, or the lease was lost.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    signal::stop_on_signal(stop.clone());
    let client =
        client::connect_without_retries().await.context("cannot connect to the Kubernetes API: set KUBECONFIG or run inside a cluster")?;
    let metrics = Arc::new(Metrics::new());
    let (checked, mut finished_checks) = tokio::sync::mpsc::channel(1024);
    let archives =
        Arc::new(Archives::open(&config.store, checked).with_context(|| format!("cannot open the archive store {}", config.store))?);
    store_check::refuse_until_checked(archives.store());

    let mut servers = JoinSet::new();
    let exposed = Arc::clone(&metrics);
    let rendered: health::Metrics = Arc::new(move || exposed.text());
    let store = Arc::new(store_check::Health::default());
    let reported = Arc::clone(&store);
    let checks: health::Checks = vec![("store", Arc::new(move || reported.report()))];
    let ready = health::serve(config.metrics_bind, rendered, checks, stop.clone(), &mut servers)?;
    let tls = ingest::tls::load_or_create(&client, &config.namespace, &config.ingest_url)
        .await
        .context("cannot load or create the certificate of the ingest endpoint")?;
    let settings = settings(&config, tls.ca_pem.clone());
    let readers = (client.clone(), config.api_service_account.as_deref());
    ingest::serve((config.ingest_bind, tls), readers, &settings, &archives, stop.clone(), &mut servers)?;
    watch_store((&client, &config), archives.store(), (store, Arc::clone(&metrics)), ready, (&mut servers, &stop));

    let (concurrency, collect_leftovers) = (config.concurrency, config.archive_collect_leftovers);
    let sources = Sources::default();
    let erase_archives = true;
    let leader = Leader { client: client.clone(), settings, archives, metrics, concurrency, collect_leftovers, erase_archives, sources };
    let work = Box::pin(async {
        if config.leader_election {
            let metrics = Arc::clone(&leader.metrics);
            let lead = |stop| async move { leader.lead(&mut finished_checks, stop).await };
            let on_change = |leads| metrics.set_leader(leads);
            lease::run_while_leading(client, &config.namespace, config.lease(), stop.clone(), on_change, lead).await
        } else {
            leader.metrics.set_leader(true);
            leader.lead(&mut finished_checks, stop.clone()).await
        }
    });
    let result = beside(&mut servers, "server", &stop, work).await;
    stop.cancel();
    while servers.join_next().await.is_some() {}
    result
}

/// What plans and requests need of the configuration. `ingest_ca`: the certificate authority of the ingest endpoint.
fn settings(config: &Config, ingest_ca: String) -> Settings {
    Settings {
        namespace: config.namespace.clone(),
        image: config.image.clone(),
        archive_service_account: config.archive_service_account.clone(),
        archive_pod: config.archive_pod.clone(),
        archive_max_bytes: config.archive_max_bytes,
        ingest_url: config.ingest_url.clone(),
        ingest_ca,
        api_url: config.api_url.clone(),
    }
}

/// Checks the store, and keeps its volume at `Retain`. The replica is ready once the store has passed.
fn watch_store(
    (client, config): (&Client, &Config),
    store: &Arc<Store>,
    (health, metrics): (Arc<store_check::Health>, Arc<Metrics>),
    ready: health::Ready,
    (tasks, stop): (&mut JoinSet<()>, &CancellationToken),
) {
    if let Some(claim) = config.retain_store_claim.clone() {
        let (client, namespace, metrics) = (client.clone(), config.namespace.clone(), Arc::clone(&metrics));
        let report = move |retained| metrics.set_store_retained(retained);
        tasks.spawn(store_volume::keep_retained(client, namespace, claim, report, stop.clone()));
    }
    let checked = {
        let health = Arc::clone(&health);
        move |passed| {
            // An outage that begins later does not make the replica unready: uploads and deletions continue when it ends.
            if passed {
                ready.set(true);
            }
            metrics.set_store(passed, health.space());
        }
    };
    tasks.spawn(store_check::watch(Arc::clone(store), health, checked, stop.clone()));
}

/// Runs `work` until it ends. If one of the concurrent tasks ends before `stop` is cancelled, `work` is shut down gracefully and the result is an error, so
/// that the process exits and is restarted. Otherwise a task that panicked would be missing unnoticed for the lifetime of the process.
async fn beside(
    tasks: &mut JoinSet<()>,
    what: &str,
    stop: &CancellationToken,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tokio::pin!(work);
    let ended = tokio::select! {
        biased;
        result = &mut work => return result,
        Some(ended) = tasks.join_next() => ended,
    };
    // Tasks that end because of `stop` are expected.
    let why = match ended {
        Ok(()) if stop.is_cancelled() => return work.await,
        Ok(()) => format!("a {what} ended unexpectedly"),
        Err(error) => format!("a {what} failed: {error}"),
    };
    tracing::error!("{why}, shutting down");
    stop.cancel();
    work.await?;
    anyhow::bail!("{why}")
}

/// Runs the reconcilers until they end, and requeues the computers whose archive check has finished.
async fn requeue_until_ended(
    run: impl Future<Output = ()>,
    finished: &mut tokio::sync::mpsc::Receiver<String>,
    requeue: impl Fn(String),
) -> anyhow::Result<()> {
    tokio::pin!(run);
    loop {
        tokio::select! {
            biased;
            () = &mut run => return Ok(()),
            Some(uid) = finished.recv() => requeue(uid),
        }
    }
}

/// Dependencies of the leader.
pub struct Leader {
    /// API client.
    pub client: Client,
    /// Operator settings.
    pub settings: Settings,
    /// The archives.
    pub archives: Arc<Archives>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Number of computers that are reconciled concurrently.
    pub concurrency: usize,
    /// Whether it removes leftovers of aborted archives from the store.
    pub collect_leftovers: bool,
    /// Whether it executes `ArchiveErasures`.
    pub erase_archives: bool,
    /// Wall-clock time and randomness.
    pub sources: Sources,
}

impl Leader {
    /// Runs the caches, the reconcilers, the class controller and the sweeper until `stop` is cancelled, and then waits for running passes.
    /// `finished_checks` delivers the UIDs of computers whose archive check has finished.
    ///
    /// # Errors
    /// When one of its tasks (a watch, the class controller, the sweeper, the `ApiKey` controller) ended before `stop` was cancelled.
    pub async fn lead(self, finished_checks: &mut tokio::sync::mpsc::Receiver<String>, stop: CancellationToken) -> anyhow::Result<()> {
        // The child token is also cancelled when a task has ended.
        let stop = stop.child_token();
        let (queue, work) = queue::queue();
        let mut tasks = JoinSet::new();
        let mut spawn = caches::Spawn { queue: &queue, tasks: &mut tasks, sources: &self.sources, stop: &stop };
        let (classes, keys) = (class::Controller::default(), apikey::Controller::start(&self.client, &self.settings.namespace, &mut spawn));
        let erasures = self.erase_archives.then(|| erasure::Controller::start(&self.client, &mut spawn));
        let others = caches::Listeners { classes: vec![classes.listener()], namespaces: vec![keys.in_namespace()] };
        let caches = caches::start(&self.client, &self.settings.namespace, &mut spawn, others);
        let filled = async { caches.ready().await.context("a watch ended") };
        let first =
            tokio::select! { biased; () = stop.cancelled() => return Ok(()), first = beside(&mut tasks, "watch", &stop, filled) => first };
        if let Err(error) = first {
            stop.cancel();
            return Err(error);
        }
        self.metrics.follow(caches.clone());
        tracing::info!(computers = caches.computers.len(), records = caches.records.len(), "caches are filled, reconciling");
        tasks.spawn(sweep::run(self.client.clone(), caches.clone(), queue.clone(), Arc::clone(&self.metrics), stop.clone()));
        if self.collect_leftovers {
            tasks.spawn(self.collect(&caches, &stop));
        }
        let (client, settings, sources) = (self.client.clone(), self.settings.clone(), self.sources.clone());
        if let Some(erasures) = erasures {
            let store = Arc::clone(self.archives.store());
            tasks.spawn(erasures.run(client.clone(), settings.namespace.clone(), store, sources.clone(), stop.clone()));
        }
        tasks.spawn(classes.run(client.clone(), settings.clone(), sources.clone(), caches.classes.clone(), stop.clone()));
        tasks.spawn(apikey::run(keys, client, settings.namespace, caches.namespaces.clone(), sources, stop.clone()));
        let (metrics, concurrency) = (Arc::clone(&self.metrics), self.concurrency);
        let reconciler = Arc::new(self.reconciler(caches.clone(), stop.clone()));
        let of = caches.clone();
        let work = work.shared_by(move |uid| of.namespace(uid));
        let woken = Arc::clone(&reconciler);
        let run = work.run(concurrency, stop.clone(), move |uid| {
            let reconciler = Arc::clone(&reconciler);
            async move { reconciler.run(&uid).await }
        });
        let requeue = move |uid: String| {
            woken.store_answered(&uid);
            queue.now(uid);
        };
        let worked = Box::pin(requeue_until_ended(run, finished_checks, requeue));
        let result = beside(&mut tasks, "task of the leader", &stop, worked).await;
        metrics.forget_all();
        while tasks.join_next().await.is_some() {}
        result
    }

    fn collect(&self, caches: &caches::Caches, stop: &CancellationToken) -> impl Future<Output = ()> + use<> {
        let (records, sources) = (caches.records.clone(), self.sources.clone());
        let ended = move || records.state().iter().filter_map(|record| ended_deletions::ended(record)).collect();
        let store = (Arc::clone(self.archives.store()), Arc::new(LiveHolds::new(&self.client)) as Arc<dyn Holds>);
        collector::run(store, ended, move || sources.now().as_second(), stop.clone())
    }

    fn reconciler(self, caches: caches::Caches, stop: CancellationToken) -> Reconciler {
        let reporter = Reporter { controller: MANAGER.into(), instance: std::env::var("POD_NAME").ok() };
        Reconciler {
            applier: Applier::new(self.client.clone(), Arc::clone(&self.archives), self.settings.namespace.clone()),
            marker: Marker::new(self.client.clone(), self.archives),
            memory: Memory::new(&self.sources, Events::new(Recorder::new(self.client.clone(), reporter)), self.metrics),
            client: self.client,
            caches,
            settings: self.settings,
            sources: self.sources,
            stop,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
