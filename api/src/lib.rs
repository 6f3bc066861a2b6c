//! The custom resource kinds, one file per kind. They are the only source of `crds/`: `computer-operator crds` prints them, and a test
//! fails when the committed files differ. Nothing here may talk to a cluster or decide anything.

mod api_key;
mod api_key_record;
mod archive_erasure;
mod archive_hold;
mod cause;
mod class;
mod computer;
mod computer_record;
pub mod conditions;
pub mod crds;
mod deletion;
mod deletion_override;
mod key;
pub mod persistent_volume;
pub mod quantity;
pub mod reasons;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod rollback_tests;
mod session;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod spelling_tests;
mod step_outcome;
pub mod steps;

pub use api_key::{ApiKey, ApiKeySpec, ApiKeyStatus};
pub use api_key_record::{ApiKeyRecord, ApiKeyRecordSpec, SecretRecord, TokenRecord};
pub use archive_erasure::{ArchiveErasure, ArchiveErasureSpec, ArchiveErasureStatus};
pub use archive_hold::{ArchiveHold, ArchiveHoldSpec};
pub use cause::Cause;
pub use class::{
    ArchivePolicy, ArchiveSettings, ClassLimits, ComputerClass, ComputerClassSpec, ComputerClassStatus, OnNamespaceDeletion, StepDeadlines,
    StorageSettings, UnreadableFiles,
};
pub use computer::{Computer, ComputerSpec, ComputerStatus, Phase, Provider};
pub use computer_record::{
    Children, ComputerRecord, ComputerRecordSpec, CrashLoop, CredentialState, Ending, PodRecord, RecordPhase, RecordState, Snapshot,
    VolumeRecord,
};
pub use deletion::{ArchiveResult, Custody, Deletion, Receipt};
pub use deletion_override::{DeletionOverride, DeletionOverrideSpec, DeletionOverrideStatus, OverrideTarget, SkippableStep};
pub use key::{ClassKey, FormerKey, KeyRight, KeySettings, RetiredSecret};
pub use session::{Session, SessionPhase, SessionSpec, SessionStatus};
pub use step_outcome::StepOutcome;
pub use steps::{Step, StepStatus};

/// Fields that a newer version of the operator wrote. A record is replaced as a whole, so an older version must write back the fields it
/// does not know: a rollback loses nothing.
pub type Unknown = std::collections::BTreeMap<String, serde_json::Value>;

/// API group of every kind.
pub const GROUP: &str = "computer-operator.dev";
/// Finalizer on a `Computer`: removed only when the receipt is stored (promise S3). On an `ApiKey`: removed only when its token is
/// revoked and its Secrets are gone.
pub const DELETION_FINALIZER: &str = "computer-operator.dev/deletion";
/// Finalizer on the operator's pods: removed only when every container is reported as terminated (DESIGN.md 4.4).
pub const POD_FINALIZER: &str = "computer-operator.dev/stopped";
/// Label that narrows lists to one computer; it never proves ownership (promise S5).
pub const UID_LABEL: &str = "computer-operator.dev/computer-uid";
/// Label for users, with the name of the Computer, on its pod, claim and Secret. A name of more than 63 characters is no label value: then there is
/// no such label, and no selector could name it either. The operator never reads it.
pub const NAME_LABEL: &str = "computer-operator.dev/computer";
/// Label: the purpose of an object: `home`, `machine`, `key`, `api-key` or `archive`.
pub const COMPONENT_LABEL: &str = "computer-operator.dev/component";
/// Recommended label, with the value [`MANAGER`], on every object that the operator creates.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`]; also the field manager and the reporter of events.
pub const MANAGER: &str = "computer-operator";
/// Annotation on a volume that the operator set to `Retain`: its previous reclaim policy.
pub const ORIGINAL_POLICY_ANNOTATION: &str = "computer-operator.dev/original-reclaim-policy";
/// Annotation on an archive pod: its image. A pod that does not start is replaced when its image differs from the operator's.
pub const IMAGE_ANNOTATION: &str = "computer-operator.dev/image";
/// Annotation on an archive pod: its setting for unreadable files. A pod that has not started is replaced when an override that changes
/// the setting is created or deleted.
pub const UNREADABLE_ANNOTATION: &str = "computer-operator.dev/unreadable-files";
/// Annotation on the pod of a machine that gets its key: the id of its computer. The file `id` is a copy of it.
pub const ID_ANNOTATION: &str = "computer-operator.dev/computer-id";
/// Annotation on the pod of a machine that gets its key: the URL of the HTTP API. The file `url` is a copy of it.
pub const URL_ANNOTATION: &str = "computer-operator.dev/api-url";
/// Annotation on an archive pod: most bytes that it may store, as a number.
pub const MAX_BYTES_ANNOTATION: &str = "computer-operator.dev/archive-max-bytes";
/// Annotation that makes a class the default (as for a StorageClass).
pub const DEFAULT_CLASS_ANNOTATION: &str = "computer-operator.dev/is-default-class";
/// CEL rule of a size: an integer or a quantity, above zero. The schema of a quantity alone accepts any text.
const QUANTITY_RULE: &str = "type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))";

/// An object whose fields the API server does not prune.
fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
