//! Step `start-pod`: starts the pod, replaces it when it failed or was deleted, and stops it while the computer is suspended. Two pods must
//! never run at once: the next one is created only when every container of the last one has stopped.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use super::{Context, RETRY_SECONDS, class_verdict, crash_loop, home, key};
use crate::computer::action::{Action, Object, Subject};
use crate::computer::children::Child;
use crate::computer::machine_pod;
use crate::computer::step::State;
use crate::computer::stop_pod::Stop;
use crate::computer::view::ClassState;
use crate::guards::{self, Guard};
use crate::resources::reasons::Reason;
use crate::resources::{ComputerClass, CredentialState, Phase, PodRecord, Snapshot};

/// Seconds for which a pod that vanished stays in the record, so that a deletion still waits for its node.
const VANISHED_SECONDS: i64 = 600;
/// Seconds after the grace period after which a pod that has not stopped is reported.
const LATE_SECONDS: i64 = 30;

pub(super) fn run(context: &Context<'_>) -> State {
    if !context.managed() {
        return learn_uids(context);
    }
    let pods = &context.record.spec.state.children.pods;
    for recorded in pods {
        let subject = Subject::pod(&context.view.namespace, &recorded.name);
        let Some(found) = context.view.pod(&context.view.namespace, &recorded.name) else { return State::read(subject) };
        let current = found.filter(|p| recorded.uid.is_none() || p.metadata.uid == recorded.uid);
        let newest = pods.last().is_some_and(|p| p.name == recorded.name);
        let state = match current {
            None => gone(context, recorded, newest),
            Some(pod) => here(context, recorded, pod),
        };
        if !state.is_done() {
            return state;
        }
    }
    let running = pods.last().is_some_and(|p| context.view.pod(&context.view.namespace, &p.name).flatten().is_some());
    if !running && !context.computer.spec.suspended {
        return next_pod(context);
    }
    match learn_uids(context) {
        State::Done(_) if !context.computer.spec.suspended => ready(context),
        state => state,
    }
}

fn stop<'a>(context: &Context<'a>, recorded: &'a PodRecord, late: bool) -> Stop<'a> {
    Stop {
        view: context.view,
        record: context.record,
        recorded,
        late,
        skipped: false,
        remedy: "If the node is permanently lost, delete its Node object. The next pod is created once this one is gone",
    }
}

/// A pod that exists: kept, or being stopped.
fn here(context: &Context<'_>, recorded: &PodRecord, pod: &Pod) -> State {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let over = matches!(phase, Some("Failed" | "Succeeded"));
    // The deletionTimestamp is the end of the grace period.
    let Some(deleted) = &pod.metadata.deletion_timestamp else {
        if !over && !context.computer.spec.suspended {
            return State::done();
        }
        // Its UID is recorded before it is deleted: only recorded objects belong to the computer (S5).
        return match recorded.uid.as_ref() {
            Some(uid) => State::act(Action::Delete { subject: Subject::pod(&context.view.namespace, &recorded.name), uid: uid.clone() }),
            None => learn_uids(context),
        };
    };
    let late = context.view.now.duration_since(deleted.0).as_secs() > LATE_SECONDS;
    let count = |r: &mut crate::resources::ComputerRecord| {
        r.spec.state.crash_loop = crash_loop::counted(r.spec.state.crash_loop.as_ref(), pod, context.computer.spec.suspended);
    };
    stop(context, recorded, late).terminating(pod, count, || None)
}

/// A pod that does not exist: not created yet, stopped, or removed by another client.
fn gone(context: &Context<'_>, recorded: &PodRecord, newest: bool) -> State {
    let fresh = recorded.uid.is_none() && newest && !context.computer.spec.suspended;
    if fresh {
        return create(context, &recorded.name);
    }
    if recorded.stopped_at.is_some() || recorded.uid.is_none() {
        return State::done();
    }
    match &recorded.vanished_at {
        None => stop(context, recorded, true).note_vanished(),
        Some(at) if context.view.now.duration_since(at.0).as_secs() > VANISHED_SECONDS && !newest => forget(context, recorded),
        Some(_) => State::done(),
    }
}

/// A pod that vanished long ago is removed from the record, unless it may still write (S1).
fn forget(context: &Context<'_>, recorded: &PodRecord) -> State {
    match stop(context, recorded, false).vanished() {
        Some(State::Do(read)) => State::Do(read),
        Some(_) => State::done(),
        None => context.save(|r| r.spec.state.children.pods.retain(|p| p.name != recorded.name)),
    }
}

/// A computer that is resumed does not wait.
fn was_suspended(context: &Context<'_>) -> bool {
    context.computer.status.as_ref().and_then(|s| s.phase) == Some(Phase::Suspended)
}

/// Records the next pod's name before the pod is created, once the pause after the last pod has passed.
fn next_pod(context: &Context<'_>) -> State {
    let state = &context.record.spec.state;
    if let Some(state) = crash_loop::pause(&state.children.pods, state.crash_loop.as_ref(), context.view.now, was_suspended(context)) {
        return state;
    }
    if let Some(state) = home::claim_deleted(context) {
        return state;
    }
    if !context.view.finalizer_confirmed {
        // The same as for a claim: the last pod may have disappeared with its Computer.
        return State::act(Action::ReadComputer);
    }
    let name = Child::Machine.name(&context.view.fresh.suffix);
    if context.record.spec.state.children.pods.iter().any(|p| p.name == name) {
        return State::wait(1);
    }
    let class = if let ClassState::Found(class) = &context.view.class { Some(class) } else { None };
    let hash = class.map(|class| machine_pod::hash(class, &context.computer.spec));
    context.save(|r| {
        // A pod that has stopped is removed from the record; one that vanished is kept, because a deletion must wait for its node.
        r.spec.state.children.pods.retain(|p| p.vanished_at.is_some());
        r.spec.state.children.pods.push(PodRecord { name, ..PodRecord::default() });
        if hash.is_some() {
            (r.spec.snapshot.template_hash, r.spec.snapshot.pod_hash) = (hash, None);
        }
        // In the same write: the key must not be in the machine with more rights than its class gives it then.
        if let Some(class) = class {
            let state = &mut r.spec.state;
            // Once it was in a machine, a copy of it may be anywhere: only another key gets the rights back.
            state.key_mounted |= class.spec.key.mount_path.is_some();
            state.key_allow = class.spec.key.words(state.key_mounted);
        }
    })
}

fn create(context: &Context<'_>, name: &str) -> State {
    let Some(claim) = &context.record.spec.state.children.claim_name else { return State::wait(1) };
    let ClassState::Found(class) = &context.view.class else {
        let message = "the ComputerClass was deleted, so no pod can be created. Create it again, or delete this Computer";
        return State::blocked(Reason::ClassNotFound, message, RETRY_SECONDS);
    };
    if let Some(state) = class_verdict::refused(class, context.view.now) {
        return state;
    }
    match machine_pod::desired(class, &context.computer.spec, claim).and_then(|pod| with_key(context, class, pod)) {
        Ok(desired) => State::act(Action::Create(Object::Machine(Box::new(machine_pod::of_computer(desired, context.view, name))))),
        Err(why) => State::blocked(Reason::ClassNotAccepted, why, RETRY_SECONDS),
    }
}

fn with_key(context: &Context<'_>, class: &ComputerClass, mut pod: Value) -> Result<Value, String> {
    if let Some(files) = machine_pod::KeyFiles::of(class, context.view) {
        files.add_to(&mut pod)?;
    }
    Ok(pod)
}

/// Records in one write the UIDs that this reconcile has learned, the effective settings of a new pod, and the node of a scheduled pod.
fn learn_uids(context: &Context<'_>) -> State {
    let mut children = context.record.spec.state.children.clone();
    let mut snapshot = context.record.spec.snapshot.clone();
    let namespace = &context.view.namespace;
    // Not while the Secret of the last key has that name.
    let retired = children.retired_secret.as_ref().map(|retired| &retired.name);
    if let (None, Some(name)) = (&children.secret_uid, &children.secret_name)
        && retired != Some(name)
        && let Some(uid) = key::own_uid(context, name)
    {
        children.secret_uid = Some(uid.clone());
    }
    if let (None, Some(name)) = (&children.claim_uid, &children.claim_name) {
        children.claim_uid = context.view.claim(namespace, name).flatten().and_then(|c| c.metadata.uid.clone());
    }
    adopt_hash(context, &mut snapshot);
    let placed = children.volume.is_some();
    for recorded in &mut children.pods {
        let Some(Some(pod)) = context.view.pod(namespace, &recorded.name) else { continue };
        if recorded.uid.is_none() || snapshot.run_as_user.is_none() {
            if machine_pod::stripped(pod) {
                return State::read(Subject::pod(namespace, &recorded.name));
            }
            recorded.uid.clone_from(&pod.metadata.uid);
            recorded.key_secret = machine_pod::mounted_secret(pod);
            machine_pod::note_effective(&mut snapshot, pod);
        }
        // The first pod's node is written together with the volume.
        if recorded.node.is_none() && placed {
            recorded.node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
        }
    }
    if children == context.record.spec.state.children && snapshot == context.record.spec.snapshot {
        return State::done();
    }
    context.save(|r| {
        r.spec.state.children = children;
        r.spec.snapshot = snapshot;
        // Without a machine, the Secret is all that a deletion needs on record before the key authenticates.
        if !context.managed() {
            key::go_live(&mut r.spec.state);
        }
        if !guards::on(Guard::LiveLast) {
            r.spec.state.credential = CredentialState::Live;
        }
    })
}

/// Adopts the current hash of the class for a pod that an earlier version created, whose hash this version cannot compare. Not if that
/// version has already reported that the pod differs from its class.
fn adopt_hash(context: &Context<'_>, snapshot: &mut Snapshot) {
    if let ClassState::Found(class) = &context.view.class
        && snapshot.template_hash.is_none()
        && let Some(made) = &snapshot.pod_hash
        && !super::drifted_before(context, class, made)
    {
        snapshot.template_hash = Some(machine_pod::hash(class, &context.computer.spec));
    }
}

/// Node of the newest pod.
pub(super) fn node(context: &Context<'_>) -> Option<String> {
    let name = &context.record.spec.state.children.pods.last()?.name;
    context.view.pod(&context.view.namespace, name).flatten()?.spec.as_ref()?.node_name.clone()
}

/// Waits until the pod is ready and reports why it is not. Ends early when the volume is bound, so that it is protected at once.
fn ready(context: &Context<'_>) -> State {
    let children = &context.record.spec.state.children;
    let Some(pod) = children.pods.last().and_then(|p| context.view.pod(&context.view.namespace, &p.name).flatten()) else {
        return State::wait(5);
    };
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let of = |type_: &str| conditions.iter().find(|c| c.type_ == type_);
    if children.volume.is_none() && bound(context) {
        return State::done();
    }
    if of("Ready").is_some_and(|c| c.status == "True") {
        return State::done();
    }
    if let Some(c) = of("PodScheduled").filter(|c| c.status == "False") {
        return State::blocked(Reason::PodUnschedulable, c.message.clone().unwrap_or_default(), RETRY_SECONDS);
    }
    match stuck(pod) {
        Some((reason, message)) => {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            State::blocked(Reason::PodNotStarting, format!("pod {name} cannot start: {reason}: {message}"), RETRY_SECONDS)
        }
        None => late(pod, of("Ready").and_then(|c| c.last_transition_time.as_ref()), context.view.now),
    }
}

/// Seconds after which a pod that is not ready is reported. A large image may take that long; a volume that cannot be mounted, or a network
/// that cannot be set up, shows only in the pod's events.
const UNREADY_SECONDS: i64 = 300;

/// Waits for a pod that nothing is known to keep from being ready. `since`: when it was last ready, or could have become so.
fn late(pod: &Pod, since: Option<&Time>, now: Timestamp) -> State {
    let since = since.or(pod.metadata.creation_timestamp.as_ref());
    let left = UNREADY_SECONDS - since.map_or(0, |at| now.duration_since(at.0).as_secs());
    if left > 0 {
        return State::wait_for(left.min(30));
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let message = format!(
        "pod {name} has not been ready for {} minutes, and its kubelet reports no reason. Its image may be large, its volume may not \
         mount, or its readiness probe may fail: see the events of the pod with `kubectl describe pod {name}`",
        UNREADY_SECONDS / 60
    );
    State::blocked(Reason::PodNotStarting, message, RETRY_SECONDS)
}

pub(super) fn bound(context: &Context<'_>) -> bool {
    let Some(name) = &context.record.spec.state.children.claim_name else { return false };
    let claim = context.view.claim(&context.view.namespace, name).flatten();
    claim.and_then(|c| c.status.as_ref()?.phase.as_deref()) == Some("Bound")
}

/// Why a container cannot start, if an admin or a user must fix it.
fn stuck(pod: &Pod) -> Option<(String, String)> {
    let statuses = pod.status.as_ref().map(|s| [&s.init_container_statuses, &s.container_statuses])?;
    let waiting = statuses.into_iter().flat_map(|l| l.iter().flatten()).find_map(|c| c.state.as_ref()?.waiting.as_ref())?;
    let reason = waiting.reason.clone().filter(|r| r != "ContainerCreating" && r != "PodInitializing")?;
    Some((reason, waiting.message.clone().unwrap_or_default()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    /// L2: a volume that cannot be mounted leaves the container in `ContainerCreating` permanently.
    #[test]
    fn a_pod_that_does_not_become_ready_is_reported_after_a_while() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "machine-1", "creationTimestamp": "2026-01-01T00:00:00Z"}})).unwrap();
        let ready = |at: i64| Some(Time(Timestamp::from_second(1_767_225_600 + at).unwrap()));
        let after = |seconds: i64| late(&pod, None, Timestamp::from_second(1_767_225_600 + seconds).unwrap());
        assert_eq!(after(10), State::Wait(Duration::from_secs(30)));
        assert_eq!(after(295), State::Wait(Duration::from_secs(5)));
        assert!(matches!(after(300), State::Blocked(b, _) if b.reason == Reason::PodNotStarting && b.message.contains("machine-1")));
        assert_eq!(after(301), after(900), "L6: the same message");
        let back = Timestamp::from_second(1_767_225_600 + 900).unwrap();
        assert_eq!(late(&pod, ready(890).as_ref(), back), State::Wait(Duration::from_secs(30)), "it was ready until then");
    }
}
