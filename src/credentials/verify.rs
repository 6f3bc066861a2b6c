//! Whether a key authenticates: three live reads in parallel (DESIGN.md 4.3). No cache and no window: a key is dead from the instant
//! its Computer or its namespace is being deleted, with or without a running operator (S2).

use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::Api;

use super::id::ComputerId;
use super::key::Key;
use crate::guards::{self, Guard};
use crate::resources::{Computer, ComputerRecord, CredentialState};
use crate::runtime::client::{CallError, ErrorClass, call, classify};

/// Why a key does not authenticate. For logs; a caller is only told 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Not a key, or mistyped.
    #[error("not a key")]
    Malformed,
    /// No record of that UID.
    #[error("there is no record of this key")]
    NoRecord,
    /// Another secret.
    #[error("the secret is not this key's")]
    WrongSecret,
    /// Not live yet.
    #[error("the key is not live yet")]
    NotLive,
    /// Tombstoned.
    #[error("the key is revoked")]
    Revoked,
    /// The Computer is gone or another one.
    #[error("the computer is gone")]
    ComputerGone,
    /// The Computer is being deleted.
    #[error("the computer is being deleted")]
    ComputerDeleting,
    /// The namespace is gone or going.
    #[error("the namespace is being deleted")]
    NamespaceTerminating,
    /// The `ApiKey` is gone or another one.
    #[error("the ApiKey is gone")]
    ApiKeyGone,
    /// The `ApiKey` is being deleted.
    #[error("the ApiKey is being deleted")]
    ApiKeyDeleting,
    /// Past its time.
    #[error("the token has expired")]
    Expired,
    /// Another token was asked for.
    #[error("the token was rotated")]
    Rotated,
    /// The ServiceAccount is gone, or another one of that name.
    #[error("the ServiceAccount that the token was issued for is gone")]
    ServiceAccountGone,
}

/// Verifies a token.
///
/// # Errors
/// When an answer is unknown: then nobody is authenticated.
pub async fn verify(client: &Client, operator_namespace: &str, token: &str) -> Result<Result<ComputerId, Denied>, CallError> {
    let Some(key) = Key::parse(token) else { return Ok(Err(Denied::Malformed)) };
    let id = &key.computer;
    let records: Api<ComputerRecord> = Api::namespaced(client.clone(), operator_namespace);
    let computers: Api<Computer> = Api::namespaced(client.clone(), &id.namespace);
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let (record, computer, namespace) =
        tokio::join!(call(records.get(&id.uid)), call(computers.get(&id.name)), call(namespaces.get(&id.namespace)));
    let (record, computer, namespace) = (found(record)?, found(computer)?, found(namespace)?);
    Ok(decide(&key, record.as_ref(), computer.as_ref(), namespace.as_ref()))
}

pub(super) fn found<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(error) if classify(&error) == ErrorClass::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The decision, from what was read live.
///
/// # Errors
/// Why the key does not authenticate.
pub fn decide(
    key: &Key,
    record: Option<&ComputerRecord>,
    computer: Option<&Computer>,
    namespace: Option<&Namespace>,
) -> Result<ComputerId, Denied> {
    let state = &record.ok_or(Denied::NoRecord)?.spec.state;
    if !state.key_hash.as_deref().is_some_and(|stored| key.matches(stored)) {
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
    stands(namespace)?;
    Ok(key.computer.clone())
}

/// A Terminating namespace is the end of every key in it, whatever its other objects still look like.
pub(super) fn stands(namespace: Option<&Namespace>) -> Result<(), Denied> {
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
