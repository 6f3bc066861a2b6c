//! Create, get and delete one session.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::PostParams;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::wire::{self, WireSession};
use crate::credentials::ComputerId;
use crate::http::Shared;
use crate::http::access::{self, Target};
use crate::http::auth::Caller;
use crate::http::computers;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Body;
use crate::resources::{MANAGER, Provider, Session, SessionSpec};
use crate::runtime::client::call;
use crate::runtime::clock;
use crate::runtime::patch;

/// A new session.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateSession {
    /// The id of the computer. Required, except with the key of a computer, where it defaults to that computer.
    #[serde(skip_serializing_if = "Option::is_none")]
    computer_id: Option<String>,
    /// Settings of the session, stored unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    session_settings: Option<Value>,
    /// Working directory on the computer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 1024)]
    cwd: Option<String>,
    /// Extension: its title.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    title: Option<String>,
    /// Extension: the session's file or folder, relative to the home.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 1024, pattern = "^[^/].*$")]
    path: Option<String>,
}

/// Create a session
///
/// Resumes the computer if it is suspended and the caller may change it.
#[utoipa::path(
    post, path = "/api/v0/sessions", operation_id = "createSession", tag = "Sessions", request_body = CreateSession,
    responses(
        (status = 201, description = "The new session", body = WireSession),
        (status = 400, description = "The request is invalid", body = ErrorBody),
        (status = 403, description = "The caller may not create sessions, or may not resume the computer", body = ErrorBody),
        (status = 404, description = "The computer does not exist, or the caller may not see it", body = ErrorBody),
        (status = 409, description = "The namespace is being deleted", body = ErrorBody),
    )
)]
pub async fn create_session(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Body(asked): Body<CreateSession>,
) -> Result<(StatusCode, Json<WireSession>), ApiError> {
    let id = computer_of(&caller, asked.computer_id.as_deref())?;
    settings(asked.session_settings.as_ref())?;
    if let Some(cwd) = &asked.cwd {
        computers::check_length("cwd", cwd, 1024)?;
    }
    names(asked.title.as_deref(), asked.path.as_deref())?;
    let review = async {
        let creates = access::require(&shared, &caller, "create", Target { resource: "sessions", namespace: &id.namespace, name: None });
        match &caller {
            // A key needs the right to its sessions only.
            Caller::Computer(own, _) if *own != id => return Err(ApiError::not_found("computer")),
            Caller::Computer(..) => creates.await?,
            Caller::User(_) => {
                let (sees, creates) = tokio::join!(computers::permit(&shared, &caller, "get", &id), creates);
                sees.and(creates)?;
            }
        }
        super::count_write(&shared, &caller, &id.namespace)
    }
    .boxed();
    let computer = computers::read_reviewed(&shared, (&caller, None), &id, review).await?;
    let computer = computer.filter(|c| !computers::wire::is_deleted(c)).ok_or_else(|| ApiError::not_found("computer"))?;
    if computer.spec.suspended && computer.spec.provider == Provider::Managed {
        computers::permit(&shared, &caller, "patch", &id).await?;
        let resume = patch::add(["spec", "suspended"], json!(false));
        computers::change(&shared, &computer, false, vec![resume]).await?.ok_or_else(|| ApiError::not_found("computer"))?;
    }
    let mut session = Session::new("", spec(&id, asked));
    session.metadata.name = None;
    session.metadata.generate_name = Some("session-".to_owned());
    let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    let created = call(shared.sessions(&id.namespace).create(&params, &session))
        .await
        .map_err(|e| ApiError::from_call(&e, "namespace", "creating the session"))?;
    Ok((StatusCode::CREATED, Json(wire::wire(&created, true))))
}

fn spec(id: &ComputerId, asked: CreateSession) -> SessionSpec {
    SessionSpec {
        computer_name: id.name.clone(),
        computer_uid: id.uid.clone(),
        working_directory: asked.cwd,
        settings: asked.session_settings,
        title: asked.title,
        path: asked.path,
        ..SessionSpec::default()
    }
}

fn computer_of(caller: &Caller, asked: Option<&str>) -> Result<ComputerId, ApiError> {
    match (asked, caller) {
        (Some(word), _) => ComputerId::decode(word).ok_or_else(|| ApiError::not_found("computer")),
        (None, Caller::Computer(id, _)) => Ok(id.clone()),
        (None, Caller::User(_)) => Err(ApiError::invalid("computerId is required: set the id of the computer that the session runs on")),
    }
}

/// Maximum size of the settings in bytes, because many sessions are read at once.
const LONGEST: usize = 32 * 1024;

/// Requires that settings are a small object.
pub(super) fn settings(value: Option<&Value>) -> Result<(), ApiError> {
    match value {
        None => Ok(()),
        Some(object @ Value::Object(_)) if object.to_string().len() <= LONGEST => Ok(()),
        Some(Value::Object(_)) => Err(ApiError::invalid(format!("sessionSettings is too large: at most {LONGEST} bytes are allowed"))),
        Some(_) => Err(ApiError::invalid("sessionSettings is invalid: it must be a JSON object")),
    }
}

/// Requires a valid title and path, as far as they are given.
pub(super) fn names(title: Option<&str>, path: Option<&str>) -> Result<(), ApiError> {
    title.map_or(Ok(()), |title| computers::check_length("title", title, 256))?;
    path.map_or(Ok(()), |path| computers::check_length("path", path, 1024))?;
    if path.is_some_and(|path| path.starts_with('/')) {
        return Err(ApiError::invalid("path is invalid: it must be relative to the home, for example .claude/projects/a/session.jsonl"));
    }
    Ok(())
}

/// Get a session
#[utoipa::path(
    get, path = "/api/v0/sessions/{sessionId}", operation_id = "getSession", tag = "Sessions",
    params(("sessionId" = String, Path, description = "Session ID")),
    responses(
        (status = 200, description = "The session", body = WireSession),
        (status = 404, description = "The session does not exist, or the caller may not see it", body = ErrorBody),
    )
)]
pub async fn get_session(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    SessionId(id): SessionId,
) -> Result<Json<WireSession>, ApiError> {
    let session = super::permitted(&shared, &caller, "get", &id).await?;
    Ok(Json(wire::wire(&session, true)))
}

/// Delete a session
///
/// Soft deletion: the session is no longer shown. Its files on the computer are kept and archived with the computer. An admin can restore the session by
/// removing `spec.deletedAt` from the `Session`.
#[utoipa::path(
    delete, path = "/api/v0/sessions/{sessionId}", operation_id = "deleteSession", tag = "Sessions",
    params(("sessionId" = String, Path, description = "Session ID")),
    responses(
        (status = 204, description = "The session is deleted"),
        (status = 403, description = "The caller may view but not delete the session", body = ErrorBody),
        (status = 404, description = "The session does not exist, or the caller may not see it", body = ErrorBody),
        (status = 409, description = "The session was changed at the same time by another client", body = ErrorBody),
    )
)]
pub async fn delete_session(State(shared): State<Arc<Shared>>, caller: Caller, SessionId(id): SessionId) -> Result<StatusCode, ApiError> {
    let session = super::permitted(&shared, &caller, "delete", &id).await?;
    let now = Timestamp::from_second(clock::now().as_second()).unwrap_or_default();
    super::change(&shared, &session, vec![patch::add(["spec", "deletedAt"], json!(Time(now)))]).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The id of a session in the path, not yet parsed.
pub struct SessionId(pub String);

impl axum::extract::FromRequestParts<Arc<Shared>> for SessionId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &Arc<Shared>) -> Result<Self, ApiError> {
        // The first parameter of the path; the id of a message may follow.
        let path = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let first = path.ok().and_then(|Path(all)| all.into_iter().next());
        first.map(|(_, id)| Self(id)).ok_or_else(|| ApiError::not_found("session"))
    }
}
