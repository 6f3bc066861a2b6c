//! `POST /api/v0/computers`. The Computer has the deletion finalizer from its creation. Other clients' Computers get it
//! from the chart's policy (`admission/finalizer.yaml`) or in `computer/provision/create_record.rs`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use kube::api::PostParams;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use utoipa::openapi::schema::{Array, ArrayBuilder, ObjectBuilder, SchemaFormat, Type};

use super::read::{NamespaceParam, living_by_name};
use super::wire::{self, ProviderType, WireComputer};
use crate::http::Shared;
use crate::http::access::{self, Target};
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::{Body, Params, word};
use crate::resources::{Computer, ComputerSpec, DELETION_FINALIZER, MANAGER, Provider};
use crate::runtime::client::{ErrorClass, call, classify};

/// A new computer.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateComputer {
    /// Its name: a-z, 0-9 and `-`.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    name: String,
    /// The user that sessions run as.
    #[schema(min_length = 1, max_length = 63)]
    remote_user: String,
    /// `e2b` (the default): a machine in this cluster. `byom`: your own machine, which only gets a key.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "word")]
    provider: Option<ProviderType>,
    /// Repositories to work on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = repositories)]
    repos: Option<Vec<String>>,
    /// The id of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = Uuid)]
    host_id: Option<String>,
    /// Passed to the machine as the environment variable `AUTO_INSTALL_DEPS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    auto_install_deps: Option<bool>,
    /// Accepted, because clients of the published API send it, and ignored: RBAC in the namespace decides who may use the computer.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account_id: Option<String>,
}

fn repositories() -> Array {
    let uri = ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::Custom("uri".to_owned())))
        .min_length(Some(1))
        .max_length(Some(2048));
    ArrayBuilder::new().items(uri).max_items(Some(20)).description(Some("Repositories to work on.")).build()
}

/// Create a computer
///
/// A managed computer is returned while it is still `provisioning`. The computer's key is stored in a Secret in its namespace, which RBAC protects:
/// `kubectl get computer NAME -o jsonpath={.status.credentialSecretName}`.
#[utoipa::path(
    post, path = "/api/v0/computers", operation_id = "createComputer", tag = "Computers", params(NamespaceParam), request_body = CreateComputer,
    responses(
        (status = 201, description = "The new computer", body = WireComputer),
        (status = 400, description = "The request is invalid", body = ErrorBody),
        (status = 403, description = "The caller may not create computers", body = ErrorBody),
        (status = 404, description = "The namespace does not exist, or it is not that of the computer whose key is used", body = ErrorBody),
        (status = 409, description = "A computer with this name already exists, or the namespace is being deleted", body = ErrorBody),
    )
)]
pub async fn create_computer(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Params(params): Params<NamespaceParam>,
    Body(asked): Body<CreateComputer>,
) -> Result<impl IntoResponse, ApiError> {
    let namespace = caller.namespace(params.namespace.as_deref())?;
    access::require(&shared, &caller, "create", Target { resource: "computers", namespace: &namespace, name: None }).await?;
    let name = asked.name.clone();
    let spec = spec(asked)?;
    let wanted = |c: &Computer| wire::name(c) == name || spec.host_id.as_deref().is_some_and(|host| wire::has_host(c, host));
    let all = shared.computers_that(&namespace, wanted).await?;
    let holder = if let Some(taken) = living_by_name(&all, &name) {
        Err(taken.clone())
    } else {
        if let Some(host) = &spec.host_id {
            free_host(&all, host, None)?;
        }
        create(&shared, &namespace, &name, spec).await?
    };
    match holder {
        Ok(computer) => Ok((StatusCode::CREATED, super::tagged(&computer), Json(wire::wire(&computer, true)))),
        Err(taken) => Err(taken_by(&shared, &caller, &taken).await?),
    }
}

/// The error for a name that is taken. It contains the id of the computer only if the caller may see it.
async fn taken_by(shared: &Shared, caller: &Caller, computer: &Computer) -> Result<ApiError, ApiError> {
    let (name, id) = (wire::name(computer), wire::id(computer));
    let error = ApiError::conflict(format!("a computer named {name} already exists: use it, delete it, or choose another name"));
    let seen = access::may(shared, caller, "get", Target::computer(&id)).await?;
    Ok(if seen { error.with("computerId", id.encode()) } else { error })
}

/// Requires that no other living computer of the namespace has this host id.
pub(super) fn free_host(all: &[Computer], host: &str, except: Option<&str>) -> Result<(), ApiError> {
    let holds = |c: &Computer| !wire::is_deleted(c) && wire::has_host(c, host) && c.metadata.uid.as_deref() != except;
    if all.iter().any(holds) { Err(ApiError::conflict("hostId is already used by another computer in this namespace")) } else { Ok(()) }
}

fn spec(asked: CreateComputer) -> Result<ComputerSpec, ApiError> {
    super::check_name(&asked.name)?;
    super::check_length("remoteUser", &asked.remote_user, 63)?;
    let repositories = asked.repos.unwrap_or_default();
    if repositories.len() > 20 {
        return Err(ApiError::invalid("repos is invalid: it must have at most 20 entries"));
    }
    for repository in &repositories {
        super::check_length("repos", repository, 2048)?;
        let uri = repository.parse::<axum::http::Uri>().is_ok_and(|u| u.scheme().is_some());
        if !uri || repository.contains(char::is_whitespace) {
            return Err(ApiError::invalid("repos is invalid: each entry must be a URI, for example https://github.com/team/project"));
        }
    }
    if let Some(host) = &asked.host_id {
        super::check_uuid("hostId", host)?;
    }
    let provider = match asked.provider {
        Some(ProviderType::Byom) => Provider::BYOM,
        Some(ProviderType::E2b) | None => Provider::Managed,
    };
    Ok(ComputerSpec {
        provider,
        remote_user: Some(asked.remote_user),
        repositories,
        host_id: asked.host_id,
        auto_install_deps: asked.auto_install_deps.unwrap_or_default(),
        ..ComputerSpec::default()
    })
}

/// Creates the computer with the finalizer from the start (DESIGN.md 4.2). Clients can reuse a name while the former computer is still being deleted: the
/// object then gets a name derived from the former computer, so that only one of two concurrent requests succeeds, and the requested name as its display
/// name. `Err` with the computer that has the name.
async fn create(shared: &Shared, namespace: &str, name: &str, spec: ComputerSpec) -> Result<Result<Computer, Computer>, ApiError> {
    let api = shared.computers(namespace);
    let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    let mut computer = Computer::new(name, spec);
    computer.metadata.finalizers = Some(vec![DELETION_FINALIZER.to_owned()]);
    for _ in 0..super::TRIES {
        let error = match call(api.create(&params, &computer)).await {
            Ok(created) => return Ok(Ok(created)),
            Err(error) => error,
        };
        if classify(&error) != ErrorClass::Conflict {
            return Err(ApiError::from_call(&error, "namespace", "creating the computer"));
        }
        let wanted = |c: &Computer| wire::name(c) == name || c.metadata.name == computer.metadata.name;
        let all = shared.computers_that(namespace, wanted).await?;
        if let Some(taken) = living_by_name(&all, name) {
            return Ok(Err(taken.clone()));
        }
        if let Some(former) = all.iter().find(|c| c.metadata.name == computer.metadata.name) {
            computer.metadata.name = Some(successor(name, former.metadata.uid.as_deref().unwrap_or_default()));
            computer.spec.display_name = Some(name.to_owned());
        }
    }
    Err(ApiError::conflict("other clients are creating and deleting computers with this name: retry the request"))
}

/// The name of an object whose preferred name is still used by the former computer.
fn successor(name: &str, former_uid: &str) -> String {
    let tail = hex::encode(&Sha256::digest(former_uid)[..4]);
    format!("{}-{tail}", name[..name.len().min(54)].trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_successor_is_valid_and_derived_from_the_former_computer() {
        for name in ["a".to_owned(), "x".repeat(63), format!("{}-{}", "y".repeat(53), "z".repeat(9))] {
            let next = successor(&name, "one");
            assert!(super::super::check_name(&next).is_ok() && next != name, "{next}");
            assert_eq!(next, successor(&name, "one"));
            assert_ne!(next, successor(&name, "two"));
        }
    }
}
