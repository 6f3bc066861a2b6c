//! Reading and patching the home volume: `Retain` from birth, with our mark and the original policy in the same patch (DESIGN.md 4.5),
//! so that no tenant, no stripped finalizer and no force can destroy a home unarchived (S1).

use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::{Value, json};

use crate::guards::{self, Guard};
use crate::resources::{MANAGED_BY_LABEL, MANAGER, ORIGINAL_POLICY_ANNOTATION, UID_LABEL};

/// A JSON patch from literal operations.
pub fn patch(operations: &[Value]) -> json_patch::Patch {
    // The operations are literals of this crate; one that is not an operation would make an empty patch, and its test fail.
    serde_json::from_value(Value::Array(operations.to_vec())).unwrap_or_default()
}

/// UID of the claim that a volume belongs to.
pub fn claim_ref_uid(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.claim_ref.as_ref()?.uid.as_deref()
}

/// Namespace of the claim that a volume belongs to.
pub fn claim_ref_namespace(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.claim_ref.as_ref()?.namespace.as_deref()
}

/// Whether a volume is protected for this computer: `Retain`, with our mark.
pub fn retained_for(volume: &PersistentVolume, computer_uid: &str) -> bool {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    (policy == Some("Retain") && marked_for(volume, computer_uid)) || !guards::on(Guard::RetainFirst)
}

/// Whether a volume carries our mark for this computer, which is set before the volume is recorded. No tenant can write a volume.
pub fn marked_for(volume: &PersistentVolume, computer_uid: &str) -> bool {
    let labels = volume.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|l| l.get(key)).map(String::as_str);
    label(UID_LABEL) == Some(computer_uid)
        && label(MANAGED_BY_LABEL) == Some(MANAGER)
        && volume.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(ORIGINAL_POLICY_ANNOTATION))
}

/// The reclaim policy that the volume had before it came into our care.
pub fn original_policy(volume: &PersistentVolume) -> String {
    let noted = volume.metadata.annotations.as_ref().and_then(|a| a.get(ORIGINAL_POLICY_ANNOTATION)).cloned();
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.clone());
    noted.or(policy).unwrap_or_else(|| "Retain".to_owned())
}

/// Sets a volume to `Retain` with our mark, fenced by its UID and by the claim that it is bound to.
pub fn retain_patch(volume: &PersistentVolume, computer_uid: &str) -> json_patch::Patch {
    let mut labels = json!(volume.metadata.labels.clone().unwrap_or_default());
    labels[UID_LABEL] = json!(computer_uid);
    labels[MANAGED_BY_LABEL] = json!(MANAGER);
    let mut annotations = json!(volume.metadata.annotations.clone().unwrap_or_default());
    annotations[ORIGINAL_POLICY_ANNOTATION] = json!(original_policy(volume));
    patch(&[
        json!({"op": "test", "path": "/metadata/uid", "value": volume.metadata.uid}),
        json!({"op": "test", "path": "/metadata/resourceVersion", "value": volume.metadata.resource_version}),
        json!({"op": "test", "path": "/spec/claimRef/uid", "value": claim_ref_uid(volume)}),
        json!({"op": "add", "path": "/spec/persistentVolumeReclaimPolicy", "value": "Retain"}),
        json!({"op": "add", "path": "/metadata/labels", "value": labels}),
        json!({"op": "add", "path": "/metadata/annotations", "value": annotations}),
    ])
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn the_original_policy_is_kept_however_often_the_patch_is_made() {
        let bound = json!({"metadata": {"name": "pv", "uid": "u", "resourceVersion": "7", "labels": {"theirs": "stays"}},
            "spec": {"persistentVolumeReclaimPolicy": "Delete", "claimRef": {"uid": "c"}}});
        let mut value = bound.clone();
        for _ in 0..2 {
            let volume: PersistentVolume = serde_json::from_value(value.clone()).expect("a volume");
            json_patch::patch(&mut value, &retain_patch(&volume, "computer")).expect("the tests hold");
        }
        let volume: PersistentVolume = serde_json::from_value(value).expect("a volume");
        assert!(retained_for(&volume, "computer") && !retained_for(&volume, "another"));
        assert_eq!(original_policy(&volume), "Delete");
        assert_eq!(volume.metadata.labels.expect("labels")["theirs"], "stays");
    }

    #[test]
    fn a_volume_of_another_claim_is_not_touched() {
        let volume: PersistentVolume =
            serde_json::from_value(json!({"metadata": {"uid": "u", "resourceVersion": "7"}, "spec": {"claimRef": {"uid": "ours"}}}))
                .expect("a volume");
        let mut other = json!({"metadata": {"uid": "u", "resourceVersion": "7"}, "spec": {"claimRef": {"uid": "theirs"}}});
        assert!(json_patch::patch(&mut other, &retain_patch(&volume, "computer")).is_err(), "S5");
    }
}
