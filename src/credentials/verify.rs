//! Verifies the key of a computer with three live reads in parallel (DESIGN.md 4.3). It must never use a cache: a key is invalid from the moment that
//! its Computer or its namespace is being deleted, whether or not an operator runs (S2). A caller that already reads the namespace for another key may
//! pass that read, if it is sent after this key has arrived.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::Api;

use super::id::ComputerId;
use super::key::Key;
use super::rights::KeyRights;
use crate::guards::{self, Guard};
use crate::resources::{Computer, ComputerRecord, CredentialState};
use crate::runtime::client::{CallError, ErrorClass, call, classify};
use crate::runtime::clock;

/// Why a key does not authenticate. For logs only; the response to the caller is a plain 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The text is not a key, or contains a typo.
    #[error("not a valid key or token; check it for typos")]
    Malformed,
    /// There is no record of that UID.
    #[error("no record of this key exists")]
    NoRecord,
    /// The secret differs from the recorded one.
    #[error("the secret of the key is wrong")]
    WrongSecret,
    /// The key is still being issued.
    #[error("the key has not been issued completely")]
    NotLive,
    /// The record is a tombstone.
    #[error("the key has been revoked")]
    Revoked,
    /// The Computer does not exist, or has another UID.
    #[error("the Computer no longer exists")]
    ComputerGone,
    /// The Computer is being deleted.
    #[error("the Computer is being deleted")]
    ComputerDeleting,
    /// The namespace does not exist or is being deleted.
    #[error("the namespace is being deleted")]
    NamespaceTerminating,
    /// The `ApiKey` does not exist, or has another UID.
    #[error("the ApiKey no longer exists")]
    ApiKeyGone,
    /// The `ApiKey` is being deleted.
    #[error("the ApiKey is being deleted")]
    ApiKeyDeleting,
    /// The token has expired.
    #[error("the token has expired")]
    Expired,
    /// The token has been replaced.
    #[error("the token has been rotated")]
    Rotated,
    /// The ServiceAccount does not exist, or has another UID.
    #[error("the ServiceAccount that the token was issued for no longer exists")]
    ServiceAccountGone,
}

impl Denied {
    /// The reason in one word, for metrics. With `Malformed`, `NoRecord`, `WrongSecret` and `NotLive` the credential may never have been valid. With every other
    /// reason its secret matches, so it was valid once.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "Malformed",
            Self::NoRecord => "NoRecord",
            Self::WrongSecret => "WrongSecret",
            Self::NotLive => "NotLive",
            Self::Revoked => "Revoked",
            Self::ComputerGone => "ComputerGone",
            Self::ComputerDeleting => "ComputerDeleting",
            Self::NamespaceTerminating => "NamespaceTerminating",
            Self::ApiKeyGone => "ApiKeyGone",
            Self::ApiKeyDeleting => "ApiKeyDeleting",
            Self::Expired => "Expired",
            Self::Rotated => "Rotated",
            Self::ServiceAccountGone => "ServiceAccountGone",
        }
    }
}

/// A key that authenticates.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifiedKey {
    /// The computer that it belongs to.
    pub computer: ComputerId,
    /// What it may do, as its record says.
    pub rights: KeyRights,
}

/// Verifies a token.
///
/// # Errors
/// When the outcome of a read is unknown. The key does not authenticate then.
pub async fn verify(client: &Client, operator_namespace: &str, token: &str) -> Result<Result<VerifiedKey, Denied>, CallError> {
    let namespace = async |name| namespace(client.clone(), name).await.map(Arc::new);
    Ok(verify_and_read(client, operator_namespace, token, namespace).await?.map(|(key, _)| key))
}

/// Verifies a token, and returns the Computer that was read for it: it was not being deleted then. `namespace` reads a namespace live, after it is called.
///
/// # Errors
/// As [`verify`].
pub async fn verify_and_read<E: From<CallError>, F>(
    client: &Client,
    operator_namespace: &str,
    token: &str,
    namespace: impl FnOnce(String) -> F,
) -> Result<Result<(VerifiedKey, Option<Computer>), Denied>, E>
where
    F: Future<Output = Result<Arc<Option<Namespace>>, E>>,
{
    let Some(key) = Key::parse(token) else { return Ok(Err(Denied::Malformed)) };
    let id = &key.computer;
    let records: Api<ComputerRecord> = Api::namespaced(client.clone(), operator_namespace);
    let computers: Api<Computer> = Api::namespaced(client.clone(), &id.namespace);
    let (record, computer, namespace) =
        tokio::join!(call(records.get(&id.uid)), call(computers.get(&id.name)), namespace(id.namespace.clone()));
    let (record, computer, namespace) = (found(record)?, found(computer)?, namespace?);
    let verified = decide(&key, record.as_ref(), computer.as_ref(), namespace.as_ref().as_ref(), clock::now());
    Ok(verified.map(|key| (key, computer)))
}

/// Reads a namespace live.
///
/// # Errors
/// When it is not known whether it exists.
pub async fn namespace(client: Client, name: String) -> Result<Option<Namespace>, CallError> {
    let namespaces: Api<Namespace> = Api::all(client);
    found(call(namespaces.get(&name)).await)
}

pub(super) fn found<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(error) if classify(&error) == ErrorClass::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Decides from the objects that were read live.
///
/// # Errors
/// Why the key does not authenticate.
pub fn decide(
    key: &Key,
    record: Option<&ComputerRecord>,
    computer: Option<&Computer>,
    namespace: Option<&Namespace>,
    now: Timestamp,
) -> Result<VerifiedKey, Denied> {
    let state = &record.ok_or(Denied::NoRecord)?.spec.state;
    let current = state.key_hash.as_deref().is_some_and(|stored| key.matches(stored));
    let former = state.former_key.as_ref().filter(|former| key.matches(&former.hash));
    if !current && former.is_none() {
        return Err(Denied::WrongSecret);
    }
    match state.credential {
        CredentialState::Revoked => return Err(Denied::Revoked),
        CredentialState::Pending => return Err(Denied::NotLive),
        CredentialState::Live => {}
    }
    let computer = computer.filter(|c| c.metadata.uid.as_deref() == Some(&key.computer.uid)).ok_or(Denied::ComputerGone)?;
    if computer.metadata.deletion_timestamp.is_some() && guards::on(Guard::DyingComputer) {
        return Err(Denied::ComputerDeleting);
    }
    // A rotation without an overlap ends both keys at once, whether or not an operator has issued another one.
    let overlaps = computer.spec.key.overlap_seconds > 0;
    let pending = computer.spec.key.rotation != state.key_rotation;
    if !overlaps && (pending || !current) || !current && former.is_none_or(|former| former.until.0 <= now) {
        return Err(Denied::Rotated);
    }
    require_active(namespace)?;
    Ok(VerifiedKey { computer: key.computer.clone(), rights: KeyRights::of(state.key_allow.as_deref()) })
}

/// Denies every key in a Terminating namespace, whatever the state of its other objects.
pub(super) fn require_active(namespace: Option<&Namespace>) -> Result<(), Denied> {
    let namespace = namespace.ok_or(Denied::NamespaceTerminating)?;
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
    let terminating = namespace.metadata.deletion_timestamp.is_some() || phase == Some("Terminating");
    if terminating && guards::on(Guard::DyingNamespace) {
        return Err(Denied::NamespaceTerminating);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
