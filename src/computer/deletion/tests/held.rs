//! Promises that must hold while a deletion waits for others: a pod or a finalizer that keeps the claim, a node that comes back.

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::disturbed::{own_pass, skip};
use super::world::{World, from};
use crate::computer::action::{Action, Fact, Subject};
use crate::computer::plan::plan;
use crate::computer::report::Next;
use crate::resources::reasons::Reason;
use crate::resources::*;

/// A deletion whose pod is gone, and whose claim is kept by another client.
fn held() -> World {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let deleted = Some(Time(world.time()));
    world.claims.values_mut().for_each(|claim| claim.metadata.deletion_timestamp.clone_from(&deleted));
    world.pods.clear();
    let stopped = Some(Time(world.time().checked_sub(SignedDuration::from_secs(60)).unwrap()));
    world.record.as_mut().unwrap().spec.state.children.pods[0].stopped_at = stopped;
    world
}

fn next(world: &mut World) -> (Next, Option<Reason>) {
    let mut view = world.view(true);
    loop {
        let current = plan(&view);
        match current.next {
            Next::Do(action) if !matches!(action, Action::Retain { .. }) => view.absorb(world.apply(action)),
            next => return (next, current.report.blocker.map(|b| b.reason)),
        }
    }
}

/// S1: what keeps the claim may end at any time, and a volume that is not `Retain` is destroyed with it.
#[test]
fn a_policy_that_is_reset_while_another_client_keeps_the_claim_is_set_back() {
    let mut world = held();
    assert!(matches!(next(&mut world).0, Next::Wait(_)), "nothing is wrong yet");
    world.volume.as_mut().unwrap().spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Delete".to_owned());
    assert!(matches!(next(&mut world).0, Next::Do(Action::Retain { .. })));
}

/// S1: the same after an admin's patch that also removed the labels, by which the cache selects volumes.
#[test]
fn a_volume_that_is_no_longer_in_the_cache_is_read_live_while_its_claim_is_kept() {
    let mut world = held();
    let volume = world.volume.as_mut().unwrap();
    volume.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Delete".to_owned());
    (volume.metadata.labels, volume.metadata.annotations) = (None, None);
    let mut view = world.view(true);
    view.facts.remove(&Subject::volume("pv"));
    let mut actions = Vec::new();
    while let Next::Do(action) = plan(&view).next {
        actions.push(action.clone());
        if matches!(action, Action::Retain { .. }) {
            return;
        }
        view.absorb(world.apply(action));
    }
    panic!("S1: {actions:?}");
}

#[test]
fn a_volume_that_is_deleted_while_another_client_keeps_the_claim_is_reported() {
    let mut world = held();
    world.volume.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(world.time()));
    assert_eq!(next(&mut world).1, Some(Reason::VolumeBeingDeleted));
}

/// S1: a kubelet that was away kills the containers of a pod that is gone only after it is back, within their grace period.
#[test]
fn a_node_that_is_back_gets_the_time_to_kill_what_it_still_runs() {
    let mut world = held();
    world.claims.clear();
    let long_ago = Time(world.time().checked_sub(SignedDuration::from_hours(1)).unwrap());
    let pod = &mut world.record.as_mut().unwrap().spec.state.children.pods[0];
    (pod.stopped_at, pod.vanished_at) = (None, Some(long_ago));
    let node = pod.node.clone().unwrap();
    let after = |back: i64| {
        let mut view = world.view(true);
        let since = view.now.checked_sub(SignedDuration::from_secs(back)).unwrap();
        let status = json!({"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}]});
        let found: Node = from(json!({"metadata": {"name": node}, "status": status}));
        view.facts.insert(Subject::Node { name: node.clone() }, Fact::Node(Box::new(found)));
        view.facts.insert(Subject::claim("t", super::world::HOME), Fact::Gone);
        let mut world = world.clone();
        loop {
            let current = plan(&view);
            match current.next {
                Next::Do(
                    action
                    @ (Action::SaveRecord(_) | Action::Delete { .. } | Action::Patch { .. } | Action::Read(_) | Action::CheckArchive),
                ) => view.absorb(world.apply(action)),
                next => break (next, current.report.blocker.map(|b| b.reason)),
            }
        }
    };
    assert_eq!(after(10), (Next::Wait(Duration::from_secs(80)), None), "30 s of grace and 60 s");
    assert_eq!(after(-3600).1, Some(Reason::NodeUnreachable), "L2: the clock of the node is ahead, so nobody knows how long");
    assert_eq!(after(3600), (Next::Wait(Duration::from_secs(15)), None), "it was back long ago: only the volume controller is waited for");
}

/// S1: the node is lost, the claim is gone, and a `GitOps` tool sets the policy of the volume back: a reserved volume is not reclaimed.
#[test]
fn a_home_whose_claim_is_gone_is_reserved_before_its_node_is_waited_for() {
    let mut world = held();
    world.claims.clear();
    world.record.as_mut().unwrap().spec.state.children.pods[0].stopped_at = None;
    let mut view = world.view(true);
    view.facts.insert(Subject::claim("t", super::world::HOME), Fact::Gone);
    while let Next::Do(action) = plan(&view).next {
        let effect = world.apply(action);
        view.absorb(effect);
    }
    let reference = world.volume.as_ref().unwrap().spec.as_ref().unwrap().claim_ref.clone().unwrap();
    assert_eq!((reference.namespace.as_deref(), reference.uid), (Some(super::world::OWN), None));
    assert!(world.record.as_ref().unwrap().spec.state.deletion.as_ref().unwrap().outcome(steps::DeletionStep::StopPods).is_none());
}

/// S6: the provisioner is gone, and an admin keeps the volume. The provisioner must not destroy it when it comes back.
#[test]
fn a_volume_that_an_override_keeps_is_set_to_retain_again() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let policy = |world: &World| world.volume.as_ref().unwrap().spec.as_ref().unwrap().persistent_volume_reclaim_policy.clone().unwrap();
    let mut blocked = None;
    for _ in 0..60 {
        blocked = own_pass(&mut world).report.blocker.map(|b| b.reason).or(blocked);
        if blocked == Some(Reason::VolumeNotDeleted) && world.overrides.is_empty() {
            assert_eq!(policy(&world), "Delete", "its provisioner may still delete it");
            world.overrides = skip("delete-volumes");
        }
        let volume = world.volume.clone();
        world.others();
        if world.volume.is_none() {
            (world.volume, world.now) = (volume, world.now + 90);
        }
    }
    assert_eq!(blocked, Some(Reason::VolumeNotDeleted));
    assert!(world.computer.is_none(), "L1");
    assert_eq!(policy(&world), "Retain");
}
