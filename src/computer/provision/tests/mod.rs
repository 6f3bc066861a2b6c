//! The provisioning plan against a small model of the cluster: it converges, makes no request afterwards (L6), survives a crash at any
//! request, and creates nothing for a computer that is being deleted (S8).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::needless_pass_by_value)]

mod lost_key;
mod mounted_key;
mod upgrade;
mod world;

use serde_json::json;

use self::world::{World, from};
use crate::computer::action::Action;
use crate::computer::plan::plan;
use crate::computer::report::Next;
use crate::computer::view::ClassState;
use crate::resources::reasons::Reason;
use crate::resources::*;

#[test]
fn it_converges_within_the_budget_and_makes_no_request_afterwards() {
    let mut world = World::new(json!({}));
    let end = world.settle(None);
    assert_eq!((end.next, end.report.phase), (Next::Settled, Some(Phase::Active)));
    assert!(world.writes <= 8, "{} writes", world.writes);
    assert_eq!(world.state().credential, CredentialState::Live);
    assert_eq!(world.volume.as_ref().unwrap().spec.as_ref().unwrap().persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
    let before = world.writes;
    world.settle(None);
    assert_eq!(world.writes, before, "L6");
}

#[test]
fn a_crash_after_any_request_leaves_one_of_each_and_nothing_unrecorded() {
    for spec in [json!({}), json!({"provider": "BYOM"})] {
        for n in 1..30 {
            let mut world = World::new(spec.clone());
            let end = world.settle(Some(n));
            assert_eq!(end.report.phase, Some(Phase::Active), "crash {n}");
            let children = &world.state().children;
            let managed = usize::from(spec == json!({}));
            assert_eq!((world.pods.len(), world.claims.len(), world.secrets.len()), (managed, managed, 1), "crash {n}");
            assert_eq!(children.secret_uid.as_ref(), world.secrets.values().next(), "crash {n}");
            assert_eq!(world.state().credential, CredentialState::Live, "crash {n}");
            let user = world.record.as_ref().unwrap().spec.snapshot.run_as_user;
            assert_eq!(user, (managed == 1).then_some(1000), "S1: the archive would run as another user; crash {n}");
        }
    }
}

#[test]
fn suspending_stops_the_pod_and_resuming_creates_another_with_the_same_volume() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let first = world.pods.keys().next().unwrap().clone();
    world.computer.spec.suspended = true;
    let stopping = plan(&world.view()).report;
    assert!(!stopping.ready.unwrap().status, "the pod still runs");
    let end = world.settle(None).report;
    let ready = end.ready.unwrap();
    assert_eq!((end.phase, ready.reason), (Some(Phase::Suspended), Reason::Suspended));
    assert!(ready.status, "kstatus reads Ready=False as InProgress: `helm --wait` of a suspended computer would time out");
    assert!(world.pods.is_empty() && world.claims.len() == 1);
    assert_eq!(world.state().credential, CredentialState::Live, "a suspended computer keeps its key");
    world.computer.spec.suspended = false;
    assert_eq!(world.settle(None).report.phase, Some(Phase::Active));
    assert_ne!(world.pods.keys().next().unwrap(), &first);
    assert_eq!(world.state().children.pods.len(), 1);
}

/// The archive runs as the user of the last machine pod, not as the user that the class had first.
#[test]
fn a_pod_created_from_a_changed_class_is_archived_as_its_own_user() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let user = |world: &World| world.record.as_ref().unwrap().spec.snapshot.run_as_user;
    assert_eq!(user(&world), Some(1000));
    world.user = Some(4242);
    world.settle(None);
    assert_eq!(user(&world), Some(1000), "the old pod is still running");
    world.computer.spec.suspended = true;
    world.settle(None);
    world.computer.spec.suspended = false;
    world.settle(None);
    assert_eq!(user(&world), Some(4242), "S1: the archive could not read what the new user wrote");
}

#[test]
fn a_failed_or_deleted_pod_is_replaced() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let first = world.pods.keys().next().unwrap().clone();
    world.pods.get_mut(&first).unwrap().metadata.deletion_timestamp = Some(from(json!("2027-01-15T08:00:00Z")));
    assert_eq!(world.settle(None).report.phase, Some(Phase::Active));
    assert!(!world.pods.contains_key(&first) && world.pods.len() == 1);
}

/// S1: the containers of a force-deleted pod continue to run on an unreachable node. A deletion must still wait for it.
#[test]
fn a_pod_that_vanished_from_a_lost_node_stays_in_the_record() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let first = world.state().children.pods[0].clone();
    world.node_lost = true;
    world.pods.clear();
    world.settle(None);
    let names = |world: &World| world.state().children.pods.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    assert!(world.now - 1_800_000_000 > 1200 && names(&world).len() == 2 && names(&world)[0] == first.name, "{:?}", names(&world));
    world.node_lost = false;
    world.settle(None);
    assert!(names(&world).len() == 1 && names(&world)[0] != first.name, "{:?}", names(&world));
}

/// S6, found by the full matrix: the volume was set to `Retain`, then the operator crashed, and a tenant deleted the claim meanwhile.
#[test]
fn a_volume_that_lost_its_claim_before_it_was_recorded_is_the_home() {
    let mut world = World::new(json!({}));
    let protected = |world: &World| world.volume.as_ref().is_some_and(|v| v.metadata.labels.is_some());
    for _ in 0..20 {
        world.passes += 1;
        let mut view = world.view();
        while let (Next::Do(action), false) = (plan(&view).next, protected(&world)) {
            let effect = world.apply(action);
            view.absorb(effect);
        }
        if !protected(&world) {
            world.others();
        }
    }
    assert!(protected(&world) && world.state().children.volume.is_none(), "it is already recorded");
    world.claims.clear();
    world.pods.clear();
    world.settle(None);
    assert_eq!(world.state().children.volume.as_ref().map(|v| v.name.as_str()), Some("pv"), "S6: it is orphaned");
    assert_eq!((world.state().credential, world.claims.len()), (CredentialState::Live, 1));
    assert_eq!(
        crate::resources::persistent_volume::claim_ref_uid(world.volume.as_ref().unwrap()),
        world.state().children.claim_uid.as_deref()
    );
}

#[test]
fn a_claim_deleted_by_hand_is_re_created_for_the_same_volume() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let (claim, pod) = (world.claims.keys().next().unwrap().clone(), world.pods.keys().next().unwrap().clone());
    world.claims.get_mut(&claim).unwrap().metadata.deletion_timestamp = Some(from(json!("2027-01-15T08:00:00Z")));
    let plan = world.settle(None);
    assert_eq!(plan.report.blocker.map(|b| b.reason), Some(Reason::HomeClaimDeleted));
    world.pods.get_mut(&pod).unwrap().metadata.deletion_timestamp = Some(from(json!("2027-01-15T08:00:00Z")));
    assert_eq!(world.settle(None).report.phase, Some(Phase::Active));
    assert!(!world.claims.contains_key(&claim) && world.claims.len() == 1);
    let holder = world.volume.as_ref().unwrap().spec.as_ref().unwrap().claim_ref.as_ref().unwrap().uid.clone();
    assert_eq!(holder, world.claims.values().next().unwrap().metadata.uid);
}

/// The pod garbage collector sets the pods of a lost node to `Failed`. Their containers count as stopped once the node cannot run any.
#[test]
fn a_pod_that_the_garbage_collector_failed_is_replaced_unless_its_node_may_still_run_it() {
    for lost in [false, true] {
        let mut world = World::new(json!({}));
        world.settle(None);
        let name = world.pods.keys().next().unwrap().clone();
        let (now, grace) = (world.view().now, 30);
        world.node_lost = lost;
        let pod = world.pods.get_mut(&name).unwrap();
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        pod.status = from(
            json!({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "lastTransitionTime": now}],
            "containerStatuses": [{"name": "m", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
        );
        let next = |world: &mut World| {
            let mut view = world.view();
            loop {
                let current = plan(&view);
                match current.next.clone() {
                    Next::Do(action @ Action::Read(_)) => view.absorb(world.apply(action)),
                    _ => return current,
                }
            }
        };
        assert!(matches!(next(&mut world).next, Next::Wait(_)), "its kubelet may still be killing them");
        world.now += grace + 61;
        let current = next(&mut world);
        if lost {
            assert_eq!(current.report.blocker.expect("L2").reason, Reason::NodeUnreachable);
        } else {
            let Next::Do(Action::SaveRecord(record)) = current.next else { panic!("{:?}", current.next) };
            assert!(record.spec.state.children.pods[0].stopped_at.is_some());
        }
    }
}

#[test]
fn an_expired_time_to_live_deletes_the_computer_unless_it_is_protected() {
    let mut world = World::new(json!({"timeToLiveSeconds": 60}));
    world.now += 1_000_000_000;
    assert_eq!(plan(&world.view()).next, Next::Do(Action::DeleteComputer));
    world.computer.spec.deletion_protection = true;
    assert_ne!(plan(&world.view()).next, Next::Do(Action::DeleteComputer));
}

/// The reason is recorded before the operator deletes a computer, and removed when its time to live is extended.
#[test]
fn the_reason_is_recorded_before_the_operator_deletes_a_computer() {
    let mut world = World::new(json!({"timeToLiveSeconds": 3600}));
    world.settle(None);
    world.now += 7200;
    let before = world.view().computer;
    let Next::Do(Action::SaveRecord(record)) = plan(&world.view()).next else { panic!("{:?}", plan(&world.view()).next) };
    let state = serde_json::to_value(&record.spec.state).unwrap();
    assert_eq!(state["ending"]["cause"], "TimeToLiveExpired", "{state}");
    assert!(record.spec.state.deletion.is_none() && record.spec.state.credential == CredentialState::Live, "no deletion has started");
    world.record = Some(*record);
    assert_eq!(plan(&world.view()).next, Next::Do(Action::DeleteComputer));
    assert_eq!(world.view().computer, before);
    for extended in [json!({"timeToLiveSeconds": 604_800}), json!({}), json!({"timeToLiveSeconds": 3600, "deletionProtection": true})] {
        let mut world = world.clone();
        world.computer.spec = from(extended);
        let end = world.settle(None);
        assert_eq!(end.report.phase, Some(Phase::Active));
        let state = serde_json::to_value(world.state()).unwrap();
        assert!(state.get("ending").is_none(), "{state}");
    }
}

/// S8, S2: over HTTP the record is revoked right after the Computer is deleted, and the two have separate watches.
#[test]
fn a_tombstone_is_never_undone() {
    for spec in [json!({}), json!({"provider": "BYOM"})] {
        let mut world = World::new(spec);
        world.settle(None);
        world.record.as_mut().unwrap().spec.state.credential = CredentialState::Revoked;
        world.settle(None);
        assert_eq!(world.state().credential, CredentialState::Revoked);
    }
}

/// Recorded steps stay finished while a pod is replaced.
#[test]
fn replacing_a_pod_undoes_no_other_step() {
    let mut world = World::new(json!({}));
    let end = world.settle(None);
    assert!(end.report.provisioning.iter().all(|s| s.status == StepStatus::Completed));
    world.pods.clear();
    let report = plan(&world.view()).report;
    let states: Vec<_> = report.provisioning.iter().map(|s| (s.id.as_str(), s.status)).collect();
    assert!(states.iter().all(|(id, status)| (*id == "start-pod") == (*status != StepStatus::Completed)), "{states:?}");
}

#[test]
fn a_computer_that_is_being_deleted_never_gets_a_finalizer_or_a_child() {
    let mut world = World::new(json!({}));
    world.computer.metadata.deletion_timestamp = Some(from(json!("2027-01-15T08:00:00Z")));
    let forbidden = |action: &Action| matches!(action, Action::AddFinalizer | Action::Create(_));
    assert!(!matches!(plan(&world.view()).next, Next::Do(a) if forbidden(&a)), "S8");
}

/// A tenant may be able to write the status of a Computer. The status proves nothing about a volume (S5).
#[test]
fn a_forged_status_takes_no_volume_of_another_computer() {
    let mut world = World::new(json!({}));
    world.volume = from(
        json!({"metadata": {"name": "pv", "uid": "pv-uid", "resourceVersion": "1", "labels": {UID_LABEL: "victim", MANAGED_BY_LABEL: MANAGER}, "annotations": {ORIGINAL_POLICY_ANNOTATION: "Delete"}},
        "spec": {"persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "victim", "name": "home", "uid": "victims-claim"}}, "status": {"phase": "Released"}}),
    );
    let before = world.volume.clone();
    world.computer.status = from(
        json!({"children": {"claimName": "mine", "claimUid": "victims-claim", "volume": {"name": "pv", "uid": "pv-uid", "originalReclaimPolicy": "Delete"}}}),
    );
    world.settle(None);
    assert_eq!(world.volume, before, "S5");
}

/// L2: the hash of the key was lost with the record, so the key never authenticates and the computer cannot be used.
#[test]
fn a_computer_whose_record_was_lost_does_not_claim_to_be_ready() {
    for spec in [json!({}), json!({"provider": "BYOM"})] {
        let mut world = World::new(spec);
        world.settle(None);
        let children = world.record.take().unwrap().spec.state.children;
        world.computer.status = from(json!({"children": children}));
        let end = world.settle(None);
        assert_eq!(end.report.blocker.map(|b| b.reason), Some(Reason::KeyLost));
        assert!(end.report.ready.is_some_and(|ready| !ready.status));
    }
}

/// L2: a class that is not checked for a long time is reported.
#[test]
fn a_class_that_has_not_been_checked_is_reported() {
    let world = World::new(json!({}));
    let mut view = world.view();
    view.computer.as_mut().unwrap().metadata.finalizers = Some(vec![DELETION_FINALIZER.into()]);
    view.finalizer_confirmed = true;
    let ClassState::Found(class) = &mut view.class else { panic!("a class") };
    class.status = None;
    for (created, reason) in [("2027-01-15T07:59:50Z", None), ("2027-01-15T07:00:00Z", Some(Reason::ClassNotChecked))] {
        let ClassState::Found(class) = &mut view.class else { panic!("a class") };
        class.metadata.creation_timestamp = from(json!(created));
        assert_eq!(plan(&view).report.blocker.map(|b| b.reason), reason);
    }
}

/// S1: another client restores the policy of the volume of a running computer. Any editor of the namespace can delete its claim.
#[test]
fn a_volume_whose_policy_was_restored_is_set_to_retain_again() {
    let mut world = World::new(json!({}));
    world.settle(None);
    world.volume.as_mut().unwrap().spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Delete".into());
    let end = world.settle(None);
    assert_eq!(world.volume.as_ref().unwrap().spec.as_ref().unwrap().persistent_volume_reclaim_policy.as_deref(), Some("Retain"), "S1");
    assert_eq!(end.report.phase, Some(Phase::Active));
}

/// S1, L1: a second claim is deleted by hand before the volume references it. The volume still names the first.
#[test]
fn the_record_keeps_the_claim_that_a_volume_names() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let named = world.volume.as_ref().unwrap().spec.as_ref().unwrap().claim_ref.as_ref().unwrap().uid.clone();
    let children = &mut world.record.as_mut().unwrap().spec.state.children;
    children.volume.as_mut().unwrap().former_claim_uid.clone_from(&named);
    children.claim_uid = Some("second".into());
    world.claims.clear();
    let mut view = world.view();
    while let Next::Do(action) = plan(&view).next {
        let renamed = matches!(&action, Action::SaveRecord(r) if r.spec.state.children.claim_uid.is_none());
        let effect = world.apply(action);
        view.absorb(effect);
        if renamed {
            break;
        }
    }
    let children = &world.state().children;
    assert_eq!(
        (&children.claim_uid, &children.volume.as_ref().unwrap().former_claim_uid),
        (&None, &named),
        "S1: the owner of the volume is unknown"
    );
}

/// The admission policy refuses every patch of a volume with the label of another computer, so the user must see why.
#[test]
fn a_volume_with_the_label_of_another_computer_is_reported() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let record = world.record.as_mut().unwrap();
    (record.spec.state.children.volume, record.spec.state.credential) = (None, CredentialState::Pending);
    world.volume.as_mut().unwrap().metadata.labels.as_mut().unwrap().insert(UID_LABEL.into(), "another".into());
    let blocker = world.settle(None).report.blocker.expect("L2");
    assert!(blocker.reason == Reason::VolumeMarked && blocker.message.contains("another"), "{blocker:?}");
}

/// The policy `volumes` refused the patch that restores the label, because the annotation was left, and no message said what to do.
#[test]
fn a_label_that_was_removed_from_the_volume_is_restored() {
    let labels: [&[&str]; 4] = [&[UID_LABEL], &[MANAGED_BY_LABEL], &[UID_LABEL, MANAGED_BY_LABEL], &[]];
    for (removed, annotation) in labels.iter().flat_map(|removed| [(removed, false), (removed, true)]) {
        let mut world = World::new(json!({}));
        world.settle(None);
        let volume = world.volume.as_mut().unwrap();
        volume.metadata.labels.as_mut().unwrap().retain(|key, _| !removed.contains(&key.as_str()));
        annotation.then(|| volume.metadata.annotations = None);
        if !removed.is_empty() {
            volume.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Delete".into());
        }
        assert_eq!(world.settle(None).report.phase, Some(Phase::Active));
        let volume = world.volume.as_ref().unwrap();
        assert!(crate::computer::home_volume::retained_for(volume, &world.view().uid), "S1: {removed:?}");
        let original = volume.metadata.annotations.as_ref().and_then(|a| a.get(ORIGINAL_POLICY_ANNOTATION)).map(String::as_str);
        assert!(original == Some("Delete") || removed.is_empty(), "{removed:?}: {original:?}");
        assert_eq!(world.state().children.volume.as_ref().unwrap().original_reclaim_policy, "Delete", "the record has it");
    }
}

/// When a webhook removed the annotation, the original policy `Delete` was recorded as `Retain`, and the volume was left forever.
#[test]
fn a_lost_original_policy_is_reported_before_the_volume_is_recorded() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let record = world.record.as_mut().unwrap();
    (record.spec.state.children.volume, record.spec.state.credential) = (None, CredentialState::Pending);
    let annotations = world.volume.as_mut().unwrap().metadata.annotations.take();
    let blocker = world.settle(None).report.blocker.expect("L2");
    assert!(blocker.reason == Reason::VolumePolicyUnknown && blocker.message.contains("kubectl annotate pv"), "{blocker:?}");
    world.volume.as_mut().unwrap().metadata.annotations = annotations;
    assert_eq!(world.settle(None).report.phase, Some(Phase::Active));
    assert_eq!(world.state().children.volume.as_ref().unwrap().original_reclaim_policy, "Delete");
}
