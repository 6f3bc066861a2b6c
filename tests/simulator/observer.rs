//! The observer checks every change when it is made and reports the promise that it breaks. It knows the real state (which client
//! created which object, what runs, what was written). It must never rely on the operator's record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use computer_operator::archive::{manifest_key, receipt_key};
use computer_operator::credentials::Key;
use computer_operator::resources::Provider;
use object_store::memory::InMemory;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::api::kinds::Kind;
use crate::api::state::Change;
use crate::api::value::{deleting, name, namespace, text, uid};
use crate::api::verbs::computer_of;
use crate::api::{Actor, State};
use crate::checks;
use crate::keys::{authenticates, token};
use crate::moves::{SYSTEM, holds};
use crate::store::peek;

/// The class of a computer when it was created, not the operator's copy in the record.
#[derive(Clone, Debug, Default)]
pub struct Promised {
    /// `Required`, `BestEffort` or `None`.
    pub archive: String,
    pub hand_off: bool,
    pub session_paths: Value,
}

impl Promised {
    fn by(state: &State) -> Self {
        let spec = state.all("computerclasses").next().map(|c| c["spec"].clone()).unwrap_or_default();
        Self {
            archive: text(&spec, "/archive/policy").unwrap_or("Required").to_owned(),
            hand_off: text(&spec, "/archive/onNamespaceDeletion") == Some("HandOff"),
            session_paths: spec["sessionPaths"].clone(),
        }
    }
}

/// The history of one computer.
#[derive(Clone, Debug, Default)]
pub struct Fate {
    pub promised: Promised,
    pub namespace: String,
    pub name: String,
    /// Since when it or its namespace is being deleted, or it is gone.
    pub dying: Option<Instant>,
    pub gone: Option<Instant>,
    /// Its key has authenticated at some time.
    pub was_live: bool,
    /// When it was last seen suspended.
    pub suspended: Option<Instant>,
    /// A client other than the operator removed its finalizer.
    pub stripped: bool,
    /// The operator deleted it, with this reason on record.
    pub ended: Option<String>,
    /// When its archive was complete.
    pub archived: Option<Instant>,
    /// When each replica observed that it is being deleted.
    observed: BTreeMap<usize, Instant>,
    keys: Vec<Key>,
}

/// A read this long before a release is not part of the same reconcile, however slow its requests are.
const LAST_READ: Duration = Duration::from_secs(10);

/// No event is published this often, and no computer is shown as blocked this often, even by two leaders that are killed and restarted.
const MOST_EVENTS: usize = 10;

/// Kind, namespace and name.
type Named = (Kind, String, String);

#[derive(Default)]
pub struct Observer {
    violations: Vec<String>,
    pub fates: BTreeMap<String, Fate>,
    /// Objects that an operator created: their UID, and that of their computer.
    owned: BTreeMap<String, String>,
    /// Who created each of them, and when.
    born: BTreeMap<String, (Actor, Instant)>,
    /// When the last child of each name was removed.
    ended: BTreeMap<Named, Instant>,
    /// When the API server last answered each replica that no object of that name exists.
    absent: BTreeMap<(usize, Named), Instant>,
    /// How often each event was published, by the UID of its object and its reason.
    published: BTreeMap<(String, String), usize>,
    /// How often each computer was shown as blocked again, by its UID and the reason.
    blocked: BTreeMap<(String, String), usize>,
    /// Creates and deletes of the operators, by kind.
    pub creates: BTreeMap<Kind, usize>,
    pub deletes: BTreeMap<Kind, usize>,
    /// When an operator last changed something, leases apart.
    pub last_write: Option<(Instant, String)>,
    pub writes: usize,
    /// Claims whose deletion an operator asked for.
    claims_deleted: Vec<String>,
    /// Volumes, by UID, whose policy an admin set to `Delete`, and when.
    pub reset: BTreeMap<String, Instant>,
    /// Volumes that an admin's policy destroyed before any operator could observe it.
    pub lost: BTreeSet<String>,
    /// UIDs whose deletion an operator requested, and those that it requested more than once.
    asked: BTreeSet<String>,
    pub repeated: BTreeMap<String, usize>,
    store: Option<Arc<InMemory>>,
    /// When the operators' clock jumped an hour ahead.
    pub clock_ahead: Option<Instant>,
    /// The store loses objects of every complete archive.
    pub lossy: bool,
    /// The store never answers: nothing can be archived.
    pub store_dead: bool,
    /// Archive pods take longer than any deadline before they store the manifest.
    pub slow_pods: bool,
    /// Computers that a tenant still tries to create: the run does not end before they have existed.
    pub wanted: usize,
}

impl Observer {
    pub fn new(store: Arc<InMemory>) -> Self {
        Self { store: Some(store), ..Self::default() }
    }

    pub fn violation(&mut self, what: String) {
        if self.violations.len() < 20 {
            self.violations.push(what);
        }
    }

    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    pub fn owns(&self, object: &str) -> bool {
        self.owned.contains_key(object)
    }

    /// UID of the computer that an operator created an object for.
    pub fn owner(&self, object: &str) -> Option<&String> {
        self.owned.get(object)
    }

    /// An object under a recorded name whose UID was not in the record yet (a crash right after the create) counts as owned. Nothing
    /// distinguishes it from an object that a tenant has created meanwhile (DESIGN.md 4.8).
    pub fn adopt(&mut self, object: &str, computer: &str) {
        self.owned.insert(object.to_owned(), computer.to_owned());
    }

    pub fn owned_by<'a>(&'a self, computer: &'a str) -> impl Iterator<Item = &'a String> {
        self.owned.iter().filter(move |(_, c)| *c == computer).map(|(o, _)| o)
    }

    pub fn claim_was_deleted_by_us(&self, claim: &str) -> bool {
        self.claims_deleted.iter().any(|c| c == claim)
    }

    pub fn in_store(&self, key: &str) -> Option<Bytes> {
        peek(self.store.as_ref()?, key)
    }

    pub fn receipt(&self, computer: &str) -> Option<Value> {
        serde_json::from_slice(&self.in_store(&receipt_key(computer))?).ok()
    }

    /// Whether this policy requires an archive. `BestEffort` gives up only sessions that could not be archived.
    pub fn archive_due(&self, policy: &str) -> bool {
        policy == "Required" || (policy == "BestEffort" && !self.store_dead)
    }

    /// The digests of the chunks in the last complete archive of this computer: all objects exist and match their names.
    pub fn archive(&self, computer: &str) -> Option<Vec<String>> {
        crate::store::archive(self.store.as_ref()?, computer)
    }

    /// Whether the store has a manifest whose objects it has lost.
    pub fn damaged(&self, computer: &str) -> bool {
        self.lossy && self.in_store(&manifest_key(computer)).is_some() && self.archive(computer).is_none()
    }

    /// An operator requested a deletion successfully.
    pub fn asked_to_delete(&mut self, object: &str, what: String) {
        if !self.asked.insert(object.to_owned()) {
            *self.repeated.entry(what).or_default() += 1;
        }
    }

    /// The API server answered a replica that the object does not exist.
    pub fn observed_absent(&mut self, actor: Actor, kind: Kind, within: &str, called: &str) {
        if let Actor::Operator(replica) = actor {
            self.absent.insert((replica, (kind, within.to_owned(), called.to_owned())), Instant::now());
        }
    }

    /// Whether a child was created too late for this replica to know of it: another replica's create was still in flight when the former
    /// object was removed and when this replica read. No read can rule that out (docs/reliability.md); the child must be gone at the
    /// end (S6).
    pub fn came_late(&self, actor: Actor, kind: Kind, object: &Value) -> bool {
        let (Actor::Operator(replica), Some((by, born))) = (actor, self.born.get(uid(object))) else { return false };
        let named = (kind, namespace(object).to_owned(), name(object).to_owned());
        let (Some(ended), Some(read)) = (self.ended.get(&named), self.absent.get(&(replica, named.clone()))) else { return false };
        *by != actor && ended <= read && read <= born && read.elapsed() <= LAST_READ
    }

    /// A replica's watch has shown a change.
    pub fn observed(&mut self, actor: Actor, change: &Change) {
        let Actor::Operator(replica) = actor else { return };
        if change.kind == "computers"
            && (change.after.is_none() || deleting(change.object()))
            && let Some(fate) = self.fates.get_mut(uid(change.object()))
        {
            fate.observed.entry(replica).or_insert_with(Instant::now);
        }
    }

    pub fn when_observed(&self, computer: &str, actor: Actor) -> Option<Instant> {
        let Actor::Operator(replica) = actor else { return None };
        self.fates.get(computer)?.observed.get(&replica).copied()
    }

    /// A change of the store (S7, S2).
    pub fn stored(&mut self, state: &State, key: &str, before: Option<&Bytes>, after: Option<&Bytes>) {
        if before.is_some() && before != after {
            self.violation(format!("S7: {key} was overwritten"));
        }
        let Some(after) = after.filter(|_| before.is_none()) else { return };
        if key.contains("/objects/") {
            self.violation(format!("{key} belongs to an earlier version of the format"));
        }
        if let Some(digest) = key.rsplit('/').next().and_then(|f| f.strip_suffix(".zst")).filter(|_| key.contains("/chunks/"))
            && hex::encode(Sha256::digest(after)) != digest
        {
            self.violation(format!("S7: the content of {key} does not match its name"));
        }
        if let Some(computer) = key.strip_prefix("archives/").and_then(|k| k.split('/').next()) {
            checks::archived(self, state, computer);
            if let Some(fate) = self.fates.get_mut(computer).filter(|_| key == manifest_key(computer)) {
                fate.archived.get_or_insert_with(Instant::now);
            }
        }
        self.last_write = Some((Instant::now(), format!("STORE {key}")));
    }

    /// A change in the API server.
    pub fn see(&mut self, state: &State, change: &Change) {
        self.note(state, change);
        if change.actor.is_operator() {
            self.count(change);
            checks::of_operator(self, state, change);
        }
        if change.kind == "persistentvolumes" && change.after.is_none() {
            checks::destroyed(self, state, change.object());
        }
        if matches!(change.kind, "computers" | "computerrecords" | "namespaces") {
            self.keys(state, change);
        }
    }

    /// Updates the observer's own state.
    fn note(&mut self, state: &State, change: &Change) {
        let object = change.object();
        if change.kind == "computers" {
            self.note_computer(state, change);
        }
        if change.kind == "persistentvolumes" && change.actor == Actor::Admin {
            self.reset.insert(uid(object).to_owned(), Instant::now());
        }
        if change.kind == "namespaces" && (change.after.is_none() || deleting(object)) {
            for fate in self.fates.values_mut().filter(|f| f.namespace == name(object)) {
                fate.dying.get_or_insert_with(Instant::now);
            }
        }
        if change.after.is_none() {
            self.ended.insert((change.kind, namespace(object).to_owned(), name(object).to_owned()), Instant::now());
        }
        let created = change.before.is_none() && change.actor.is_operator();
        if created
            && matches!(change.kind, "pods" | "persistentvolumeclaims" | "secrets")
            && let Some(computer) = computer_of(object)
        {
            self.owned.insert(uid(object).to_owned(), computer.to_owned());
            self.born.insert(uid(object).to_owned(), (change.actor, Instant::now()));
            if let Some(key) = token(object) {
                self.fates.entry(computer.to_owned()).and_modify(|f| f.keys.push(key));
            }
        }
    }

    fn note_computer(&mut self, state: &State, change: &Change) {
        let object = change.object();
        let dying = deleting(object) || state.get("namespaces", "", namespace(object)).is_none_or(|n| deleting(n));
        let fate = self.fates.entry(uid(object).to_owned()).or_insert_with(|| Fate {
            promised: Promised::by(state),
            namespace: namespace(object).to_owned(),
            name: name(object).to_owned(),
            ..Fate::default()
        });
        if fate.dying.is_none() && (dying || change.after.is_none()) {
            fate.dying = Some(Instant::now());
        }
        if change.after.is_none() {
            fate.gone = Some(Instant::now());
        }
        if object["spec"]["suspended"] == true {
            fate.suspended = Some(Instant::now());
        }
        let held = change.before.as_deref().is_some_and(holds);
        if held && !change.after.as_deref().is_some_and(holds) && !change.actor.is_operator() {
            fate.stripped = true;
        }
    }

    /// L6: the same event is not published ten times.
    fn event_again(&mut self, event: &Value) {
        let part = |pointer| text(event, pointer).unwrap_or_default().to_owned();
        let published = self.published.entry((part("/regarding/uid"), part("/reason"))).or_default();
        *published += 1;
        if *published == MOST_EVENTS {
            let what =
                format!("L6: the event of {} with reason {} was published {MOST_EVENTS} times", part("/regarding/name"), part("/reason"));
            self.violation(what);
        }
    }

    /// L6: a status does not change between blocked and not blocked while its cause lasts.
    pub fn blocked_again(&mut self, computer: &str, reason: &str) {
        let shown = self.blocked.entry((computer.to_owned(), reason.to_owned())).or_default();
        *shown += 1;
        if *shown == MOST_EVENTS {
            self.violation(format!("L6: {computer} was shown as blocked with reason {reason} {MOST_EVENTS} times"));
        }
    }

    fn count(&mut self, change: &Change) {
        if change.kind == "events" {
            return self.event_again(change.object());
        }
        if change.kind == "leases" {
            return;
        }
        self.writes += 1;
        self.last_write = Some((Instant::now(), format!("{} {}/{}", change.kind, namespace(change.object()), name(change.object()))));
        if change.before.is_none() {
            *self.creates.entry(change.kind).or_default() += 1;
        }
        let was = change.before.as_deref().is_some_and(deleting);
        if change.after.is_none() || (deleting(change.object()) && !was) {
            *self.deletes.entry(change.kind).or_default() += 1;
            if change.kind == "persistentvolumeclaims" && namespace(change.object()) != SYSTEM {
                self.claims_deleted.push(uid(change.object()).to_owned());
            }
        }
    }

    /// How many of the keys that were ever issued authenticate, whether or not their Secrets exist.
    pub fn valid_keys(&self, state: &State) -> usize {
        self.fates.values().flat_map(|fate| &fate.keys).filter(|key| authenticates(state, key)).count()
    }

    /// S2: the real decision, on the current objects of the API server.
    fn keys(&mut self, state: &State, change: &Change) {
        let mut broken = Vec::new();
        let (kind, object) = (change.kind, change.object());
        for (computer, fate) in &mut self.fates {
            let concerned = match kind {
                "computers" => fate.name == name(object) && fate.namespace == namespace(object),
                "computerrecords" => computer == name(object),
                _ => fate.namespace == name(object),
            };
            if !concerned {
                continue;
            }
            for key in &fate.keys {
                if !authenticates(state, key) {
                    continue;
                }
                let record = checks::record(state, computer);
                fate.was_live = true;
                if fate.dying.is_some() {
                    broken.push(format!("S2: a key of {computer} authenticates although it is being deleted"));
                }
                let protected = record.is_some_and(|r| r.spec.provider == Provider::BYOM || r.spec.state.children.volume.is_some());
                if !protected {
                    broken.push(format!("S1: a key of {computer} authenticates before its home is set to Retain"));
                }
            }
        }
        for what in broken {
            self.violation(what);
        }
    }
}
