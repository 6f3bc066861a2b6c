//! Who may read what remains of a computer (S13). A recreated namespace may belong to another tenant, and a deleted one grants no permissions: then only
//! permissions in all namespaces count.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::Api;

use super::Shared;
use super::access::{self, Target};
use super::auth::Caller;
use super::error::ApiError;
use crate::resources::ComputerRecord;
use crate::runtime::client::{ErrorClass, call, classify};

/// What is known about the namespace that a computer lived in.
#[derive(Clone, Copy, Debug)]
pub struct LivedIn<'a> {
    /// Its UID. A record or an archive of an earlier version does not have it.
    pub uid: Option<&'a str>,
    /// When the computer was recorded. Without a UID, a namespace that is not younger counts.
    pub recorded: Option<&'a Time>,
}

impl<'a> LivedIn<'a> {
    /// By the record of the computer.
    pub fn of(record: &'a ComputerRecord) -> Self {
        Self { uid: record.spec.namespace_uid.as_deref(), recorded: record.metadata.creation_timestamp.as_ref() }
    }

    /// Whether it is this namespace.
    pub fn is(self, namespace: &Namespace) -> bool {
        match self.uid {
            Some(uid) => namespace.metadata.uid.as_deref() == Some(uid),
            None => namespace.metadata.creation_timestamp.as_ref().zip(self.recorded).is_some_and(|(made, recorded)| made.0 <= recorded.0),
        }
    }
}

/// The namespace with this name as it is now.
///
/// # Errors
/// 500 if the Kubernetes API does not respond as expected.
pub async fn live(shared: &Shared, namespace: &str) -> Result<Option<Namespace>, ApiError> {
    let namespaces: Api<Namespace> = Api::all(shared.client.clone());
    match call(namespaces.get(namespace)).await {
        Ok(namespace) => Ok(Some(namespace)),
        Err(error) if classify(&error) == ErrorClass::NotFound => Ok(None),
        Err(error) => Err(ApiError::from_call(&error, "namespace", "reading the namespace")),
    }
}

/// Whether permissions in this namespace count: it is the one that the computer lived in, or the caller may do `verb` in all namespaces.
///
/// # Errors
/// 500 if the Kubernetes API does not respond as expected.
pub async fn permits(
    shared: &Shared,
    caller: &Caller,
    (verb, resource): (&'static str, &'static str),
    namespace: &str,
    lived_in: LivedIn<'_>,
) -> Result<bool, ApiError> {
    let same = live(shared, namespace).await?.is_some_and(|namespace| lived_in.is(&namespace));
    Ok(same || everywhere(shared, caller, (verb, resource)).await?)
}

/// Whether the caller may do `verb` in all namespaces.
///
/// # Errors
/// 500 if the review failed.
pub async fn everywhere(shared: &Shared, caller: &Caller, (verb, resource): (&'static str, &'static str)) -> Result<bool, ApiError> {
    access::may(shared, caller, verb, Target { resource, namespace: "", name: None }).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    /// S13: what has a UID is never given to a namespace that only has the right name and age.
    #[test]
    fn the_uid_of_the_namespace_decides_and_its_age_only_without_one() {
        let metadata = json!({"name": "t", "uid": "n", "creationTimestamp": "2026-01-01T00:00:10Z"});
        let namespace: Namespace = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        let of = |uid: Option<&str>, at: &str| {
            let spec = json!({"namespace": "t", "namespaceUid": uid, "computer": "c"});
            let record = serde_json::from_value(json!({"metadata": {"name": "u", "creationTimestamp": at}, "spec": spec})).unwrap();
            LivedIn::of(&record).is(&namespace)
        };
        assert!(of(Some("n"), "2026-01-01T00:00:10Z") && !of(Some("other"), "2026-01-01T00:00:10Z"));
        assert!(of(None, "2026-01-01T00:00:10Z") && !of(None, "2026-01-01T00:00:09Z"));
        assert!(!LivedIn { uid: None, recorded: None }.is(&namespace), "nothing is known");
    }
}
