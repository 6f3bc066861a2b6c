//! The observer: looks at every change at the moment it is made, and says which promise it breaks. It knows the truth (what was
//! created by whom, what runs, what was written), not what the operator believes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use computer_operator::archive::{Manifest, manifest_key, object_key, receipt_key};
use computer_operator::credentials::Key;
use computer_operator::credentials::verify::decide;
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
use crate::moves::{SYSTEM, holds};
use crate::store::peek;

/// What the class of a computer said when it was created: not what the operator has written down of it.
#[derive(Clone, Debug)]
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

/// What became of one computer.
#[derive(Clone, Debug)]
pub struct Fate {
    pub promised: Promised,
    pub namespace: String,
    pub name: String,
    /// Since when it, or its namespace, is being deleted, or it is gone.
    pub dying: Option<Instant>,
    pub gone: Option<Instant>,
    /// Its key has authenticated at some time.
    pub was_live: bool,
    /// Its finalizer was taken off by somebody else than the operator.
    pub stripped: bool,
    /// The operator deleted it, with this reason on record.
    pub ended: Option<String>,
    /// When its archive was complete.
    pub archived: Option<Instant>,
    /// When each replica was told that it is being deleted.
    told: BTreeMap<usize, Instant>,
    keys: Vec<Key>,
}

/// A look from which a release came so much later is no look of the same pass, however slow its requests are.
const LAST_LOOK: Duration = Duration::from_secs(10);

/// So often is nothing told, by two leaders that are killed and go on.
const TOLD: usize = 10;

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
    /// When the last child of each name went away.
    ended: BTreeMap<Named, Instant>,
    /// When each replica was last told by the API server that there is none of that name.
    absent: BTreeMap<(usize, Named), Instant>,
    /// How often each event was published, by the UID of what it is about and its reason.
    told: BTreeMap<(String, String), usize>,
    /// Creates and deletes of the operators, by kind.
    pub creates: BTreeMap<Kind, usize>,
    pub deletes: BTreeMap<Kind, usize>,
    /// When an operator last changed something, leases apart.
    pub last_write: Option<(Instant, String)>,
    pub writes: usize,
    /// Claims whose deletion an operator asked for.
    claims_deleted: Vec<String>,
    store: Option<Arc<InMemory>>,
    /// The store loses the objects of every archive that is complete.
    pub lossy: bool,
    /// Computers that a tenant still asks for: it is not over before they have been.
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

    /// An object under a recorded name whose UID was not on record yet (a crash right after the create) is taken for ours; nobody
    /// can tell it from one that a tenant has put there meanwhile (design 4.8).
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

    /// The digests of the sessions of a whole archive of this computer: all objects are there and are what they are called.
    pub fn archive(&self, computer: &str) -> Option<Vec<String>> {
        let manifest = Manifest::parse(&self.in_store(&manifest_key(computer))?).ok().filter(|m| m.computer.uid == computer)?;
        let whole = |digest: &String| {
            let object = self.in_store(&object_key(computer, digest));
            object.is_some_and(|o| hex::encode(Sha256::digest(&o)) == *digest)
        };
        let digests: Vec<String> = manifest.sessions.into_iter().map(|s| s.digest).collect();
        digests.iter().all(whole).then_some(digests)
    }

    /// Whether a manifest is there whose objects the store has lost.
    pub fn damaged(&self, computer: &str) -> bool {
        self.lossy && self.in_store(&manifest_key(computer)).is_some() && self.archive(computer).is_none()
    }

    /// A replica was answered that there is no such object.
    pub fn told_absent(&mut self, actor: Actor, kind: Kind, within: &str, called: &str) {
        if let Actor::Operator(replica) = actor {
            self.absent.insert((replica, (kind, within.to_owned(), called.to_owned())), Instant::now());
        }
    }

    /// Whether a child came true too late for this replica to know of it: another one's create that was still on its way when what it had
    /// made before was taken away, and when this replica had looked. No look can rule that out (docs/reliability.md); it must be gone
    /// at the end (S6).
    pub fn came_late(&self, actor: Actor, kind: Kind, object: &Value) -> bool {
        let (Actor::Operator(replica), Some((by, born))) = (actor, self.born.get(uid(object))) else { return false };
        let named = (kind, namespace(object).to_owned(), name(object).to_owned());
        let (Some(ended), Some(looked)) = (self.ended.get(&named), self.absent.get(&(replica, named.clone()))) else { return false };
        *by != actor && ended <= looked && looked <= born && looked.elapsed() <= LAST_LOOK
    }

    /// A replica's watch has shown a change.
    pub fn told(&mut self, actor: Actor, change: &Change) {
        let Actor::Operator(replica) = actor else { return };
        if change.kind == "computers"
            && (change.after.is_none() || deleting(change.object()))
            && let Some(fate) = self.fates.get_mut(uid(change.object()))
        {
            fate.told.entry(replica).or_insert_with(Instant::now);
        }
    }

    pub fn when_told(&self, computer: &str, actor: Actor) -> Option<Instant> {
        let Actor::Operator(replica) = actor else { return None };
        self.fates.get(computer)?.told.get(&replica).copied()
    }

    /// A change of the store (S7, S2).
    pub fn stored(&mut self, state: &State, key: &str, before: Option<&Bytes>, after: Option<&Bytes>) {
        if before.is_some() && before != after {
            self.violation(format!("S7: {key} was overwritten"));
        }
        let Some(after) = after.filter(|_| before.is_none()) else { return };
        if let Some(digest) = key.rsplit('/').next().and_then(|f| f.strip_suffix(".tar.zst")).filter(|_| key.contains("/objects/"))
            && hex::encode(Sha256::digest(after)) != digest
        {
            self.violation(format!("S7: {key} is not what it is called"));
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

    /// Keeps the truth.
    fn note(&mut self, state: &State, change: &Change) {
        let object = change.object();
        if change.kind == "computers" {
            let dying = deleting(object) || state.get("namespaces", "", namespace(object)).is_none_or(|n| deleting(n));
            let fate = self.fates.entry(uid(object).to_owned()).or_insert_with(|| Fate {
                promised: Promised::by(state),
                namespace: namespace(object).to_owned(),
                name: name(object).to_owned(),
                dying: None,
                gone: None,
                was_live: false,
                stripped: false,
                ended: None,
                archived: None,
                told: BTreeMap::new(),
                keys: Vec::new(),
            });
            if fate.dying.is_none() && (dying || change.after.is_none()) {
                fate.dying = Some(Instant::now());
            }
            if change.after.is_none() {
                fate.gone = Some(Instant::now());
            }
            let held = change.before.as_deref().is_some_and(holds);
            if held && !change.after.as_deref().is_some_and(holds) && !change.actor.is_operator() {
                fate.stripped = true;
            }
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

    /// L6: nobody reads the same ten times.
    fn told_again(&mut self, event: &Value) {
        let part = |pointer| text(event, pointer).unwrap_or_default().to_owned();
        let told = self.told.entry((part("/regarding/uid"), part("/reason"))).or_default();
        *told += 1;
        if *told == TOLD {
            let what = format!("L6: {} was told {} {TOLD} times", part("/regarding/name"), part("/reason"));
            self.violation(what);
        }
    }

    fn count(&mut self, change: &Change) {
        if change.kind == "events" {
            return self.told_again(change.object());
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

    /// S2: the real decision, on what the API server has at this moment.
    fn keys(&mut self, state: &State, change: &Change) {
        let typed = |v: &Arc<Value>| (**v).clone();
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
                let record = state.get("computerrecords", SYSTEM, computer).and_then(|v| serde_json::from_value(typed(v)).ok());
                let object = state.get("computers", &fate.namespace, &fate.name).and_then(|v| serde_json::from_value(typed(v)).ok());
                let space = state.get("namespaces", "", &fate.namespace).and_then(|v| serde_json::from_value(typed(v)).ok());
                if decide(key, record.as_ref(), object.as_ref(), space.as_ref()).is_err() {
                    continue;
                }
                fate.was_live = true;
                if fate.dying.is_some() {
                    broken.push(format!("S2: a key of {computer} authenticates although it is being deleted"));
                }
                let protected = record.as_ref().is_some_and(|r: &computer_operator::resources::ComputerRecord| {
                    r.spec.provider == computer_operator::resources::Provider::BYOM || r.spec.state.children.volume.is_some()
                });
                if !protected {
                    broken.push(format!("S1: a key of {computer} authenticates before its home is protected"));
                }
            }
        }
        for what in broken {
            self.violation(what);
        }
    }
}

/// The key in a Secret of ours.
fn token(secret: &Value) -> Option<Key> {
    use base64::Engine as _;
    let data = text(secret, "/data/token")?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(data).ok()?;
    Key::parse(std::str::from_utf8(&bytes).ok()?)
}
