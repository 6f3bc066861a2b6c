//! Extension: `GET /api/v0/deletions`: what is being deleted in a namespace, and what was deleted, newest first. It is read from the records, which are
//! kept for 30 days after the end of a deletion.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::deletion::{ArchiveReport, ReceiptReport};
use crate::credentials::ComputerId;
use crate::http::Shared;
use crate::http::access::{self, Target};
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Params;
use crate::http::lived_in::{self, LivedIn};
use crate::http::sessions::list::{Pagination, limit};
use crate::resources::conditions::types::BLOCKED;
use crate::resources::{Computer, ComputerRecord, Deletion, RecordPhase};

/// Parameters of the list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct DeletionListParams {
    /// Page size, 1 to 100.
    #[param(default = "20", pattern = "^([1-9]|[1-9][0-9]|100)$")]
    limit: Option<String>,
    /// `nextCursor` of the previous page.
    cursor: Option<String>,
    /// Only deletions in this state.
    #[param(inline)]
    state: Option<ListedState>,
    /// The namespace to list. Defaults to the caller's own.
    #[param(min_length = 1, max_length = 63)]
    namespace: Option<String>,
}

/// The state of a deletion in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ListedState {
    /// In progress.
    Deleting,
    /// In progress, and waits for something that does not happen by itself; `reason` says what.
    Blocked,
    /// Complete.
    Deleted,
}

/// A deletion in the list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedDeletion {
    /// The id of the computer. `/deletion` and `/archive` of that id say more.
    pub computer_id: String,
    /// Name of the computer.
    pub name: String,
    /// UID of the computer.
    pub uid: String,
    /// The state.
    pub state: ListedState,
    /// Why it is blocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the deletion began, in Unix milliseconds.
    pub deleted_at: i64,
    /// The cause of the deletion.
    pub cause: String,
    /// The archive, once it has been verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveReport>,
    /// The receipt, once it has been stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<ReceiptReport>,
}

/// A page of deletions.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DeletionList {
    /// The deletions.
    pub deletions: Vec<ListedDeletion>,
    /// How to get the next page.
    pub pagination: Pagination,
}

/// List deletions
///
/// Lists what is being deleted or was deleted in a namespace, newest first, as long as the records are kept.
#[utoipa::path(
    get, path = "/api/v0/deletions", operation_id = "listDeletions", tag = "Computers", params(DeletionListParams),
    responses(
        (status = 200, description = "Extension: a page of deletions", body = DeletionList),
        (status = 400, description = "A parameter is invalid", body = ErrorBody),
        (status = 403, description = "The caller may not list computers", body = ErrorBody),
        (status = 404, description = "The key of a computer was used for another namespace", body = ErrorBody),
    )
)]
pub async fn list_deletions(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Params(params): Params<DeletionListParams>,
) -> Result<Json<DeletionList>, ApiError> {
    let limit = limit(params.limit.as_deref())?;
    let after = params.cursor.as_deref().map(|cursor| {
        decode(cursor).ok_or_else(|| ApiError::invalid("cursor is invalid: use the nextCursor of the previous page, or omit it"))
    });
    let after = after.transpose()?;
    let namespace = caller.namespace(params.namespace.as_deref())?;
    access::require(&shared, &caller, "list", Target { resource: "computers", namespace: &namespace, name: None }).await?;
    let mut all = visible(&shared, &caller, &namespace).await?;
    if params.state != Some(ListedState::Deleted) && all.iter().any(|d| d.state == ListedState::Deleting) {
        note_blocked(&mut all, &blocked(&shared, &namespace).await?);
    }
    all.retain(|deletion| params.state.is_none_or(|state| deletion.state == state));
    Ok(Json(page(all, after.as_ref(), limit)))
}

/// Notes which deletions are blocked, by the reasons for each UID.
fn note_blocked(all: &mut [ListedDeletion], blocked: &HashMap<String, String>) {
    for deletion in all.iter_mut().filter(|d| d.state == ListedState::Deleting) {
        if let Some(reason) = blocked.get(&deletion.uid) {
            (deletion.state, deletion.reason) = (ListedState::Blocked, Some(reason.clone()));
        }
    }
}

/// The deletions of a namespace that the caller may see. Those of an earlier namespace with the same name are visible only to callers who may list
/// computers in all namespaces.
async fn visible(shared: &Shared, caller: &Caller, namespace: &str) -> Result<Vec<ListedDeletion>, ApiError> {
    let (now, everywhere) = tokio::join!(lived_in::live(shared, namespace), lived_in::everywhere(shared, caller, ("list", "computers")));
    let (now, everywhere) = (now?, everywhere?);
    let pick = |record: ListedRecord| {
        let lived_in = LivedIn { uid: record.spec.namespace_uid.as_deref(), recorded: record.metadata.creation_timestamp.as_ref() };
        let seen = everywhere || now.as_ref().is_some_and(|now| lived_in.is(now));
        record.spec.state.deletion.is_some().then_some(record).filter(|_| seen).and_then(ListedRecord::shown)
    };
    // A namespace is a DNS label, so it cannot change the selector.
    let selected = (shared.namespace.as_str(), format!("spec.namespace={namespace}"));
    let listed = shared.computer_pages.list_for::<ComputerRecord, _, _>(&shared.client, namespace, (selected.0, &selected.1), pick).await;
    listed.map_err(|e| ApiError::from_call(&e, "namespace", "listing the deletions"))
}

/// The UIDs of computers whose deletion is blocked, and the reasons.
async fn blocked(shared: &Shared, namespace: &str) -> Result<HashMap<String, String>, ApiError> {
    let pick = |computer: ListedStatus| {
        computer.metadata.deletion_timestamp.as_ref()?;
        let condition = computer.status?.conditions.into_iter().find(|c| c.type_ == BLOCKED && c.status == "True")?;
        Some((computer.metadata.uid?, condition.reason))
    };
    let listed = shared.computer_pages.list::<Computer, _, _>(&shared.client, namespace, pick).await;
    Ok(listed.map_err(|e| ApiError::from_call(&e, "computer", "listing the computers"))?.into_iter().collect())
}

/// The used fields of a record.
#[derive(Clone, Debug, Deserialize)]
struct ListedRecord {
    metadata: ListedMetadata,
    spec: ListedSpec,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedMetadata {
    #[serde(default)]
    name: String,
    uid: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedSpec {
    namespace: String,
    namespace_uid: Option<String>,
    computer: String,
    #[serde(default)]
    state: ListedRecordState,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct ListedRecordState {
    #[serde(default)]
    phase: RecordPhase,
    deletion: Option<Deletion>,
}

/// The used fields of a computer that is being deleted.
#[derive(Clone, Debug, Deserialize)]
struct ListedStatus {
    metadata: ListedMetadata,
    status: Option<ListedConditions>,
}

#[derive(Clone, Debug, Deserialize)]
struct ListedConditions {
    #[serde(default)]
    conditions: Vec<Condition>,
}

impl ListedRecord {
    fn shown(self) -> Option<ListedDeletion> {
        let deletion = self.spec.state.deletion?;
        let id = ComputerId { namespace: self.spec.namespace, name: self.spec.computer, uid: self.metadata.name };
        Some(ListedDeletion {
            computer_id: id.encode(),
            name: id.name,
            uid: id.uid,
            state: if self.spec.state.phase == RecordPhase::Released { ListedState::Deleted } else { ListedState::Deleting },
            reason: None,
            deleted_at: deletion.deleted_at.0.as_millisecond(),
            cause: deletion.cause.as_str().to_owned(),
            archive: deletion.archive.as_ref().map(ArchiveReport::of),
            receipt: deletion.receipt.as_ref().map(ReceiptReport::of),
        })
    }
}

/// Newest first; stays valid when deletions begin between two pages.
type Position = (Reverse<i64>, String);

fn position(deletion: &ListedDeletion) -> Position {
    (Reverse(deletion.deleted_at), deletion.uid.clone())
}

fn decode(cursor: &str) -> Option<Position> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    let (deleted_at, uid) = text.split_once('/')?;
    Some((Reverse(deleted_at.parse().ok()?), uid.to_owned()))
}

fn page(mut all: Vec<ListedDeletion>, after: Option<&Position>, limit: usize) -> DeletionList {
    all.sort_by_cached_key(position);
    all.retain(|deletion| after.is_none_or(|after| position(deletion) > *after));
    let has_more = all.len() > limit;
    all.truncate(limit);
    let last = all.last().filter(|_| has_more).map(|last| format!("{}/{}", last.deleted_at, last.uid));
    let next_cursor = last.map(|text| URL_SAFE_NO_PAD.encode(text));
    DeletionList { deletions: all, pagination: Pagination { has_more, next_cursor } }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deletion(n: i64) -> ListedDeletion {
        let record = json!({"metadata": {"name": format!("uid-{n:02}")}, "spec": {"namespace": "t", "computer": "c",
            "state": {"deletion": {"deletedAt": format!("2026-01-01T00:00:{:02}Z", n / 3), "cause": "ComputerDeleted"}}}});
        serde_json::from_value::<ListedRecord>(record).unwrap().shown().unwrap()
    }

    /// L2: the list says which deletions are blocked, and why.
    #[test]
    fn a_blocked_deletion_has_its_reason() {
        let mut all = vec![deletion(1), deletion(2), ListedDeletion { state: ListedState::Deleted, ..deletion(3) }];
        let reasons = [("uid-02", "StoreUnavailable"), ("uid-03", "ArchiveFailed")];
        note_blocked(&mut all, &reasons.map(|(uid, reason)| (uid.to_owned(), reason.to_owned())).into());
        let shown: Vec<_> = all.iter().map(|d| (d.state, d.reason.as_deref())).collect();
        assert_eq!(shown, [(ListedState::Deleting, None), (ListedState::Blocked, Some("StoreUnavailable")), (ListedState::Deleted, None)]);
    }

    #[test]
    fn pages_contain_every_deletion_once_and_newest_first() {
        let all: Vec<_> = (0..25).map(deletion).collect();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let list = page(all.clone(), after.as_ref(), 7);
            seen.extend(list.deletions.iter().map(position));
            assert_eq!(list.pagination.has_more, list.pagination.next_cursor.is_some());
            let Some(cursor) = list.pagination.next_cursor else { break };
            after = Some(decode(&cursor).unwrap());
        }
        assert!(seen.len() == 25 && seen.windows(2).all(|w| w[0] < w[1]), "{seen:?}");
        assert!(decode("x").is_none() && decode("").is_none());
    }
}
