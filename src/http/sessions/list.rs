//! `GET /api/v0/sessions`, page by page, the newest first.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::wire::{self, WireSession};
use crate::credentials::ComputerId;
use crate::http::Shared;
use crate::http::access::{self, Target};
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Params;
use crate::resources::Session;
use crate::runtime::client::call;

/// What to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct SessionListParams {
    /// Sessions a page, 1 to 100.
    #[param(default = "20", pattern = "^([1-9]|[1-9][0-9]|100)$")]
    limit: Option<String>,
    /// `nextCursor` of the page before.
    cursor: Option<String>,
    /// Only those of this computer.
    computer_id: Option<String>,
    /// Extension: the namespace to list. Left out: the computer's, else the caller's own.
    #[param(min_length = 1, max_length = 63)]
    namespace: Option<String>,
}

/// A page of sessions.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionList {
    /// The sessions.
    pub sessions: Vec<WireSession>,
    /// Where to go on.
    pub pagination: Pagination,
}

/// Where a list goes on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pagination {
    /// Whether there are more.
    pub has_more: bool,
    /// For the next page; null on the last one.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

/// List sessions
#[utoipa::path(
    get, path = "/api/v0/sessions", operation_id = "listSessions", tag = "Sessions", params(SessionListParams),
    responses(
        (status = 200, description = "A page of sessions", body = SessionList),
        (status = 400, description = "A parameter is wrong", body = ErrorBody),
        (status = 401, description = "No valid credential", body = ErrorBody),
        (status = 403, description = "The caller may not list sessions", body = ErrorBody),
        (status = 404, description = "A computer's key asked for another namespace", body = ErrorBody),
        (status = 500, description = "Failed, or not known", body = ErrorBody),
    )
)]
pub async fn list_sessions(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Params(params): Params<SessionListParams>,
) -> Result<Json<SessionList>, ApiError> {
    let limit = limit(params.limit.as_deref())?;
    let after = match params.cursor.as_deref().map(Position::decode) {
        None => None,
        Some(Some(position)) => Some(position),
        Some(None) => return Err(ApiError::invalid("cursor: use the nextCursor of the page before, or leave it out")),
    };
    let computer = match params.computer_id.as_deref().map(ComputerId::decode) {
        None => None,
        Some(Some(id)) => Some(id),
        Some(None) => return Err(ApiError::invalid("computerId: not an id of a computer")),
    };
    let asked = params.namespace.as_deref().or(computer.as_ref().map(|c| c.namespace.as_str()));
    let namespace = caller.namespace(asked)?;
    access::require(&shared, &caller, "list", Target { resource: "sessions", namespace: &namespace, name: None }).await?;
    let listed = call(shared.sessions(&namespace).list(&kube::api::ListParams::default())).await;
    let mut all = listed.map_err(|e| ApiError::from_call(&e, "namespace", "listing the sessions"))?.items;
    let wanted = |s: &Session| computer.as_ref().is_none_or(|c| s.spec.computer_uid == c.uid && s.spec.computer_name == c.name);
    all.retain(|s| !wire::is_deleted(s) && super::own(&caller, s) && wanted(s));
    Ok(Json(page(all, after.as_ref(), limit)))
}

/// Written as a number is, without a sign or zeros before it.
fn limit(asked: Option<&str>) -> Result<usize, ApiError> {
    let Some(asked) = asked else { return Ok(20) };
    let number = asked.parse().ok().filter(|n: &usize| (1..=100).contains(n) && n.to_string() == asked);
    number.ok_or_else(|| ApiError::invalid("limit: a number from 1 to 100"))
}

/// A place in the order: stable when sessions come and go between two pages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    created: std::cmp::Reverse<i64>,
    uid: String,
}

impl Position {
    fn of(session: &Session) -> Self {
        Self { created: std::cmp::Reverse(wire::created(session)), uid: session.metadata.uid.clone().unwrap_or_default() }
    }

    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}/{}", self.created.0, self.uid))
    }

    fn decode(word: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(word).ok()?).ok()?;
        let (created, uid) = text.split_once('/')?;
        Some(Self { created: std::cmp::Reverse(created.parse().ok()?), uid: uid.to_owned() })
    }
}

fn page(mut all: Vec<Session>, after: Option<&Position>, limit: usize) -> SessionList {
    all.sort_by_cached_key(Position::of);
    all.retain(|s| after.is_none_or(|after| Position::of(s) > *after));
    let has_more = all.len() > limit;
    all.truncate(limit);
    let next_cursor = all.last().filter(|_| has_more).map(|last| Position::of(last).encode());
    SessionList { sessions: all.iter().map(|s| wire::wire(s, false)).collect(), pagination: Pagination { has_more, next_cursor } }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pages_cover_everything_once_the_newest_first() {
        let session = |i: i64| -> Session {
            let second = i / 3;
            serde_json::from_value(json!({
                "metadata": {"name": format!("s{i}"), "namespace": "t", "uid": format!("uid-{i}"), "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
                "spec": {"computerName": "c", "computerUID": "u"},
            }))
            .unwrap()
        };
        let all: Vec<Session> = (0..25).map(session).collect();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let list = page(all.clone(), after.as_ref(), 7);
            seen.extend(list.sessions.iter().map(|s| (s.created_at, s.session_id.clone())));
            assert_eq!(list.pagination.has_more, list.pagination.next_cursor.is_some());
            let Some(cursor) = list.pagination.next_cursor else { break };
            after = Some(Position::decode(&cursor).unwrap());
        }
        assert_eq!(seen.len(), 25);
        assert!(seen.windows(2).all(|w| w[0].0 >= w[1].0));
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 25);
    }

    #[test]
    fn a_cursor_that_is_none_is_refused() {
        for word in ["", "x", "%", &URL_SAFE_NO_PAD.encode("no")] {
            assert_eq!(Position::decode(word), None, "{word}");
        }
    }
}
