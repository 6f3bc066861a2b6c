//! One watch of all computers of the cluster, reduced to what is waited for: how many each namespace has, and when each was first observed to be ready.
//! An event costs the same however many computers there are, so that the client does not slow down what it measures.
//!
//! A wait must never be endless: it fails at its deadline and says what is missing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use computer_operator::resources::Computer;
use futures::StreamExt as _;
use kube::ResourceExt as _;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::bench::lifecycle::contender::Kind;

/// Computers of one namespace, by name: when each was first observed to be ready.
#[derive(Clone, Debug, Default)]
struct Computers {
    all: HashMap<String, Option<Instant>>,
    ready: usize,
}

impl Computers {
    fn note(&mut self, name: String, ready: bool, now: Instant) {
        let seen = self.all.entry(name).or_default();
        if ready && seen.is_none() {
            *seen = Some(now);
            self.ready += 1;
        }
    }

    fn remove(&mut self, name: &str) {
        if self.all.remove(name).flatten().is_some() {
            self.ready -= 1;
        }
    }
}

/// What the watch has observed, by namespace.
#[derive(Debug, Default)]
struct State {
    namespaces: BTreeMap<String, Computers>,
    /// The computers of a list that is not complete yet.
    listed: HashSet<(String, String)>,
    error: Option<String>,
}

impl State {
    fn take(&mut self, event: Event<DynamicObject>, now: Instant) {
        let key = |object: &DynamicObject| (object.namespace().unwrap_or_default(), object.name_any());
        match event {
            Event::Init => self.listed.clear(),
            Event::Apply(object) => self.note(key(&object), &object, now),
            Event::InitApply(object) => {
                self.listed.insert(key(&object));
                self.note(key(&object), &object, now);
            }
            Event::Delete(object) => {
                let (namespace, name) = key(&object);
                self.namespaces.entry(namespace).or_default().remove(&name);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                for (namespace, computers) in &mut self.namespaces {
                    computers.all.retain(|name, _| listed.contains(&(namespace.clone(), name.clone())));
                    computers.ready = computers.all.values().flatten().count();
                }
            }
        }
    }

    fn note(&mut self, (namespace, name): (String, String), object: &DynamicObject, now: Instant) {
        self.namespaces.entry(namespace).or_default().note(name, Kind::Computer.ready(object), now);
    }

    /// How many computers a namespace has, and how many of them have been ready.
    fn count(&self, namespace: &str) -> (usize, usize) {
        self.namespaces.get(namespace).map_or((0, 0), |computers| (computers.all.len(), computers.ready))
    }
}

/// The running watch. It ends when this is dropped.
pub struct Fleet {
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fleet {
    /// Starts the watch.
    pub fn start(client: &kube::Client) -> Self {
        let (sender, state) = watch::channel(State::default());
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::erase::<Computer>(&()));
        let task = tokio::spawn(async move {
            let mut events = watcher::watcher(api, watcher::Config::default()).default_backoff().boxed();
            while let Some(event) = events.next().await {
                let now = Instant::now();
                sender.send_modify(|state| match event {
                    Ok(event) => state.take(event, now),
                    Err(error) => state.error = Some(error.to_string()),
                });
            }
        });
        Self { state, task }
    }

    /// How many computers a namespace has, and how many of them have been ready.
    pub fn count(&self, namespace: &str) -> (usize, usize) {
        self.state.borrow().count(namespace)
    }

    /// When each computer of a namespace was first observed to be ready.
    pub fn ready_since(&self, namespace: &str) -> HashMap<String, Instant> {
        let state = self.state.borrow();
        let all = state.namespaces.get(namespace).map(|computers| computers.all.iter()).into_iter().flatten();
        all.filter_map(|(name, at)| Some((name.clone(), (*at)?))).collect()
    }

    /// Waits until that many computers of a namespace have been ready.
    pub async fn ready(&mut self, namespace: &str, count: usize) -> Result<()> {
        self.until(namespace, limit(count), |_, ready| ready >= count, "are ready").await
    }

    /// Waits until a namespace has no computers.
    pub async fn gone(&mut self, namespace: &str) -> Result<()> {
        let (count, _) = self.count(namespace);
        self.until(namespace, limit(count), |all, _| all == 0, "have been ready").await
    }

    async fn until(&mut self, namespace: &str, limit: Duration, reached: impl Fn(usize, usize) -> bool, what: &str) -> Result<()> {
        let done = self.state.wait_for(|state| {
            let (all, ready) = state.count(namespace);
            reached(all, ready)
        });
        if tokio::time::timeout(limit, done).await.is_ok_and(|done| done.is_ok()) {
            return Ok(());
        }
        let state = self.state.borrow();
        let (all, ready) = state.count(namespace);
        bail!("after {} s namespace {namespace} has {all} computers, {ready} of them {what} (watch: {:?})", limit.as_secs(), state.error)
    }
}

/// The slowest rate that is not a failure, and a pause of a busy machine.
fn limit(count: usize) -> Duration {
    Duration::from_secs(120) + Duration::from_millis(500) * u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn computer(namespace: &str, name: &str, phase: &str) -> DynamicObject {
        let metadata = json!({"name": name, "namespace": namespace});
        let object = json!({"apiVersion": "x/v1", "kind": "Computer", "metadata": metadata, "status": {"phase": phase}});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn computers_are_counted_by_namespace_and_ready_once() {
        let (mut state, began) = (State::default(), Instant::now());
        let later = began + Duration::from_secs(1);
        state.take(Event::Apply(computer("a", "x", "Provisioning")), began);
        state.take(Event::Apply(computer("b", "x", "Active")), began);
        assert_eq!((state.count("a"), state.count("b"), state.count("c")), ((1, 0), (1, 1), (0, 0)));
        state.take(Event::Apply(computer("a", "x", "Active")), began);
        state.take(Event::Apply(computer("a", "x", "Active")), later);
        assert_eq!(state.count("a"), (1, 1));
        assert_eq!(state.namespaces["a"].all["x"], Some(began), "the first time counts");
        state.take(Event::Delete(computer("a", "x", "Terminating")), later);
        assert_eq!(state.count("a"), (0, 0));
    }

    #[test]
    fn a_list_after_an_interruption_shows_what_is_gone() {
        let (mut state, now) = (State::default(), Instant::now());
        for name in ["x", "y"] {
            state.take(Event::Apply(computer("a", name, "Active")), now);
        }
        state.take(Event::Init, now);
        state.take(Event::InitApply(computer("a", "y", "Active")), now);
        assert_eq!(state.count("a"), (2, 2), "the list is not complete");
        state.take(Event::InitDone, now);
        assert_eq!(state.count("a"), (1, 1));
    }
}
