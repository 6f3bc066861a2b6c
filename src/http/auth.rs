//! Authentication (DESIGN.md 5): a computer's key, a token of an `ApiKey`, or a JWT that the cluster trusts. Nothing may be cached, so that a revocation
//! takes effect with the next request. Requests with the same token that arrive at the same time share a verification that begins after all of them have
//! arrived (`coalesce.rs`). A token must never be logged, and an unknown outcome never authenticates.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, PostParams};
use sha2::{Digest as _, Sha256};

use super::Shared;
use super::coalesce::Coalescer;
use super::error::ApiError;
use crate::credentials::verify::namespace;
use crate::credentials::verify_api_key::Verified;
use crate::credentials::{self, ComputerId, Denied, KeyRights, VerifiedKey};
use crate::resources::Computer;
use crate::runtime::client::{CallError, call};

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq)]
pub enum Caller {
    /// A computer with its own key, which can act only on itself, and only as the rights say.
    Computer(ComputerId, KeyRights),
    /// A user of the cluster, whose permissions are defined by RBAC.
    User(User),
}

/// A user as known to RBAC.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct User {
    /// Name, for example `system:serviceaccount:team:ci`.
    pub name: String,
    /// UID, if it has one.
    pub uid: Option<String>,
    /// Groups.
    pub groups: Vec<String>,
    /// Further attributes for authorizers.
    pub extra: BTreeMap<String, Vec<String>>,
    /// The namespace of the identity, if it is a ServiceAccount.
    pub namespace: Option<String>,
}

impl Caller {
    /// A description for the access log.
    pub fn describe(&self) -> String {
        match self {
            Self::Computer(id, _) => format!("computer {}/{}", id.namespace, id.name),
            Self::User(user) => user.name.clone(),
        }
    }

    /// The namespace to act in: the requested one, or the caller's own.
    ///
    /// # Errors
    /// 400 if there is none, 404 if a computer requests another namespace than its own.
    pub fn namespace(&self, asked: Option<&str>) -> Result<String, ApiError> {
        match (self, asked) {
            (Self::Computer(id, _), None) => Ok(id.namespace.clone()),
            (Self::Computer(id, _), Some(asked)) if asked == id.namespace => Ok(id.namespace.clone()),
            (Self::Computer(..), Some(_)) => Err(ApiError::not_found("namespace")),
            (Self::User(_), Some(asked)) => {
                crate::runtime::config::namespace(asked).map_err(|hint| ApiError::invalid(format!("namespace is invalid: {hint}")))
            }
            (Self::User(user), None) => user.namespace.clone().ok_or_else(|| {
                ApiError::invalid(
                    "your identity does not belong to a namespace: set the query parameter `namespace`, or use the token of a ServiceAccount or an ApiKey",
                )
            }),
        }
    }
}

/// An authenticated caller with what its authentication has read.
pub struct Authenticated {
    /// The caller.
    pub caller: Caller,
    /// The computer whose own key authenticates, as it was read live after the request had arrived. A handler needs no second read of it.
    pub own: Option<Arc<Computer>>,
}

impl From<Caller> for Authenticated {
    fn from(caller: Caller) -> Self {
        Self { caller, own: None }
    }
}

/// What the Kubernetes API says about a credential.
#[derive(Clone)]
pub enum Verdict {
    /// A computer's key, and the computer.
    Key(Result<(VerifiedKey, Option<Arc<Computer>>), Denied>),
    /// A token of an `ApiKey`.
    ApiKey(Result<Verified, Denied>),
    /// A JWT.
    Jwt(Option<User>),
}

/// Verifications by the digest of the token.
pub type Verifications = Coalescer<[u8; 32], Result<Verdict, Arc<CallError>>>;

/// Reads of namespaces by name.
pub type Namespaces = Coalescer<String, Result<Arc<Option<Namespace>>, Arc<CallError>>>;

/// Authenticates the caller of a request.
///
/// # Errors
/// 401, or 500 if the credential could not be verified.
pub async fn authenticate(shared: &Arc<Shared>, headers: &HeaderMap) -> Result<Authenticated, ApiError> {
    let token = bearer(headers).filter(|token| kind(token).is_some()).ok_or_else(ApiError::unauthorized)?;
    let (server, asked) = (Arc::clone(shared), token.to_owned());
    let verdict = shared.credentials.send(Sha256::digest(token).into(), || async move { verdict(&server, &asked).await }).await;
    let verdict = verdict.map_err(|error| {
        tracing::error!(%error, "cannot verify a credential");
        ApiError::internal(
            "your credential could not be verified because the Kubernetes API did not respond as expected. Retry the request",
        )
    })?;
    caller(shared, verdict).ok_or_else(ApiError::unauthorized)
}

#[derive(Clone, Copy)]
enum Kind {
    Key,
    ApiKey,
    Jwt,
}

/// How a token is verified, by its form.
fn kind(token: &str) -> Option<Kind> {
    if token.starts_with(credentials::key::PREFIX) {
        Some(Kind::Key)
    } else if token.starts_with(credentials::api_key::PREFIX) {
        Some(Kind::ApiKey)
    } else {
        (token.split('.').count() == 3).then_some(Kind::Jwt)
    }
}

/// Verifies a token. It must send its requests only once it is polled.
async fn verdict(shared: &Arc<Shared>, token: &str) -> Result<Verdict, Arc<CallError>> {
    let read = async |name: String| {
        let (client, of) = (shared.client.clone(), name.clone());
        shared.namespaces.send(name, || async move { Ok(Arc::new(namespace(client, of).await?)) }).await
    };
    let (client, records) = (&shared.client, shared.namespace.as_str());
    match kind(token) {
        Some(Kind::Key) => {
            let verified = credentials::verify::verify_and_read(client, records, token, read).await?;
            Ok(Verdict::Key(verified.map(|(key, computer)| (key, computer.map(Arc::new)))))
        }
        Some(Kind::ApiKey) => Ok(Verdict::ApiKey(credentials::verify_api_key::verify_reading(client, records, token, read).await?)),
        Some(Kind::Jwt) => Ok(Verdict::Jwt(review(shared, token).await?)),
        None => Ok(Verdict::Jwt(None)),
    }
}

/// The caller of one request with that credential, if it is valid.
fn caller(shared: &Shared, verdict: Verdict) -> Option<Authenticated> {
    match verdict {
        Verdict::Key(verified) => {
            let (key, own) = counted(shared, "Key", verified)?;
            Some(Authenticated { caller: Caller::Computer(key.computer, key.rights), own })
        }
        Verdict::ApiKey(verified) => {
            let verified = counted(shared, "ApiKey", verified)?;
            shared.last_used.note(&shared.client, &verified);
            Some(Caller::User(service_account(&verified)).into())
        }
        Verdict::Jwt(user) => user.map(Caller::User).map(Authenticated::from),
    }
}

/// Returns the verified credential. A denial is counted and its reason dropped, because the caller must not learn it.
fn counted<T>(shared: &Shared, credential: &'static str, verified: Result<T, Denied>) -> Option<T> {
    verified.inspect_err(|denied| shared.metrics.denied(credential, *denied)).ok()
}

/// The bearer token. A request with more than one `Authorization` header has none.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (all.next()?, all.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let fits = !token.is_empty() && token.len() <= LONGEST && token.bytes().all(|b| b.is_ascii_graphic());
    (scheme.eq_ignore_ascii_case("bearer") && fits).then_some(token)
}

/// Maximum length of a token; hyper's limit for headers is larger.
const LONGEST: usize = 16 * 1024;

/// A token of an `ApiKey` authenticates as its ServiceAccount, with the same attributes as in the cluster.
fn service_account(verified: &Verified) -> User {
    let namespace = &verified.id.namespace;
    let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}"), "system:authenticated".to_owned()];
    User {
        name: verified.id.user(),
        uid: Some(verified.service_account_uid.clone()),
        groups: groups.into(),
        extra: BTreeMap::new(),
        namespace: Some(namespace.clone()),
    }
}

/// Reviews a JWT. The API server knows the issuers, their keys, and whether the ServiceAccount still exists.
async fn review(shared: &Shared, token: &str) -> Result<Option<User>, CallError> {
    let audiences = vec![shared.audience.clone(), shared.cluster_audience.clone()];
    let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(audiences) };
    let api: Api<TokenReview> = Api::all(shared.client.clone());
    let review = TokenReview { spec, ..TokenReview::default() };
    let status = call(api.create(&PostParams::default(), &review)).await?.status;
    Ok(status.and_then(|status| user(status, &shared.audience, &shared.cluster_audience)))
}

/// The user of a TokenReview. A ServiceAccount's token must have this API's audience, so that the token that every pod has for the API server is rejected.
/// For an OIDC token the API server has checked the audience itself and reports only its own.
fn user(status: TokenReviewStatus, ours: &str, cluster: &str) -> Option<User> {
    if status.authenticated != Some(true) || status.error.as_deref().is_some_and(|e| !e.is_empty()) {
        return None;
    }
    let audiences = status.audiences.unwrap_or_default();
    let UserInfo { username, uid, groups, extra } = status.user?;
    let name = username.filter(|n| !n.is_empty())?;
    let namespace = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')).map(|(ns, _)| ns.to_owned());
    let meant = |audience: &str| audiences.iter().any(|a| a == audience);
    if !meant(ours) && (namespace.is_some() || !meant(cluster)) {
        return None;
    }
    Some(User { name, uid, groups: groups.unwrap_or_default(), extra: extra.unwrap_or_default(), namespace })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn exactly_one_bearer_header_is_accepted() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(of(&["Bearer a.b"]), Some("a.b".into()));
        assert_eq!(of(&["bearer a"]), Some("a".into()));
        for bad in [&[][..], &["Bearer"], &["Bearer "], &["Bearer a b"], &["Basic a"], &["a"], &["Bearer a", "Bearer a"], &["Bearer  a"]] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
        assert_eq!(of(&[&format!("Bearer {}", "x".repeat(LONGEST + 1))]), None);
    }

    #[test]
    fn an_api_key_authenticates_as_its_service_account() {
        let id = credentials::ApiKeyId { namespace: "team".into(), name: "k".into(), uid: "u".into(), service_account: "ci".into() };
        let user = service_account(&Verified { id, service_account_uid: "account".into(), last_used: None });
        assert_eq!((user.name.as_str(), user.uid.as_deref()), ("system:serviceaccount:team:ci", Some("account")));
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:team", "system:authenticated"]);
        assert_eq!(Caller::User(user).namespace(None).unwrap(), "team");
    }

    #[test]
    fn a_service_account_needs_this_apis_audience_and_other_users_the_clusters() {
        let of = |name: &str, audiences: &[&str]| {
            let status = json!({"authenticated": true, "audiences": audiences, "user": {"username": name, "groups": ["g"]}});
            user(serde_json::from_value(status).unwrap(), "ours", "cluster").map(|u| u.namespace)
        };
        assert_eq!(of("system:serviceaccount:team:ci", &["ours"]), Some(Some("team".into())));
        assert_eq!(of("system:serviceaccount:team:ci", &["cluster"]), None);
        assert_eq!(of("anna", &["cluster"]), Some(None));
        assert_eq!(of("anna", &["ours"]), Some(None));
        assert_eq!(of("anna", &[]), None);
        assert_eq!(of("anna", &["other"]), None);
        assert_eq!(of("", &["ours"]), None);
    }

    #[test]
    fn a_negative_or_incomplete_review_does_not_authenticate() {
        for status in [
            json!({}),
            json!({"authenticated": false, "audiences": ["ours"], "user": {"username": "anna"}}),
            json!({"authenticated": true, "audiences": ["ours"], "user": {"username": "anna"}, "error": "expired"}),
            json!({"authenticated": true, "audiences": ["ours"]}),
        ] {
            assert_eq!(user(serde_json::from_value(status.clone()).unwrap(), "ours", "cluster"), None, "{status}");
        }
    }
}
