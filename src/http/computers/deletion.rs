//! Extension: `GET /api/v0/computers/{computerId}/deletion`: the progress of a deletion, and its receipt once it is complete. It is read from the record,
//! which outlives the computer and its namespace.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::wire::WireStep;
use crate::credentials::ComputerId;
use crate::http::Shared;
use crate::http::access::{self, Target};
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Id;
use crate::resources::steps::{DeletionStep, Sequence, StepResult};
use crate::resources::{Computer, ComputerRecord, Deletion};
use crate::runtime::client::{ErrorClass, call, classify};

/// A deletion.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeletionReport {
    /// The id of the computer.
    pub computer_id: String,
    /// Whether the deletion is complete.
    pub state: DeletionState,
    /// When the deletion began, in Unix milliseconds. The key is invalid from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<i64>,
    /// The cause of the deletion, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The steps, in order.
    pub steps: Vec<WireStep>,
    /// The archive, once it has been verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveReport>,
    /// The receipt, once it has been stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<ReceiptReport>,
}

/// The state of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeletionState {
    /// In progress.
    Deleting,
    /// Complete: everything is gone and the receipt is stored.
    Deleted,
}

/// The archive of a deleted computer.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveReport {
    /// SHA-256 of the manifest.
    pub manifest_digest: String,
    /// Number of sessions.
    pub sessions: i64,
    /// Size in the store in bytes.
    pub bytes: i64,
    /// Number of files that could not be read; the manifest lists them.
    pub problems: i64,
}

/// The receipt of a deletion.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptReport {
    /// SHA-256 of the receipt.
    pub digest: String,
    /// When it was written, in Unix milliseconds.
    pub written_at: i64,
}

/// Follow a deletion
#[utoipa::path(
    get, path = "/api/v0/computers/{computerId}/deletion", operation_id = "getComputerDeletion", tag = "Computers",
    params(("computerId" = String, Path, description = "Computer ID")),
    responses(
        (status = 200, description = "Extension: the deletion of this computer", body = DeletionReport),
        (status = 401, description = "Missing or invalid credential", body = ErrorBody),
        (status = 404, description = "The computer is unknown or not being deleted, or the caller may not see it", body = ErrorBody),
        (status = 500, description = "The request failed, or its outcome is unknown", body = ErrorBody),
    )
)]
pub async fn get_computer_deletion(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<DeletionReport>, ApiError> {
    super::permit(&shared, &caller, "get", &id).await?;
    let (record, computer) = tokio::join!(super::delete::record(&shared, &id), super::find(&shared, &id));
    let (record, computer) = (record?, computer?);
    if computer.is_none()
        && let Some(record) = &record
    {
        same_tenant(&shared, &caller, &id, record).await?;
    }
    let computer = computer.filter(super::wire::is_deleted);
    let report = report(id.encode(), record.as_ref(), computer.as_ref());
    report.map(Json).ok_or_else(|| ApiError::not_found("deletion"))
}

/// Protects the records of a deleted namespace. A recreated namespace may belong to another tenant, and a deleted one grants no permissions; the records
/// are then visible only to callers who may get computers in all namespaces.
async fn same_tenant(shared: &Shared, caller: &Caller, id: &ComputerId, record: &ComputerRecord) -> Result<(), ApiError> {
    let namespaces: Api<Namespace> = Api::all(shared.client.clone());
    let lived_in = match call(namespaces.get(&id.namespace)).await {
        Ok(namespace) => is_namespace_of(&namespace, record),
        Err(error) if classify(&error) == ErrorClass::NotFound => false,
        Err(error) => return Err(ApiError::from_call(&error, "deletion", "reading the namespace")),
    };
    let everywhere = Target { resource: "computers", namespace: "", name: None };
    if lived_in || access::may(shared, caller, "get", everywhere).await? {
        return Ok(());
    }
    Err(ApiError::not_found("deletion"))
}

/// Whether a namespace is the one that the computer lived in. A record of an earlier version does not have its UID; it is not older than the namespace.
fn is_namespace_of(namespace: &Namespace, record: &ComputerRecord) -> bool {
    match &record.spec.namespace_uid {
        Some(uid) => namespace.metadata.uid.as_ref() == Some(uid),
        None => {
            let times = namespace.metadata.creation_timestamp.as_ref().zip(record.metadata.creation_timestamp.as_ref());
            times.is_some_and(|(made, recorded)| made.0 <= recorded.0)
        }
    }
}

/// Builds the report. The steps come from the status of the Computer, which says why a step waits, or from the record once the Computer is gone.
fn report(computer_id: String, record: Option<&ComputerRecord>, computer: Option<&Computer>) -> Option<DeletionReport> {
    let deletion = record.and_then(|r| r.spec.state.deletion.as_ref());
    if deletion.is_none() && computer.is_none() {
        return None;
    }
    let status = computer.and_then(|c| c.status.as_ref());
    let from_status = status.map(|s| s.deletion_steps.iter().map(WireStep::from).collect::<Vec<_>>()).filter(|s| !s.is_empty());
    let marked = computer.and_then(|c| c.metadata.deletion_timestamp.as_ref());
    let released = record.is_some_and(super::delete::is_released) && computer.is_none();
    Some(DeletionReport {
        computer_id,
        state: if released { DeletionState::Deleted } else { DeletionState::Deleting },
        deleted_at: deletion.map(|d| &d.deleted_at).or(marked).map(|t| t.0.as_millisecond()),
        cause: deletion.map(|d| d.cause.as_str().to_owned()),
        steps: from_status.unwrap_or_else(|| recorded(deletion)),
        archive: deletion.and_then(|d| d.archive.as_ref()).map(|a| ArchiveReport {
            manifest_digest: a.manifest_digest.clone(),
            sessions: a.sessions,
            bytes: a.bytes,
            problems: a.problems,
        }),
        receipt: deletion
            .and_then(|d| d.receipt.as_ref())
            .map(|r| ReceiptReport { digest: r.digest.clone(), written_at: r.at.0.as_millisecond() }),
    })
}

fn recorded(deletion: Option<&Deletion>) -> Vec<WireStep> {
    let step = |step: &DeletionStep| {
        let outcome = deletion.and_then(|d| d.steps.get(*step));
        let ended = deletion.and_then(|d| d.finished_at(*step));
        let skipped = outcome.is_some_and(|o| o.result != StepResult::Verified);
        let status = match ended {
            None => "pending",
            Some(_) if skipped => "skipped",
            Some(_) => "completed",
        };
        WireStep {
            id: step.id().to_owned(),
            name: step.title().to_owned(),
            status: status.to_owned(),
            error: None,
            started_at: None,
            completed_at: ended.map(|t| t.0.as_millisecond()),
        }
    };
    DeletionStep::ALL.iter().map(step).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    /// S13: a record with a UID is never given to a namespace that only has the right name and age.
    #[test]
    fn the_uid_of_the_namespace_decides_and_its_age_only_without_one() {
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"name": "t", "uid": "n", "creationTimestamp": "2026-01-01T00:00:10Z"}})).unwrap();
        let of = |uid: Option<&str>, at: &str| {
            let spec = json!({"namespace": "t", "namespaceUid": uid, "computer": "c"});
            let record = json!({"metadata": {"name": "u", "creationTimestamp": at}, "spec": spec});
            is_namespace_of(&namespace, &serde_json::from_value(record).unwrap())
        };
        assert!(of(Some("n"), "2026-01-01T00:00:10Z") && !of(Some("other"), "2026-01-01T00:00:10Z"));
        assert!(of(None, "2026-01-01T00:00:10Z") && !of(None, "2026-01-01T00:00:09Z"));
    }
}
