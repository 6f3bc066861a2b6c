//! `ApiKeyRecord`: the operator's record of one `ApiKey`, in the operator's namespace, named after the key's UID. It holds the hash of
//! the token and the Secrets that the operator owns (S5). It is written before the token's Secret, and deleted when its `ApiKey` is
//! gone: no token authenticates without a record, and a UID is never reused. It must never hold a token.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Unknown;
use super::computer_record::CredentialState;

/// The operator's record of one `ApiKey`. Tenants cannot write it.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema, Default)]
#[kube(
    group = "computer-operator.dev",
    version = "v1alpha1",
    kind = "ApiKeyRecord",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"ApiKey namespace","type":"string","jsonPath":".spec.namespace"}"#,
    printcolumn = r#"{"name":"ApiKey","type":"string","jsonPath":".spec.apiKey"}"#,
    printcolumn = r#"{"name":"ServiceAccount","type":"string","jsonPath":".spec.serviceAccountName"}"#,
    printcolumn = r#"{"name":"Token","type":"string","jsonPath":".spec.token.state"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeyRecordSpec {
    /// Namespace of the `ApiKey`.
    pub namespace: String,
    /// Name of the `ApiKey`.
    pub api_key: String,
    /// Name of the ServiceAccount that it acts as.
    pub service_account_name: String,
    /// The token that was issued last.
    pub token: TokenRecord,
    /// Secrets of revoked tokens whose deletion is not confirmed yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<SecretRecord>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// One token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    /// Whether it authenticates. `Revoked` is a tombstone.
    #[serde(default)]
    pub state: CredentialState,
    /// Why it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_because: Option<String>,
    /// Its hash; see `credentials::ApiToken::hash`.
    pub hash: String,
    /// UID of the ServiceAccount when the token was issued. A ServiceAccount re-created under the same name has another UID.
    #[serde(rename = "serviceAccountUID")]
    pub service_account_uid: String,
    /// `spec.rotation` of the `ApiKey` that the token was issued for. When the two differ, the token is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<String>,
    /// When the token stops authenticating. It follows `spec.expiresAt` until it has passed, and never changes afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// When it was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Time>,
    /// Its Secret, until the token is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretRecord>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// A Secret that the operator owns. Its unguessable name is written before it is created, its UID afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct SecretRecord {
    /// Its name.
    pub name: String,
    /// Its UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}
