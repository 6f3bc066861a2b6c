//! `restart`, `refresh` and `install-deps`: what the published API lets clients ask of a running computer.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::http::Shared;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Id;
use crate::resources::Provider;

/// An empty object, as published.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Restarted {}

/// What a refresh did.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Refreshed {
    /// Integrations whose credentials were set anew. This server has none: always 0.
    pub configured: u32,
}

/// Restart a managed computer
///
/// Resumes a suspended one; nothing happens to one that runs.
#[utoipa::path(
    post, path = "/api/v0/computers/{computerId}/restart", operation_id = "restartComputer", tag = "Computers",
    params(("computerId" = String, Path, description = "Computer ID")),
    responses(
        (status = 200, description = "It runs, or will", body = Restarted),
        (status = 400, description = "The computer is not managed: restart your machine yourself", body = ErrorBody),
        (status = 401, description = "No valid credential", body = ErrorBody),
        (status = 403, description = "The caller may see it but not change it", body = ErrorBody),
        (status = 404, description = "No such computer, or the caller may not see it", body = ErrorBody),
        (status = 409, description = "Somebody changed it at the same time", body = ErrorBody),
        (status = 500, description = "Failed, or not known", body = ErrorBody),
    )
)]
pub async fn restart_computer(State(shared): State<Arc<Shared>>, caller: Caller, Id(id): Id) -> Result<Json<Restarted>, ApiError> {
    super::permit(&shared, &caller, "patch", &id).await?;
    let computer = super::living(&shared, &id).await?;
    if computer.spec.provider == Provider::BYOM {
        return Err(ApiError::invalid("this machine is yours, not the cluster's: restart it yourself"));
    }
    if computer.spec.suspended {
        let resume = json!({"op": "add", "path": "/spec/suspended", "value": false});
        super::change(&shared, &computer, false, vec![resume]).await?.ok_or_else(|| ApiError::not_found("computer"))?;
    }
    Ok(Json(Restarted {}))
}

/// Refresh a computer
///
/// Sets the credentials of connected integrations anew. This server connects none, and says so: `configured` is 0.
#[utoipa::path(
    post, path = "/api/v0/computers/{computerId}/refresh", operation_id = "refreshComputer", tag = "Computers",
    params(("computerId" = String, Path, description = "Computer ID")),
    responses(
        (status = 200, description = "How many integrations were configured", body = Refreshed),
        (status = 401, description = "No valid credential", body = ErrorBody),
        (status = 403, description = "The caller may see it but not change it", body = ErrorBody),
        (status = 404, description = "No such computer, or the caller may not see it", body = ErrorBody),
        (status = 500, description = "Failed, or not known", body = ErrorBody),
    )
)]
pub async fn refresh_computer(State(shared): State<Arc<Shared>>, caller: Caller, Id(id): Id) -> Result<Json<Refreshed>, ApiError> {
    super::permit(&shared, &caller, "patch", &id).await?;
    super::living(&shared, &id).await?;
    Ok(Json(Refreshed { configured: 0 }))
}

/// Retry the install-dependencies step
///
/// Not implemented: no agent behind this API runs that step. `autoInstallDeps` tells the machine to do it when it starts.
#[utoipa::path(
    post, path = "/api/v0/computers/{computerId}/install-deps", operation_id = "retryInstallDeps", tag = "Computers",
    params(("computerId" = String, Path, description = "Computer ID")),
    responses(
        (status = 401, description = "No valid credential", body = ErrorBody),
        (status = 403, description = "The caller may see it but not change it", body = ErrorBody),
        (status = 404, description = "No such computer, or the caller may not see it", body = ErrorBody),
        (status = 500, description = "Failed, or not known", body = ErrorBody),
        (status = 501, description = "No agent answers behind this API", body = ErrorBody),
    )
)]
pub async fn retry_install_deps(State(shared): State<Arc<Shared>>, caller: Caller, Id(id): Id) -> Result<Json<Restarted>, ApiError> {
    super::permit(&shared, &caller, "patch", &id).await?;
    super::living(&shared, &id).await?;
    Err(ApiError::no_agent("install-deps"))
}
