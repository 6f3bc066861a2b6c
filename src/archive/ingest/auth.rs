//! Authenticates archive pods: a pod in the operator's namespace, with a token bound to it, may write for the computer in its label, while
//! that computer's record names it as the pod of the latest attempt and the archive is not decided. Tenants cannot create pods there. An unknown
//! answer must never authenticate.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::resources::steps::{DeletionStep, StepResult};
use crate::resources::{ComputerRecord, MAX_BYTES_ANNOTATION, UID_LABEL};
use crate::runtime::client::{CallError, ErrorClass, call, classify};

/// Audience of the pods' tokens.
pub const AUDIENCE: &str = "computer-operator.dev/ingest";
/// How long a result is cached: a pod sends thousands of objects. It may only create objects in its own archive.
const REMEMBER: Duration = Duration::from_secs(60);

/// What an archive pod may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// UID of the computer whose archive it is.
    pub uid: String,
    /// The namespace of that computer, and its UID if the record has it.
    pub namespace: (String, Option<String>),
    /// UID of the pod.
    pub pod: String,
    /// UID of the claim of the deletion that the archive belongs to.
    pub custody_claim: String,
    /// Most bytes that the archive may have.
    pub max_bytes: u64,
}

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Not the token of an archive pod.
    Unknown,
    /// An archive pod that may not write, and why.
    Refused(&'static str),
    /// An archive pod that the record does not name yet.
    NotYet,
    /// The archive pod of the latest attempt.
    Pod(Caller),
}

impl Access {
    /// What a pod of this UID may write, by the record of its computer and the bound that the operator has noted on the pod.
    fn by(record: &ComputerRecord, uid: &str, pod_uid: &str, max_bytes: u64) -> Self {
        let Some(deletion) = &record.spec.state.deletion else { return Self::Refused("its computer is not being deleted") };
        // `NotApplicable` is not decided: a volume can appear after it (`deletion/archive.rs`).
        let skipped = deletion.outcome(DeletionStep::ArchiveSessions).is_some_and(|outcome| outcome.result == StepResult::Skipped);
        if deletion.archive.is_some() || skipped {
            return Self::Refused("this deletion already has a verified archive or has skipped it; the archive is never changed");
        }
        match deletion.custody.as_ref().and_then(|custody| Some((custody.pod_uid.as_deref()?, &custody.claim_uid))) {
            None => Self::NotYet,
            Some((recorded, claim)) if recorded == pod_uid => {
                let namespace = (record.spec.namespace.clone(), record.spec.namespace_uid.clone());
                let (uid, pod) = (uid.to_owned(), pod_uid.to_owned());
                Self::Pod(Caller { uid, namespace, pod, custody_claim: claim.clone(), max_bytes })
            }
            Some(_) => Self::Refused("the record of its computer names another archive pod"),
        }
    }
}

/// Answers what a token may write.
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
        /// The claim of its deletion.
        custody_claim: &'static str,
        /// Most bytes of the archive.
        max_bytes: u64,
    },
    /// What a test says at that time, by the token.
    #[cfg(test)]
    Said(Arc<Mutex<HashMap<String, Access>>>),
}

impl Authenticator {
    /// What the token may write.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn access(&self, token: &str) -> Result<Access, CallError> {
        match self {
            Self::Pods(pods) => pods.access(token).await,
            #[cfg(test)]
            Self::Said(said) => Ok(said.lock().get(token).cloned().unwrap_or(Access::Unknown)),
            #[cfg(test)]
            Self::Fixed { token: known, uid, custody_claim, max_bytes } => {
                let namespace = ("t".to_owned(), Some("namespace".to_owned()));
                let (uid, custody_claim) = ((*uid).to_owned(), (*custody_claim).to_owned());
                let caller = Caller { uid, namespace, pod: "pod".to_owned(), custody_claim, max_bytes: *max_bytes };
                Ok(if token == *known { Access::Pod(caller) } else { Access::Unknown })
            }
        }
    }
}

/// Pod tokens, reviewed by the API server.
pub struct PodTokens {
    client: Client,
    namespace: String,
    account: String,
    known: Mutex<HashMap<[u8; 32], (Caller, Instant)>>,
}

impl PodTokens {
    /// Tokens of `account` in `namespace`.
    pub fn new(client: Client, namespace: String, account: String) -> Self {
        Self { client, namespace, account, known: Mutex::default() }
    }

    async fn access(&self, token: &str) -> Result<Access, CallError> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(caller) = self.remembered(&key) {
            return Ok(Access::Pod(caller));
        }
        let user = format!("system:serviceaccount:{}:{}", self.namespace, self.account);
        let Some((pod_name, pod_uid)) = review(&self.client, token, AUDIENCE, &user).await? else { return Ok(Access::Unknown) };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let Some(pod) = found(call(pods.get(&pod_name)).await)? else { return Ok(Access::Unknown) };
        let uid = pod.labels().get(UID_LABEL).filter(|_| pod.metadata.uid.as_deref() == Some(&pod_uid));
        let Some(uid) = uid else { return Ok(Access::Unknown) };
        let records: Api<ComputerRecord> = Api::namespaced(self.client.clone(), &self.namespace);
        let Some(record) = found(call(records.get(uid)).await)? else { return Ok(Access::Unknown) };
        // A pod of an earlier version has none.
        let most = pod.annotations().get(MAX_BYTES_ANNOTATION).and_then(|most| most.parse().ok());
        let access = Access::by(&record, uid, &pod_uid, most.unwrap_or(u64::MAX));
        if let Access::Pod(caller) = &access {
            let mut known = self.known.lock();
            known.retain(|_, (_, until)| *until > Instant::now());
            known.insert(key, (caller.clone(), Instant::now() + REMEMBER));
        }
        Ok(access)
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<Caller> {
        let known = self.known.lock();
        known.get(key).filter(|(_, until)| *until > Instant::now()).map(|(caller, _)| caller.clone())
    }
}

/// Name and UID of the pod that a token is bound to, if it is one of this user for this audience.
///
/// # Errors
/// When the API server does not answer.
pub(super) async fn review(client: &Client, token: &str, audience: &str, user: &str) -> Result<Option<(String, String)>, CallError> {
    let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![audience.to_owned()]) };
    let review = TokenReview { spec, ..TokenReview::default() };
    let api: Api<TokenReview> = Api::all(client.clone());
    let status = call(api.create(&PostParams::default(), &review)).await?.status;
    Ok(status.and_then(|s| pod_of(&s, audience, user)))
}

/// An object; `None`: the API server says that it does not exist.
fn found<T>(read: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match read {
        Ok(object) => Ok(Some(object)),
        Err(error) if classify(&error) == ErrorClass::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn pod_of(status: &TokenReviewStatus, audience: &str, user: &str) -> Option<(String, String)> {
    let authenticated = status.authenticated == Some(true) && status.audiences.as_ref().is_some_and(|a| a.iter().any(|a| a == audience));
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
        let of = |value: serde_json::Value| pod_of(&serde_json::from_value(value).unwrap(), AUDIENCE, user);
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

    /// An archive pod of an earlier attempt, or one whose archive is already verified, could once store any number of objects.
    #[test]
    fn only_the_pod_of_the_recorded_attempt_writes_and_only_until_the_archive_is_decided() {
        let record = |deletion: serde_json::Value| -> ComputerRecord {
            let state = if deletion.is_null() { json!({}) } else { json!({"deletion": deletion}) };
            serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": {"namespace": "t", "computer": "c", "state": state}})).unwrap()
        };
        let began = json!({"deletedAt": "2026-01-01T00:00:00Z", "cause": "ComputerDeleted"});
        let with = |field: &str, value: serde_json::Value| {
            let mut deletion = began.clone();
            deletion["custody"] = json!({"claimUid": "claim", "podUid": "p"});
            deletion[field] = value;
            Access::by(&record(deletion), "u", "p", 9)
        };
        let namespace = ("t".to_owned(), None);
        let pod = Access::Pod(Caller { uid: "u".into(), namespace, pod: "p".into(), custody_claim: "claim".into(), max_bytes: 9 });
        assert_eq!(with("handedOff", json!(false)), pod);
        assert_eq!(Access::by(&record(began.clone()), "u", "p", 9), Access::NotYet, "no attempt is recorded yet");
        assert!(matches!(with("custody", json!({"claimUid": "claim", "podUid": "another"})), Access::Refused(_)));
        assert!(matches!(
            with("archive", json!({"manifestDigest": "d", "sessions": 0, "bytes": 0})),
            Access::Refused(why) if why.contains("never changed")
        ));
        let finished = |result: &str| json!({"archive-sessions": {"result": result, "detail": "", "at": "2026-01-01T00:00:00.000000Z"}});
        assert!(matches!(with("steps", finished("Skipped")), Access::Refused(why) if why.contains("never changed")));
        assert_eq!(with("steps", finished("NotApplicable")), pod, "a volume appeared after the step was not needed");
        assert!(matches!(Access::by(&record(json!(null)), "u", "p", 9), Access::Refused(_)));
    }
}
