//! Step `revoke-credentials`: the record says that the key is revoked (a tombstone: this cannot be undone), then the key's Secret is
//! deleted. Authentication reads the Computer and its namespace live (DESIGN.md 4.3), so the key is refused from the start of the deletion;
//! after this step it is refused whatever happens to them. A Secret must never be read here (DESIGN.md 4.8).

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Context;
use crate::computer::action::{Action, Fact, Subject};
use crate::computer::step::State;
use crate::computer::time_to_live;
use crate::computer::view::View;
use crate::guards::{self, Guard};
use crate::resources::reasons::Reason;
use crate::resources::steps::PerStep;
use crate::resources::{Cause, Computer, CredentialState, Deletion, RecordPhase, RetiredSecret, Unknown};

pub(super) fn step(context: &Context<'_>) -> State {
    let state = &context.record.spec.state;
    let revoked = state.credential == CredentialState::Revoked || !guards::on(Guard::RevokeFirst);
    if !revoked || state.deletion.is_none() {
        return context.save(|record| {
            let state = &mut record.spec.state;
            if guards::on(Guard::RevokeFirst) {
                state.credential = CredentialState::Revoked;
            }
            state.phase = RecordPhase::Deleting;
            state.deletion.get_or_insert_with(|| new_deletion(context.view));
        });
    }
    // The namespace controller deletes the Computer only after all pods are gone, but its deletion has already started.
    if context.view.computer.as_ref().is_some_and(|c| c.metadata.deletion_timestamp.is_none()) {
        return State::act(Action::DeleteComputer);
    }
    secrets(context)
}

/// The record of a deletion that starts, with the API server's time if it has set one.
fn new_deletion(view: &View) -> Deletion {
    let namespace = view.facts.get(&Subject::Namespace { name: view.namespace.clone() });
    let namespace = if let Some(Fact::Namespace(namespace)) = namespace { namespace.metadata.deletion_timestamp.clone() } else { None };
    let metadata = view.computer.as_ref().map(|c| &c.metadata);
    let marked = metadata.and_then(|m| m.deletion_timestamp.clone());
    let created = metadata.and_then(|m| m.creation_timestamp.as_ref()).map_or(Timestamp::MIN, |t| t.0);
    let cause = cause(view, namespace.as_ref());
    Deletion {
        deleted_at: marked.into_iter().chain(namespace).min().unwrap_or(Time(view.now)).max(Time(created)),
        cause,
        steps: PerStep::default(),
        started: PerStep::default(),
        custody: None,
        waited_seconds: 0,
        archive: None,
        receipt: None,
        handed_off: false,
        unknown: Unknown::new(),
    }
}

/// The cause is the deletion that came first: that of the Computer, or that of its namespace at the time `namespace`.
fn cause(view: &View, namespace: Option<&Time>) -> Cause {
    let record = view.record.as_ref();
    let ending = record.and_then(|r| r.spec.state.ending.as_ref());
    let ending =
        ending.zip(view.computer.as_ref()).filter(|(ending, computer)| time_to_live::ended(ending, computer, record)).map(|(e, _)| e);
    // In the same second the namespace came first, unless the operator is on record with the deletion of the Computer.
    let before = |computer: &Computer| {
        let times = computer.metadata.deletion_timestamp.as_ref().zip(namespace);
        times.is_some_and(|(own, all)| own.0 < all.0 || (own.0 == all.0 && ending.is_some()))
    };
    match &view.computer {
        Some(computer) if !view.namespace_terminating || before(computer) => {
            ending.map_or(Cause::ComputerDeleted, |ending| ending.cause.clone())
        }
        _ if view.namespace_terminating => Cause::NamespaceTerminating,
        _ => Cause::ComputerVanished,
    }
}

/// Deletes the Secrets. A DELETE with a UID precondition that returns 404 proves absence.
fn secrets(context: &Context<'_>) -> State {
    let children = &context.record.spec.state.children;
    if !guards::on(Guard::SecretGone) {
        return State::not_applicable("not read");
    }
    // Creates with former names may have succeeded late: these Secrets belong to the computer too.
    let former = children.former_secret_names.iter().map(|name| (name, None));
    // A rotation that was interrupted may have left either of two Secrets under one name: what exists there is deleted.
    let same = |retired: &&RetiredSecret| Some(&retired.name) == children.secret_name.as_ref();
    let uid = children.secret_uid.as_ref().filter(|_| children.retired_secret.as_ref().is_none_or(|retired| !same(&retired)));
    let retired = children.retired_secret.iter().filter(|retired| !same(retired)).map(|secret| (&secret.name, Some(&secret.uid)));
    let mut all = former.chain(retired).chain(children.secret_name.iter().map(|name| (name, uid)));
    match all.find_map(|(name, uid)| secret_left(context, name, uid)) {
        Some(state) => state,
        None if children.secret_name.is_none() => State::not_applicable("no key was ever issued"),
        None => State::verified("the key is revoked and its Secret is gone"),
    }
}

/// What to do about one Secret. `None`: it is gone.
fn secret_left(context: &Context<'_>, name: &str, uid: Option<&String>) -> Option<State> {
    let subject = Subject::secret(&context.record.spec.namespace, name);
    Some(match (context.view.facts.get(&subject), uid) {
        (Some(Fact::Gone), _) => return None,
        (Some(Fact::Held(_)), _) => State::blocked(
            Reason::SecretHeld,
            format!(
                "{} is being deleted, but a finalizer of another controller blocks its deletion. Wait for that controller or remove the finalizer",
                subject.describe()
            ),
            30,
        ),
        // Without a recorded UID (a crash after the create), the UID found with the unguessable name that was recorded before it.
        (Some(Fact::Uid(found)), recorded) => State::act(Action::Delete { uid: recorded.unwrap_or(found).clone(), subject }),
        (None, Some(uid)) => State::act(Action::Delete { uid: uid.clone(), subject }),
        // Read whether an accepted delete has finished, or the UID that a crash left unrecorded.
        (_, _) => State::read(subject),
    })
}
