//! Stops a pod (DESIGN.md 4.4): waits until nothing in it can write, records that proof, removes the operator's finalizer, and waits until
//! the pod is gone. Creation and deletion share this; they decide when a pod is late and what an admin can do about a lost node. Whether a
//! pod can still write is decided in `pod_writers` from what its kubelet has reported, and in [`Stop::vanished`] for a pod that is gone without
//! that report: then its node decides.
//!
//! It must never treat a pod as stopped without proof, nor remove a finalizer of another controller.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::action::{Action, Fact, Subject};
use super::pod_writers::{ORPHAN_KILL_SECONDS, Writers, answers, answers_since, collected, overstays, remove_finalizer_patch, writers};
use super::step::State;
use super::view::View;
use crate::guards::{self, Guard};
use crate::resources::reasons::Reason;
use crate::resources::{ComputerRecord, POD_FINALIZER, PodRecord};

/// Stops one recorded pod.
pub struct Stop<'a> {
    /// What was observed.
    pub view: &'a View,
    /// The computer's record.
    pub record: &'a ComputerRecord,
    /// The pod as the record has it.
    pub recorded: &'a PodRecord,
    /// The pod should have stopped by now: containers that are still running are reported.
    pub late: bool,
    /// An admin accepts that the pod may still write.
    pub skipped: bool,
    /// What to do if the node is permanently lost.
    pub remedy: &'static str,
}

impl Stop<'_> {
    /// The pod as a subject.
    pub fn subject(&self) -> Subject {
        Subject::pod(&self.record.spec.namespace, &self.recorded.name)
    }

    /// What to do about a pod that is being deleted. `also` changes the record together with the proof that the pod has stopped.
    /// `keep` returns what must happen before the operator's finalizer may be removed.
    pub fn terminating(&self, pod: &Pod, also: impl FnOnce(&mut ComputerRecord), keep: impl FnOnce() -> Option<State>) -> State {
        if let Some(state) = self.may_write(pod) {
            return state;
        }
        if self.recorded.stopped_at.is_none() && !self.skipped {
            // The proof is recorded first: it is lost with the pod.
            let (uid, now) = (pod.metadata.uid.clone(), self.view.now);
            return self.note(|p| (p.stopped_at, p.uid) = (Some(Time(now)), uid.clone()), also);
        }
        if let Some(patch) = remove_finalizer_patch(pod) {
            return keep().unwrap_or_else(|| State::act(Action::Patch { subject: self.subject(), patch }));
        }
        if let Some(held) = foreign_finalizers(&pod.metadata, &[]) {
            return State::blocked(Reason::PodHeld, format!("{} has stopped, but {held}", self.subject().describe()), 15);
        }
        if self.skipped || overstays(pod, self.recorded.stopped_at.as_ref(), self.view.now) {
            return State::act(Action::Remove { subject: self.subject(), uid: pod.metadata.uid.clone().unwrap_or_default() });
        }
        State::wait(2)
    }

    /// What to wait for while a pod that is being deleted may still write. `None`: it cannot, or an admin accepts that.
    fn may_write(&self, pod: &Pod) -> Option<State> {
        let writers = writers(pod);
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        if writers == Writers::Stopped {
            return None;
        }
        // Its kubelet reports nothing more: the state of the node decides, as for a pod that is gone.
        if let Some(since) = collected(pod).filter(|_| !self.skipped) {
            return self.node_may_write(node, since);
        }
        if self.skipped || !guards::on(Guard::WritersStopped) {
            return None;
        }
        let subject = self.subject().describe();
        let node = node.unwrap_or("no node");
        let blocked =
            |reason, why: &str| State::blocked(reason, format!("{subject} is terminating on node {node}, but {why}. {}", self.remedy), 15);
        Some(match writers {
            Writers::Unknown(why) => blocked(Reason::PodStateUnknown, &why),
            _ if self.late => blocked(Reason::PodStillRunning, "its containers are still running"),
            _ => State::wait(15),
        })
    }

    /// What to do about a pod that is gone without proof that its containers stopped: its finalizer was removed and it was force-deleted. A
    /// working kubelet kills such containers; a node that is not ready may still run them. `None`: nothing in it can write.
    pub fn vanished(&self) -> Option<State> {
        // A time in the future comes from a clock that has been set back since: it proves nothing.
        match self.recorded.vanished_at.as_ref().filter(|at| at.0 <= self.view.now) {
            None => Some(self.note_vanished()),
            Some(since) => self.node_may_write(self.recorded.node.as_deref(), since.0),
        }
    }

    /// Records that the pod is gone without that proof.
    pub fn note_vanished(&self) -> State {
        let now = self.view.now;
        self.note(|p| p.vanished_at = Some(Time(now)), |_| ())
    }

    /// A working kubelet kills the containers of a pod that is gone, or that the pod garbage collector has failed, within the grace period
    /// and [`ORPHAN_KILL_SECONDS`]. A node without a Node object counts as lost and runs none. `None`: nothing in the pod can write.
    fn node_may_write(&self, node: Option<&str>, since: Timestamp) -> Option<State> {
        if let Some(wait) = self.still_kills(since) {
            return Some(wait);
        }
        let subject = Subject::Node { name: node?.to_owned() };
        match self.view.facts.get(&subject) {
            None => Some(State::read(subject)),
            Some(Fact::Node(node)) if !answers(node) => Some(State::blocked(
                Reason::NodeUnreachable,
                format!(
                    "{} was deleted without its kubelet, and {} is not ready, so its containers may still write. {}",
                    self.subject().describe(),
                    subject.describe(),
                    self.remedy
                ),
                15,
            )),
            // A kubelet that was away begins to kill the containers when it is back.
            Some(Fact::Node(node)) => self.node_is_back(&subject, answers_since(node)?.max(since)),
            Some(_) => None,
        }
    }

    /// What to wait for while a node that came back may still kill the containers. Its own clock says when it came back: if that is ahead, or
    /// the node comes and goes, the wait has no bound, so it is reported.
    fn node_is_back(&self, node: &Subject, back: Timestamp) -> Option<State> {
        let wait = self.still_kills(back)?;
        if !self.late && back <= self.view.now {
            return Some(wait);
        }
        let message = format!(
            "{} was deleted without its kubelet, and {} says that it has been ready since {back}, so it may still be stopping the containers. \
             Check that the clock of the node is right and that the node stays ready. {}",
            self.subject().describe(),
            node.describe(),
            self.remedy
        );
        Some(State::blocked(Reason::NodeUnreachable, message, 15))
    }

    /// The rest of the time that a kubelet needs to kill the containers of a pod that it has found gone at this time. `None`: it has passed.
    fn still_kills(&self, since: Timestamp) -> Option<State> {
        // A class may set any grace period, and the clock of a node may be ahead.
        let needed = self.record.spec.snapshot.grace_period_seconds.unwrap_or(30).max(0).saturating_add(ORPHAN_KILL_SECONDS);
        let left = needed.saturating_sub(self.view.now.duration_since(since).as_secs());
        (left > 0).then(|| State::wait_for(left.min(needed)))
    }

    fn note(&self, change: impl Fn(&mut PodRecord), also: impl FnOnce(&mut ComputerRecord)) -> State {
        State::save(self.record, |r| {
            r.spec.state.children.pods.iter_mut().filter(|p| p.name == self.recorded.name).for_each(change);
            also(r);
        })
    }
}

/// Which finalizers of other controllers block the deletion of an object. They are shown to the user and never removed (S5).
pub fn foreign_finalizers(metadata: &ObjectMeta, usual: &[&str]) -> Option<String> {
    let held: Vec<&str> =
        metadata.finalizers.iter().flatten().map(String::as_str).filter(|f| !usual.contains(f) && *f != POD_FINALIZER).collect();
    (!held.is_empty()).then(|| {
        format!(
            "finalizers of other controllers block its deletion: {}. Wait for those controllers or remove the finalizers; a DeletionOverride does \
             not remove them",
            held.join(", ")
        )
    })
}
