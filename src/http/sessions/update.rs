//! `PATCH /api/v0/sessions/{sessionId}`. What a caller declares (settings, title, path) goes to the spec; what the machine reports about itself (status,
//! last activity) goes to the status, and only with the computer's own key. Nothing is written that changes nothing.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jiff::Timestamp;
use json_patch::PatchOperation;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::one::{self, SessionId};
use super::wire::{self, WireSession, WireStatus};
use crate::http::Shared;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::{Body, word};
use crate::resources::{MANAGER, Session, SessionPhase, SessionStatus};
use crate::runtime::client::{ErrorClass, call, classify};
use crate::runtime::clock;
use crate::runtime::patch;

/// The changes. Omitted fields are not changed; at least one is required.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateSession {
    /// The new settings, which replace the old ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    session_settings: Option<Value>,
    /// Extension: the new title.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    title: Option<String>,
    /// Extension: the session's file or folder, relative to the home. After the deletion of the computer the session names its copy in the archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 1024, pattern = "^[^/].*$")]
    path: Option<String>,
    /// Extension, only with the key of its computer: what the session is doing.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "word")]
    status: Option<WireStatus>,
    /// Extension, only with the key of its computer: when something last happened in the session, in Unix milliseconds. It becomes `updatedAt`. A time in the
    /// future counts as now, an earlier time than the recorded one changes nothing, and one that is less than 10 s later is not recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_activity_at: Option<i64>,
}

/// Seconds within which another activity is not written.
const GRANULARITY: i64 = 10;

/// Update a session
///
/// `sessionSettings` is the published field. The others are extensions, for agents in a machine: they name the session and report what it does.
#[utoipa::path(
    patch, path = "/api/v0/sessions/{sessionId}", operation_id = "updateSession", tag = "Sessions", request_body = UpdateSession,
    params(("sessionId" = String, Path, description = "Session ID")),
    responses(
        (status = 200, description = "The updated session", body = WireSession),
        (status = 400, description = "The request is invalid", body = ErrorBody),
        (status = 403, description = "The caller may view but not change the session, or sets a field that only the key of its computer may set", body = ErrorBody),
        (status = 404, description = "The session does not exist, or the caller may not see it", body = ErrorBody),
        (status = 409, description = "The session was changed at the same time by another client", body = ErrorBody),
    )
)]
pub async fn update_session(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    SessionId(id): SessionId,
    Body(asked): Body<UpdateSession>,
) -> Result<Json<WireSession>, ApiError> {
    check(&asked)?;
    let mut session = super::permitted(&shared, &caller, "patch", &id).await?;
    let reports = asked.status.is_some() || asked.last_activity_at.is_some();
    if reports && !matches!(caller, Caller::Computer(..)) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "only the machine may report status and lastActivityAt: send them with the key of the session's computer, or leave them out",
        ));
    }
    let declared = declared(&session, &asked);
    if !declared.is_empty() {
        super::count_write(&shared, &caller, session.metadata.namespace.as_deref().unwrap_or_default())?;
        session = super::change(&shared, &session, declared).await?;
    }
    if reports {
        session = report(&shared, &caller, session, &asked).await?;
    }
    Ok(Json(wire::wire(&session, true)))
}

fn check(asked: &UpdateSession) -> Result<(), ApiError> {
    if json!(asked).as_object().is_none_or(serde_json::Map::is_empty) {
        return Err(ApiError::invalid("the request changes nothing: set sessionSettings, title, path, status or lastActivityAt"));
    }
    one::settings(asked.session_settings.as_ref())?;
    one::names(asked.title.as_deref(), asked.path.as_deref())
}

/// The operations on the spec; none if it is as asked.
fn declared(session: &Session, asked: &UpdateSession) -> Vec<PatchOperation> {
    let spec = &session.spec;
    let mut operations = Vec::new();
    if asked.session_settings.is_some() && asked.session_settings != spec.settings {
        operations.push(patch::add(["spec", "settings"], json!(asked.session_settings)));
    }
    if asked.title.is_some() && asked.title != spec.title {
        operations.push(patch::add(["spec", "title"], json!(asked.title)));
    }
    if asked.path.is_some() && asked.path != spec.path {
        operations.push(patch::add(["spec", "path"], json!(asked.path)));
    }
    operations
}

/// Maximum number of attempts when the session is changed at the same time.
const TRIES: usize = 5;

async fn report(shared: &Shared, caller: &Caller, mut session: Session, asked: &UpdateSession) -> Result<Session, ApiError> {
    let id = wire::id(&session);
    for _ in 0..TRIES {
        let Some(status) = reported(&session, asked, clock::now()) else { return Ok(session) };
        super::count_write(shared, caller, &id.namespace)?;
        // The version as well: the operator may have marked the session as archived since.
        let fence = [patch::same_uid(&session.metadata), patch::same_version(&session.metadata), patch::add(["status"], json!(status))];
        let patch = Patch::<()>::Json(json_patch::Patch(fence.into()));
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match call(shared.sessions(&id.namespace).patch_status(&id.name, &params, &patch)).await {
            Ok(changed) => return Ok(changed),
            Err(error) if matches!(classify(&error), ErrorClass::Invalid | ErrorClass::Conflict) => {
                let before = session.metadata.resource_version.clone();
                session = super::read(shared.sessions(&id.namespace), id.name.clone()).await?;
                if session.metadata.uid.as_deref() != Some(&id.uid) || wire::is_deleted(&session) {
                    return Err(ApiError::not_found("session"));
                }
                if session.metadata.resource_version == before {
                    return Err(ApiError::from_call(&error, "session", "changing the session"));
                }
            }
            Err(error) => return Err(ApiError::from_call(&error, "session", "changing the session")),
        }
    }
    Err(ApiError::conflict("other clients keep changing the session: retry the request"))
}

/// The status with what the machine reports. `None`: nothing changes.
fn reported(session: &Session, asked: &UpdateSession, now: Timestamp) -> Option<SessionStatus> {
    let old = session.status.clone().unwrap_or_default();
    if matches!(old.phase, Some(SessionPhase::Archived | SessionPhase::Ended)) {
        return None;
    }
    let phase = asked.status.map(SessionPhase::from).or(old.phase);
    let earliest = old.last_activity_time.as_ref().map_or(wire::created(session), |time| time.0.as_millisecond());
    let at = asked.last_activity_at.map(|at| at.min(now.as_millisecond()).max(earliest));
    // The API keeps whole seconds.
    let at = at.and_then(|at| Timestamp::from_second(at.div_euclid(1000)).ok()).map(Time);
    let recorded = |at: &Time| old.last_activity_time.as_ref().is_some_and(|old| at.0.duration_since(old.0).as_secs() < GRANULARITY);
    if phase == old.phase && at.as_ref().is_none_or(recorded) {
        return None;
    }
    Some(SessionStatus { phase, last_activity_time: at.max(old.last_activity_time.clone()), ..old })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Created at second 1000.
    fn session(status: &Value) -> Session {
        let created = Time(Timestamp::from_second(1000).unwrap());
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "t", "uid": "u", "creationTimestamp": created},
            "spec": {"computerName": "c", "computerUID": "u", "title": "t", "path": "p"}, "status": status}))
        .unwrap()
    }

    fn after(status: &Value, asked: Value) -> Option<Value> {
        let asked: UpdateSession = serde_json::from_value(asked).unwrap();
        reported(&session(status), &asked, Timestamp::from_second(5000).unwrap()).map(|status| json!(status))
    }

    fn at(second: i64) -> Value {
        json!(Time(Timestamp::from_second(second).unwrap()))
    }

    #[test]
    fn a_report_is_recorded_if_it_changes_something() {
        let none = json!({});
        assert_eq!(after(&none, json!({"status": "running"})), Some(json!({"phase": "Running"})));
        assert_eq!(after(&none, json!({"lastActivityAt": 4_000_500})), Some(json!({"lastActivityTime": at(4000)})));
        let old = json!({"phase": "Running", "lastActivityTime": at(4000)});
        for same in [json!({"status": "running"}), json!({"lastActivityAt": 4_009_999}), json!({"status": "running", "lastActivityAt": 1})]
        {
            assert_eq!(after(&old, same.clone()), None, "{same}");
        }
        assert_eq!(after(&old, json!({"lastActivityAt": 4_010_000})), Some(json!({"phase": "Running", "lastActivityTime": at(4010)})));
        let idle = json!({"status": "idle", "lastActivityAt": 4_005_000});
        assert_eq!(after(&old, idle), Some(json!({"phase": "Idle", "lastActivityTime": at(4005)})));
    }

    /// The clock of a machine may be wrong.
    #[test]
    fn an_activity_is_never_in_the_future_nor_before_the_session_and_never_goes_back() {
        assert_eq!(after(&json!({}), json!({"lastActivityAt": i64::MAX})), Some(json!({"lastActivityTime": at(5000)})));
        assert_eq!(after(&json!({}), json!({"lastActivityAt": i64::MIN})), Some(json!({"lastActivityTime": at(1000)})));
        let old = json!({"phase": "Idle", "lastActivityTime": at(4000)});
        assert_eq!(
            after(&old, json!({"status": "running", "lastActivityAt": 1})),
            Some(json!({"phase": "Running", "lastActivityTime": at(4000)}))
        );
    }

    /// The operator says where the copy is. A late report must not remove that.
    #[test]
    fn a_session_of_a_deleted_computer_is_not_changed() {
        for phase in ["Archived", "Ended"] {
            assert_eq!(after(&json!({"phase": phase, "archiveKey": "k"}), json!({"status": "running"})), None);
        }
    }

    #[test]
    fn what_is_as_asked_already_is_not_written() {
        let operations = |asked: Value| declared(&session(&json!({})), &serde_json::from_value(asked).unwrap()).len();
        assert_eq!(operations(json!({"title": "t", "path": "p"})), 0);
        assert_eq!(operations(json!({"title": "other", "path": "p", "sessionSettings": {}})), 2);
        let checked = |asked: Value| check(&serde_json::from_value(asked).unwrap()).is_ok();
        assert!(checked(json!({"title": "t"})) && checked(json!({"sessionSettings": {}})));
        for bad in [json!({}), json!({"title": ""}), json!({"path": "/etc"}), json!({"path": ""}), json!({"sessionSettings": 1})] {
            assert!(!checked(bad.clone()), "{bad}");
        }
    }
}
