//! Step 4, `delete-volumes`: the archive pod goes, the original reclaim policy is put back and decides: `Delete` → wait until the
//! volume is gone; `Retain` → it stays and the receipt names it. Never entered before step 3 is passed (S1).

use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::json;

use super::{Context, Outcome, State};
use crate::computer::action::{Action, Fact, Subject};
use crate::computer::volume;
use crate::guards::{self, Guard};
use crate::resources::{ArchivePolicy, ORIGINAL_POLICY_ANNOTATION, SkippableStep, UID_LABEL, VolumeRecord};

pub(super) fn step(context: &Context<'_>) -> State {
    let Some(recorded) = &context.record.spec.state.children.volume else {
        return State::not_applicable("no home volume was ever bound");
    };
    // That the archive is left out is on record before anything is destroyed: it is decided once, not anew in every pass.
    if context.left_out("archive-sessions") && context.finished("archive-sessions").is_none() {
        return context.save(|_| {});
    }
    if let Some(state) = archive_pod_gone(context) {
        return state;
    }
    if let Some(by) = context.view.skipped(SkippableStep::DeleteVolumes) {
        return custody_claim_gone(context).unwrap_or_else(|| {
            State::Done(Outcome::Skipped, format!("volume {} stays as it is; {}", recorded.name, super::receipt::skipped_by(by)))
        });
    }
    let Some(found) = context.view.volume(&recorded.name) else { return State::act(Action::Read(Subject::volume(&recorded.name))) };
    let ours = found.filter(|pv| pv.metadata.uid.as_deref() == Some(&recorded.uid));
    if let Some(state) = ours.and_then(|pv| give_back(context, recorded, pv)) {
        return state;
    }
    if let Some(state) = custody_claim_gone(context) {
        return state;
    }
    match ours {
        Some(_) if !guards::on(Guard::VolumeGone) => State::verified("not looked for"),
        None => State::verified(format!("volume {} is gone", recorded.name)),
        Some(_) if recorded.original_reclaim_policy != "Delete" => {
            State::verified(format!("volume {} stays: its reclaim policy is {}", recorded.name, recorded.original_reclaim_policy))
        }
        Some(pv) if context.overdue("delete-volumes", context.record.spec.snapshot.deadlines.delete_volumes_seconds) => {
            let why = pv.status.as_ref().and_then(|s| s.message.as_deref()).unwrap_or("its provisioner has not removed it");
            State::blocked(
                "VolumeNotDeleted",
                format!("volume {}: {why}. Look at its provisioner, or create a DeletionOverride that skips delete-volumes", recorded.name),
                30,
            )
        }
        Some(_) => State::wait(15),
    }
}

/// Puts back what the volume had before us. `None`: it has it.
fn give_back(context: &Context<'_>, recorded: &VolumeRecord, pv: &PersistentVolume) -> Option<State> {
    let taken = |why: String| {
        let message = format!("volume {} {why}. Create a DeletionOverride that skips delete-volumes", recorded.name);
        Some(State::blocked("VolumeTaken", message, 60))
    };
    if !held_by_us(context, pv) {
        return taken("now belongs to another claim: it is left alone".to_owned());
    }
    match restore_patch(pv, recorded) {
        Restore::Nothing => None,
        Restore::Patch(patch) => Some(State::act(Action::Patch { subject: Subject::volume(&recorded.name), patch })),
        Restore::NoClaim => taken("refers to no claim any more: whose it is cannot be known, so its reclaim policy stays".to_owned()),
    }
}

/// Whether the volume still refers to a claim of ours: the home's, or the one in custody. Nobody else can make a claim of that name
/// in the operator's namespace, so there the name is proof, whatever a crash left unrecorded.
fn held_by_us(context: &Context<'_>, pv: &PersistentVolume) -> bool {
    pv.spec.as_ref().is_none_or(|s| s.claim_ref.is_none())
        || super::custody::held_by_home(context.record, pv)
        || super::custody::refers_to_custody(context.view, pv)
}

/// What the original policy needs.
enum Restore {
    Nothing,
    Patch(json_patch::Patch),
    /// The volume refers to no claim any more.
    NoClaim,
}

/// Puts the original policy back, on a volume that still refers to the claim that was looked at (S5); one that stays loses our marks.
fn restore_patch(pv: &PersistentVolume, recorded: &VolumeRecord) -> Restore {
    let policy = pv.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let mut changes = Vec::new();
    if policy != Some(&recorded.original_reclaim_policy) {
        changes.push(json!({"op": "replace", "path": "/spec/persistentVolumeReclaimPolicy", "value": recorded.original_reclaim_policy}));
    }
    if recorded.original_reclaim_policy != "Delete" {
        if pv.metadata.labels.as_ref().is_some_and(|l| l.contains_key(UID_LABEL)) {
            changes.push(json!({"op": "remove", "path": format!("/metadata/labels/{}", UID_LABEL.replace('/', "~1"))}));
        }
        if pv.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(ORIGINAL_POLICY_ANNOTATION)) {
            changes
                .push(json!({"op": "remove", "path": format!("/metadata/annotations/{}", ORIGINAL_POLICY_ANNOTATION.replace('/', "~1"))}));
        }
    }
    if changes.is_empty() || pv.metadata.deletion_timestamp.is_some() {
        return Restore::Nothing;
    }
    let Some(claim) = pv.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return Restore::NoClaim };
    let test = |path: &str, value: &Option<String>| json!({"op": "test", "path": path, "value": value});
    let mut operations = vec![test("/metadata/uid", &pv.metadata.uid)];
    // One that was mended by hand may have a name only.
    match &claim.uid {
        Some(_) => operations.push(test("/spec/claimRef/uid", &claim.uid)),
        None => operations.extend([test("/spec/claimRef/namespace", &claim.namespace), test("/spec/claimRef/name", &claim.name)]),
    }
    operations.append(&mut changes);
    Restore::Patch(volume::patch(&operations))
}

/// No custody is on record, and no archive was ever wanted. Otherwise a crash may have left a claim or the first pod behind.
fn never_in_custody(context: &Context<'_>) -> bool {
    let recorded = context.deletion().is_some_and(|d| d.custody.is_some());
    !recorded && context.record.spec.snapshot.archive.policy == ArchivePolicy::None
}

/// The archive pods of all attempts: in our namespace the name is proof, nobody else can make one there.
fn archive_pod_gone(context: &Context<'_>) -> Option<State> {
    if never_in_custody(context) || !guards::on(Guard::CustodyGone) {
        return None;
    }
    let namespace = &context.view.settings.namespace;
    let ours = |subject: &Subject| matches!(subject, Subject::Pod { namespace: of, .. } if of == namespace);
    for (subject, fact) in context.view.facts.iter().filter(|(subject, _)| ours(subject)) {
        let Fact::Pod(pod) = fact else { continue };
        return Some(match &pod.metadata.uid {
            Some(uid) if pod.metadata.deletion_timestamp.is_none() => {
                State::act(Action::Delete { subject: subject.clone(), uid: uid.clone() })
            }
            _ => State::wait(15),
        });
    }
    // A cache never proves that the latest one is gone.
    let name = context.view.archive_pod_name(context.attempts());
    let known = context.view.pod(namespace, &name).is_some();
    (!known).then(|| State::act(Action::Read(Subject::pod(namespace, &name))))
}

fn custody_claim_gone(context: &Context<'_>) -> Option<State> {
    if never_in_custody(context) || !guards::on(Guard::CustodyGone) {
        return None;
    }
    let namespace = &context.view.settings.namespace;
    let name = context.view.custody_claim_name();
    let subject = Subject::claim(namespace, &name);
    match context.view.claim(namespace, &name) {
        None => Some(State::act(Action::Read(subject))),
        Some(Some(claim)) if claim.metadata.deletion_timestamp.is_none() => {
            Some(State::act(Action::Delete { subject, uid: claim.metadata.uid.clone().unwrap_or_default() }))
        }
        Some(Some(_)) => Some(State::wait(15)),
        Some(None) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// S5: this replica's cache is behind, and an admin has given the volume to another claim since.
    #[test]
    fn the_policy_goes_back_only_on_a_volume_that_is_still_ours() {
        let recorded = VolumeRecord { uid: "pv-uid".into(), original_reclaim_policy: "Delete".into(), ..VolumeRecord::default() };
        let volume = |claim: serde_json::Value| json!({"metadata": {"name": "pv", "uid": "pv-uid"}, "spec": {"persistentVolumeReclaimPolicy": "Retain", "claimRef": claim}});
        let theirs = volume(json!({"namespace": "n", "name": "other", "uid": "somebody-elses"}));
        for ours in [json!({"uid": "custody"}), json!({"namespace": "own", "name": "home-u"})] {
            let seen = serde_json::from_value(volume(ours.clone())).unwrap();
            let Restore::Patch(patch) = restore_patch(&seen, &recorded) else { panic!("nothing to do") };
            assert!(json_patch::patch(&mut theirs.clone(), &patch).is_err(), "S5");
            json_patch::patch(&mut volume(ours), &patch).unwrap();
        }
        let nobodys = serde_json::from_value(volume(json!(null))).unwrap();
        assert!(matches!(restore_patch(&nobodys, &recorded), Restore::NoClaim));
    }
}
