//! Step 2, `stop-pods`: nothing may write any more before the archive reads (DESIGN.md 4.4).
//!
//! The claim goes first, so that the scheduler refuses new pods on it; then the pods. "Stopped" means that every container has
//! reported that it terminated, which our pods' finalizer lets us see even after a forced deletion.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::{Context, Outcome, State};
use crate::computer::action::{Action, Fact, Subject};
use crate::computer::home_volume::{self, retain_patch};
use crate::computer::stopped::{ORPHAN_KILL_SECONDS, Writers, answers, collected, overstays, remove_finalizer_patch, writers};
use crate::guards::{self, Guard};
use crate::resources::persistent_volume;
use crate::resources::{ArchivePolicy, POD_FINALIZER, PodRecord, Provider, SkippableStep, VolumeRecord};

/// Seconds that a volume may take to be detached before that is told.
const DETACH_SECONDS: i64 = 30;
/// Seconds between two looks at the attachments until then. No watch shows them.
const DETACH_POLL: u64 = 2;

/// Seconds that a claim may take to go once its pods are gone, before anybody else's pods are looked for.
const CLAIM_SECONDS: i64 = 3;
/// Seconds after which such a claim is looked at less often.
const CLAIM_LATE_SECONDS: i64 = 15;

pub(super) fn step(context: &Context<'_>) -> State {
    if context.record.spec.provider == Provider::BYOM {
        return State::not_applicable("the machine is not ours to stop");
    }
    let claim = match home_claim(context) {
        Ok(claim) => claim,
        Err(state) => return state,
    };
    for pod in &context.record.spec.state.children.pods {
        if let Some(state) = stop(context, pod) {
            return state;
        }
    }
    if let Some(claim) = claim.filter(|_| guards::on(Guard::ClaimGone)) {
        return held(context, claim);
    }
    if let Some(state) = attached(context) {
        return state;
    }
    if let Some(by) = context.view.skipped(SkippableStep::StopPods) {
        return State::Done(Outcome::Skipped, super::receipt::skipped_by(by));
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
    let Some(found) = context.view.claim(namespace, name) else {
        return Err(State::act(Action::Read(Subject::claim(namespace, name))));
    };
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

/// The recorded volume is `Retain` at this moment, by a live read. `Err`: it is not, or cannot be saved. Somebody may have set its policy
/// back since it was protected (a `GitOps` tool, say), and deleting its claim would then destroy the home before it is archived (S1).
fn still_retained(context: &Context<'_>) -> Result<(), State> {
    let Some(recorded) = &context.record.spec.state.children.volume else { return Ok(()) };
    // Once the archive is decided, the volume may have its own policy back, or be gone.
    let decided = context.deletion().is_some_and(|d| d.archive.is_some()) || context.finished("archive-sessions").is_some();
    if decided || !guards::on(Guard::StillRetained) {
        return Ok(());
    }
    let subject = Subject::LiveVolume { name: recorded.name.clone() };
    let found = match context.view.facts.get(&subject) {
        None => return Err(State::act(Action::Read(subject))),
        Some(Fact::Volume(_)) => context.view.volume(&recorded.name).flatten(),
        Some(_) => None,
    };
    let ours = found.filter(|pv| pv.metadata.uid.as_deref() == Some(&recorded.uid));
    let Some(pv) = ours.filter(|pv| home_volume::held_by_home(context.record, pv) || super::custody::refers_to_custody(context.view, pv))
    else {
        return Ok(());
    };
    // Where no archive is wanted, nothing is lost with the volume, and nothing about it may hold the deletion up (L1).
    let wanted = context.record.spec.snapshot.archive.policy != ArchivePolicy::None;
    if pv.metadata.deletion_timestamp.is_some() && wanted && context.view.skipped(SkippableStep::ArchiveSessions).is_none() {
        return Err(State::blocked(
            "VolumeBeingDeleted",
            format!(
                "PersistentVolume {} is being deleted, and only its claim keeps it: going on would destroy the home before it is archived, and a \
                 deletion cannot be taken back. Save the home by hand, then create a DeletionOverride that skips archive-sessions",
                recorded.name
            ),
            60,
        ));
    }
    retain(context, &recorded.name, pv).filter(|state| wanted || !matches!(state, State::Blocked(..))).map_or(Ok(()), Err)
}

/// Sets a volume to `Retain` under our mark. `None`: it is.
pub(super) fn retain(context: &Context<'_>, name: &str, pv: &PersistentVolume) -> Option<State> {
    if home_volume::retained_for(pv, &context.view.uid) {
        return None;
    }
    if let Some(of) = home_volume::foreign_mark(pv, &context.view.uid) {
        return Some(State::blocked("VolumeMarked", home_volume::foreign_mark_message(name, of), 60));
    }
    Some(State::act(Action::Patch { subject: Subject::volume(name), patch: retain_patch(pv, &context.view.uid) }))
}

/// A volume that only a status has named (see `new_record::recover`) is ours if it says so itself; otherwise it is taken off the record.
fn prove(context: &Context<'_>, recorded: &VolumeRecord) -> State {
    let Some(found) = context.view.volume(&recorded.name) else { return State::act(Action::Read(Subject::volume(&recorded.name))) };
    let ours = found.filter(|pv| pv.metadata.uid.as_deref() == Some(&recorded.uid) && home_volume::marked_for(pv, &context.view.uid));
    let proved = ours.map(|pv| VolumeRecord { original_reclaim_policy: home_volume::original_policy(pv), ..recorded.clone() });
    context.save(|r| r.spec.state.children.volume = proved)
}

/// A volume that was bound but not yet recorded is set to `Retain` and recorded before the claim may go (S1).
fn secure(context: &Context<'_>, claim_uid: &str, bound: Option<String>) -> Result<(), State> {
    let name = match bound {
        Some(name) => name,
        None => match context.view.facts.get(&Subject::VolumesOfClaim { uid: claim_uid.to_owned() }) {
            None => return Err(State::act(Action::Read(Subject::VolumesOfClaim { uid: claim_uid.to_owned() }))),
            Some(Fact::Names(names)) if !names.is_empty() => names[0].clone(),
            Some(_) => return Ok(()),
        },
    };
    let Some(found) = context.view.volume(&name) else { return Err(State::act(Action::Read(Subject::volume(&name)))) };
    // The namespace counts, too: the UID may come from a status that a tenant wrote.
    let here = |pv: &&PersistentVolume| persistent_volume::claim_ref_namespace(pv) == Some(&context.record.spec.namespace);
    let Some(pv) = found.filter(|pv| persistent_volume::claim_ref_uid(pv) == Some(claim_uid)).filter(here) else { return Ok(()) };
    if let Some(state) = retain(context, &name, pv) {
        return Err(state);
    }
    let recorded = VolumeRecord {
        name,
        uid: pv.metadata.uid.clone().unwrap_or_default(),
        original_reclaim_policy: home_volume::original_policy(pv),
        former_claim_uid: None,
        storage_class_name: pv.spec.as_ref().and_then(|s| s.storage_class_name.clone()),
        ..VolumeRecord::default()
    };
    Err(context.save(|r| {
        r.spec.state.children.claim_uid = Some(claim_uid.to_owned());
        r.spec.state.children.volume = Some(recorded);
    }))
}

/// One pod: `None` when it is stopped and gone.
fn stop(context: &Context<'_>, recorded: &PodRecord) -> Option<State> {
    let namespace = &context.record.spec.namespace;
    let subject = Subject::pod(namespace, &recorded.name);
    let Some(found) = context.view.pod(namespace, &recorded.name) else { return Some(State::act(Action::Read(subject))) };
    let any = recorded.uid.is_none() || !guards::on(Guard::RecordedUid);
    match found.filter(|p| any || p.metadata.uid == recorded.uid) {
        None => vanished(context, recorded),
        Some(pod) if pod.metadata.deletion_timestamp.is_none() => {
            Some(State::act(Action::Delete { subject, uid: pod.metadata.uid.clone().unwrap_or_default() }))
        }
        Some(pod) => Some(terminating(context, recorded, pod, subject)),
    }
}

fn terminating(context: &Context<'_>, recorded: &PodRecord, pod: &Pod, subject: Subject) -> State {
    let skipped = context.view.skipped(SkippableStep::StopPods).is_some();
    let late = context.overdue("stop-pods", context.record.spec.snapshot.deadlines.stop_pods_seconds);
    let collected = collected(pod).filter(|_| !skipped);
    match writers(pod) {
        Writers::Stopped => {}
        // The kubelet will not say any more: the node decides, as for a pod that is gone.
        _ if collected.is_some() => {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
            if let Some(state) = collected.and_then(|since| node_lets_go(context, recorded, node, since)) {
                return state;
            }
        }
        _ if skipped || !guards::on(Guard::WritersStopped) => {}
        Writers::Running if !late => return State::wait(15),
        Writers::Running => return State::blocked("PodStillRunning", still_running(&subject, pod, "its containers still run"), 15),
        Writers::Unknown(why) => return State::blocked("PodStateUnknown", still_running(&subject, pod, &why), 15),
    }
    if recorded.stopped_at.is_none() && !skipped {
        // Proof first, then the finalizer: once the pod is gone nobody could tell any more.
        return context.save(|r| {
            for p in r.spec.state.children.pods.iter_mut().filter(|p| p.name == recorded.name) {
                p.stopped_at = Some(Time(context.view.now));
                p.uid.clone_from(&pod.metadata.uid);
            }
        });
    }
    let held = pod.metadata.finalizers.iter().flatten().any(|f| f == POD_FINALIZER);
    // Without this finalizer the pod goes, and with it the last that keeps a claim which is being deleted.
    if let Some(state) = Some(context).filter(|_| held).and_then(|context| still_retained(context).err()) {
        return state;
    }
    match remove_finalizer_patch(pod).filter(|_| held) {
        Some(patch) => State::act(Action::Patch { subject, patch }),
        None => match foreign_finalizers(&pod.metadata, &[]) {
            Some(held) => State::blocked("PodHeld", format!("{} has stopped, but {held}", subject.describe()), 15),
            None if skipped || overstays(pod, recorded.stopped_at.as_ref(), context.view.now) => {
                State::act(Action::Remove { subject, uid: pod.metadata.uid.clone().unwrap_or_default() })
            }
            None => State::wait(2),
        },
    }
}

/// Finalizers of somebody else that keep an object: told to the user, never touched (S5).
pub(super) fn foreign_finalizers(metadata: &ObjectMeta, usual: &[&str]) -> Option<String> {
    let held: Vec<&str> =
        metadata.finalizers.iter().flatten().map(String::as_str).filter(|f| !usual.contains(f) && *f != POD_FINALIZER).collect();
    (!held.is_empty()).then(|| {
        let names = held.join(", ");
        format!("finalizers that are not ours hold it: {names}. Ask their owner to finish, or remove them: no DeletionOverride can")
    })
}

fn still_running(subject: &Subject, pod: &Pod, why: &str) -> String {
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("no node");
    format!("{} on {node}: {why}. If that machine is lost for good, create a DeletionOverride that skips stop-pods", subject.describe())
}

/// A pod that is gone without proof that its containers stopped: its finalizer was stripped and it was deleted by force. A live
/// kubelet kills such containers; a node that cannot be asked leaves it unknown.
fn vanished(context: &Context<'_>, recorded: &PodRecord) -> Option<State> {
    let children = &context.record.spec.state.children;
    let never_ran = recorded.uid.is_none() || children.volume.is_none();
    // Whether it may still write was answered before the archive began (S9); here only its absence is looked at again.
    let answered = !guards::on(Guard::VanishedPod) || recorded.stopped_at.is_some() || context.finished("stop-pods").is_some();
    if answered || never_ran || context.view.skipped(SkippableStep::StopPods).is_some() {
        return None;
    }
    // A time that is still to come was written by a clock that has been set back since: it proves nothing.
    let Some(since) = recorded.vanished_at.as_ref().filter(|at| at.0 <= context.view.now) else {
        return Some(context.save(|r| {
            for p in r.spec.state.children.pods.iter_mut().filter(|p| p.name == recorded.name) {
                p.vanished_at = Some(Time(context.view.now));
            }
        }));
    };
    node_lets_go(context, recorded, recorded.node.as_deref(), since.0)
}

/// A live kubelet kills the containers of a pod that is gone, or that the pod garbage collector has ended, within its grace period and a
/// little more; a node that is gone runs none. `None`: nothing of the pod can write any more.
fn node_lets_go(context: &Context<'_>, recorded: &PodRecord, node: Option<&str>, since: Timestamp) -> Option<State> {
    // A class may name any grace period.
    let needed = context.record.spec.snapshot.grace_period_seconds.unwrap_or(30).max(0).saturating_add(ORPHAN_KILL_SECONDS);
    let left = needed.saturating_sub(context.view.now.duration_since(since).as_secs());
    if left > 0 {
        return Some(State::wait(u64::try_from(left).unwrap_or(1)));
    }
    let subject = Subject::Node { name: node?.to_owned() };
    match context.view.facts.get(&subject) {
        None => Some(State::act(Action::Read(subject))),
        Some(Fact::Node(node)) if !answers(node) => Some(State::blocked(
            "NodeUnreachable",
            format!(
                "Pod {}/{} was ended without its kubelet and its node {} does not answer, so its containers may still write. Bring the node back, \
                 delete the Node object if it is lost, or create a DeletionOverride that skips stop-pods",
                context.record.spec.namespace,
                recorded.name,
                node.metadata.name.as_deref().unwrap_or_default()
            ),
            15,
        )),
        Some(_) => None,
    }
}

/// Our pods are gone, but the claim is not: somebody else's pod uses it.
fn held(context: &Context<'_>, claim: &PersistentVolumeClaim) -> State {
    let namespace = &context.record.spec.namespace;
    let name = claim.metadata.name.clone().unwrap_or_default();
    // Its protection ends a moment after the last pod, which its watch shows. A list of all pods is for when that takes longer.
    let stopped = context.record.spec.state.children.pods.iter().filter_map(|p| p.stopped_at.as_ref()).map(|at| at.0).max();
    let waited = stopped.map_or(i64::MAX, |at| context.view.now.duration_since(at).as_secs());
    if (0..CLAIM_SECONDS).contains(&waited) {
        return State::wait(u64::try_from(CLAIM_SECONDS - waited).unwrap_or(1));
    }
    let subject = Subject::ClaimUsers { namespace: namespace.clone(), claim: name.clone() };
    match context.view.facts.get(&subject) {
        None => State::act(Action::Read(subject)),
        Some(Fact::Names(pods)) if !pods.is_empty() => State::blocked(
            "ForeignPodHoldsClaim",
            format!("PersistentVolumeClaim {namespace}/{name} is still used by pods that are not ours: {}. Delete them", pods.join(", ")),
            15,
        ),
        // Its deletion waits for pods only as long as the claim's own protection says so.
        Some(_) => {
            let late = context.overdue("stop-pods", context.record.spec.snapshot.deadlines.stop_pods_seconds);
            let seconds = if waited < CLAIM_LATE_SECONDS { 2 } else { 15 };
            super::volumes::leaving(claim, &Subject::claim(namespace, &name), late, seconds)
        }
    }
}

/// Attachable volumes must be detached from the old node: until then it may still write.
fn attached(context: &Context<'_>) -> Option<State> {
    let volume = context.record.spec.state.children.volume.as_ref()?;
    if context.deletion()?.custody.is_some() {
        return None;
    }
    let Some(found) = context.view.volume(&volume.name) else { return Some(State::act(Action::Read(Subject::volume(&volume.name)))) };
    // The volume is given into custody only after this. What is attached since is the archive pod's (a crash can leave it unrecorded).
    if found.is_some_and(|pv| super::custody::refers_to_custody(context.view, pv)) {
        return None;
    }
    let subject = Subject::Attachments { volume: volume.name.clone() };
    match context.view.facts.get(&subject) {
        None => Some(State::act(Action::Read(subject))),
        Some(Fact::Names(names)) if !names.is_empty() && !context.overdue("stop-pods", DETACH_SECONDS) => Some(State::wait(DETACH_POLL)),
        Some(Fact::Names(names)) if !names.is_empty() && context.view.skipped(SkippableStep::StopPods).is_none() => Some(State::blocked(
            "VolumeAttached",
            format!("volume {} is still attached ({}): the node has not let it go yet", volume.name, names.join(", ")),
            10,
        )),
        Some(_) => None,
    }
}
