//! Liveness: a usable computer is shown as `Active` and its home stays protected, a replica with a dead watch exits, and no replica sends
//! requests without a pause.
//! No other check notices when one of these is missing.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use computer_operator::resources::{CredentialState, Provider};
use serde_json::Value;
use tokio::time::Instant;

use crate::api::State;
use crate::api::value::{at, deleting, has_finalizer, namespace, text, uid};
use crate::checks::record;
use crate::world::World;

/// A status may be this late: a watch that is held back for a minute, and the longest backoff before a failed write is retried.
const LATE: Duration = Duration::from_secs(150);
/// A home whose policy another client has set to `Delete` is set to `Retain` again within this time.
const PROTECTED: Duration = Duration::from_secs(15);
/// A replica whose task has died exits within this time.
const ENDS: Duration = Duration::from_secs(60);
/// The most requests of all replicas together in one minute of one life, those to the store included. Two computers that are created, archived and
/// deleted within a minute by two leaders take up to 470: each replica reads each archive back, its index and its chunks.
const PER_MINUTE: u64 = 500;
/// While requests are refused, the status may be late: the time counts from the end of that fault.
const MINUTE: Duration = Duration::from_secs(60);

/// Checks repeatedly.
#[derive(Default)]
pub struct Watchdog {
    /// Since when a computer is usable but not shown as `Active`, although a replica runs and its requests are not refused.
    unshown: BTreeMap<String, Instant>,
    /// The same for a usable computer whose home is not `Retain`.
    exposed: BTreeMap<String, Instant>,
    counts: VecDeque<(Instant, u64)>,
}

impl Watchdog {
    /// What is wrong, if anything is.
    pub fn look(&mut self, world: &World) -> Option<String> {
        if world.faults().died.is_some_and(|at| at.elapsed() > ENDS) {
            return Some("L5: a task of a replica died, and the replica continues without it".to_owned());
        }
        let refused = world.faults().denied.as_ref().is_some_and(|(_, _, until)| Instant::now() < *until);
        let (shows, protects) = if refused || !world.any_alive() { <_>::default() } else { world.with(|s| (unshown(s), exposed(s))) };
        if let Some(uid) = longer(&mut self.unshown, shows, LATE) {
            return Some(format!("L5: {uid} is usable, but for {} s its status has not said so", LATE.as_secs()));
        }
        if let Some(uid) = longer(&mut self.exposed, protects, PROTECTED) {
            return Some(format!("S1: for {} s the volume of {uid} has not been set to Retain again", PROTECTED.as_secs()));
        }
        self.storm(world)
    }

    fn storm(&mut self, world: &World) -> Option<String> {
        let (now, count) = (Instant::now(), world.counted());
        self.counts.push_back((now, count));
        while self.counts.len() > 2 && self.counts[1].0 + MINUTE <= now {
            self.counts.pop_front();
        }
        let (since, before) = *self.counts.front()?;
        let made = count - before;
        (made > PER_MINUTE && now - since <= 2 * MINUTE)
            .then(|| format!("L6: request storm: {made} requests in {} s", (now - since).as_secs()))
    }
}

/// Notes since when each computer is in a state, and returns one that has been in it for longer than the limit.
fn longer(since: &mut BTreeMap<String, Instant>, now: Vec<String>, limit: Duration) -> Option<String> {
    since.retain(|uid, _| now.contains(uid));
    for uid in now {
        since.entry(uid).or_insert_with(Instant::now);
    }
    since.iter().find(|(_, since)| since.elapsed() > limit).map(|(uid, _)| uid.clone())
}

/// Computers that are usable and whose recorded volume is not `Retain`.
fn exposed(state: &State) -> Vec<String> {
    let deletes = |c: &Value| {
        let record = record(state, uid(c));
        let volume = record.as_ref().and_then(|r| r.spec.state.children.volume.as_ref());
        let volume = volume.and_then(|v| state.by_uid("persistentvolumes", &v.uid));
        volume.is_some_and(|v| !deleting(v) && text(v, "/spec/persistentVolumeReclaimPolicy") == Some("Delete"))
    };
    state.all("computers").filter(|c| deletes(c) && usable(state, c)).map(|c| uid(c).to_owned()).collect()
}

/// Computers that are usable and whose status does not say so.
fn unshown(state: &State) -> Vec<String> {
    let active = |c: &Value| text(c, "/status/phase") == Some("Active");
    state.all("computers").filter(|c| !active(c) && usable(state, c)).map(|c| uid(c).to_owned()).collect()
}

/// Whether the computer's pod runs, its home is bound, and its key authenticates.
fn usable(state: &State, computer: &Value) -> bool {
    let going = state.get("namespaces", "", namespace(computer)).is_none_or(|n| deleting(n));
    let suspended = at(computer, "/spec/suspended") == Some(&Value::Bool(true));
    if deleting(computer) || going || suspended || !has_finalizer(computer, computer_operator::resources::DELETION_FINALIZER) {
        return false;
    }
    let Some(record) = record(state, uid(computer)).filter(|r| r.spec.state.credential == CredentialState::Live) else { return false };
    if record.spec.state.deletion.is_some() {
        return false;
    }
    if record.spec.provider == Provider::BYOM {
        return true;
    }
    let (children, within) = (&record.spec.state.children, namespace(computer));
    let found = |kind, name: Option<&String>, uid_on_record: Option<&String>| {
        let object = state.get(kind, within, name?)?;
        (Some(uid(object)) == uid_on_record.map(String::as_str) && !deleting(object)).then_some(object)
    };
    let pod = children.pods.last().and_then(|p| found("pods", Some(&p.name), p.uid.as_ref()));
    let claim = found("persistentvolumeclaims", children.claim_name.as_ref(), children.claim_uid.as_ref());
    let one_pod = children.pods.len() == 1;
    let ready = |pod: &Value| {
        let conditions = at(pod, "/status/conditions").and_then(Value::as_array);
        text(pod, "/status/phase") == Some("Running")
            && conditions.is_some_and(|c| c.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
    };
    one_pod
        && children.volume.is_some()
        && pod.is_some_and(|p| ready(p))
        && claim.is_some_and(|c| text(c, "/status/phase") == Some("Bound"))
}
