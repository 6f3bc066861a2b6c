//! The steps of a computer's creation and of its deletion: the only place for their order, ids and titles, and for which deadline of the
//! class applies to which step. [`Step`] is a step as users see it in a status: a report, which must never act as a lock (promise S9). What
//! a step does is in `src/computer/provision` and `src/computer/deletion`.
//!
//! Ids and results are stored in records, receipts and statuses. They must never change, and those of a newer version must survive a
//! rollback: `spelling_tests.rs` pins them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SkippableStep, StepDeadlines};

/// A step of a fixed sequence.
pub trait Sequence: Copy + Ord + 'static {
    /// All steps, in order.
    const ALL: &'static [Self];
    /// Its id: stored, never changed.
    fn id(self) -> &'static str;
    /// The step in words.
    fn title(self) -> &'static str;

    /// The step before this one.
    fn previous(self) -> Option<Self> {
        Self::ALL.iter().rev().copied().find(|step| *step < self)
    }

    /// The step with this id.
    fn from_id(id: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|step| step.id() == id)
    }
}

macro_rules! sequence {
    ($(#[$doc:meta])* $sequence:ident { $($(#[$about:meta])* $step:ident = $id:literal, $title:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $sequence { $($(#[$about])* $step),* }

        impl Sequence for $sequence {
            const ALL: &'static [Self] = &[$(Self::$step),*];

            fn id(self) -> &'static str {
                match self { $(Self::$step => $id),* }
            }

            fn title(self) -> &'static str {
                match self { $(Self::$step => $title),* }
            }
        }

        impl $sequence {
            /// Event reason of this step in this state, for example `StopPodsCompleted`.
            pub fn event_reason(self, status: StepStatus) -> String {
                let step = match self { $(Self::$step => stringify!($step)),* };
                format!("{step}{}", status.as_str())
            }
        }
    };
}

sequence! {
    /// The steps of a deletion, in order (DESIGN.md 4).
    DeletionStep {
        /// The record becomes a tombstone, and the Secret of the key is deleted.
        RevokeCredentials = "revoke-credentials", "Revoke the key";
        /// Nothing writes to the home volume any more.
        StopPods = "stop-pods", "Stop the pods";
        /// The archive is verified in the store.
        ArchiveSessions = "archive-sessions", "Archive the sessions";
        /// The volume is deleted or kept, as its own reclaim policy says.
        DeleteVolumes = "delete-volumes", "Delete the volume";
        /// The receipt is in the store and on record.
        WriteReceipt = "write-receipt", "Write the receipt";
    }
}

sequence! {
    /// The steps of a creation, in order.
    ProvisionStep {
        /// The finalizer is on the Computer, and the record exists.
        CreateRecord = "create-record", "Create the record";
        /// The Secret of the key exists.
        IssueKey = "issue-key", "Issue the key";
        /// The claim of the home exists.
        CreateVolume = "create-volume", "Create the home volume";
        /// The pod is ready, or the computer is suspended.
        StartPod = "start-pod", "Start the pod";
        /// The home volume is set to `Retain` and on record.
        ProtectVolume = "protect-volume", "Protect the home volume";
        /// The key authenticates.
        ActivateKey = "activate-key", "Activate the key";
    }
}

// A receipt states what every other step has done: it must stay the last step.
const _: () = assert!(matches!(DeletionStep::ALL.last(), Some(DeletionStep::WriteReceipt)));

impl DeletionStep {
    /// How an override names this step. `None`: it cannot be skipped.
    pub fn skippable(self) -> Option<SkippableStep> {
        match self {
            Self::RevokeCredentials => None,
            Self::StopPods => Some(SkippableStep::StopPods),
            Self::ArchiveSessions => Some(SkippableStep::ArchiveSessions),
            Self::DeleteVolumes => Some(SkippableStep::DeleteVolumes),
            Self::WriteReceipt => Some(SkippableStep::WriteReceipt),
        }
    }

    /// Seconds after which a class wants this step to be shown as blocked. `None`: there is no such deadline.
    pub fn deadline(self, deadlines: &StepDeadlines) -> Option<i64> {
        match self {
            Self::RevokeCredentials | Self::WriteReceipt => None,
            Self::StopPods => Some(deadlines.stop_pods_seconds),
            Self::ArchiveSessions => Some(deadlines.archive_sessions_seconds),
            Self::DeleteVolumes => Some(deadlines.delete_volumes_seconds),
        }
    }
}

impl ProvisionStep {
    /// Whether a machine that the operator does not run has this step.
    pub fn applies_to_byom(self) -> bool {
        match self {
            Self::CreateRecord | Self::IssueKey | Self::ActivateKey => true,
            Self::CreateVolume | Self::StartPod | Self::ProtectVolume => false,
        }
    }
}

/// The current step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CurrentStep {
    /// Of the creation.
    Provision(ProvisionStep),
    /// Of the deletion.
    Deletion(DeletionStep),
    /// After the last step of the deletion: the finalizer is removed.
    Release,
}

impl CurrentStep {
    /// As the status, events and metrics name it.
    pub fn id(self) -> &'static str {
        match self {
            Self::Provision(step) => step.id(),
            Self::Deletion(step) => step.id(),
            Self::Release => "release",
        }
    }

    /// The step that a status names. `None`: it is one of another version.
    pub fn from_id(id: &str) -> Option<Self> {
        let provision = ProvisionStep::from_id(id).map(Self::Provision);
        let known = provision.or_else(|| DeletionStep::from_id(id).map(Self::Deletion));
        known.or_else(|| (id == Self::Release.id()).then_some(Self::Release))
    }
}

/// How a finished step came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepResult {
    /// It was done, and that was verified.
    Verified,
    /// There was nothing to do for this computer.
    NotApplicable,
    /// It was skipped, by the class policy or by a `DeletionOverride`.
    Skipped,
    /// A result of a newer version, kept as it was read. The step runs again.
    #[serde(untagged)]
    Unknown(String),
}

impl StepResult {
    /// The state of a step that came out like this.
    pub fn status(&self) -> StepStatus {
        match self {
            Self::Verified => StepStatus::Completed,
            Self::NotApplicable => StepStatus::NotApplicable,
            Self::Skipped => StepStatus::Skipped,
            Self::Unknown(_) => StepStatus::Running,
        }
    }
}

/// Something for each step of a deletion, stored under the step's id. What a newer version has stored for its own steps is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct PerStep<T>(BTreeMap<String, T>);

impl<T> Default for PerStep<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> PerStep<T> {
    /// What is stored for a step.
    pub fn get(&self, step: DeletionStep) -> Option<&T> {
        self.0.get(step.id())
    }

    /// Stores it, in place of what is stored for this step.
    pub fn insert(&mut self, step: DeletionStep, value: T) {
        self.0.insert(step.id().to_owned(), value);
    }

    /// Stores it, unless there is something for this step.
    pub fn insert_new(&mut self, step: DeletionStep, value: T) {
        self.0.entry(step.id().to_owned()).or_insert(value);
    }

    /// Removes what is stored for a step.
    pub fn remove(&mut self, step: DeletionStep) {
        self.0.remove(step.id());
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum StepStatus {
    /// Not started: an earlier step is not finished.
    #[default]
    Pending,
    /// In progress.
    Running,
    /// In progress, but something outside must change first; `error` says what.
    Blocked,
    /// Finished and verified.
    Completed,
    /// Nothing to do for this computer.
    NotApplicable,
    /// Skipped by a class policy or a `DeletionOverride`; the receipt says which.
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
    /// Why it is blocked, or why it was skipped, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub error: Option<String>,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
}
