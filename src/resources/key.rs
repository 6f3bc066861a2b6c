//! The key of a computer: what its user may say about it, and what the record keeps of the keys before it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Unknown;

/// The key of one computer, which `status.credentialSecretName` names the Secret of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct KeySettings {
    /// Set it to a value that was not used before (for example a date; at most 63 characters) to get a new key in a new Secret. The old
    /// Secret is deleted. The old key stops at once, whether or not the operator runs, unless `overlapSeconds` is set. Until
    /// `status.credentialSecretName` names the new Secret, the old value would make the old key valid again. The right to change this field
    /// does not need the right to read Secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub rotation: Option<String>,
    /// Seconds for which the old key still authenticates after a rotation: 0 to 86400 (a day). Default: 0. They count from the moment when
    /// the operator records the new key, before its Secret exists; 0 ends the overlap. Do not set it for a key that has leaked.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0, max = 86_400))]
    pub overlap_seconds: i64,
}

impl KeySettings {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde calls it with a reference
fn is_zero(seconds: &i64) -> bool {
    *seconds == 0
}

/// A key that was replaced by a rotation with an overlap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FormerKey {
    /// Its hash.
    pub hash: String,
    /// When it stops.
    pub until: Time,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// A Secret whose key was replaced, and which is being deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct RetiredSecret {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}
