//! Issues a token: first the record with its hash and the unguessable name of its Secret, then the Secret, then the UID of the Secret in the record,
//! which makes the token live. Between the first two writes the token exists only in memory: a crash loses it, and the next pass issues another one.

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::ResourceExt;

use super::ending;
use super::plan::{Plan, RETRY_SECONDS, live_first};
use super::view::{Account, Action, SecretFact, View};
use crate::credentials::verify_api_key::past;
use crate::resources::reasons::Reason;
use crate::resources::{
    ApiKey, ApiKeyRecord, ApiKeyRecordSpec, COMPONENT_LABEL, CredentialState, MANAGED_BY_LABEL, MANAGER, SecretRecord, TokenRecord, Unknown,
};

/// Seconds given to another leader to create the Secret of a token that it has just recorded.
const REISSUE_SECONDS: i64 = 20;
/// Maximum number of Secrets of revoked tokens that foreign finalizers may block. Beyond it no further token is issued, because a record is bounded.
pub(super) const MOST_RETIRED: usize = 8;
/// Maximum number of these that were never seen.
const MOST_UNSEEN: usize = 4;

/// Why no token can be issued now: the reason and the message of the condition.
pub(super) type Obstacle = (Reason, String);

/// The UID of the ServiceAccount to issue a token for.
pub(super) fn issuable<'a>(view: &View, key: &ApiKey, account: &'a Account) -> Result<&'a str, Obstacle> {
    if past(key.spec.expires_at.as_ref(), view.now) {
        let message = "spec.expiresAt is in the past, so no token is issued. Set it to a later time or remove it";
        return Err((Reason::Expired, message.to_owned()));
    }
    match account {
        Account::Uid(uid) => Ok(uid),
        Account::Gone => {
            let message =
                format!("ServiceAccount {} does not exist. Create it, and the operator issues a token", key.spec.service_account_name);
            Err((Reason::ServiceAccountNotFound, message))
        }
    }
}

/// The random material of a pass is used for at most one token.
fn with_fresh_token(view: &View, action: impl FnOnce() -> Action) -> Plan {
    if view.spent { Plan::not_ready(Reason::Issuing, "another token is being issued", 1) } else { live_first(view, action) }
}

/// The first token of a key that has no record.
pub(super) fn first(view: &View, key: &ApiKey, account_uid: &str) -> Plan {
    with_fresh_token(view, || Action::CreateRecord(Box::new(record(view, key, account_uid))))
}

/// Replaces the token. This write revokes the old one. The old Secret stays on record, even if it was never seen: its creation may still take effect (S6).
pub(super) fn another(view: &View, key: &ApiKey, old: &ApiKeyRecord, account_uid: &str) -> Plan {
    with_fresh_token(view, || {
        let mut record = old.clone();
        let old = std::mem::replace(&mut record.spec.token, token(view, key, account_uid));
        let retired = &mut record.spec.retired;
        retired.extend(old.secret);
        // The oldest one has been missing for so long that no create request for it can be pending.
        let surplus = retired.iter().filter(|s| s.uid.is_none()).count().saturating_sub(MOST_UNSEEN);
        for _ in 0..surplus {
            if let Some(oldest) = retired.iter().position(|s| s.uid.is_none()) {
                retired.remove(oldest);
            }
        }
        Action::SaveRecord(Box::new(record))
    })
}

fn record(view: &View, key: &ApiKey, account_uid: &str) -> ApiKeyRecord {
    let spec = ApiKeyRecordSpec {
        namespace: view.namespace.clone(),
        api_key: view.name.clone(),
        service_account_name: key.spec.service_account_name.clone(),
        token: token(view, key, account_uid),
        retired: Vec::new(),
        unknown: Unknown::new(),
    };
    let mut record = ApiKeyRecord::new(&view.uid, spec);
    record.metadata.namespace = Some(view.operator_namespace.clone());
    record.labels_mut().insert(MANAGED_BY_LABEL.to_owned(), MANAGER.to_owned());
    record
}

fn token(view: &View, key: &ApiKey, account_uid: &str) -> TokenRecord {
    TokenRecord {
        state: CredentialState::Pending,
        revoked_because: None,
        hash: view.fresh_token(&key.spec.service_account_name).hash(),
        service_account_uid: account_uid.to_owned(),
        rotation: key.spec.rotation.clone(),
        expires_at: key.spec.expires_at.clone(),
        issued_at: Some(Time(view.now)),
        secret: Some(SecretRecord { name: view.fresh_secret(), ..SecretRecord::default() }),
        unknown: Unknown::new(),
    }
}

/// Completes a token that is recorded but not live yet.
pub(super) fn finish(view: &View, key: &ApiKey, record: &ApiKeyRecord, account_uid: Option<&str>) -> Plan {
    let token = &record.spec.token;
    let Some(name) = token.secret.as_ref().map(|s| &s.name) else {
        return live_first(view, || Action::SaveRecord(Box::new(ending::revoked(record, "Rotated"))));
    };
    let held_here = view.fresh_token(&key.spec.service_account_name).matches(&token.hash);
    let young = token.issued_at.as_ref().is_some_and(|at| view.now.duration_since(at.0).as_secs() < REISSUE_SECONDS);
    match (view.secrets.get(name), account_uid) {
        (Some(SecretFact::Uid(uid)), _) => {
            let mut record = record.clone();
            record.spec.token.state = CredentialState::Live;
            if let Some(secret) = &mut record.spec.token.secret {
                secret.uid = Some(uid.clone());
            }
            Plan::act(Action::SaveRecord(Box::new(record)))
        }
        _ if held_here => Plan::act(Action::CreateSecret(Box::new(secret(view, key, name)))),
        (None, _) => Plan::act(Action::ReadSecret(name.clone())),
        // The token of this hash is lost, or another leader has it in memory and is about to create the Secret, which it is given time for.
        (Some(_), Some(uid)) if !young => another(view, key, record, uid),
        _ => Plan::not_ready(Reason::Issuing, "the token is being issued", REISSUE_SECONDS.unsigned_abs().min(RETRY_SECONDS)),
    }
}

fn secret(view: &View, key: &ApiKey, name: &str) -> Secret {
    let token = view.fresh_token(&key.spec.service_account_name).token();
    let mut secret = Secret {
        immutable: Some(true),
        type_: Some("Opaque".to_owned()),
        string_data: Some([("token".to_owned(), token)].into()),
        ..Secret::default()
    };
    secret.metadata.name = Some(name.to_owned());
    secret.metadata.namespace = Some(view.namespace.clone());
    secret.metadata.labels =
        Some([(MANAGED_BY_LABEL, MANAGER), (COMPONENT_LABEL, "api-key")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    // The garbage collector is the last resort; the reference blocks nothing.
    secret.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "computer-operator.dev/v1alpha1".to_owned(),
        kind: "ApiKey".to_owned(),
        name: view.name.clone(),
        uid: view.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(false),
    }]);
    secret
}
