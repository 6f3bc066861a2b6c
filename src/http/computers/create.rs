//! `POST /api/v0/computers`.

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
    /// `e2b` (the default): a machine of this cluster. `byom`: one of yours, which only gets a key.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "word")]
    provider: Option<ProviderType>,
    /// Repositories to work on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = repositories)]
    repos: Option<Vec<String>>,
    /// The machine's own id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = Uuid)]
    host_id: Option<String>,
    /// Told to the machine as the environment variable `AUTO_INSTALL_DEPS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    auto_install_deps: Option<bool>,
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
/// A managed computer is answered while it is still `provisioning`. The computer's key is in a Secret of its namespace, which only
/// those can read whom RBAC lets: `kubectl get computer NAME -o jsonpath={.status.credentialSecretName}`.
#[utoipa::path(
    post, path = "/api/v0/computers", operation_id = "createComputer", tag = "Computers", params(NamespaceParam), request_body = CreateComputer,
    responses(
        (status = 201, description = "The new computer", body = WireComputer),
        (status = 400, description = "The request cannot be as it is", body = ErrorBody),
        (status = 401, description = "No valid credential", body = ErrorBody),
        (status = 403, description = "The caller may not create computers", body = ErrorBody),
        (status = 404, description = "No such namespace, or not that of the computer whose key is used", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "There is a computer of that name, or the namespace is being deleted", body = ErrorBody),
        (status = 413, description = "The body is too long", body = ErrorBody),
        (status = 415, description = "The body is not JSON", body = ErrorBody),
        (status = 500, description = "Failed, or not known", body = ErrorBody),
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
    let all = shared.list_computers(&namespace).await?;
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

/// That the name is taken must be told; by which computer, only to who may see it.
async fn taken_by(shared: &Shared, caller: &Caller, computer: &Computer) -> Result<ApiError, ApiError> {
    let (name, id) = (wire::name(computer), wire::id(computer));
    let error = ApiError::conflict(format!("there is a computer named {name} already: use it, delete it, or take another name"));
    let seen = access::may(shared, caller, "get", Target::computer(&id)).await?;
    Ok(if seen { error.with("computerId", id.encode()) } else { error })
}

/// A host id is unique among the living computers of a namespace.
pub(super) fn free_host(all: &[Computer], host: &str, except: Option<&str>) -> Result<(), ApiError> {
    let holds = |c: &Computer| !wire::is_deleted(c) && wire::has_host(c, host) && c.metadata.uid.as_deref() != except;
    if all.iter().any(holds) { Err(ApiError::conflict("hostId: another computer has it")) } else { Ok(()) }
}

fn spec(asked: CreateComputer) -> Result<ComputerSpec, ApiError> {
    super::check_name(&asked.name)?;
    super::check_length("remoteUser", &asked.remote_user, 63)?;
    let repositories = asked.repos.unwrap_or_default();
    if repositories.len() > 20 {
        return Err(ApiError::invalid("repos: 20 at most"));
    }
    for repository in &repositories {
        super::check_length("repos", repository, 2048)?;
        let uri = repository.parse::<axum::http::Uri>().is_ok_and(|u| u.scheme().is_some());
        if !uri || repository.contains(char::is_whitespace) {
            return Err(ApiError::invalid("repos: each is a URI, for example https://github.com/team/project"));
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

/// With the finalizer from the start (DESIGN.md 4.2). A name whose former computer is still being torn down is free for clients: the
/// object then gets a name of its own, and clients go on seeing the one they gave. That name follows from the former computer, so
/// that of two who take it at the same time one finds it taken. `Err`: by whom.
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
        let all = shared.list_computers(namespace).await?;
        if let Some(taken) = living_by_name(&all, name) {
            return Ok(Err(taken.clone()));
        }
        if let Some(former) = all.iter().find(|c| c.metadata.name == computer.metadata.name) {
            computer.metadata.name = Some(successor(name, former.metadata.uid.as_deref().unwrap_or_default()));
            computer.spec.display_name = Some(name.to_owned());
        }
    }
    Err(ApiError::conflict("the name is being taken and given up by others: try again"))
}

/// A name for the object beside the former one.
fn successor(name: &str, former_uid: &str) -> String {
    let tail = hex::encode(&Sha256::digest(former_uid)[..4]);
    format!("{}-{tail}", name[..name.len().min(54)].trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successors_name_is_a_name_and_follows_from_the_former_computer() {
        for name in ["a".to_owned(), "x".repeat(63), format!("{}-{}", "y".repeat(53), "z".repeat(9))] {
            let next = successor(&name, "one");
            assert!(super::super::check_name(&next).is_ok() && next != name, "{next}");
            assert_eq!(next, successor(&name, "one"));
            assert_ne!(next, successor(&name, "two"));
        }
    }
}
