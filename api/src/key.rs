//! The key of a computer: what its class and its user may say about it, and what the record keeps of the keys before it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Unknown;

/// What the key of a computer may do over the HTTP API. It never has a right in Kubernetes, and never one on another computer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeyRight {
    /// Read its own computer.
    Get,
    /// List, read, create and update its own sessions, and report their status and last activity.
    Sessions,
    /// Delete its own sessions, which hides them.
    DeleteSessions,
    /// Change and resume its own computer.
    Patch,
    /// Delete its own computer, which is terminal.
    Delete,
}

impl KeyRight {
    /// All of them: what a key may do if neither its class nor the mounted key limits it.
    pub const ALL: [Self; 5] = [Self::Get, Self::Sessions, Self::DeleteSessions, Self::Patch, Self::Delete];
    /// What an agent in a machine needs: the default of a key that the machine mounts.
    pub const MOUNTED: [Self; 2] = [Self::Get, Self::Sessions];

    /// As it is stored and published.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Sessions => "sessions",
            Self::DeleteSessions => "delete-sessions",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// The keys of the computers of a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct ClassKey {
    /// Folder in the first container in which the machine finds its key and who it is: the files `token`, `id` and `url`, readable by the pod's
    /// `fsGroup` only, and the environment variables `COMPUTER_ID` and `COMPUTER_API_URL`. An absolute path that is neither inside the home nor
    /// contains it, and that no volume of the template uses. Machines that run get it at their next start. Default: the machine gets nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 256), pattern(r"^(/[A-Za-z0-9._-]+)+$"))]
    #[x_kube(validation = Rule::new("!self.split('/').exists(part, part == '.' || part == '..') && !['/proc', '/sys', '/dev'].exists(system, self == system || self.startsWith(system + '/'))").message("key.mountPath must not contain the parts '.' or '..', and must not be in /proc, /sys or /dev. Use for example /run/computer"))]
    pub mount_path: Option<String>,
    /// What a key of this class may do over the HTTP API with its own computer: `get`, `sessions` (all but deleting them), `delete-sessions`,
    /// `patch` and `delete`. What is not listed answers 404. A change applies to existing keys as soon as the operator has seen it. Default: `get`
    /// and `sessions` for a computer whose machine gets its key by `mountPath`, otherwise everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 5), extend("x-kubernetes-list-type" = "set"))]
    pub allow: Option<Vec<KeyRight>>,
}

impl ClassKey {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The words for a key. `mounted`: the machine of its computer gets it. `None`: everything.
    pub fn words(&self, mounted: bool) -> Option<Vec<String>> {
        let rights = self.allow.clone().or_else(|| mounted.then(|| KeyRight::MOUNTED.to_vec()))?;
        Some(rights.into_iter().map(|right| right.as_str().to_owned()).collect())
    }
}

/// Settings of one computer's key. `status.credentialSecretName` names its Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct KeySettings {
    /// Any text of at most 63 characters, for example a date. Every change, also removing the field or setting an
    /// earlier value, creates a new key in a new Secret. The old Secret is deleted; if the machine mounts its key, the new one has its name. The old key stops when the API server has accepted the change, unless
    /// `overlapSeconds` is above 0. Until the operator has recorded the new key, a change back, or an `overlapSeconds` above 0, makes the old key
    /// valid again. A user who may update the Computer may rotate its key, even without the right to read Secrets.
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
