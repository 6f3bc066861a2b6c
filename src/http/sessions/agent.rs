//! What only an agent can do: messages and interrupts. No agent answers behind this API, and it does not pretend: 501, after the
//! same checks as everywhere, so that nobody learns from it which sessions there are.

use std::sync::Arc;

use axum::extract::State;

use super::one::SessionId;
use crate::http::Shared;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ErrorBody};

/// Interrupt a session
///
/// Not implemented: no agent answers behind this API.
#[utoipa::path(
    post, path = "/api/v0/sessions/{sessionId}/interrupt", operation_id = "interruptSession", tag = "Sessions",
    params(("sessionId" = String, Path, description = "Session ID")),
    responses(
        (status = 401, description = "No valid credential", body = ErrorBody),
        (status = 403, description = "The caller may see it but not change it", body = ErrorBody),
        (status = 404, description = "No such session, or the caller may not see it", body = ErrorBody),
        (status = 500, description = "Failed, or not known", body = ErrorBody),
        (status = 501, description = "No agent answers behind this API", body = ErrorBody),
    )
)]
pub async fn interrupt_session(State(shared): State<Arc<Shared>>, caller: Caller, SessionId(id): SessionId) -> ApiError {
    refuse(&shared, &caller, "patch", &id, "interrupt").await
}

/// Get session messages
///
/// Not implemented: no agent answers behind this API. After the computer's deletion the messages are in its archive.
#[utoipa::path(
    get, path = "/api/v0/sessions/{sessionId}/messages", operation_id = "getMessages", tag = "Sessions",
    params(("sessionId" = String, Path, description = "Session ID")),
    responses(
        (status = 401, description = "No valid credential", body = ErrorBody),
        (status = 404, description = "No such session, or the caller may not see it", body = ErrorBody),
        (status = 500, description = "Failed, or not known", body = ErrorBody),
        (status = 501, description = "No agent answers behind this API", body = ErrorBody),
    )
)]
pub async fn get_messages(State(shared): State<Arc<Shared>>, caller: Caller, SessionId(id): SessionId) -> ApiError {
    refuse(&shared, &caller, "get", &id, "messages").await
}

/// Add a message to a session
///
/// Not implemented: no agent answers behind this API.
#[utoipa::path(
    post, path = "/api/v0/sessions/{sessionId}/messages", operation_id = "postMessage", tag = "Sessions",
    params(("sessionId" = String, Path, description = "Session ID")),
    responses(
        (status = 401, description = "No valid credential", body = ErrorBody),
        (status = 403, description = "The caller may see it but not change it", body = ErrorBody),
        (status = 404, description = "No such session, or the caller may not see it", body = ErrorBody),
        (status = 500, description = "Failed, or not known", body = ErrorBody),
        (status = 501, description = "No agent answers behind this API", body = ErrorBody),
    )
)]
pub async fn post_message(State(shared): State<Arc<Shared>>, caller: Caller, SessionId(id): SessionId) -> ApiError {
    refuse(&shared, &caller, "patch", &id, "messages").await
}

/// Get a message by ID
///
/// Not implemented: no agent answers behind this API.
#[utoipa::path(
    get, path = "/api/v0/sessions/{sessionId}/messages/{messageId}", operation_id = "getMessage", tag = "Sessions",
    params(("sessionId" = String, Path, description = "Session ID"), ("messageId" = String, Path, description = "Message ID")),
    responses(
        (status = 401, description = "No valid credential", body = ErrorBody),
        (status = 404, description = "No such session, or the caller may not see it", body = ErrorBody),
        (status = 500, description = "Failed, or not known", body = ErrorBody),
        (status = 501, description = "No agent answers behind this API", body = ErrorBody),
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
