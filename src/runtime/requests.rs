//! Requests that concern one object, and what their answers mean, for all reconcilers. An unknown outcome is an error, never a success.
//! An object is only said to be absent after a 404, or when the name belongs to another UID. Nothing here decides what to request.

use std::fmt::Debug;

use axum::http::Request;
use axum::http::header::CONTENT_TYPE;
use either::Either;
use json_patch::PatchOperation;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::client::{CallError, ErrorClass, call, classify};
use super::patch;
use crate::resources::{DELETION_FINALIZER, MANAGER};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or its answer is unknown.
    #[error("{what}: {source}")]
    Call {
        /// The request in words.
        what: String,
        /// The failure.
        source: CallError,
    },
    /// The object changed between the read and the write: plan again.
    #[error("{0} changed meanwhile")]
    Conflict(String),
    /// The API server says that the object exists, and does not say which one it is.
    #[error("{0}: the answer has no UID")]
    NoUid(String),
    /// The request succeeds, but the answer does not contain its change.
    #[error(
        "the request to {0} succeeds, but the change is not in the API server's answer: a mutating webhook or policy removes it. Exclude this \
         operator's requests from it"
    )]
    Undone(String),
}

impl Error {
    /// Class of the failure, for conditions, metrics and backoff.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Call { source, .. } => classify(source),
            Self::Conflict(_) => ErrorClass::Conflict,
            Self::NoUid(_) => ErrorClass::Transient,
            Self::Undone(_) => ErrorClass::Invalid,
        }
    }

    /// How long the API server asks to wait before the next try.
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        if let Self::Call { source, .. } = self { source.retry_after() } else { None }
    }
}

/// A live answer: the object, or that it is absent.
pub type Found<K> = Result<Option<K>, Error>;

/// Reads an object.
///
/// # Errors
/// When the answer is unknown.
pub async fn get<K: Clone + DeserializeOwned + Debug>(api: &Api<K>, name: &str, what: &str) -> Found<K> {
    optional(call(api.get(name)).await, what)
}

/// Reads an object of which the UID is known. Another UID under its name means that it is absent.
///
/// # Errors
/// When the answer is unknown.
pub async fn get_same<K: Resource + Clone + DeserializeOwned + Debug>(api: &Api<K>, name: &str, uid: &str, what: &str) -> Found<K> {
    Ok(get(api, name, what).await?.filter(|found| found.meta().uid.as_deref() == Some(uid)))
}

/// UID of a Secret, which the operator may not read: a dry-run DELETE returns it (DESIGN.md 4.8).
///
/// # Errors
/// When the answer is unknown.
pub async fn secret_uid(api: &Api<Secret>, name: &str, what: &str) -> Found<String> {
    let params = DeleteParams { dry_run: true, ..DeleteParams::default() };
    let Some(answer) = optional(call(api.delete(name, &params)).await, what)? else { return Ok(None) };
    let uid = match answer {
        Either::Left(secret) => secret.metadata.uid,
        Either::Right(status) => status.details.map(|d| d.uid),
    };
    // A success without a UID proves that there is a Secret, not which one.
    uid.filter(|uid| !uid.is_empty()).map(Some).ok_or_else(|| Error::NoUid(what.to_owned()))
}

/// Creates an object with strict field validation: the API server refuses fields that it does not know, or that occur twice, and names them.
/// By default it drops them. The object is JSON, so that fields that our types do not know arrive.
///
/// # Errors
/// When the API server refuses the object, or the outcome is unknown.
pub async fn create_strictly<K>(client: &Client, namespace: &str, object: &Value, dry_run: bool) -> Result<K, CallError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let path = K::url_path(&(), Some(namespace));
    let dry_run = if dry_run { "&dryRun=All" } else { "" };
    let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
    let request = Request::post(format!("{path}?fieldValidation=Strict{dry_run}")).header(CONTENT_TYPE, "application/json").body(body);
    call(client.request(request.map_err(kube::Error::HttpError)?)).await
}

fn optional<T>(answer: Result<T, CallError>, what: &str) -> Found<T> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(source) if classify(&source) == ErrorClass::NotFound => Ok(None),
        Err(source) => Err(Error::Call { what: what.to_owned(), source }),
    }
}

/// Adds the deletion finalizer.
pub fn add_finalizer(metadata: &ObjectMeta) -> PatchOperation {
    match &metadata.finalizers {
        Some(f) if !f.is_empty() => patch::add(["metadata", "finalizers", "-"], json!(DELETION_FINALIZER)),
        _ => patch::add(["metadata", "finalizers"], json!([DELETION_FINALIZER])),
    }
}

/// Removes the deletion finalizer. `None`: the object does not have it.
pub fn remove_finalizer(metadata: &ObjectMeta) -> Option<PatchOperation> {
    let index = metadata.finalizers.iter().flatten().position(|f| f == DELETION_FINALIZER)?;
    Some(patch::remove(["metadata", "finalizers", &index.to_string()]))
}

/// The answer to a change of an object that was read.
pub enum Changed<K> {
    /// The object after the change.
    Written(K),
    /// Nothing was written: the object is absent (`None`), or it is this by now.
    Not(Option<K>),
}

/// Changes an object, fenced by the UID and the version in `seen`: kube's own `finalizer()` tests neither. A refused change of an object
/// that did not change since would be refused again: that is an error, not a reason to plan again.
///
/// # Errors
/// When the API server refuses the change, or its outcome is unknown.
pub async fn change<K>(api: &Api<K>, seen: &K, fenced: bool, operation: PatchOperation) -> Result<Changed<K>, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let (metadata, kind) = (seen.meta(), K::kind(&()));
    let fence = [patch::same_uid(metadata), patch::same_version(metadata)].into_iter().filter(|_| fenced);
    let patch = Patch::<()>::Json(json_patch::Patch(fence.chain([operation]).collect()));
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let name = metadata.name.as_deref().unwrap_or_default();
    let source = match call(api.patch(name, &params, &patch)).await {
        Ok(written) => return Ok(Changed::Written(written)),
        Err(source) => source,
    };
    let failed = |source| Error::Call { what: format!("changing the finalizer of the {kind}"), source };
    match classify(&source) {
        ErrorClass::NotFound => Ok(Changed::Not(None)),
        // The cache was stale, or another client wrote at the same time: read the live object.
        class @ (ErrorClass::Conflict | ErrorClass::Invalid) => {
            let uid = metadata.uid.as_deref().unwrap_or_default();
            match get_same(api, name, uid, &format!("reading the {kind}")).await? {
                Some(live) if live.meta().resource_version == metadata.resource_version => {
                    Err(if class == ErrorClass::Invalid { failed(source) } else { Error::Conflict(format!("the {kind}")) })
                }
                live => Ok(Changed::Not(live)),
            }
        }
        _ => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::http::{Request, Response};
    use kube::client::Body;
    use kube::{Api, Client};

    use super::*;

    /// S3: only a 404 proves absence.
    #[tokio::test]
    async fn a_success_without_a_uid_is_no_absence() {
        let answers = [
            (r#"{"kind":"Status","apiVersion":"v1","status":"Success"}"#, None),
            (r#"{"kind":"Status","apiVersion":"v1","status":"Success","details":{"name":"key","uid":""}}"#, None),
            (r#"{"kind":"Status","apiVersion":"v1","status":"Success","details":{"name":"key","uid":"7"}}"#, Some("7")),
        ];
        for (answer, uid) in answers {
            let service = tower::service_fn(move |_: Request<Body>| async move {
                Ok::<_, Infallible>(Response::new(Body::from(answer.as_bytes().to_vec())))
            });
            let api = Api::<Secret>::default_namespaced(Client::new(service, "t"));
            let found = secret_uid(&api, "key", "reading the Secret").await;
            assert_eq!(found.ok().flatten().as_deref(), uid, "{answer}");
            let unknown = secret_uid(&api, "key", "reading the Secret").await.is_err();
            assert_eq!(unknown, uid.is_none(), "{answer}");
        }
    }
}
