//! `Session`: a view of one session on a computer. The archive's manifest is authoritative, not this object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One session that ran on a computer. A view: after the computer's deletion its status says where the archived copy is.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema, Default)]
#[kube(
    group = "computer-operator.dev",
    version = "v1alpha1",
    kind = "Session",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    status = "SessionStatus",
    printcolumn = r#"{"name":"Computer","type":"string","jsonPath":".spec.computerName"}"#,
    printcolumn = r#"{"name":"Title","type":"string","jsonPath":".spec.title"}"#,
    printcolumn = r#"{"name":"Status","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct SessionSpec {
    /// The computer it runs on, in the same namespace. Immutable.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("computerName cannot be changed: create another Session"))]
    pub computer_name: String,
    /// UID of that computer. A computer re-created under the same name has another UID. Immutable.
    #[schemars(length(min = 1, max = 36))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("computerUID cannot be changed: create another Session"))]
    #[serde(rename = "computerUID")]
    pub computer_uid: String,
    /// A human-readable title, at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub title: Option<String>,
    /// The session's file or folder, relative to the home, for example `.factory/sessions/7f3c.jsonl`; at most 1024 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), pattern(r"^[^/].*$"))]
    pub path: Option<String>,
    /// The working directory on the machine, at most 1024 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub working_directory: Option<String>,
    /// Settings of the agent, as the HTTP API accepts them; the operator does not read them. At most 32 KiB of JSON over the HTTP API, or
    /// 64 KiB over the Kubernetes API where the operator's admission policies are installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::any_object")]
    pub settings: Option<serde_json::Value>,
    /// Set when the session was deleted over the HTTP API, which then no longer shows it. Remove it to restore the session. Its files are
    /// never changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Time>,
}

/// What a session is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionPhase {
    /// Nothing is running.
    Idle,
    /// Waiting to run.
    Pending,
    /// Running.
    Running,
    /// Its computer was deleted, and the archive contains the session.
    Archived,
    /// Its computer was deleted, and the archive does not contain the session: it has no path, or nothing was archived under its path.
    Ended,
}

/// What is known about the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// The phase of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<SessionPhase>,
    /// When something last happened in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_activity_time: Option<Time>,
    /// When its computer was deleted. Nothing runs in the session since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_time: Option<Time>,
    /// Key in the archive store of the archive's manifest, or of its own object in an archive of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub archive_key: Option<String>,
    /// SHA-256 of its part of the archive's tar, or of that object, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub archive_digest: Option<String>,
}
