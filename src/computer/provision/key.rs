//! The key: its hash is on record before its Secret exists, and it is live only when the home is protected. The token is in
//! memory between the two writes; a crash there loses it, and the next pass issues another. The Secret is never read.

use k8s_openapi::api::core::v1::Secret;

use super::begin::fresh_key;
use super::{Context, State};
use crate::computer::action::{Action, Fact, Object, Subject};
use crate::computer::children;
use crate::computer::children::Child;
use crate::resources::CredentialState;

pub(super) fn issue(context: &Context<'_>) -> State {
    let state = &context.record.spec.state;
    if state.children.secret_uid.is_some() {
        return State::Done;
    }
    let Some(name) = &state.children.secret_name else { return another(context) };
    let subject = Subject::secret(&context.view.namespace, name);
    match context.view.facts.get(&subject) {
        // Its UID goes to the record together with those of the other children.
        Some(Fact::Uid(_) | Fact::Held(_)) => State::Done,
        // Nothing is looked for as long as this pass holds the token of the recorded hash.
        _ if ours(context) => State::act(Action::Create(Object::Secret(Box::new(secret(context, name))))),
        // The token of that hash is lost, or another leader holds it and is about to write it: it is given the time.
        Some(_) if young(context) => State::wait(REISSUE_SECONDS.unsigned_abs()),
        Some(_) => another(context),
        None => State::act(Action::Read(subject)),
    }
}

/// Seconds that another leader has to write the Secret of a record it has just made.
const REISSUE_SECONDS: i64 = 20;

fn young(context: &Context<'_>) -> bool {
    let created = context.record.metadata.creation_timestamp.as_ref();
    created.is_some_and(|at| context.view.now.duration_since(at.0).as_secs() < REISSUE_SECONDS)
}

/// Whether the recorded hash is that of the token that this pass holds.
fn ours(context: &Context<'_>) -> bool {
    context.record.spec.state.key_hash.as_deref().is_some_and(|hash| fresh_key(context.view).matches(hash))
}

/// Most names of Secrets that a record keeps. The oldest was looked for in vain long before: no create of it is under way any more.
const FORMER: usize = 50;

/// Another key, under another name. The name before stays on record: its create may still come true (S6).
fn another(context: &Context<'_>) -> State {
    let fresh = context.view;
    context.save(|r| {
        let children = &mut r.spec.state.children;
        children.former_secret_names.extend(children.secret_name.take());
        let surplus = children.former_secret_names.len().saturating_sub(FORMER);
        children.former_secret_names.drain(..surplus);
        children.secret_name = Some(Child::Key.name(&fresh.fresh.suffix));
        r.spec.state.key_hash = Some(fresh_key(fresh).hash());
    })
}

fn secret(context: &Context<'_>, name: &str) -> Secret {
    let mut secret = Secret {
        immutable: Some(true),
        type_: Some("Opaque".to_owned()),
        string_data: Some([("token".to_owned(), fresh_key(context.view).token())].into()),
        ..Secret::default()
    };
    secret.metadata.name = Some(name.to_owned());
    secret.metadata.namespace = Some(context.view.namespace.clone());
    secret.metadata.labels = Some(children::labels(context.view, "key"));
    secret.metadata.owner_references = children::owner(context.view);
    secret
}

/// The key goes live when everything that deletion needs is on record: the volume for a managed computer, the Secret's UID always.
pub(super) fn activate(context: &Context<'_>) -> State {
    let state = &context.record.spec.state;
    if context.managed() && state.children.volume.is_none() {
        return State::Done;
    }
    match state.credential {
        _ if state.key_hash.is_none() => State::blocked(
            "KeyLost",
            "the record of this computer was lost and made again, but the hash of its key is gone: the key is dead. What is in the home \
             is safe: delete this Computer, which archives it, and create another one",
        ),
        CredentialState::Pending => context.save(|r| r.spec.state.credential = CredentialState::Live),
        _ => State::Done,
    }
}
