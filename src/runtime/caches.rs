//! The caches: one watch per kind, shared by all controllers. Each watch has its own backoff, so that a failing one does not delay the
//! others (L3). Fields that no plan reads are removed before an object is stored. Each event queues the UIDs that it concerns. An object
//! that cannot be deserialized is left out and logged: it must never stop the watch of the others.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, RwLock};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::backoff::WatchBackoff;
use super::cached_fields;
use super::queue::Queue;
use super::time_and_random::Sources;
use crate::resources::{Computer, ComputerClass, ComputerRecord, DeletionOverride, MANAGED_BY_LABEL, MANAGER, UID_LABEL};

/// Seconds after which a watch is renewed: less than the idle timeout of common load balancers.
const WATCH_TIMEOUT: u32 = 200;

/// Objects in one page of a list of tenants' objects: a page is in memory about three times before fields are removed, and tenants
/// decide how large an object is.
pub(crate) const PAGE: u32 = 20;
/// Objects in one page of a list of objects that only admins and the operator write: fewer requests before a new leader can begin (L4).
pub(crate) const ADMINS_PAGE: u32 = 500;

/// The configuration of every watch.
pub(crate) fn watched(page: u32) -> watcher::Config {
    watcher::Config::default().timeout(WATCH_TIMEOUT).page_size(page)
}

/// UID of each known object of a kind → its namespace and name.
pub(crate) type Index = Arc<RwLock<HashMap<String, (String, String)>>>;

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
    /// Pods with the UID label, reduced.
    pub pods: Store<Pod>,
    /// Claims with the UID label, reduced.
    pub claims: Store<PersistentVolumeClaim>,
    /// Volumes with the operator's label.
    pub volumes: Store<PersistentVolume>,
    index: Index,
    /// The operator's namespace, where the records are.
    own: Arc<str>,
}

impl Caches {
    /// The Computer of this UID.
    pub fn computer(&self, uid: &str) -> Option<Arc<Computer>> {
        let (namespace, name) = self.index.read().ok()?.get(uid)?.clone();
        self.computers.get(&ObjectRef::new(&name).within(&namespace)).filter(|c| c.metadata.uid.as_deref() == Some(uid))
    }

    /// The namespace of the computer of this UID; empty if it is not known.
    pub fn namespace(&self, uid: &str) -> String {
        let of_computer = || Some(self.index.read().ok()?.get(uid)?.0.clone());
        let of_record = || self.records.get(&ObjectRef::new(uid).within(&self.own)).map(|r| r.spec.namespace.clone());
        of_computer().or_else(of_record).unwrap_or_default()
    }

    /// Waits until every cache is filled.
    ///
    /// # Errors
    /// When a watch has ended.
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

/// A queue, and what an event queues in it.
pub type Listener<K> = (Queue, Box<dyn Fn(&watcher::Event<K>) -> Vec<String> + Send>);

/// Other controllers that need events of a kind that is watched here: each kind has one watch.
#[derive(Default)]
pub struct Listeners {
    /// Of classes.
    pub classes: Vec<Listener<ComputerClass>>,
    /// Of namespaces.
    pub namespaces: Vec<Listener<Namespace>>,
}

/// Starts the watches in `spawn.tasks`; they run until `spawn.stop` is cancelled.
pub fn start(client: &Client, namespace: &str, spawn: &mut Spawn<'_>, mut others: Listeners) -> Caches {
    let index = Index::default();
    let (all, admins) = (watched(PAGE), watched(ADMINS_PAGE));
    // Tenants' objects are selected by the label that only the operator may set or remove. Anyone may change the managed-by label of a pod.
    let ours = all.clone().labels(UID_LABEL);
    let volumes = admins.clone().labels(&format!("{MANAGED_BY_LABEL}={MANAGER}"));
    let (seen, known) = (index.clone(), index.clone());
    let computers =
        spawn.watch(Api::<DeserializeGuard<Computer>>::all(client.clone()), all.clone(), cached_fields::foreign, move |event| {
            note(&seen, event);
            uids_of_computer(event)
        });
    let of = computers.clone();
    others.namespaces.push((spawn.queue.clone(), Box::new(move |event| in_namespace(&of, event))));
    let of = computers.clone();
    let class = move |event: &_| touched(event).map_or_else(Vec::new, |c: &ComputerClass| of_class(&of, &c.name_any()));
    others.classes.push((spawn.queue.clone(), Box::new(class)));
    let records = spawn.watch(
        Api::<DeserializeGuard<ComputerRecord>>::namespaced(client.clone(), namespace),
        admins.clone(),
        cached_fields::managed,
        |e| touched(e).map(ResourceExt::name_any).into_iter().collect(),
    );
    let named = records.clone();
    let of_volume = move |event: &watcher::Event<PersistentVolume>| of_volume(&named, event);
    Caches {
        records,
        classes: spawn.watch_for(Api::all(client.clone()), admins.clone(), cached_fields::managed, others.classes),
        overrides: spawn.watch(Api::<DeserializeGuard<DeletionOverride>>::all(client.clone()), admins, cached_fields::managed, |e| {
            touched(e).map(|o| o.spec.computer.uid.clone()).into_iter().collect()
        }),
        namespaces: spawn.watch_for(Api::all(client.clone()), all, cached_fields::namespace, others.namespaces),
        pods: spawn.watch(Api::<DeserializeGuard<Pod>>::all(client.clone()), ours.clone(), cached_fields::pod, labelled),
        claims: spawn.watch(Api::<DeserializeGuard<PersistentVolumeClaim>>::all(client.clone()), ours, cached_fields::claim, labelled),
        volumes: spawn.watch(Api::<DeserializeGuard<PersistentVolume>>::all(client.clone()), volumes, cached_fields::managed, of_volume),
        computers,
        index: known,
        own: namespace.into(),
    }
}

/// Starts watches.
pub struct Spawn<'a> {
    /// What the events queue.
    pub queue: &'a Queue,
    /// Where the watches run.
    pub tasks: &'a mut JoinSet<()>,
    /// Seeds of their backoff.
    pub sources: &'a Sources,
    /// Stops them.
    pub stop: &'a CancellationToken,
}

impl Spawn<'_> {
    /// Starts one watch; every event queues the UIDs that it concerns.
    pub fn watch<K>(
        &mut self,
        api: Api<DeserializeGuard<K>>,
        config: watcher::Config,
        strip: fn(&mut K),
        concerns: impl Fn(&watcher::Event<K>) -> Vec<String> + Send + 'static,
    ) -> Store<K>
    where
        K: Resource<DynamicType: Default + Eq + Hash + Clone> + Clone + Debug + Default + DeserializeOwned + Send + Sync + 'static,
    {
        let queue = self.queue.clone();
        self.watch_for(api, config, strip, vec![(queue, Box::new(concerns))])
    }

    /// Starts one watch for several controllers.
    pub fn watch_for<K>(
        &mut self,
        api: Api<DeserializeGuard<K>>,
        config: watcher::Config,
        strip: fn(&mut K),
        listeners: Vec<Listener<K>>,
    ) -> Store<K>
    where
        K: Resource<DynamicType: Default + Eq + Hash + Clone> + Clone + Debug + Default + DeserializeOwned + Send + Sync + 'static,
    {
        let (reader, writer) = reflector::store();
        let stop = self.stop.clone();
        let concerns = move |event: &watcher::Event<K>| -> Vec<(Queue, String)> {
            listeners.iter().flat_map(|(queue, concerned)| concerned(event).into_iter().map(|uid| (queue.clone(), uid))).collect()
        };
        let understood = watcher(api, config).backoff(WatchBackoff::new(self.sources)).map_ok(understood).modify(strip);
        let mut events = understood.reflect(writer).boxed();
        let mut list = NewList { cache: reader.clone(), before: Vec::new(), concerned: Vec::new() };
        self.tasks.spawn(async move {
            let kind = kind_of::<K>();
            loop {
                let event = tokio::select! { biased; () = stop.cancelled() => return, event = events.next() => event };
                match event {
                    Some(Ok(event)) => list.concerned(&event, &concerns).into_iter().for_each(|(queue, uid)| queue.now(uid)),
                    Some(Err(error)) => tracing::warn!(kind, %error, "watch failed, retrying"),
                    None => return,
                }
            }
        });
        reader
    }
}

/// The UIDs that a relist concerns. The cache shows a list only when it is complete, so a UID that was queued earlier would be reconciled
/// with the old object, and not again. And a relist has no event for an object that is missing from it.
struct NewList<K: Resource<DynamicType: Eq + Hash> + 'static, T> {
    cache: Store<K>,
    /// What the cache held when the list began.
    before: Vec<Arc<K>>,
    concerned: Vec<T>,
}

impl<K, T> NewList<K, T>
where
    K: Resource<DynamicType: Default + Eq + Hash + Clone> + Clone + 'static,
{
    /// What is to be queued after this event.
    fn concerned(&mut self, event: &watcher::Event<K>, concerns: &impl Fn(&watcher::Event<K>) -> Vec<T>) -> Vec<T> {
        match event {
            watcher::Event::Init => {
                self.before = self.cache.state();
                self.concerned.clear();
            }
            watcher::Event::InitApply(_) => self.concerned.extend(concerns(event)),
            watcher::Event::InitDone => {
                for old in std::mem::take(&mut self.before) {
                    let now = self.cache.get(&ObjectRef::from_obj(&*old));
                    if now.is_none_or(|now| now.meta().uid != old.meta().uid) {
                        self.concerned.extend(concerns(&watcher::Event::Delete((*old).clone())));
                    }
                }
                return std::mem::take(&mut self.concerned);
            }
            watcher::Event::Apply(_) | watcher::Event::Delete(_) => return concerns(event),
        }
        Vec::new()
    }
}

/// The name of a kind for logs, which is that of its Rust type.
fn kind_of<K>() -> &'static str {
    std::any::type_name::<K>().rsplit("::").next().unwrap_or_default()
}

/// The event with its deserialized object. An object that cannot be deserialized is removed from the cache: live reads then decide what is
/// done for it, and fail with the reason.
pub fn understood<K: Resource + Default>(event: watcher::Event<DeserializeGuard<K>>) -> watcher::Event<K> {
    let object = match event {
        watcher::Event::Init => return watcher::Event::Init,
        watcher::Event::InitDone => return watcher::Event::InitDone,
        watcher::Event::Apply(DeserializeGuard(Ok(object))) => return watcher::Event::Apply(object),
        watcher::Event::InitApply(DeserializeGuard(Ok(object))) => return watcher::Event::InitApply(object),
        watcher::Event::Delete(DeserializeGuard(Ok(object))) => return watcher::Event::Delete(object),
        watcher::Event::Apply(DeserializeGuard(Err(invalid)))
        | watcher::Event::InitApply(DeserializeGuard(Err(invalid)))
        | watcher::Event::Delete(DeserializeGuard(Err(invalid))) => invalid,
    };
    let (namespace, name) = (object.metadata.namespace.as_deref().unwrap_or_default(), object.metadata.name.as_deref().unwrap_or_default());
    let kind = kind_of::<K>();
    tracing::error!(kind, namespace, name, error = object.error, "an object cannot be deserialized and is ignored: fix or delete it");
    let mut gone = K::default();
    *gone.meta_mut() = object.metadata;
    watcher::Event::Delete(gone)
}

/// The object of an event that concerns one.
pub(crate) fn touched<K>(event: &watcher::Event<K>) -> Option<&K> {
    match event {
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) | watcher::Event::Delete(object) => Some(object),
        watcher::Event::Init | watcher::Event::InitDone => None,
    }
}

fn uids_of_computer(event: &watcher::Event<Computer>) -> Vec<String> {
    touched(event).and_then(|c| c.metadata.uid.clone()).into_iter().collect()
}

/// Keeps an index up to date.
pub(crate) fn note<K: Resource>(index: &Index, event: &watcher::Event<K>) {
    let (Some(object), Ok(mut index)) = (touched(event), index.write()) else { return };
    let Some(uid) = object.uid() else { return };
    if matches!(event, watcher::Event::Delete(_)) {
        index.remove(&uid);
    } else {
        index.insert(uid, (object.namespace().unwrap_or_default(), object.name_any()));
    }
}

/// A volume without the label is the one that a record names: another client has removed the label, and its home is not protected until the
/// operator has restored it (S1).
fn of_volume(records: &Store<ComputerRecord>, event: &watcher::Event<PersistentVolume>) -> Vec<String> {
    let labelled = labelled(event);
    let Some(volume) = touched(event).filter(|_| labelled.is_empty()) else { return labelled };
    let name = volume.name_any();
    let names_it = |r: &ComputerRecord| r.spec.state.children.volume.as_ref().is_some_and(|v| v.name == name);
    records.state_filter(names_it).iter().map(|r| r.name_any()).collect()
}

fn labelled<K: Resource>(event: &watcher::Event<K>) -> Vec<String> {
    touched(event).and_then(|o| o.meta().labels.as_ref()?.get(UID_LABEL).cloned()).into_iter().collect()
}

/// The deletion of a namespace concerns every Computer in it (L7).
fn in_namespace(computers: &Store<Computer>, event: &watcher::Event<Namespace>) -> Vec<String> {
    let Some(namespace) = touched(event).filter(|n| n.metadata.deletion_timestamp.is_some()) else { return Vec::new() };
    let name = namespace.name_any();
    let inside = computers.state_filter(|c| c.metadata.namespace.as_deref() == Some(&name));
    inside.iter().filter_map(|c| c.metadata.uid.clone()).collect()
}

/// Computers that were created from a class report that it has changed; those that are not active yet may be waiting for it.
fn of_class(computers: &Store<Computer>, name: &str) -> Vec<String> {
    let concerned = |c: &Computer| {
        let status = c.status.as_ref();
        status.and_then(|s| s.phase) != Some(crate::resources::Phase::Active) || status.and_then(|s| s.class_name.as_deref()) == Some(name)
    };
    computers.state().into_iter().filter(|c| concerned(c)).filter_map(|c| c.metadata.uid.clone()).collect()
}

#[cfg(test)]
mod tests;
