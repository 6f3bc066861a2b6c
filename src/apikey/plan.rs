//! Decides the next request for an `ApiKey`, as a pure and total function. It must keep the order of the writes: a token's hash and the name of its
//! Secret are recorded before the Secret is created, the token is live only once the UID of the Secret is recorded, and the record is a tombstone before
//! the Secret is deleted or another token is issued. A crash at any point is harmless, because everything is derived from live state and the record.

use std::time::Duration;

use super::ending;
use super::issue;
use super::view::{Account, Action, Place, SecretFact, View, has_finalizer};
use crate::credentials::verify_api_key::past;
use crate::resources::reasons::Reason;
use crate::resources::{ApiKey, ApiKeyRecord, CredentialState, SecretRecord};

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Perform one request, then plan again.
    Do(Box<Action>),
    /// Nothing to do until something changes. A watch delivers the change; the timer is a fallback (L5).
    Wait(Duration),
    /// The `ApiKey` and everything that belongs to it are gone.
    Finished,
}

/// The `Ready` condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Whether the token can be used.
    pub status: bool,
    /// Bounded `CamelCase` reason.
    pub reason: Reason,
    /// Why, and what to do.
    pub message: String,
}

/// The decision and the status to show.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What to do next.
    pub next: Next,
    /// The condition to show when the plan waits.
    pub ready: Option<Ready>,
    /// The Secret with a token that authenticates.
    pub secret_name: Option<String>,
}

impl Plan {
    pub(super) fn act(action: Action) -> Self {
        Self { next: Next::Do(Box::new(action)), ready: None, secret_name: None }
    }

    pub(super) fn not_ready(reason: Reason, message: impl Into<String>, seconds: u64) -> Self {
        let ready = Ready { status: false, reason, message: message.into() };
        Self { next: Next::Wait(Duration::from_secs(seconds)), ready: Some(ready), secret_name: None }
    }
}

/// Seconds after which a settled key is checked again, because Secrets are not watched and a deleted one causes no event. A random number of seconds is
/// added to spread the checks.
const CHECK_SECONDS: u64 = 900;
/// Seconds after which an object that is blocked by a foreign finalizer is checked again.
pub(super) const RETRY_SECONDS: u64 = 30;

/// Plans the next request.
pub fn plan(view: &View) -> Plan {
    if let Some(stray) = stray(view) {
        return Plan::act(stray);
    }
    let ended = view.record.as_ref().is_some_and(ending::ended);
    match &view.key {
        // Another leader has seen the deletion before this one.
        _ if ended => ending::plan(view),
        Some(key) if key.metadata.deletion_timestamp.is_none() => match view.place {
            Place::Active => living(view, key),
            Place::CachedTerminating => Plan::act(Action::ReadNamespace),
            Place::Terminating => ending::plan(view),
        },
        _ => ending::plan(view),
    }
}

/// A Secret that this pass created although another leader has issued another token in the meantime.
fn stray(view: &View) -> Option<Action> {
    let (name, uid) = view.made.as_ref()?;
    let named = |r: &ApiKeyRecord| r.spec.token.secret.iter().chain(&r.spec.retired).any(|s| s.name == *name);
    let exists = matches!(view.secrets.get(name), Some(SecretFact::Uid(_)));
    (exists && !view.record.as_ref().is_some_and(named)).then(|| Action::DeleteSecret { name: name.clone(), uid: uid.clone() })
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
        return issue::another(view, key, record, uid);
    }
    if let Some(cause) = end(view, key, record, account, rotated) {
        return live_first(view, || Action::SaveRecord(Box::new(ending::revoked(record, cause))));
    }
    match record.spec.token.state {
        CredentialState::Revoked => revoked(view, key, record, issuable.err()),
        CredentialState::Pending => issue::finish(view, key, record, issuable.ok()),
        CredentialState::Live => live(view, key, record),
    }
}

/// Reads the `ApiKey` live first, because an action that ends a token permanently must not be decided from a stale cache.
pub(super) fn live_first(view: &View, action: impl FnOnce() -> Action) -> Plan {
    Plan::act(if view.key_is_live { action() } else { Action::ReadKey })
}

/// Why the token of an `ApiKey` that is not being deleted has ended.
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

/// The token is revoked: its Secret is deleted, and the condition says how to get another token.
fn revoked(view: &View, key: &ApiKey, record: &ApiKeyRecord, obstacle: Option<issue::Obstacle>) -> Plan {
    let held = match ending::tidy(view, record) {
        Err(action) => return Plan::act(action),
        Ok(held) => Some(held).filter(|held| !held.is_empty()),
    };
    let account = &key.spec.service_account_name;
    let again = "the token stays revoked. To issue a new token, change spec.rotation";
    match (record.spec.token.revoked_because.as_deref(), obstacle, held) {
        (Some("Rotated"), Some((reason, message)), _) => Plan::not_ready(reason, message, CHECK_SECONDS),
        (Some("Rotated"), None, Some(held)) => Plan::not_ready(Reason::SecretHeld, ending::held_message(view, &held), RETRY_SECONDS),
        (Some("Expired"), ..) => {
            let message =
                "the token has expired. To issue a new token, set spec.expiresAt to a later time or remove it, and change spec.rotation";
            Plan::not_ready(Reason::Expired, message, CHECK_SECONDS)
        }
        (Some("ServiceAccountReplaced"), ..) => {
            let message = format!("ServiceAccount {account} was recreated after the token was issued, so {again}");
            Plan::not_ready(Reason::ServiceAccountReplaced, message, CHECK_SECONDS)
        }
        (Some("ServiceAccountDeleted"), ..) => {
            let message =
                format!("ServiceAccount {account} was deleted after the token was issued, so {again} once the ServiceAccount exists again");
            Plan::not_ready(Reason::ServiceAccountDeleted, message, CHECK_SECONDS)
        }
        _ => Plan::not_ready(Reason::Revoked, "the token was revoked. To issue a new token, change spec.rotation", CHECK_SECONDS),
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
    let held = match ending::tidy(view, record) {
        Err(action) => return Plan::act(action),
        Ok(held) if held.is_empty() => String::new(),
        Ok(held) => format!(". {}", ending::held_message(view, &held)),
    };
    let Some(SecretRecord { name, uid, .. }) = &token.secret else {
        return Plan::not_ready(
            Reason::Revoked,
            "the record of the token is incomplete. To issue a new token, change spec.rotation",
            CHECK_SECONDS,
        );
    };
    let Some(fact) = view.secrets.get(name) else { return Plan::act(Action::ReadSecret(name.clone())) };
    let next = Next::Wait(next_check(view, key));
    if !matches!(fact, SecretFact::Uid(found) if Some(found) == uid.as_ref()) {
        let message = format!(
            "Secret {name} was deleted, but the token in it is still valid. To issue a new token, change spec.rotation; to revoke the token, delete this ApiKey"
        );
        return Plan { next, ..Plan::not_ready(Reason::SecretMissing, message, CHECK_SECONDS) };
    }
    let ready = Ready { status: true, reason: Reason::Issued, message: format!("the token is stored in Secret {name}, key token{held}") };
    Plan { next, ready: Some(ready), secret_name: Some(name.clone()) }
}

/// When to check again: at the expiry, or for a deleted Secret.
fn next_check(view: &View, key: &ApiKey) -> Duration {
    let jitter = u64::from(view.fresh.key[0]);
    let check = Duration::from_secs(CHECK_SECONDS + jitter);
    let until =
        |t: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| Duration::try_from(t.0.duration_since(view.now)).unwrap_or_default();
    let expiry = key.spec.expires_at.as_ref().map_or(check, until);
    // A timer that fires slightly too early would cause a second pass.
    check.min(expiry + Duration::from_millis(100))
}
