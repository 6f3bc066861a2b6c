//! `Computer`: a persistent machine for an agent or a developer.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::computer_record::Children;
use super::{KeySettings, QUANTITY_RULE, Step};

/// Who runs the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum Provider {
    /// This operator: a pod with a home volume.
    #[default]
    Managed,
    /// The user ("bring your own machine"): the computer has a key, but no pod and no volume.
    BYOM,
}

/// A persistent machine: a pod, a home volume, a key of its own, and the sessions that ran on it.
/// Deleting it is terminal: the key is revoked, the sessions are archived, pod and volume are removed.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema, Default)]
#[kube(
    group = "computer-operator.dev",
    version = "v1alpha1",
    kind = "Computer",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    status = "ComputerStatus",
    category = "computer-operator",
    shortname = "comp",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Status","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Step","type":"string","jsonPath":".status.step"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Blocked')].reason","description":"Why it is blocked. Empty: it is not blocked"}"#,
    printcolumn = r#"{"name":"Class","type":"string","jsonPath":".status.className"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Provider","type":"string","priority":1,"jsonPath":".spec.provider"}"#,
    printcolumn = r#"{"name":"Pod","type":"string","priority":1,"jsonPath":".status.children.pods[-1:].name"}"#,
    printcolumn = r#"{"name":"Node","type":"string","priority":1,"jsonPath":".status.nodeName"}"#,
    printcolumn = r#"{"name":"Expires","type":"string","priority":1,"jsonPath":".status.expiresAt","description":"Time at which the Computer expires and is deleted. Empty: never"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.className) == has(oldSelf.className) && (!has(self.className) || self.className == oldSelf.className)").message("className cannot be changed: delete this Computer (its sessions are archived) and create another one"),
    validation = Rule::new("has(self.storage) == has(oldSelf.storage) && (!has(self.storage) || self.storage == oldSelf.storage)").message("storage cannot be changed: delete this Computer (its sessions are archived) and create another one"),
    validation = Rule::new("!has(oldSelf.hostId) || (has(self.hostId) && self.hostId == oldSelf.hostId)").message("hostId cannot be changed once it is set: delete this Computer and register the machine again"),
    validation = Rule::new("self.provider != 'BYOM' || (!has(self.storage) && !has(self.className))").message("className and storage are not supported with provider BYOM: such a computer has no pod and no volume"),
    validation = Rule::new("self.provider != 'BYOM' || !self.suspended").message("suspended is not supported with provider BYOM: stop the machine yourself")
)]
pub struct ComputerSpec {
    /// Who runs the machine: `Managed` (the operator runs a pod with a home volume; the default) or `BYOM` (you run it; the operator only
    /// issues its key). Immutable.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("provider cannot be changed: delete this Computer and create another one"))]
    pub provider: Provider,
    /// The `ComputerClass` that defines the pod, the storage and the archive policy. Default: the default class at creation. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class_name: Option<String>,
    /// A human-readable name, 1 to 63 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub display_name: Option<String>,
    /// The user that sessions run as on the machine, 1 to 63 characters. The pod gets it literally as the environment variable
    /// `REMOTE_USER`. It is input from the user who created the Computer, so a script must quote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub remote_user: Option<String>,
    /// Repositories to work on: at most 20, each at most 2048 characters without spaces. The pod gets them literally as the environment
    /// variable `REPOSITORIES`, separated by spaces. They are input from the user who created the Computer, so a script must split them
    /// without expanding patterns (`set -f`) and quote each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(min = 1, max = 2048), pattern(r"^\S+$")))]
    pub repositories: Vec<String>,
    /// Whether the machine should install the dependencies of its repositories. The pod gets it as the environment variable
    /// `AUTO_INSTALL_DEPS`. Default: `false`.
    #[serde(default)]
    pub auto_install_deps: bool,
    /// The machine's own id: a UUID that its agent registers. Immutable once set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 36, max = 36), pattern(r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"))]
    pub host_id: Option<String>,
    /// `true` stops the pod and keeps the home volume and the key; `false`, the default, starts it again. Once the pod has stopped, the
    /// condition `Ready` is `True` with reason `Suspended`. Not supported with provider `BYOM`.
    #[serde(default)]
    pub suspended: bool,
    /// Seconds after creation at which the computer is deleted, as if by `kubectl delete`: 60 to 315360000 (ten years). Default:
    /// `limits.defaultTimeToLiveSeconds` of the class, otherwise never. It is at most `limits.maxTimeToLiveSeconds` of the class, also by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 315_360_000))]
    pub time_to_live_seconds: Option<i64>,
    /// `true` prevents deletion when the time to live expires, and deletion requests are denied where the operator's admission policies are
    /// installed. It does not prevent the deletion of a namespace. Default: `false`.
    #[serde(default)]
    pub deletion_protection: bool,
    /// The home volume. Default: as the class defines. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<ComputerStorage>,
    /// The computer's key.
    #[serde(default, skip_serializing_if = "KeySettings::is_default")]
    pub key: KeySettings,
}

/// The home volume of one computer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct ComputerStorage {
    /// Size of the home volume, for example `10Gi`; at most the class's `limits.maxStorage`.
    #[schemars(extend("maxLength" = 32))]
    #[x_kube(validation = Rule::new(QUANTITY_RULE).message("size must be a quantity above zero, for example 10Gi"))]
    pub size: Quantity,
}

/// The state of a computer, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// The pod, the volume or the key is not ready yet.
    Provisioning,
    /// Ready to be used.
    Active,
    /// Stopped on request; the home volume is kept.
    Suspended,
    /// Provisioning fails; the `Ready` condition says why.
    Error,
    /// Being deleted; `deletionSteps` shows the progress.
    Deleting,
}

/// What the operator observed. Written by the operator only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct ComputerStatus {
    /// The generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The state of the computer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The current step, for the printer column; empty when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub step: Option<String>,
    /// Conditions: `Ready`, `Drifted`, `Blocked` while something must be done, and during deletion `Deleting`. `Ready` is `True` when the computer is as its spec
    /// declares: it can be used (reason `Ready`), or it is suspended (reason `Suspended`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// When the time to live expires, by the spec and the limits of the class. The Computer is deleted then, unless `spec.deletionProtection` is `true`.
    /// Empty: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// The class in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
    /// The node that the pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The Secret in this namespace whose key `token` holds the computer's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_secret_name: Option<String>,
    /// What the computer's key may do over the HTTP API, if its class limits it (`key.allow`). Empty: everything that a computer's key can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    pub key_allows: Option<Vec<String>>,
    /// The objects that were created for this computer, copied from its record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub children: Option<Children>,
    /// Steps of the creation, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub provisioning_steps: Vec<Step>,
    /// Steps of the deletion, in order; empty until it begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub deletion_steps: Vec<Step>,
    /// When the deletion began. The key does not authenticate from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Time>,
}
