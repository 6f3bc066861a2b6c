//! Whether a key authenticates: three live reads in parallel (design 4.3). No cache and no window: a key is dead from the instant
//! its Computer or its namespace is being deleted, with or without a running operator (S2).

use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::Api;

use super::id::ComputerId;
use super::key::Key;
use crate::resources::{Computer, ComputerRecord, CredentialState};
use crate::runtime::client::{CallError, ErrorClass, call, classify};

/// Why a key does not authenticate. For logs; a caller is only told 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Not a key, or mistyped.
    #[error("not a key")]
    Malformed,
    /// No record of that UID.
    #[error("no record of this computer")]
    NoRecord,
    /// Another secret.
    #[error("the secret is not this computer's")]
    WrongSecret,
    /// Not live yet.
    #[error("the computer was never ready")]
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

fn found<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(error) if classify(&error) == ErrorClass::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The decision, from what was read live.
fn decide(
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
    if computer.metadata.deletion_timestamp.is_some() {
        return Err(Denied::ComputerDeleting);
    }
    let namespace = namespace.ok_or(Denied::NamespaceTerminating)?;
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
    if namespace.metadata.deletion_timestamp.is_some() || phase == Some("Terminating") {
        return Err(Denied::NamespaceTerminating);
    }
    Ok(key.computer.clone())
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;
    use serde_json::json;

    const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

    fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).expect("an object")
    }

    #[test]
    fn every_single_sign_of_an_end_denies() {
        let key = Key::new(ComputerId { namespace: "t".into(), name: "c".into(), uid: UID.into() }, [3; 32]);
        let record = |state: &str| {
            from::<ComputerRecord>(
                json!({"metadata": {"name": UID}, "spec": {"namespace": "t", "computer": "c", "state": {"credential": state, "keyHash": key.hash()}}}),
            )
        };
        let computer: Computer = from(json!({"metadata": {"name": "c", "uid": UID}, "spec": {}}));
        let deleting: Computer =
            from(json!({"metadata": {"name": "c", "uid": UID, "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}}));
        let other: Computer = from(json!({"metadata": {"name": "c", "uid": "another"}, "spec": {}}));
        let active: Namespace = from(json!({"metadata": {"name": "t"}, "status": {"phase": "Active"}}));
        let going: Namespace = from(json!({"metadata": {"name": "t"}, "status": {"phase": "Terminating"}}));
        let live = record("Live");
        let wrong = Key::new(key.computer.clone(), [4; 32]);
        assert_eq!(decide(&key, Some(&live), Some(&computer), Some(&active)), Ok(key.computer.clone()));
        assert_eq!(decide(&wrong, Some(&live), Some(&computer), Some(&active)), Err(Denied::WrongSecret));
        assert_eq!(decide(&key, None, Some(&computer), Some(&active)), Err(Denied::NoRecord));
        assert_eq!(decide(&key, Some(&record("Revoked")), Some(&computer), Some(&active)), Err(Denied::Revoked));
        assert_eq!(decide(&key, Some(&record("Pending")), Some(&computer), Some(&active)), Err(Denied::NotLive));
        assert_eq!(decide(&key, Some(&live), None, Some(&active)), Err(Denied::ComputerGone));
        assert_eq!(decide(&key, Some(&live), Some(&other), Some(&active)), Err(Denied::ComputerGone));
        assert_eq!(decide(&key, Some(&live), Some(&deleting), Some(&active)), Err(Denied::ComputerDeleting));
        assert_eq!(decide(&key, Some(&live), Some(&computer), Some(&going)), Err(Denied::NamespaceTerminating));
        assert_eq!(decide(&key, Some(&live), Some(&computer), None), Err(Denied::NamespaceTerminating));
    }
}
