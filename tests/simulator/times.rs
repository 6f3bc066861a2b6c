//! Checks of times, by the simulated clock: when and why a computer is deleted, reported deadlines, and the order of times in a receipt.

use std::time::Duration;

use computer_operator::resources::steps::{DeletionStep, Sequence, StepResult};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::State;
use crate::api::value::{at, text, uid};
use crate::checks::record;
use crate::observer::Observer;

/// How far an operator's time may differ: timestamps have whole seconds.
const SECOND: i64 = 1;
/// The default class's deadline for deleting a volume.
const DELETE_VOLUMES: Duration = Duration::from_secs(600);

fn time(value: &Value, pointer: &str) -> Option<Timestamp> {
    text(value, pointer)?.parse().ok()
}

/// S4: the operator itself deletes a computer. Its time to live in the API server must have expired, and the reason must be in the record.
pub fn ended(observer: &mut Observer, state: &State, before: &Value) {
    let of = uid(before).to_owned();
    let ttl = at(before, "/spec/timeToLiveSeconds").and_then(Value::as_i64);
    let age = time(before, "/metadata/creationTimestamp").map(|created| state.now().duration_since(created).as_secs());
    let over = ttl.zip(age).is_some_and(|(ttl, age)| age + SECOND >= ttl);
    let protected = at(before, "/spec/deletionProtection").and_then(Value::as_bool) == Some(true);
    if !over || protected {
        return observer.violation(format!("S4: the operator deleted {of} without a reason: time to live {ttl:?} s, age {age:?} s"));
    }
    let Some(record) = record(state, &of) else { return };
    match (&record.spec.state.ending, observer.fates.get_mut(&of)) {
        (Some(ending), Some(fate)) => fate.ended = Some(ending.cause.as_str().to_owned()),
        _ => observer.violation(format!("S4: the operator deleted {of}, and the reason is not in the record")),
    }
}

/// L2: a step is reported as overdue only after its deadline. A volume is deleted after its archive is complete, never before. An operator
/// whose clock jumps an hour ahead cannot know better; in the process `runtime::clock` corrects such a clock.
pub fn false_deadline(observer: &mut Observer, computer: &Value) {
    let said = |c: &&Value| c["type"] == "Blocked" && c["status"] == "True" && c["reason"] == "VolumeNotDeleted";
    let conditions = at(computer, "/status/conditions").and_then(Value::as_array);
    if !conditions.is_some_and(|all| all.iter().any(|c| said(&c))) {
        return;
    }
    let archived = observer.fates.get(uid(computer)).and_then(|fate| fate.archived);
    if let Some(archived) = archived.filter(|at| at.elapsed() < DELETE_VOLUMES && observer.clock_ahead.is_none()) {
        let what =
            format!("L2: the volume of {} is reported as overdue {} s after its archive", uid(computer), archived.elapsed().as_secs());
        observer.violation(what);
    }
}

/// What is wrong with the times and the cause of a receipt. The times must be in order, and the record must have the same.
pub fn of_receipt(observer: &Observer, state: &State, of: &str, receipt: &Value) -> Option<String> {
    let mut last = time(receipt, "/deletedAt")?;
    let mut verified = false;
    for step in receipt["steps"].as_array().into_iter().flatten() {
        let (id, at) = (text(step, "/step")?, time(step, "/at")?);
        // A verified archive takes some time after the pods have stopped, and the volume some time after the archive.
        let archive = id == DeletionStep::ArchiveSessions.id() && step["result"] == json!(StepResult::Verified);
        if at < last || (at == last && (archive || verified)) {
            return Some(format!("its receipt says that {id} ended at {at}, and the step before it at {last}"));
        }
        (last, verified) = (at, archive);
    }
    if time(receipt, "/writtenAt")? < last {
        return Some(format!("its receipt was written before {last}"));
    }
    let record = record(state, of)?;
    let deletion = record.spec.state.deletion.as_ref()?;
    // A Computer whose finalizer was removed can vanish before the operator sees its own deletion of it.
    let fate = observer.fates.get(of);
    let vanished = fate.is_some_and(|fate| fate.stripped) && text(receipt, "/cause") == Some("ComputerVanished");
    let cause = fate.and_then(|fate| fate.ended.clone()).filter(|_| !vanished);
    if cause.is_some_and(|cause| text(receipt, "/cause") != Some(&cause)) || text(receipt, "/cause") != Some(deletion.cause.as_str()) {
        return Some(format!("its receipt has the cause {}", receipt["cause"]));
    }
    // Two leaders may each have observed the end of a handed-off deletion at different times.
    if deletion.handed_off || deletion.receipt.is_none() {
        return None;
    }
    if !deletion.started.is_empty() {
        return Some(format!("its finished record says that {:?} are in progress", deletion.started));
    }
    let recorded = serde_json::to_value(&deletion.steps).ok()?;
    let other = receipt["steps"].as_array()?.iter().find(|step| recorded[text(step, "/step").unwrap_or_default()]["at"] != step["at"])?;
    Some(format!("its receipt says {other}, and its record says {recorded}"))
}
