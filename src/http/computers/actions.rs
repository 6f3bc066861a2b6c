//! `restart`, `refresh` and `install-deps`: the operations of the published API on a running computer.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::http::Shared;
use crate::http::auth::Authenticated;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Id;
use crate::resources::Provider;
use crate::runtime::patch;

/// An empty object, as published.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Restarted {}

/// The result of a refresh.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Refreshed {
    /// Number of integrations whose credentials were renewed. Always 0, because this server has no integrations.
    pub configured: u32,
}

/// Restart a managed computer
///
/// Resumes a suspended computer. Has no effect on a running one.
#[utoipa::path(
    post, path = "/api/v0/computers/{computerId}/restart", operation_id = "restartComputer", tag = "Computers",
    params(("computerId" = String, Path, description = "Computer ID")),
    responses(
        (status = 200, description = "The computer is running or will be resumed", body = Restarted),
        (status = 400, description = "The computer is not managed by this cluster", body = ErrorBody),
        (status = 403, description = "The caller may view but not change the computer", body = ErrorBody),
        (status = 404, description = "The computer does not exist, or the caller may not see it", body = ErrorBody),
        (status = 409, description = "The computer was changed at the same time by another client", body = ErrorBody),
    )
)]
pub async fn restart_computer(State(shared): State<Arc<Shared>>, by: Authenticated, Id(id): Id) -> Result<Json<Restarted>, ApiError> {
    let computer = super::living_permitted(&shared, by, "patch", &id).await?;
    if computer.spec.provider == Provider::BYOM {
        return Err(ApiError::invalid("the computer has provider BYOM, so this cluster cannot restart its machine: restart it yourself"));
    }
    if computer.spec.suspended {
        let resume = patch::add(["spec", "suspended"], json!(false));
        super::change(&shared, &computer, false, vec![resume]).await?.ok_or_else(|| ApiError::not_found("computer"))?;
    }
    Ok(Json(Restarted {}))
}

/// Refresh a computer
///
/// Renews the credentials of connected integrations. This server has no integrations, so `configured` is always 0.
#[utoipa::path(
    post, path = "/api/v0/computers/{computerId}/refresh", operation_id = "refreshComputer", tag = "Computers",
    params(("computerId" = String, Path, description = "Computer ID")),
    responses(
        (status = 200, description = "The number of configured integrations", body = Refreshed),
        (status = 403, description = "The caller may view but not change the computer", body = ErrorBody),
        (status = 404, description = "The computer does not exist, or the caller may not see it", body = ErrorBody),
    )
)]
pub async fn refresh_computer(State(shared): State<Arc<Shared>>, by: Authenticated, Id(id): Id) -> Result<Json<Refreshed>, ApiError> {
    super::living_permitted(&shared, by, "patch", &id).await?;
    Ok(Json(Refreshed { configured: 0 }))
}

/// Retry the install-dependencies step
///
/// Not implemented: no agent is connected to this API. Set `autoInstallDeps` to install dependencies when the machine starts.
#[utoipa::path(
    post, path = "/api/v0/computers/{computerId}/install-deps", operation_id = "retryInstallDeps", tag = "Computers",
    params(("computerId" = String, Path, description = "Computer ID")),
    responses(
        (status = 403, description = "The caller may view but not change the computer", body = ErrorBody),
        (status = 404, description = "The computer does not exist, or the caller may not see it", body = ErrorBody),
        (status = 501, description = "No agent is connected to this API", body = ErrorBody),
    )
)]
pub async fn retry_install_deps(State(shared): State<Arc<Shared>>, by: Authenticated, Id(id): Id) -> Result<Json<Restarted>, ApiError> {
    super::living_permitted(&shared, by, "patch", &id).await?;
    Err(ApiError::no_agent("install-deps"))
}
