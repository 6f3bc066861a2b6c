//! What one pass knows of one `ApiKey`, and the requests that a plan can ask for. Data only.
//! Caches fill a view at the start; that something is gone, and everything that ends a token for good, is learned live.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use crate::credentials::{ApiKeyId, ApiToken};
use crate::resources::{ApiKey, ApiKeyRecord, DELETION_FINALIZER};
use crate::runtime::time_and_random::Fresh;

/// What is known of a Secret. It is never read: a dry-run DELETE tells its UID (DESIGN.md 4.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretFact {
    /// A live answer said so, or another UID stands under that name.
    Gone,
    /// One of that UID exists.
    Uid(String),
    /// A delete was accepted: whether it is gone is to be read.
    Accepted,
    /// It is being deleted, but somebody else's finalizer holds it.
    Held,
}

/// What is known of the ServiceAccount, from a live read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// There is none, or it is being deleted.
    Gone,
    /// One of that UID exists.
    Uid(String),
}

/// What is known of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is not being deleted.
    Stands,
    /// A cache says that it is Terminating: it may be one of that name that was there before.
    SaidToGo,
    /// A live read said that it is Terminating, or gone.
    Going,
}

/// One request. Every write is fenced by a UID or a resourceVersion (S4).
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Live read of the `ApiKey`.
    ReadKey,
    /// Live read of its namespace.
    ReadNamespace,
    /// Live read of its ServiceAccount.
    ReadAccount,
    /// Adds the finalizer; never on a deleting object (S8).
    AddFinalizer,
    /// Takes the finalizer off: the last request for an `ApiKey` (S3).
    ReleaseFinalizer,
    /// Creates the record.
    CreateRecord(Box<ApiKeyRecord>),
    /// Replaces the record.
    SaveRecord(Box<ApiKeyRecord>),
    /// Deletes the record of an `ApiKey` that is gone.
    DeleteRecord,
    /// Which Secret stands under this name.
    ReadSecret(String),
    /// Creates the token's Secret.
    CreateSecret(Box<Secret>),
    /// Deletes a Secret.
    DeleteSecret {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
}

/// The answer to an action.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// The `ApiKey` as it was read live; `None`: gone, or another UID.
    Key(Option<Box<ApiKey>>),
    /// The `ApiKey` after it was patched: to be read again before anything is built on it.
    Patched(Box<ApiKey>),
    /// Whether the namespace is going.
    Namespace(bool),
    /// The ServiceAccount.
    Account(Account),
    /// The record as this pass wrote it; `None`: deleted.
    Record(Option<Box<ApiKeyRecord>>),
    /// The record as it was read; `None`: there is none.
    FoundRecord(Option<Box<ApiKeyRecord>>),
    /// A Secret of that name.
    Secret(String, SecretFact),
    /// The Secret that this pass created: name and UID.
    Made(String, String),
}

/// What one pass knows.
#[derive(Clone)]
pub struct View {
    /// UID of the `ApiKey`.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The `ApiKey`; `None`: a live read found it gone or under another UID.
    pub key: Option<ApiKey>,
    /// It was read live, later than the record and than it was last written to. A tombstone that is written after that changes the
    /// record's resourceVersion, so no write of this pass can replace it (S8).
    pub key_is_live: bool,
    /// The record; `None`: a live read found none.
    pub record: Option<ApiKeyRecord>,
    /// Its namespace.
    pub place: Place,
    /// Its ServiceAccount; `None`: not read yet.
    pub account: Option<Account>,
    /// Secrets that were asked for in this pass.
    pub secrets: BTreeMap<String, SecretFact>,
    /// The Secret that this pass created: name and UID.
    pub made: Option<(String, String)>,
    /// The random material of this pass was used: it must never make a second token, which would be the first one again.
    pub spent: bool,
    /// Namespace of the operator.
    pub operator_namespace: String,
    /// Random material for this pass.
    pub fresh: Fresh,
    /// The time.
    pub now: Timestamp,
}

impl View {
    /// Takes in the answer to an action.
    pub fn absorb(&mut self, effect: Effect) {
        match effect {
            Effect::Key(key) => {
                self.key = key.map(|k| *k);
                self.key_is_live = true;
            }
            Effect::Patched(key) => {
                self.key = Some(*key);
                self.key_is_live = false;
            }
            Effect::Namespace(terminating) => self.place = if terminating { Place::Going } else { Place::Stands },
            Effect::Account(account) => self.account = Some(account),
            Effect::Record(record) => self.record = record.map(|r| *r),
            // Somebody else's: what was read before it may have changed since, the `ApiKey` by its deletion, and the Secrets.
            Effect::FoundRecord(record) => {
                self.record = record.map(|r| *r);
                self.key_is_live &= self.key.is_none();
                self.secrets.retain(|name, _| self.made.as_ref().is_some_and(|(made, _)| made == name));
            }
            Effect::Secret(name, fact) => {
                self.secrets.insert(name, fact);
            }
            Effect::Made(name, uid) => {
                self.secrets.insert(name.clone(), SecretFact::Uid(uid.clone()));
                self.made = Some((name, uid));
            }
        }
        let fresh = self.fresh_secret();
        let named = self.record.as_ref().is_some_and(|r| r.spec.token.secret.iter().chain(&r.spec.retired).any(|s| s.name == fresh));
        self.spent |= named;
    }

    /// The token that this pass would issue.
    pub fn fresh_token(&self, service_account: &str) -> ApiToken {
        let own = str::to_owned;
        let id =
            ApiKeyId { namespace: own(&self.namespace), name: own(&self.name), uid: own(&self.uid), service_account: own(service_account) };
        ApiToken::new(id, self.fresh.key)
    }

    /// The name that this pass would give a new Secret: unguessable.
    pub fn fresh_secret(&self) -> String {
        format!("api-key-{}", self.fresh.suffix)
    }
}

/// Whether an `ApiKey` carries our finalizer.
pub fn has_finalizer(key: &ApiKey) -> bool {
    key.metadata.finalizers.iter().flatten().any(|f| f == DELETION_FINALIZER)
}
