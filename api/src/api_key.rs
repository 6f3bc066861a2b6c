//! `ApiKey`: a caller's key for the HTTP API. It acts as a ServiceAccount of its namespace.
//!
//! A user who may create or rotate an `ApiKey` and may read Secrets in its namespace gets the rights of the ServiceAccount, as with the
//! right to create `serviceaccounts/token` or pods. The operator cannot know who created an object: grant this kind like those.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A key for the HTTP API that acts as a ServiceAccount of its namespace. The token is written once to a Secret there. Deleting the
/// key revokes the token at once. Who may create or change `ApiKeys` and read Secrets in a namespace can act as any ServiceAccount of it,
/// as with the right to create `serviceaccounts/token`.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema, Default)]
#[kube(
    group = "computer-operator.dev",
    version = "v1alpha1",
    kind = "ApiKey",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    status = "ApiKeyStatus",
    printcolumn = r#"{"name":"ServiceAccount","type":"string","jsonPath":".spec.serviceAccountName"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Expires","type":"string","jsonPath":".spec.expiresAt"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].reason","priority":1}"#,
    printcolumn = r#"{"name":"Secret","type":"string","jsonPath":".status.secretName","priority":1}"#,
    printcolumn = r#"{"name":"Used","type":"date","jsonPath":".status.lastUsedTime","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeySpec {
    /// The ServiceAccount of this namespace that the key acts as: its RBAC rights are the key's. Immutable.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("serviceAccountName cannot be changed: create another ApiKey"))]
    pub service_account_name: String,
    /// When the key stops authenticating. Default: never. It can be changed until it has passed. An expired token never authenticates
    /// again: change `rotation` to get a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Set it to a value that was not used before (for example a date; at most 63 characters) to get a new token. The old token is revoked
    /// at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub rotation: Option<String>,
}

/// What the operator observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeyStatus {
    /// The generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The Secret in this namespace whose key `token` holds the token. Set while the token authenticates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// When the token was last used, rounded to the hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_time: Option<Time>,
    /// Conditions: `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
