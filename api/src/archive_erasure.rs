//! `ArchiveErasure`: an authorized request to erase the archives of one deleted computer (DESIGN.md S7). RBAC `create` on this kind is the right to
//! erase. What has been erased cannot be restored, so it must never be possible to change the request.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::deletion_override::OverrideTarget;

/// Erases every archive of one deleted computer from the archive store. The receipt stays, and a tombstone beside it says when, why and by whose
/// decision the data was erased. Deleting an `ArchiveErasure` that is not complete withdraws it: what is not erased yet stays.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema, Default)]
#[kube(
    group = "computer-operator.dev",
    version = "v1alpha1",
    kind = "ArchiveErasure",
    derive = "PartialEq",
    derive = "Default",
    status = "ArchiveErasureStatus",
    printcolumn = r#"{"name":"Namespace","type":"string","jsonPath":".spec.computer.namespace"}"#,
    printcolumn = r#"{"name":"Computer","type":"string","jsonPath":".spec.computer.name"}"#,
    printcolumn = r#"{"name":"Complete","type":"string","jsonPath":".status.conditions[?(@.type==\"Complete\")].status"}"#,
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".status.conditions[?(@.type==\"Complete\")].reason","description":"Erased, NothingToErase, Erasing, Removed (checked again a day later), or why it is blocked"}"#,
    printcolumn = r#"{"name":"Objects","type":"integer","jsonPath":".status.removedObjects"}"#,
    printcolumn = r#"{"name":"Bytes","type":"integer","jsonPath":".status.removedBytes"}"#,
    printcolumn = r#"{"name":"Requested by","type":"string","jsonPath":".spec.requestedBy"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("an ArchiveErasure cannot be changed: create another one"))]
pub struct ArchiveErasureSpec {
    /// The computer whose archives are erased. The UID decides; namespace and name must be those of the receipt, so that a wrong UID is noticed.
    pub computer: OverrideTarget,
    /// Your user name, as `kubectl auth whoami` prints it. An admission policy of the chart compares it with the user who creates the object. The
    /// tombstone repeats it.
    #[schemars(length(min = 1, max = 1024))]
    pub requested_by: String,
    /// Why, in 10 to 1024 characters. The tombstone repeats it.
    #[schemars(length(min = 10, max = 1024))]
    pub reason: String,
}

/// How far the erasure is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveErasureStatus {
    /// The generation that the status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: `Complete`, `Blocked` with a reason and what to do, and `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Key of the tombstone in the archive store. It is written before anything is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstone_key: Option<String>,
    /// When the tombstone was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<Time>,
    /// Objects that were removed from the archive store: those that existed when the tombstone was written and no longer exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub removed_objects: Option<i64>,
    /// Bytes of these objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub removed_bytes: Option<i64>,
}
