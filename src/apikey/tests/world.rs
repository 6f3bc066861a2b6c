//! A small model of an API server with the guarantees of the real one: `resourceVersions`, UID preconditions, finalizers.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::apikey::ending::ended;
use crate::apikey::plan::{Next, Plan, plan};
use crate::apikey::view::{Account, Action, Effect, Place, SecretFact, View, has_finalizer};
use crate::credentials::ApiToken;
use crate::resources::{ApiKey, ApiKeyRecord, ApiKeySpec, CredentialState, DELETION_FINALIZER};
use crate::runtime::time_and_random::Fresh;

pub const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub uid: String,
    /// Hash of the token in it; `None` if a tenant created it.
    pub hash: Option<String>,
    pub held: bool,
    pub deleting: bool,
}

#[derive(Clone)]
pub struct World {
    pub key: Option<ApiKey>,
    pub record: Option<ApiKeyRecord>,
    pub secrets: BTreeMap<String, Stored>,
    pub account: Option<String>,
    pub terminating: bool,
    pub now: Timestamp,
    pub writes: usize,
    /// Tokens that have authenticated, and those that have become invalid since.
    seen_tokens: BTreeSet<String>,
    ended_tokens: BTreeSet<String>,
    /// Every token that was ever recorded.
    hashes: BTreeSet<String>,
    count: u64,
}

impl World {
    pub fn new() -> Self {
        let mut key = ApiKey::new("k", ApiKeySpec { service_account_name: "ci".into(), ..ApiKeySpec::default() });
        key.metadata.namespace = Some("t".into());
        key.metadata.uid = Some(UID.into());
        key.metadata.resource_version = Some("0".into());
        Self {
            key: Some(key),
            record: None,
            secrets: BTreeMap::new(),
            account: Some("account".into()),
            terminating: false,
            now: Timestamp::from_second(1_000_000).unwrap(),
            writes: 0,
            seen_tokens: BTreeSet::new(),
            ended_tokens: BTreeSet::new(),
            hashes: BTreeSet::new(),
            count: 0,
        }
    }

    pub fn next(&mut self) -> String {
        self.count += 1;
        self.count.to_string()
    }

    pub fn later(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// The view at the start of a pass: these caches and unique random bytes.
    pub fn begin(&mut self, cache: &World) -> View {
        let mut secret = [0; 32];
        let number = self.next();
        secret[..number.len()].copy_from_slice(number.as_bytes());
        // An object that is missing from the cache is read live.
        let (key, record) = (cache.key.clone().or_else(|| self.key.clone()), cache.record.clone().or_else(|| self.record.clone()));
        View {
            uid: UID.into(),
            namespace: "t".into(),
            name: "k".into(),
            key,
            key_is_live: false,
            record,
            place: if cache.terminating { Place::CachedTerminating } else { Place::Active },
            account: None,
            secrets: BTreeMap::new(),
            made: None,
            spent: false,
            operator_namespace: "op".into(),
            fresh: Fresh { suffix: number, key: secret },
            now: self.now,
        }
    }

    /// Performs one request of a pass. `Err` with the final plan if the pass has ended.
    pub fn step(&mut self, view: &mut View) -> Result<(), Plan> {
        view.now = self.now;
        let planned = plan(view);
        let Next::Do(action) = planned.next.clone() else { return Err(planned) };
        let effect = self.apply(*action, view);
        view.absorb(effect);
        self.promises();
        Ok(())
    }

    /// A whole pass with fresh caches.
    pub fn pass(&mut self) -> Plan {
        let mut view = self.begin(&self.clone());
        for _ in 0..60 {
            if let Err(plan) = self.step(&mut view) {
                return plan;
            }
        }
        panic!("the pass does not end: {:?}", plan(&view));
    }

    /// Runs passes and advances the time until only a long timer is left.
    pub fn settle(&mut self) -> Plan {
        for _ in 0..6 {
            self.pass();
            self.later(31);
        }
        self.pass()
    }

    pub fn apply(&mut self, action: Action, view: &View) -> Effect {
        let live_key = || Effect::Key(self.key.clone().map(Box::new));
        match action {
            Action::ReadKey => live_key(),
            Action::ReadNamespace => Effect::Namespace(self.terminating),
            Action::ReadAccount => Effect::Account(self.account.clone().map_or(Account::Gone, Account::Uid)),
            Action::AddFinalizer | Action::ReleaseFinalizer => self.patch(view, action == Action::AddFinalizer),
            Action::CreateRecord(record) => self.create_record(*record),
            Action::SaveRecord(record) => self.save_record(*record),
            Action::DeleteRecord => {
                assert!(self.key.is_none(), "the record must be deleted last");
                self.writes += 1;
                self.record = None;
                Effect::Record(None)
            }
            Action::ReadSecret(name) => {
                let fact = self.secrets.get(&name).map_or(SecretFact::Gone, |s| SecretFact::Uid(s.uid.clone()));
                Effect::Secret(name, fact)
            }
            Action::CreateSecret(secret) => {
                let name = secret.metadata.name.clone().unwrap();
                if let Some(there) = self.secrets.get(&name) {
                    return Effect::Secret(name, SecretFact::Uid(there.uid.clone()));
                }
                let token = ApiToken::parse(&secret.string_data.as_ref().unwrap()["token"]).unwrap();
                let uid = self.next();
                self.writes += 1;
                self.secrets.insert(name.clone(), Stored { uid: uid.clone(), hash: Some(token.hash()), held: false, deleting: false });
                Effect::Made(name, uid)
            }
            Action::DeleteSecret { name, uid } => self.delete_secret(name, &uid),
        }
    }

    fn patch(&mut self, view: &View, add: bool) -> Effect {
        let seen = view.key.as_ref().unwrap();
        let Some(key) = self.key.clone().filter(|k| k.metadata.resource_version == seen.metadata.resource_version) else {
            return Effect::Key(self.key.clone().map(Box::new));
        };
        let mut key = key;
        self.writes += 1;
        if add {
            assert!(key.metadata.deletion_timestamp.is_none(), "S8: a finalizer on a deleting object");
            key.metadata.finalizers = Some(vec![DELETION_FINALIZER.into()]);
        } else {
            // If no record was found, another leader may be creating one at this moment. Its token can never authenticate, and the record lists what the
            // next pass must clean up.
            if view.record.is_some() {
                self.release_is_last();
            }
            key.metadata.finalizers = None;
        }
        key.metadata.resource_version = Some(self.next());
        self.key = Some(key.clone()).filter(|k| k.metadata.deletion_timestamp.is_none());
        Effect::Patched(Box::new(key))
    }

    /// S3: none of the operator's objects remain, and the record is a tombstone.
    fn release_is_last(&self) {
        let Some(record) = &self.record else { return };
        assert!(ended(record), "released without a tombstone");
        // A Secret without a recorded UID may be created by another leader at this moment although it was just read as gone. That leader then finds the
        // tombstone and deletes the Secret; if it crashes, the owner reference does.
        for known in record.spec.retired.iter().filter(|s| s.uid.is_some()) {
            let ours = self.secrets.get(&known.name).filter(|s| s.hash.is_some());
            assert!(ours.is_none(), "released with {known:?}");
        }
    }

    fn create_record(&mut self, mut record: ApiKeyRecord) -> Effect {
        if self.record.is_some() {
            return Effect::FoundRecord(self.record.clone().map(Box::new));
        }
        self.writes += 1;
        let token = &record.spec.token;
        let first = self.record.as_ref().is_some_and(|r| r.spec.token.hash == token.hash) || self.hashes.insert(token.hash.clone());
        assert!(first, "a token was issued twice");
        record.metadata.resource_version = Some(self.next());
        self.record = Some(record.clone());
        Effect::Record(Some(Box::new(record)))
    }

    fn save_record(&mut self, mut record: ApiKeyRecord) -> Effect {
        let current = self.record.as_ref().and_then(|r| r.metadata.resource_version.clone());
        if current.is_none() || current != record.metadata.resource_version {
            return Effect::FoundRecord(self.record.clone().map(Box::new));
        }
        assert_ne!(self.record.as_ref().unwrap().spec, record.spec, "a write that changes nothing");
        let last = self.record.as_ref().is_some_and(ended);
        assert!(!last || ended(&record), "S8: the tombstone of a deleted key was replaced");
        self.writes += 1;
        let token = &record.spec.token;
        let first = self.record.as_ref().is_some_and(|r| r.spec.token.hash == token.hash) || self.hashes.insert(token.hash.clone());
        assert!(first, "a token was issued twice");
        record.metadata.resource_version = Some(self.next());
        self.record = Some(record.clone());
        Effect::Record(Some(Box::new(record)))
    }

    fn delete_secret(&mut self, name: String, uid: &str) -> Effect {
        let Some(stored) = self.secrets.get_mut(&name).filter(|s| s.uid == uid) else { return Effect::Secret(name, SecretFact::Gone) };
        assert!(stored.hash.is_some(), "S5: a tenant's Secret was deleted");
        self.writes += 1;
        if stored.held {
            stored.deleting = true;
            return Effect::Secret(name, SecretFact::Held);
        }
        self.secrets.remove(&name);
        Effect::Secret(name, SecretFact::Accepted)
    }

    /// The token that authenticates now, according to the objects that verification reads.
    pub fn authenticates(&self) -> Option<String> {
        let (key, token) = (self.key.as_ref()?, &self.record.as_ref()?.spec.token);
        let past = |t: &Option<Time>| t.as_ref().is_some_and(|t| self.now >= t.0);
        let valid = token.state == CredentialState::Live
            && key.metadata.deletion_timestamp.is_none()
            && key.spec.rotation == token.rotation
            && !past(&key.spec.expires_at)
            && !past(&token.expires_at)
            && !self.terminating
            && self.account.as_ref() == Some(&token.service_account_uid);
        valid.then(|| token.hash.clone())
    }

    /// Asserts the promises; called after every request and every event.
    pub fn promises(&mut self) {
        let valid = self.authenticates();
        if let Some(hash) = &valid {
            assert!(!self.ended_tokens.contains(hash), "S2: a revoked token authenticates again");
            let secret = self.record.as_ref().unwrap().spec.token.secret.as_ref().unwrap();
            assert!(secret.uid.is_some(), "a token is live before its Secret is on record");
            self.seen_tokens.insert(hash.clone());
        }
        self.ended_tokens = self.seen_tokens.iter().filter(|h| Some(*h) != valid.as_ref()).cloned().collect();
    }

    /// Secrets that the operator created.
    pub fn ours(&self) -> Vec<&Stored> {
        self.secrets.values().filter(|s| s.hash.is_some()).collect()
    }

    // Actions of users and tenants.

    pub fn change(&mut self, change: impl FnOnce(&mut ApiKey)) {
        let version = self.next();
        if let Some(key) = &mut self.key {
            change(key);
            key.metadata.resource_version = Some(version);
        }
        self.promises();
    }

    pub fn delete(&mut self) {
        let now = self.now;
        self.change(|key| {
            key.metadata.deletion_timestamp.get_or_insert(Time(now));
        });
        self.key = self.key.take().filter(has_finalizer);
        self.promises();
    }

    /// Deletes every Secret, as the garbage collector or a tenant would.
    pub fn delete_secrets_by_hand(&mut self) {
        self.secrets.retain(|_, s| s.held);
        self.secrets.values_mut().for_each(|s| s.deleting = true);
    }

    pub fn hold(&mut self, held: bool) {
        self.secrets.values_mut().filter(|s| !s.deleting || !held).for_each(|s| s.held = held);
        self.secrets.retain(|_, s| s.held || !s.deleting);
    }

    /// Creates a tenant's Secret under the name of a deleted one.
    pub fn plant(&mut self) {
        let uid = self.next();
        let recorded = self.record.as_ref().and_then(|r| r.spec.token.secret.clone()).filter(|s| s.uid.is_some());
        if let Some(secret) = recorded {
            self.secrets.entry(secret.name).or_insert(Stored { uid, hash: None, held: false, deleting: false });
        }
    }
}
