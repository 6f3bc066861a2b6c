//! The watches for `ApiKeys`: the keys themselves, their records, and `ServiceAccounts`, which are not cached. Namespaces are watched for all
//! controllers (`runtime/caches.rs`). Secrets must never be watched.

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, PartialObjectMeta};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::resources::{ApiKey, ApiKeyRecord};
use crate::runtime::backoff::WatchBackoff;
use crate::runtime::cached_fields;
use crate::runtime::caches::{ADMINS_PAGE, Index, Listener, PAGE, Spawn, note, touched, watched};
use crate::runtime::queue::Queue;

/// Read side of the caches.
#[derive(Clone)]
pub struct Caches {
    /// `ApiKeys` in all namespaces.
    pub keys: Store<ApiKey>,
    /// Their records.
    pub records: Store<ApiKeyRecord>,
    index: Index,
}

impl Caches {
    /// The `ApiKey` of this UID.
    pub fn key(&self, uid: &str) -> Option<ApiKey> {
        let (namespace, name) = self.index.read().ok()?.get(uid)?.clone();
        let found = self.keys.get(&ObjectRef::new(&name).within(&namespace))?;
        (found.metadata.uid.as_deref() == Some(uid)).then(|| (*found).clone())
    }

    /// Waits until every cache has been filled by its first list.
    ///
    /// # Errors
    /// When a watch task has ended.
    pub async fn ready(&self) -> Result<(), kube::runtime::reflector::store::WriterDropped> {
        self.keys.wait_until_ready().await?;
        self.records.wait_until_ready().await
    }

    /// Queues the keys of a namespace that is being deleted.
    pub fn in_namespace(&self, queue: Queue) -> Listener<Namespace> {
        let keys = self.keys.clone();
        let inside = move |event: &watcher::Event<Namespace>| {
            touched(event)
                .filter(|n| terminating(n))
                .map_or_else(Vec::new, |n| uids(&keys, |k| k.namespace().as_ref() == Some(&n.name_any())))
        };
        (queue, Box::new(inside))
    }
}

/// Whether a namespace is being deleted.
pub fn terminating(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_some() || phase == Some("Terminating")
}

/// Starts the watches in `tasks`; they run until `stop` is cancelled.
pub fn start(client: &Client, namespace: &str, spawn: &mut Spawn<'_>) -> Caches {
    let all = watched(PAGE);
    let index = Index::default();
    let seen = index.clone();
    let keys = spawn.watch(Api::<DeserializeGuard<ApiKey>>::all(client.clone()), all.clone(), cached_fields::foreign, move |event| {
        note(&seen, event);
        touched(event).and_then(|k| k.metadata.uid.clone()).into_iter().collect()
    });
    let records = Api::<DeserializeGuard<ApiKeyRecord>>::namespaced(client.clone(), namespace);
    let records =
        spawn.watch(records, watched(ADMINS_PAGE), cached_fields::managed, |e| touched(e).map(ResourceExt::name_any).into_iter().collect());
    let events = watcher(Api::all(client.clone()), all).backoff(WatchBackoff::new(spawn.sources)).boxed();
    spawn.tasks.spawn(accounts(events, keys.clone(), spawn.queue.clone(), spawn.stop.clone()));
    Caches { keys, records, index }
}

fn uids(keys: &Store<ApiKey>, concerned: impl Fn(&ApiKey) -> bool) -> Vec<String> {
    keys.state_filter(|k| concerned(k)).iter().filter_map(|k| k.metadata.uid.clone()).collect()
}

type Accounts = BoxStream<'static, watcher::Result<watcher::Event<PartialObjectMeta<ServiceAccount>>>>;

/// Queues the keys that act as a ServiceAccount that was created, changed or deleted. ServiceAccounts are not cached: each pass reads its own live.
async fn accounts(mut events: Accounts, keys: Store<ApiKey>, queue: Queue, stop: CancellationToken) {
    loop {
        let event = tokio::select! { biased; () = stop.cancelled() => return, event = events.next() => event };
        let touched = match event {
            Some(Ok(watcher::Event::Apply(account) | watcher::Event::Delete(account))) => using(&keys, &account),
            // A relist emits no event for objects that have disappeared, so all keys are queued.
            Some(Ok(watcher::Event::InitDone)) => uids(&keys, |_| true),
            Some(Ok(watcher::Event::Init | watcher::Event::InitApply(_))) => continue,
            Some(Err(error)) => {
                tracing::warn!(kind = "ServiceAccount", %error, "watch failed, retrying");
                continue;
            }
            None => return,
        };
        for uid in touched {
            queue.now(uid);
        }
    }
}

fn using(keys: &Store<ApiKey>, account: &PartialObjectMeta<ServiceAccount>) -> Vec<String> {
    let (namespace, name) = (account.namespace(), account.name_any());
    uids(keys, |k| k.namespace() == namespace && k.spec.service_account_name == name)
}
