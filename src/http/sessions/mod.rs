//! The sessions of the published v0 API, as far as they can be served without an agent: `Session` objects are listed, created, read, updated and softly
//! deleted. Operations that need an agent are answered with 501.

pub mod agent;
pub mod list;
pub mod one;
pub mod pace;
pub mod update;
pub mod wire;

use std::sync::Arc;

use json_patch::PatchOperation;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::access::{self, Target};
use super::auth::Caller;
use super::error::ApiError;
use crate::credentials::ComputerId;
use crate::resources::{MANAGER, Session};
use crate::runtime::client::{ErrorClass, call, classify};
use crate::runtime::patch;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::new()
        .routes(routes!(list::list_sessions, one::create_session))
        .routes(routes!(one::get_session, update::update_session, one::delete_session))
        .routes(routes!(agent::interrupt_session))
        .routes(routes!(agent::get_messages, agent::post_message))
        .routes(routes!(agent::get_message))
}

impl Shared {
    /// The API of the sessions in a namespace.
    pub(super) fn sessions(&self, namespace: &str) -> Api<Session> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// Whether a session is visible to the caller: a computer sees only its own sessions.
fn own(caller: &Caller, session: &Session) -> bool {
    match caller {
        Caller::Computer(id, _) => session.spec.computer_uid == id.uid,
        Caller::User(_) => true,
    }
}

/// Reads the session with this id live, if the caller may do `verb` on it.
///
/// # Errors
/// 404, 403 or 500.
async fn permitted(shared: &Shared, caller: &Caller, verb: &'static str, word: &str) -> Result<Session, ApiError> {
    let id = ComputerId::decode(word).ok_or_else(|| ApiError::not_found("session"))?;
    let target = Target { resource: "sessions", namespace: &id.namespace, name: Some(&id.name) };
    access::require(shared, caller, verb, target).await?;
    let session = read(shared, &id).await?;
    let shown = session.metadata.uid.as_deref() == Some(&id.uid) && !wire::is_deleted(&session) && own(caller, &session);
    if shown { Ok(session) } else { Err(ApiError::not_found("session")) }
}

/// Patches a session that was read, with its UID as a precondition.
///
/// # Errors
/// If the API server rejects the patch.
async fn change(shared: &Shared, session: &Session, mut operations: Vec<PatchOperation>) -> Result<Session, ApiError> {
    let id = wire::id(session);
    operations.insert(0, patch::test(["metadata", "uid"], json!(id.uid)));
    let patch = Patch::<()>::Json(json_patch::Patch(operations));
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let error = match call(shared.sessions(&id.namespace).patch(&id.name, &params, &patch)).await {
        Ok(changed) => return Ok(changed),
        Err(error) => error,
    };
    // A failed precondition and an invalid value are both 422; another read distinguishes them.
    if classify(&error) == ErrorClass::Invalid && read(shared, &id).await?.metadata.uid != session.metadata.uid {
        return Err(ApiError::not_found("session"));
    }
    Err(ApiError::from_call(&error, "session", "changing the session"))
}

/// Reads the session that has this name now, whatever its UID.
async fn read(shared: &Shared, id: &ComputerId) -> Result<Session, ApiError> {
    call(shared.sessions(&id.namespace).get(&id.name)).await.map_err(|e| ApiError::from_call(&e, "session", "reading the session"))
}
