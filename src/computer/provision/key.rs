//! Steps `issue-key` and `activate-key`: the key's hash is recorded before its Secret exists, and the key is activated only when the home is
//! protected. The hash itself is computed in `src/credentials/token.rs`. The token is in memory between the two writes; a crash loses it, and
//! the next reconcile issues another. The Secret must never be read.
//!
//! [`renew`] replaces a key whose Secret is gone, or which is rotated. It is no step: a key that cannot be issued must not keep the volume from being
//! protected, and a machine that does not start must not keep its key from being issued.

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::create_record::fresh_key;
use super::{Context, RETRY_SECONDS};
use crate::computer::action::{Action, Fact, Object, Subject};
use crate::computer::children::{self, Child};
use crate::computer::step::State;
use crate::computer::view::ClassState;
use crate::resources::reasons::Reason;
use crate::resources::{CredentialState, FormerKey, PodRecord, RecordState, RetiredSecret, Unknown};

pub(super) fn issue(context: &Context<'_>) -> State {
    let state = &context.record.spec.state;
    // A key that is live was issued completely: if its Secret is lost, `renew` replaces it. A revoked one is never issued again (S2).
    if state.children.secret_uid.is_some() || state.credential != CredentialState::Pending {
        return State::done();
    }
    // Its UID goes to the record together with those of the other children, unless no later reconcile would accept it.
    let followed = state.children.secret_followed;
    create(context, |uid| if followed { record_uid(context, uid) } else { State::done() })
}

fn record_uid(context: &Context<'_>, uid: &str) -> State {
    let uid = Some(uid.to_owned());
    context.save(|r| r.spec.state.children.secret_uid = uid)
}

/// UID of the Secret with this name, if it is the Secret of the recorded key. A name that is kept for the next key is known to everyone who may read
/// the pod or the status, so another client can have created what is there: only the answer to the operator's own create counts.
pub(super) fn own_uid<'a>(context: &'a Context<'_>, name: &str) -> Option<&'a String> {
    match context.view.facts.get(&Subject::secret(&context.view.namespace, name))? {
        Fact::Created(uid) => Some(uid),
        Fact::Uid(uid) | Fact::Held(uid) if !context.record.spec.state.children.secret_followed => Some(uid),
        _ => None,
    }
}

/// Creates the Secret of a key whose Secret is not on record yet. `exists`: it exists, with this UID.
fn create(context: &Context<'_>, exists: impl FnOnce(&str) -> State) -> State {
    let Some(name) = &context.record.spec.state.children.secret_name else { return reissue(context) };
    let subject = Subject::secret(&context.view.namespace, name);
    if let Some(uid) = own_uid(context, name) {
        return exists(uid);
    }
    match context.view.facts.get(&subject) {
        // The name is taken, perhaps by this key's Secret if the answer to its create was lost: the next key gets another name.
        Some(Fact::Uid(_) | Fact::Held(_)) if holds_token(context) => State::wait(REISSUE_SECONDS.unsigned_abs()),
        // No read is needed while this reconcile holds the token of the recorded hash.
        _ if holds_token(context) => State::act(Action::Create(Object::Secret(Box::new(secret(context, name))))),
        // After a failure of this process a wait is no progress: neither the backoff ends, nor what the status says.
        Some(_) if young(context) && context.view.failures > 0 => State::Checking(None),
        // The token is lost, or another leader holds it and is about to write it: wait for that leader.
        Some(_) if young(context) => State::wait(REISSUE_SECONDS.unsigned_abs()),
        Some(_) => reissue(context),
        None => State::read(subject),
    }
}

/// Seconds within which another leader writes the Secret of a key that it has just recorded.
const REISSUE_SECONDS: i64 = 20;
/// The same after failures: a refused Secret costs one record a minute, also if two leaders try.
const RETRY_AFTER_FAILURE_SECONDS: i64 = 60;

/// Whether the key was recorded a moment ago. The clocks of two leaders may differ, and a record of an earlier version has no such time.
fn young(context: &Context<'_>) -> bool {
    let longest = if context.view.failures > 1 { RETRY_AFTER_FAILURE_SECONDS } else { REISSUE_SECONDS };
    let recorded = context.record.spec.state.key_issued_at.as_ref().or(context.record.metadata.creation_timestamp.as_ref());
    recorded.is_some_and(|at| context.view.now.duration_since(at.0).as_secs().abs() < longest)
}

/// Whether the recorded hash is that of the token that this reconcile holds.
fn holds_token(context: &Context<'_>) -> bool {
    context.record.spec.state.key_hash.as_deref().is_some_and(|hash| fresh_key(context.view).matches(hash))
}

/// Maximum number of former Secret names in a record. The oldest was read and absent long ago, so its create can no longer be in flight.
const FORMER: usize = 50;

/// Issues another key with another name. The name of a Secret that was never seen stays in the record: its create may still succeed (S6).
fn reissue(context: &Context<'_>) -> State {
    with_fresh_key(context, Name::Fresh, |state| {
        let children = &mut state.children;
        if children.secret_uid.is_none() {
            children.former_secret_names.extend(children.secret_name.take());
        }
    })
}

/// The name of the next key's Secret.
#[derive(Clone, Copy, PartialEq)]
enum Name {
    /// That of the last one, if a machine may mount it: the machine then gets the next key without a restart. Only if the create of the last one
    /// has succeeded: one that is in flight could put a dead token under the name.
    Kept,
    /// Another one.
    Fresh,
}

/// Issues the key of another rotation. The Secret of the old one is deleted.
fn rotate(context: &Context<'_>, secret: RetiredSecret) -> State {
    let overlap = SignedDuration::from_secs(context.computer.spec.key.overlap_seconds);
    with_fresh_key(context, Name::Kept, |state| {
        let until = context.view.now.checked_add(overlap).unwrap_or(context.view.now);
        state.former_key = state.key_hash.take().filter(|_| overlap.is_positive()).map(|hash| FormerKey {
            hash,
            until: Time(until),
            unknown: Unknown::new(),
        });
        // One that could not be deleted yet is deleted with the computer.
        let before = state.children.retired_secret.replace(secret);
        state.children.former_secret_names.extend(before.map(|secret| secret.name));
    })
}

/// Records the key that this reconcile would issue, without its Secret.
fn with_fresh_key(context: &Context<'_>, kept: Name, change: impl FnOnce(&mut RecordState)) -> State {
    let recorded = &context.record.spec.state.children;
    let fresh = Child::Key.name(&context.view.fresh.suffix);
    if recorded.secret_name.as_ref() == Some(&fresh) || holds_token(context) {
        // This reconcile has issued its key already.
        return State::wait(1);
    }
    let followed = recorded.secret_followed || class_mounts(context);
    let name = recorded.secret_name.clone().filter(|_| kept == Name::Kept && recorded.secret_followed).unwrap_or(fresh);
    context.save(|r| {
        let state = &mut r.spec.state;
        change(state);
        state.key_mounted &= state.former_key.is_some() || may_be_mounted(context, &name);
        let former = &mut state.children.former_secret_names;
        let surplus = former.len().saturating_sub(FORMER);
        former.drain(..surplus);
        state.children.secret_name = Some(name);
        state.children.secret_uid = None;
        state.children.secret_followed = followed;
        state.key_hash = Some(fresh_key(context.view).hash());
        state.key_issued_at = Some(Time(context.view.now));
        state.key_rotation.clone_from(&context.computer.spec.key.rotation);
    })
}

/// Whether a machine may get the next key, whose Secret has this name: its class says so or is not known, or a pod on record may mount the name.
fn may_be_mounted(context: &Context<'_>, name: &str) -> bool {
    let never = matches!(&context.view.class, ClassState::Found(class) if class.spec.key.mount_path.is_none());
    let mounts = |pod: &PodRecord| pod.stopped_at.is_none() && (pod.uid.is_none() || pod.key_secret.as_deref() == Some(name));
    !never || context.record.spec.state.children.pods.iter().any(mounts)
}

fn class_mounts(context: &Context<'_>) -> bool {
    context.managed() && matches!(&context.view.class, ClassState::Found(class) if class.spec.key.mount_path.is_some())
}

/// What the class lets the key do. A change applies at once, not with the next start: a right of a key that was stolen must not live on. A class
/// that is gone changes nothing.
fn allowed(context: &Context<'_>) -> Option<Vec<String>> {
    let state = &context.record.spec.state;
    match &context.view.class {
        ClassState::Found(class) if context.managed() => class.spec.key.words(state.key_mounted),
        _ => state.key_allow.clone(),
    }
}

/// What the key of a living computer needs, apart from the steps: another key for another `spec.key.rotation`, or if its Secret is lost. It
/// becomes live only as the steps say, and a revoked key is never replaced (S2).
pub(super) fn renew(context: &Context<'_>) -> State {
    match needed(context) {
        // The cache may show a Computer that is gone, or its key as it was before a rotation: another leader may have issued the next one.
        State::Do(action) if !matches!(*action, Action::Read(_)) && !context.view.finalizer_confirmed => State::act(Action::ReadComputer),
        state => state,
    }
}

fn needed(context: &Context<'_>) -> State {
    let (state, settings) = (&context.record.spec.state, &context.computer.spec.key);
    if state.credential == CredentialState::Revoked || state.key_hash.is_none() {
        return State::done();
    }
    let allowed = allowed(context);
    if state.key_allow != allowed {
        return context.save(|r| r.spec.state.key_allow = allowed);
    }
    let ended = |former: &FormerKey| settings.overlap_seconds == 0 || former.until.0 <= context.view.now;
    if state.former_key.as_ref().is_some_and(ended) {
        return context.save(|r| r.spec.state.former_key = None);
    }
    let (name, uid) = (state.children.secret_name.as_ref(), state.children.secret_uid.as_ref());
    let secret = name.zip(uid);
    if let Some((name, uid)) = secret.filter(|_| state.key_rotation != settings.rotation) {
        return rotate(context, RetiredSecret { name: name.clone(), uid: uid.clone(), unknown: Unknown::new() });
    }
    // A quota may have no room for two Secrets, and a webhook may refuse to delete the first: after failures the order changes.
    let retired = state.children.retired_secret.as_ref();
    let first = state.former_key.is_none() && (context.view.failures / 2).is_multiple_of(2);
    match (secret, retired) {
        (None, Some(retired)) if Some(&retired.name) == name => replace(context, retired),
        (None, Some(retired)) if first => delete_retired(context, retired),
        (None, _) => create(context, |uid| record_uid(context, uid)),
        (Some(_), Some(retired)) => delete_retired(context, retired),
        (Some((name, uid)), None) => lost(context, name, uid),
    }
}

/// Checks the Secret periodically, because no watch shows that it was deleted: the operator may not list Secrets (DESIGN.md 4.8). If it is
/// gone, or another object has its name, a new key is issued, and the old one does not authenticate from that moment.
fn lost(context: &Context<'_>, name: &str, uid: &str) -> State {
    let subject = Subject::secret(&context.view.namespace, name);
    match context.view.facts.get(&subject) {
        Some(Fact::Created(found) | Fact::Uid(found) | Fact::Held(found)) if found == uid => State::done(),
        Some(Fact::Gone) => with_fresh_key(context, Name::Kept, |_| ()),
        // Another object has its name.
        Some(Fact::Created(_) | Fact::Uid(_) | Fact::Held(_)) => reissue(context),
        None if context.view.key_check_in == Some(Duration::ZERO) => State::read(subject),
        _ => State::done(),
    }
}

/// Makes room for the Secret of the next key under the name of the last one. A Secret with another UID is not the
/// last one, which is gone then. If the last one cannot be deleted, the next key gets another name.
fn replace(context: &Context<'_>, retired: &RetiredSecret) -> State {
    let subject = Subject::secret(&context.view.namespace, &retired.name);
    let forget = || context.save(|r| r.spec.state.children.retired_secret = None);
    match context.view.facts.get(&subject) {
        Some(Fact::Gone) => forget(),
        Some(Fact::Uid(found)) if *found != retired.uid => forget(),
        Some(Fact::Held(_)) => with_fresh_key(context, Name::Fresh, |_| ()),
        Some(Fact::Uid(_)) if context.view.failures > 1 => with_fresh_key(context, Name::Fresh, |_| ()),
        Some(Fact::Uid(_)) => State::act(Action::Delete { uid: retired.uid.clone(), subject }),
        _ => State::read(subject),
    }
}

/// Deletes the Secret of the key before the last rotation. If a finalizer of another controller keeps it, the deletion of the computer waits
/// for it.
fn delete_retired(context: &Context<'_>, retired: &RetiredSecret) -> State {
    let subject = Subject::secret(&context.view.namespace, &retired.name);
    let forget = |held: bool| {
        context.save(|r| {
            let children = &mut r.spec.state.children;
            let name = children.retired_secret.take().map(|secret| secret.name);
            children.former_secret_names.extend(name.filter(|_| held));
        })
    };
    match context.view.facts.get(&subject) {
        Some(Fact::Uid(found)) if *found != retired.uid => forget(false),
        Some(Fact::Gone) => forget(false),
        Some(Fact::Held(_)) => forget(true),
        Some(Fact::Accepted) => State::read(subject),
        _ => State::act(Action::Delete { uid: retired.uid.clone(), subject }),
    }
}

/// Whether the computer has no key that can be used, because another one is being issued.
pub(super) fn is_being_replaced(context: &Context<'_>) -> bool {
    let state = &context.record.spec.state;
    let replaceable = state.credential != CredentialState::Revoked && state.key_hash.is_some();
    replaceable && (state.children.secret_uid.is_none() || state.key_rotation != context.computer.spec.key.rotation)
}

fn secret(context: &Context<'_>, name: &str) -> Secret {
    let mut secret = Secret {
        // The kubelet does not follow one that is immutable.
        immutable: (!context.record.spec.state.children.secret_followed).then_some(true),
        type_: Some("Opaque".to_owned()),
        string_data: Some([("token".to_owned(), fresh_key(context.view).token())].into()),
        ..Secret::default()
    };
    secret.metadata.name = Some(name.to_owned());
    secret.metadata.namespace = Some(context.view.namespace.clone());
    secret.metadata.labels = Some(children::labels_with_name(context.view, "key"));
    secret.metadata.owner_references = children::owner(context.view);
    secret
}

/// Activates the key when everything that a deletion needs is recorded: the Secret's UID, and for a managed computer the volume.
pub(super) fn activate(context: &Context<'_>) -> State {
    let state = &context.record.spec.state;
    if context.managed() && state.children.volume.is_none() {
        return State::done();
    }
    match state.credential {
        _ if state.key_hash.is_none() => State::blocked(
            Reason::KeyLost,
            "the record of this computer was lost and re-created. The hash of its key is lost, so the key never authenticates again; the home is \
             safe. Delete this Computer, which archives it, and create another one",
            RETRY_SECONDS,
        ),
        CredentialState::Pending => context.save(|r| r.spec.state.credential = CredentialState::Live),
        _ => State::done(),
    }
}

/// Activates a key that was issued: its Secret has a UID, and its hash is known. A key that is revoked stays so (S9).
pub(super) fn go_live(state: &mut RecordState) {
    if state.credential == CredentialState::Pending && state.key_hash.is_some() && state.children.secret_uid.is_some() {
        state.credential = CredentialState::Live;
    }
}
