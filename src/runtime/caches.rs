//! The caches: one watch a kind, each with a backoff of its own, so that one failing watch slows none of the others (L3).
//! Objects are stripped of what no plan reads before they are stored. Each event queues the UIDs it concerns. An object that is not
//! understood is left out and logged: it must not stop the watch of all others.

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

/// Seconds after which a watch is renewed: below the idle limit of common load balancers.
const WATCH_TIMEOUT: u32 = 200;

/// Objects in one page of a first list of what tenants write: a page is in memory about three times before any of it is stripped, and
/// they decide how large an object is.
pub(crate) const PAGE: u32 = 20;
/// The same of what only admins and we write: fewer round trips before a new leader can begin (L4).
pub(crate) const ADMINS_PAGE: u32 = 500;

/// How everything is watched.
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
    /// Volumes with our label.
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

    /// The namespace of the computer of this UID, as far as it is known.
    pub fn namespace(&self, uid: &str) -> String {
        let of_computer = || Some(self.index.read().ok()?.get(uid)?.0.clone());
        let of_record = || self.records.get(&ObjectRef::new(uid).within(&self.own)).map(|r| r.spec.namespace.clone());
        of_computer().or_else(of_record).unwrap_or_default()
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
pub fn start(client: &Client, namespace: &str, spawn: &mut Spawn<'_>) -> Caches {
    let index = Index::default();
    let (all, admins) = (watched(PAGE), watched(ADMINS_PAGE));
    // Of tenants' kinds: by the label that only we may set and take off. Anyone may say that we manage a pod, or that we do not.
    let ours = all.clone().labels(UID_LABEL);
    let volumes = admins.clone().labels(&format!("{MANAGED_BY_LABEL}={MANAGER}"));
    let (seen, known) = (index.clone(), index.clone());
    let computers =
        spawn.watch(Api::<DeserializeGuard<Computer>>::all(client.clone()), all.clone(), cached_fields::foreign, move |event| {
            note(&seen, event);
            uids_of_computer(event)
        });
    let of_namespace = {
        let computers = computers.clone();
        move |event: &watcher::Event<Namespace>| in_namespace(&computers, event)
    };
    let of_class = {
        let computers = computers.clone();
        move |event: &watcher::Event<ComputerClass>| touched(event).map_or_else(Vec::new, |c| of_class(&computers, &c.name_any()))
    };
    let records = spawn.watch(
        Api::<DeserializeGuard<ComputerRecord>>::namespaced(client.clone(), namespace),
        admins.clone(),
        cached_fields::managed,
        |e| touched(e).map(ResourceExt::name_any).into_iter().collect(),
    );
    let of_volume = {
        let records = records.clone();
        move |event: &watcher::Event<PersistentVolume>| of_volume(&records, event)
    };
    Caches {
        records,
        classes: spawn.watch(Api::<DeserializeGuard<ComputerClass>>::all(client.clone()), admins.clone(), cached_fields::managed, of_class),
        overrides: spawn.watch(Api::<DeserializeGuard<DeletionOverride>>::all(client.clone()), admins, cached_fields::managed, |e| {
            touched(e).map(|o| o.spec.computer.uid.clone()).into_iter().collect()
        }),
        namespaces: spawn.watch(Api::<DeserializeGuard<Namespace>>::all(client.clone()), all, cached_fields::namespace, of_namespace),
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
    /// Of their backoff.
    pub sources: &'a Sources,
    /// Ends them.
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
        K: Resource + Clone + Debug + Default + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Default + Eq + Hash + Clone,
    {
        let (reader, writer) = reflector::store();
        let (queue, stop) = (self.queue.clone(), self.stop.clone());
        let understood = watcher(api, config).backoff(WatchBackoff::new(self.sources)).map_ok(understood).modify(strip);
        let mut events = understood.reflect(writer).boxed();
        let mut list = NewList { cache: reader.clone(), before: Vec::new(), concerned: Vec::new() };
        self.tasks.spawn(async move {
            let kind = kind_of::<K>();
            loop {
                let event = tokio::select! { () = stop.cancelled() => return, event = events.next() => event };
                match event {
                    Some(Ok(event)) => list.concerned(&event, &concerns).into_iter().for_each(|uid| queue.now(uid)),
                    Some(Err(error)) => tracing::warn!(kind, %error, "watch failed; it is tried again"),
                    None => return,
                }
            }
        });
        reader
    }
}

/// What a new list concerns. The cache shows nothing of it before its end: whoever is queued earlier is looked at as it was, and not
/// again. And nobody says what is not on it any more.
struct NewList<K: Resource<DynamicType: Eq + Hash> + 'static> {
    cache: Store<K>,
    /// What the cache held when the list began.
    before: Vec<Arc<K>>,
    concerned: Vec<String>,
}

impl<K> NewList<K>
where
    K: Resource<DynamicType: Default + Eq + Hash + Clone> + Clone + 'static,
{
    /// The UIDs to be queued after this event.
    fn concerned(&mut self, event: &watcher::Event<K>, concerns: &impl Fn(&watcher::Event<K>) -> Vec<String>) -> Vec<String> {
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

/// A kind as logs name it. All of ours are Rust types of the same name.
fn kind_of<K>() -> &'static str {
    std::any::type_name::<K>().rsplit("::").next().unwrap_or_default()
}

/// The event with an object that is understood. One that is not is taken out of the cache: what is done for it is decided by live
/// reads, which fail with the reason.
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
    tracing::error!(kind, namespace, name, error = object.error, "an object cannot be parsed and is ignored: fix or delete it");
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

/// A namespace that begins to go concerns every Computer in it (L7).
fn in_namespace(computers: &Store<Computer>, event: &watcher::Event<Namespace>) -> Vec<String> {
    let Some(namespace) = touched(event).filter(|n| n.metadata.deletion_timestamp.is_some()) else { return Vec::new() };
    let name = namespace.name_any();
    let inside = computers.state_filter(|c| c.metadata.namespace.as_deref() == Some(&name));
    inside.iter().filter_map(|c| c.metadata.uid.clone()).collect()
}

/// Computers that were made from a class show that it changed; those that are not active yet may wait for it.
fn of_class(computers: &Store<Computer>, name: &str) -> Vec<String> {
    let concerned = |c: &Computer| {
        let status = c.status.as_ref();
        status.and_then(|s| s.phase) != Some(crate::resources::Phase::Active) || status.and_then(|s| s.class_name.as_deref()) == Some(name)
    };
    computers.state().into_iter().filter(|c| concerned(c)).filter_map(|c| c.metadata.uid.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::runtime::queue;

    #[tokio::test]
    async fn an_object_that_is_not_understood_hides_no_other() {
        let service = tower::service_fn(|request: Request<Body>| async move {
            if request.uri().query().is_some_and(|q| q.contains("watch=true")) {
                std::future::pending::<()>().await;
            }
            let class = |name: &str, paths: serde_json::Value| json!({"metadata": {"name": name, "uid": name}, "spec": {"podTemplate": {}, "sessionPaths": paths}});
            let list = json!({
                "apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerClassList", "metadata": {"resourceVersion": "1"},
                "items": [class("poison", json!(7)), class("good", json!(["a"]))],
            });
            Ok::<_, Infallible>(Response::new(Body::from(list.to_string().into_bytes())))
        });
        let client = Client::new(service, "t");
        let ((queue, _work), mut tasks, stop) = (queue::queue(), JoinSet::new(), CancellationToken::new());
        let mut spawn = Spawn { queue: &queue, tasks: &mut tasks, stop: &stop, sources: &Sources::default() };
        let classes =
            spawn.watch(Api::<DeserializeGuard<ComputerClass>>::all(client), watcher::Config::default(), cached_fields::managed, |_| {
                Vec::new()
            });
        tokio::time::timeout(std::time::Duration::from_secs(10), classes.wait_until_ready()).await.unwrap().unwrap();
        assert_eq!(classes.state().iter().map(|c| c.name_any()).collect::<Vec<_>>(), ["good"]);
        stop.cancel();
        while tasks.join_next().await.is_some() {}
    }

    /// B5: eight kinds shared one log line without a kind.
    #[test]
    fn a_log_names_the_kind() {
        assert_eq!((kind_of::<Computer>(), kind_of::<PersistentVolumeClaim>()), ("Computer", "PersistentVolumeClaim"));
    }

    /// That a class differs from what runs is shown when the class changes, not when the next pod event happens to come by.
    #[tokio::test]
    async fn a_class_concerns_the_computers_that_were_made_from_it() {
        let (reader, mut writer) = reflector::store::<Computer>();
        let computer = |uid: &str, phase: &str, class: &str| -> Computer {
            let status = json!({"phase": phase, "className": class});
            serde_json::from_value(json!({"metadata": {"name": uid, "namespace": "t", "uid": uid}, "spec": {}, "status": status})).unwrap()
        };
        writer.apply_watcher_event(&watcher::Event::Init);
        for c in [computer("runs", "Active", "std"), computer("other", "Active", "big"), computer("waits", "Error", "big")] {
            writer.apply_watcher_event(&watcher::Event::InitApply(c));
        }
        writer.apply_watcher_event(&watcher::Event::InitDone);
        let mut uids = of_class(&reader, "std");
        uids.sort();
        assert_eq!(uids, ["runs", "waits"]);
    }

    /// Found with an API server that was killed: a new list comes page by page, and the cache shows none of it before its end. Who was
    /// queued at its object's place in the list was looked at as it had been, and never again: a deletion stood still for good.
    #[tokio::test(start_paused = true)]
    async fn what_a_new_list_shows_or_no_longer_shows_is_looked_at_when_the_cache_shows_it() {
        let class = |name: &str, size: &str| json!({"metadata": {"name": name, "uid": name, "generation": size.len()}, "spec": {"podTemplate": {}}});
        let lists = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let service = tower::service_fn(move |request: Request<Body>| {
            let (query, lists) = (request.uri().query().unwrap_or_default().to_owned(), Arc::clone(&lists));
            let list = |items: &[serde_json::Value], more: &str| json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1", "continue": more}, "items": items});
            async move {
                let expired = json!({"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": ""}});
                let answer = if query.contains("continue=next") {
                    // Time for whoever was queued too early.
                    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
                    list(&[class("b", "")], "")
                } else if !query.contains("watch=true") {
                    match lists.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
                        0 => list(&[class("a", ""), class("gone", "")], ""),
                        _ => list(&[class("a", "new")], "next"),
                    }
                } else if lists.load(std::sync::atomic::Ordering::SeqCst) == 1 {
                    expired
                } else {
                    std::future::pending().await
                };
                Ok::<_, Infallible>(Response::new(Body::from(format!("{answer}\n").into_bytes())))
            }
        });
        let ((queue, work), mut tasks, stop) = (queue::queue(), JoinSet::new(), CancellationToken::new());
        let api = Api::<DeserializeGuard<ComputerClass>>::all(Client::new(service, "t"));
        let mut spawn = Spawn { queue: &queue, tasks: &mut tasks, sources: &Sources::default(), stop: &stop };
        let named = |e: &watcher::Event<ComputerClass>| touched(e).map(ResourceExt::name_any).into_iter().collect();
        let classes = spawn.watch(api, watcher::Config::default(), cached_fields::managed, named);
        let looks: Arc<RwLock<HashMap<String, Option<i64>>>> = Arc::default();
        let seen = Arc::clone(&looks);
        let run = work.run(4, stop.clone(), move |name| {
            let found = classes.get(&ObjectRef::new(&name)).map(|c| c.metadata.generation.unwrap_or_default());
            seen.write().unwrap().insert(name, found);
            async { None }
        });
        let _ = tokio::time::timeout(std::time::Duration::from_secs(120), run).await;
        stop.cancel();
        let last = looks.read().unwrap().clone();
        assert_eq!(last, [("a".to_owned(), Some(3)), ("b".to_owned(), Some(0)), ("gone".to_owned(), None)].into());
    }
}
