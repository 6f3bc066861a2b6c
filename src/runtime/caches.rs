//! The caches: one watch a kind, each with a backoff of its own, so that one failing watch slows none of the others (L3).
//! Objects are stripped of what no plan reads before they are stored. Each event queues the UIDs it concerns.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, RwLock};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::Api;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::queue::Queue;
use crate::resources::{Computer, ComputerClass, ComputerRecord, DeletionOverride, MANAGED_BY_LABEL, MANAGER, UID_LABEL};

/// Seconds after which a watch is renewed: below the idle limit of common load balancers.
const WATCH_TIMEOUT: u32 = 200;

/// UID of each known Computer → its namespace and name.
type Index = Arc<RwLock<HashMap<String, (String, String)>>>;

/// Read side of all caches.
#[derive(Clone)]
pub struct Caches {
    /// Computers of all namespaces.
    pub computers: Store<Computer>,
    /// Records of the operator's namespace.
    pub records: Store<ComputerRecord>,
    /// Classes.
    pub classes: Store<ComputerClass>,
    /// Overrides.
    pub overrides: Store<DeletionOverride>,
    /// Namespaces, reduced to name and phase.
    pub namespaces: Store<Namespace>,
    /// Pods with our label.
    pub pods: Store<Pod>,
    /// Claims with our label.
    pub claims: Store<PersistentVolumeClaim>,
    /// Volumes with our label.
    pub volumes: Store<PersistentVolume>,
    index: Index,
}

impl Caches {
    /// The Computer of this UID.
    pub fn computer(&self, uid: &str) -> Option<Arc<Computer>> {
        let (namespace, name) = self.index.read().ok()?.get(uid)?.clone();
        self.computers.get(&ObjectRef::new(&name).within(&namespace)).filter(|c| c.metadata.uid.as_deref() == Some(uid))
    }

    /// Waits until every cache has its first list.
    ///
    /// # Errors
    /// When a watch task ended.
    pub async fn ready(&self) -> Result<(), reflector::store::WriterDropped> {
        self.computers.wait_until_ready().await?;
        self.records.wait_until_ready().await?;
        self.classes.wait_until_ready().await?;
        self.overrides.wait_until_ready().await?;
        self.namespaces.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.claims.wait_until_ready().await?;
        self.volumes.wait_until_ready().await
    }
}

/// Starts the watches; they run until `stop`, in `tasks`.
pub fn start(client: &Client, namespace: &str, queue: &Queue, tasks: &mut JoinSet<()>, stop: &CancellationToken) -> Caches {
    let index = Index::default();
    let all = watcher::Config::default().timeout(WATCH_TIMEOUT);
    let ours = all.clone().labels(&format!("{MANAGED_BY_LABEL}={MANAGER}"));
    let mut spawn = Spawn { queue, tasks, stop };
    let (seen, known) = (index.clone(), index.clone());
    let computers = spawn.watch(Api::<Computer>::all(client.clone()), all.clone(), strip, move |event| {
        note(&seen, event);
        uids_of_computer(event)
    });
    let of_namespace = {
        let computers = computers.clone();
        move |event: &watcher::Event<Namespace>| in_namespace(&computers, event)
    };
    let of_class = {
        let computers = computers.clone();
        move |event: &watcher::Event<ComputerClass>| touched(event).map_or_else(Vec::new, |_| waiting(&computers))
    };
    Caches {
        records: spawn.watch(Api::<ComputerRecord>::namespaced(client.clone(), namespace), all.clone(), strip, |e| {
            touched(e).map(ResourceExt::name_any).into_iter().collect()
        }),
        classes: spawn.watch(Api::<ComputerClass>::all(client.clone()), all.clone(), strip, of_class),
        overrides: spawn.watch(Api::<DeletionOverride>::all(client.clone()), all.clone(), strip, |e| {
            touched(e).map(|o| o.spec.computer.uid.clone()).into_iter().collect()
        }),
        namespaces: spawn.watch(Api::<Namespace>::all(client.clone()), all, strip, of_namespace),
        pods: spawn.watch(Api::<Pod>::all(client.clone()), ours.clone(), strip_pod, labelled),
        claims: spawn.watch(Api::<PersistentVolumeClaim>::all(client.clone()), ours.clone(), strip, labelled),
        volumes: spawn.watch(Api::<PersistentVolume>::all(client.clone()), ours, strip, labelled),
        computers,
        index: known,
    }
}

struct Spawn<'a> {
    queue: &'a Queue,
    tasks: &'a mut JoinSet<()>,
    stop: &'a CancellationToken,
}

impl Spawn<'_> {
    fn watch<K>(
        &mut self,
        api: Api<K>,
        config: watcher::Config,
        strip: fn(&mut K),
        concerns: impl Fn(&watcher::Event<K>) -> Vec<String> + Send + 'static,
    ) -> Store<K>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Default + Eq + Hash + Clone,
    {
        let (reader, writer) = reflector::store();
        let (queue, stop) = (self.queue.clone(), self.stop.clone());
        let mut events = watcher(api, config).default_backoff().modify(strip).reflect(writer).boxed();
        self.tasks.spawn(async move {
            let kind = std::any::type_name::<K>().rsplit("::").next().unwrap_or_default();
            loop {
                let event = tokio::select! { () = stop.cancelled() => return, event = events.next() => event };
                match event {
                    Some(Ok(event)) => concerns(&event).into_iter().for_each(|uid| queue.now(uid)),
                    Some(Err(error)) => tracing::warn!(kind, %error, "watch failed; it is tried again"),
                    None => return,
                }
            }
        });
        reader
    }
}

/// The object of an event that concerns one.
fn touched<K>(event: &watcher::Event<K>) -> Option<&K> {
    match event {
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) | watcher::Event::Delete(object) => Some(object),
        watcher::Event::Init | watcher::Event::InitDone => None,
    }
}

fn uids_of_computer(event: &watcher::Event<Computer>) -> Vec<String> {
    touched(event).and_then(|c| c.metadata.uid.clone()).into_iter().collect()
}

fn note(index: &Index, event: &watcher::Event<Computer>) {
    let (Some(computer), Ok(mut index)) = (touched(event), index.write()) else { return };
    let Some(uid) = computer.metadata.uid.clone() else { return };
    if matches!(event, watcher::Event::Delete(_)) {
        index.remove(&uid);
    } else {
        index.insert(uid, (computer.namespace().unwrap_or_default(), computer.name_any()));
    }
}

fn labelled<K: Resource>(event: &watcher::Event<K>) -> Vec<String> {
    touched(event).and_then(|o| o.meta().labels.as_ref()?.get(UID_LABEL).cloned()).into_iter().collect()
}

/// A namespace that begins to go concerns every Computer in it (L7).
fn in_namespace(computers: &Store<Computer>, event: &watcher::Event<Namespace>) -> Vec<String> {
    let Some(namespace) = touched(event).filter(|n| n.metadata.deletion_timestamp.is_some()) else { return Vec::new() };
    let name = namespace.name_any();
    let inside = computers.state_filter(|c| c.metadata.namespace.as_deref() == Some(&name));
    inside.iter().filter_map(|c| c.metadata.uid.clone()).collect()
}

/// Computers that are not active yet may wait for their class.
fn waiting(computers: &Store<Computer>) -> Vec<String> {
    let waits = |c: &Computer| c.status.as_ref().and_then(|s| s.phase) != Some(crate::resources::Phase::Active);
    computers.state().into_iter().filter(|c| waits(c)).filter_map(|c| c.metadata.uid.clone()).collect()
}

/// managedFields are the larger half of an object, and nothing here reads them.
fn strip<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

fn strip_pod(pod: &mut Pod) {
    strip(pod);
    if let Some(spec) = &mut pod.spec {
        let (node, grace) = (spec.node_name.take(), spec.termination_grace_period_seconds);
        *spec = k8s_openapi::api::core::v1::PodSpec { node_name: node, termination_grace_period_seconds: grace, ..Default::default() };
    }
}
