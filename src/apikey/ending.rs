//! The end of a token, and of its `ApiKey`: tombstone, then the Secrets, then the finalizer, and the record when the `ApiKey` is gone.
//! Since authentication reads the `ApiKey` and its namespace live, the token was dead before the first of these.

use super::plan::{Next, Plan, RETRY_SECONDS, live_first};
use super::view::{Action, Place, SecretFact, View, has_finalizer};
use crate::resources::{ApiKey, ApiKeyRecord, CredentialState, SecretRecord};

/// Causes after which no token is ever issued again.
const DELETED: &str = "ApiKeyDeleted";
const VANISHED: &str = "ApiKeyVanished";
const TERMINATING: &str = "NamespaceTerminating";

/// Whether the record is the last tombstone of its key. A token that was revoked for another cause gets it, too: with that write a
/// leader that has read the `ApiKey` before its deletion cannot issue another token any more (S8).
pub(super) fn ended(record: &ApiKeyRecord) -> bool {
    let token = &record.spec.token;
    token.state == CredentialState::Revoked
        && token.revoked_because.as_deref().is_some_and(|c| [DELETED, VANISHED, TERMINATING].contains(&c))
}

/// What is left of the Secrets of dead tokens.
pub(super) enum Cleanup {
    /// One more request.
    Do(Box<Action>),
    /// All are gone, by live answers of this pass.
    Gone,
    /// These are held by finalizers that are not ours.
    Held(Vec<SecretRecord>),
    /// There was none.
    Nothing,
}

/// Looks at the Secrets of dead tokens, one request at a time. Each is deleted by its recorded UID; absence is a live answer.
pub(super) fn cleanup(view: &View, record: &ApiKeyRecord) -> Cleanup {
    let mut held = Vec::new();
    for secret in &record.spec.retired {
        let name = secret.name.clone();
        let action = match (view.secrets.get(&name), &secret.uid) {
            (Some(SecretFact::Gone), _) => continue,
            (Some(SecretFact::Uid(found)), Some(uid)) if found != uid => continue,
            (Some(SecretFact::Held), _) => {
                held.push(secret.clone());
                continue;
            }
            // With no UID on record (a crash after the create), the one found under the unguessable name recorded before it.
            (Some(SecretFact::Uid(uid)), _) | (None, Some(uid)) => Action::DeleteSecret { name, uid: uid.clone() },
            (None | Some(SecretFact::Accepted), _) => Action::ReadSecret(name),
        };
        return Cleanup::Do(Box::new(action));
    }
    match (held.is_empty(), record.spec.retired.is_empty()) {
        (false, _) => Cleanup::Held(held),
        (true, false) => Cleanup::Gone,
        (true, true) => Cleanup::Nothing,
    }
}

/// The record with only these Secrets left to look after.
pub(super) fn forget(record: &ApiKeyRecord, left: Vec<SecretRecord>) -> Action {
    let mut record = record.clone();
    record.spec.retired = left;
    Action::SaveRecord(Box::new(record))
}

/// The record with the token as a tombstone; its Secret is to go.
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
        "Secret {} of a dead token is being deleted, but a finalizer that is not ours holds it: ask its owner to finish, or remove that finalizer",
        names.join(", ")
    )
}

/// Plans for an `ApiKey` that is being deleted, or gone, or whose namespace is going.
pub(super) fn plan(view: &View) -> Plan {
    let Some(record) = &view.record else {
        // Nothing was issued, or the record was lost, and with it the hash: nothing authenticates.
        return view.key.as_ref().map_or(Plan { next: Next::Finished, ready: None, secret_name: None }, |key| release(view, key));
    };
    if !ended(record) {
        let cause = match &view.key {
            _ if view.place != Place::Stands => TERMINATING,
            None => VANISHED,
            Some(_) => DELETED,
        };
        return Plan::act(Action::SaveRecord(Box::new(revoked(record, cause))));
    }
    match cleanup(view, record) {
        Cleanup::Do(action) => return Plan::act(*action),
        Cleanup::Held(secrets) => return Plan::not_ready("SecretHeld", held_message(view, &secrets), RETRY_SECONDS),
        Cleanup::Gone | Cleanup::Nothing => {}
    }
    match &view.key {
        // A live answer said so: the record has done its work.
        None => Plan::act(Action::DeleteRecord),
        Some(key) => release(view, key),
    }
}

/// The finalizer goes, on what a live read shows; then the `ApiKey` is seen to be gone.
fn release(view: &View, key: &ApiKey) -> Plan {
    if key.metadata.deletion_timestamp.is_none() {
        let message = "the namespace is being deleted; the token is dead";
        return Plan::not_ready("NamespaceTerminating", message, RETRY_SECONDS);
    }
    if has_finalizer(key) {
        return live_first(view, || Action::ReleaseFinalizer);
    }
    if !view.key_is_live {
        return Plan::act(Action::ReadKey);
    }
    // Somebody else's finalizer holds it: its own event tells when it is gone.
    Plan { next: Next::Wait(std::time::Duration::from_secs(RETRY_SECONDS)), ready: None, secret_name: None }
}
