//! The computers of the published v0 API, with one file per family of operations.
//!
//! A handler must read the Computer live, compare its UID (another Computer with the same name is 404), and use nothing of it before the review has permitted
//! it. Both requests are sent at once (`ahead.rs`).

pub mod actions;
pub mod create;
pub mod delete;
pub mod deletion;
pub mod deletions;
pub mod list;
mod listed;
pub mod metrics;
pub mod read;
pub mod update;
pub mod wire;

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use json_patch::PatchOperation;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::listed::ListedComputer;
use super::Shared;
use super::access::{self, Target};
use super::auth::{Authenticated, Caller};
use super::error::ApiError;
use crate::credentials::ComputerId;
use crate::resources::{Computer, MANAGER};
use crate::runtime::client::{ErrorClass, call, classify};
use crate::runtime::patch;

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
        .routes(routes!(deletions::list_deletions))
}

impl Shared {
    /// The API of the computers in a namespace.
    pub(super) fn computers(&self, namespace: &str) -> Api<Computer> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Lists the computers of a namespace that are `wanted`, with only the fields that [`listed`] keeps. The caller must have been authorized. Nothing is
    /// kept of the other computers, so that the size of a namespace does not matter.
    ///
    /// # Errors
    /// 500 if the Kubernetes API does not respond as expected.
    pub(super) async fn computers_that(&self, namespace: &str, wanted: impl Fn(&Computer) -> bool) -> Result<Vec<Computer>, ApiError> {
        self.pick_computers(namespace, |c| Some(c).filter(&wanted)).await
    }

    /// Lists the computers of a namespace and returns what `pick` selects. Nothing else of them is kept while the list is read. The caller must
    /// have been authorized.
    ///
    /// # Errors
    /// 500 if the Kubernetes API does not respond as expected.
    pub(super) async fn pick_computers<T>(&self, namespace: &str, pick: impl Fn(Computer) -> Option<T>) -> Result<Vec<T>, ApiError> {
        let pick = |listed: ListedComputer| pick(listed.into());
        let picked = self.computer_pages.list::<Computer, _, _>(&self.client, namespace, pick).await;
        picked.map_err(|e| ApiError::from_call(&e, "computer", "listing the computers"))
    }
}

/// Requires that the caller may do `verb` on exactly this computer.
///
/// # Errors
/// See [`access::require`].
pub(super) async fn permit(shared: &Shared, caller: &Caller, verb: &'static str, id: &ComputerId) -> Result<(), ApiError> {
    if matches!(caller, Caller::Computer(own, _) if own != id) {
        return Err(ApiError::not_found("computer"));
    }
    access::require(shared, caller, verb, Target::computer(id)).await
}

/// As [`permit`], but what the caller may see and not do is 404 as well.
///
/// # Errors
/// See [`access::require_hidden`].
async fn permit_hidden(shared: &Shared, caller: &Caller, verb: &'static str, id: &ComputerId) -> Result<(), ApiError> {
    if matches!(caller, Caller::Computer(own, _) if own != id) {
        return Err(ApiError::not_found("computer"));
    }
    access::require_hidden(shared, caller, verb, Target::computer(id)).await
}

/// As [`permit`], and reads the computer live meanwhile, even if it is being deleted. What authentication has read for this request is not read again.
///
/// # Errors
/// As [`permit`] and [`find`].
pub(super) async fn permitted(
    shared: &Shared,
    by: Authenticated,
    verb: &'static str,
    id: &ComputerId,
) -> Result<Option<Computer>, ApiError> {
    let review = permit(shared, &by.caller, verb, id).boxed();
    read_reviewed(shared, (&by.caller, by.own), id, review).await
}

/// As [`permitted`], unless the computer is deleted.
///
/// # Errors
/// As [`permit`] and [`living`].
pub(super) async fn living_permitted(
    shared: &Shared,
    by: Authenticated,
    verb: &'static str,
    id: &ComputerId,
) -> Result<Computer, ApiError> {
    permitted(shared, by, verb, id).await?.filter(|c| !wire::is_deleted(c)).ok_or_else(|| ApiError::not_found("computer"))
}

/// Reads a computer live, even if it is being deleted, while the review decides whether the caller may see it. The permissions of a computer's key need
/// no request, and its computer has been read.
///
/// # Errors
/// As the review; only if it permits, 500 if the Kubernetes API does not respond as expected.
pub(super) async fn read_reviewed(
    shared: &Shared,
    (caller, own): (&Caller, Option<Arc<Computer>>),
    id: &ComputerId,
    review: BoxFuture<'_, Result<(), ApiError>>,
) -> Result<Option<Computer>, ApiError> {
    match caller {
        Caller::User(_) => shared.ahead.read(review, read(shared.computers(&id.namespace), id.clone()).boxed()).await,
        Caller::Computer(..) => {
            review.await?;
            known(shared, own, id).await
        }
    }
}

/// The computer with this id as authentication has read it for this request; otherwise it is read live.
///
/// # Errors
/// As [`find`].
async fn known(shared: &Shared, own: Option<Arc<Computer>>, id: &ComputerId) -> Result<Option<Computer>, ApiError> {
    match own.filter(|own| own.metadata.uid.as_deref() == Some(&id.uid)) {
        Some(own) => Ok(Some(Arc::unwrap_or_clone(own))),
        None => find(shared, id).await,
    }
}

/// Reads the computer with this id live, even if it is being deleted.
///
/// # Errors
/// 500 if the Kubernetes API does not respond as expected.
pub(super) async fn find(shared: &Shared, id: &ComputerId) -> Result<Option<Computer>, ApiError> {
    read(shared.computers(&id.namespace), id.clone()).await
}

async fn read(computers: Api<Computer>, id: ComputerId) -> Result<Option<Computer>, ApiError> {
    match call(computers.get(&id.name)).await {
        Ok(computer) => Ok(Some(computer).filter(|c| c.metadata.uid.as_deref() == Some(&id.uid))),
        Err(error) if classify(&error) == ErrorClass::NotFound => Ok(None),
        Err(error) => Err(ApiError::from_call(&error, "computer", "reading the computer")),
    }
}

/// Reads the computer with this id live, unless it is deleted.
///
/// # Errors
/// 404, or 500 if the Kubernetes API does not respond as expected.
pub(super) async fn living(shared: &Shared, id: &ComputerId) -> Result<Computer, ApiError> {
    find(shared, id).await?.filter(|c| !wire::is_deleted(c)).ok_or_else(|| ApiError::not_found("computer"))
}

/// Maximum number of attempts when other clients change an object at the same time.
const TRIES: usize = 5;

/// Patches a computer that was read, with its UID and, if `exact`, its generation as preconditions; status updates of the operator do not matter. `None`
/// if the precondition no longer holds.
///
/// # Errors
/// If the API server rejects the patch.
pub(super) async fn change(
    shared: &Shared,
    computer: &Computer,
    exact: bool,
    mut operations: Vec<PatchOperation>,
) -> Result<Option<Computer>, ApiError> {
    let id = wire::id(computer);
    let test = |field: &str, value: Value| patch::test(["metadata", field], value);
    operations.insert(0, test("uid", json!(computer.metadata.uid)));
    if exact {
        operations.insert(1, test("generation", json!(computer.metadata.generation)));
    }
    let patch = Patch::<()>::Json(json_patch::Patch(operations));
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let error = match call(shared.computers(&id.namespace).patch(&id.name, &params, &patch)).await {
        Ok(changed) => return Ok(Some(changed)),
        Err(error) => error,
    };
    // A failed precondition and an invalid value are both 422; another read distinguishes them.
    if classify(&error) == ErrorClass::Invalid {
        let now = find(shared, &id).await?;
        if now.is_none_or(|c| exact && c.metadata.generation != computer.metadata.generation) {
            return Ok(None);
        }
    }
    Err(ApiError::from_call(&error, "computer", "changing the computer"))
}

/// The `ETag` of a computer, derived from the generation: it changes with the spec, not with the status.
pub(super) fn etag(computer: &Computer) -> String {
    format!("\"{}-{}\"", computer.metadata.uid.as_deref().unwrap_or_default(), computer.metadata.generation.unwrap_or_default())
}

/// The `ETag` header of a response.
pub(super) fn tagged(computer: &Computer) -> [(HeaderName, HeaderValue); 1] {
    [(header::ETAG, HeaderValue::from_str(&etag(computer)).unwrap_or(HeaderValue::from_static("\"\"")))]
}

/// Checks the `If-Match` header, if present.
///
/// # Errors
/// 412 if the computer has another version.
pub(super) fn check_match(headers: &HeaderMap, computer: &Computer) -> Result<(), ApiError> {
    let Some(wanted) = headers.get(header::IF_MATCH) else { return Ok(()) };
    let now = etag(computer);
    let fits = wanted.to_str().is_ok_and(|list| list.split(',').map(str::trim).any(|tag| tag == "*" || tag == now));
    if fits {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::PRECONDITION_FAILED, "the computer has changed and no longer matches If-Match: read it again and retry")
        .with("etag", now))
}

/// Requires a valid name according to the published API, which is also valid for a Kubernetes object.
///
/// # Errors
/// 400.
pub(super) fn check_name(name: &str) -> Result<(), ApiError> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-') {
        return Ok(());
    }
    Err(ApiError::invalid("name is invalid: it must have 1 to 63 characters of a-z, 0-9 and '-', and must not begin or end with '-'"))
}

/// Requires 1 to `longest` characters.
///
/// # Errors
/// 400.
pub(super) fn check_length(field: &str, text: &str, longest: usize) -> Result<(), ApiError> {
    let length = text.chars().count();
    if (1..=longest).contains(&length) {
        Ok(())
    } else {
        Err(ApiError::invalid(format!("{field} is invalid: it must have 1 to {longest} characters, but has {length}")))
    }
}

/// Requires a UUID.
///
/// # Errors
/// 400.
pub(super) fn check_uuid(field: &str, text: &str) -> Result<(), ApiError> {
    let fits = text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| if matches!(i, 8 | 13 | 18 | 23) { b == b'-' } else { b.is_ascii_hexdigit() });
    if fits {
        Ok(())
    } else {
        Err(ApiError::invalid(format!("{field} is invalid: it must be a UUID, for example 123e4567-e89b-12d3-a456-426614174000")))
    }
}
