//! Deletions that an older version of the operator started.

use jiff::Timestamp;
use serde_json::{Value, json};

use self::record_of_b296e59::record_of_b296e59;
use super::world::{HOME, MACHINE, OWN, UID, World, from};
use super::{Crash, run};
use crate::computer::action::Action;
use crate::computer::plan::plan;
use crate::computer::report::Next;
use crate::resources::steps::{DeletionStep, Sequence, StepResult};
use crate::resources::*;

#[path = "../../../../api/src/spelling_tests/record_of_b296e59.rs"]
mod record_of_b296e59;

/// The record as b296e59 wrote it when this many steps were finished, and a matching cluster.
fn stored(finished: usize, mut state: Value) -> World {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let record = world.record.as_ref().unwrap();
    state["children"] = serde_json::to_value(&record.spec.state.children).unwrap();
    world.record = Some(from(json!({"metadata": {"name": UID, "namespace": OWN}, "spec": {"namespace": "t", "computer": "c",
        "snapshot": {"archive": {"policy": "Required", "unreadableFiles": "Record", "onNamespaceDeletion": "Wait"},
            "deadlines": {"stopPodsSeconds": 600, "archiveSessionsSeconds": 3600, "deleteVolumesSeconds": 600}},
        "state": state}})));
    if finished >= 1 {
        world.secret = None;
    }
    if finished >= 2 {
        world.pods.remove(&("t".to_owned(), MACHINE.to_owned()));
        world.claims.remove(&("t".to_owned(), HOME.to_owned()));
    }
    world.manifest = finished >= 3;
    if finished >= 4 {
        world.volume = None;
    }
    world
}

/// An upgrade with a deletion in each step: the deletion is completed, and what the old version recorded is kept.
#[test]
fn a_deletion_that_b296e59_started_is_completed() {
    for finished in 0..DeletionStep::ALL.len() {
        let old = record_of_b296e59(finished);
        let (end, _) = run(stored(finished, old.clone()), Crash::Never, true);
        let record = serde_json::to_value(&end.record.unwrap().spec.state.deletion).unwrap();
        assert!(end.manifest && end.volume.is_none() && end.secret.is_none(), "{finished}: {record}");
        let receipt: Value = serde_json::from_slice(&end.receipt.unwrap()).unwrap();
        assert_eq!(receipt["steps"].as_array().unwrap().len(), DeletionStep::ALL.len() - 1, "{finished}: {receipt}");
        for (id, outcome) in old["deletion"]["steps"].as_object().unwrap() {
            let at = |value: &Value| from::<Timestamp>(value["at"].clone());
            let now = &record["steps"][id];
            assert_eq!((&now["result"], at(now)), (&outcome["result"], at(outcome)), "{finished}: {id}");
        }
    }
}

/// A deletion in progress keeps the start time of its step across an upgrade.
#[test]
fn an_upgrade_does_not_restart_the_deadline_of_a_step() {
    let world = stored(3, record_of_b296e59(3));
    let view = world.view(true);
    let started = |plan: &crate::computer::report::Plan| plan.report.deletion[3].started_at.clone().unwrap();
    let current = plan(&view);
    assert_eq!(started(&current).0.as_second(), 1_795_773_607);
    if let Next::Do(Action::SaveRecord(record)) = current.next {
        assert!(record.spec.state.deletion.unwrap().started.get(DeletionStep::DeleteVolumes).is_some());
    }
}

/// After a rollback: a result that only a newer version understands is no result. The step runs again, and protects the home first (S1).
#[test]
fn a_step_with_a_result_of_a_newer_version_runs_again() {
    for policy in [ArchivePolicy::Required, ArchivePolicy::BestEffort] {
        let mut state = record_of_b296e59(1);
        for step in [DeletionStep::StopPods, DeletionStep::ArchiveSessions] {
            state["deletion"]["steps"][step.id()] = json!({"result": "OfTomorrow", "detail": "", "at": "2026-11-27T10:00:03Z"});
        }
        let mut world = stored(1, state);
        world.record.as_mut().unwrap().spec.snapshot.archive.policy = policy;
        world.volume.as_mut().unwrap().spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Delete".into());
        let (end, _) = run(world, Crash::Never, true);
        let steps = end.record.unwrap().spec.state.deletion.unwrap().steps;
        assert!(end.manifest && end.volume.is_none(), "S1");
        for step in [DeletionStep::StopPods, DeletionStep::ArchiveSessions] {
            assert_eq!(steps.get(step).unwrap().result, StepResult::Verified, "{policy:?}: {}", step.id());
        }
    }
}
