//! Step `stop-pods`: nothing may write before the archive is read (DESIGN.md 4.4).
//!
//! The claim is deleted first, so that the scheduler refuses new pods on it; then the pods. "Stopped" means that every container has
//! reported that it terminated, which our pods' finalizer lets us see even after a forced deletion.

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
use crate::resources::{ArchivePolicy, PodRecord, Provider, SkippableStep, VolumeRecord};

/// Seconds that a volume may take to be detached before that is shown.
const DETACH_SECONDS: i64 = 30;
/// Seconds between two reads of the attachments until then. No watch shows them.
const DETACH_POLL: u64 = 2;

/// Seconds that a claim may take to be gone after its pods, before other pods are looked for.
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
    if let Some(state) = context.record.spec.state.children.pods.iter().find_map(|pod| stop(context, pod)) {
        return state;
    }
    if let Some(claim) = claim.filter(|_| guards::on(Guard::ClaimGone)) {
        return held(context, claim);
    }
    if let Some(state) = attached(context) {
        return state;
    }
    if let Some(by) = context.view.skipped(SkippableStep::StopPods) {
        return State::skipped(super::skipped_by(by));
    }
    State::verified("every container has stopped, pods and claim are gone")
}

/// Puts the volume on record, then deletes the claim. `Ok(None)`: the claim is gone.
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
        other => Ok(other),
    }
}

/// The recorded volume is `Retain` at this moment, by a live read. `Err`: it is not, or cannot be saved. Someone may have restored its
/// policy since it was protected (a `GitOps` tool, say), and deleting its claim would then destroy the home before it is archived (S1).
fn still_retained(context: &Context<'_>) -> Result<(), State> {
    let Some(recorded) = &context.record.spec.state.children.volume else { return Ok(()) };
    // Once the archive is decided, the volume may have its own policy back, or be gone.
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
    // Custody that is not on record is another leader's: it protects the volume, or has given it back already.
    let in_custody = |pv: &PersistentVolume| {
        context.deletion().is_some_and(|d| d.custody.is_some()) && super::custody::refers_to_custody(context.view, pv)
    };
    let Some(pv) = ours.filter(|pv| held_by_home(context.record, pv) || in_custody(pv)) else {
        return Ok(());
    };
    // Where no archive is wanted, nothing is lost with the volume, and nothing about it may block the deletion (L1).
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

/// Sets a volume to `Retain` under our mark. `None`: it is.
pub(super) fn retain(context: &Context<'_>, name: &str, pv: &PersistentVolume) -> Option<State> {
    if home_volume::retained_for(pv, &context.view.uid) {
        return None;
    }
    if let Some(of) = home_volume::foreign_mark(pv, &context.view.uid) {
        return Some(State::blocked(Reason::VolumeMarked, home_volume::foreign_mark_message(name, of), 60));
    }
    Some(State::act(home_volume::retain(name, pv, &context.view.uid)))
}

/// A volume that only a status has named (see `new_record::recover`) is ours if it says so itself; otherwise it is removed from the record.
fn prove(context: &Context<'_>, recorded: &VolumeRecord) -> State {
    let Some(found) = context.view.volume(&recorded.name) else { return State::read(Subject::volume(&recorded.name)) };
    let ours = found.filter(|pv| pv.metadata.uid.as_deref() == Some(&recorded.uid) && home_volume::marked_for(pv, &context.view.uid));
    if let Some(message) = ours.and_then(|pv| home_volume::policy_unknown(&recorded.name, pv, &context.view.uid)) {
        return State::blocked(Reason::VolumePolicyUnknown, message, 60);
    }
    let proved = ours.map(|pv| VolumeRecord { original_reclaim_policy: home_volume::original_policy(pv), ..recorded.clone() });
    context.save(|r| r.spec.state.children.volume = proved)
}

/// A volume that was bound but not yet recorded is set to `Retain` and recorded before the claim may be deleted (S1).
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
    // The namespace counts, too: the UID may come from a status that a tenant wrote.
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

/// One pod: `None` when it is stopped and gone.
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
        // Whether it may still write was answered before the archive started (S9); here only its absence is verified again.
        let answered = recorded.stopped_at.is_some() || context.on_record(DeletionStep::StopPods).is_some();
        return if never_ran || answered || skipped || !guards::on(Guard::VanishedPod) { None } else { stop.vanished() };
    };
    if pod.metadata.deletion_timestamp.is_none() {
        return Some(State::act(Action::Delete { subject, uid: pod.metadata.uid.clone().unwrap_or_default() }));
    }
    // Without our finalizer the pod goes, and with it the last that keeps a claim which is being deleted.
    Some(stop.terminating(pod, |_| (), || still_retained(context).err()))
}

/// Our pods are gone, but the claim is not: other pods use it.
fn held(context: &Context<'_>, claim: &PersistentVolumeClaim) -> State {
    let namespace = &context.record.spec.namespace;
    let name = claim.metadata.name.clone().unwrap_or_default();
    // Its protection ends a moment after the last pod, which its watch shows. A list of all pods is for when that takes longer.
    let stopped = context.record.spec.state.children.pods.iter().filter_map(|p| p.stopped_at.as_ref()).map(|at| at.0).max();
    let waited = stopped.map_or(i64::MAX, |at| context.view.now.duration_since(at).as_secs());
    if (0..CLAIM_SECONDS).contains(&waited) {
        return State::wait_for(CLAIM_SECONDS - waited);
    }
    let subject = Subject::ClaimUsers { namespace: namespace.clone(), claim: name.clone() };
    match context.view.facts.get(&subject) {
        None => State::read(subject),
        Some(Fact::Names(pods)) if !pods.is_empty() => State::blocked(
            Reason::ForeignPodHoldsClaim,
            format!(
                "PersistentVolumeClaim {namespace}/{name} is still used by pods that do not belong to the operator: {}. Delete them",
                pods.join(", ")
            ),
            15,
        ),
        // Its deletion waits for pods only as long as the claim's own protection says so.
        Some(_) => {
            let seconds = if waited < CLAIM_LATE_SECONDS { 2 } else { 15 };
            super::volumes::leaving(claim, &Subject::claim(namespace, &name), context.overdue(DeletionStep::StopPods), seconds)
        }
    }
}

/// Attachable volumes must be detached from the old node: until then it may still write.
fn attached(context: &Context<'_>) -> Option<State> {
    let volume = context.record.spec.state.children.volume.as_ref()?;
    if context.deletion()?.custody.is_some() {
        return None;
    }
    let Some(found) = context.view.volume(&volume.name) else { return Some(State::read(Subject::volume(&volume.name))) };
    // The volume goes into custody only after this. What is attached since is the archive pod's (a crash can leave it unrecorded).
    if found.is_some_and(|pv| super::custody::refers_to_custody(context.view, pv)) {
        return None;
    }
    let subject = Subject::Attachments { volume: volume.name.clone() };
    let nodes = match context.view.facts.get(&subject) {
        None => return Some(State::read(subject)),
        Some(Fact::Names(nodes)) if !nodes.is_empty() => nodes.join(", "),
        Some(_) => return None,
    };
    if context.running_for(DeletionStep::StopPods) < DETACH_SECONDS {
        return Some(State::wait(DETACH_POLL));
    }
    let message = format!("PersistentVolume {} is still attached to node {nodes}; waiting for it to be detached", volume.name);
    context.view.skipped(SkippableStep::StopPods).is_none().then(|| State::blocked(Reason::VolumeAttached, message, 10))
}
