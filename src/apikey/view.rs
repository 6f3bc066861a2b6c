//! What one pass knows of one `ApiKey`, and the requests that a plan can ask for. Data only.
//! Caches fill a view at the start; that something is gone, and everything that ends a token for good, is learned live.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use crate::computer::view::Fresh;
use crate::credentials::{ApiKeyId, ApiToken};
use crate::resources::{ApiKey, ApiKeyRecord, DELETION_FINALIZER};

/// What is known of a Secret. It is never read: a dry-run DELETE tells its UID (design 4.8).
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
    /// The record as stored; `None`: gone.
    Record(Option<Box<ApiKeyRecord>>),
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
    /// It was read live since it was last written to.
    pub key_is_live: bool,
    /// The record; `None`: a live read found none.
    pub record: Option<ApiKeyRecord>,
    /// Its namespace is Terminating.
    pub terminating: bool,
    /// That was read live.
    pub terminating_is_live: bool,
    /// Its ServiceAccount; `None`: not read yet.
    pub account: Option<Account>,
    /// Secrets that were asked for in this pass.
    pub secrets: BTreeMap<String, SecretFact>,
    /// The Secret that this pass created: name and UID.
    pub made: Option<(String, String)>,
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
            Effect::Namespace(terminating) => {
                self.terminating = terminating;
                self.terminating_is_live = true;
            }
            Effect::Account(account) => self.account = Some(account),
            Effect::Record(record) => self.record = record.map(|r| *r),
            Effect::Secret(name, fact) => {
                self.secrets.insert(name, fact);
            }
            Effect::Made(name, uid) => {
                self.secrets.insert(name.clone(), SecretFact::Uid(uid.clone()));
                self.made = Some((name, uid));
            }
        }
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
