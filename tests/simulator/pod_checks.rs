//! Checks of what an operator does to the pods of machines. What really runs counts, not what a status says.

use computer_operator::resources::{POD_FINALIZER, SkippableStep};
use serde_json::{Value, json};

use crate::api::State;
use crate::api::state::Change;
use crate::api::value::{at, deleting, finalizers, name, namespace, text, uid};
use crate::checks::{PASS, overridden, record};
use crate::moves::SYSTEM;
use crate::observer::Observer;

/// A pod that an operator has changed.
pub fn of_operator(observer: &mut Observer, state: &State, change: &Change) {
    let Some(before) = change.before.as_deref().filter(|pod| change.kind == "pods" && namespace(pod) != SYSTEM) else { return };
    let Some(of) = observer.owner(uid(before)).cloned() else { return };
    if released(change, before) && state.kubelet.running.contains_key(uid(before)) && !overridden(state, &of, SkippableStep::StopPods) {
        observer.violation(format!("S1: the finalizer of {} was removed while its containers run", name(before)));
    }
    let begun = !deleting(before) && (change.after.is_none() || deleting(change.object()));
    if (begun || released(change, before)) && is_machine(observer, state, &of, before) {
        observer.violation(format!("S5: {} was deleted or released although it is the machine of {of}, which lives", name(before)));
    }
}

fn released(change: &Change, before: &Value) -> bool {
    let held = |pod: &Value| finalizers(pod).iter().any(|f| f == POD_FINALIZER);
    held(before) && !change.after.as_deref().is_some_and(held)
}

/// Whether a pod is the one that a computer should have: it lives, is not suspended and was not a moment ago, the pod has not ended, no other client deletes it, and the
/// record has its UID.
fn is_machine(observer: &Observer, state: &State, of: &str, pod: &Value) -> bool {
    let Some(fate) = observer.fates.get(of).filter(|fate| fate.dying.is_none()) else { return false };
    let wanted = state.get("computers", &fate.namespace, &fate.name).is_some_and(|c| at(c, "/spec/suspended") != Some(&json!(true)));
    // A reconcile that runs has not observed that it is resumed.
    let wanted = wanted && fate.suspended.is_none_or(|at| at.elapsed() > PASS);
    let ended = deleting(pod) || matches!(text(pod, "/status/phase"), Some("Failed" | "Succeeded"));
    let recorded = record(state, of).is_some_and(|r| r.spec.state.children.pods.iter().any(|p| p.uid.as_deref() == Some(uid(pod))));
    wanted && !ended && recorded
}
