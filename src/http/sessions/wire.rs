//! A session as the published v0 API shows it.

use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::credentials::ComputerId;
use crate::resources::{Session, SessionPhase};

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Session)]
pub struct WireSession {
    /// Opaque id.
    pub session_id: String,
    /// Title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What it is doing.
    pub status: WireStatus,
    /// Always 0: messages are on the computer, no agent behind this API counts them.
    pub message_count: u32,
    /// Unix milliseconds.
    pub created_at: i64,
    /// Unix milliseconds.
    pub updated_at: i64,
    /// When it was archived with its computer, Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<i64>,
    /// Its computer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub computer_id: Option<String>,
    /// Settings as they were given; not in a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub session_settings: Option<Value>,
}

/// What a session is doing. An archived one is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = SessionStatus)]
pub enum WireStatus {
    /// Nothing runs.
    Idle,
    /// Waiting to run.
    Pending,
    /// Running.
    Running,
}

/// The id of a session: the same form as a computer's.
pub fn id(session: &Session) -> ComputerId {
    ComputerId {
        namespace: session.namespace().unwrap_or_default(),
        name: session.name_any(),
        uid: session.metadata.uid.clone().unwrap_or_default(),
    }
}

/// When it was created, Unix milliseconds.
pub fn created(session: &Session) -> i64 {
    session.metadata.creation_timestamp.as_ref().map(|t| t.0.as_millisecond()).unwrap_or_default()
}

/// Deleted to clients.
pub fn is_deleted(session: &Session) -> bool {
    session.spec.deleted_at.is_some() || session.metadata.deletion_timestamp.is_some()
}

/// The session as clients see it.
pub fn wire(session: &Session, with_settings: bool) -> WireSession {
    let status = session.status.as_ref();
    let phase = status.and_then(|s| s.phase);
    let active = status.and_then(|s| s.last_activity_time.as_ref()).map(|t| t.0.as_millisecond());
    let computer = ComputerId {
        namespace: session.namespace().unwrap_or_default(),
        name: session.spec.computer_name.clone(),
        uid: session.spec.computer_uid.clone(),
    };
    let updated = active.unwrap_or_else(|| created(session));
    WireSession {
        session_id: id(session).encode(),
        title: session.spec.title.clone(),
        status: match phase {
            Some(SessionPhase::Running) => WireStatus::Running,
            Some(SessionPhase::Pending) => WireStatus::Pending,
            Some(SessionPhase::Idle | SessionPhase::Archived) | None => WireStatus::Idle,
        },
        message_count: 0,
        created_at: created(session),
        updated_at: updated,
        completed_at: (phase == Some(SessionPhase::Archived)).then_some(updated),
        computer_id: Some(computer.encode()),
        session_settings: session.spec.settings.clone().filter(|_| with_settings),
    }
}
