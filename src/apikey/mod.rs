//! The reconciler of `ApiKeys`, a much smaller sibling of the computer's: observe → plan (pure) → apply (one request), again until
//! the plan waits, then the status. It writes tokens, and never reads one: no Secret of a tenant is read (DESIGN.md 4.8).

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

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, Resource, ResourceExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::apply::{Applier, Error};
use self::plan::{Next, Plan, Ready, plan};
use self::view::{Action, Place, View, has_finalizer};
use self::watch::Caches;
use crate::resources::{ApiKey, MANAGER};
use crate::runtime::backoff::Backoff;
use crate::runtime::caches::Spawn;
use crate::runtime::client::{ErrorClass, call};
use crate::runtime::queue::{self, Queue};
use crate::runtime::time_and_random::Sources;

/// Requests that one pass may make before it lets others run.
const MAX_REQUESTS: usize = 60;
/// `ApiKeys` worked on at the same time.
const CONCURRENCY: usize = 8;
/// Time between two looks for records whose `ApiKey` is gone without an event having said so.
const SWEEP: Duration = Duration::from_secs(240);
/// Longest time for one event.
const EVENT_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs until `stop`; then what runs is finished.
pub async fn run(client: Client, namespace: String, sources: Sources, stop: CancellationToken) {
    let (queue, work) = queue::queue();
    let mut tasks = JoinSet::new();
    let mut spawn = Spawn { queue: &queue, tasks: &mut tasks, sources: &sources, stop: &stop };
    let caches = watch::start(&client, &namespace, &mut spawn);
    tokio::select! {
        () = stop.cancelled() => return,
        ready = caches.ready() => if ready.is_err() { return },
        Some(ended) = tasks.join_next() => return tracing::error!(?ended, "a watch of the ApiKey controller died"),
    }
    tasks.spawn(sweep(caches.clone(), queue, stop.clone()));
    let of = caches.clone();
    let work = work.shared_by(move |uid| of.key(uid).and_then(|k| k.namespace()).unwrap_or_default());
    let reporter = Reporter { controller: MANAGER.into(), instance: std::env::var("POD_NAME").ok() };
    let recorder = Recorder::new(client.clone(), reporter);
    let backoff = Backoff::with_seed(u64::from_le_bytes(sources.bytes()));
    let reconciler = Arc::new(Reconciler { client, caches, namespace, backoff, recorder, sources, stop: stop.clone() });
    let pass = move |uid: String| {
        let reconciler = Arc::clone(&reconciler);
        async move { reconciler.run(&uid).await }
    };
    tokio::select! {
        () = work.run(CONCURRENCY, stop.clone(), pass) => {}
        // The leader sees that this controller ended, and ends as well.
        Some(ended) = tasks.join_next(), if !stop.is_cancelled() => return tracing::error!(?ended, "a task of the ApiKey controller died"),
    }
    while tasks.join_next().await.is_some() {}
}

/// Queues the records that no `ApiKey` answers for: a new list of a watch does not say what is not on it any more.
async fn sweep(caches: Caches, queue: Queue, stop: CancellationToken) {
    let mut timer = tokio::time::interval(SWEEP);
    loop {
        tokio::select! { () = stop.cancelled() => return, _ = timer.tick() => {} }
        let lost = caches.records.state().into_iter().map(|r| r.name_any()).filter(|uid| caches.key(uid).is_none());
        lost.for_each(|uid| queue.now(uid));
    }
}

struct Reconciler {
    client: Client,
    caches: Caches,
    namespace: String,
    backoff: Backoff,
    recorder: Recorder,
    sources: Sources,
    stop: CancellationToken,
}

impl Reconciler {
    /// One pass. The result is when to look again without an event.
    async fn run(&self, uid: &str) -> Option<Duration> {
        let Some(mut view) = self.observe(uid) else {
            self.backoff.reset(uid);
            return None;
        };
        let seen = seen(&view);
        if let Some(left) = self.backoff.left(uid, seen) {
            return Some(left);
        }
        let applier = Applier::new(&self.client, &view.namespace, &self.namespace);
        match drive(&applier, &self.sources, &mut view, &self.stop).await {
            _ if self.stop.is_cancelled() => None,
            Ok(plan) => {
                self.backoff.reset(uid);
                self.publish(&view, &plan).await;
                match plan.next {
                    Next::Wait(after) => Some(after),
                    Next::Do(_) => Some(Duration::from_secs(1)),
                    Next::Finished => None,
                }
            }
            Err(error) => {
                let after = self.backoff.failed(uid, seen, error.retry_after());
                // A lost race is not a failure: somebody else was faster, and the watch will tell what they did.
                if error.class() == ErrorClass::Conflict {
                    tracing::debug!(uid, %error, ?after, "planned again");
                } else {
                    tracing::warn!(uid, %error, class = ?error.class(), ?after, "a request for an ApiKey failed; it is tried again");
                    self.publish(&view, &failed(&error)).await;
                }
                Some(after)
            }
        }
    }

    /// What the caches know. `None`: neither an `ApiKey` nor a record.
    fn observe(&self, uid: &str) -> Option<View> {
        let key = self.caches.key(uid);
        let record = self.caches.records.get(&ObjectRef::new(uid).within(&self.namespace)).map(|r| (*r).clone());
        let (namespace, name) = match (&key, &record) {
            (Some(k), _) => (k.namespace().unwrap_or_default(), k.name_any()),
            (None, Some(r)) => (r.spec.namespace.clone(), r.spec.api_key.clone()),
            (None, None) => return None,
        };
        let going = self.caches.namespaces.get(&ObjectRef::new(&namespace)).is_some_and(|n| watch::terminating(&n));
        Some(View {
            uid: uid.to_owned(),
            place: if going { Place::SaidToGo } else { Place::Stands },
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
        // A released ApiKey is gone, or about to be: there is nobody to tell.
        let told = |k: &&ApiKey| k.metadata.deletion_timestamp.is_none() || has_finalizer(k);
        let Some(key) = view.key.as_ref().filter(told) else { return };
        let Some(new) = status::compute(key, plan, view.now) else { return };
        let Some(patch) = status::patch(key, &new) else { return };
        let api: Api<ApiKey> = Api::namespaced(self.client.clone(), &view.namespace);
        match call(api.patch_status(&view.name, &PatchParams::default(), &Patch::<()>::Json(patch))).await {
            Ok(_) if status::turned(key, &new) && view.place == Place::Stands => self.event(view, key, plan).await,
            Ok(_) => {}
            // Gone, or another UID, or the API server is away: the next pass writes it.
            Err(error) => tracing::debug!(uid = %view.uid, %error, "the status was not written"),
        }
    }

    /// Best effort.
    async fn event(&self, view: &View, key: &ApiKey, plan: &Plan) {
        let Some(Ready { status, reason, message }) = &plan.ready else { return };
        let event = Event {
            type_: if *status { EventType::Normal } else { EventType::Warning },
            reason: (*reason).to_owned(),
            note: Some(crate::resources::conditions::truncate(message, 1000)),
            action: "IssueToken".to_owned(),
            secondary: None,
        };
        let reference = ObjectReference { uid: Some(view.uid.clone()), ..key.object_ref(&()) };
        match tokio::time::timeout(EVENT_TIMEOUT, self.recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(uid = %view.uid, %error, "the event was not published"),
            Err(_) => tracing::debug!(uid = %view.uid, "the event was not published in time"),
        }
    }
}

/// A digest of what the caches hold for a plan, statuses apart: whether an event ends the pause after a failure (see `Backoff::left`).
fn seen(view: &View) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    if let Some(key) = &view.key {
        let meta = &key.metadata;
        (&meta.uid, meta.generation, meta.deletion_timestamp.is_some(), &meta.finalizers).hash(&mut hasher);
    }
    view.record.as_ref().and_then(|r| r.metadata.resource_version.as_ref()).hash(&mut hasher);
    matches!(view.place, Place::SaidToGo).hash(&mut hasher);
    hasher.finish()
}

/// Plans and applies in turn, until the plan waits.
async fn drive(applier: &Applier, sources: &Sources, view: &mut View, stop: &CancellationToken) -> Result<Plan, Error> {
    // What a cache does not hold is not gone.
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
        let effect = applier.apply(*action, view).await?;
        view.absorb(effect);
    }
    Ok(Plan { next: Next::Wait(Duration::from_secs(1)), ready: None, secret_name: None })
}

/// A failed request as users see it.
fn failed(error: &Error) -> Plan {
    let reason = match error.class() {
        ErrorClass::Forbidden | ErrorClass::Unauthorized => "Forbidden",
        ErrorClass::NamespaceTerminating => "NamespaceTerminating",
        ErrorClass::Invalid => "Refused",
        _ => "ApiServerUnavailable",
    };
    Plan::not_ready(reason, format!("{error}. It is tried again"), 1)
}
