//! Authenticates archive pods: a pod in the operator's namespace, with a token bound to it, may write for the computer in its label.
//! Tenants cannot create pods there. An unknown answer must never authenticate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::resources::UID_LABEL;
use crate::runtime::client::{CallError, ErrorClass, call, classify};

/// Audience of the pods' tokens.
pub const AUDIENCE: &str = "computer-operator.dev/ingest";
/// How long a result is cached: a pod sends thousands of objects. It may only create objects in its own archive.
const REMEMBER: Duration = Duration::from_secs(60);

/// Answers which computer a token may write for.
#[derive(Clone)]
pub enum Authenticator {
    /// Pod tokens, reviewed by the API server.
    Pods(Arc<PodTokens>),
    /// One token, for tests.
    #[cfg(test)]
    Fixed {
        /// The token that is accepted.
        token: &'static str,
        /// UID of the computer whose archive it may write.
        uid: &'static str,
    },
}

impl Authenticator {
    /// UID that the token may write for; `None`: none.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn computer_of(&self, token: &str) -> Result<Option<String>, CallError> {
        match self {
            Self::Pods(pods) => pods.computer_of(token).await,
            #[cfg(test)]
            Self::Fixed { token: known, uid } => Ok((token == *known).then(|| (*uid).to_owned())),
        }
    }
}

/// Pod tokens, reviewed by the API server.
pub struct PodTokens {
    client: Client,
    namespace: String,
    account: String,
    known: Mutex<HashMap<[u8; 32], (String, Instant)>>,
}

impl PodTokens {
    /// Tokens of `account` in `namespace`.
    pub fn new(client: Client, namespace: String, account: String) -> Self {
        Self { client, namespace, account, known: Mutex::default() }
    }

    async fn computer_of(&self, token: &str) -> Result<Option<String>, CallError> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(uid) = self.remembered(&key) {
            return Ok(Some(uid));
        }
        let Some((pod_name, pod_uid)) = self.review(token).await? else { return Ok(None) };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pod = match call(pods.get(&pod_name)).await {
            Ok(pod) => pod,
            Err(error) if classify(&error) == ErrorClass::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let uid = pod.labels().get(UID_LABEL).cloned().filter(|_| pod.metadata.uid.as_deref() == Some(&pod_uid));
        if let (Some(uid), Ok(mut known)) = (&uid, self.known.lock()) {
            known.retain(|_, (_, until)| *until > Instant::now());
            known.insert(key, (uid.clone(), Instant::now() + REMEMBER));
        }
        Ok(uid)
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<String> {
        let known = self.known.lock().ok()?;
        known.get(key).filter(|(_, until)| *until > Instant::now()).map(|(uid, _)| uid.clone())
    }

    /// Name and UID of the pod that the token is bound to.
    async fn review(&self, token: &str) -> Result<Option<(String, String)>, CallError> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = call(api.create(&PostParams::default(), &review)).await?.status;
        Ok(status.and_then(|s| pod_of(&s, &format!("system:serviceaccount:{}:{}", self.namespace, self.account))))
    }
}

fn pod_of(status: &TokenReviewStatus, user: &str) -> Option<(String, String)> {
    let authenticated = status.authenticated == Some(true) && status.audiences.as_ref().is_some_and(|a| a.iter().any(|a| a == AUDIENCE));
    let found = status.user.as_ref().filter(|u| authenticated && u.username.as_deref() == Some(user))?;
    let extra = |key: &str| found.extra.as_ref()?.get(&format!("authentication.kubernetes.io/{key}"))?.first().cloned();
    Some((extra("pod-name")?, extra("pod-uid")?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_token_of_the_account_for_the_audience_and_bound_to_a_pod_is_accepted() {
        let user = "system:serviceaccount:op:archive";
        let good = json!({"authenticated": true, "audiences": [AUDIENCE], "user": {"username": user,
            "extra": {"authentication.kubernetes.io/pod-name": ["p"], "authentication.kubernetes.io/pod-uid": ["u"]}}});
        let of = |value: serde_json::Value| pod_of(&serde_json::from_value(value).unwrap(), user);
        assert_eq!(of(good.clone()), Some(("p".into(), "u".into())));
        for (pointer, value) in [
            ("/authenticated", json!(false)),
            ("/audiences", json!(["other"])),
            ("/user/username", json!("system:serviceaccount:op:default")),
            ("/user/extra", json!({})),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            assert_eq!(of(bad), None, "{pointer}");
        }
    }
}
