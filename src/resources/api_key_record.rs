//! `ApiKeyRecord`: what the operator knows of one `ApiKey`, in its own namespace, named by the key's UID: the hash of the token,
//! and which Secrets are ours (S5). It is written before the token's Secret, and deleted when its `ApiKey` is gone: nothing
//! authenticates without a record, a UID never comes again, and there is nothing to prove afterwards.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Unknown;
use super::computer_record::CredentialState;

/// The operator's own account of one `ApiKey`. Tenants cannot write it.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema, Default)]
#[kube(
    group = "computer-operator.dev",
    version = "v1alpha1",
    kind = "ApiKeyRecord",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Namespace","type":"string","jsonPath":".spec.namespace"}"#,
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
    /// Secrets of tokens that are dead, which are not known to be gone yet.
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
    /// UID of the ServiceAccount when the token was issued: one that is re-created under the same name is another one.
    #[serde(rename = "serviceAccountUID")]
    pub service_account_uid: String,
    /// `spec.rotation` of the `ApiKey` that it was issued for: the token is dead as soon as the two differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<String>,
    /// When it stops to authenticate; follows `spec.expiresAt` until then, and not any more afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// When it was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Time>,
    /// Its Secret, as long as it is not revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretRecord>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// A Secret of ours: its unguessable name is written before the create, its UID after it.
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
