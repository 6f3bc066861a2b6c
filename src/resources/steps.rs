//! A provisioning or deletion step as users see it in a status. A report, never a lock (promise S9).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum StepStatus {
    /// Not begun: an earlier step is not finished.
    #[default]
    Pending,
    /// Under way.
    Running,
    /// Under way, but something outside must change first; `error` says what.
    Blocked,
    /// Finished and verified.
    Completed,
    /// Nothing to do for this computer.
    NotApplicable,
    /// Left out by a class policy or a `DeletionOverride`; the receipt says which.
    Skipped,
}

impl StepStatus {
    /// As it is stored, and as event reasons end.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Blocked => "Blocked",
            Self::Completed => "Completed",
            Self::NotApplicable => "NotApplicable",
            Self::Skipped => "Skipped",
        }
    }
}

/// One step of provisioning or deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Stable id, for example `archive-sessions`.
    #[schemars(length(max = 63))]
    pub id: String,
    /// The step in words.
    #[schemars(length(max = 128))]
    pub name: String,
    /// How far it is.
    pub status: StepStatus,
    /// Why it does not go on, or why it was left out, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub error: Option<String>,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
}
