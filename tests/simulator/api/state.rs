//! The storage of the simulated API server: objects, and the log of changes that watches read. Every change goes through
//! [`State::commit`], where the observer checks it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use super::kinds::Kind;
use super::value::{name, namespace};
use crate::actors::kubelet::Kubelet;
use crate::actors::volumes::{Binder, Disks};
use crate::observer::Observer;

/// The client of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Actor {
    /// The n-th replica of the operator.
    Operator(usize),
    /// Kubernetes' own controllers and kubelets.
    Kubernetes,
    /// A tenant with all rights in its namespace.
    Tenant,
    /// A cluster admin.
    Admin,
}

impl Actor {
    pub fn is_operator(self) -> bool {
        matches!(self, Self::Operator(_))
    }
}

/// The place of an object.
pub type Key = (Kind, String, String);

/// One change, as watches see it.
#[derive(Clone)]
pub struct Change {
    pub rv: u64,
    pub at: Instant,
    pub actor: Actor,
    pub kind: Kind,
    pub before: Option<Arc<Value>>,
    pub after: Option<Arc<Value>>,
    /// The stored object, or the last state of a removed one with the version of its removal, as watches report it.
    last: Arc<Value>,
}

impl Change {
    /// The object as it is now, or as it was last.
    pub fn object(&self) -> &Value {
        &self.last
    }
}

pub struct State {
    pub objects: BTreeMap<Key, Arc<Value>>,
    pub log: Vec<Change>,
    /// Watches from before this get a 410.
    pub compacted: u64,
    pub observer: Observer,
    /// The containers that run on the nodes, whatever the API says.
    pub kubelet: Kubelet,
    /// The contents of the volumes.
    pub disks: Disks,
    /// The volume controller.
    pub binder: Binder,
    /// Before this a mutating webhook undoes what the operator writes.
    pub undone_until: Option<Instant>,
    start: Instant,
    seed: u64,
    rv: u64,
    uids: u64,
}

/// 2026-01-01, the start of every simulation.
const BEGIN: i64 = 1_767_225_600;

/// The time of day in a simulation that began at `start`.
pub fn time_since(start: Instant) -> Timestamp {
    let elapsed = Instant::now().duration_since(start);
    let begin = Timestamp::from_second(BEGIN).expect("a time");
    begin.checked_add(elapsed).expect("a time within reach")
}

impl State {
    pub fn new(start: Instant, seed: u64, observer: Observer) -> Self {
        Self {
            objects: BTreeMap::new(),
            log: Vec::new(),
            compacted: 0,
            observer,
            kubelet: Kubelet::default(),
            disks: Disks::default(),
            binder: Binder::default(),
            undone_until: None,
            start,
            seed,
            rv: 100,
            uids: 0,
        }
    }

    pub fn now(&self) -> Timestamp {
        time_since(self.start)
    }

    /// A time as the API stores it: in whole seconds.
    pub fn stamp(&self, after_seconds: i64) -> String {
        Timestamp::from_second(self.now().as_second() + after_seconds).expect("a time").to_string()
    }

    pub fn new_uid(&mut self) -> String {
        self.uids += 1;
        format!("{:08x}-0000-4000-8000-{:012x}", self.seed & 0xffff_ffff, self.uids)
    }

    pub fn rv(&self) -> u64 {
        self.rv
    }

    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Arc<Value>> {
        self.objects.get(&(kind, namespace.to_owned(), name.to_owned()))
    }

    /// All objects of a kind.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &Arc<Value>> {
        let from = (kind, String::new(), String::new());
        self.objects.range(from..).take_while(move |(key, _)| key.0 == kind).map(|(_, value)| value)
    }

    pub fn by_uid(&self, kind: Kind, uid: &str) -> Option<&Arc<Value>> {
        self.all(kind).find(|v| super::value::uid(v) == uid)
    }

    /// A controller of Kubernetes changes an object, including its status. Nothing happens when the object is gone or unchanged.
    pub fn change(&mut self, kind: Kind, within: &str, called: &str, edit: impl FnOnce(&mut Value)) {
        let Some(current) = self.get(kind, within, called).cloned() else { return };
        let mut new = (*current).clone();
        edit(&mut new);
        if new != *current {
            self.settle(Actor::Kubernetes, kind, current, new);
        }
    }

    #[allow(clippy::needless_pass_by_value)]
    /// Makes a change visible, after the observer has checked it. Returns the stored object.
    pub fn commit(&mut self, actor: Actor, kind: Kind, before: Option<Arc<Value>>, after: Value) -> Arc<Value> {
        self.note(actor, kind, before, after, true)
    }

    /// The same for a removed object: `last` is its last state.
    pub fn remove(&mut self, actor: Actor, kind: Kind, before: Arc<Value>, last: Value) {
        self.note(actor, kind, Some(before), last, false);
    }

    fn note(&mut self, actor: Actor, kind: Kind, before: Option<Arc<Value>>, mut last: Value, stays: bool) -> Arc<Value> {
        self.rv += 1;
        last["metadata"]["resourceVersion"] = self.rv.to_string().into();
        let last = Arc::new(last);
        let key = (kind, namespace(&last).to_owned(), name(&last).to_owned());
        let after = stays.then(|| Arc::clone(&last));
        match &after {
            Some(value) => self.objects.insert(key, Arc::clone(value)),
            None => self.objects.remove(&key),
        };
        let change = Change { rv: self.rv, at: Instant::now(), actor, kind, before, after, last: Arc::clone(&last) };
        self.log.push(change.clone());
        let mut observer = std::mem::take(&mut self.observer);
        observer.see(self, &change);
        self.observer = observer;
        last
    }
}
