//! `PATCH /api/v0/computers/{computerId}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use json_patch::PatchOperation;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::create::free_host;
use super::read::living_by_name;
use super::wire::{self, WireComputer};
use crate::http::Shared;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::{Body, Id};
use crate::resources::Computer;
use crate::runtime::patch;

/// The changes. Omitted fields are not changed.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateComputer {
    /// The new name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    name: Option<String>,
    /// The new user that sessions run as.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 63)]
    remote_user: Option<String>,
    /// The id of the host. It can be set only once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = Uuid)]
    host_id: Option<String>,
}

/// Update a computer
#[utoipa::path(
    patch, path = "/api/v0/computers/{computerId}", operation_id = "updateComputer", tag = "Computers", request_body = UpdateComputer,
    params(
        ("computerId" = String, Path, description = "Computer ID"),
        ("If-Match" = Option<String>, Header, description = "Extension: the expected `ETag` of the computer"),
    ),
    responses(
        (status = 200, description = "The updated computer", body = WireComputer),
        (status = 400, description = "The request is invalid", body = ErrorBody),
        (status = 403, description = "The caller may view but not change the computer", body = ErrorBody),
        (status = 404, description = "The computer does not exist, or the caller may not see it", body = ErrorBody),
        (status = 409, description = "The name or hostId is already used, or the computer was changed at the same time", body = ErrorBody),
        (status = 412, description = "The computer does not match If-Match", body = ErrorBody),
    )
)]
pub async fn update_computer(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Id(id): Id,
    headers: HeaderMap,
    Body(asked): Body<UpdateComputer>,
) -> Result<impl IntoResponse, ApiError> {
    // Not what authentication has read: the body may have taken seconds to arrive, and should not keep a large computer in memory.
    let mut first = Some(super::living_permitted(&shared, caller.into(), "patch", &id).await?);
    for _ in 0..super::TRIES {
        let computer = match first.take() {
            Some(computer) => computer,
            None => super::living(&shared, &id).await?,
        };
        super::check_match(&headers, &computer)?;
        let operations = operations(&shared, &computer, &asked).await?;
        let now = if operations.is_empty() { Some(computer) } else { super::change(&shared, &computer, true, operations).await? };
        if let Some(computer) = now {
            return Ok((super::tagged(&computer), Json(wire::wire(&computer, true))));
        }
    }
    Err(ApiError::conflict("other clients keep changing the computer: retry the request"))
}

/// The patch operations; empty if nothing changes.
async fn operations(shared: &Shared, computer: &Computer, asked: &UpdateComputer) -> Result<Vec<PatchOperation>, ApiError> {
    let set = |field: &str, value: &str| patch::add(["spec", field], json!(value));
    let uid = computer.metadata.uid.as_deref();
    let mut operations = Vec::new();
    let new_name = asked.name.as_deref().filter(|n| *n != wire::name(computer));
    let new_host = asked.host_id.as_deref().filter(|h| !wire::has_host(computer, h));
    if new_host.is_some() && computer.spec.host_id.is_some() {
        return Err(ApiError::invalid("hostId cannot be changed: the computer already has one"));
    }
    if let Some(host) = new_host {
        super::check_uuid("hostId", host)?;
        operations.push(set("hostId", host));
    }
    if let Some(user) = &asked.remote_user {
        super::check_length("remoteUser", user, 63)?;
        if computer.spec.remote_user.as_ref() != Some(user) {
            operations.push(set("remoteUser", user));
        }
    }
    if let Some(name) = new_name {
        super::check_name(name)?;
        operations.push(set("displayName", name));
    }
    if new_name.is_some() || new_host.is_some() {
        let named = |c: &Computer| new_name.is_some_and(|name| wire::name(c) == name);
        let wanted = |c: &Computer| named(c) || new_host.is_some_and(|host| wire::has_host(c, host));
        let all = shared.computers_that(&wire::id(computer).namespace, wanted).await?;
        if let Some(host) = new_host {
            free_host(&all, host, uid)?;
        }
        let taken = new_name.and_then(|name| living_by_name(&all, name)).filter(|c| c.metadata.uid.as_deref() != uid);
        if let Some(other) = taken {
            return Err(ApiError::conflict(format!("a computer named {} already exists: choose another name", wire::name(other))));
        }
    }
    Ok(operations)
}
