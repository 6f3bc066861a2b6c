//! What one pass knows about one `ApiKey`, and the requests that a plan can return. Data only. A view starts with the contents of the caches. The absence
//! of an object, and every fact that ends a token permanently, must come from a live read.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use crate::credentials::{ApiKeyId, ApiToken};
use crate::resources::{ApiKey, ApiKeyRecord, DELETION_FINALIZER};
use crate::runtime::time_and_random::Fresh;

/// What is known about a Secret. It is never read: a dry-run DELETE returns its UID (DESIGN.md 4.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretFact {
    /// A live read found no Secret, or one with another UID.
    Gone,
    /// A Secret with this UID exists.
    Uid(String),
    /// A delete was accepted; a read must show whether it is gone.
    Accepted,
    /// It is being deleted, but a finalizer of another controller blocks it.
    Held,
}

/// What a live read found out about the ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// It does not exist or is being deleted.
    Gone,
    /// A ServiceAccount with this UID exists.
    Uid(String),
}

/// The state of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is not being deleted.
    Active,
    /// The cache shows it as Terminating, which may be an earlier namespace of the same name.
    CachedTerminating,
    /// A live read found it Terminating or gone.
    Terminating,
}

/// One request. Every write has a UID or a `resourceVersion` as a precondition (S4).
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
    /// Removes the finalizer: the last request for an `ApiKey` (S3).
    ReleaseFinalizer,
    /// Creates the record.
    CreateRecord(Box<ApiKeyRecord>),
    /// Replaces the record.
    SaveRecord(Box<ApiKeyRecord>),
    /// Deletes the record of an `ApiKey` that is gone.
    DeleteRecord,
    /// Finds the UID of the Secret with this name.
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

impl Action {
    /// A short name for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ReadKey => "read-key",
            Self::ReadNamespace => "read-namespace",
            Self::ReadAccount => "read-service-account",
            Self::AddFinalizer => "add-finalizer",
            Self::ReleaseFinalizer => "release-finalizer",
            Self::CreateRecord(_) => "create-record",
            Self::SaveRecord(_) => "save-record",
            Self::DeleteRecord => "delete-record",
            Self::ReadSecret(_) => "read-secret",
            Self::CreateSecret(_) => "create-secret",
            Self::DeleteSecret { .. } => "delete-secret",
        }
    }
}

/// The result of an action.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// The `ApiKey` from a live read; `None` if it is gone or has another UID.
    Key(Option<Box<ApiKey>>),
    /// The `ApiKey` after a patch; it must be read again before a decision is based on it.
    Patched(Box<ApiKey>),
    /// Whether the namespace is Terminating or gone.
    Namespace(bool),
    /// The ServiceAccount.
    Account(Account),
    /// The record that this pass has written; `None` if it was deleted.
    Record(Option<Box<ApiKeyRecord>>),
    /// The record from a live read; `None` if it does not exist.
    FoundRecord(Option<Box<ApiKeyRecord>>),
    /// A fact about the Secret with this name.
    Secret(String, SecretFact),
    /// The Secret that this pass created: name and UID.
    Made(String, String),
}

/// What one pass knows about an `ApiKey`.
#[derive(Clone)]
pub struct View {
    /// UID of the `ApiKey`.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The `ApiKey`; `None` if a live read found it gone or with another UID.
    pub key: Option<ApiKey>,
    /// Whether the `ApiKey` was read live after the record was read and after its own last write. A tombstone written later changes the `resourceVersion` of
    /// the record, so no write of this pass can replace it (S8).
    pub key_is_live: bool,
    /// The record; `None` if a live read found none.
    pub record: Option<ApiKeyRecord>,
    /// The state of its namespace.
    pub place: Place,
    /// Its ServiceAccount; `None` if not read yet.
    pub account: Option<Account>,
    /// Facts about Secrets from this pass.
    pub secrets: BTreeMap<String, SecretFact>,
    /// The Secret that this pass created: name and UID.
    pub made: Option<(String, String)>,
    /// Whether the random material of this pass has been used. It must not be used twice, because that would issue the same token again.
    pub spent: bool,
    /// Namespace of the operator.
    pub operator_namespace: String,
    /// Random material for this pass.
    pub fresh: Fresh,
    /// The time.
    pub now: Timestamp,
}

impl View {
    /// Updates the view with the result of an action.
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
            Effect::Namespace(terminating) => self.place = if terminating { Place::Terminating } else { Place::Active },
            Effect::Account(account) => self.account = Some(account),
            Effect::Record(record) => self.record = record.map(|r| *r),
            // Another client wrote the record: facts that were read before may be stale, both the `ApiKey` and the Secrets.
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

    /// The token that this pass can issue.
    pub fn fresh_token(&self, service_account: &str) -> ApiToken {
        let own = str::to_owned;
        let id =
            ApiKeyId { namespace: own(&self.namespace), name: own(&self.name), uid: own(&self.uid), service_account: own(service_account) };
        ApiToken::new(id, self.fresh.key)
    }

    /// The unguessable name of the Secret that this pass can create.
    pub fn fresh_secret(&self) -> String {
        format!("api-key-{}", self.fresh.suffix)
    }
}

/// Whether an `ApiKey` has the operator's finalizer.
pub fn has_finalizer(key: &ApiKey) -> bool {
    key.metadata.finalizers.iter().flatten().any(|f| f == DELETION_FINALIZER)
}
