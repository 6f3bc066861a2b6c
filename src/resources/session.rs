//! `Session`: a view of one session on a computer. The archive's manifest is the truth, not this object.

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
    /// UID of that computer: a computer re-created under the same name is another one. Immutable.
    #[schemars(length(min = 1, max = 36))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("computerUID cannot be changed: create another Session"))]
    #[serde(rename = "computerUID")]
    pub computer_uid: String,
    /// A title for people, at most 256 characters.
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
    /// Settings of the agent, as the HTTP API takes them; nothing here reads them. Over the HTTP API at most 32 KiB of JSON, else at most
    /// 64 KiB where the cluster has the operator's admission policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::any_object")]
    pub settings: Option<serde_json::Value>,
    /// Set when the session was deleted over the HTTP API, which then no longer shows it. Take it away to bring the session back;
    /// its files are not touched either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Time>,
}

/// What a session is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionPhase {
    /// Nothing runs.
    Idle,
    /// Waiting to run.
    Pending,
    /// Running.
    Running,
    /// Its computer was deleted; the archive has it.
    Archived,
    /// Its computer was deleted; the archive does not have it: it has no path, or nothing was archived under its path.
    Ended,
}

/// What is known of the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// What it is doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<SessionPhase>,
    /// When something last happened in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_activity_time: Option<Time>,
    /// When its computer was deleted: nothing runs in it since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_time: Option<Time>,
    /// Key of its object in the archive store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub archive_key: Option<String>,
    /// SHA-256 of that object, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub archive_digest: Option<String>,
}
