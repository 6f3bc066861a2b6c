//! `GET /api/v0/computers/{computerId}` and `GET /api/v0/computers/name/{name}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::IntoParams;

use super::wire::{self, WireComputer};
use crate::http::Shared;
use crate::http::access::{self, Target};
use crate::http::auth::{Authenticated, Caller};
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::{Id, Params};
use crate::resources::Computer;
use crate::runtime::client::{ErrorClass, call, classify};

/// The namespace of a request.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct NamespaceParam {
    /// Extension: the namespace. Defaults to the caller's own.
    #[param(min_length = 1, max_length = 63)]
    pub namespace: Option<String>,
}

/// Get a computer
#[utoipa::path(
    get, path = "/api/v0/computers/{computerId}", operation_id = "getComputer", tag = "Computers",
    params(("computerId" = String, Path, description = "Computer ID")),
    responses(
        (status = 200, description = "The computer", body = WireComputer),
        (status = 404, description = "The computer does not exist, or the caller may not see it", body = ErrorBody),
    )
)]
pub async fn get_computer(State(shared): State<Arc<Shared>>, by: Authenticated, Id(id): Id) -> Result<impl IntoResponse, ApiError> {
    let computer = super::living_permitted(&shared, by, "get", &id).await?;
    Ok((super::tagged(&computer), Json(wire::wire(&computer, true))))
}

/// Get a computer by name
#[utoipa::path(
    get, path = "/api/v0/computers/name/{name}", operation_id = "getComputerByName", tag = "Computers",
    params(("name" = String, Path, description = "Name of the computer", min_length = 1, max_length = 63), NamespaceParam),
    responses(
        (status = 200, description = "The computer", body = WireComputer),
        (status = 400, description = "The caller does not belong to a namespace and did not specify one", body = ErrorBody),
        (status = 404, description = "The computer does not exist, or the caller may not see it", body = ErrorBody),
    )
)]
pub async fn get_computer_by_name(
    State(shared): State<Arc<Shared>>,
    by: Authenticated,
    name: Result<Path<String>, axum::extract::rejection::PathRejection>,
    Params(params): Params<NamespaceParam>,
) -> Result<impl IntoResponse, ApiError> {
    let Ok(Path(name)) = name else { return Err(ApiError::not_found("computer")) };
    let namespace = by.caller.namespace(params.namespace.as_deref())?;
    let computer = match &by.caller {
        Caller::Computer(id, rights) => {
            access::require_own(id, rights)?;
            super::known(&shared, by.own, id).await?.filter(|c| wire::name(c) == name)
        }
        Caller::User(_) => by_name(&shared, &by.caller, &namespace, &name).await?,
    };
    let computer = computer.filter(|c| !wire::is_deleted(c)).ok_or_else(|| ApiError::not_found("computer"))?;
    Ok((super::tagged(&computer), Json(wire::wire(&computer, true))))
}

/// Finds a computer by name. Usually it is the name of the object. A changed name, or one reused while the former computer was still being deleted, is in
/// `spec.displayName`. Finding it requires a list, which is made only for callers who may list or get all computers; the caller must also be permitted to
/// see the computer that is found. Nothing is read for other callers.
async fn by_name(shared: &Shared, caller: &Caller, namespace: &str, name: &str) -> Result<Option<Computer>, ApiError> {
    let target = Target { resource: "computers", namespace, name: Some(name) };
    // A display name is not always a valid object name.
    if super::check_name(name).is_ok() && access::may(shared, caller, "get", target).await? {
        match call(shared.computers(namespace).get(name)).await {
            Ok(computer) if wire::name(&computer) == name && !wire::is_deleted(&computer) => return Ok(Some(computer)),
            Ok(_) => {}
            Err(error) if classify(&error) == ErrorClass::NotFound => {}
            Err(error) => return Err(ApiError::from_call(&error, "computer", "reading the computer")),
        }
    }
    let all = Target { name: None, ..target };
    if !access::may(shared, caller, "list", all).await? && !access::may(shared, caller, "get", all).await? {
        return Ok(None);
    }
    let named = shared.computers_that(namespace, |c| wire::name(c) == name).await?;
    let found = living_by_name(&named, name).cloned();
    let Some(computer) = found else { return Ok(None) };
    let id = wire::id(&computer);
    Ok(access::may(shared, caller, "get", Target::computer(&id)).await?.then_some(computer))
}

/// The living computer with this name; the older one if there are two.
pub(super) fn living_by_name<'a>(all: &'a [Computer], name: &str) -> Option<&'a Computer> {
    let named = all.iter().filter(|c| !wire::is_deleted(c) && wire::name(c) == name);
    named.min_by(|a, b| wire::created(a).cmp(&wire::created(b)).then_with(|| a.metadata.uid.cmp(&b.metadata.uid)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::body::Body;
    use axum::http::{Method, Request, StatusCode};
    use serde_json::json;
    use tower::ServiceExt as _;

    /// A caller without permissions must not make this server read a whole namespace.
    #[tokio::test]
    async fn nothing_is_read_for_a_caller_without_permissions() {
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reads);
        let shared = crate::http::tests::shared_with(move |request| match (request.method(), request.uri().path()) {
            (&Method::POST, path) if path.contains("tokenreviews") => {
                let user = json!({"authenticated": true, "audiences": ["computer-operator"], "user": {"username": "anna"}});
                (201, json!({"spec": {}, "status": user}))
            }
            (&Method::POST, _) => (201, json!({"spec": {}, "status": {"allowed": false}})),
            _ => {
                counted.fetch_add(1, Ordering::Relaxed);
                (200, json!({"metadata": {}, "items": []}))
            }
        });
        for name in ["box", "Anna%27s%20box"] {
            let request = Request::get(format!("/api/v0/computers/name/{name}?namespace=team")).header("authorization", "Bearer a.b.c");
            let response = crate::http::router(Arc::clone(&shared)).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(response.status(), StatusCode::NOT_FOUND);
        }
        assert_eq!(reads.load(Ordering::Relaxed), 0, "the namespace was read before the caller was authorized");
    }
}
