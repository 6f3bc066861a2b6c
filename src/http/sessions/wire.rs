//! A session in the format of the published v0 API.

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
    /// Its status.
    pub status: WireStatus,
    /// Always 0: the messages are on the computer, and no agent is connected to this API.
    pub message_count: u32,
    /// Creation time in Unix milliseconds.
    pub created_at: i64,
    /// Time of the last activity in Unix milliseconds.
    pub updated_at: i64,
    /// When its computer was deleted, in Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<i64>,
    /// The id of its computer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub computer_id: Option<String>,
    /// The settings; omitted in a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub session_settings: Option<Value>,
}

/// The status of a session. A session whose computer was deleted is `idle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = SessionStatus)]
pub enum WireStatus {
    /// Not running.
    Idle,
    /// Waiting to start.
    Pending,
    /// Running.
    Running,
}

impl From<WireStatus> for SessionPhase {
    fn from(status: WireStatus) -> Self {
        match status {
            WireStatus::Idle => Self::Idle,
            WireStatus::Pending => Self::Pending,
            WireStatus::Running => Self::Running,
        }
    }
}

/// The id of a session: the same form as a computer's.
pub fn id(session: &Session) -> ComputerId {
    ComputerId {
        namespace: session.namespace().unwrap_or_default(),
        name: session.name_any(),
        uid: session.metadata.uid.clone().unwrap_or_default(),
    }
}

/// Creation time in Unix milliseconds.
pub fn created(session: &Session) -> i64 {
    session.metadata.creation_timestamp.as_ref().map(|t| t.0.as_millisecond()).unwrap_or_default()
}

/// Whether clients see the session as deleted.
pub fn is_deleted(session: &Session) -> bool {
    session.spec.deleted_at.is_some() || session.metadata.deletion_timestamp.is_some()
}

/// Converts a session to the published format.
pub fn wire(session: &Session, with_settings: bool) -> WireSession {
    let status = session.status.as_ref();
    let phase = status.and_then(|s| s.phase);
    let active = status.and_then(|s| s.last_activity_time.as_ref()).map(|t| t.0.as_millisecond());
    let computer = ComputerId {
        namespace: session.namespace().unwrap_or_default(),
        name: session.spec.computer_name.clone(),
        uid: session.spec.computer_uid.clone(),
    };
    let completed = status.and_then(|s| s.completed_time.as_ref()).map(|t| t.0.as_millisecond());
    let updated = active.unwrap_or_else(|| created(session));
    WireSession {
        session_id: id(session).encode(),
        title: session.spec.title.clone(),
        status: match phase {
            Some(SessionPhase::Running) => WireStatus::Running,
            Some(SessionPhase::Pending) => WireStatus::Pending,
            Some(SessionPhase::Idle | SessionPhase::Archived | SessionPhase::Ended) | None => WireStatus::Idle,
        },
        message_count: 0,
        created_at: created(session),
        updated_at: updated,
        completed_at: completed,
        computer_id: Some(computer.encode()),
        session_settings: session.spec.settings.clone().filter(|_| with_settings),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `completedAt` is the deletion of the computer, not the creation or the last use of the session.
    #[test]
    fn a_session_is_completed_by_the_deletion_of_its_computer() {
        let completed = |status: Value| {
            let session = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Session",
                "metadata": {"name": "s", "namespace": "t", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"computerName": "c", "computerUID": "u"}, "status": status});
            let wired = wire(&serde_json::from_value(session).unwrap(), false);
            (wired.completed_at, wired.updated_at)
        };
        let (active, deleted) = (1_767_229_200_000, 1_767_232_800_000);
        let used = json!({"phase": "Archived", "lastActivityTime": "2026-01-01T01:00:00Z", "completedTime": "2026-01-01T02:00:00Z"});
        assert_eq!(completed(used), (Some(deleted), active));
        assert_eq!(completed(json!({"phase": "Ended", "completedTime": "2026-01-01T02:00:00Z"})).0, Some(deleted));
        assert_eq!(completed(json!({"phase": "Idle", "lastActivityTime": "2026-01-01T01:00:00Z"})), (None, active));
    }
}
