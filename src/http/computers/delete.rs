//! `DELETE /api/v0/computers/{computerId}`, which is final. It must respond with 204 only once the Computer is being deleted on the API server and its
//! record is a tombstone: then its key is revoked on every replica (S2), and the reconciler completes the deletion, however long that takes.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::FutureExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::wait::{await_condition, conditions};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use crate::archive::manifest::WHOLE_HOME;
use crate::credentials::ComputerId;
use crate::http::Shared;
use crate::http::auth::Authenticated;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::{Id, Params};
use crate::resources::{ArchivePolicy, Computer, ComputerRecord, ComputerRecordSpec, CredentialState, Provider, RecordPhase, Snapshot};
use crate::runtime::client::{CallError, ErrorClass, call, classify};
use crate::runtime::patch;

/// Header of a 204 response: whether the deletion is complete.
const STATE: HeaderName = HeaderName::from_static("deletion-state");

/// Extensions of the published operation. Without them it behaves as published.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct DeleteParameters {
    /// Extension: with `All` nothing is deleted, and the response is 200 with what would be revoked, archived and deleted.
    #[param(inline)]
    dry_run: Option<DryRun>,
    /// Extension: wait up to this many seconds, 1 to 300, for the end of the deletion; less if many requests wait. The response is 204 in any case, and the
    /// header `Deletion-State` is `Completed` or `InProgress`.
    #[param(minimum = 1, maximum = 300)]
    wait: Option<u64>,
}

/// As in the Kubernetes API.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
pub enum DryRun {
    /// Perform no change.
    All,
}

/// What a deletion would do.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeletionPreview {
    /// The id of the computer.
    pub computer_id: String,
    /// Whether a key would be revoked, including one that is still being issued. `false` if the key is already revoked.
    pub revokes_key: bool,
    /// `Required`, `BestEffort` or `None`; omitted if there is no home to archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive_policy: Option<String>,
    /// Directories below the home that would be archived; `.` is the whole home. Empty if nothing would be archived.
    pub archived_paths: Vec<String>,
    /// Descriptions of what would not be archived and what happens to it.
    pub not_archived: Vec<String>,
    /// Pods that would be stopped and deleted.
    pub deleted_pods: Vec<String>,
    /// The `PersistentVolumeClaim` that would be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_claim: Option<String>,
    /// The PersistentVolume of the home.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// The original reclaim policy of the volume, `Delete` or `Retain`, which decides what happens to it in the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_reclaim_policy: Option<String>,
}

/// A 204 response has no body; the published document describes it as an empty object.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DeleteComputer204ResponseBody)]
pub struct Nothing {}

/// Delete a computer
///
/// Terminal deletion: sets `deletedAt`, revokes the API key, archives sessions, and tears down provider resources for managed
/// computers. Cannot be undone.
#[utoipa::path(
    delete, path = "/api/v0/computers/{computerId}", operation_id = "deleteComputer", tag = "Computers",
    params(
        ("computerId" = String, Path, description = "Computer ID"),
        DeleteParameters,
        ("If-Match" = Option<String>, Header, description = "Extension: the expected `ETag` of the computer"),
    ),
    responses(
        (status = 200, description = "Extension: the effects of the deletion, with `dryRun=All`", body = DeletionPreview),
        (status = 204, description = "The key is revoked, and the deletion has been durably started", body = Nothing),
        (status = 400, description = "Extension: `dryRun` or `wait` is invalid", body = ErrorBody),
        (status = 404, description = "The computer does not exist, or the caller may not delete it", body = ErrorBody),
        (status = 409, description = "Extension: the computer is protected from deletion, or it keeps changing with If-Match", body = ErrorBody),
        (status = 412, description = "Extension: the computer does not match If-Match", body = ErrorBody),
        (status = 500, description = "The request failed, or its outcome is unknown. Retry it", body = ErrorBody),
    )
)]
pub async fn delete_computer(
    State(shared): State<Arc<Shared>>,
    by: Authenticated,
    Id(id): Id,
    Params(params): Params<DeleteParameters>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if params.wait.is_some_and(|s| !(1..=300).contains(&s)) {
        return Err(ApiError::invalid("wait is invalid: it must be 1 to 300 seconds"));
    }
    let review = super::permit_hidden(&shared, &by.caller, "delete", &id).boxed();
    let computer = super::read_reviewed(&shared, (&by.caller, by.own), &id, review).await.map_err(published)?;
    let computer = computer.ok_or_else(|| ApiError::not_found("computer"))?;
    let deleting = super::wire::is_deleted(&computer);
    if !deleting {
        super::check_match(&headers, &computer)?;
        protected(&computer)?;
    }
    if params.dry_run.is_some() {
        let record = record(&shared, &id).await.map_err(published)?;
        return Ok(Json(preview(&id, &computer, record.as_ref())).into_response());
    }
    if !deleting {
        delete(&shared, &id, &headers, computer).await?;
    }
    tombstone(&shared, &id).await.map_err(published)?;
    let state = finished(&shared, &id, params.wait).await;
    Ok((StatusCode::NO_CONTENT, [(STATE, HeaderValue::from_static(state))]).into_response())
}

/// An error that clients of the published operation know: 401, 404 or 500. An answer of the Kubernetes API
/// that no request of this operation should get is 500. The other codes of this operation belong to its extensions.
fn published(error: ApiError) -> ApiError {
    match error.status() {
        StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND | StatusCode::INTERNAL_SERVER_ERROR => error,
        _ => error.into_internal(),
    }
}

fn protected(computer: &Computer) -> Result<(), ApiError> {
    if computer.spec.deletion_protection {
        return Err(ApiError::conflict("the computer is protected from deletion: set spec.deletionProtection to false and retry"));
    }
    Ok(())
}

/// Deletes exactly this computer; with `If-Match`, only the version that was read. A computer that is already gone counts as deleted.
async fn delete(shared: &Shared, id: &ComputerId, headers: &HeaderMap, mut computer: Computer) -> Result<(), ApiError> {
    let exact = headers.contains_key(axum::http::header::IF_MATCH);
    for _ in 0..super::TRIES {
        let resource_version = computer.metadata.resource_version.filter(|_| exact);
        let preconditions = Preconditions { uid: Some(id.uid.clone()), resource_version };
        let params = DeleteParams::background().preconditions(preconditions);
        match call(shared.computers(&id.namespace).delete(&id.name, &params)).await {
            Ok(_) => return Ok(()),
            Err(error) => match classify(&error) {
                // Neither proves that the computer is gone, because an admission webhook may reject with any code. A read does.
                ErrorClass::NotFound | ErrorClass::Conflict => {}
                // 409 if an admission policy protects the computer.
                ErrorClass::Forbidden => return Err(ApiError::from_call(&error, "computer", "deleting the computer")),
                _ => return Err(published(ApiError::from_call(&error, "computer", "deleting the computer"))),
            },
        }
        // Usually the operator has only updated the status; the check of If-Match decides about other changes.
        computer = match super::find(shared, id).await.map_err(published)? {
            Some(now) if !super::wire::is_deleted(&now) => now,
            _ => return Ok(()),
        };
        super::check_match(headers, &computer)?;
        protected(&computer)?;
    }
    let busy = ApiError::conflict("other clients keep changing the computer: retry the request");
    Err(if exact { busy } else { published(busy) })
}

/// Reads the record of a computer, if it exists.
pub(in crate::http) async fn record(shared: &Shared, id: &ComputerId) -> Result<Option<ComputerRecord>, ApiError> {
    let records: Api<ComputerRecord> = Api::namespaced(shared.client.clone(), &shared.namespace);
    let ours = |r: &ComputerRecord| r.spec.namespace == id.namespace && r.spec.computer == id.name;
    match call(records.get(&id.uid)).await {
        Ok(record) => Ok(Some(record).filter(ours)),
        Err(error) if classify(&error) == ErrorClass::NotFound => Ok(None),
        Err(error) => Err(ApiError::from_call(&error, "computer", "reading the record")),
    }
}

/// Revokes the key in the record, so that it stays revoked whatever happens to the Computer. Without a record no key was ever issued. The record is read
/// only if the API server refuses the change; it writes nothing if the key is revoked already. A record that was created after a first refusal is changed
/// again.
async fn tombstone(shared: &Shared, id: &ComputerId) -> Result<(), ApiError> {
    let records: Api<ComputerRecord> = Api::namespaced(shared.client.clone(), &shared.namespace);
    let patch = Patch::<()>::Json(json_patch::Patch(vec![
        patch::test(["spec", "namespace"], json!(id.namespace)),
        patch::test(["spec", "computer"], json!(id.name)),
        patch::add(["spec", "state", "credential"], json!(CredentialState::Revoked)),
    ]));
    for last in [false, true] {
        let Err(error) = call(records.patch(&id.uid, &PatchParams::default(), &patch)).await else { return Ok(()) };
        if !matches!(error, CallError::Kube(kube::Error::Api(_))) {
            return Err(ApiError::from_call(&error, "computer", "revoking the key"));
        }
        // No refusal proves that the record is gone or another computer's, because an admission webhook may reject with any code. A read does.
        let live = record(shared, id).await?.is_some_and(|record| record.spec.state.credential != CredentialState::Revoked);
        if !live {
            return Ok(());
        }
        if last {
            tracing::error!(%error, uid = id.uid, "revoking the key failed");
        }
    }
    Err(ApiError::internal(
        "the computer is being deleted, but its key is not revoked yet: the Kubernetes API rejected the change of its record. Retry the request",
    ))
}

/// How often the record is read once the Computer is gone.
const POLL: Duration = Duration::from_secs(1);

/// Waits for the end of the deletion, unless the process is shutting down or too many requests wait already. An unknown state is never reported as
/// `Completed`. The Computer can be gone earlier, if its namespace was released before its sessions were archived or its finalizer was removed by hand;
/// only the record proves the end.
pub(super) async fn finished(shared: &Shared, id: &ComputerId, wait: Option<u64>) -> &'static str {
    let Some(seconds) = wait else { return "InProgress" };
    let Ok(_turn) = shared.waiting.try_acquire() else { return "InProgress" };
    let complete = async {
        await_condition(shared.computers(&id.namespace), &id.name, conditions::is_deleted(&id.uid)).await.ok()?;
        while !matches!(record(shared, id).await, Ok(record) if record.as_ref().is_none_or(is_released)) {
            tokio::time::sleep(POLL).await;
        }
        Some("Completed")
    };
    tokio::select! {
        Some(state) = complete => state,
        () = tokio::time::sleep(Duration::from_secs(seconds)) => "InProgress",
        () = shared.stop.cancelled() => "InProgress",
    }
}

/// Whether the record says that the deletion is complete.
pub(super) fn is_released(record: &ComputerRecord) -> bool {
    record.spec.state.phase == RecordPhase::Released
}

fn preview(id: &ComputerId, computer: &Computer, record: Option<&ComputerRecord>) -> DeletionPreview {
    // Without a record the key has not been issued yet, and will not be once the deletion has begun.
    let dead = |r: &ComputerRecord| r.spec.state.credential == CredentialState::Revoked || r.spec.state.key_hash.is_none();
    let revokes_key = !super::wire::is_deleted(computer) && !record.is_some_and(dead);
    let mut preview = DeletionPreview { computer_id: id.encode(), revokes_key, ..DeletionPreview::default() };
    let Some(spec) = record.map(|r| &r.spec) else {
        let unknown = "Not known yet: the operator has not recorded the archive settings of this computer's class. Retry the request.";
        preview.not_archived = vec![if computer.spec.provider == Provider::BYOM { OWN_MACHINE } else { unknown }.to_owned()];
        return preview;
    };
    let children = &spec.state.children;
    if computer.spec.provider == Provider::Managed {
        preview.archive_policy = Some(spec.snapshot.archive.policy.as_str().to_owned());
        preview.archived_paths = archived_paths(&spec.snapshot);
    }
    preview.deleted_pods = children.pods.iter().map(|p| p.name.clone()).collect();
    preview.deleted_claim.clone_from(&children.claim_name);
    preview.volume = children.volume.as_ref().map(|v| v.name.clone());
    preview.volume_reclaim_policy = children.volume.as_ref().map(|v| v.original_reclaim_policy.clone());
    preview.not_archived = not_archived(&preview, spec);
    preview
}

/// The archived paths. A record that replaces a lost one has no paths; then the whole home is archived.
fn archived_paths(snapshot: &Snapshot) -> Vec<String> {
    match &snapshot.session_paths {
        _ if snapshot.archive.policy == ArchivePolicy::None => Vec::new(),
        paths if paths.is_empty() => vec![WHOLE_HOME.to_owned()],
        paths => paths.clone(),
    }
}

/// The effect of a deletion on a BYOM machine.
const OWN_MACHINE: &str = "Nothing on the machine is archived or deleted, because its provider is BYOM. Only its key is revoked.";

/// Describes the data that a deletion does not archive, because a deletion cannot be undone.
fn not_archived(preview: &DeletionPreview, spec: &ComputerRecordSpec) -> Vec<String> {
    if spec.provider == Provider::BYOM || preview.archive_policy.is_none() {
        return vec![OWN_MACHINE.to_owned()];
    }
    let fate = match preview.volume_reclaim_policy.as_deref() {
        Some("Retain") => "it is kept on the volume, whose reclaim policy is Retain",
        _ => "it is destroyed with the volume",
    };
    let mut lost = Vec::new();
    if preview.archived_paths.is_empty() {
        lost.push(format!("The whole home, because the archive policy of the class is None: {fate}."));
        return lost;
    }
    if !preview.archived_paths.iter().any(|path| path == WHOLE_HOME) {
        lost.push(format!("Everything in the home outside of {}: {fate}.", preview.archived_paths.join(", ")));
    }
    lost.push("The targets of symbolic links: links are archived but not followed. Sockets, FIFOs and devices are only listed.".to_owned());
    lost.push("Extended attributes, ACLs and access times.".to_owned());
    if !spec.snapshot.archive.blocks_unreadable() {
        lost.push("Files that the machine's user cannot read: they are listed in the manifest, and the deletion continues.".to_owned());
    }
    if spec.snapshot.archive.policy == ArchivePolicy::BestEffort {
        lost.push(format!(
            "Everything, if for {} s in total no archive can be made, because the archive policy of the class is BestEffort.",
            spec.snapshot.deadlines.archive_sessions_seconds
        ));
    }
    lost
}

#[cfg(test)]
mod published_codes_tests;
#[cfg(test)]
mod tests;
