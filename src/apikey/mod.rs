//! The reconciler of `ApiKeys`, a smaller version of the computer's: observe → plan (pure) → apply (one request), repeated until the plan waits, then
//! the status. It writes tokens and must never read one, nor any other Secret of a tenant (DESIGN.md 4.8).

pub mod apply;
mod ending;
mod issue;
pub mod plan;
pub mod status;
pub mod view;
pub mod watch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource, ResourceExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::apply::Applier;
use self::plan::{Next, Plan, Ready, plan};
use self::view::{Action, Place, View, has_finalizer};
use self::watch::Caches;
use crate::resources::reasons::Reason;
use crate::resources::{ApiKey, MANAGER};
use crate::runtime::backoff::{Backoff, LOST_RACES};
use crate::runtime::caches::{Listener, Spawn};
use crate::runtime::client::{ErrorClass, call};
use crate::runtime::queue::{self, Queue, Work};
use crate::runtime::requests::Error;
use crate::runtime::time_and_random::Sources;

/// Maximum number of requests of one pass; then other `ApiKeys` get their turn.
const MAX_REQUESTS: usize = 60;
/// Number of `ApiKeys` that are reconciled concurrently.
const CONCURRENCY: usize = 8;
/// Interval at which records are queued whose `ApiKey` was deleted without an event.
const SWEEP: Duration = Duration::from_secs(240);
/// Timeout of the request that creates an event.
const EVENT_TIMEOUT: Duration = Duration::from_secs(3);

/// The controller, with its watches, before it runs.
pub struct Controller {
    queue: Queue,
    work: Work,
    caches: Caches,
}

impl Controller {
    /// Starts its watches in `spawn.tasks`. Namespaces are watched for all controllers: see [`Controller::in_namespace`].
    pub fn start(client: &Client, namespace: &str, spawn: &mut Spawn<'_>) -> Self {
        let (queue, work) = queue::queue();
        let mut own = Spawn { queue: &queue, tasks: spawn.tasks, sources: spawn.sources, stop: spawn.stop };
        let caches = watch::start(client, namespace, &mut own);
        Self { queue, work, caches }
    }

    /// Queues the keys of a namespace that is being deleted.
    pub fn in_namespace(&self) -> Listener<Namespace> {
        self.caches.in_namespace(self.queue.clone())
    }
}

/// Runs until `stop` is cancelled, and then waits for running passes.
pub async fn run(
    Controller { queue, work, caches }: Controller,
    client: Client,
    namespace: String,
    namespaces: Store<Namespace>,
    sources: Sources,
    stop: CancellationToken,
) {
    let ready = tokio::select! { biased; () = stop.cancelled() => return, ready = caches.ready() => ready };
    if ready.is_err() {
        return tracing::error!("a watch of the ApiKey controller ended unexpectedly");
    }
    let mut tasks = JoinSet::new();
    tasks.spawn(sweep(caches.clone(), queue, stop.clone()));
    let of = caches.clone();
    let work = work.shared_by(move |uid| of.key(uid).and_then(|k| k.namespace()).unwrap_or_default());
    let reporter = Reporter { controller: MANAGER.into(), instance: std::env::var("POD_NAME").ok() };
    let recorder = Recorder::new(client.clone(), reporter);
    let backoff = Backoff::with_seed(u64::from_le_bytes(sources.bytes()));
    let reconciler = Arc::new(Reconciler { client, caches, namespace, namespaces, backoff, recorder, sources, stop: stop.clone() });
    let pass = move |uid: String| {
        let reconciler = Arc::clone(&reconciler);
        async move { reconciler.run(&uid).await }
    };
    tokio::select! {
        biased;
        () = work.run(CONCURRENCY, stop.clone(), pass) => {}
        // The leader notices that this controller has ended, and exits as well.
        Some(ended) = tasks.join_next(), if !stop.is_cancelled() => return tracing::error!(?ended, "a task of the ApiKey controller ended unexpectedly"),
    }
    while tasks.join_next().await.is_some() {}
}

/// Queues the records that have no `ApiKey`, because a relist emits no event for objects that have disappeared.
async fn sweep(caches: Caches, queue: Queue, stop: CancellationToken) {
    let mut timer = tokio::time::interval(SWEEP);
    loop {
        tokio::select! { biased; () = stop.cancelled() => return, _ = timer.tick() => {} }
        let lost = caches.records.state().into_iter().map(|r| r.name_any()).filter(|uid| caches.key(uid).is_none());
        lost.for_each(|uid| queue.now(uid));
    }
}

struct Reconciler {
    client: Client,
    caches: Caches,
    namespace: String,
    namespaces: Store<Namespace>,
    backoff: Backoff,
    recorder: Recorder,
    sources: Sources,
    stop: CancellationToken,
}

impl Reconciler {
    /// One pass. Returns when to reconcile again without an event.
    async fn run(&self, uid: &str) -> Option<Duration> {
        let Some(view) = self.observe(uid) else {
            self.backoff.reset(uid);
            return None;
        };
        let span = tracing::info_span!("reconcile", kind = "ApiKey", namespace = view.namespace, name = view.name, uid);
        self.pass(uid, view).instrument(span).await
    }

    async fn pass(&self, uid: &str, mut view: View) -> Option<Duration> {
        let seen = seen(&view);
        if let Some(left) = self.backoff.left(uid, seen) {
            return Some(left);
        }
        let applier = Applier::new(&self.client, &view.namespace, &self.namespace);
        match drive(&applier, &self.sources, &mut view, &self.stop).await {
            _ if self.stop.is_cancelled() => None,
            Ok(plan) => {
                // Waiting for a token that may be lost is no progress: what follows it may fail again.
                if plan.ready.as_ref().is_none_or(|ready| ready.reason != Reason::Issuing) {
                    self.backoff.reset(uid);
                }
                self.publish(&view, &plan).await;
                match plan.next {
                    Next::Wait(after) => Some(after),
                    Next::Do(_) => Some(Duration::from_secs(1)),
                    Next::Finished => None,
                }
            }
            Err(error) => {
                // The writes of this pass are no news.
                let after = self.backoff.failed(uid, self::seen(&view), error.retry_after());
                // A few conflicts are lost races: another client changed the object first, and the watch will deliver its change.
                if error.class() == ErrorClass::Conflict && self.backoff.count(uid) <= LOST_RACES {
                    tracing::debug!(%error, ?after, "conflict, requeued");
                } else {
                    tracing::warn!(%error, class = ?error.class(), ?after, "request failed, requeued");
                    self.publish(&view, &failed(&error)).await;
                }
                Some(after)
            }
        }
    }

    /// The view from the caches. `None` if there is neither an `ApiKey` nor a record.
    fn observe(&self, uid: &str) -> Option<View> {
        let key = self.caches.key(uid);
        let record = self.caches.records.get(&ObjectRef::new(uid).within(&self.namespace)).map(|r| (*r).clone());
        let (namespace, name) = match (&key, &record) {
            (Some(k), _) => (k.namespace().unwrap_or_default(), k.name_any()),
            (None, Some(r)) => (r.spec.namespace.clone(), r.spec.api_key.clone()),
            (None, None) => return None,
        };
        let terminating = self.namespaces.get(&ObjectRef::new(&namespace)).is_some_and(|n| watch::terminating(&n));
        Some(View {
            uid: uid.to_owned(),
            place: if terminating { Place::CachedTerminating } else { Place::Active },
            namespace,
            name,
            key,
            key_is_live: false,
            record,
            account: None,
            secrets: BTreeMap::new(),
            made: None,
            spent: false,
            operator_namespace: self.namespace.clone(),
            fresh: self.sources.fresh(),
            now: self.sources.now(),
        })
    }

    async fn publish(&self, view: &View, plan: &Plan) {
        // A released ApiKey is gone, or is about to be.
        let exists = |k: &&ApiKey| k.metadata.deletion_timestamp.is_none() || has_finalizer(k);
        let Some(key) = view.key.as_ref().filter(exists) else { return };
        let Some(new) = status::compute(key, plan, view.now) else { return };
        let Some(patch) = status::patch(key, &new) else { return };
        let api: Api<ApiKey> = Api::namespaced(self.client.clone(), &view.namespace);
        match call(api.patch_status(&view.name, &PatchParams::default(), &Patch::<()>::Json(patch))).await {
            Ok(_) if status::reason_changed(key, &new) && view.place == Place::Active => self.event(view, key, plan).await,
            Ok(_) => {}
            // The ApiKey was deleted or replaced, or the API server is unavailable: the next pass writes the status.
            Err(error) => tracing::debug!(%error, "cannot write the status"),
        }
    }

    /// Best effort.
    async fn event(&self, view: &View, key: &ApiKey, plan: &Plan) {
        let Some(Ready { status, reason, message }) = &plan.ready else { return };
        let event = Event {
            type_: if *status { EventType::Normal } else { EventType::Warning },
            reason: reason.to_string(),
            note: Some(crate::resources::conditions::truncate(message, 1000)),
            action: "IssueToken".to_owned(),
            secondary: None,
        };
        let reference = ObjectReference { uid: Some(view.uid.clone()), ..key.object_ref(&()) };
        match tokio::time::timeout(EVENT_TIMEOUT, self.recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "cannot publish the event"),
            Err(_) => tracing::debug!("timed out while publishing the event"),
        }
    }
}

/// A digest of the cached objects that a plan depends on, without statuses. A change ends the pause after a failure (see `Backoff::left`).
fn seen(view: &View) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    if let Some(key) = &view.key {
        let meta = &key.metadata;
        (&meta.uid, meta.generation, meta.deletion_timestamp.is_some(), &meta.finalizers).hash(&mut hasher);
    }
    view.record.as_ref().and_then(|r| r.metadata.resource_version.as_ref()).hash(&mut hasher);
    matches!(view.place, Place::CachedTerminating).hash(&mut hasher);
    hasher.finish()
}

/// Plans and applies repeatedly until the plan waits.
async fn drive(applier: &Applier, sources: &Sources, view: &mut View, stop: &CancellationToken) -> Result<Plan, Error> {
    // An object that is missing from a cache may still exist.
    if view.key.is_none() {
        let effect = applier.apply(Action::ReadKey, view).await?;
        view.absorb(effect);
    }
    if view.record.is_none() {
        let effect = applier.read_record(view).await?;
        view.absorb(effect);
    }
    for _ in 0..MAX_REQUESTS {
        if stop.is_cancelled() {
            break;
        }
        view.now = sources.now();
        let current = plan(view);
        let Next::Do(action) = current.next else { return Ok(current) };
        let request = tracing::info_span!("step", name = action.name());
        let effect = applier.apply(*action, view).instrument(request).await?;
        view.absorb(effect);
    }
    Ok(Plan { next: Next::Wait(Duration::from_secs(1)), ready: None, secret_name: None })
}

/// The condition that shows a failed request to users.
fn failed(error: &Error) -> Plan {
    let reason = match error.class() {
        ErrorClass::Forbidden | ErrorClass::Unauthorized => Reason::Forbidden,
        ErrorClass::NamespaceTerminating => Reason::NamespaceTerminating,
        _ if matches!(error, Error::Undone(_)) => Reason::WriteUndone,
        ErrorClass::Invalid => Reason::Refused,
        ErrorClass::Conflict => Reason::Conflict,
        _ => Reason::ApiServerUnavailable,
    };
    Plan::not_ready(reason, format!("{error}. The operator retries the request"), 1)
}
