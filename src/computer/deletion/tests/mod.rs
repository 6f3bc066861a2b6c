//! The deletion plan against a small model of the cluster. With a crash at any request and with any state of the caches, S1, S2, S3 and S8
//! hold after every request, and the deletion ends (L1). These tests find errors of order; `tests/` tests a real cluster.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod best_effort;
mod disturbed;
mod held;
mod remembered;
mod spared_reads;
mod times;
mod too_large;
mod upgrade;
mod volumes;
mod world;

use serde_json::json;

use crate::computer::plan::plan;
use crate::computer::report::Next;
use crate::resources::reasons::Reason;
use crate::resources::*;
use world::{HOME, UID, World, from};

/// Where a run crashes: before or after the n-th request.
#[derive(Clone, Copy, Debug)]
enum Crash {
    Never,
    Before(u32),
    After(u32),
}

/// Runs until the deletion is complete; returns the world and the number of requests.
fn run(mut world: World, crash: Crash, cached: bool) -> (World, u32) {
    let mut requests = 0;
    for _ in 0..200 {
        let mut view = world.view(cached);
        loop {
            view.now = world.time();
            match plan(&view).next {
                Next::Do(action) => {
                    requests += 1;
                    if matches!(crash, Crash::Before(n) if n == requests) {
                        break;
                    }
                    let effect = world.apply(action);
                    world.check();
                    if matches!(crash, Crash::After(n) if n == requests) {
                        break;
                    }
                    view.absorb(effect);
                    assert!(requests < 2000, "no end: {:?}", plan(&view));
                }
                Next::Finished(_)
                    if world.computer.is_none() && world.record.as_ref().unwrap().spec.state.phase == RecordPhase::Released =>
                {
                    return (world, requests);
                }
                _ => break,
            }
        }
        world.others();
        if world.computer.is_some() {
            world.check();
        }
    }
    panic!("L1: the deletion did not end: {:?}", plan(&world.view(false)).report);
}

fn every_crash(world: &World) {
    for cached in [false, true] {
        let (end, requests) = run(world.clone(), Crash::Never, cached);
        for n in 1..=requests {
            for crash in [Crash::Before(n), Crash::After(n)] {
                let (other, _) = run(world.clone(), crash, cached);
                assert_eq!(other.volume, end.volume, "{crash:?}");
                assert_eq!(other.manifest, end.manifest, "{crash:?}");
            }
        }
    }
}

#[test]
fn a_crash_around_any_request_breaks_no_promise() {
    for policy in ["Delete", "Retain"] {
        for archive in [ArchivePolicy::Required, ArchivePolicy::BestEffort, ArchivePolicy::None] {
            every_crash(&World::new(policy, archive));
        }
    }
}

#[test]
fn a_terminating_namespace_starts_the_deletion() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.terminating = true;
    world.computer.as_mut().unwrap().metadata.deletion_timestamp = None;
    every_crash(&world);
}

#[test]
fn the_deletion_of_a_vanished_computer_continues_from_its_record() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.computer = None;
    let mut view = world.view(false);
    let mut record = world.record.clone().unwrap();
    // S3 is about the release by the operator; here an editor removed the finalizer.
    record.spec.state.deletion = None;
    for _ in 0..100 {
        while let Next::Do(action) = plan(&view).next {
            let effect = world.apply(action);
            view.absorb(effect);
        }
        world.others();
        view = world.view(false);
    }
    assert!(world.manifest && world.volume.is_none() && world.receipt.is_some() && world.secret.is_none());
    assert_eq!(world.record.unwrap().spec.state.deletion.unwrap().cause, Cause::ComputerVanished);
}

#[test]
fn hand_off_releases_the_namespace_and_the_deletion_continues_from_the_record() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.terminating = true;
    world.record.as_mut().unwrap().spec.snapshot.archive.on_namespace_deletion = OnNamespaceDeletion::HandOff;
    let (end, _) = run(world, Crash::Never, true);
    assert!(end.manifest && end.volume.is_none());
    assert!(end.record.unwrap().spec.state.deletion.unwrap().handed_off);
}

#[test]
fn the_number_of_writes_is_within_the_budget_of_the_design() {
    let (with_archive, _) = run(World::new("Delete", ArchivePolicy::Required), Crash::Never, true);
    let (without, _) = run(World::new("Delete", ArchivePolicy::None), Crash::Never, true);
    // PutReceipt goes to the store, not to the API server.
    assert!(with_archive.writes - 1 <= 16, "{} writes with archive", with_archive.writes - 1);
    assert!(without.writes - 1 <= 9, "{} writes without archive", without.writes - 1);
}

#[test]
fn an_override_skips_its_step_and_never_the_revocation() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.overrides = vec![from(
        json!({"metadata": {"name": "o"}, "spec": {"computer": {"namespace": "t", "name": "c", "uid": UID}, "skip": ["archive-sessions"], "reason": "the store burnt down"}}),
    )];
    let (end, _) = run(world, Crash::Never, true);
    assert!(!end.manifest && end.volume.is_none() && end.secret.is_none());
    let receipt = String::from_utf8(end.receipt.unwrap()).unwrap();
    assert!(receipt.contains("the store burnt down"), "{receipt}");
}

#[test]
fn a_volume_of_another_claim_is_not_changed() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.volume.as_mut().unwrap().spec.as_mut().unwrap().claim_ref.as_mut().unwrap().uid = Some("another-claim".into());
    let before = world.volume.clone();
    for _ in 0..20 {
        let mut view = world.view(true);
        while let Next::Do(action) = plan(&view).next {
            let effect = world.apply(action);
            view.absorb(effect);
        }
        world.others();
    }
    assert_eq!(world.volume, before, "S5");
    assert!(world.computer.is_some(), "not released");
}

/// L2: a finalizer of another controller is reported and not removed.
#[test]
fn a_foreign_finalizer_is_reported_and_not_removed() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let claim = ("t".to_owned(), HOME.to_owned());
    world.claims.get_mut(&claim).unwrap().metadata.finalizers =
        Some(vec!["kubernetes.io/pvc-protection".into(), "theirs.example/keep".into()]);
    let mut last = None;
    for _ in 0..20 {
        let mut view = world.view(true);
        while let Next::Do(action) = plan(&view).next {
            let effect = world.apply(action);
            view.absorb(effect);
        }
        last = plan(&view).report.blocker;
        // The finalizer of pvc-protection is removed, the foreign one is not.
        let kept = world.claims.get(&claim).cloned();
        world.others();
        world.claims.extend(kept.map(|c| (claim.clone(), c)));
    }
    let blocker = last.expect("blocked");
    assert!(blocker.reason == Reason::ClaimHeld && blocker.message.contains("theirs.example/keep"), "{blocker:?}");
}

/// S1: the computer is deleted between the binding of its volume and its recording.
#[test]
fn a_volume_that_is_bound_but_not_recorded_is_protected_before_its_claim_is_deleted() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.record.as_mut().unwrap().spec.state.children.volume = None;
    let volume = world.volume.as_mut().unwrap();
    volume.metadata.labels = None;
    volume.metadata.annotations = None;
    volume.metadata.resource_version = Some("1".into());
    volume.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Delete".into());
    every_crash(&world);
    let (end, _) = run(world, Crash::Never, false);
    assert!(end.manifest && end.volume.is_none());
}

/// C7: after 30 days the time until the record's expiry was zero, and the reconcile was repeated without a pause.
#[test]
fn a_computer_with_a_foreign_finalizer_is_never_reconciled_without_a_pause() {
    let (mut world, _) = run(World::new("Delete", ArchivePolicy::None), Crash::Never, true);
    let metadata = json!({"name": "c", "namespace": "t", "uid": UID, "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x/y"]});
    world.computer = Some(from(json!({"metadata": metadata, "spec": {}})));
    world.now += 31 * 86_400;
    let mut view = world.view(false);
    let end = loop {
        match plan(&view).next {
            Next::Do(action) => {
                let effect = world.apply(action);
                view.absorb(effect);
            }
            end => break end,
        }
    };
    assert!(matches!(end, Next::Finished(Some(wait)) if wait >= std::time::Duration::from_secs(60)), "{end:?}");
}
