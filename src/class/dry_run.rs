//! The dry run of a class's pods in the operator's namespace, with strict field validation. It must never create an object.
//!
//! Machines run in the tenants' namespaces. What only the operator's namespace refuses (a quota, a `LimitRange`, a `ServiceAccount` that it does
//! not have) says nothing about a class: the dry run is repeated without it, so that the API server checks the rest.

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::{Value, json};

use crate::runtime::client::{CallError, ErrorClass, classify};
use crate::runtime::requests;

/// The result of a dry run.
pub(super) enum Answer {
    /// The API server would accept the pod, or rejects it for a reason that is specific to this namespace.
    Accepted,
    Invalid(String),
    PodSecurity(String),
    /// A `LimitRange` of this namespace refuses the archive pod.
    Limited(String),
    Forbidden(CallError),
}

/// What refused a pod, if that is specific to the namespace.
#[derive(Debug, PartialEq, Eq)]
enum Local {
    Quota,
    LimitRange,
    ServiceAccount,
}

/// The wording of the API server's admission plugins: they all answer 403, and only their messages tell them apart.
fn local(message: &str) -> Option<Local> {
    let has = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    // A webhook may use the same words about something else.
    if message.contains("admission webhook") || !message.contains(" is forbidden: ") {
        return None;
    }
    if has(&["exceeded quota: ", "failed quota: ", "status unknown for quota: "]) {
        return Some(Local::Quota);
    }
    if has(&[" usage per Container is ", " usage per Pod is ", " max limit to request ratio per "]) {
        return Some(Local::LimitRange);
    }
    message.contains("error looking up service account ").then_some(Local::ServiceAccount)
}

/// Dry-runs the pod of a machine.
pub(super) async fn machine(client: &Client, namespace: &str, mut pod: Value) -> Result<Answer, CallError> {
    loop {
        let (local, error) = match once(client, namespace, &mut pod).await? {
            (Answer::Forbidden(error), Some(local)) => (local, error),
            (answer, _) => return Ok(answer),
        };
        let changed = match local {
            // Quotas are checked last: everything else was valid.
            Local::Quota => return Ok(Answer::Accepted),
            Local::LimitRange => without_resources(&mut pod),
            Local::ServiceAccount => without(&mut pod["spec"], &["serviceAccountName", "serviceAccount"]),
        };
        if !changed {
            // The defaults of the LimitRange do not fit it, or a webhook adds what was removed.
            tracing::debug!(%error, "the namespace of the operator does not allow any such pod");
            return Ok(Answer::Accepted);
        }
    }
}

/// Dry-runs an archive pod. It does run in the operator's namespace: what that namespace does not allow blocks deletions, until an admin
/// changes that.
pub(super) async fn archive(client: &Client, namespace: &str, pod: &Pod) -> Result<Answer, CallError> {
    match once(client, namespace, &mut json!(pod)).await? {
        (Answer::Forbidden(_), Some(Local::Quota | Local::ServiceAccount)) => Ok(Answer::Accepted),
        (Answer::Forbidden(error), Some(Local::LimitRange)) => Ok(Answer::Limited(error.to_string())),
        (answer, _) => Ok(answer),
    }
}

async fn once(client: &Client, namespace: &str, pod: &mut Value) -> Result<(Answer, Option<Local>), CallError> {
    pod["metadata"]["generateName"] = json!("class-dry-run-");
    let Err(error) = requests::create_strictly::<Pod>(client, namespace, pod, true).await else { return Ok((Answer::Accepted, None)) };
    let message = error.to_string();
    match classify(&error) {
        ErrorClass::Invalid => Ok((Answer::Invalid(message), None)),
        ErrorClass::Forbidden if message.contains("violates PodSecurity") => Ok((Answer::PodSecurity(message), None)),
        ErrorClass::Forbidden => Ok((Answer::Forbidden(error), local(&message))),
        _ => Err(error),
    }
}

/// Removes fields; whether there were any.
fn without(object: &mut Value, names: &[&str]) -> bool {
    let Some(fields) = object.as_object_mut() else { return false };
    let before = fields.len();
    fields.retain(|name, _| !names.contains(&name.as_str()));
    fields.len() < before
}

fn without_resources(pod: &mut Value) -> bool {
    let mut changed = without(&mut pod["spec"], &["resources", "overhead"]);
    for kind in ["containers", "initContainers"] {
        for container in pod["spec"][kind].as_array_mut().into_iter().flatten() {
            changed |= without(container, &["resources"]);
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_namespace_are_distinguished_from_others() {
        let forbidden = |why: &str| local(&format!("pods \"x\" is forbidden: {why} (403)"));
        for (why, expected) in [
            ("exceeded quota: q, requested: cpu=1, used: cpu=1, limited: cpu=1", Some(Local::Quota)),
            ("failed quota: q: must specify limits.cpu for: a", Some(Local::Quota)),
            ("maximum memory usage per Container is 512Mi, but limit is 1Gi", Some(Local::LimitRange)),
            ("[minimum cpu usage per Pod is 1.  No request is specified]", Some(Local::LimitRange)),
            ("cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000", Some(Local::LimitRange)),
            ("error looking up service account op/sa: serviceaccount \"sa\" not found", Some(Local::ServiceAccount)),
            ("no PriorityClass with name quota was found", None),
        ] {
            assert_eq!(forbidden(why), expected, "{why}");
        }
        assert_eq!(local("admission webhook \"quota.example\" denied the request: pods \"x\" is forbidden: exceeded quota: q"), None);
    }
}
