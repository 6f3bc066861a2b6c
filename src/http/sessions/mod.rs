//! The sessions of the published v0 API, as far as they can be served without an agent: `Session` objects are listed, created, read, updated and softly
//! deleted. Operations that need an agent are answered with 501.

pub mod agent;
pub mod list;
pub mod one;
pub mod pace;
pub mod update;
pub mod wire;

use std::sync::Arc;

use axum::http::StatusCode;
use futures::FutureExt as _;
use json_patch::PatchOperation;
use kube::api::{Api, Patch, PatchParams};
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
    let review = access::require(shared, caller, verb, target).boxed();
    let session = match caller {
        // Its permission needs no request.
        Caller::Computer(..) => {
            review.await?;
            read(shared.sessions(&id.namespace), id.name.clone()).await?
        }
        Caller::User(_) => shared.ahead.read(review, read(shared.sessions(&id.namespace), id.name.clone()).boxed()).await?,
    };
    let shown = session.metadata.uid.as_deref() == Some(&id.uid) && !wire::is_deleted(&session) && own(caller, &session);
    if shown { Ok(session) } else { Err(ApiError::not_found("session")) }
}

/// Counts a write by the key of a computer. A user has the right to write from an admin; the key is in a machine that may run anything.
///
/// # Errors
/// 429 if the keys of the namespace write too often.
fn count_write(shared: &Shared, caller: &Caller, namespace: &str) -> Result<(), ApiError> {
    if matches!(caller, Caller::User(_)) || shared.session_writes.take(namespace) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too many requests: the computers of your namespace may create and change sessions 10 times per second. Retry in a second",
    ))
}

/// Patches a session that was read, with its UID as a precondition.
///
/// # Errors
/// If the API server rejects the patch.
async fn change(shared: &Shared, session: &Session, mut operations: Vec<PatchOperation>) -> Result<Session, ApiError> {
    let id = wire::id(session);
    operations.insert(0, patch::same_uid(&session.metadata));
    let patch = Patch::<()>::Json(json_patch::Patch(operations));
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let error = match call(shared.sessions(&id.namespace).patch(&id.name, &params, &patch)).await {
        Ok(changed) => return Ok(changed),
        Err(error) => error,
    };
    // A failed precondition and an invalid value are both 422; another read distinguishes them.
    if classify(&error) == ErrorClass::Invalid
        && read(shared.sessions(&id.namespace), id.name.clone()).await?.metadata.uid != session.metadata.uid
    {
        return Err(ApiError::not_found("session"));
    }
    Err(ApiError::from_call(&error, "session", "changing the session"))
}

/// Reads the session that has this name now, whatever its UID.
async fn read(sessions: Api<Session>, name: String) -> Result<Session, ApiError> {
    call(sessions.get(&name)).await.map_err(|e| ApiError::from_call(&e, "session", "reading the session"))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Method, Request};
    use serde_json::json;
    use tower::ServiceExt;

    use super::*;
    use crate::credentials::Key;

    const UID: &str = "11111111-1111-1111-1111-111111111111";

    fn key() -> Key {
        Key::new(ComputerId { namespace: "t".into(), name: "c".into(), uid: UID.into() }, [7; 32])
    }

    /// The API server of a live computer with one session.
    fn answer(request: &Request<kube::client::Body>) -> (u16, serde_json::Value) {
        let path = request.uri().path();
        let metadata = json!({"namespace": "t", "name": "c", "uid": UID, "resourceVersion": "1"});
        let spec = if path.contains("/computerrecords/") {
            json!({"namespace": "t", "computer": "c", "state": {"phase": "Live", "credential": "Live", "keyHash": key().hash()}})
        } else if path.contains("/sessions") {
            json!({"computerName": "c", "computerUID": UID})
        } else {
            json!({})
        };
        (if request.method() == Method::POST { 201 } else { 200 }, json!({"metadata": metadata, "spec": spec}))
    }

    /// A machine could fill etcd, which all tenants share, with sessions and titles.
    #[tokio::test(start_paused = true)]
    async fn the_key_of_a_computer_may_not_create_and_change_sessions_without_end() {
        let shared = crate::http::tests::shared_with(answer);
        let session = format!("/api/v0/sessions/{}", ComputerId { namespace: "t".into(), name: "c".into(), uid: UID.into() }.encode());
        let create = (Method::POST, "/api/v0/sessions", "{}");
        let change = (Method::PATCH, session.as_str(), r#"{"title": "new"}"#);
        for (usual, (method, path, body)) in [(StatusCode::CREATED, create), (StatusCode::OK, change)] {
            for (left, expected) in [(true, usual), (false, StatusCode::TOO_MANY_REQUESTS)] {
                while !left && shared.session_writes.take("t") {}
                let request = Request::builder().method(method.clone()).uri(path).header("content-type", "application/json");
                let request = request.header("authorization", format!("Bearer {}", key().token())).body(Body::from(body)).unwrap();
                let response = crate::http::router(shared.clone()).oneshot(request).await.unwrap();
                assert_eq!(response.status(), expected, "{method} {path}");
                assert_eq!(response.headers().contains_key("retry-after"), !left, "{method} {path}");
            }
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
        }
    }
}
