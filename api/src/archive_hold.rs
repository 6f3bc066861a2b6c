//! `ArchiveHold`: archives that must not be destroyed, for example because of a legal matter. RBAC `create` on this kind is the right to hold.
//! A hold has no status and no expiry: it is in effect while it exists.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Holds the archives of one computer, or of all computers of one namespace. While it exists, the operator destroys none of them. Any number of
/// holds can name the same archive. The operator reads all holds directly before it destroys something; if it cannot, the archive counts as held.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema, Default)]
#[kube(
    group = "computer-operator.dev",
    version = "v1alpha1",
    kind = "ArchiveHold",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Computer UID","type":"string","jsonPath":".spec.computerUID"}"#,
    printcolumn = r#"{"name":"Namespace UID","type":"string","jsonPath":".spec.namespaceUID"}"#,
    printcolumn = r#"{"name":"Matter","type":"string","jsonPath":".spec.matter"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".spec.reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("an ArchiveHold cannot be changed: create another one"))]
#[x_kube(validation = Rule::new("has(self.computerUID) != has(self.namespaceUID)").message("name either a computerUID or a namespaceUID"))]
pub struct ArchiveHoldSpec {
    /// UID of a computer whose archives are held, now and after later deletions. It exists before and after the deletion of the computer.
    #[serde(rename = "computerUID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 36, max = 36), pattern(r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"))]
    pub computer_uid: Option<String>,
    /// UID of a namespace (`kubectl get namespace NAME -o jsonpath={.metadata.uid}`): the archives of all its computers are held, also after the
    /// namespace was deleted. An archive of an earlier version does not say its namespace's UID and counts as held while any such hold exists.
    #[serde(rename = "namespaceUID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 36, max = 36), pattern(r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"))]
    pub namespace_uid: Option<String>,
    /// The matter that needs the archives, for example the number of a case. Messages to users show it.
    #[schemars(length(min = 1, max = 253))]
    pub matter: String,
    /// Why, in 10 to 1024 characters.
    #[schemars(length(min = 10, max = 1024))]
    pub reason: String,
}
