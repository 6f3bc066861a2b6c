//! `ComputerRecord`: the write-ahead record of one computer, in the operator's namespace, named after the computer's UID (DESIGN.md 4.1).
//!
//! It is written before the first child. It lists the objects that the operator owns (S5) and everything that deletion needs, so deletion
//! depends neither on the class, nor on the spec, nor on objects of a tenant. After the deletion it stays as the receipt, for 30 days
//! (`RECORD_RETENTION` in `computer/deletion/mod.rs`).

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Unknown;
use super::cause::Cause;
use super::class::{ArchiveSettings, StepDeadlines};
use super::computer::Provider;
use super::deletion::Deletion;
use super::key::{FormerKey, RetiredSecret};

/// The operator's record of one computer. Tenants cannot write it. After the deletion it is the receipt.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema, Default)]
#[kube(
    group = "computer-operator.dev",
    version = "v1alpha1",
    kind = "ComputerRecord",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    selectable = ".spec.namespace",
    printcolumn = r#"{"name":"Computer namespace","type":"string","jsonPath":".spec.namespace"}"#,
    printcolumn = r#"{"name":"Computer","type":"string","jsonPath":".spec.computer"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".spec.state.phase"}"#,
    printcolumn = r#"{"name":"Key","type":"string","jsonPath":".spec.state.credential"}"#,
    printcolumn = r#"{"name":"Sessions","type":"integer","jsonPath":".spec.state.deletion.archive.sessions"}"#,
    printcolumn = r#"{"name":"Left out","type":"integer","jsonPath":".spec.state.deletion.archive.problems"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ComputerRecordSpec {
    /// Namespace of the computer.
    pub namespace: String,
    /// UID of that namespace: who may read what remains of the computer depends on it, because a namespace of the same name may be created
    /// again. Missing in a record of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_uid: Option<String>,
    /// Name of the computer.
    pub computer: String,
    /// Who runs the machine.
    #[serde(default)]
    pub provider: Provider,
    /// The class at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
    /// The settings that deletion needs, as they were at creation. Missing in a record that was lost and re-created: the whole home is then
    /// archived with the policy `Required`.
    #[serde(default)]
    pub snapshot: Snapshot,
    /// What has happened so far.
    #[serde(default)]
    #[x_kube(validation = Rule::new("!has(oldSelf.credential) || oldSelf.credential != 'Revoked' || (has(self.credential) && self.credential == 'Revoked')")
        .message("a revoked credential stays revoked: create another Computer"))]
    pub state: RecordState,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// The settings that deletion needs, as they were when the computer was created.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Session paths of the class, relative to the home; `.` or empty: the whole home.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub session_paths: Vec<String>,
    /// Archive policy of the class.
    #[serde(default)]
    pub archive: ArchiveSettings,
    /// Deadlines of the class.
    #[serde(default)]
    pub deadlines: StepDeadlines,
    /// `limits.defaultTimeToLiveSeconds` of the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_time_to_live_seconds: Option<i64>,
    /// `limits.maxTimeToLiveSeconds` of the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_time_to_live_seconds: Option<i64>,
    /// `runAsUser` in effect for the machine, and so for the archive pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_user: Option<i64>,
    /// `runAsGroup` in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_group: Option<i64>,
    /// `fsGroup` in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_group: Option<i64>,
    /// SELinux level in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub se_linux_level: Option<String>,
    /// Tolerations of the machine's pod: its volume may be accessible only from such nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Grace period of the machine's pod, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
    /// Hash of the pod that the class defined, as version 0.1 computed it. That version writes it; later ones keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_hash: Option<String>,
    /// Hash of the pod's settings in the class and the Computer when the pod was created, to detect drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_hash: Option<String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// Whether the computer's key authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum CredentialState {
    /// Not issued yet, or the computer is not ready: does not authenticate.
    #[default]
    Pending,
    /// Authenticates, as long as the Computer and its namespace are not being deleted (S2).
    Live,
    /// A tombstone: never authenticates again.
    Revoked,
}

/// The phase of the life of the computer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum RecordPhase {
    /// The computer exists.
    #[default]
    Live,
    /// Its deletion has begun.
    Deleting,
    /// Everything is gone and the receipt is stored.
    Released,
}

/// The objects that were created for a computer: names before the create, UIDs after it (S5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct Children {
    /// Name of the claim of the home volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_name: Option<String>,
    /// UID of the claim of the home volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_uid: Option<String>,
    /// Name of the key's Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// UID of the key's Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_uid: Option<String>,
    /// The key's Secret is not immutable: a machine mounts it, and the kubelet updates the mounted files of mutable Secrets only. The next key gets the same name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secret_followed: bool,
    /// Names of Secrets that were not found and were replaced by another Secret: the create request of such a Secret may still have
    /// succeeded. The deletion makes sure that they are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_secret_names: Vec<String>,
    /// The Secret of the key before the last rotation, until it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired_secret: Option<RetiredSecret>,
    /// Pods whose deletion is not confirmed yet, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<PodRecord>,
    /// The home volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeRecord>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// One pod of a computer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct PodRecord {
    /// Its unguessable name, written before the create.
    pub name: String,
    /// Its UID, written after the create.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The Secret of the key that it mounts, if its class says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_secret: Option<String>,
    /// The node it ran on, if it was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// When every container was reported as terminated: proof that nothing writes to the volume any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<Time>,
    /// When the pod was first found gone without that proof (a forced deletion after its finalizer was removed).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vanished_at: Option<Time>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// The home volume, recorded when it is set to `Retain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRecord {
    /// Name of the PersistentVolume.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its original reclaim policy, which decides whether the volume is deleted at the end.
    pub original_reclaim_policy: String,
    /// UID of the operator's claim that was bound to it before the current one, which may not be bound yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_claim_uid: Option<String>,
    /// StorageClass name, for the custody claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// What has happened so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct RecordState {
    /// The phase of the life of the computer.
    #[serde(default)]
    pub phase: RecordPhase,
    /// Whether its key authenticates.
    #[serde(default)]
    pub credential: CredentialState,
    /// Hash of the key; see `credentials::Key::hash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_hash: Option<String>,
    /// When that hash was recorded: the beginning of the key. Empty in a record of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_issued_at: Option<Time>,
    /// The value of `spec.key.rotation` that the key was issued for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_rotation: Option<String>,
    /// The key before the last rotation, if it still authenticates for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_key: Option<FormerKey>,
    /// The machine gets its key: its class had `key.mountPath` when the machine was last started, or when the computer was created.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub key_mounted: bool,
    /// What the key may do over the HTTP API: words of the class's `key.allow`. A word of a newer version allows nothing. Missing: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    pub key_allow: Option<Vec<String>>,
    /// The objects that were created for it.
    #[serde(default)]
    pub children: Children,
    /// Why the operator itself is about to delete the Computer. Removed if the Computer is not deleted after all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// Machine pods in a row that ended by themselves soon after they were created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash_loop: Option<CrashLoop>,
    /// The deletion, once it has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<Deletion>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// The reason for a deletion that the operator starts, recorded before it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ending {
    /// `TimeToLiveExpired`.
    #[schemars(with = "String")]
    pub cause: Cause,
    /// When the operator decided so.
    pub at: MicroTime,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// Machine pods in a row that ended by themselves soon after they were created: determines the backoff before the next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct CrashLoop {
    /// How many.
    pub pods: i32,
    /// Why the last one ended.
    #[schemars(length(max = 256))]
    pub last: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}
