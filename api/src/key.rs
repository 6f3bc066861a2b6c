//! The key of a computer: what its user may say about it, and what the record keeps of the keys before it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Unknown;

/// The key of one computer, which `status.credentialSecretName` names the Secret of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct KeySettings {
    /// Any text of at most 63 characters, for example a date. Every change gives the computer another key in another Secret, also removing the
    /// field or an earlier value. The old Secret is deleted. The old key stops when the API server has accepted the change, unless
    /// `overlapSeconds` is above 0. Until the operator has recorded the new key, a change back, or an `overlapSeconds` above 0, makes the old key
    /// valid again. Who may update the Computer may rotate its key, also without the right to read Secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub rotation: Option<String>,
    /// Seconds for which the old key still authenticates after a rotation, for clients that have a copy: 0 to 86400 (a day). Default: 0. They
    /// count from the moment when the operator records the new key, before its Secret exists: while no operator runs, the old key works. The
    /// value applies to every later rotation; 0 ends an overlap. Set it to 0 together with `rotation` for a key that has leaked.
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
