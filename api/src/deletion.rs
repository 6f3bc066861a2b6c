//! The deletion of a computer, as its record keeps it: what is finished, the custody of the volume, the archive and the receipt. Each field
//! is written before or right after the request that it describes (DESIGN.md 4.1).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Unknown;
use super::cause::Cause;
use super::step_outcome::StepOutcome;
use super::steps::PerStep;

/// The record of a deletion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Deletion {
    /// When the deletion began. The key does not authenticate from then on.
    pub deleted_at: Time,
    /// Why, as far as the operator knows: `ComputerDeleted`, `NamespaceTerminating`, `TimeToLiveExpired`, `ComputerVanished`. The user of
    /// a `kubectl delete` is in the API server's audit log.
    #[schemars(with = "String")]
    pub cause: Cause,
    /// When each finished step was finished, and its result.
    #[serde(default)]
    pub steps: PerStep<StepOutcome>,
    /// When the current step began; empty once the receipt is stored.
    #[serde(default, skip_serializing_if = "PerStep::is_empty")]
    pub started: PerStep<MicroTime>,
    /// The volume's custody, once it has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custody: Option<Custody>,
    /// Seconds in which a running operator saw no work on the archive, since an object was last stored for it. Counted when the class says
    /// `BestEffort`; saved periodically.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub waited_seconds: i64,
    /// The verified archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveResult>,
    /// The receipt, once it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
    /// The namespace was released before the deletion was complete (`onNamespaceDeletion: HandOff`).
    #[serde(default)]
    pub handed_off: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde calls it with a reference
fn is_zero(seconds: &i64) -> bool {
    *seconds == 0
}

/// The objects in the operator's namespace that are used to read the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct Custody {
    /// UID of the claim `home-<uid>`.
    pub claim_uid: String,
    /// UID of the archive pod of the latest attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Number of the latest attempt, from 1.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub attempt: i32,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// The verified archive of a computer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveResult {
    /// SHA-256 of the manifest, hexadecimal.
    pub manifest_digest: String,
    /// Sessions in it.
    pub sessions: i64,
    /// Bytes in the store.
    pub bytes: i64,
    /// Files that could not be read, or that changed while they were read; the manifest names them.
    #[serde(default)]
    pub problems: i64,
    /// Why files that could not be read were left out: the class, or an override and its reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub left_out: Option<String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// Where the receipt is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// Key in the archive store; that copy is the authoritative one. Missing when an override skipped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_key: Option<String>,
    /// SHA-256 of the receipt, hexadecimal.
    pub digest: String,
    /// When it was written.
    pub at: MicroTime,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}
