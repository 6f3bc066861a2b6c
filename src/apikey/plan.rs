//! What an `ApiKey` needs next. Pure and total. The order of the writes is the promise: a token's hash and the name of its Secret are
//! on record before the Secret exists, it is live only when the Secret's UID is on record, and it is a tombstone before its Secret
//! goes and before another one comes. A crash anywhere is harmless: everything is derived from live state and the record.

use std::time::Duration;

use super::ending;
use super::issue;
use super::view::{Account, Action, Place, SecretFact, View, has_finalizer};
use crate::credentials::verify_api_key::past;
use crate::resources::{ApiKey, ApiKeyRecord, CredentialState, SecretRecord};

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Perform one request, then plan again.
    Do(Box<Action>),
    /// Nothing to do before something changes. A watch will tell; this timer is for when it does not (L5).
    Wait(Duration),
    /// The `ApiKey` is gone and nothing of it is left.
    Finished,
}

/// The `Ready` condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The token can be used.
    pub status: bool,
    /// Bounded CamelCase reason.
    pub reason: &'static str,
    /// Why, and what to do.
    pub message: String,
}

/// The decision and what to show.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What to do next.
    pub next: Next,
    /// What to show, when the plan waits.
    pub ready: Option<Ready>,
    /// The Secret with a token that authenticates.
    pub secret_name: Option<String>,
}

impl Plan {
    pub(super) fn act(action: Action) -> Self {
        Self { next: Next::Do(Box::new(action)), ready: None, secret_name: None }
    }

    pub(super) fn not_ready(reason: &'static str, message: impl Into<String>, seconds: u64) -> Self {
        let ready = Ready { status: false, reason, message: message.into() };
        Self { next: Next::Wait(Duration::from_secs(seconds)), ready: Some(ready), secret_name: None }
    }
}

/// Seconds after which a settled key is looked at again: nobody tells us of a Secret that somebody deleted. Some more are added to
/// it, so that keys that began together do not stay together.
const CHECK_SECONDS: u64 = 900;
/// Seconds after which something that is held is looked at again.
pub(super) const RETRY_SECONDS: u64 = 30;

/// Plans the next request.
pub fn plan(view: &View) -> Plan {
    if let Some(stray) = stray(view) {
        return Plan::act(stray);
    }
    let ended = view.record.as_ref().is_some_and(ending::ended);
    match &view.key {
        // Another leader has seen the end that this one has not heard of yet.
        _ if ended => ending::plan(view),
        Some(key) if key.metadata.deletion_timestamp.is_none() => match view.place {
            Place::Stands => living(view, key),
            Place::SaidToGo => Plan::act(Action::ReadNamespace),
            Place::Going => ending::plan(view),
        },
        _ => ending::plan(view),
    }
}

/// A Secret that this pass made although another leader had issued another token meanwhile.
fn stray(view: &View) -> Option<Action> {
    let (name, uid) = view.made.as_ref()?;
    let named = |r: &ApiKeyRecord| r.spec.token.secret.iter().chain(&r.spec.retired).any(|s| s.name == *name);
    let there = matches!(view.secrets.get(name), Some(SecretFact::Uid(_)));
    (there && !view.record.as_ref().is_some_and(named)).then(|| Action::DeleteSecret { name: name.clone(), uid: uid.clone() })
}

fn living(view: &View, key: &ApiKey) -> Plan {
    if !has_finalizer(key) {
        return Plan::act(Action::AddFinalizer);
    }
    let Some(account) = &view.account else { return Plan::act(Action::ReadAccount) };
    let issuable = issue::issuable(view, key, account);
    let Some(record) = &view.record else {
        return match issuable {
            Ok(uid) => issue::first(view, key, uid),
            Err((reason, message)) => Plan::not_ready(reason, message, CHECK_SECONDS),
        };
    };
    let rotated = record.spec.token.rotation != key.spec.rotation;
    let room = record.spec.retired.len() < issue::MOST_RETIRED;
    if let (true, true, Ok(uid)) = (rotated, room, &issuable) {
        return issue::another(view, key, record, uid, true);
    }
    if let Some(cause) = end(view, key, record, account, rotated) {
        return live_first(view, || Action::SaveRecord(Box::new(ending::revoked(record, cause))));
    }
    match record.spec.token.state {
        CredentialState::Revoked => dead(view, key, record, issuable.err()),
        CredentialState::Pending => issue::finish(view, key, record, issuable.ok()),
        CredentialState::Live => live(view, key, record),
    }
}

/// What ends a token for good is decided on the `ApiKey` as it is now, never on a cache that is behind.
pub(super) fn live_first(view: &View, action: impl FnOnce() -> Action) -> Plan {
    Plan::act(if view.key_is_live { action() } else { Action::ReadKey })
}

/// Why the token of a living key is over.
fn end(view: &View, key: &ApiKey, record: &ApiKeyRecord, account: &Account, rotated: bool) -> Option<&'static str> {
    let token = &record.spec.token;
    if token.state == CredentialState::Revoked {
        return None;
    }
    let expired = past(token.expires_at.as_ref(), view.now) || past(key.spec.expires_at.as_ref(), view.now);
    match account {
        _ if rotated => Some("Rotated"),
        _ if expired => Some("Expired"),
        Account::Gone => Some("ServiceAccountDeleted"),
        Account::Uid(uid) if *uid != token.service_account_uid => Some("ServiceAccountReplaced"),
        Account::Uid(_) => None,
    }
}

/// The token is a tombstone: its Secret goes, and the condition says what to do for another one.
fn dead(view: &View, key: &ApiKey, record: &ApiKeyRecord, obstacle: Option<issue::Obstacle>) -> Plan {
    let held = match ending::cleanup(view, record) {
        ending::Cleanup::Do(action) => return Plan::act(*action),
        ending::Cleanup::Gone => return Plan::act(ending::forget(record, Vec::new())),
        ending::Cleanup::Held(secrets) if secrets.len() < record.spec.retired.len() => return Plan::act(ending::forget(record, secrets)),
        ending::Cleanup::Held(secrets) => Some(secrets),
        ending::Cleanup::Nothing => None,
    };
    let account = &key.spec.service_account_name;
    let again = "it stays dead. Change spec.rotation for another one";
    match (record.spec.token.revoked_because.as_deref(), obstacle, held) {
        (Some("Rotated"), Some((reason, message)), _) => Plan::not_ready(reason, message, CHECK_SECONDS),
        (Some("Rotated"), None, Some(held)) => Plan::not_ready("SecretHeld", ending::held_message(view, &held), RETRY_SECONDS),
        (Some("Expired"), ..) => {
            let message = "the token has expired and stays dead. Set spec.expiresAt to a later time, or leave it out, and change spec.rotation for another one";
            Plan::not_ready("Expired", message, CHECK_SECONDS)
        }
        (Some("ServiceAccountReplaced"), ..) => {
            let message = format!("ServiceAccount {account} is not the one that the token was issued for, and {again}");
            Plan::not_ready("ServiceAccountReplaced", message, CHECK_SECONDS)
        }
        (Some("ServiceAccountDeleted"), ..) => {
            let message = format!("ServiceAccount {account} was deleted after the token was issued, and {again} when there is one again");
            Plan::not_ready("ServiceAccountDeleted", message, CHECK_SECONDS)
        }
        _ => Plan::not_ready("Revoked", format!("the token was revoked and {again}"), CHECK_SECONDS),
    }
}

fn live(view: &View, key: &ApiKey, record: &ApiKeyRecord) -> Plan {
    let token = &record.spec.token;
    let second = |t: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| t.0.as_second();
    if token.expires_at.as_ref().map(second) != key.spec.expires_at.as_ref().map(second) {
        let mut record = record.clone();
        record.spec.token.expires_at.clone_from(&key.spec.expires_at);
        return live_first(view, || Action::SaveRecord(Box::new(record)));
    }
    let held = match ending::cleanup(view, record) {
        ending::Cleanup::Do(action) => return Plan::act(*action),
        ending::Cleanup::Gone => return Plan::act(ending::forget(record, Vec::new())),
        ending::Cleanup::Held(secrets) if secrets.len() < record.spec.retired.len() => return Plan::act(ending::forget(record, secrets)),
        ending::Cleanup::Held(secrets) => format!(". {}", ending::held_message(view, &secrets)),
        ending::Cleanup::Nothing => String::new(),
    };
    let Some(SecretRecord { name, uid, .. }) = &token.secret else {
        return Plan::not_ready("Revoked", "the record is not complete: change spec.rotation for another token", CHECK_SECONDS);
    };
    let Some(fact) = view.secrets.get(name) else { return Plan::act(Action::ReadSecret(name.clone())) };
    let next = Next::Wait(next_look(view, key));
    if !matches!(fact, SecretFact::Uid(found) if Some(found) == uid.as_ref()) {
        let message = format!(
            "Secret {name} was deleted, but the token still authenticates for whoever has it: change spec.rotation for another one, or delete this ApiKey to revoke it"
        );
        return Plan { next, ..Plan::not_ready("SecretMissing", message, CHECK_SECONDS) };
    }
    let ready = Ready { status: true, reason: "Issued", message: format!("the token is in Secret {name} under the key token{held}") };
    Plan { next, ready: Some(ready), secret_name: Some(name.clone()) }
}

/// When to look again: at the expiry, or for the Secret.
fn next_look(view: &View, key: &ApiKey) -> Duration {
    let jitter = u64::from(view.fresh.key[0]);
    let check = Duration::from_secs(CHECK_SECONDS + jitter);
    let until =
        |t: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| Duration::try_from(t.0.duration_since(view.now)).unwrap_or_default();
    let expiry = key.spec.expires_at.as_ref().map_or(check, until);
    // A timer that is a little early would only make another pass.
    check.min(expiry + Duration::from_millis(100))
}
