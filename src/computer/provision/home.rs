//! Steps `create-volume` and `protect-volume`: creates the claim of the home, and sets its volume to `Retain` as soon as it is bound
//! (DESIGN.md 4.5). A claim that another client deleted is re-created for the same volume.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};

use super::{Context, RETRY_SECONDS, create_record};
use crate::computer::action::{Action, Fact, Object, Subject};
use crate::computer::children::{self, Child};
use crate::computer::home_volume::{self, claim_ref_patch, held_by_home};
use crate::computer::step::State;
use crate::computer::view::ClassState;
use crate::guards::{self, Guard};
use crate::resources::CredentialState;
use crate::resources::persistent_volume::{claim_ref_namespace, claim_ref_uid};
use crate::resources::reasons::Reason;

/// Step `create-volume`: the claim exists.
pub(super) fn create(context: &Context<'_>) -> State {
    if !context.managed() {
        return State::done();
    }
    let children = &context.record.spec.state.children;
    let namespace = &context.view.namespace;
    if let Some(state) = retain_again(context) {
        return state;
    }
    let Some(name) = &children.claim_name else { return rename(context) };
    let Some(found) = context.view.claim(namespace, name) else { return State::read(Subject::claim(namespace, name)) };
    match found.filter(|c| children.claim_uid.is_none() || c.metadata.uid == children.claim_uid) {
        // The pod keeps running; `claim_deleted` reports the deleted claim and blocks new pods.
        Some(claim) if claim.metadata.deletion_timestamp.is_some() => State::done(),
        Some(claim) => rebind(context, name, claim),
        None if children.claim_uid.is_some() => keep(context).unwrap_or_else(|| rename(context)),
        None => claim(context, name),
    }
}

/// Protects the recorded volume again after another client, for example a `GitOps` tool, has restored its policy or removed the operator's
/// labels. Until then a deletion of the claim destroys the home (S1). A watch shows the change. The watch selects by label, so a volume that
/// it does not show is read live: it may have lost the label.
fn retain_again(context: &Context<'_>) -> Option<State> {
    let recorded = context.record.spec.state.children.volume.as_ref().filter(|_| guards::on(Guard::StillRetained))?;
    let Some(found) = context.view.volume(&recorded.name) else { return Some(State::read(Subject::volume(&recorded.name))) };
    let pv = found.filter(|pv| pv.metadata.uid.as_deref() == Some(&recorded.uid))?;
    let ours = held_by_home(context.record, pv) && home_volume::foreign_mark(pv, &context.view.uid).is_none();
    let changed = ours && !home_volume::retained_for(pv, &context.view.uid);
    changed.then(|| State::act(home_volume::retain(&recorded.name, pv, Some(recorded), &context.view.uid)))
}

/// Records a volume that was set to `Retain` for a claim that is gone and is not recorded yet: it is the home, and the next claim is created
/// for it. Otherwise it would be orphaned (S6).
fn keep(context: &Context<'_>) -> Option<State> {
    let children = &context.record.spec.state.children;
    let uid = children.claim_uid.as_ref().filter(|_| children.volume.is_none())?;
    let subject = Subject::VolumesOfClaim { uid: uid.clone() };
    let Some(fact) = context.view.facts.get(&subject) else { return Some(State::read(subject)) };
    let Fact::Names(names) = fact else { return None };
    let name = names.first()?;
    let Some(found) = context.view.volume(name) else { return Some(State::read(Subject::volume(name))) };
    let pv = found.filter(|pv| claim_ref_uid(pv) == Some(uid) && home_volume::marked_for(pv, &context.view.uid))?;
    if let Some(message) = home_volume::policy_unknown(name, pv, &context.view.uid) {
        return Some(State::blocked(Reason::VolumePolicyUnknown, message, RETRY_SECONDS));
    }
    let recorded = home_volume::recorded(pv);
    Some(context.save(|r| r.spec.state.children.volume = Some(recorded)))
}

/// Records another name before the claim is created; the old claim is gone.
fn rename(context: &Context<'_>) -> State {
    // A claim disappears with its Computer, and the cache may still show that one: the garbage collector would delete each new claim.
    if !context.view.finalizer_confirmed {
        return State::act(Action::ReadComputer);
    }
    let recorded = context.record.spec.state.children.volume.as_ref();
    let former = recorded.and_then(|v| v.former_claim_uid.clone());
    // Two claims may be deleted one after the other before the volume references either: it still names the first.
    let names_former = match (&former, recorded) {
        (Some(former), Some(recorded)) => match context.view.volume(&recorded.name) {
            None => return State::read(Subject::volume(&recorded.name)),
            Some(pv) => pv.and_then(claim_ref_uid) == Some(former),
        },
        _ => false,
    };
    let name = Child::Home.name(&context.view.fresh.suffix);
    context.save(|r| {
        let children = &mut r.spec.state.children;
        children.claim_name = Some(name);
        let gone = children.claim_uid.take();
        // Until the next claim is bound, the volume still names this one: a deletion must know that the volume belongs to this computer.
        if let Some(volume) = children.volume.as_mut().filter(|_| gone.is_some() && !names_former) {
            volume.former_claim_uid = gone;
        }
    })
}

fn claim(context: &Context<'_>, name: &str) -> State {
    let children = &context.record.spec.state.children;
    let spec = match (&children.volume, &context.view.class) {
        (Some(recorded), _) => match context.view.volume(&recorded.name) {
            None => return State::read(Subject::volume(&recorded.name)),
            Some(Some(pv)) if pv.metadata.uid.as_deref() == Some(&recorded.uid) => home_volume::claim_around(pv),
            Some(_) => return lost(&recorded.name),
        },
        (None, ClassState::Found(class)) => PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: class.spec.storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), create_record::size(context.computer, class))].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        },
        (None, _) => {
            return State::blocked(
                Reason::ClassNotFound,
                "the ComputerClass was deleted before the home volume was created. Create it again, or delete this Computer",
                RETRY_SECONDS,
            );
        }
    };
    let mut claim = PersistentVolumeClaim { spec: Some(spec), ..PersistentVolumeClaim::default() };
    claim.metadata.name = Some(name.to_owned());
    claim.metadata.namespace = Some(context.view.namespace.clone());
    claim.metadata.labels = Some(children::labels_with_name(context.view, "home"));
    claim.metadata.owner_references = children::owner(context.view);
    State::act(Action::Create(Object::Claim(Box::new(claim))))
}

fn lost(name: &str) -> State {
    let message = format!("PersistentVolume {name} no longer exists: the home is lost. Delete this Computer");
    State::blocked(Reason::HomeVolumeLost, message, RETRY_SECONDS)
}

/// Step `protect-volume`: the volume is bound, `Retain` and recorded. Only then is the home safe (S1).
pub(super) fn protect(context: &Context<'_>) -> State {
    if !context.managed() {
        return State::done();
    }
    if let Some(state) = claim_deleted(context) {
        return state;
    }
    let children = &context.record.spec.state.children;
    let done = match context.record.spec.state.credential {
        CredentialState::Pending => false,
        CredentialState::Live => children.volume.is_some(),
        // A revocation is never undone (S8): the Computer may have been deleted over HTTP, and its cache may be older than the record's.
        CredentialState::Revoked => guards::on(Guard::Tombstone),
    };
    // Before its first pod a suspended computer may have a claim that is not bound yet.
    if done || (children.volume.is_none() && context.computer.spec.suspended && !super::machine::bound(context)) {
        return State::done();
    }
    let (Some(name), Some(uid)) = (&children.claim_name, &children.claim_uid) else { return State::wait(5) };
    let claim = context.view.claim(&context.view.namespace, name).flatten();
    let Some(bound) = claim.and_then(|c| c.spec.as_ref()?.volume_name.as_deref()) else { return State::wait(10) };
    let Some(found) = context.view.volume(bound) else { return State::read(Subject::volume(bound)) };
    // A claim can name any volume. The volume belongs to this computer only if it names the claim (S5).
    let here = |pv: &&PersistentVolume| claim_ref_namespace(pv) == Some(&context.view.namespace);
    let Some(pv) = found.filter(|pv| claim_ref_uid(pv) == Some(uid)).filter(here) else { return State::wait(5) };
    if let Some(of) = home_volume::foreign_mark(pv, &context.view.uid) {
        return State::blocked(Reason::VolumeMarked, home_volume::foreign_mark_message(bound, of), RETRY_SECONDS);
    }
    if !home_volume::retained_for(pv, &context.view.uid) {
        return State::act(home_volume::retain(bound, pv, None, &context.view.uid));
    }
    if let Some(message) = home_volume::policy_unknown(bound, pv, &context.view.uid) {
        return State::blocked(Reason::VolumePolicyUnknown, message, RETRY_SECONDS);
    }
    let recorded = home_volume::recorded(pv);
    let node = super::machine::node(context);
    if let Some(read) = unplaced(context).filter(|_| node.is_none()) {
        return read;
    }
    context.save(|r| {
        r.spec.state.children.volume = Some(recorded);
        // One write for both: the home is safe now, so the key may go live.
        r.spec.state.credential = CredentialState::Live;
        if let Some(pod) = r.spec.state.children.pods.last_mut() {
            pod.node = node;
        }
    })
}

/// Reads the newest pod once: a pod that vanishes from a lost node is waited for only if its node is on record (S1), and the cache may be older
/// than the binding of its volume.
fn unplaced(context: &Context<'_>) -> Option<State> {
    let pod = context.record.spec.state.children.pods.last()?;
    let subject = Subject::pod(&context.view.namespace, &pod.name);
    (!context.view.learned.contains(&subject)).then(|| State::read(subject))
}

/// Reports a claim that another client deleted and that exists until its pod has stopped.
pub(super) fn claim_deleted(context: &Context<'_>) -> Option<State> {
    let name = context.record.spec.state.children.claim_name.as_ref()?;
    let claim = context.view.claim(&context.view.namespace, name).flatten()?;
    claim.metadata.deletion_timestamp.as_ref()?;
    let message = format!(
        "PersistentVolumeClaim {}/{name} was deleted by another client. The volume is kept, and the claim is re-created once the pod has stopped. \
         Delete the pod, or suspend and resume the computer",
        context.view.namespace
    );
    Some(State::blocked(Reason::HomeClaimDeleted, message, RETRY_SECONDS))
}

/// Sets the volume's claimRef to the re-created claim, but only if no existing claim holds the volume.
fn rebind(context: &Context<'_>, name: &str, claim: &PersistentVolumeClaim) -> State {
    let (Some(recorded), Some(uid)) = (&context.record.spec.state.children.volume, claim.metadata.uid.as_deref()) else {
        return State::done();
    };
    let Some(Some(pv)) = context.view.volume(&recorded.name) else { return State::done() };
    let released = pv.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Released");
    let ours = pv.metadata.uid.as_deref() == Some(&recorded.uid) && home_volume::marked_for(pv, &context.view.uid);
    if !released || !ours || claim_ref_uid(pv) == Some(uid) {
        return State::done();
    }
    // The UID is recorded before the volume names it: a deletion that starts in between must know that the volume belongs to this computer
    // (S5).
    if context.record.spec.state.children.claim_uid.is_none() {
        let uid = uid.to_owned();
        return context.save(|r| r.spec.state.children.claim_uid = Some(uid));
    }
    let patch = claim_ref_patch(pv, &context.view.namespace, name, uid);
    State::act(Action::Patch { subject: Subject::volume(&recorded.name), patch })
}
