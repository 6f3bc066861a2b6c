//! What is read from a Kubernetes PersistentVolume, in one place for all who read it.

use k8s_openapi::api::core::v1::PersistentVolume;

/// UID of the claim that a volume belongs to.
pub fn claim_ref_uid(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.claim_ref.as_ref()?.uid.as_deref()
}

/// Namespace of the claim that a volume belongs to.
pub fn claim_ref_namespace(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.claim_ref.as_ref()?.namespace.as_deref()
}
