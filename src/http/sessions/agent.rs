//! Messages and interrupts, which need an agent. No agent is connected to this API, so they are answered with 501, after the same checks as everywhere:
//! the responses must not reveal which sessions exist.

use std::sync::Arc;

use axum::extract::State;

use super::one::SessionId;
use crate::http::Shared;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ErrorBody};

/// Interrupt a session
///
/// Not implemented: no agent is connected to this API.
#[utoipa::path(
    post, path = "/api/v0/sessions/{sessionId}/interrupt", operation_id = "interruptSession", tag = "Sessions",
    params(("sessionId" = String, Path, description = "Session ID")),
    responses(
        (status = 403, description = "The caller may view but not change the session", body = ErrorBody),
        (status = 404, description = "The session does not exist, or the caller may not see it", body = ErrorBody),
        (status = 501, description = "No agent is connected to this API", body = ErrorBody),
    )
)]
pub async fn interrupt_session(State(shared): State<Arc<Shared>>, caller: Caller, SessionId(id): SessionId) -> ApiError {
    refuse(&shared, &caller, "patch", &id, "interrupt").await
}

/// Get session messages
///
/// Not implemented: no agent is connected to this API. After the deletion of the computer, the messages are in its archive.
#[utoipa::path(
    get, path = "/api/v0/sessions/{sessionId}/messages", operation_id = "getMessages", tag = "Sessions",
    params(("sessionId" = String, Path, description = "Session ID")),
    responses(
        (status = 404, description = "The session does not exist, or the caller may not see it", body = ErrorBody),
        (status = 501, description = "No agent is connected to this API", body = ErrorBody),
    )
)]
pub async fn get_messages(State(shared): State<Arc<Shared>>, caller: Caller, SessionId(id): SessionId) -> ApiError {
    refuse(&shared, &caller, "get", &id, "messages").await
}

/// Add a message to a session
///
/// Not implemented: no agent is connected to this API.
#[utoipa::path(
    post, path = "/api/v0/sessions/{sessionId}/messages", operation_id = "postMessage", tag = "Sessions",
    params(("sessionId" = String, Path, description = "Session ID")),
    responses(
        (status = 403, description = "The caller may view but not change the session", body = ErrorBody),
        (status = 404, description = "The session does not exist, or the caller may not see it", body = ErrorBody),
        (status = 501, description = "No agent is connected to this API", body = ErrorBody),
    )
)]
pub async fn post_message(State(shared): State<Arc<Shared>>, caller: Caller, SessionId(id): SessionId) -> ApiError {
    refuse(&shared, &caller, "patch", &id, "messages").await
}

/// Get a message by ID
///
/// Not implemented: no agent is connected to this API.
#[utoipa::path(
    get, path = "/api/v0/sessions/{sessionId}/messages/{messageId}", operation_id = "getMessage", tag = "Sessions",
    params(("sessionId" = String, Path, description = "Session ID"), ("messageId" = String, Path, description = "Message ID")),
    responses(
        (status = 404, description = "The session does not exist, or the caller may not see it", body = ErrorBody),
        (status = 501, description = "No agent is connected to this API", body = ErrorBody),
    )
)]
pub async fn get_message(State(shared): State<Arc<Shared>>, caller: Caller, SessionId(id): SessionId) -> ApiError {
    refuse(&shared, &caller, "get", &id, "messages").await
}

async fn refuse(shared: &Shared, caller: &Caller, verb: &'static str, id: &str, what: &str) -> ApiError {
    match super::permitted(shared, caller, verb, id).await {
        Ok(_) => ApiError::no_agent(what),
        Err(error) => error,
    }
}
