//! Step `delete-volumes`: deletes the archive pod and restores the original reclaim policy. `Delete`: wait until the volume is
//! gone. `Retain`: the volume is kept and the receipt names it. This step must never start before the archive is verified or skipped (S1).

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::json;

use super::{Context, archive_pod};
use crate::computer::action::{Action, Fact, Subject};
use crate::computer::home_volume::{self, held_by_home};
use crate::computer::step::State;
use crate::computer::stop_pod::foreign_finalizers;
use crate::guards::{self, Guard};
use crate::resources::reasons::Reason;
use crate::resources::steps::DeletionStep;
use crate::resources::{ArchivePolicy, SkippableStep, VolumeRecord};
use crate::runtime::patch;

pub(super) fn step(context: &Context<'_>) -> State {
    let Some(recorded) = &context.record.spec.state.children.volume else {
        return State::not_applicable("no home volume was ever bound");
    };
    // A skipped archive is recorded before anything is destroyed: it is decided once, not in every reconcile.
    if context.skips(DeletionStep::ArchiveSessions) && context.on_record(DeletionStep::ArchiveSessions).is_none() {
        return context.save(|_| {});
    }
    if let Some(state) = archive_pods_left(context) {
        return state;
    }
    let Some(found) = context.view.volume(&recorded.name) else { return State::read(Subject::volume(&recorded.name)) };
    let ours = found.filter(|pv| pv.metadata.uid.as_deref() == Some(&recorded.uid));
    if let Some(by) = context.view.skipped(SkippableStep::DeleteVolumes) {
        let left = ours.and_then(|pv| leave(context, recorded, pv)).or_else(|| custody_claim_left(context));
        let detail = || format!("PersistentVolume {} {}; {}", recorded.name, kept(context, recorded, ours), super::skipped_by(by));
        return left.unwrap_or_else(|| State::skipped(detail()));
    }
    if let Some(state) = ours.and_then(|pv| give_back(context, recorded, pv)).or_else(|| custody_claim_left(context)) {
        return state;
    }
    let (name, policy) = (&recorded.name, &recorded.original_reclaim_policy);
    match ours {
        Some(_) if !guards::on(Guard::VolumeGone) => State::verified("not read"),
        None => State::verified(format!("PersistentVolume {name} is gone")),
        Some(_) if policy != "Delete" => State::verified(format!("PersistentVolume {name} is kept: its reclaim policy is {policy}")),
        Some(pv) if context.overdue(DeletionStep::DeleteVolumes) => {
            let why = pv.status.as_ref().and_then(|s| s.message.as_deref()).unwrap_or("its provisioner has not deleted it");
            let message =
                format!("PersistentVolume {name}: {why}. Check its provisioner, or create a DeletionOverride that skips delete-volumes");
            State::blocked(Reason::VolumeNotDeleted, message, 30)
        }
        Some(_) => State::wait(15),
    }
}

/// Restores the volume's original policy. `None`: nothing is left to restore.
fn give_back(context: &Context<'_>, recorded: &VolumeRecord, pv: &PersistentVolume) -> Option<State> {
    let taken = |why: &str| {
        let message = format!("PersistentVolume {} {why}. Create a DeletionOverride that skips delete-volumes", recorded.name);
        Some(State::blocked(Reason::VolumeTaken, message, 60))
    };
    if !held_by_this_computer(context, pv) {
        return taken("now belongs to another claim, so the operator does not touch it");
    }
    match restore_patch(pv, recorded, dead_claim(context, recorded)) {
        Restore::Nothing => None,
        Restore::Patch(patch) => Some(State::act(Action::Patch { subject: Subject::volume(&recorded.name), patch })),
        Restore::NoClaim => taken("no longer references a claim, so its owner cannot be determined; its reclaim policy is left unchanged"),
    }
}

/// An admin keeps the volume: it is set to `Retain` again, because its provisioner may come back, and the operator's labels and annotation are
/// removed, so that the alert for orphans ends and another computer can use the volume. `None`: nothing is left to do, or the volume now
/// belongs to another claim.
fn leave(context: &Context<'_>, recorded: &VolumeRecord, pv: &PersistentVolume) -> Option<State> {
    let mut changes = home_volume::unmark(pv);
    let referred = pv.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
    if changes.is_empty() || !referred || !held_by_this_computer(context, pv) || home_volume::foreign_mark(pv, &context.view.uid).is_some()
    {
        return None;
    }
    if pv.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) != Some("Retain") {
        changes.push(patch::replace(["spec", "persistentVolumeReclaimPolicy"], json!("Retain")));
    }
    let mut operations = home_volume::fence(pv);
    operations.append(&mut changes);
    Some(State::act(Action::Patch { subject: Subject::volume(&recorded.name), patch: json_patch::Patch(operations) }))
}

/// What has become of a volume that an admin keeps, for the receipt.
fn kept(context: &Context<'_>, recorded: &VolumeRecord, ours: Option<&PersistentVolume>) -> &'static str {
    match ours {
        None => "no longer exists",
        Some(pv) if !held_by_this_computer(context, pv) => {
            "belongs to another claim and was not changed: it may still have the operator's labels"
        }
        Some(pv) if pv.metadata.deletion_timestamp.is_some() => "is being deleted by another client",
        Some(pv) if home_volume::marked_for(pv, &context.view.uid) => "was not changed: it still has the operator's labels",
        Some(_) if recorded.original_reclaim_policy.is_empty() => "is kept; its reclaim policy is unknown",
        Some(_) => "is kept, without the operator's labels",
    }
}

/// UID of a claim of this computer that is gone or being deleted. A volume that was only reserved for custody has no UID in its claimRef,
/// and Kubernetes would never reclaim it.
fn dead_claim<'a>(context: &'a Context<'_>, recorded: &'a VolumeRecord) -> &'a str {
    let custody = context.deletion().and_then(|d| d.custody.as_ref()).map(|c| c.claim_uid.as_str()).filter(|uid| !uid.is_empty());
    let home = context.record.spec.state.children.claim_uid.as_deref();
    custody.or(home).or(recorded.former_claim_uid.as_deref()).unwrap_or(&recorded.uid)
}

/// Whether the volume still references a claim of this computer: the home's or the custody claim. Only the operator can create a claim with
/// that name in its namespace, so there the name is proof, even if a crash left the UID unrecorded.
fn held_by_this_computer(context: &Context<'_>, pv: &PersistentVolume) -> bool {
    pv.spec.as_ref().is_none_or(|s| s.claim_ref.is_none())
        || held_by_home(context.record, pv)
        || super::custody::refers_to_custody(context.view, pv)
}

/// What restores the original policy.
enum Restore {
    Nothing,
    Patch(json_patch::Patch),
    /// The volume no longer references a claim.
    NoClaim,
}

/// Restores the original policy of a volume, fenced by the claim that it references (S5). If the volume is kept, the operator's labels and
/// annotation are removed. A claimRef without a UID gets the UID of a claim that is gone.
fn restore_patch(pv: &PersistentVolume, recorded: &VolumeRecord, dead_claim: &str) -> Restore {
    let policy = pv.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let mut changes = Vec::new();
    if policy != Some(&recorded.original_reclaim_policy) {
        changes.push(patch::replace(["spec", "persistentVolumeReclaimPolicy"], json!(recorded.original_reclaim_policy)));
    }
    if recorded.original_reclaim_policy != "Delete" {
        changes.append(&mut home_volume::unmark(pv));
    }
    let reserved = pv.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).is_some_and(|r| r.uid.is_none());
    if reserved {
        changes.push(patch::add(["spec", "claimRef", "uid"], json!(dead_claim)));
    }
    if changes.is_empty() || pv.metadata.deletion_timestamp.is_some() {
        return Restore::Nothing;
    }
    if pv.spec.as_ref().is_none_or(|s| s.claim_ref.is_none()) {
        return Restore::NoClaim;
    }
    let mut operations = home_volume::fence(pv);
    operations.append(&mut changes);
    Restore::Patch(json_patch::Patch(operations))
}

/// Whether no custody is recorded and no archive was ever wanted. Otherwise a crash may have left a claim or the first pod.
fn never_in_custody(context: &Context<'_>) -> bool {
    let recorded = context.deletion().is_some_and(|d| d.custody.is_some());
    !recorded && context.record.spec.snapshot.archive.policy == ArchivePolicy::None
}

/// Seconds for an archive pod to end by itself once its archive is verified. Its kubelet reports the end within a second or two, and the API
/// server then deletes the pod at once; the deletion of a pod that still counts as running takes its grace period.
const END_SECONDS: i64 = 10;
/// Seconds after the end of the grace period before a deleted archive pod is force-deleted.
const OVERSTAY_SECONDS: i64 = 60;

/// Deletes the archive pods of all attempts. Only the operator can create pods with these names in its namespace. `None`: all are gone.
fn archive_pods_left(context: &Context<'_>) -> Option<State> {
    if never_in_custody(context) || !guards::on(Guard::CustodyGone) {
        return None;
    }
    let namespace = &context.view.settings.namespace;
    let ours = |subject: &Subject| matches!(subject, Subject::Pod { namespace: of, .. } if of == namespace);
    for (subject, fact) in context.view.facts.iter().filter(|(subject, _)| ours(subject)) {
        if let Fact::Pod(pod) = fact {
            return Some(remove_archive_pod(context, subject, pod));
        }
    }
    // A cache never proves that the latest one is gone. It is read once the claim that it used is gone.
    let name = context.view.archive_pod_name(context.attempts());
    let known = context.view.pod(namespace, &name).is_some();
    (!known && !only_the_claim_is_left(context)).then(|| State::read(Subject::pod(namespace, &name)))
}

/// Whether the volume has its policy again, and the custody claim is being deleted.
fn only_the_claim_is_left(context: &Context<'_>) -> bool {
    let claim = context.view.claim(&context.view.settings.namespace, &context.view.custody_claim_name()).flatten();
    let Some(recorded) = &context.record.spec.state.children.volume else { return false };
    let volume = context.view.volume(&recorded.name).flatten().filter(|pv| pv.metadata.uid.as_deref() == Some(&recorded.uid));
    let restored = volume.is_some_and(|pv| matches!(restore_patch(pv, recorded, dead_claim(context, recorded)), Restore::Nothing));
    restored
        && claim.is_some_and(|claim| claim.metadata.deletion_timestamp.is_some())
        && context.view.skipped(SkippableStep::DeleteVolumes).is_none()
}

/// Deletes one archive pod. It only reads, and its archive is verified or skipped, so a pod on a lost node is force-deleted.
pub(super) fn remove_archive_pod(context: &Context<'_>, subject: &Subject, pod: &Pod) -> State {
    let (subject, uid) = (subject.clone(), pod.metadata.uid.clone().unwrap_or_default());
    let now = context.view.now;
    let Some(deleted) = &pod.metadata.deletion_timestamp else {
        let verified = context.deletion().is_some_and(|d| d.archive.is_some());
        let runs = archive_pod::runs(pod);
        let since = context.noted(DeletionStep::ArchiveSessions).map_or(now, |noted| noted.at.0);
        let left = END_SECONDS - now.duration_since(since).as_secs().max(0);
        if verified && runs && left > 0 {
            return State::wait_for(left);
        }
        return State::act(Action::Delete { subject, uid });
    };
    if let Some(held) = foreign_finalizers(&pod.metadata, &[]) {
        return State::blocked(Reason::ArchivePodHeld, format!("{}: {held}", subject.describe()), 15);
    }
    // The deletionTimestamp is the end of the grace period.
    if now.duration_since(deleted.0).as_secs() > OVERSTAY_SECONDS {
        return State::act(Action::Remove { subject, uid });
    }
    State::wait(15)
}

/// Deletes the custody claim. `None`: it is gone.
fn custody_claim_left(context: &Context<'_>) -> Option<State> {
    if never_in_custody(context) || !guards::on(Guard::CustodyGone) {
        return None;
    }
    let namespace = &context.view.settings.namespace;
    let name = context.view.custody_claim_name();
    let subject = Subject::claim(namespace, &name);
    match context.view.claim(namespace, &name) {
        None => Some(State::read(subject)),
        Some(Some(claim)) if claim.metadata.deletion_timestamp.is_none() => {
            Some(State::act(Action::Delete { subject, uid: claim.metadata.uid.clone().unwrap_or_default() }))
        }
        Some(Some(claim)) => Some(claim_terminating(claim, &subject, context.overdue(DeletionStep::DeleteVolumes), 15)),
        Some(None) => None,
    }
}

/// What to wait for while a claim of this computer is being deleted and no known pod uses it.
pub(super) fn claim_terminating(claim: &PersistentVolumeClaim, subject: &Subject, late: bool, seconds: u64) -> State {
    if let Some(held) = foreign_finalizers(&claim.metadata, &["kubernetes.io/pvc-protection", "foregroundDeletion"]) {
        return State::blocked(Reason::ClaimHeld, format!("{}: {held}", subject.describe()), 15);
    }
    if !late {
        return State::wait(seconds);
    }
    let message = format!(
        "{} is being deleted and no pod uses it, but kube-controller-manager has not removed the finalizer kubernetes.io/pvc-protection. Check that \
         it is running",
        subject.describe()
    );
    State::blocked(Reason::ClaimHeld, message, 15)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// S5: the cache of this replica is stale, and an admin has bound the volume to another claim since.
    #[test]
    fn the_policy_is_restored_only_on_a_volume_that_this_computer_still_holds() {
        let recorded = VolumeRecord { uid: "pv-uid".into(), original_reclaim_policy: "Delete".into(), ..VolumeRecord::default() };
        let volume = |claim: serde_json::Value| json!({"metadata": {"name": "pv", "uid": "pv-uid"}, "spec": {"persistentVolumeReclaimPolicy": "Retain", "claimRef": claim}});
        let theirs = volume(json!({"namespace": "n", "name": "other", "uid": "another"}));
        for ours in [json!({"uid": "custody"}), json!({"namespace": "own", "name": "home-u"})] {
            let seen = serde_json::from_value(volume(ours.clone())).unwrap();
            let Restore::Patch(patch) = restore_patch(&seen, &recorded, "dead") else { panic!("nothing to restore") };
            assert!(json_patch::patch(&mut theirs.clone(), &patch).is_err(), "S5");
            json_patch::patch(&mut volume(ours), &patch).unwrap();
        }
        // Reserved by name and never bound: without a UID Kubernetes would never reclaim it, whatever its policy.
        let mut reserved = volume(json!({"namespace": "own", "name": "home-u"}));
        let seen = serde_json::from_value(reserved.clone()).unwrap();
        let Restore::Patch(patch) = restore_patch(&seen, &recorded, "dead") else { panic!("nothing to restore") };
        json_patch::patch(&mut reserved, &patch).unwrap();
        assert_eq!(reserved["spec"]["claimRef"]["uid"], "dead");
        let mut bound = volume(json!({"namespace": "own", "name": "home-u", "uid": "bound-since"}));
        assert!(json_patch::patch(&mut bound, &patch).is_err(), "S5");
        let unbound = serde_json::from_value(volume(json!(null))).unwrap();
        assert!(matches!(restore_patch(&unbound, &recorded, "dead"), Restore::NoClaim));
    }
}
