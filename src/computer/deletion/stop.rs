//! Step `stop-pods`: nothing may write before the archive is read (DESIGN.md 4.4).
//!
//! The claim is deleted first, so that the scheduler refuses new pods that use it; then the pods. A pod has stopped when its kubelet has
//! reported that every container terminated; the pods' finalizer keeps that report visible even after a forced deletion.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::Context;
use crate::computer::action::{Action, Fact, Subject};
use crate::computer::home_volume::{self, held_by_home};
use crate::computer::step::State;
use crate::computer::stop_pod::Stop;
use crate::guards::{self, Guard};
use crate::resources::persistent_volume::{claim_ref_namespace, claim_ref_uid};
use crate::resources::reasons::Reason;
use crate::resources::steps::DeletionStep;
use crate::resources::{ArchivePolicy, POD_FINALIZER, PodRecord, Provider, SkippableStep, VolumeRecord};

/// Seconds after which a volume that is still attached is reported.
const DETACH_SECONDS: i64 = 30;
/// Seconds between two reads of the attachments until then. The operator has no watch for them.
const DETACH_POLL: u64 = 2;

/// Seconds after the pods are gone before a claim that still exists causes a list of the pods that use it.
const CLAIM_SECONDS: i64 = 3;
/// Seconds after which such a claim is checked less often.
const CLAIM_LATE_SECONDS: i64 = 15;

pub(super) fn step(context: &Context<'_>) -> State {
    if context.record.spec.provider == Provider::BYOM {
        return State::not_applicable("the operator does not run the machine");
    }
    let claim = match home_claim(context) {
        Ok(claim) => claim,
        Err(state) => return state,
    };
    if let Some(state) = claim.map_or_else(|| super::custody::reserve(context), |_| claim_of_stopped_pods(context)) {
        return state;
    }
    if let Some(state) = context.record.spec.state.children.pods.iter().find_map(|pod| stop(context, pod)) {
        return state;
    }
    if let Some(claim) = claim.filter(|_| guards::on(Guard::ClaimGone)) {
        return claim_in_use(context, claim);
    }
    if let Some(state) = attached(context) {
        return state;
    }
    if let Some(by) = context.view.skipped(SkippableStep::StopPods) {
        return State::skipped(super::skipped_by(by));
    }
    State::verified("every container has stopped, pods and claim are gone")
}

/// Records the volume, then deletes the claim. `Ok(None)`: the claim is gone.
fn home_claim<'a>(context: &Context<'a>) -> Result<Option<&'a PersistentVolumeClaim>, State> {
    let children = &context.record.spec.state.children;
    let namespace = &context.record.spec.namespace;
    if let Some(recorded) = children.volume.as_ref().filter(|v| v.original_reclaim_policy.is_empty()) {
        return Err(prove(context, recorded));
    }
    let Some(name) = &children.claim_name else { return Ok(None) };
    let Some(found) = context.view.claim(namespace, name) else { return Err(State::read(Subject::claim(namespace, name))) };
    let any = children.claim_uid.is_none() || !guards::on(Guard::RecordedUid);
    let ours = found.filter(|c| any || c.metadata.uid == children.claim_uid);
    if children.volume.is_none() && guards::on(Guard::SecureFirst) {
        let uid = ours.and_then(|c| c.metadata.uid.clone()).or_else(|| children.claim_uid.clone());
        let bound = ours.and_then(|c| c.spec.as_ref()?.volume_name.clone());
        if let Some(uid) = uid {
            secure(context, &uid, bound)?;
        }
    }
    match ours {
        Some(claim) if claim.metadata.deletion_timestamp.is_none() => {
            still_retained(context)?;
            let uid = claim.metadata.uid.clone().unwrap_or_default();
            Err(State::act(Action::Delete { subject: Subject::claim(namespace, name), uid }))
        }
        // A pod or a finalizer of another client may keep the claim for long. What ends that destroys a volume that is not `Retain`.
        Some(claim) => {
            if !seen_retained(context) {
                still_retained(context)?;
            }
            Ok(Some(claim))
        }
        None => Ok(None),
    }
}

/// Whether the cache shows the volume as protected. A change of its policy is an event, and a label that is removed makes it vanish there.
fn seen_retained(context: &Context<'_>) -> bool {
    let Some(recorded) = &context.record.spec.state.children.volume else { return true };
    let seen = context.view.volume(&recorded.name).flatten();
    seen.is_some_and(|pv| home_volume::retained_for(pv, &context.view.uid) && pv.metadata.deletion_timestamp.is_none())
}

/// Verifies with a live read that the recorded volume is `Retain`. `Err`: it is not, or the volume is already being deleted. Another client
/// may have restored its policy since it was protected (for example a `GitOps` tool), and deleting its claim would then destroy the home before
/// it is archived (S1).
fn still_retained(context: &Context<'_>) -> Result<(), State> {
    let Some(recorded) = &context.record.spec.state.children.volume else { return Ok(()) };
    // Once the archive is decided, the volume may have its original policy again, or be gone.
    let decided = context.deletion().is_some_and(|d| d.archive.is_some()) || context.on_record(DeletionStep::ArchiveSessions).is_some();
    if decided || !guards::on(Guard::StillRetained) {
        return Ok(());
    }
    let subject = Subject::LiveVolume { name: recorded.name.clone() };
    let found = match context.view.facts.get(&subject) {
        None => return Err(State::read(subject)),
        Some(Fact::Volume(_)) => context.view.volume(&recorded.name).flatten(),
        Some(_) => None,
    };
    let ours = found.filter(|pv| pv.metadata.uid.as_deref() == Some(&recorded.uid));
    // Custody that is not recorded is another leader's: that leader protects the volume or has already restored it.
    let in_custody = |pv: &PersistentVolume| {
        context.deletion().is_some_and(|d| d.custody.is_some()) && super::custody::refers_to_custody(context.view, pv)
    };
    let Some(pv) = ours.filter(|pv| held_by_home(context.record, pv) || in_custody(pv)) else {
        return Ok(());
    };
    // If no archive is wanted, nothing is lost with the volume, and it must not block the deletion (L1).
    let wanted = context.record.spec.snapshot.archive.policy != ArchivePolicy::None;
    if pv.metadata.deletion_timestamp.is_some() && wanted && context.view.skipped(SkippableStep::ArchiveSessions).is_none() {
        let message = format!(
            "PersistentVolume {} is being deleted, and only its claim keeps it: deleting the claim would destroy the home before it is archived. The \
             deletion of a volume cannot be undone. Save the home by hand, then create a DeletionOverride that skips archive-sessions",
            recorded.name
        );
        return Err(State::blocked(Reason::VolumeBeingDeleted, message, 60));
    }
    retain(context, &recorded.name, pv).filter(|state| wanted || !matches!(state, State::Blocked(..))).map_or(Ok(()), Err)
}

/// Sets a volume to `Retain` and labels it. `None`: it is protected.
pub(super) fn retain(context: &Context<'_>, name: &str, pv: &PersistentVolume) -> Option<State> {
    if home_volume::retained_for(pv, &context.view.uid) {
        return None;
    }
    if let Some(of) = home_volume::foreign_mark(pv, &context.view.uid) {
        return Some(State::blocked(Reason::VolumeMarked, home_volume::foreign_mark_message(name, of), 60));
    }
    let recorded = context.record.spec.state.children.volume.as_ref();
    Some(State::act(home_volume::retain(name, pv, recorded, &context.view.uid)))
}

/// A volume that comes from a status (see `new_record::recover`) belongs to this computer if its own labels say so. Otherwise it is removed
/// from the record.
fn prove(context: &Context<'_>, recorded: &VolumeRecord) -> State {
    let Some(found) = context.view.volume(&recorded.name) else { return State::read(Subject::volume(&recorded.name)) };
    let ours = found.filter(|pv| pv.metadata.uid.as_deref() == Some(&recorded.uid) && home_volume::marked_for(pv, &context.view.uid));
    if let Some(message) = ours.and_then(|pv| home_volume::policy_unknown(&recorded.name, pv, &context.view.uid)) {
        return State::blocked(Reason::VolumePolicyUnknown, message, 60);
    }
    let proved = ours.map(|pv| VolumeRecord { original_reclaim_policy: home_volume::original_policy(pv), ..recorded.clone() });
    context.save(|r| r.spec.state.children.volume = proved)
}

/// Sets a volume that is bound but not recorded to `Retain` and records it, before the claim may be deleted (S1).
fn secure(context: &Context<'_>, claim_uid: &str, bound: Option<String>) -> Result<(), State> {
    let name = match bound {
        Some(name) => name,
        None => match context.view.facts.get(&Subject::VolumesOfClaim { uid: claim_uid.to_owned() }) {
            None => return Err(State::read(Subject::VolumesOfClaim { uid: claim_uid.to_owned() })),
            Some(Fact::Names(names)) if !names.is_empty() => names[0].clone(),
            Some(_) => return Ok(()),
        },
    };
    let Some(found) = context.view.volume(&name) else { return Err(State::read(Subject::volume(&name))) };
    // The namespace must match too: the UID may come from a status that a tenant wrote.
    let here = |pv: &&PersistentVolume| claim_ref_namespace(pv) == Some(&context.record.spec.namespace);
    let Some(pv) = found.filter(|pv| claim_ref_uid(pv) == Some(claim_uid)).filter(here) else { return Ok(()) };
    if let Some(state) = retain(context, &name, pv) {
        return Err(state);
    }
    if let Some(message) = home_volume::policy_unknown(&name, pv, &context.view.uid) {
        return Err(State::blocked(Reason::VolumePolicyUnknown, message, 60));
    }
    let recorded = home_volume::recorded(pv);
    Err(context.save(|r| {
        r.spec.state.children.claim_uid = Some(claim_uid.to_owned());
        r.spec.state.children.volume = Some(recorded);
    }))
}

/// Stops one pod. `None`: it has stopped and is gone.
fn stop(context: &Context<'_>, recorded: &PodRecord) -> Option<State> {
    let skipped = context.view.skipped(SkippableStep::StopPods).is_some();
    let stop = Stop {
        view: context.view,
        record: context.record,
        recorded,
        late: context.overdue(DeletionStep::StopPods),
        skipped,
        remedy: "If the node is permanently lost, delete its Node object, or create a DeletionOverride that skips stop-pods",
    };
    let subject = stop.subject();
    let Some(found) = context.view.pod(&context.record.spec.namespace, &recorded.name) else { return Some(State::read(subject)) };
    let any = recorded.uid.is_none() || !guards::on(Guard::RecordedUid);
    let Some(pod) = found.filter(|p| any || p.metadata.uid == recorded.uid) else {
        let never_ran = recorded.uid.is_none() || context.record.spec.state.children.volume.is_none();
        // That it cannot write was proved before the archive started (S9); now only its absence is verified again.
        let answered = recorded.stopped_at.is_some() || context.on_record(DeletionStep::StopPods).is_some();
        return if never_ran || answered || skipped || !guards::on(Guard::VanishedPod) { None } else { stop.vanished() };
    };
    if pod.metadata.deletion_timestamp.is_none() {
        return Some(State::act(Action::Delete { subject, uid: pod.metadata.uid.clone().unwrap_or_default() }));
    }
    // Once the operator's finalizer is removed, the pod is deleted, and nothing keeps a claim that is being deleted.
    Some(stop.terminating(pod, |_| (), || still_retained(context).err()))
}

/// Waits a moment for the claim of pods that have stopped and that no cache shows. The claim's protection ends after them, and a watch shows
/// that; whether they are gone is read once, after it.
fn claim_of_stopped_pods(context: &Context<'_>) -> Option<State> {
    let namespace = &context.record.spec.namespace;
    let pods = &context.record.spec.state.children.pods;
    let unseen = |pod: &PodRecord| pod.stopped_at.is_some() && context.view.pod(namespace, &pod.name).is_none();
    let left = CLAIM_SECONDS - stopped_for(context);
    (pods.iter().all(unseen) && (1..=CLAIM_SECONDS).contains(&left)).then(|| State::wait_for(left))
}

/// Seconds since the last pod was seen stopped.
fn stopped_for(context: &Context<'_>) -> i64 {
    let stopped = context.record.spec.state.children.pods.iter().filter_map(|p| p.stopped_at.as_ref()).map(|at| at.0).max();
    stopped.map_or(i64::MAX, |at| context.view.now.duration_since(at).as_secs())
}

/// The computer's pods are gone, but its claim is not: other pods may use it.
fn claim_in_use(context: &Context<'_>, claim: &PersistentVolumeClaim) -> State {
    let namespace = &context.record.spec.namespace;
    let name = claim.metadata.name.clone().unwrap_or_default();
    // The claim's protection normally ends shortly after the last pod, and a watch shows that. All pods are listed only if it takes longer.
    let waited = stopped_for(context);
    if (0..CLAIM_SECONDS).contains(&waited) {
        return State::wait_for(CLAIM_SECONDS - waited);
    }
    let subject = Subject::ClaimUsers { namespace: namespace.clone(), claim: name.clone() };
    match context.view.facts.get(&subject) {
        None => State::read(subject),
        Some(Fact::Names(pods)) if !pods.is_empty() => State::blocked(
            Reason::ForeignPodHoldsClaim,
            format!(
                "PersistentVolumeClaim {namespace}/{name} is still used by pods that the record does not name: {}. Delete them. If one of them has \
                 stopped and has the finalizer {POD_FINALIZER}, remove that too",
                pods.join(", ")
            ),
            15,
        ),
        // No pod uses it: only a finalizer keeps the claim.
        Some(_) => {
            let seconds = if waited < CLAIM_LATE_SECONDS { 2 } else { 15 };
            super::volumes::claim_terminating(claim, &Subject::claim(namespace, &name), context.overdue(DeletionStep::StopPods), seconds)
        }
    }
}

/// Waits until an attachable volume is detached from the old node: until then that node may still write.
fn attached(context: &Context<'_>) -> Option<State> {
    let volume = context.record.spec.state.children.volume.as_ref()?;
    if context.deletion()?.custody.is_some() {
        return None;
    }
    let Some(found) = context.view.volume(&volume.name) else { return Some(State::read(Subject::volume(&volume.name))) };
    // Without the volume, nothing is left to archive.
    let pv = found?;
    if pv.metadata.uid.as_deref() != Some(&volume.uid) {
        // Another one of that name, unless the cache is stale.
        let live = Subject::LiveVolume { name: volume.name.clone() };
        return (!context.view.facts.contains_key(&live)).then(|| State::read(live));
    }
    // The custody claim is created only after this, so an attachment is that of the archive pod (a crash can leave custody unrecorded). A volume
    // that is only reserved may still be attached to the machine's node.
    if super::custody::refers_to_custody(context.view, pv) && claim_ref_uid(pv).is_some() || home_volume::never_attached(pv) {
        return None;
    }
    let subject = Subject::Attachments { volume: volume.name.clone() };
    let attachments = match context.view.facts.get(&subject) {
        None => return Some(State::read(subject)),
        Some(Fact::Names(attachments)) if !attachments.is_empty() => attachments.join(", "),
        Some(_) => return None,
    };
    if context.running_for(DeletionStep::StopPods) < DETACH_SECONDS {
        return Some(State::wait(DETACH_POLL));
    }
    let message = format!("PersistentVolume {} is still attached to {attachments}; waiting for its CSI driver to detach it", volume.name);
    context.view.skipped(SkippableStep::StopPods).is_none().then(|| State::blocked(Reason::VolumeAttached, message, 10))
}
