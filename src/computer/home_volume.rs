//! Reads and patches the home volume. Its reclaim policy is `Retain` as soon as it is bound; the same patch sets the operator's label and
//! notes the original policy (DESIGN.md 4.5). Neither a tenant, nor a removed finalizer, nor a forced deletion can then destroy a home that
//! is not archived (S1).
//!
//! The patch is built here. Provisioning sets the policy and sets it again when others change it (`provision/home.rs`); a deletion sets
//! it again before it stops the pods (`deletion/stop.rs`) and while the volume is in custody (`deletion/custody.rs`), and restores the original
//! policy at its end (`deletion/volumes.rs`).

use json_patch::{Patch, PatchOperation};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use serde_json::json;

use super::action::Action;
use crate::guards::{self, Guard};
use crate::resources::persistent_volume::claim_ref_uid;
use crate::resources::{ComputerRecord, MANAGED_BY_LABEL, MANAGER, ORIGINAL_POLICY_ANNOTATION, UID_LABEL, VolumeRecord};
use crate::runtime::patch;

/// Whether a volume is protected for this computer: its policy is `Retain` and it has the operator's label for this computer.
pub fn retained_for(volume: &PersistentVolume, computer_uid: &str) -> bool {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    (policy == Some("Retain") && marked_for(volume, computer_uid)) || !guards::on(Guard::RetainFirst)
}

/// Whether a volume has the operator's labels for this computer, which are set before the volume is recorded. No tenant can write a volume.
/// The annotation does not count: the record has the original policy. [`policy_unknown`] is for volumes that are not on record.
pub fn marked_for(volume: &PersistentVolume, computer_uid: &str) -> bool {
    let labels = volume.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|l| l.get(key)).map(String::as_str);
    label(UID_LABEL) == Some(computer_uid) && label(MANAGED_BY_LABEL) == Some(MANAGER)
}

/// The message about a volume that is to be recorded and is `Retain` with the operator's label, but without the annotation that was written
/// in the same patch. Its original policy `Delete` would be recorded as `Retain`, and the volume would be left forever. `None`: the original
/// policy is known.
pub fn policy_unknown(name: &str, volume: &PersistentVolume, computer_uid: &str) -> Option<String> {
    let noted = volume.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(ORIGINAL_POLICY_ANNOTATION));
    (!noted && retained_for(volume, computer_uid) && guards::on(Guard::RetainFirst)).then(|| {
        format!(
            "PersistentVolume {name} has lost the annotation {ORIGINAL_POLICY_ANNOTATION}, so the reclaim policy that it had is unknown. An \
             admission webhook or another tool removes the annotation: exempt the volume from it. Then set the policy by hand: \
             kubectl annotate pv {name} {ORIGINAL_POLICY_ANNOTATION}=Delete (or =Retain, to keep the volume when the computer is deleted)"
        )
    })
}

/// UID of another computer in a volume's label. An older version left the label when the step `delete-volumes` was skipped, and a restored
/// backup may contain one. The annotation then says nothing about this computer.
pub fn foreign_mark<'a>(volume: &'a PersistentVolume, computer_uid: &str) -> Option<&'a str> {
    volume.metadata.labels.as_ref()?.get(UID_LABEL).map(String::as_str).filter(|uid| *uid != computer_uid)
}

/// The message about a volume with the label of another computer.
pub fn foreign_mark_message(name: &str, of: &str) -> String {
    format!(
        "PersistentVolume {name} has the label of another computer (UID {of}), so it cannot be protected for this one. If that computer is gone, \
         remove the label {UID_LABEL} and the annotation {ORIGINAL_POLICY_ANNOTATION} from the volume"
    )
}

/// The reclaim policy that the volume had before the operator changed it.
pub fn original_policy(volume: &PersistentVolume) -> String {
    let noted = volume.metadata.annotations.as_ref().and_then(|a| a.get(ORIGINAL_POLICY_ANNOTATION)).cloned();
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.clone());
    noted.or(policy).unwrap_or_else(|| "Retain".to_owned())
}

/// Patch operations that test the volume's UID and that its claimRef is the one that was read (S4, S5). A claimRef without a UID is compared
/// as a whole: once the volume controller has completed it, the test fails.
pub fn fence(volume: &PersistentVolume) -> Vec<PatchOperation> {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let holder = match reference {
        Some(reference) if reference.uid.is_none() => patch::test(["spec", "claimRef"], json!(reference)),
        _ => patch::test(["spec", "claimRef", "uid"], json!(claim_ref_uid(volume))),
    };
    vec![patch::same_uid(&volume.metadata), holder]
}

/// Removes the operator's labels and annotation from a volume that is kept. Empty: it has none.
pub fn unmark(volume: &PersistentVolume) -> Vec<PatchOperation> {
    let labels = volume.metadata.labels.as_ref();
    let mut changes = Vec::new();
    if labels.is_some_and(|l| l.contains_key(UID_LABEL)) {
        changes.push(patch::remove(["metadata", "labels", UID_LABEL]));
        if labels.and_then(|l| l.get(MANAGED_BY_LABEL)).is_some_and(|by| by == MANAGER) {
            changes.push(patch::remove(["metadata", "labels", MANAGED_BY_LABEL]));
        }
    }
    if volume.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(ORIGINAL_POLICY_ANNOTATION)) {
        changes.push(patch::remove(["metadata", "annotations", ORIGINAL_POLICY_ANNOTATION]));
    }
    changes
}

/// Whether the volume's `claimRef` has the UID of the home's claim, or of the one before it: the present one may not hold it yet.
pub fn held_by_home(record: &ComputerRecord, pv: &PersistentVolume) -> bool {
    let children = &record.spec.state.children;
    let former = children.volume.as_ref().and_then(|v| v.former_claim_uid.as_deref());
    let holder = claim_ref_uid(pv);
    holder.is_some() && (holder == children.claim_uid.as_deref() || holder == former)
}

/// Whether volumes of this kind are never attached to a node, so that no `VolumeAttachment` can exist. A kind that is not known here may be.
pub fn never_attached(pv: &PersistentVolume) -> bool {
    pv.spec.as_ref().is_some_and(|spec| spec.csi.is_none() && (spec.host_path.is_some() || spec.local.is_some() || spec.nfs.is_some()))
}

/// The volume in the form in which the record stores it.
pub fn recorded(pv: &PersistentVolume) -> VolumeRecord {
    VolumeRecord {
        name: pv.metadata.name.clone().unwrap_or_default(),
        uid: pv.metadata.uid.clone().unwrap_or_default(),
        original_reclaim_policy: original_policy(pv),
        storage_class_name: pv.spec.as_ref().and_then(|s| s.storage_class_name.clone()),
        ..VolumeRecord::default()
    }
}

/// The spec of a claim that binds to this volume.
pub fn claim_around(pv: &PersistentVolume) -> PersistentVolumeClaimSpec {
    let spec = pv.spec.clone().unwrap_or_default();
    PersistentVolumeClaimSpec {
        access_modes: spec.access_modes,
        // An empty name, not an absent one: otherwise the default StorageClass would be filled in.
        storage_class_name: Some(spec.storage_class_name.unwrap_or_default()),
        volume_mode: spec.volume_mode,
        volume_name: pv.metadata.name.clone(),
        resources: Some(VolumeResourceRequirements { requests: spec.capacity, limits: None }),
        ..PersistentVolumeClaimSpec::default()
    }
}

/// Sets a volume's claimRef to another claim, fenced by the volume's UID and its current claimRef.
pub fn claim_ref_patch(pv: &PersistentVolume, namespace: &str, name: &str, claim_uid: &str) -> Patch {
    let reference = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name, "uid": claim_uid});
    let mut operations = fence(pv);
    operations.push(patch::replace(["spec", "claimRef"], reference));
    Patch(operations)
}

/// The request that sets a volume to `Retain` and labels it. `recorded`: the volume's record, once there is one. It knows the original
/// policy; a volume whose annotation was removed shows the operator's own `Retain`.
pub fn retain(name: &str, volume: &PersistentVolume, recorded: Option<&VolumeRecord>, computer_uid: &str) -> Action {
    let known = recorded.map(|r| r.original_reclaim_policy.clone()).filter(|policy| !policy.is_empty());
    let original = known.unwrap_or_else(|| original_policy(volume));
    Action::Retain { volume: name.to_owned(), patch: retain_patch(volume, &original, computer_uid) }
}

/// Fenced by the volume's UID, claimRef and resourceVersion: the volume has not changed since the record was read.
fn retain_patch(volume: &PersistentVolume, original: &str, computer_uid: &str) -> Patch {
    let mut labels = json!(volume.metadata.labels.clone().unwrap_or_default());
    labels[UID_LABEL] = json!(computer_uid);
    labels[MANAGED_BY_LABEL] = json!(MANAGER);
    let mut annotations = json!(volume.metadata.annotations.clone().unwrap_or_default());
    annotations[ORIGINAL_POLICY_ANNOTATION] = json!(original);
    let mut operations = fence(volume);
    operations.extend([
        patch::same_version(&volume.metadata),
        patch::add(["spec", "persistentVolumeReclaimPolicy"], json!("Retain")),
        patch::add(["metadata", "labels"], labels),
        patch::add(["metadata", "annotations"], annotations),
    ]);
    Patch(operations)
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    /// Every other kind may be attached, and an in-tree kind that its driver has taken over is, too.
    #[test]
    fn only_kinds_that_are_known_to_need_no_attachment_are_not_asked_for_one() {
        let of = |source: serde_json::Value| never_attached(&serde_json::from_value(json!({"metadata": {}, "spec": source})).unwrap());
        let (path, csi) = (json!({"path": "/x"}), json!({"driver": "d", "volumeHandle": "h"}));
        assert!(of(json!({"hostPath": path})) && of(json!({"local": path})) && of(json!({"nfs": {"path": "/x", "server": "s"}})));
        for attachable in
            [json!({}), json!({"csi": csi}), json!({"hostPath": path, "csi": csi}), json!({"awsElasticBlockStore": {"volumeID": "v"}})]
        {
            assert!(!of(attachable.clone()), "{attachable}");
        }
    }

    #[test]
    fn a_repeated_patch_keeps_the_original_policy() {
        let bound = json!({"metadata": {"name": "pv", "uid": "u", "resourceVersion": "7", "labels": {"theirs": "stays"}},
            "spec": {"persistentVolumeReclaimPolicy": "Delete", "claimRef": {"uid": "c"}}});
        let mut value = bound.clone();
        for _ in 0..2 {
            let volume: PersistentVolume = serde_json::from_value(value.clone()).expect("a volume");
            json_patch::patch(&mut value, &retain_patch(&volume, &original_policy(&volume), "computer")).expect("the tests hold");
        }
        let volume: PersistentVolume = serde_json::from_value(value).expect("a volume");
        assert!(retained_for(&volume, "computer") && !retained_for(&volume, "another"));
        assert_eq!(original_policy(&volume), "Delete");
        assert_eq!(volume.metadata.labels.expect("labels")["theirs"], "stays");
    }

    #[test]
    fn a_volume_that_another_claim_holds_is_not_changed() {
        let volume: PersistentVolume =
            serde_json::from_value(json!({"metadata": {"uid": "u", "resourceVersion": "7"}, "spec": {"claimRef": {"uid": "ours"}}}))
                .expect("a volume");
        let mut other = json!({"metadata": {"uid": "u", "resourceVersion": "7"}, "spec": {"claimRef": {"uid": "theirs"}}});
        assert!(json_patch::patch(&mut other, &retain_patch(&volume, &original_policy(&volume), "computer")).is_err(), "S5");
    }
}
