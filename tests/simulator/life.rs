//! The simulated lives: how a computer is created, used and deleted, and what must be true at the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use computer_operator::resources::steps::{DeletionStep, StepResult};
use computer_operator::resources::{ComputerRecord, CredentialState, RecordPhase, SkippableStep, UID_LABEL};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::actors::archive::packed;
use crate::api::value::{at, deleting, label, name, text, uid};
use crate::api::{Actor, State};
use crate::checks::{overridden, receipt, record};
use crate::keys;
use crate::liveness::Watchdog;
use crate::moves::{self, BOX, Move, SYSTEM, TEAM};
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// Managed, archived, its volume deleted.
    Managed,
    /// The same with a volume whose policy is `Retain`.
    Retained,
    /// No archive is wanted.
    Unarchived,
    /// A machine that its user runs.
    Byom,
    /// Its namespace is deleted.
    Namespace,
    /// The same with a hand-off: the namespace is released before the end.
    HandOff,
    /// The store is down permanently; an admin creates an override.
    Override,
    /// Its time to live expires.
    Expiring,
    /// The archive is not required, but it is possible: it must be written nevertheless.
    BestEffort,
    /// The archive is not required, and the store is down permanently: the archive is given up.
    GivenUp,
    /// Its user deletes the key's Secret while it is used, and later rotates the key: it gets another key each time.
    LostKey,
}

impl Life {
    pub const ALL: [Self; 11] = [
        Self::Managed,
        Self::Retained,
        Self::Unarchived,
        Self::Byom,
        Self::Namespace,
        Self::HandOff,
        Self::Override,
        Self::Expiring,
        Self::BestEffort,
        Self::GivenUp,
        Self::LostKey,
    ];

    /// The class of its computers.
    pub fn class(self) -> Value {
        let mut class = json!({"podTemplate": {"spec": {"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 10}},
            "sessionPaths": [".claude/projects"], "storage": {"size": "1Gi"}, "archive": {"policy": "Required"}});
        match self {
            Self::Retained => class["storage"]["storageClassName"] = json!("retain"),
            Self::Unarchived => class["archive"]["policy"] = json!("None"),
            Self::HandOff => class["archive"]["onNamespaceDeletion"] = json!("HandOff"),
            Self::BestEffort | Self::GivenUp => {
                class["archive"]["policy"] = json!("BestEffort");
                class["deadlines"] = json!({"archiveSessionsSeconds": 600});
            }
            _ => {}
        }
        class
    }

    pub fn spec(self) -> Value {
        match self {
            Self::Byom => json!({"provider": "BYOM"}),
            Self::Expiring => json!({"timeToLiveSeconds": 50}),
            _ => json!({}),
        }
    }

    fn end(self) -> Move {
        if matches!(self, Self::Namespace | Self::HandOff) { Move::DeleteNamespace } else { Move::Delete }
    }
}

/// From any state, a deletion with healthy dependencies ends within this time (L1).
pub const BOUND: Duration = Duration::from_secs(45 * 60);
/// A computer that its time to live has not deleted by then is deleted by its tenant.
const LONGEST: Duration = Duration::from_secs(20 * 60);
/// A computer that is not active by then never will be, for a valid reason; it is deleted nevertheless.
const PATIENCE: Duration = Duration::from_secs(6 * 60);
/// No life takes this many requests.
pub const STORM: u64 = 1500;
/// After the end nothing is written for this long (L6).
const QUIET: Duration = Duration::from_secs(5 * 60);

/// A refused request is repeated within this time after it is no longer refused.
const OWED: Duration = Duration::from_secs(2 * 60);

/// Runs a life from the first request to the last and returns the broken promises.
pub async fn live(world: &World, life: Life) -> Vec<String> {
    if let Err(code) = begin(world, life) {
        return vec![format!("the first computer was refused: {code}")];
    }
    let mut ending = None;
    let begun = Instant::now();
    let mut changed = world.changes();
    let mut watchdog = Watchdog::default();
    // A fault after the end causes new work: wait for the end again.
    while !world.with(|s| over(s)) {
        while !world.with(|s| over(s)) {
            let _ = tokio::time::timeout(Duration::from_secs(5), changed.changed()).await;
            push(world, life, begun, &mut ending).await;
            // A promise is broken: the rest of the run adds nothing.
            if !world.with(|s| s.observer.violations().is_empty()) {
                return Vec::new();
            }
            if let Some(what) = watchdog.look(world).or_else(|| endless(world, begun)) {
                return vec![what];
            }
        }
        world.note("        -- over".to_owned());
        // What was refused until now is still owed: a life can be over before its fault is.
        let refused = world.faults().denied.as_ref().map(|(_, _, until)| *until + OWED);
        tokio::time::sleep_until(refused.unwrap_or(begun)).await;
        tokio::time::sleep(QUIET + Duration::from_secs(60)).await;
    }
    let mut wrong = world.with(|s| end_state(s));
    if life == Life::GivenUp {
        wrong.extend(world.with(|s| kept(s)));
    }
    let last = world.with(|s| s.observer.last_write.clone());
    if let Some((at, what)) = last.filter(|(at, _)| at.elapsed() < QUIET) {
        wrong.push(format!("L6: {what} was written {} s before the end", at.elapsed().as_secs()));
    }
    wrong
}

/// Creates the class and the computer. An error is the HTTP code of the refusal.
fn begin(world: &World, life: Life) -> Result<(), u16> {
    world.with(|s| {
        moves::furnish(s, &life.class());
        misdirected_override(s);
    });
    world.notify();
    let created = world.with(|s| moves::create_computer(s, Actor::Tenant, TEAM, BOX, &life.spec()));
    world.notify();
    created?;
    if matches!(life, Life::Override | Life::GivenUp) {
        world.with(|s| s.observer.store_dead = true);
        world.faults().store_down = Some(Instant::now() + Duration::from_secs(1_000_000));
    }
    Ok(())
}

/// Why a life that began at `begun` counts as one that never ends: too many requests or too much time.
fn endless(world: &World, begun: Instant) -> Option<String> {
    let seconds = begun.elapsed().as_secs();
    if world.counted() > STORM {
        return Some(format!("L6: request storm: {} requests in {seconds} s", world.counted()));
    }
    let late = world.with(|s| latest_death(s)).is_some_and(|at| at.elapsed() > BOUND);
    (late || begun.elapsed() > 3 * BOUND).then(|| format!("L1: not finished after {seconds} s: {}", world.with(|s| left(s))))
}

/// The tenant's and the admin's actions of the life.
async fn push(world: &World, life: Life, begun: Instant, ending: &mut Option<Instant>) {
    let computer = world.with(|s| s.get("computers", TEAM, BOX).cloned());
    if let Some(computer) = computer.filter(|c| !deleting(c)) {
        let active = matches!(text(&computer, "/status/phase"), Some("Active" | "Suspended"));
        let expires = at(&computer, "/spec/timeToLiveSeconds").is_some() && begun.elapsed() < LONGEST;
        let age = world.with(|s| s.observer.fates.get(uid(&computer)).map(|f| f.dying.is_some()));
        if age == Some(false) && !expires && (active || begun.elapsed() > PATIENCE) {
            // The computer is used for a while.
            tokio::time::sleep(Duration::from_secs(25)).await;
            // A computer that was suspended before its first start has a key that is not live yet.
            if life == Life::LostKey && world.with(|s| !keys::usable(s).is_empty()) {
                lose_key(world).await;
            }
            moves::perform(world, life.end());
            *ending = Some(Instant::now());
        }
    }
    let since = ending.map_or(begun, |e| e);
    if since.elapsed() > Duration::from_secs(120) {
        world.with(moves::uproot);
        world.notify();
    }
    let overridden: &[SkippableStep] = match life {
        Life::Override if since.elapsed() > Duration::from_secs(60) => &[SkippableStep::ArchiveSessions, SkippableStep::WriteReceipt],
        Life::GivenUp if since.elapsed() > Duration::from_secs(60) => &[SkippableStep::WriteReceipt],
        _ if world.with(|s| damaged(s)) => &[SkippableStep::ArchiveSessions, SkippableStep::WriteReceipt],
        _ => return,
    };
    world.with(|s| override_all(s, overridden));
    world.notify();
}

/// A key whose Secret was deleted is replaced within this time: the operator checks it every ten minutes.
const REPLACED: Duration = Duration::from_secs(25 * 60);

/// The user deletes the key's Secret and waits for another key, then rotates that one.
async fn lose_key(world: &World) {
    let first = world.with(|s| keys::usable(s));
    moves::perform(world, Move::DeleteSecrets);
    another_key(world, &first, "whose Secret was deleted").await;
    let second = world.with(|s| keys::usable(s));
    moves::perform(world, Move::RotateKey);
    if world.with(|s| !keys::usable(s).is_empty()) {
        world.with(|s| s.observer.violation("S2: a key authenticates after its rotation".to_owned()));
    }
    another_key(world, &second, "that was rotated").await;
}

/// Waits until the user has a key that is none of these.
async fn another_key(world: &World, former: &BTreeSet<String>, what: &str) {
    let (begun, mut changed) = (Instant::now(), world.changes());
    loop {
        let _ = tokio::time::timeout(Duration::from_secs(5), changed.changed()).await;
        let dying = world.with(|s| latest_death(s).is_some());
        let usable = world.with(|s| keys::usable(s)).difference(former).next().is_some();
        if usable && !dying && world.with(|s| s.observer.valid_keys(s)) > 1 {
            world.with(|s| s.observer.violation(format!("S2: a key {what} authenticates beside another one")));
        }
        if dying || usable || !world.with(|s| s.observer.violations().is_empty()) {
            return;
        }
        if begun.elapsed() > REPLACED {
            return world.with(|s| s.observer.violation(format!("a key {what} was not replaced")));
        }
    }
}

/// If the class says `BestEffort` and the store is down, the record says that the sessions were given up, and why.
fn kept(state: &State) -> Vec<String> {
    let mut wrong = Vec::new();
    for of in state.observer.fates.keys() {
        let Some(record) = record(state, of) else { continue };
        let spec = &record.spec;
        let step = spec.state.deletion.as_ref().and_then(|d| d.steps.get(DeletionStep::ArchiveSessions).cloned());
        // An admin overrides the archive of a volume that was destroyed.
        let why = |detail: &str| detail.contains("BestEffort") || (detail.contains("DeletionOverride") && !state.observer.lost.is_empty());
        let skipped = step.as_ref().is_some_and(|s| s.result == StepResult::Skipped && why(&s.detail));
        if spec.state.children.volume.is_some() && !skipped {
            wrong.push(format!("L1: the sessions of {of} were not given up: {step:?}"));
        }
    }
    wrong
}

/// Whether a deletion is blocked because the store has lost stored objects: nothing may be destroyed, so an admin must decide. The
/// Computer reports it; after a hand-off there is no Computer, and an alert reports it.
fn damaged(state: &State) -> bool {
    let said = |c: &std::sync::Arc<Value>| {
        let conditions = c["status"]["conditions"].to_string();
        conditions.contains("ArchiveDamaged") || (conditions.contains("VolumeLost") && !state.observer.lost.is_empty())
    };
    let handed_off = |of: &String| {
        let unfinished = |r: Arc<ComputerRecord>| r.spec.state.deletion.as_ref().is_some_and(|d| d.handed_off && d.receipt.is_none());
        state.observer.damaged(of) && record(state, of).is_some_and(unfinished)
    };
    state.all("computers").any(said) || state.observer.fates.keys().any(handed_off)
}

/// An admin gives up the archive that the unavailable store blocks.
fn override_all(state: &mut State, skip: &[SkippableStep]) {
    let dying: Vec<(String, String)> =
        state.observer.fates.iter().filter(|(_, f)| f.dying.is_some()).map(|(u, f)| (u.clone(), f.name.clone())).collect();
    for (uid, name) in dying {
        let spec = json!({"computer": {"namespace": TEAM, "name": name, "uid": uid}, "skip": skip, "reason": "the store burnt down"});
        let object = json!({"metadata": {"name": format!("give-up-{uid}")}, "spec": spec});
        let _ = state.create(Actor::Admin, "deletionoverrides", "", object, false);
    }
}

/// An override for another computer. It must not apply to the computer of the run (S11).
fn misdirected_override(state: &mut State) {
    let computer = json!({"namespace": TEAM, "name": BOX, "uid": "00000000-0000-0000-0000-000000000000"});
    let spec = json!({"computer": computer, "skip": ["stop-pods", "archive-sessions", "delete-volumes", "write-receipt"], "reason": "another one of that name"});
    let _ = state.create(Actor::Admin, "deletionoverrides", "", json!({"metadata": {"name": "misdirected"}, "spec": spec}), false);
}

fn latest_death(state: &State) -> Option<Instant> {
    if state.all("computers").any(|c| !deleting(c)) {
        return None;
    }
    state.observer.fates.values().filter_map(|f| f.dying).max()
}

/// Whether everything that must be deleted is gone.
fn over(state: &State) -> bool {
    let released = |u: &String| record(state, u).is_none_or(|r| r.spec.state.phase == RecordPhase::Released);
    let namespaces = state.all("namespaces").all(|n| !deleting(n));
    let wanted = state.observer.wanted == 0;
    state.all("computers").next().is_none()
        && wanted
        && namespaces
        && !state.observer.fates.is_empty()
        && state.observer.fates.keys().all(released)
}

pub fn left(state: &State) -> String {
    let mut all = Vec::new();
    for computer in state.all("computers") {
        all.push(format!("computer {} {}", name(computer), computer["status"]["conditions"]));
    }
    for (of, fate) in &state.observer.fates {
        if let Some(record) = record(state, of).filter(|r| r.spec.state.phase != RecordPhase::Released) {
            all.push(format!(
                "record {of} (dying: {}) {}",
                fate.dying.is_some(),
                serde_json::to_string(&record.spec.state).unwrap_or_default()
            ));
        }
    }
    for kind in ["namespaces", "pods", "persistentvolumeclaims", "persistentvolumes"] {
        for object in state.all(kind) {
            all.push(format!("{kind} {} {} {}", name(object), object["metadata"]["finalizers"], object["status"]["phase"]));
        }
    }
    all.join("\n  ")
}

/// What must be true of every computer that ever existed.
pub fn end_state(state: &State) -> Vec<String> {
    let mut wrong = Vec::new();
    for (of, fate) in &state.observer.fates {
        let owned: Vec<&String> = state.observer.owned_by(of).collect();
        for kind in ["pods", "persistentvolumeclaims", "secrets"] {
            for object in state.all(kind).filter(|v| owned.iter().any(|o| *o == uid(v))) {
                wrong.push(format!("S6: {kind} {} of {of} is left", name(object)));
            }
        }
        let Some(record) = record(state, of) else {
            if !owned.is_empty() {
                wrong.push(format!("S6: {of} had children and has no record"));
            }
            continue;
        };
        if record.spec.state.credential != CredentialState::Revoked {
            wrong.push(format!("S2: the key of {of} is still {:?}", record.spec.state.credential));
        }
        wrong.extend(receipt(&state.observer, state, of).map(|why| format!("S3: {of} is released, and {why}")));
        let lost = |volume: &String| state.observer.lost.contains(volume);
        for (volume, disk) in state.disks.iter().filter(|(v, d)| d.computer.as_ref() == Some(of) && !lost(v)) {
            let there = state.by_uid("persistentvolumes", volume);
            let kept = |v: &Value| text(v, "/spec/persistentVolumeReclaimPolicy") == Some("Retain") && label(v, UID_LABEL).is_none();
            match there {
                Some(_) if !disk.retained => wrong.push(format!("S6: the volume of {of} is left")),
                Some(volume) if !kept(volume) => {
                    wrong.push(format!("S5: the volume of {of} differs from what its StorageClass provisioned"));
                }
                None if disk.retained => wrong.push(format!("S1: the volume of {of} is gone, but its StorageClass retains volumes")),
                _ => {}
            }
            let required = state.observer.archive_due(&fate.promised.archive);
            let on_record = record.spec.state.children.volume.as_ref().is_some_and(|v| v.uid == *volume);
            if required && on_record && !overridden(state, of, SkippableStep::ArchiveSessions) {
                let expected = packed(disk.written).digests();
                let found = state.observer.archive(of);
                if found.as_ref() != Some(&expected) {
                    wrong.push(format!("S1: the archive of {of} is {found:?}, the home was written {} times", disk.written));
                }
            }
        }
    }
    for kind in ["pods", "persistentvolumeclaims"] {
        for object in state.all(kind).filter(|v| crate::api::value::namespace(v) == SYSTEM) {
            wrong.push(format!("S6: {kind} {} is left in the operator's namespace", name(object)));
        }
    }
    wrong
}
