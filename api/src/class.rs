//! `ComputerClass`: what an admin offers, as a StorageClass is for volumes.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ClassKey, QUANTITY_RULE, Unknown};

/// What teams choose with `spec.className`: the pod, its home volume, and what happens to the sessions on deletion.
/// The annotation `computer-operator.dev/is-default-class: "true"` makes a class the default.
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
#[x_kube(validation = Rule::new("!has(self.key) || !has(self.key.mountPath) || !has(self.storage) || !has(self.storage.mountPath) || !((self.key.mountPath + '/').startsWith(self.storage.mountPath + '/') || (self.storage.mountPath + '/').startsWith(self.key.mountPath + '/'))").message("key.mountPath must be neither the home (storage.mountPath), nor a folder in it, nor a folder that contains it: a key in the home would be archived. Use for example /run/computer"))]
pub struct ComputerClassSpec {
    /// A human-readable description of its purpose, at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub description: Option<String>,
    /// A pod template (`metadata.labels`, `metadata.annotations`, `spec`). The first container gets the home volume. A server-side dry run
    /// with strict field validation checks it: an unknown or misspelt field is an error, which is in the `Accepted` condition. Defaults
    /// satisfy Pod Security `restricted`: user and group 1000, no privileges, no service account token.
    #[schemars(schema_with = "super::any_object")]
    pub pod_template: serde_json::Value,
    /// The home volume.
    #[serde(default)]
    pub storage: StorageSettings,
    /// Folders whose content is archived, relative to the home; at most 16. `.` alone is the whole home. Default: `.factory/sessions`,
    /// `.claude/projects` and `.codex/sessions`. Files elsewhere in the home are not archived: they are destroyed with the volume.
    #[serde(default = "default_session_paths")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), pattern(r"^[^/].*$")))]
    #[x_kube(validation = Rule::new("self.all(p, p == '.' || !p.split('/').exists(s, s == '..' || s == '.'))").message("a session path must be relative to the home and must not contain the parts '.' or '..'; '.' alone is the whole home"))]
    pub session_paths: Vec<String>,
    /// What deletion does with the sessions.
    #[serde(default)]
    pub archive: ArchiveSettings,
    /// How long a deletion step may take before it is reported as blocked. Only `BestEffort` continues after it.
    #[serde(default)]
    pub deadlines: StepDeadlines,
    /// Bounds on what a computer of this class may ask for.
    #[serde(default)]
    pub limits: ClassLimits,
    /// The keys of the computers of this class: whether their machines get them, and what they may do.
    #[serde(default, skip_serializing_if = "ClassKey::is_default")]
    pub key: ClassKey,
}

fn default_session_paths() -> Vec<String> {
    [".factory/sessions", ".claude/projects", ".codex/sessions"].map(str::to_owned).to_vec()
}

/// The home volume of a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageSettings {
    /// StorageClass of the claim. Default: the cluster's default StorageClass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// Size of the home volume when the Computer does not set one: a quantity. Default: `10Gi`.
    #[serde(default = "default_size")]
    #[schemars(extend("maxLength" = 32, "nullable" = false))]
    #[x_kube(validation = Rule::new(QUANTITY_RULE).message("size must be a quantity above zero, for example 10Gi"))]
    pub size: Quantity,
    /// Where the home volume is mounted in the first container: an absolute path. Default: `/home/user`.
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
    /// The deletion waits until the archive is verified, without a time limit. The condition `Blocked` says why.
    #[default]
    Required,
    /// The deletion continues without an archive after `deadlines.archiveSessionsSeconds` in total during which no archive pod ran and
    /// nothing was read back. Time in which the operator was down does not count. Each object that is stored restarts the wait. A complete
    /// archive is always used. The receipt says when sessions were given up.
    BestEffort,
    /// Sessions are not archived.
    None,
}

impl ArchivePolicy {
    /// As it is stored and published.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "Required",
            Self::BestEffort => "BestEffort",
            Self::None => "None",
        }
    }
}

/// How a `Required` archive treats a file that the machine's own user cannot read (`chmod 000`). `BestEffort` always records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum UnreadableFiles {
    /// The manifest names the file; it is destroyed with the volume.
    Record,
    /// The archive step is `Blocked` until a `DeletionOverride` gives up such files (S1).
    #[default]
    Block,
}

/// What the deletion of a namespace waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum OnNamespaceDeletion {
    /// For the whole deletion, as for any other deletion.
    #[default]
    Wait,
    /// Only until the key is revoked and the volume is in the operator's custody. The deletion then continues from the record.
    HandOff,
}

/// What deletion does with the sessions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveSettings {
    /// Whether sessions must be archived before the volume goes.
    #[serde(default)]
    pub policy: ArchivePolicy,
    /// How a `Required` archive treats a file that the machine's own user cannot read: `Block` (the default) blocks the deletion until an
    /// admin decides, `Record` names it in the manifest and continues without it.
    #[serde(default)]
    pub unreadable_files: UnreadableFiles,
    /// What the deletion of a namespace waits for.
    #[serde(default)]
    pub on_namespace_deletion: OnNamespaceDeletion,
    /// Most bytes that one archive may have in the store, compressed: a quantity such as `500Gi`. The deletion of a larger home is `Blocked`,
    /// under every policy but `None`, until this is raised, also for computers that exist, or an override gives the sessions up. Default, and
    /// with `0`: the operator's (`archive.maxBytes` of the chart).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 32))]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 0 : isQuantity(self) && !quantity(self).isLessThan(quantity('0'))").message("maxBytes must be a quantity, for example 500Gi; 0 is the default of the operator"))]
    pub max_bytes: Option<Quantity>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

impl ArchiveSettings {
    /// Whether a file that cannot be read blocks the archive. Under `BestEffort` it never does.
    pub fn blocks_unreadable(&self) -> bool {
        self.policy == ArchivePolicy::Required && self.unreadable_files == UnreadableFiles::Block
    }

    /// Most bytes of an archive. `None`: as the operator's settings say.
    pub fn most_bytes(&self) -> Option<u64> {
        self.max_bytes.as_ref().and_then(crate::quantity::bytes).filter(|bytes| *bytes > 0)
    }
}

/// Seconds that a deletion step may take. After the deadline the step is reported as `Blocked` and is still retried. Under `BestEffort`,
/// `archiveSessionsSeconds` is the time without any work on the archive after which the deletion continues without one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepDeadlines {
    /// Time for the pods to stop, in seconds: 1 to 604800 (a week). Default: 600.
    #[serde(default = "default_stop")]
    #[schemars(range(min = 1, max = 604_800))]
    pub stop_pods_seconds: i64,
    /// Time for the archive to be written and verified, in seconds: 1 to 604800 (a week). Default: 3600. Under `BestEffort` it is the time
    /// without any work on the archive, at least a minute.
    #[serde(default = "default_archive")]
    #[schemars(range(min = 1, max = 604_800))]
    pub archive_sessions_seconds: i64,
    /// Time for the volume to be deleted, in seconds: 1 to 604800 (a week). Default: 600.
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
    /// Largest `spec.storage.size` of a Computer, a quantity such as `100Gi`. Default: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 32))]
    #[x_kube(validation = Rule::new(QUANTITY_RULE).message("maxStorage must be a quantity above zero, for example 100Gi"))]
    pub max_storage: Option<Quantity>,
    /// `spec.timeToLiveSeconds` of a Computer that sets none: 60 to 315360000. Default: none, so that it lives until a user deletes it, or until `maxTimeToLiveSeconds`. Copied when the
    /// Computer is created: a change is for new computers only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 315_360_000))]
    pub default_time_to_live_seconds: Option<i64>,
    /// Seconds after its creation at which a Computer is deleted at the latest, whatever its `spec.timeToLiveSeconds` is: 60 to 315360000. Default: unlimited.
    /// Copied when the Computer is created. `spec.deletionProtection` takes precedence. To prevent that, reject it with an admission policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 315_360_000))]
    pub max_time_to_live_seconds: Option<i64>,
}

/// What the operator observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct ComputerClassStatus {
    /// The generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: `Accepted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
