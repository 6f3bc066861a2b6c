//! Verifies the token of an `ApiKey` with four live reads in parallel, like a computer's key (DESIGN.md 4.3). It must never use a cache: a token is
//! invalid from the moment that its `ApiKey`, its namespace or its ServiceAccount is being deleted, that `spec.rotation` changes, or that it expires,
//! whether or not an operator runs.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::api::Api;

use super::api_key::{ApiKeyId, ApiToken};
use super::verify::{Denied, found, namespace, require_active};
use crate::resources::{ApiKey, ApiKeyRecord, CredentialState};
use crate::runtime::client::{CallError, call};
use crate::runtime::clock;

/// A token that authenticates.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// The `ApiKey` that it belongs to.
    pub id: ApiKeyId,
    /// UID of the ServiceAccount.
    pub service_account_uid: String,
    /// When it was last used, according to the status of the `ApiKey`.
    pub last_used: Option<Time>,
}

/// The objects that were read live; `None` if the API server responded that it does not exist.
struct Found {
    record: Option<ApiKeyRecord>,
    key: Option<ApiKey>,
    namespace: Arc<Option<Namespace>>,
    account: Option<ServiceAccount>,
}

/// Verifies a token.
///
/// # Errors
/// When the outcome of a read is unknown. The token does not authenticate then.
pub async fn verify_api_key(client: &Client, operator_namespace: &str, token: &str) -> Result<Result<Verified, Denied>, CallError> {
    verify_reading(client, operator_namespace, token, async |name| namespace(client.clone(), name).await.map(Arc::new)).await
}

/// Verifies a token. `namespace` reads a namespace live, after it is called.
///
/// # Errors
/// As [`verify_api_key`].
pub async fn verify_reading<E: From<CallError>, F>(
    client: &Client,
    operator_namespace: &str,
    token: &str,
    namespace: impl FnOnce(String) -> F,
) -> Result<Result<Verified, Denied>, E>
where
    F: Future<Output = Result<Arc<Option<Namespace>>, E>>,
{
    let Some(token) = ApiToken::parse(token) else { return Ok(Err(Denied::Malformed)) };
    let id = &token.id;
    let records: Api<ApiKeyRecord> = Api::namespaced(client.clone(), operator_namespace);
    let keys: Api<ApiKey> = Api::namespaced(client.clone(), &id.namespace);
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &id.namespace);
    let (record, key, namespace, account) = tokio::join!(
        call(records.get(&id.uid)),
        call(keys.get(&id.name)),
        namespace(id.namespace.clone()),
        call(accounts.get(&id.service_account))
    );
    let all = Found { record: found(record)?, key: found(key)?, namespace: namespace?, account: found(account)? };
    Ok(decide(&token, &all, clock::now()))
}

/// Whether an expiry time has passed.
pub fn past(expires_at: Option<&Time>, now: Timestamp) -> bool {
    expires_at.is_some_and(|at| now >= at.0)
}

/// Decides from the objects that were read live.
fn decide(token: &ApiToken, found: &Found, now: Timestamp) -> Result<Verified, Denied> {
    let id = &token.id;
    let record = &found.record.as_ref().ok_or(Denied::NoRecord)?.spec;
    // The hash binds secret and UID. The other parts of the id are chosen by the caller and must match the record.
    let id_matches = record.namespace == id.namespace && record.api_key == id.name && record.service_account_name == id.service_account;
    if !token.matches(&record.token.hash) || !id_matches {
        return Err(Denied::WrongSecret);
    }
    match record.token.state {
        CredentialState::Revoked => return Err(Denied::Revoked),
        CredentialState::Pending => return Err(Denied::NotLive),
        CredentialState::Live => {}
    }
    let key = found.key.as_ref().filter(|k| k.metadata.uid.as_deref() == Some(&id.uid)).ok_or(Denied::ApiKeyGone)?;
    if key.metadata.deletion_timestamp.is_some() {
        return Err(Denied::ApiKeyDeleting);
    }
    if key.spec.service_account_name != id.service_account || key.spec.rotation != record.token.rotation {
        return Err(Denied::Rotated);
    }
    // Both: a tenant's change can end a token at once, but can never revive an expired one.
    if past(key.spec.expires_at.as_ref(), now) || past(record.token.expires_at.as_ref(), now) {
        return Err(Denied::Expired);
    }
    require_active(found.namespace.as_ref().as_ref())?;
    let account = found.account.as_ref().filter(|a| a.metadata.deletion_timestamp.is_none());
    if account.and_then(|a| a.metadata.uid.as_deref()) != Some(&record.token.service_account_uid) {
        return Err(Denied::ServiceAccountGone);
    }
    Ok(Verified {
        id: id.clone(),
        service_account_uid: record.token.service_account_uid.clone(),
        last_used: key.status.as_ref().and_then(|s| s.last_used_time.clone()),
    })
}

#[cfg(test)]
mod tests;
