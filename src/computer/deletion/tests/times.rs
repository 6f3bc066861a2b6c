//! Times: the deadline of a step counts from the start of that step, and the record and the receipt show the same order, the true one.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::disturbed::{archive_pod, pass};
use super::world::{UID, World, from};
use super::{Crash, run};
use crate::computer::action::{Action, Effect, Fact, Subject};
use crate::computer::memory::Latest;
use crate::computer::plan::plan;
use crate::computer::report::{Next, Plan};
use crate::resources::reasons::Reason;
use crate::resources::*;

fn time(value: &Value) -> Timestamp {
    from(value.clone())
}

/// One reconcile of a process that remembers what it has observed, as the reconciler does.
pub(super) fn remembering(world: &mut World, latest: &Latest) -> Plan {
    let mut view = world.view(true);
    latest.freshen(&mut view);
    let last = loop {
        view.now = world.time();
        let current = plan(&view);
        view.remember(&current.report);
        let Next::Do(action) = &current.next else { break current };
        let effect = world.apply(action.clone());
        view.absorb(effect);
    };
    latest.note_passed(&view, &last.report);
    world.others();
    last
}

/// The stored receipt, the times of its steps by id, and the deletion in the record.
fn written(world: &World) -> (Value, Vec<(String, Timestamp)>, Value) {
    let receipt: Value = serde_json::from_slice(world.receipt.as_ref().expect("a receipt")).unwrap();
    let steps = receipt["steps"].as_array().unwrap();
    let times = steps.iter().map(|s| (s["step"].as_str().unwrap().to_owned(), time(&s["at"]))).collect();
    let record = serde_json::to_value(&world.record.as_ref().unwrap().spec.state.deletion).unwrap();
    (receipt, times, record)
}

/// Asserts the order of all times in a receipt and its record.
fn ordered(world: &World, what: &str) {
    let (receipt, times, record) = written(world);
    let mut last = time(&receipt["deletedAt"]);
    for (step, at) in &times {
        assert!(*at >= last, "{what}: {step} ended at {at}, before {last}: {receipt}");
        last = *at;
        assert_eq!(
            record["steps"][step]["at"],
            receipt["steps"].as_array().unwrap().iter().find(|s| s["step"] == **step).unwrap()["at"],
            "{what}: {step}"
        );
    }
    assert!(time(&receipt["writtenAt"]) >= last, "{what}: {receipt}");
    assert!(time(&record["receipt"]["at"]) >= time(&receipt["deletedAt"]), "{what}: {record}");
    assert!(record.get("started").is_none(), "{what}: a finished record has a current step: {record}");
}

/// L2, observed on a real cluster: a deletion that had been blocked for 13 minutes reported "its provisioner has not removed it" two seconds
/// after the volume's policy was restored.
#[test]
fn a_step_that_was_blocked_does_not_shorten_the_deadline_of_the_next_one() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let now = world.time();
    world.computer.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(now));
    world.no_archive = true;
    archive_pod(&mut world);
    world.now += 13 * 60;
    pass(&mut world);
    world.no_archive = false;
    let mut lingers = 3;
    for _ in 0..30 {
        let before = world.volume.clone();
        let blocker = pass(&mut world).report.blocker;
        assert_ne!(blocker.as_ref().map(|b| b.reason), Some(Reason::VolumeNotDeleted), "{blocker:?}");
        // The provisioner needs some time.
        if let Some(mut volume) = before.filter(|_| world.volume.is_none() && lingers > 0) {
            volume.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Delete".to_owned());
            world.volume = Some(volume);
            lingers -= 1;
        }
    }
    assert_eq!(lingers, 0);
    assert!(world.computer.is_none(), "L1");
}

/// The same after a node did not respond for that long and no archive is wanted, and for the previous step.
#[test]
fn a_pod_that_stopped_late_does_not_shorten_the_deadline_of_the_volume() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    let now = world.time();
    world.computer.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(now));
    world.node_lost = true;
    pass(&mut world);
    world.now += 13 * 60;
    pass(&mut world);
    world.node_lost = false;
    for _ in 0..30 {
        let blocker = pass(&mut world).report.blocker;
        assert!(blocker.as_ref().is_none_or(|b| b.reason != Reason::VolumeNotDeleted), "{blocker:?}");
    }
    assert!(world.computer.is_none(), "L1");
}

/// The authoritative copy must show S1: the archive was verified, then the volume was deleted, then the receipt was written.
#[test]
fn the_receipt_shows_that_the_archive_was_verified_before_the_volume_was_deleted() {
    for policy in [ArchivePolicy::Required, ArchivePolicy::None] {
        let (mut world, latest) = (World::new("Delete", policy), Latest::default());
        world.record.as_mut().unwrap().metadata.resource_version = Some("1".to_owned());
        for _ in 0..60 {
            remembering(&mut world, &latest);
        }
        ordered(&world, "undisturbed");
        let (receipt, times, _) = written(&world);
        let at = |step: &str| times.iter().find(|(id, _)| id == step).unwrap().1;
        assert!(at("stop-pods") < at("delete-volumes"), "{receipt}");
        if policy == ArchivePolicy::Required {
            assert!(at("stop-pods") < at("archive-sessions") && at("archive-sessions") < at("delete-volumes"), "{receipt}");
        }
    }
}

/// A crash between the receipt and the record must not make them differ, and a clock that is behind must not change their order.
#[test]
fn the_receipt_and_the_record_are_equal_after_a_crash() {
    let world = World::new("Delete", ArchivePolicy::Required);
    let (_, requests) = run(world.clone(), Crash::Never, true);
    for n in 1..=requests {
        for crash in [Crash::Before(n), Crash::After(n)] {
            let (end, _) = run(world.clone(), crash, true);
            ordered(&end, &format!("{crash:?}"));
        }
    }
}

/// Found by the simulator (moves, two leaders): the other leader's receipt was stored first and has other times.
#[test]
fn the_receipt_of_another_leader_replaces_the_recorded_times() {
    let world = World::new("Delete", ArchivePolicy::None);
    let (end, _) = run(world.clone(), Crash::Never, true);
    let mut receipt: Value = serde_json::from_slice(end.receipt.as_ref().unwrap()).unwrap();
    let later = receipt["steps"][1]["at"].clone();
    assert_ne!(receipt["steps"][0]["at"], later);
    receipt["steps"][0]["at"] = later;
    let (end, _) = run(World { receipt: Some(serde_json::to_vec(&receipt).unwrap()), ..world }, Crash::Never, true);
    ordered(&end, "the receipt of another leader");
    let (_, _, record) = written(&end);
    assert!(record["steps"]["revoke-credentials"].get("step").is_none(), "{record}");
}

/// Observed on a real cluster: keys were revoked up to a second before `deletedAt`, because the operator's time was behind.
#[test]
fn no_step_ends_before_the_deletion_starts() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    let later = Timestamp::from_second(world.now + 7200).unwrap();
    world.computer.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(later));
    let (end, _) = run(world, Crash::Never, true);
    ordered(&end, "a clock that is two hours behind");
    let (_, times, _) = written(&end);
    assert_eq!(times[0].1, later);
}

/// The cause of a deletion that the operator started is the recorded one, whatever the clock says later.
#[test]
fn the_recorded_cause_counts() {
    let cause = |ttl: Value, ending: Value, now: i64| {
        let mut world = World::new("Delete", ArchivePolicy::None);
        let computer = world.computer.as_mut().unwrap();
        computer.metadata.creation_timestamp = Some(from(json!("2025-12-31T23:59:00Z")));
        computer.spec.time_to_live_seconds = from(ttl);
        world.now = now;
        let mut record = serde_json::to_value(world.record.as_ref().unwrap()).unwrap();
        record["spec"]["state"]["ending"] = ending;
        world.record = from(record);
        pass(&mut world);
        world.record.unwrap().spec.state.deletion.unwrap().cause
    };
    let ours = json!({"cause": "TimeToLiveExpired", "at": "2026-01-01T00:00:00.000000Z"});
    // In the reconcile that starts the deletion the time to live has expired; in the next one it has not.
    let behind = 1_767_225_600 - 30;
    assert_eq!(cause(json!(60), ours.clone(), behind), Cause::TimeToLiveExpired);
    // A tenant deleted it long ago; the operator was down until its time to live had expired too.
    let late = 1_767_225_600 + 7200;
    assert_eq!(cause(json!(3600), json!(null), late), Cause::ComputerDeleted);
    // The operator deleted it and crashed, and the time to live was extended before the next one started.
    assert_eq!(cause(json!(604_800), ours, late), Cause::TimeToLiveExpired);
    // The time to live was extended after the reason was recorded, then a tenant deleted the computer.
    let before = json!({"cause": "TimeToLiveExpired", "at": "2025-12-31T23:59:50.000000Z"});
    assert_eq!(cause(json!(604_800), before, late), Cause::ComputerDeleted);
}

/// Found by the simulator (down, `Expiring`): the namespace was deleted while the operator was down, after the computer had been.
#[test]
fn the_deletion_that_came_first_is_the_cause() {
    let cause = |computer: &str, namespace: &str, ending: bool| {
        let mut world = World::new("Delete", ArchivePolicy::None);
        world.terminating = true;
        world.computer.as_mut().unwrap().metadata.deletion_timestamp = Some(from(json!(computer)));
        world.computer.as_mut().unwrap().metadata.creation_timestamp = Some(from(json!("2025-12-31T23:00:00Z")));
        if ending {
            world.computer.as_mut().unwrap().spec.time_to_live_seconds = Some(60);
            world.record.as_mut().unwrap().spec.state.ending = Some(from(json!({"cause": "TimeToLiveExpired", "at": computer})));
        }
        let mut view = world.view(false);
        let live = json!({"metadata": {"name": "team", "deletionTimestamp": namespace}, "status": {"phase": "Terminating"}});
        view.absorb(Effect::Learned(Subject::Namespace { name: view.namespace.clone() }, Fact::Namespace(Box::new(from(live)))));
        while let Next::Do(action) = plan(&view).next {
            if let Action::SaveRecord(record) = &action
                && let Some(deletion) = &record.spec.state.deletion
            {
                return deletion.cause.clone();
            }
            let effect = world.apply(action);
            view.absorb(effect);
        }
        panic!("no deletion on record");
    };
    let (early, late) = ("2025-12-31T23:50:00Z", "2025-12-31T23:55:00Z");
    assert_eq!(cause(early, late, true), Cause::TimeToLiveExpired);
    assert_eq!(cause(early, late, false), Cause::ComputerDeleted);
    assert_eq!(cause(late, early, false), Cause::NamespaceTerminating);
    assert_eq!(cause(early, early, false), Cause::NamespaceTerminating);
    assert_eq!(cause(early, early, true), Cause::TimeToLiveExpired);
}

/// S3, S4: a namespace was deleted and re-created; the cache is stale, and the new Computer is being deleted.
#[test]
fn a_stale_namespace_in_the_cache_causes_no_hand_off() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    world.record.as_mut().unwrap().spec.snapshot.archive.on_namespace_deletion = OnNamespaceDeletion::HandOff;
    for _ in 0..40 {
        let mut view = world.view(true);
        view.namespace_terminating = true;
        while let Next::Do(action) = plan(&view).next {
            let stop = matches!(action, Action::PutReceipt(_));
            let effect = world.apply(action);
            view.absorb(effect);
            if stop {
                break;
            }
        }
        world.others();
    }
    let deletion = world.record.unwrap().spec.state.deletion.unwrap();
    assert!(!deletion.handed_off, "S3: handed off in a namespace that is not being deleted ({UID})");
    assert_eq!(deletion.cause, Cause::ComputerDeleted);
}
