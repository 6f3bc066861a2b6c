//! The dry run of a class's pods in the operator's namespace, with strict field validation. It must never create an object.
//!
//! Machines run in the tenants' namespaces. What only the operator's namespace refuses (a quota, a `LimitRange`, a `ServiceAccount` that it does
//! not have) says nothing about a class: the dry run is repeated without it, so that the API server checks the rest.

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::{Value, json};

use crate::runtime::admission::{self, Plugin};
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

/// Dry-runs the pod of a machine.
pub(super) async fn machine(client: &Client, namespace: &str, mut pod: Value) -> Result<Answer, CallError> {
    loop {
        let (plugin, error) = match once(client, namespace, &mut pod).await? {
            (Answer::Forbidden(error), Some(plugin)) => (plugin, error),
            (answer, _) => return Ok(answer),
        };
        let changed = match plugin {
            // Quotas are checked last: everything else was valid.
            Plugin::Quota => return Ok(Answer::Accepted),
            Plugin::LimitRange => without_resources(&mut pod),
            Plugin::ServiceAccount => without(&mut pod["spec"], &["serviceAccountName", "serviceAccount"]),
            Plugin::PodSecurity => return Ok(Answer::PodSecurity(error.to_string())),
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
        (Answer::Forbidden(_), Some(Plugin::Quota | Plugin::ServiceAccount)) => Ok(Answer::Accepted),
        (Answer::Forbidden(error), Some(Plugin::LimitRange)) => Ok(Answer::Limited(error.to_string())),
        (answer, _) => Ok(answer),
    }
}

async fn once(client: &Client, namespace: &str, pod: &mut Value) -> Result<(Answer, Option<Plugin>), CallError> {
    pod["metadata"]["generateName"] = json!("class-dry-run-");
    let Err(error) = requests::create_strictly::<Pod>(client, namespace, pod, true).await else { return Ok((Answer::Accepted, None)) };
    let message = error.to_string();
    match classify(&error) {
        ErrorClass::Invalid => Ok((Answer::Invalid(message), None)),
        ErrorClass::Forbidden if message.contains("violates PodSecurity") => Ok((Answer::PodSecurity(message), None)),
        ErrorClass::Forbidden => Ok((Answer::Forbidden(error), admission::plugin(&message))),
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
