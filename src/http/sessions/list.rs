//! `GET /api/v0/sessions`: paginated, newest first.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::wire::{self, WireSession};
use crate::credentials::ComputerId;
use crate::http::Shared;
use crate::http::access::{self, Target};
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Params;
use crate::http::page_limits::ListedMetadata;
use crate::resources::{Session, SessionSpec, SessionStatus};

/// Parameters of the list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct SessionListParams {
    /// Page size, 1 to 100.
    #[param(default = "20", pattern = "^([1-9]|[1-9][0-9]|100)$")]
    limit: Option<String>,
    /// `nextCursor` of the previous page.
    cursor: Option<String>,
    /// Only the sessions of this computer.
    computer_id: Option<String>,
    /// Extension: the namespace to list. Defaults to the computer's namespace, or else to the caller's own.
    #[param(min_length = 1, max_length = 63)]
    namespace: Option<String>,
}

/// A page of sessions.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionList {
    /// The sessions.
    pub sessions: Vec<WireSession>,
    /// How to get the next page.
    pub pagination: Pagination,
}

/// How to get the next page of a list.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pagination {
    /// Whether there are more sessions.
    pub has_more: bool,
    /// The cursor of the next page; null on the last page.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

/// List sessions
#[utoipa::path(
    get, path = "/api/v0/sessions", operation_id = "listSessions", tag = "Sessions", params(SessionListParams),
    responses(
        (status = 200, description = "A page of sessions", body = SessionList),
        (status = 400, description = "A parameter is invalid", body = ErrorBody),
        (status = 403, description = "The caller may not list sessions", body = ErrorBody),
        (status = 404, description = "The key of a computer was used for another namespace", body = ErrorBody),
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
        Some(None) => return Err(ApiError::invalid("cursor is invalid: use the nextCursor of the previous page, or omit it")),
    };
    let computer = match params.computer_id.as_deref().map(ComputerId::decode) {
        None => None,
        Some(Some(id)) => Some(id),
        Some(None) => return Err(ApiError::invalid("computerId is invalid: use the id that the API returned for the computer")),
    };
    let asked = params.namespace.as_deref().or(computer.as_ref().map(|c| c.namespace.as_str()));
    let namespace = caller.namespace(asked)?;
    access::require(&shared, &caller, "list", Target { resource: "sessions", namespace: &namespace, name: None }).await?;
    let wanted = |s: &Session| computer.as_ref().is_none_or(|c| s.spec.computer_uid == c.uid && s.spec.computer_name == c.name);
    let shown = |s: Listed| Some(shown(s)).filter(|s| !wire::is_deleted(s) && super::own(&caller, s) && wanted(s));
    let all = shared.session_pages.list::<Session, _, _>(&shared.client, &namespace, shown).await;
    let all = all.map_err(|e| ApiError::from_call(&e, "namespace", "listing the sessions"))?;
    Ok(Json(page(all, after.as_ref(), limit)))
}

/// A Session with only the fields that a list shows. Tenants decide how large the other fields are, deserialized settings are many times larger than on
/// the wire, and all tenants share this server's memory.
#[derive(Clone, Debug, Deserialize)]
struct Listed {
    metadata: ListedMetadata,
    spec: ListedSpec,
    status: Option<SessionStatus>,
}

/// The needed part of the spec.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedSpec {
    computer_name: String,
    #[serde(rename = "computerUID")]
    computer_uid: String,
    title: Option<String>,
    deleted_at: Option<Time>,
}

/// Converts to a Session that has only the shown fields.
fn shown(listed: Listed) -> Session {
    let ListedSpec { computer_name, computer_uid, title, deleted_at } = listed.spec;
    let spec = SessionSpec { computer_name, computer_uid, title, deleted_at, ..SessionSpec::default() };
    Session { metadata: ObjectMeta::from(listed.metadata), spec, status: listed.status }
}

/// Parses the page size, a decimal number without a sign or leading zeros.
pub(in crate::http) fn limit(asked: Option<&str>) -> Result<usize, ApiError> {
    let Some(asked) = asked else { return Ok(20) };
    let number = asked.parse().ok().filter(|n: &usize| (1..=100).contains(n) && n.to_string() == asked);
    number.ok_or_else(|| ApiError::invalid("limit is invalid: it must be a number from 1 to 100"))
}

/// A position in the order, which stays valid when sessions are created and deleted between two pages.
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
    use axum::body::Body;
    use axum::http::Request;
    use serde_json::json;
    use tower::ServiceExt as _;

    use super::*;

    #[test]
    fn pages_contain_every_session_once_and_newest_first() {
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
    fn fields_that_a_list_does_not_show_are_not_kept() {
        let large = json!({"metadata": {"name": "s", "annotations": {"a": "b"}}, "spec": {"computerName": "c", "computerUID": "u", "title": "t", "settings": {"a": "b"}}});
        let session = shown(serde_json::from_value(large).unwrap());
        assert!(session.spec.settings.is_none() && session.metadata.annotations.is_none());
        assert_eq!(session.spec.title.as_deref(), Some("t"));
    }

    /// Both the size of a page and the number of concurrent pages are bounded.
    #[tokio::test(start_paused = true)]
    async fn pages_are_small_and_wait_for_a_permit() {
        let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let shared = crate::http::tests::shared_with(move |request| match request.uri().path() {
            path if path.contains("tokenreviews") => {
                let user = json!({"authenticated": true, "audiences": ["computer-operator"], "user": {"username": "anna"}});
                (201, json!({"spec": {}, "status": user}))
            }
            path if path.contains("subjectaccessreviews") => (201, json!({"spec": {}, "status": {"allowed": true}})),
            _ => {
                seen.lock().unwrap().push(request.uri().query().unwrap_or_default().to_owned());
                (200, json!({"metadata": {}, "items": []}))
            }
        });
        for (path, pages) in [("sessions", &shared.session_pages.common), ("computers", &shared.computer_pages.common)] {
            let ask = || {
                let request = Request::get(format!("/api/v0/{path}?namespace=team")).header("authorization", "Bearer a.b.c");
                crate::http::router(Arc::clone(&shared)).oneshot(request.body(Body::empty()).unwrap())
            };
            let turns = pages.acquire_many(u32::try_from(pages.available_permits()).unwrap()).await.unwrap();
            let waits = tokio::time::timeout(std::time::Duration::from_secs(60), ask()).await;
            assert!(waits.is_err() && asked.lock().unwrap().is_empty(), "{path}: a page was read while no permit was available");
            drop(turns);
            assert_eq!(ask().await.unwrap().status(), 200);
            let query = asked.lock().unwrap().drain(..).next().unwrap();
            let limit = query.split('&').find_map(|p| p.strip_prefix("limit=")).unwrap().parse::<u32>().unwrap();
            assert!(limit <= 50, "{query}");
        }
    }

    #[test]
    fn an_invalid_cursor_is_rejected() {
        for word in ["", "x", "%", &URL_SAFE_NO_PAD.encode("no")] {
            assert_eq!(Position::decode(word), None, "{word}");
        }
    }
}
