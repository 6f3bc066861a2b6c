//! A computer as the published v0 API shows it: field names, enums and integer Unix milliseconds are its, not Kubernetes's.

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
    /// Opaque id. A computer that is created again under the same name has another one.
    pub id: String,
    /// Its name.
    #[schema(min_length = 1, max_length = 63)]
    pub name: String,
    /// Who runs the machine.
    pub provider_type: ProviderType,
    /// When it was created, Unix milliseconds.
    pub created_at: i64,
    /// The machine's own id, set once by its agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = Uuid)]
    pub host_id: Option<String>,
    /// What it is doing.
    pub status: WireStatus,
    /// Steps of its creation; in a list only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provisioning_steps: Option<Vec<WireStep>>,
    /// The user that sessions run as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_user: Option<String>,
}

/// Who runs a machine, in the words of the published API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProviderType {
    /// The caller.
    Byom,
    /// This cluster ("managed").
    E2b,
}

/// What a computer is doing. A suspended one is active: it resumes when it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ComputerStatus)]
pub enum WireStatus {
    /// Not ready yet.
    Provisioning,
    /// Ready.
    Active,
    /// Cannot be provisioned as it stands.
    Error,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Step)]
pub struct WireStep {
    /// Stable id.
    pub id: String,
    /// In words.
    pub name: String,
    /// `pending`, `running`, `blocked`, `completed` or `skipped`.
    pub status: String,
    /// Why it does not go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<i64>,
    /// Unix milliseconds.
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

/// The name that clients know it by: the one for people, which can be changed, or the object's.
pub fn name(computer: &Computer) -> String {
    computer.spec.display_name.clone().unwrap_or_else(|| computer.name_any())
}

/// Whether this is its host id, in whatever case.
pub fn has_host(computer: &Computer, host: &str) -> bool {
    computer.spec.host_id.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(host))
}

/// When it was created.
pub fn created(computer: &Computer) -> Timestamp {
    computer.metadata.creation_timestamp.as_ref().map(|t| t.0).unwrap_or_default()
}

/// A computer that is being deleted is deleted to clients: its key is dead and it never comes back.
pub fn is_deleted(computer: &Computer) -> bool {
    computer.metadata.deletion_timestamp.is_some()
}

/// The computer as clients see it.
pub fn wire(computer: &Computer, with_steps: bool) -> WireComputer {
    let status = computer.status.as_ref();
    let shown = match status.and_then(|s| s.phase) {
        Some(Phase::Active | Phase::Suspended) => WireStatus::Active,
        Some(Phase::Error) => WireStatus::Error,
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
