//! A computer in the format of the published v0 API, which defines the field names, the enums and integer Unix milliseconds.

use jiff::Timestamp;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::credentials::ComputerId;
use crate::resources::{Computer, Phase, Provider, Step, StepStatus};

/// A computer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Computer)]
pub struct WireComputer {
    /// Opaque id. A computer that is recreated with the same name has another id.
    pub id: String,
    /// Its name.
    #[schema(min_length = 1, max_length = 63)]
    pub name: String,
    /// Who runs the machine.
    pub provider_type: ProviderType,
    /// Creation time in Unix milliseconds.
    pub created_at: i64,
    /// The id of the host, set once by its agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = Uuid)]
    pub host_id: Option<String>,
    /// Its status.
    pub status: WireStatus,
    /// The provisioning steps; in a list only on request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provisioning_steps: Option<Vec<WireStep>>,
    /// The user that sessions run as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_user: Option<String>,
}

/// Who runs a machine, in the terms of the published API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProviderType {
    /// The caller.
    Byom,
    /// This cluster (managed).
    E2b,
}

/// The status of a computer. A suspended computer is `active`, because it is resumed on use. A `byom` computer is `active` from its creation, even before
/// its key has been issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ComputerStatus)]
pub enum WireStatus {
    /// Not ready yet.
    Provisioning,
    /// Ready.
    Active,
    /// Provisioning failed and needs a change.
    Error,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Step)]
pub struct WireStep {
    /// Stable id.
    pub id: String,
    /// Display name.
    pub name: String,
    /// `pending`, `running`, `blocked`, `completed` or `skipped`.
    pub status: String,
    /// Why the step is not making progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Start time in Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<i64>,
    /// Completion time in Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<i64>,
}

impl From<Provider> for ProviderType {
    fn from(provider: Provider) -> Self {
        match provider {
            Provider::BYOM => Self::Byom,
            Provider::Managed => Self::E2b,
        }
    }
}

impl From<&Step> for WireStep {
    fn from(step: &Step) -> Self {
        let status = match step.status {
            StepStatus::Pending => "pending",
            StepStatus::Running => "running",
            StepStatus::Blocked => "blocked",
            StepStatus::Completed => "completed",
            StepStatus::NotApplicable | StepStatus::Skipped => "skipped",
        };
        Self {
            id: step.id.clone(),
            name: step.name.clone(),
            status: status.to_owned(),
            error: step.error.clone(),
            started_at: step.started_at.as_ref().map(|t| t.0.as_millisecond()),
            completed_at: step.completed_at.as_ref().map(|t| t.0.as_millisecond()),
        }
    }
}

/// The id of a computer.
pub fn id(computer: &Computer) -> ComputerId {
    ComputerId {
        namespace: computer.namespace().unwrap_or_default(),
        name: computer.name_any(),
        uid: computer.metadata.uid.clone().unwrap_or_default(),
    }
}

/// The name that clients see: the display name, which can be changed, or the name of the object.
pub fn name(computer: &Computer) -> String {
    computer.spec.display_name.clone().unwrap_or_else(|| computer.name_any())
}

/// Whether the computer has this host id, ignoring case.
pub fn has_host(computer: &Computer, host: &str) -> bool {
    computer.spec.host_id.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(host))
}

/// When it was created.
pub fn created(computer: &Computer) -> Timestamp {
    computer.metadata.creation_timestamp.as_ref().map(|t| t.0).unwrap_or_default()
}

/// Whether clients see the computer as deleted. A computer that is being deleted counts: its key is invalid and the deletion is final.
pub fn is_deleted(computer: &Computer) -> bool {
    computer.metadata.deletion_timestamp.is_some()
}

/// Converts a computer to the published format.
pub fn wire(computer: &Computer, with_steps: bool) -> WireComputer {
    let status = computer.status.as_ref();
    let shown = match status.and_then(|s| s.phase) {
        Some(Phase::Active | Phase::Suspended) => WireStatus::Active,
        Some(Phase::Error) => WireStatus::Error,
        // As published: the machine exists already, so nothing is provisioned.
        Some(Phase::Provisioning) | None if computer.spec.provider == Provider::BYOM => WireStatus::Active,
        Some(Phase::Provisioning | Phase::Deleting) | None => WireStatus::Provisioning,
    };
    let steps = with_steps.then(|| status.map(|s| s.provisioning_steps.iter().map(WireStep::from).collect()).unwrap_or_default());
    WireComputer {
        id: id(computer).encode(),
        name: name(computer),
        provider_type: computer.spec.provider.into(),
        created_at: created(computer).as_millisecond(),
        host_id: computer.spec.host_id.clone(),
        status: shown,
        provisioning_steps: steps,
        remote_user: computer.spec.remote_user.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_byom_computer_is_active_from_its_creation() {
        let shown = |provider: &str, phase: Option<&str>| {
            let object = json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"},
                "spec": {"provider": provider}, "status": phase.map(|phase| json!({"phase": phase}))});
            wire(&serde_json::from_value(object).unwrap(), false).status
        };
        for phase in [None, Some("Provisioning"), Some("Active")] {
            assert_eq!(shown("BYOM", phase), WireStatus::Active, "{phase:?}");
        }
        assert_eq!(shown("BYOM", Some("Error")), WireStatus::Error);
        assert_eq!(shown("Managed", None), WireStatus::Provisioning);
    }
}
