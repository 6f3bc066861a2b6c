//! The computers of the published v0 API: one file an operation family.
//!
//! Each handler reviews the caller's rights first, then reads the Computer live and by UID: another one under the same name is 404.

pub mod actions;
pub mod create;
pub mod delete;
pub mod deletion;
pub mod list;
pub mod metrics;
pub mod read;
pub mod update;
pub mod wire;

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::access::{self, Target};
use super::auth::Caller;
use super::error::ApiError;
use crate::credentials::ComputerId;
use crate::resources::{Computer, MANAGER};
use crate::runtime::client::{ErrorClass, call, classify};

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::new()
        .routes(routes!(list::list_computers, create::create_computer))
        .routes(routes!(read::get_computer_by_name))
        .routes(routes!(read::get_computer, update::update_computer, delete::delete_computer))
        .routes(routes!(actions::restart_computer))
        .routes(routes!(actions::refresh_computer))
        .routes(routes!(actions::retry_install_deps))
        .routes(routes!(metrics::get_computer_metrics))
        .routes(routes!(deletion::get_computer_deletion))
}

impl Shared {
    /// Computers of a namespace.
    pub(super) fn computers(&self, namespace: &str) -> Api<Computer> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Computers of a namespace, for who may list them.
    ///
    /// # Errors
    /// 500 when the cluster does not answer.
    pub(super) async fn list_computers(&self, namespace: &str) -> Result<Vec<Computer>, ApiError> {
        let listed = self.computer_pages.list(&self.computers(namespace), namespace, PAGE, |c| Some(slim(c))).await;
        listed.map_err(|e| ApiError::from_call(&e, "computer", "listing the computers"))
    }
}

/// Computers that are read at once; one may have some 300 KiB, annotations included.
const PAGE: u32 = 50;

/// Without what is never shown: a tenant decides how much that is, and all of them share this server's memory.
fn slim(mut computer: Computer) -> Computer {
    computer.metadata.managed_fields = None;
    computer.metadata.annotations = None;
    computer.metadata.labels = None;
    computer
}

/// Insists that the caller may do `verb` on this very computer.
///
/// # Errors
/// As [`access::require`].
pub(super) async fn permit(shared: &Shared, caller: &Caller, verb: &'static str, id: &ComputerId) -> Result<(), ApiError> {
    if matches!(caller, Caller::Computer(own) if own != id) {
        return Err(ApiError::not_found("computer"));
    }
    access::require(shared, caller, verb, Target::computer(id)).await
}

/// The computer of this id, read live, whether or not it is being deleted.
///
/// # Errors
/// 500 when the cluster does not answer.
pub(super) async fn find(shared: &Shared, id: &ComputerId) -> Result<Option<Computer>, ApiError> {
    match call(shared.computers(&id.namespace).get(&id.name)).await {
        Ok(computer) => Ok(Some(computer).filter(|c| c.metadata.uid.as_deref() == Some(&id.uid))),
        Err(error) if classify(&error) == ErrorClass::NotFound => Ok(None),
        Err(error) => Err(ApiError::from_call(&error, "computer", "reading the computer")),
    }
}

/// The computer of this id that is not deleted.
///
/// # Errors
/// 404, or 500 when the cluster does not answer.
pub(super) async fn living(shared: &Shared, id: &ComputerId) -> Result<Computer, ApiError> {
    find(shared, id).await?.filter(|c| !wire::is_deleted(c)).ok_or_else(|| ApiError::not_found("computer"))
}

/// How often what somebody else changed meanwhile is read and tried again.
const TRIES: usize = 5;

/// Changes the computer that was read: fenced by its UID and, where `exact`, by the version of its spec; what the operator reports
/// meanwhile does not matter. `None`: it is not that any more.
///
/// # Errors
/// As the API server refuses it.
pub(super) async fn change(
    shared: &Shared,
    computer: &Computer,
    exact: bool,
    mut operations: Vec<Value>,
) -> Result<Option<Computer>, ApiError> {
    let id = wire::id(computer);
    let test = |field: &str, value: Value| json!({"op": "test", "path": format!("/metadata/{field}"), "value": value});
    operations.insert(0, test("uid", json!(computer.metadata.uid)));
    if exact {
        operations.insert(1, test("generation", json!(computer.metadata.generation)));
    }
    let patch = Patch::<()>::Json(crate::runtime::patch::patch(&operations));
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let error = match call(shared.computers(&id.namespace).patch(&id.name, &params, &patch)).await {
        Ok(changed) => return Ok(Some(changed)),
        Err(error) => error,
    };
    // A test that does not hold and a value that is refused are both 422: only a second look tells them apart.
    if classify(&error) == ErrorClass::Invalid {
        let now = find(shared, &id).await?;
        if now.is_none_or(|c| exact && c.metadata.generation != computer.metadata.generation) {
            return Ok(None);
        }
    }
    Err(ApiError::from_call(&error, "computer", "changing the computer"))
}

/// The version of a computer's spec: it changes with what a caller may change, not with what the operator reports.
pub(super) fn etag(computer: &Computer) -> String {
    format!("\"{}-{}\"", computer.metadata.uid.as_deref().unwrap_or_default(), computer.metadata.generation.unwrap_or_default())
}

/// An answer's `ETag`.
pub(super) fn tagged(computer: &Computer) -> [(HeaderName, HeaderValue); 1] {
    [(header::ETAG, HeaderValue::from_str(&etag(computer)).unwrap_or(HeaderValue::from_static("\"\"")))]
}

/// `If-Match`, where a caller sends it.
///
/// # Errors
/// 412 when the computer is another version.
pub(super) fn check_match(headers: &HeaderMap, computer: &Computer) -> Result<(), ApiError> {
    let Some(wanted) = headers.get(header::IF_MATCH) else { return Ok(()) };
    let now = etag(computer);
    let fits = wanted.to_str().is_ok_and(|list| list.split(',').map(str::trim).any(|tag| tag == "*" || tag == now));
    if fits {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::PRECONDITION_FAILED, "the computer is not the version in If-Match: read it again").with("etag", now))
}

/// Insists on a name as the published API takes it, which is also one for a Kubernetes object.
///
/// # Errors
/// 400.
pub(super) fn check_name(name: &str) -> Result<(), ApiError> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-') {
        return Ok(());
    }
    Err(ApiError::invalid("name: 1 to 63 of a-z, 0-9 and '-', neither beginning nor ending with '-'"))
}

/// Insists on 1 to `longest` characters.
///
/// # Errors
/// 400.
pub(super) fn check_length(field: &str, text: &str, longest: usize) -> Result<(), ApiError> {
    let length = text.chars().count();
    if (1..=longest).contains(&length) {
        Ok(())
    } else {
        Err(ApiError::invalid(format!("{field}: 1 to {longest} characters, not {length}")))
    }
}

/// Insists on a UUID.
///
/// # Errors
/// 400.
pub(super) fn check_uuid(field: &str, text: &str) -> Result<(), ApiError> {
    let fits = text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| if matches!(i, 8 | 13 | 18 | 23) { b == b'-' } else { b.is_ascii_hexdigit() });
    if fits { Ok(()) } else { Err(ApiError::invalid(format!("{field}: a UUID, for example 123e4567-e89b-12d3-a456-426614174000"))) }
}
