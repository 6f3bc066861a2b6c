//! `DeletionOverride`: an admin's decision about one stuck deletion (promise S11). RBAC `create` on this kind is the right to force a
//! deletion. The revocation of a key must never become skippable.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A step, or a part of one, that may be skipped. Revocation is not one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SkippableStep {
    /// Continue although it is not proved that every container has stopped.
    StopPods,
    /// Continue without an archive.
    ArchiveSessions,
    /// Archive the readable files and give up the others; the manifest names them.
    UnreadableFiles,
    /// Keep the volume, with the reclaim policy `Retain`; the receipt names it.
    DeleteVolumes,
    /// Continue without a copy of the receipt in the archive store; the record keeps it.
    WriteReceipt,
}

/// Lets one stuck deletion continue without the named steps, for a reason that the receipt repeats. It never skips the revocation of the key.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema, Default)]
#[kube(
    group = "computer-operator.dev",
    version = "v1alpha1",
    kind = "DeletionOverride",
    derive = "PartialEq",
    derive = "Default",
    status = "DeletionOverrideStatus",
    printcolumn = r#"{"name":"Namespace","type":"string","jsonPath":".spec.computer.namespace"}"#,
    printcolumn = r#"{"name":"Computer","type":"string","jsonPath":".spec.computer.name"}"#,
    printcolumn = r#"{"name":"Skip","type":"string","jsonPath":".spec.skip"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].reason","description":"InForce, NotDeleting or NameMismatch. Empty: the operator knows no computer with this UID"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".spec.reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a DeletionOverride cannot be changed: create another one"))]
pub struct DeletionOverrideSpec {
    /// The computer that is being deleted.
    pub computer: OverrideTarget,
    /// The steps to skip: `stop-pods`, `archive-sessions`, `unreadable-files` (of the archive), `delete-volumes`, `write-receipt`.
    #[schemars(length(min = 1, max = 5), extend("x-kubernetes-list-type" = "set"))]
    pub skip: Vec<SkippableStep>,
    /// Why, in 10 to 1024 characters. The receipt repeats it.
    #[schemars(length(min = 10, max = 1024))]
    pub reason: String,
}

/// One computer. Its UID distinguishes it from others of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct OverrideTarget {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its UID (`kubectl get computer NAME -o jsonpath={.metadata.uid}`).
    #[schemars(length(min = 36, max = 36), pattern(r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"))]
    pub uid: String,
}

/// What the operator observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct DeletionOverrideStatus {
    /// Conditions: `Accepted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
