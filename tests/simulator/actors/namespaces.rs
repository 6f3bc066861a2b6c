//! The namespace controller: pods first, everything else when they are gone, the namespace last (ordered deletion, since 1.34).

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::kinds::{self, Kind};
use crate::api::value::{deleting, name, namespace};
use crate::api::verbs::DeleteOptions;
use crate::api::{Actor, State};

pub fn step(state: &mut State) {
    let going: Vec<String> = state.all("namespaces").filter(|n| deleting(n)).map(|n| name(n).to_owned()).collect();
    for space in going {
        if empty(state, &space, &["pods"]) {
            let others: Vec<Kind> = kinds::all().filter(|m| m.namespaced && m.plural != "pods").map(|m| m.plural).collect();
            if empty(state, &space, &others) {
                state.change("namespaces", "", &space, |n| n["spec"]["finalizers"] = json!([]));
            }
        }
    }
}

/// Deletes the objects of these kinds; returns whether there were none.
fn empty(state: &mut State, space: &str, of: &[Kind]) -> bool {
    let mut nothing = true;
    for kind in of {
        let inside: Vec<Arc<Value>> = state.all(kind).filter(|v| namespace(v) == space).cloned().collect();
        for object in inside {
            nothing = false;
            if !deleting(&object) {
                let _ = state.delete(Actor::Kubernetes, kind, space, name(&object), &DeleteOptions::default());
            }
        }
    }
    nothing
}
