//! Ends a token and its `ApiKey`: tombstone first, then the Secrets, then the finalizer, and the record once the `ApiKey` is gone. Authentication
//! (`credentials/verify_api_key.rs`) reads the `ApiKey` and its namespace live, so the token is invalid even before the tombstone. `plan.rs` decides that an `ApiKey` has expired.

use super::plan::{Next, Plan, RETRY_SECONDS, live_first};
use super::view::{Action, Place, SecretFact, View, has_finalizer};
use crate::resources::reasons::Reason;
use crate::resources::{ApiKey, ApiKeyRecord, CredentialState, SecretRecord};

/// Causes after which no further token is ever issued.
const DELETED: &str = "ApiKeyDeleted";
const VANISHED: &str = "ApiKeyVanished";
const TERMINATING: &str = "NamespaceTerminating";

/// Whether the record is the final tombstone of its key. A token that was revoked for another cause is marked as well: after that write, a leader that
/// read the `ApiKey` before its deletion cannot issue another token (S8).
pub(super) fn ended(record: &ApiKeyRecord) -> bool {
    let token = &record.spec.token;
    token.state == CredentialState::Revoked
        && token.revoked_because.as_deref().is_some_and(|c| [DELETED, VANISHED, TERMINATING].contains(&c))
}

/// The state of the Secrets of revoked tokens.
pub(super) enum Cleanup {
    /// Another request is needed.
    Do(Box<Action>),
    /// According to live reads of this pass, these are left and all others are gone.
    Left {
        /// Blocked by finalizers of other controllers.
        held: Vec<SecretRecord>,
        /// Never seen. Their creation may still take effect (S6), so they stay on record while their `ApiKey` exists.
        unseen: Vec<SecretRecord>,
    },
}

/// Deletes the Secrets of revoked tokens by their recorded UIDs, one request at a time. Only a live read proves that one is gone.
pub(super) fn cleanup(view: &View, record: &ApiKeyRecord) -> Cleanup {
    let (mut held, mut unseen) = (Vec::new(), Vec::new());
    for secret in &record.spec.retired {
        let name = secret.name.clone();
        let action = match (view.secrets.get(&name), &secret.uid) {
            (Some(SecretFact::Gone), None) => {
                unseen.push(secret.clone());
                continue;
            }
            (Some(SecretFact::Gone), Some(_)) => continue,
            (Some(SecretFact::Uid(found)), Some(uid)) if found != uid => continue,
            (Some(SecretFact::Held), _) => {
                held.push(secret.clone());
                continue;
            }
            // If no UID is recorded (a crash after the create), delete the Secret found under the unguessable name, which is recorded first.
            (Some(SecretFact::Uid(uid)), _) | (None, Some(uid)) => Action::DeleteSecret { name, uid: uid.clone() },
            (None | Some(SecretFact::Accepted), _) => Action::ReadSecret(name),
        };
        return Cleanup::Do(Box::new(action));
    }
    Cleanup::Left { held, unseen }
}

/// Cleanup while the `ApiKey` exists: the next action, or the Secrets that are blocked.
pub(super) fn tidy(view: &View, record: &ApiKeyRecord) -> Result<Vec<SecretRecord>, Action> {
    match cleanup(view, record) {
        Cleanup::Do(action) => Err(*action),
        Cleanup::Left { held, unseen } if held.len() + unseen.len() < record.spec.retired.len() => {
            Err(forget(record, held.into_iter().chain(unseen).collect()))
        }
        Cleanup::Left { held, .. } => Ok(held),
    }
}

/// Saves the record with only these Secrets left to delete.
fn forget(record: &ApiKeyRecord, left: Vec<SecretRecord>) -> Action {
    let mut record = record.clone();
    record.spec.retired = left;
    Action::SaveRecord(Box::new(record))
}

/// The record with the token revoked and its Secret queued for deletion.
pub(super) fn revoked(record: &ApiKeyRecord, cause: &str) -> ApiKeyRecord {
    let mut record = record.clone();
    record.spec.token.state = CredentialState::Revoked;
    record.spec.token.revoked_because = Some(cause.to_owned());
    record.spec.retired.extend(record.spec.token.secret.take());
    record
}

pub(super) fn held_message(view: &View, held: &[SecretRecord]) -> String {
    let names: Vec<String> = held.iter().map(|s| format!("{}/{}", view.namespace, s.name)).collect();
    format!(
        "Secret {} of a revoked token is being deleted, but a finalizer of another controller blocks it. Wait for that controller or remove the finalizer",
        names.join(", ")
    )
}

/// Plans for an `ApiKey` that is being deleted or gone, or whose namespace is being deleted.
pub(super) fn plan(view: &View) -> Plan {
    let Some(record) = &view.record else {
        // No token was issued, or the record was lost with its hash: no token authenticates.
        return view.key.as_ref().map_or(Plan { next: Next::Finished, ready: None, secret_name: None }, |key| release(view, key));
    };
    if !ended(record) {
        let cause = match &view.key {
            _ if view.place != Place::Active => TERMINATING,
            None => VANISHED,
            Some(_) => DELETED,
        };
        return Plan::act(Action::SaveRecord(Box::new(revoked(record, cause))));
    }
    match cleanup(view, record) {
        Cleanup::Do(action) => return Plan::act(*action),
        Cleanup::Left { held, .. } if !held.is_empty() => {
            return Plan::not_ready(Reason::SecretHeld, held_message(view, &held), RETRY_SECONDS);
        }
        Cleanup::Left { .. } => {}
    }
    match &view.key {
        // A live read proved that the ApiKey is gone, so the record is no longer needed.
        None => Plan::act(Action::DeleteRecord),
        Some(key) => release(view, key),
    }
}

/// Removes the finalizer, based on a live read, and then waits until the `ApiKey` is gone.
fn release(view: &View, key: &ApiKey) -> Plan {
    if key.metadata.deletion_timestamp.is_none() {
        let message = "the namespace is being deleted, so the token is revoked";
        return Plan::not_ready(Reason::NamespaceTerminating, message, RETRY_SECONDS);
    }
    if has_finalizer(key) {
        return live_first(view, || Action::ReleaseFinalizer);
    }
    if !view.key_is_live {
        return Plan::act(Action::ReadKey);
    }
    // A finalizer of another controller blocks it; the watch delivers its removal.
    Plan { next: Next::Wait(std::time::Duration::from_secs(RETRY_SECONDS)), ready: None, secret_name: None }
}
