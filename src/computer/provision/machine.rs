//! The pod: started, replaced when it failed or was taken away, stopped while the computer is suspended. At most one runs; the
//! next one is made only when every container of the last one has stopped.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Context, State, crash, home};
use crate::computer::action::{Action, Fact, Object, Subject};
use crate::computer::children::Child;
use crate::computer::machine_pod;
use crate::computer::stopped::{ORPHAN_KILL_SECONDS, Writers, answers, collected, overstays, remove_finalizer_patch, writers};
use crate::computer::view::ClassState;
use crate::guards::{self, Guard};
use crate::resources::{CredentialState, POD_FINALIZER, Phase, PodRecord, Snapshot};

/// Seconds for which a pod that vanished is kept on record, so that a deletion would still wait for its node.
const VANISHED_SECONDS: i64 = 600;

pub(super) fn run(context: &Context<'_>) -> State {
    if !context.managed() {
        return learn_uids(context);
    }
    let pods = &context.record.spec.state.children.pods;
    for recorded in pods {
        let subject = Subject::pod(&context.view.namespace, &recorded.name);
        let Some(found) = context.view.pod(&context.view.namespace, &recorded.name) else { return State::act(Action::Read(subject)) };
        let current = found.filter(|p| recorded.uid.is_none() || p.metadata.uid == recorded.uid);
        let newest = pods.last().is_some_and(|p| p.name == recorded.name);
        let state = match current {
            None => gone(context, recorded, newest),
            Some(pod) => here(context, recorded, pod, subject),
        };
        if state != State::Done {
            return state;
        }
    }
    let running = pods.last().is_some_and(|p| context.view.pod(&context.view.namespace, &p.name).flatten().is_some());
    if !running && !context.computer.spec.suspended {
        return next_pod(context);
    }
    match learn_uids(context) {
        State::Done if !context.computer.spec.suspended => ready(context),
        state => state,
    }
}

/// A pod that is there: kept, or on its way out.
fn here(context: &Context<'_>, recorded: &PodRecord, pod: &Pod, subject: Subject) -> State {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let over = matches!(phase, Some("Failed" | "Succeeded"));
    if pod.metadata.deletion_timestamp.is_none() {
        if !over && !context.computer.spec.suspended {
            return State::Done;
        }
        // On record before it is deleted: only what is recorded is ours (S5).
        return match recorded.uid.as_ref() {
            Some(uid) => State::act(Action::Delete { subject, uid: uid.clone() }),
            None => learn_uids(context),
        };
    }
    let writers = match (writers(pod), collected(pod)) {
        (Writers::Unknown(_), Some(since)) => match node_lets_go(context, pod, since) {
            Some(state) => return state,
            None => Writers::Stopped,
        },
        (writers, _) => writers,
    };
    match writers {
        // Proof first, then the finalizer: a later deletion could not tell any more.
        Writers::Stopped if recorded.stopped_at.is_none() => {
            let (name, now) = (recorded.name.clone(), context.view.now);
            context.save(|r| {
                for p in r.spec.state.children.pods.iter_mut().filter(|p| p.name == name) {
                    p.stopped_at = Some(Time(now));
                    p.uid.clone_from(&pod.metadata.uid);
                }
                r.spec.state.crash_loop = crash::counted(r.spec.state.crash_loop.as_ref(), pod);
            })
        }
        Writers::Stopped => match remove_finalizer_patch(pod) {
            Some(patch) => State::act(Action::Patch { subject, patch }),
            None if overstays(pod, recorded.stopped_at.as_ref(), context.view.now) => {
                State::act(Action::Remove { subject, uid: pod.metadata.uid.clone().unwrap_or_default() })
            }
            None => State::wait(2),
        },
        Writers::Running => still_running(context, pod, &subject),
        Writers::Unknown(why) => {
            State::blocked("PodStateUnknown", format!("{} is being deleted and {why}: its node may be lost", subject.describe()))
        }
    }
}

/// A pod that the pod garbage collector has ended: a live kubelet kills its containers within the grace period and a little more, and a
/// node that is gone runs none. `None`: nothing of it can write any more.
fn node_lets_go(context: &Context<'_>, pod: &Pod, since: Timestamp) -> Option<State> {
    let grace = context.record.spec.snapshot.grace_period_seconds.unwrap_or(30).max(0);
    let left = grace.saturating_add(ORPHAN_KILL_SECONDS).saturating_sub(context.view.now.duration_since(since).as_secs());
    if left > 0 {
        return Some(State::wait(u64::try_from(left).unwrap_or(1)));
    }
    let subject = Subject::Node { name: pod.spec.as_ref()?.node_name.clone()? };
    match context.view.facts.get(&subject) {
        None => Some(State::act(Action::Read(subject))),
        Some(Fact::Node(node)) if !answers(node) => Some(State::blocked(
            "NodeUnreachable",
            format!(
                "Pod {}/{} was ended without its kubelet, and node {} does not answer, so its containers may still write. Bring the node back, \
                 or delete the Node object if it is lost",
                context.view.namespace,
                pod.metadata.name.as_deref().unwrap_or_default(),
                node.metadata.name.as_deref().unwrap_or_default()
            ),
        )),
        Some(_) => None,
    }
}

/// Seconds beyond its grace period after which a pod that does not stop is shown.
const LATE_SECONDS: i64 = 30;

/// The deletionTimestamp is the end of the grace period.
fn still_running(context: &Context<'_>, pod: &Pod, subject: &Subject) -> State {
    let late = |at: &Time| context.view.now.duration_since(at.0).as_secs() > LATE_SECONDS;
    if !pod.metadata.deletion_timestamp.as_ref().is_some_and(late) {
        return State::wait(5);
    }
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
    State::blocked(
        "PodStillRunning",
        format!(
            "{} is being deleted, but its containers still run on node {node}. If that node is lost for good, delete its Node object, then \
             remove the finalizer {POD_FINALIZER} from the pod. The next pod is created when this one is gone",
            subject.describe()
        ),
    )
}

/// A pod that is not there: never made yet, stopped, or taken away behind our back.
fn gone(context: &Context<'_>, recorded: &PodRecord, newest: bool) -> State {
    let fresh = recorded.uid.is_none() && newest && !context.computer.spec.suspended;
    if fresh {
        return make(context, &recorded.name);
    }
    if recorded.stopped_at.is_some() || recorded.uid.is_none() {
        return State::Done;
    }
    match &recorded.vanished_at {
        None => {
            let (name, now) = (recorded.name.clone(), context.view.now);
            context.save(|r| {
                for p in r.spec.state.children.pods.iter_mut().filter(|p| p.name == name) {
                    p.vanished_at = Some(Time(now));
                }
            })
        }
        Some(at) if context.view.now.duration_since(at.0).as_secs() > VANISHED_SECONDS && !newest => forget(context, recorded),
        Some(_) => State::Done,
    }
}

/// A pod that vanished long ago is taken off the record, unless its node does not answer: then it may write to this day (S1).
fn forget(context: &Context<'_>, recorded: &PodRecord) -> State {
    if let Some(node) = &recorded.node {
        let subject = Subject::Node { name: node.clone() };
        match context.view.facts.get(&subject) {
            None => return State::act(Action::Read(subject)),
            Some(Fact::Node(node)) if !answers(node) => return State::Done,
            Some(_) => {}
        }
    }
    let name = recorded.name.clone();
    context.save(|r| r.spec.state.children.pods.retain(|p| p.name != name))
}

/// A computer that is resumed need not wait.
fn was_suspended(context: &Context<'_>) -> bool {
    context.computer.status.as_ref().and_then(|s| s.phase) == Some(Phase::Suspended)
}

/// The next pod's name, on record before the pod; a little after the last one went.
fn next_pod(context: &Context<'_>) -> State {
    let state = &context.record.spec.state;
    if let Some(state) = crash::pause(&state.children.pods, state.crash_loop.as_ref(), context.view.now, was_suspended(context)) {
        return state;
    }
    if let Some(state) = home::going(context) {
        return state;
    }
    let name = Child::Machine.name(&context.view.fresh.suffix);
    if context.record.spec.state.children.pods.iter().any(|p| p.name == name) {
        return State::wait(1);
    }
    let hash =
        if let ClassState::Found(class) = &context.view.class { Some(machine_pod::hash(class, &context.computer.spec)) } else { None };
    context.save(|r| {
        // What has stopped for sure is forgotten; what vanished is kept, a deletion must still wait for its node.
        r.spec.state.children.pods.retain(|p| p.vanished_at.is_some());
        r.spec.state.children.pods.push(PodRecord { name, ..PodRecord::default() });
        if hash.is_some() {
            (r.spec.snapshot.template_hash, r.spec.snapshot.pod_hash) = (hash, None);
        }
    })
}

fn make(context: &Context<'_>, name: &str) -> State {
    let Some(claim) = &context.record.spec.state.children.claim_name else { return State::wait(1) };
    let ClassState::Found(class) = &context.view.class else {
        return State::blocked(
            "ClassNotFound",
            "the ComputerClass was deleted, so no pod can be made: create it again, or delete this Computer",
        );
    };
    match machine_pod::desired(class, &context.computer.spec, claim) {
        Ok(desired) => State::act(Action::Create(Object::Pod(Box::new(machine_pod::of_computer(desired, context.view, name))))),
        Err(why) => State::blocked("ClassNotAccepted", why),
    }
}

/// UIDs that this pass has learned go to the record in one write; so does what is in effect in a new pod, and the node of a pod
/// that has one by now.
fn learn_uids(context: &Context<'_>) -> State {
    let mut children = context.record.spec.state.children.clone();
    let mut snapshot = context.record.spec.snapshot.clone();
    let namespace = &context.view.namespace;
    if let (None, Some(name)) = (&children.secret_uid, &children.secret_name)
        && let Some(Fact::Uid(uid) | Fact::Held(uid)) = context.view.facts.get(&Subject::secret(namespace, name))
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
                return State::act(Action::Read(Subject::pod(namespace, &recorded.name)));
            }
            recorded.uid.clone_from(&pod.metadata.uid);
            machine_pod::note_effective(&mut snapshot, pod);
        }
        // The first pod's node is written together with the volume.
        if recorded.node.is_none() && placed {
            recorded.node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
        }
    }
    if children == context.record.spec.state.children && snapshot == context.record.spec.snapshot {
        return State::Done;
    }
    context.save(|r| {
        r.spec.state.children = children;
        r.spec.snapshot = snapshot;
        if !guards::on(Guard::LiveLast) {
            r.spec.state.credential = CredentialState::Live;
        }
    })
}

/// A pod that an earlier version made has a hash that says nothing to this one. What the class asks for now counts from here on, unless
/// that version has already shown that the pod differs from it.
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

/// Waits for the pod to be ready, and says why it is not. The volume is protected as soon as it is bound, ready or not.
fn ready(context: &Context<'_>) -> State {
    let children = &context.record.spec.state.children;
    let Some(pod) = children.pods.last().and_then(|p| context.view.pod(&context.view.namespace, &p.name).flatten()) else {
        return State::wait(5);
    };
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let of = |type_: &str| conditions.iter().find(|c| c.type_ == type_);
    if children.volume.is_none() && bound(context) {
        return State::Done;
    }
    if of("Ready").is_some_and(|c| c.status == "True") {
        return State::Done;
    }
    if let Some(c) = of("PodScheduled").filter(|c| c.status == "False") {
        return State::blocked("PodUnschedulable", c.message.clone().unwrap_or_default());
    }
    match stuck(pod) {
        Some((reason, message)) => {
            State::blocked("PodNotStarting", format!("pod {}: {reason}: {message}", pod.metadata.name.as_deref().unwrap_or_default()))
        }
        None => State::wait(30),
    }
}

pub(super) fn bound(context: &Context<'_>) -> bool {
    let Some(name) = &context.record.spec.state.children.claim_name else { return false };
    let claim = context.view.claim(&context.view.namespace, name).flatten();
    claim.and_then(|c| c.status.as_ref()?.phase.as_deref()) == Some("Bound")
}

/// A container that waits for something that does not come by itself.
fn stuck(pod: &Pod) -> Option<(String, String)> {
    let statuses = pod.status.as_ref().map(|s| [&s.init_container_statuses, &s.container_statuses])?;
    let waiting = statuses.into_iter().flat_map(|l| l.iter().flatten()).find_map(|c| c.state.as_ref()?.waiting.as_ref())?;
    let reason = waiting.reason.clone().filter(|r| r != "ContainerCreating" && r != "PodInitializing")?;
    Some((reason, waiting.message.clone().unwrap_or_default()))
}
