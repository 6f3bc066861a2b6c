//! Checks of each promise against a single change. They must never trust the operator's own record for what they check.

use std::sync::Arc;
use std::time::Duration;

use computer_operator::resources::steps::{DeletionStep, Sequence};
use computer_operator::resources::{ComputerRecord, CredentialState, Deletion, RecordPhase, SkippableStep, StepOutcome, VolumeRecord};
use serde_json::Value;

use crate::actors::archive::packed;
use crate::api::state::Change;
use crate::api::value::{at, deleting, name, namespace, text, typed, uid};
use crate::api::{Actor, State};
use crate::moves::{SYSTEM, holds};
use crate::observer::Observer;
use crate::times;

/// A reconcile that was running when its replica observed the deletion has this long to end. S8 applies after that.
pub const PASS: Duration = Duration::from_secs(20);

/// Every running operator has observed a change that an admin made this long ago.
const SEEN: Duration = Duration::from_secs(2);

pub fn record(state: &State, computer: &str) -> Option<Arc<ComputerRecord>> {
    typed(state.get("computerrecords", SYSTEM, computer)?)
}

/// Whether an override names this computer and step (S11).
pub fn overridden(state: &State, computer: &str, step: SkippableStep) -> bool {
    let step = serde_json::json!(step);
    state.all("deletionoverrides").any(|o| {
        let skips = at(o, "/spec/skip").and_then(Value::as_array).is_some_and(|s| s.contains(&step));
        skips && text(o, "/spec/computer/uid") == Some(computer)
    })
}

pub fn of_operator(observer: &mut Observer, state: &State, change: &Change) {
    match change.kind {
        "computers" => computer(observer, state, change),
        "computerrecords" => of_record(observer, change),
        "pods" | "persistentvolumeclaims" | "secrets" => {
            child(observer, state, change);
            crate::pod_checks::of_operator(observer, state, change);
            unprotected(observer, state, change);
        }
        "persistentvolumes" => volume(observer, state, change),
        "computerclasses" | "deletionoverrides" | "sessions" | "events" | "leases" => {}
        other => observer.violation(format!("S5: the operator changed something of kind {other}: {}", name(change.object()))),
    }
}

fn computer(observer: &mut Observer, state: &State, change: &Change) {
    let object = change.object();
    let of = uid(object).to_owned();
    let Some(before) = change.before.as_deref() else { return observer.violation("S5: the operator created a Computer".to_owned()) };
    let (held, holds_now) = (holds(before), change.after.as_deref().is_some_and(holds));
    if held && !holds_now {
        released(observer, state, &of, change.actor, deleting(before));
    }
    if !held && holds_now && deleting(before) {
        observer.violation(format!("S8: the finalizer was added to {of}, which is being deleted"));
    }
    let dying = observer.fates.get(&of).is_some_and(|f| f.dying.is_some());
    let ttl = at(object, "/spec/timeToLiveSeconds").is_some();
    if deleting(object) && !deleting(before) && state.get("namespaces", "", namespace(object)).is_some_and(|n| !deleting(n)) {
        times::ended(observer, state, before);
    }
    times::false_deadline(observer, object);
    if let (None, Some(reason)) = (blocked(before), blocked(object)) {
        observer.blocked_again(&of, reason);
    }
    let says = text(object, "/status/phase") == Some("Deleting") && text(before, "/status/phase") != Some("Deleting");
    if says && !dying && !ttl {
        observer.violation(format!("S4: the status of {of} says that it is being deleted, and it is not"));
    }
}

/// The reason of the condition `Blocked`.
fn blocked(computer: &Value) -> Option<&str> {
    let conditions = at(computer, "/status/conditions").and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|c| text(c, "/type") == Some("Blocked"))?;
    text(found, "/reason")
}

/// S3: every object of this computer is gone, its key is revoked, and its receipt is stored.
fn released(observer: &mut Observer, state: &State, of: &str, by: Actor, in_order: bool) {
    let mut broken = Vec::new();
    let record = record(state, of);
    let deletion = record.as_ref().and_then(|r| r.spec.state.deletion.clone());
    let handed_off = deletion.as_ref().is_some_and(|d| d.handed_off);
    if handed_off {
        broken.extend(wrong_hand_off(observer, state, of));
    }
    for kind in ["pods", "persistentvolumeclaims", "secrets"] {
        for object in state.all(kind).filter(|v| observer.owner(uid(v)).is_some_and(|c| c == of)) {
            if (namespace(object) != SYSTEM || !handed_off) && !observer.came_late(by, kind, object) {
                broken.push(format!("{kind} {} is still there", name(object)));
            }
        }
    }
    let goes = |v: &Value| state.disks.get(uid(v)).is_some_and(|d| d.computer.as_deref() == Some(of) && !d.retained);
    if state.all("persistentvolumes").any(|v| goes(v)) && !handed_off && !overridden(state, of, SkippableStep::DeleteVolumes) {
        broken.push("its volume still exists".to_owned());
    }
    if !in_order {
        broken.push("it is not being deleted".to_owned());
    }
    match record {
        None => broken.push("it has no record".to_owned()),
        Some(r) if r.spec.state.credential != CredentialState::Revoked => broken.push("its key is not revoked".to_owned()),
        Some(_) if handed_off => {}
        Some(_) if deletion.is_none_or(|d| d.receipt.is_none()) => broken.push("no receipt is on record".to_owned()),
        Some(_) => broken.extend(receipt(observer, state, of)),
    }
    for why in broken {
        observer.violation(format!("S3: {of} was released although {why}"));
    }
}

/// What is wrong with a hand-off. It is allowed only by the class, in a namespace that is being deleted, with the home in custody.
fn wrong_hand_off(observer: &Observer, state: &State, of: &str) -> Option<String> {
    let fate = observer.fates.get(of)?;
    let going = state.get("namespaces", "", &fate.namespace).is_none_or(|n| deleting(n));
    if !fate.promised.hand_off || !going {
        return Some("its class does not allow a hand-off".to_owned());
    }
    let home = state.all("persistentvolumes").find(|v| state.disks.get(uid(v)).is_some_and(|d| d.computer.as_deref() == Some(of)))?;
    let kept = text(home, "/spec/claimRef/namespace") == Some(SYSTEM) || observer.archive(of).is_some();
    let on_record = record(state, of).is_some_and(|r| r.spec.state.children.volume.as_ref().is_some_and(|v| v.uid == uid(home)));
    (on_record && !kept).then(|| "its home was left in the namespace".to_owned())
}

/// What is wrong with the receipt. It must name this computer, every step, and the override that skipped a step (S11).
pub fn receipt(observer: &Observer, state: &State, of: &str) -> Option<String> {
    let Some(receipt) = observer.receipt(of) else {
        return (!overridden(state, of, SkippableStep::WriteReceipt)).then(|| "no receipt is stored".to_owned());
    };
    if text(&receipt, "/computer/uid") != Some(of) || text(&receipt, "/deletedAt").is_none() {
        return Some(format!("its receipt is that of another computer: {receipt}"));
    }
    let steps = receipt["steps"].as_array().cloned().unwrap_or_default();
    // The receipt is written before its own step is finished.
    for id in DeletionStep::ALL.iter().filter(|step| **step != DeletionStep::WriteReceipt).map(|step| step.id()) {
        let Some(step) = steps.iter().find(|s| s["step"] == id) else { return Some(format!("its receipt does not contain {id}")) };
        let by = text(step, "/detail").unwrap_or_default();
        let named = by.contains("by DeletionOverride") || by.contains("BestEffort");
        if step["result"] == "Skipped" && !named {
            return Some(format!("its receipt does not name the override that skipped {id}: {by}"));
        }
    }
    times::of_receipt(observer, state, of, &receipt)
}

/// S9: a record never loses a fact.
fn of_record(observer: &mut Observer, change: &Change) {
    let Some(after) = change.after.as_deref() else { return };
    let Some(before) = change.before.as_deref() else { return };
    let of = name(after).to_owned();
    let parse = |v: &Value| serde_json::from_value::<ComputerRecord>(v.clone()).map(|r| r.spec.state).ok();
    let (Some(old), Some(new)) = (parse(before), parse(after)) else { return };
    let stored = observer.receipt(&of);
    let mut broken = Vec::new();
    if old.credential == CredentialState::Revoked && new.credential != CredentialState::Revoked {
        broken.push("its revoked credential became valid again".to_owned());
    }
    let rank = |p: RecordPhase| match p {
        RecordPhase::Live => 0,
        RecordPhase::Deleting => 1,
        RecordPhase::Released => 2,
    };
    if rank(new.phase) < rank(old.phase) {
        broken.push(format!("its phase went from {:?} to {:?}", old.phase, new.phase));
    }
    // The former claim may change: a home whose claim was deleted by hand gets another one.
    let home = |v: Option<VolumeRecord>| v.map(|v| VolumeRecord { former_claim_uid: None, ..v });
    let (before, after) = (home(old.children.volume), home(new.children.volume));
    if before.is_some() && after != before {
        broken.push("its volume changed".to_owned());
    }
    match (old.deletion, new.deletion) {
        (Some(_), None) => broken.push("its deletion is no longer recorded".to_owned()),
        (Some(old), Some(new)) => broken.extend(lost_of_deletion(&old, &new, stored.as_ref())),
        (None, _) => {}
    }
    for why in broken {
        observer.violation(format!("S9: the record of {of}: {why}"));
    }
}

/// The facts that a recorded deletion has lost. `stored` is the receipt in the store.
fn lost_of_deletion(old: &Deletion, new: &Deletion, stored: Option<&Value>) -> Vec<String> {
    let changed = |step: &&DeletionStep| {
        let (before, after) = (old.steps.get(**step), new.steps.get(**step));
        let replaced = before.is_some() && after != before;
        replaced && !(new.receipt.is_some() && receipted(stored, step.id(), after))
    };
    let steps = DeletionStep::ALL.iter().filter(changed).map(|step| format!("step {} changed after it was finished", step.id()));
    let attempt = |d: &Deletion| d.custody.as_ref().map_or(0, |c| c.attempt);
    let others = [
        (old.archive.is_some() && old.archive != new.archive, "its archive changed"),
        (old.receipt.is_some() && old.receipt != new.receipt, "its receipt changed"),
        (old.handed_off && !new.handed_off, "the hand-off was undone"),
        (attempt(new) < attempt(old), "the number of archive attempts decreased"),
    ];
    steps.chain(others.into_iter().filter(|(lost, _)| *lost).map(|(_, what)| what.to_owned())).collect()
}

/// Whether the record says of a step what the stored receipt says: with two leaders, the receipt of the other one counts.
fn receipted(receipt: Option<&Value>, id: &str, outcome: Option<&StepOutcome>) -> bool {
    let step = receipt.and_then(|r| r["steps"].as_array()?.iter().find(|s| s["step"] == id)).cloned();
    let (Some(mut step), Some(outcome)) = (step, outcome) else { return false };
    step.as_object_mut().map(|s| s.remove("step"));
    serde_json::to_value(outcome).is_ok_and(|outcome| outcome == step)
}

/// S5 and S8 for what an operator creates, changes or deletes.
fn child(observer: &mut Observer, state: &State, change: &Change) {
    let object = change.object();
    let what = format!("{} {}/{}", change.kind, namespace(object), name(object));
    let Some(of) = observer.owner(uid(object)).cloned().or_else(|| adopted(observer, state, uid(object), name(object))) else {
        return observer.violation(format!("S5: the operator touched {what}, which it did not create"));
    };
    if change.before.is_some() {
        return;
    }
    if namespace(object) == SYSTEM && change.kind == "pods" {
        archive_instructions(observer, object, &of);
    }
    let Some(record) = record(state, &of) else { return observer.violation(format!("S5: {what} was created without a record")) };
    let children = &record.spec.state.children;
    let called = Some(name(object).to_owned());
    let recorded =
        children.claim_name == called || children.secret_name == called || children.pods.iter().any(|p| Some(&p.name) == called.as_ref());
    if namespace(object) != SYSTEM && !recorded {
        observer.violation(format!("S5: {what} was created before its name was on record"));
    }
    if namespace(object) != SYSTEM
        && let Some(observed) = observer.when_observed(&of, change.actor)
        && observed.elapsed() > PASS
    {
        observer.violation(format!("S8: {what} was created {} s after that replica observed the deletion", observed.elapsed().as_secs()));
    }
}

/// S1: a home's claim is deleted only while the reclaim policy keeps its volume.
fn unprotected(observer: &mut Observer, state: &State, change: &Change) {
    let object = change.object();
    let began = change.before.as_deref().is_some_and(|b| !deleting(b));
    if change.kind != "persistentvolumeclaims" || namespace(object) == SYSTEM || !began {
        return;
    }
    let of_claim = |v: &&std::sync::Arc<Value>| {
        text(v, "/spec/claimRef/uid") == Some(uid(object)) && text(v, "/spec/persistentVolumeReclaimPolicy") == Some("Delete")
    };
    let Some(volume) = state.all("persistentvolumes").find(of_claim).map(|v| uid(v).to_owned()) else { return };
    let seen = observer.reset.get(&volume).is_some_and(|at| at.elapsed() > SEEN);
    let wanted = observer.owner(uid(object)).and_then(|of| observer.fates.get(of)).is_some_and(|f| f.promised.archive != "None");
    if seen && wanted && observer.wanted == 0 {
        observer.violation(format!("S1: the claim {} was deleted although the policy of its volume was set to Delete", name(object)));
    }
}

/// S1: an archive pod gets the session paths of the class, and this computer.
fn archive_instructions(observer: &mut Observer, pod: &Value, of: &str) {
    let env = at(pod, "/spec/containers/0/env").and_then(Value::as_array).cloned().unwrap_or_default();
    let variable = |name: &str| env.iter().find(|e| e["name"] == name).and_then(|e| text(e, "/value")).unwrap_or_default().to_owned();
    let paths: Value = serde_json::from_str(&variable("SESSION_PATHS")).unwrap_or_default();
    let wanted = observer.fates.get(of).map(|f| f.promised.session_paths.clone());
    // A record that was lost and re-created has no paths: then the whole home is archived.
    if variable("COMPUTER_UID") != of || (wanted.as_ref() != Some(&paths) && paths != serde_json::json!([])) {
        observer.violation(format!("S1: {} archives {paths} of {}, not {wanted:?} of {of}", name(pod), variable("COMPUTER_UID")));
    }
}

/// The computer whose record names this object, without a UID or with this one.
fn adopted(observer: &mut Observer, state: &State, object: &str, called: &str) -> Option<String> {
    let fits = |name: Option<&String>, uid: Option<&String>| name.is_some_and(|n| n == called) && uid.is_none_or(|u| u == object);
    let of = state.all("computerrecords").find_map(|r| {
        let record = record(state, name(r))?;
        let children = &record.spec.state.children;
        let ours = fits(children.claim_name.as_ref(), children.claim_uid.as_ref())
            || fits(children.secret_name.as_ref(), children.secret_uid.as_ref())
            || children.retired_secret.as_ref().is_some_and(|s| fits(Some(&s.name), Some(&s.uid)))
            || children.pods.iter().any(|p| fits(Some(&p.name), p.uid.as_ref()));
        ours.then(|| name(r).to_owned())
    })?;
    observer.adopt(object, &of);
    Some(of)
}

/// S5: a volume is owned if its claim is, and only its custody may change.
fn volume(observer: &mut Observer, state: &State, change: &Change) {
    let (Some(before), Some(after)) = (change.before.as_deref(), change.after.as_deref()) else {
        return observer.violation(format!("S1: the operator created or destroyed volume {}", name(change.object())));
    };
    let holder = text(before, "/spec/claimRef/uid").unwrap_or_default();
    let called = text(before, "/spec/claimRef/name").unwrap_or_default();
    if !observer.owns(holder) && adopted(observer, state, holder, called).is_none() {
        // A custody claim that another client deleted: its name in the operator's namespace proves ownership.
        let ours = text(before, "/spec/claimRef/namespace") == Some(SYSTEM);
        let known =
            ours || text(before, "/metadata/labels/computer-operator.dev~1computer-uid").is_some_and(|c| observer.fates.contains_key(c));
        if !known {
            observer.violation(format!("S5: volume {} of claim {holder}, which is not owned, was changed", name(after)));
        }
    }
    let next = text(after, "/spec/claimRef/uid").unwrap_or_default();
    let custody = text(before, "/metadata/labels/computer-operator.dev~1computer-uid").map(|of| format!("home-{of}"));
    // Without a UID, the name must be that of this computer's custody claim, in the namespace where only the operator creates claims.
    let reserved = next.is_empty()
        && text(after, "/spec/claimRef/namespace") == Some(SYSTEM)
        && text(after, "/spec/claimRef/name").map(str::to_owned) == custody;
    if next != holder && !observer.owns(next) && !reserved {
        observer.violation(format!("S5: volume {} was bound to claim {next}, which is not owned", name(after)));
    }
}

/// S1: a home was destroyed, by any client.
pub fn destroyed(observer: &mut Observer, state: &State, volume: &Value) {
    let Some(disk) = state.disks.get(uid(volume)) else { return };
    let Some(of) = &disk.computer else { return };
    // An admin may do that. But no operator that has had the time to observe it may continue.
    if observer.reset.get(uid(volume)).is_some_and(|at| at.elapsed() < SEEN || observer.wanted > 0) {
        observer.lost.insert(uid(volume).to_owned());
        return;
    }
    let holder = text(volume, "/spec/claimRef/uid").unwrap_or_default();
    let protected = observer.fates.get(of).is_some_and(|f| f.was_live) || observer.claim_was_deleted_by_us(holder);
    let wanted = observer.fates.get(of).is_none_or(|f| observer.archive_due(&f.promised.archive));
    if !protected || !wanted || overridden(state, of, SkippableStep::ArchiveSessions) {
        return;
    }
    let expected = packed(disk.written).digests();
    match observer.archive(of) {
        None => observer.violation(format!("S1: the home of {of} was destroyed, and there is no archive")),
        Some(found) if found != expected => {
            observer.violation(format!(
                "S1: the home of {of} was destroyed, and its archive does not have the last content ({})",
                disk.written
            ));
        }
        Some(_) => {}
    }
}

/// S2: nothing is archived before the key is revoked and the deletion has begun.
pub fn archived(observer: &mut Observer, state: &State, of: &str) {
    let revoked = record(state, of).is_some_and(|r| r.spec.state.credential == CredentialState::Revoked);
    let dying = observer.fates.get(of).is_some_and(|f| f.dying.is_some());
    if !revoked || !dying {
        observer.violation(format!("S2: {of} was archived before its key was revoked (revoked: {revoked}, being deleted: {dying})"));
    }
}
