//! The volume's custody (DESIGN.md 4.5): its `claimRef` is set to a claim in the operator's namespace, where the archive pod reads it. This
//! also works for a terminating namespace, where nothing can be created.
//!
//! It must never take a volume whose `claimRef` has another UID than the recorded claim (S5).
//!
//! The order decides how long the binding takes. The volume controller reconciles a claim when the claim changes. A claim that is created
//! while its volume still names another one is refused (`FailedBinding`), and is reconciled again at the controller's next resync only, up
//! to 15 s later. So the volume is first reserved for the claim by namespace and name, without a UID, as soon as the home's claim is gone
//! ([`reserve`]). The controller answers with phase
//! `Available`, which proves that it has seen the reservation. Then the claim is created and bound at once. Creating the claim first and
//! touching it after the patch would bind as fast, but needs one more write and the right to change claims.
//!
//! While the reservation has no UID, any claim of that name in the operator's namespace would be bound. The fences still hold:
//! - Only the operator and cluster admins may create claims in that namespace. The policy `names` also reserves the name for the operator.
//!   Without policies RBAC remains. In any order, a client that could create that claim first would get the volume.
//! - The reservation itself is fenced by the volume's UID, by the UID of the claim that held it, and by the operator's label and `Retain`. A leader
//!   with a stale view cannot reserve a volume whose policy was restored.
//! - A volume without a UID in its `claimRef` is never reclaimed, whatever its policy says. `delete-volumes` restores a UID.

use json_patch::Patch;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::json;

use super::Context;
use crate::archive::Origin;
use crate::computer::action::{Action, Object, Subject};
use crate::computer::children::labels;
use crate::computer::home_volume::{self, claim_ref_patch, held_by_home};
use crate::computer::step::State;
use crate::computer::view::View;
use crate::guards::{self, Guard};
use crate::resources::persistent_volume::claim_ref_uid;
use crate::resources::reasons::Reason;
use crate::resources::steps::DeletionStep;
use crate::resources::{ArchivePolicy, ComputerRecord, SkippableStep, UID_LABEL};
use crate::runtime::patch;

/// Returns the next step towards custody, or `None` once the volume is bound to the custody claim.
pub(super) fn take(context: &Context<'_>) -> Option<State> {
    let (view, record) = (context.view, context.record);
    let recorded = record.spec.state.children.volume.as_ref()?;
    let Some(found) = view.volume(&recorded.name) else { return Some(State::read(Subject::volume(&recorded.name))) };
    let Some(pv) = found.filter(|pv| pv.metadata.uid.as_deref() == Some(&recorded.uid)) else { return Some(lost(&recorded.name)) };
    if !(held_by_home(record, pv) || refers_to_custody(view, pv)) {
        return Some(taken_by_another(&recorded.name, pv));
    }
    // If the custody claim is deleted by mistake, only the reclaim policy keeps the home.
    if let Some(state) = super::stop::retain(context, &recorded.name, pv).filter(|_| guards::on(Guard::StillRetained)) {
        return Some(state);
    }
    let name = view.custody_claim_name();
    let subject = Subject::claim(&view.settings.namespace, &name);
    let holder = claim_ref_uid(pv);
    let patched = |patch| Some(State::act(Action::Patch { subject: Subject::volume(&recorded.name), patch }));
    let known = view.claim(&view.settings.namespace, &name);
    let Some(claim) = known.flatten() else {
        let available = pv.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available");
        return match (holder, known) {
            // The volume is bound to the custody claim, which the cache does not hold.
            (Some(_), None) if refers_to_custody(view, pv) => Some(State::read(subject)),
            // A refused create does not say whether the claim exists: admission and quotas come first.
            (None, None) if available && view.failures > 0 => Some(State::read(subject)),
            (Some(_), _) => patched(reserve_patch(pv, view)),
            (None, _) if !available => {
                Some(unbound(context, &recorded.name, "has not processed the reservation of the volume for the archive"))
            }
            // If it exists, the API server says so, and the claim is read then.
            (None, _) => Some(State::act(Action::Create(Object::Claim(Box::new(custody_claim(view, pv)))))),
        };
    };
    if claim.metadata.deletion_timestamp.is_some() {
        let message = format!("{} is being deleted by another client; it will be re-created once it is gone", subject.describe());
        return Some(State::blocked(Reason::CustodyClaimDeleted, message, 5));
    }
    let custody_uid = claim.metadata.uid.as_deref()?;
    if holder.is_none() || holder == Some(custody_uid) {
        // A pod on a claim that is not bound yet would wait for the scheduler's backoff.
        let bound = holder.is_some() && claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        return (!bound).then(|| unbound(context, &recorded.name, "has not bound the volume to the claim for the archive"));
    }
    // The claim was created before a disruption: it binds at the controller's next resync.
    patched(claim_ref_patch(pv, &view.settings.namespace, &name, custody_uid))
}

/// Reserves the volume for custody as soon as the home's claim is gone. From then on only the policy would keep the home, and another client
/// may set it back while pods, nodes and attachments are waited for (S1). A reserved volume is never reclaimed, whatever its policy says, and
/// no pod of the tenant can use it. `None`: it is reserved, or nothing is to be archived.
pub(super) fn reserve(context: &Context<'_>) -> Option<State> {
    let (view, record) = (context.view, context.record);
    let recorded = record.spec.state.children.volume.as_ref()?;
    let decided = context.deletion()?.archive.is_some() || context.on_record(DeletionStep::ArchiveSessions).is_some();
    let wanted = record.spec.snapshot.archive.policy != ArchivePolicy::None && view.skipped(SkippableStep::ArchiveSessions).is_none();
    if decided || !wanted || !guards::on(Guard::Reserved) {
        return None;
    }
    let Some(found) = view.volume(&recorded.name) else { return Some(State::read(Subject::volume(&recorded.name))) };
    let of_home = |pv: &&PersistentVolume| {
        let ours = pv.metadata.uid.as_deref() == Some(&recorded.uid) && pv.metadata.deletion_timestamp.is_none();
        ours && claim_ref_uid(pv).is_some() && held_by_home(record, pv) && !refers_to_custody(view, pv)
    };
    let pv = found.filter(of_home)?;
    if let Some(state) = super::stop::retain(context, &recorded.name, pv) {
        return Some(state);
    }
    Some(State::act(Action::Patch { subject: Subject::volume(&recorded.name), patch: reserve_patch(pv, view) }))
}

fn lost(name: &str) -> State {
    let message = format!(
        "PersistentVolume {name} no longer exists, so nothing can be archived. Create a DeletionOverride that skips archive-sessions"
    );
    State::blocked(Reason::VolumeLost, message, 60)
}

fn taken_by_another(name: &str, pv: &PersistentVolume) -> State {
    let holder = claim_ref_uid(pv).unwrap_or("none");
    let message = format!(
        "PersistentVolume {name} now belongs to another claim (UID {holder}), so the operator does not touch it. Create a DeletionOverride that \
         skips archive-sessions and delete-volumes"
    );
    State::blocked(Reason::VolumeTaken, message, 60)
}

/// Seconds after which a wait for the volume controller is reported.
const BIND_SECONDS: i64 = 60;

/// Waits for the volume controller. Blocked once that takes longer than [`BIND_SECONDS`].
fn unbound(context: &Context<'_>, volume: &str, what: &str) -> State {
    if context.running_for(DeletionStep::ArchiveSessions) < BIND_SECONDS {
        return State::wait(15);
    }
    let (namespace, claim) = (&context.view.settings.namespace, context.view.custody_claim_name());
    let message = format!(
        "kube-controller-manager {what} (PersistentVolume {volume}, PersistentVolumeClaim {namespace}/{claim}). Check that it is running, and see \
         `kubectl describe pv {volume}` and `kubectl describe pvc -n {namespace} {claim}`"
    );
    State::blocked(Reason::CustodyNotBound, message, 15)
}

/// Whether this reconcile has observed the volume in custody.
pub(super) fn taken(view: &View, record: &ComputerRecord) -> bool {
    let Some(volume) = &record.spec.state.children.volume else { return true };
    let holder = view.volume(&volume.name).flatten().and_then(claim_ref_uid);
    holder.is_some() && holder == claim_uid(view).as_deref()
}

/// UID of the custody claim that this reconcile has read.
pub(super) fn claim_uid(view: &View) -> Option<String> {
    view.claim(&view.settings.namespace, &view.custody_claim_name()).flatten()?.metadata.uid.clone()
}

/// What an archive's manifest must contain to belong to this deletion. This deletion creates the custody claim after all writers have
/// stopped: an archive that was read through that claim contains everything that was written.
pub fn origin(view: &View) -> Origin {
    let deletion = view.record.as_ref().and_then(|r| r.spec.state.deletion.as_ref());
    let recorded = || Some(deletion?.custody.as_ref()?.claim_uid.clone()).filter(|uid| !uid.is_empty());
    let deleted_at = deletion.map_or(i64::MAX, |d| d.deleted_at.0.as_second());
    let ended_pod =
        view.record.as_ref().and_then(|record| super::archive_pod::latest(view, record)).filter(|pod| super::archive_pod::ended(pod));
    Origin {
        custody_claim: claim_uid(view).or_else(recorded),
        deleted_at,
        namespace: view.namespace.clone(),
        ended_pod: ended_pod.and_then(|pod| pod.metadata.uid.clone()),
    }
}

/// Whether the volume's `claimRef` names the custody claim, with any UID.
pub(super) fn refers_to_custody(view: &View, pv: &PersistentVolume) -> bool {
    let reference = pv.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    reference
        .is_some_and(|r| r.namespace.as_deref() == Some(&view.settings.namespace) && r.name.as_deref() == Some(&view.custody_claim_name()))
}

/// Reserves a volume for the custody claim before the claim is created: the claimRef has no UID yet. Also fenced by the operator's label and
/// `Retain`: a volume whose policy was restored is about to be deleted, and a leader with a stale view must not keep it.
fn reserve_patch(pv: &PersistentVolume, view: &View) -> Patch {
    let (namespace, name) = (&view.settings.namespace, view.custody_claim_name());
    let reference = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name});
    let mut operations = home_volume::fence(pv);
    operations.extend([
        patch::test(["metadata", "labels", UID_LABEL], json!(view.uid)),
        patch::test(["spec", "persistentVolumeReclaimPolicy"], json!("Retain")),
        patch::replace(["spec", "claimRef"], reference),
    ]);
    Patch(operations)
}

fn custody_claim(view: &View, pv: &PersistentVolume) -> PersistentVolumeClaim {
    let mut claim = PersistentVolumeClaim { spec: Some(home_volume::claim_around(pv)), ..PersistentVolumeClaim::default() };
    claim.metadata.name = Some(view.custody_claim_name());
    claim.metadata.namespace = Some(view.settings.namespace.clone());
    claim.metadata.labels = Some(labels(view, "archive"));
    claim
}
