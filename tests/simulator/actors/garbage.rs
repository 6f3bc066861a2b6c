//! The garbage collector: dependents of deleted owners, and the foreground and orphan propagation policies.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::kinds::{self, Kind};
use crate::api::value::{deleting, finalizers, has_finalizer, name, namespace, owners, uid};
use crate::api::verbs::DeleteOptions;
use crate::api::{Actor, State};

/// Kinds that carry owner references here.
const DEPENDENTS: [Kind; 5] = ["pods", "persistentvolumeclaims", "secrets", "sessions", "apikeys"];

pub fn step(state: &mut State) {
    let living: BTreeSet<String> = state.all("computers").map(|c| uid(c).to_owned()).collect();
    let dependents: Vec<(Kind, Arc<Value>)> =
        DEPENDENTS.iter().flat_map(|kind| state.all(kind).map(|v| (*kind, Arc::clone(v))).collect::<Vec<_>>()).collect();
    for (kind, object) in &dependents {
        let owners = owners(object);
        if !owners.is_empty() && !owners.iter().any(|o| living.contains(o)) && !deleting(object) {
            let options = DeleteOptions { uid: Some(uid(object).to_owned()), ..DeleteOptions::default() };
            let _ = state.delete(Actor::Kubernetes, kind, namespace(object), name(object), &options);
        }
    }
    let owners: Vec<Arc<Value>> = state.all("computers").filter(|c| deleting(c)).cloned().collect();
    for owner in owners {
        let of_owner = |v: &Value| self::owners(v).iter().any(|o| o == uid(&owner));
        if has_finalizer(&owner, "foregroundDeletion") {
            foreground(state, &owner, &dependents, of_owner);
        }
        if has_finalizer(&owner, "orphan") {
            for (kind, object) in dependents.iter().filter(|(_, v)| of_owner(v)) {
                state.change(kind, namespace(object), name(object), |v| {
                    drop(v["metadata"].as_object_mut().and_then(|m| m.remove("ownerReferences")));
                });
            }
            drop_finalizer(state, &owner, "orphan");
        }
    }
    debug_assert!(kinds::find("", "pods").is_some());
}

/// None of the operator's references blocks the owner's deletion: the dependents are deleted, and the owner's deletion continues.
fn foreground(state: &mut State, owner: &Value, dependents: &[(Kind, Arc<Value>)], of_owner: impl Fn(&Value) -> bool) {
    for (kind, object) in dependents.iter().filter(|(_, v)| of_owner(v) && !deleting(v)) {
        let options = DeleteOptions { uid: Some(uid(object).to_owned()), ..DeleteOptions::default() };
        let _ = state.delete(Actor::Kubernetes, kind, namespace(object), name(object), &options);
    }
    drop_finalizer(state, owner, "foregroundDeletion");
}

fn drop_finalizer(state: &mut State, owner: &Value, finalizer: &str) {
    state.change("computers", namespace(owner), name(owner), |c| {
        let left: Vec<String> = finalizers(c).into_iter().filter(|f| f != finalizer).collect();
        c["metadata"]["finalizers"] = json!(left);
    });
}
