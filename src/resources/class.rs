//! `ComputerClass`: what an admin offers, as a StorageClass is for volumes.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{QUANTITY_RULE, Unknown};

/// What teams can choose with `spec.className`: the pod, its home volume, and what happens to the sessions on deletion.
/// The annotation `computer-operator.dev/is-default-class: "true"` makes one the default.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema, Default)]
#[kube(
    group = "computer-operator.dev",
    version = "v1alpha1",
    kind = "ComputerClass",
    plural = "computerclasses",
    derive = "PartialEq",
    derive = "Default",
    status = "ComputerClassStatus",
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type=='Accepted')].status"}"#,
    printcolumn = r#"{"name":"Archive","type":"string","jsonPath":".spec.archive.policy"}"#,
    printcolumn = r#"{"name":"Description","type":"string","jsonPath":".spec.description"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ComputerClassSpec {
    /// What it is for, for people, at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub description: Option<String>,
    /// A pod template (`metadata.labels`, `metadata.annotations`, `spec`). The first container gets the home volume. Checked by a
    /// server-side dry run, whose error is in the `Accepted` condition. What it leaves out is filled in to satisfy
    /// Pod Security `restricted`: user and group 1000, no privileges, no service account token.
    #[schemars(schema_with = "super::any_object")]
    pub pod_template: serde_json::Value,
    /// The home volume.
    #[serde(default)]
    pub storage: StorageSettings,
    /// Folders under the home whose content is archived, relative to it; at most 16. `.` alone is the whole home. Left out:
    /// `.factory/sessions`, `.claude/projects` and `.codex/sessions`. What lies elsewhere in the home is not archived: it is destroyed
    /// with the volume.
    #[serde(default = "default_session_paths")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), pattern(r"^[^/].*$")))]
    #[x_kube(validation = Rule::new("self.all(p, p == '.' || !p.split('/').exists(s, s == '..' || s == '.'))").message("a session path is relative to the home and has no part that is '.' or '..'; '.' alone is the whole home"))]
    pub session_paths: Vec<String>,
    /// What deletion does with the sessions.
    #[serde(default)]
    pub archive: ArchiveSettings,
    /// How long a deletion step may take before the policy decides.
    #[serde(default)]
    pub deadlines: StepDeadlines,
    /// Bounds on what a computer of this class may ask for.
    #[serde(default)]
    pub limits: ClassLimits,
}

fn default_session_paths() -> Vec<String> {
    [".factory/sessions", ".claude/projects", ".codex/sessions"].map(str::to_owned).to_vec()
}

/// The home volume of a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageSettings {
    /// StorageClass of the claim. Left out: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// Size of the home volume when the computer does not say: a quantity such as `10Gi`, the default.
    #[serde(default = "default_size")]
    #[schemars(extend("maxLength" = 32, "nullable" = false))]
    #[x_kube(validation = Rule::new(QUANTITY_RULE).message("size is a quantity above zero, for example 10Gi"))]
    pub size: Quantity,
    /// Where the home volume is mounted in the first container: an absolute path, by default `/home/user`.
    #[serde(default = "default_mount_path")]
    #[schemars(length(min = 2, max = 256), pattern(r"^/[^:]+$"))]
    pub mount_path: String,
}

fn default_size() -> Quantity {
    Quantity("10Gi".to_owned())
}

fn default_mount_path() -> String {
    "/home/user".to_owned()
}

impl Default for StorageSettings {
    fn default() -> Self {
        Self { storage_class_name: None, size: default_size(), mount_path: default_mount_path() }
    }
}

/// Whether sessions must be archived before the volume goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum ArchivePolicy {
    /// Wait for ever, visibly, until the archive is verified.
    #[default]
    Required,
    /// Go on without it when the deletion has waited for `deadlines.archiveSessionsSeconds` in all while nothing worked on the archive: no
    /// archive pod ran and nothing was read back. Time in which the operator was down does not count, what is stored begins the wait
    /// again, and an archive that is whole is always taken. The receipt says so.
    BestEffort,
    /// No archive is wanted.
    None,
}

/// What a file that the machine's own user cannot read (`chmod 000`) does to a `Required` archive. `BestEffort` always records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum UnreadableFiles {
    /// It becomes an entry in the manifest and is destroyed with the volume.
    Record,
    /// The archive step is blocked until a `DeletionOverride` gives up such files (S1).
    #[default]
    Block,
}

/// What the deletion of a namespace waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum OnNamespaceDeletion {
    /// For everything, as any other deletion.
    #[default]
    Wait,
    /// Only until the key is dead and the volume is in the operator's custody; the rest goes on from the record.
    HandOff,
}

/// What deletion does with the sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveSettings {
    /// Whether sessions must be archived before the volume goes.
    #[serde(default)]
    pub policy: ArchivePolicy,
    /// What a file that the machine's own user cannot read does to a `Required` archive: `Block` (the default) the deletion until an
    /// admin decides, or `Record` it in the manifest and go on without it.
    #[serde(default)]
    pub unreadable_files: UnreadableFiles,
    /// What the deletion of a namespace waits for.
    #[serde(default)]
    pub on_namespace_deletion: OnNamespaceDeletion,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

impl ArchiveSettings {
    /// Whether a file that cannot be read blocks the archive. Under `BestEffort` it never does: what can be read is the best effort.
    pub fn blocks_unreadable(&self) -> bool {
        self.policy == ArchivePolicy::Required && self.unreadable_files == UnreadableFiles::Block
    }
}

/// Seconds that a deletion step may take. A passed deadline makes the step `Blocked` and visible, and it is tried on. For
/// `archiveSessions` under `BestEffort` it is the time for which nothing may work on the archive before the deletion goes on without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepDeadlines {
    /// For the pods to stop, in seconds: 1 to 604800 (a week), by default 600.
    #[serde(default = "default_stop")]
    #[schemars(range(min = 1, max = 604_800))]
    pub stop_pods_seconds: i64,
    /// For the archive to be written and verified, in seconds: 1 to 604800 (a week), by default 3600. Under `BestEffort`: for which nothing
    /// works on it, at least a minute.
    #[serde(default = "default_archive")]
    #[schemars(range(min = 1, max = 604_800))]
    pub archive_sessions_seconds: i64,
    /// For the volume to be gone, in seconds: 1 to 604800 (a week), by default 600.
    #[serde(default = "default_volumes")]
    #[schemars(range(min = 1, max = 604_800))]
    pub delete_volumes_seconds: i64,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

fn default_stop() -> i64 {
    600
}
fn default_archive() -> i64 {
    3600
}
fn default_volumes() -> i64 {
    600
}

impl Default for StepDeadlines {
    fn default() -> Self {
        Self {
            stop_pods_seconds: default_stop(),
            archive_sessions_seconds: default_archive(),
            delete_volumes_seconds: default_volumes(),
            unknown: Unknown::new(),
        }
    }
}

/// Bounds on what a computer of this class may ask for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct ClassLimits {
    /// Largest `spec.storage.size` of a Computer, a quantity such as `100Gi`. Left out: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 32))]
    #[x_kube(validation = Rule::new(QUANTITY_RULE).message("maxStorage is a quantity above zero, for example 100Gi"))]
    pub max_storage: Option<Quantity>,
}

/// What the operator found out about the class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct ComputerClassStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: `Accepted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
