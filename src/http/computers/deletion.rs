//! Extension: `GET /api/v0/computers/{computerId}/deletion`: the progress of a deletion, and its receipt once it is complete. It is read from the record,
//! which outlives the computer and its namespace.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use futures::FutureExt as _;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::wire::WireStep;
use crate::http::Shared;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Id;
use crate::http::lived_in::{self, LivedIn};
use crate::resources::steps::{DeletionStep, Sequence, StepResult};
use crate::resources::{ArchiveResult, Computer, ComputerRecord, Deletion, Receipt};

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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
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
        (status = 404, description = "The computer is unknown or not being deleted, or the caller may not see it", body = ErrorBody),
    )
)]
pub async fn get_computer_deletion(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<DeletionReport>, ApiError> {
    let (server, of) = (Arc::clone(&shared), id.clone());
    let read = async move {
        let (record, computer) = tokio::join!(super::delete::record(&server, &of), super::find(&server, &of));
        Ok::<_, ApiError>((record?, computer?))
    }
    .boxed();
    let review = super::permit(&shared, &caller, "get", &id).boxed();
    let (record, computer) = match &caller {
        Caller::User(_) => shared.ahead.read(review, read).await?,
        Caller::Computer(..) => {
            review.await?;
            read.await?
        }
    };
    if computer.is_none()
        && let Some(record) = &record
    {
        let permitted = lived_in::permits(&shared, &caller, ("get", "computers"), &id.namespace, LivedIn::of(record)).await?;
        permitted.then_some(()).ok_or_else(|| ApiError::not_found("deletion"))?;
    }
    let computer = computer.filter(super::wire::is_deleted);
    let report = report(id.encode(), record.as_ref(), computer.as_ref());
    report.map(Json).ok_or_else(|| ApiError::not_found("deletion"))
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
        archive: deletion.and_then(|d| d.archive.as_ref()).map(ArchiveReport::of),
        receipt: deletion.and_then(|d| d.receipt.as_ref()).map(ReceiptReport::of),
    })
}

impl ArchiveReport {
    pub(super) fn of(a: &ArchiveResult) -> Self {
        Self { manifest_digest: a.manifest_digest.clone(), sessions: a.sessions, bytes: a.bytes, problems: a.problems }
    }
}

impl ReceiptReport {
    pub(super) fn of(r: &Receipt) -> Self {
        Self { digest: r.digest.clone(), written_at: r.at.0.as_millisecond() }
    }
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
