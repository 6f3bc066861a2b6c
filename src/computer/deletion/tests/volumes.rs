//! Custody, claims and volumes: changes made by other clients, and waits that never end by themselves.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::disturbed::{archive_pod, pass, skip};
use super::world::{HOME, MACHINE, OWN, UID, World, from};
use crate::computer::action::{Action, Fact, Object, Subject};
use crate::computer::memory::Latest;
use crate::computer::plan::plan;
use crate::computer::report::{Next, Plan};
use crate::computer::view::View;
use crate::resources::reasons::Reason;
use crate::resources::steps::CurrentStep;
use crate::resources::*;

/// Performs the planned actions until the plan waits. Returns the actions and the last plan.
fn performed(world: &mut World, view: &mut View) -> (Vec<Action>, Plan) {
    let mut actions = Vec::new();
    loop {
        let current = plan(view);
        let Next::Do(action) = &current.next else { return (actions, current) };
        actions.push(action.clone());
        let effect = world.apply(action.clone());
        view.absorb(effect);
    }
}

fn policy(world: &World) -> Option<String> {
    world.volume.as_ref()?.spec.as_ref()?.persistent_volume_reclaim_policy.clone()
}

fn deletes_claim(action: &Action) -> bool {
    matches!(action, Action::Delete { subject: Subject::Claim { .. }, .. })
}

/// S1: a `GitOps` tool has restored the policy of the volume, and the cache does not show that yet. Deleting the claim would destroy the home.
#[test]
fn a_volume_whose_policy_was_restored_is_set_to_retain_before_its_claim_is_deleted() {
    for stale in [false, true] {
        let mut world = World::new("Delete", ArchivePolicy::Required);
        let mut view = world.view(true);
        world.volume.as_mut().unwrap().spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Delete".into());
        if !stale {
            view = world.view(true);
        }
        let (actions, _) = performed(&mut world, &mut view);
        assert_eq!(policy(&world).as_deref(), Some("Retain"), "S1: {actions:?}");
        let patched = actions.iter().position(|a| matches!(a, Action::Retain { .. })).expect("a patch");
        assert!(patched < actions.iter().position(deletes_claim).expect("the claim is deleted"), "S1");
    }
}

/// S1: the same between the claim's deletion and the end of the pod, which alone still keeps the claim.
#[test]
fn a_volume_is_set_to_retain_before_the_last_pod_releases_its_claim() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let mut view = world.view(true);
    performed(&mut world, &mut view);
    world.others();
    let mut view = world.view(true);
    world.volume.as_mut().unwrap().spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Delete".into());
    let (actions, _) = performed(&mut world, &mut view);
    assert!(actions.iter().any(|a| matches!(a, Action::Patch { subject: Subject::Pod { .. }, .. })), "the pod is released: {actions:?}");
    assert_eq!(policy(&world).as_deref(), Some("Retain"), "S1");
    for _ in 0..40 {
        pass(&mut world);
    }
    assert!(world.computer.is_none() && world.manifest);
}

/// S1: an admin's `kubectl delete pv` waits for the claim; deleting the claim would complete it.
#[test]
fn the_claim_of_a_volume_that_is_being_deleted_is_kept_and_reported() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let stale = world.view(true);
    world.volume.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(world.time()));
    let (actions, last) = performed(&mut world, &mut stale.clone());
    assert!(!actions.iter().any(deletes_claim), "S1: {actions:?}");
    let blocker = last.report.blocker.expect("L2");
    assert!(blocker.reason == Reason::VolumeBeingDeleted && blocker.message.contains("skips archive-sessions"), "{blocker:?}");
    let (actions, _) = performed(&mut world, &mut View { overrides: skip("archive-sessions"), ..stale });
    assert!(actions.iter().any(deletes_claim), "S11: an admin has decided");
}

/// L1: if no archive is wanted, nothing is lost with that volume, so it must not block the deletion.
#[test]
fn a_volume_that_is_being_deleted_does_not_block_a_deletion_that_wants_no_archive() {
    for foreign in [false, true] {
        let mut world = World::new("Delete", ArchivePolicy::None);
        let mut stale = world.view(true);
        let volume = world.volume.as_mut().unwrap();
        if foreign {
            volume.metadata.labels.get_or_insert_default().insert(UID_LABEL.into(), "another".into());
        } else {
            volume.metadata.deletion_timestamp = stale.computer.as_ref().unwrap().metadata.deletion_timestamp.clone();
        }
        let (actions, last) = performed(&mut world, &mut stale);
        assert!(actions.iter().any(deletes_claim), "{actions:?}, {:?}", last.report.blocker);
    }
}

/// The volume controller refuses a claim that it reconciles before the volume names it, and retries only at its resync.
#[test]
fn the_custody_claim_is_created_after_the_volume_controller_has_processed_the_reservation() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let mut reserved = false;
    for _ in 0..20 {
        let mut view = world.view(true);
        let available = world.volume.as_ref().and_then(|v| v.status.as_ref()?.phase.clone()).as_deref() == Some("Available");
        let (actions, _) = performed(&mut world, &mut view);
        if actions.iter().any(|a| matches!(a, Action::Create(Object::Claim(_)))) {
            assert!(reserved && available, "the claim would wait for a resync");
            return;
        }
        reserved = world.volume.as_ref().unwrap().spec.as_ref().unwrap().claim_ref.as_ref().unwrap().uid.is_none();
        world.others();
    }
    panic!("no custody claim was created");
}

/// S1, L1: a leader with a stale view reserves a volume whose policy has been restored. Kubernetes would keep the volume forever.
#[test]
fn a_volume_whose_policy_was_restored_is_not_reserved_again() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.claims.clear();
    world.pods.clear();
    world.record.as_mut().unwrap().spec.state.children.pods.clear();
    let mut old = world.view(true);
    let reserve = loop {
        match plan(&old).next {
            Next::Do(Action::Patch { subject: Subject::Volume { .. }, patch }) => break patch,
            Next::Do(action) => {
                let effect = world.apply(action);
                old.absorb(effect);
            }
            _ => panic!("nothing is reserved"),
        }
    };
    let mut volume = serde_json::to_value(world.volume.as_ref().unwrap()).unwrap();
    json_patch::patch(&mut volume.clone(), &reserve).expect("the patch applies to the volume that was read");
    volume["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete");
    assert!(json_patch::patch(&mut volume, &reserve).is_err());
}

/// L2: the volume controller does not work.
#[test]
fn a_custody_claim_that_is_never_bound_is_reported() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let (latest, mut blocker) = (Latest::default(), None);
    for _ in 0..20 {
        let phase = world.volume.as_ref().unwrap().status.clone();
        let mut view = world.view(true);
        view.record.as_mut().unwrap().metadata.resource_version = Some("9".into());
        latest.freshen(&mut view);
        let (_, last) = performed(&mut world, &mut view);
        view.record.as_mut().unwrap().metadata.resource_version = Some("9".into());
        latest.note_passed(&view, &last.report);
        blocker = last.report.blocker;
        world.others();
        let volume = world.volume.as_mut().unwrap();
        if volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available") {
            volume.status = phase;
        }
    }
    let blocker = blocker.expect("L2");
    assert!(blocker.reason == Reason::CustodyNotBound && blocker.message.contains("kubectl describe pv"), "{blocker:?}");
}

/// A deletion whose archive is verified, at the step `delete-volumes`.
fn archived() -> (World, Pod, PersistentVolumeClaim) {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let pod = archive_pod(&mut world).clone();
    for _ in 0..20 {
        if world.record.as_ref().unwrap().spec.state.deletion.as_ref().is_some_and(|d| d.archive.is_some()) {
            let claim = world.claims.values().next().cloned().expect("the custody claim");
            return (world, pod, claim);
        }
        let mut view = world.view(true);
        while let Next::Do(action) = plan(&view).next {
            let done = matches!(&action, Action::SaveRecord(r) if r.spec.state.deletion.as_ref().is_some_and(|d| d.archive.is_some()));
            let effect = world.apply(action);
            view.absorb(effect);
            if done {
                break;
            }
        }
        if world.record.as_ref().unwrap().spec.state.deletion.as_ref().is_none_or(|d| d.archive.is_none()) {
            world.others();
        }
    }
    panic!("it is not archived");
}

fn pod_fact(pod: &Pod) -> (Subject, Fact) {
    (Subject::pod(OWN, pod.metadata.name.as_deref().unwrap()), Fact::Pod(Box::new(pod.clone())))
}

/// L1: the node of the archive pod is lost. The pod is finished, and it only reads.
#[test]
fn a_deleted_archive_pod_whose_node_is_lost_is_removed() {
    let (world, mut pod, _) = archived();
    for (seconds, removed) in [(10, false), (90, true)] {
        pod.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::from_second(world.now - seconds).unwrap()));
        let mut view = world.view(true);
        view.facts.extend([pod_fact(&pod)]);
        let next = plan(&view).next;
        assert_eq!(matches!(next, Next::Do(Action::Remove { .. })), removed, "L1: {next:?}");
    }
    pod.metadata.finalizers = Some(vec!["theirs.example/keep".into()]);
    let mut view = world.view(true);
    view.facts.extend([pod_fact(&pod)]);
    assert!(
        plan(&view).report.blocker.is_some_and(|b| b.reason == Reason::ArchivePodHeld && b.message.contains("theirs.example/keep")),
        "L2"
    );
}

/// The deletion of an archive pod that still counts as running takes its grace period, although the pod is about to end by itself.
#[test]
fn an_archive_pod_has_some_seconds_to_end_by_itself() {
    let (mut world, mut pod, _) = archived();
    pod.status = from(json!({"phase": "Running"}));
    let latest = Latest::default();
    let next = |world: &World| {
        let mut view = world.view(true);
        view.record.as_mut().unwrap().metadata.resource_version = Some("9".into());
        latest.freshen(&mut view);
        view.facts.extend([pod_fact(&pod)]);
        let current = plan(&view);
        latest.note_passed(&view, &current.report);
        current.next
    };
    assert!(matches!(next(&world), Next::Wait(_)));
    world.now += 11;
    assert!(matches!(next(&world), Next::Do(Action::Delete { .. })), "L1: a sidecar keeps it running");
    pod.status = from(json!({"phase": "Succeeded"}));
    let mut view = world.view(true);
    view.facts.extend([pod_fact(&pod)]);
    assert!(matches!(plan(&view).next, Next::Do(Action::Delete { .. })));
}

/// L2: a backup tool's finalizer keeps the custody claim, or its protection is not removed.
#[test]
fn a_custody_claim_that_is_not_deleted_is_reported() {
    for (finalizer, named) in [("theirs.example/keep", "theirs.example/keep"), ("kubernetes.io/pvc-protection", "kube-controller-manager")]
    {
        let (mut world, _, mut claim) = archived();
        claim.metadata.finalizers = Some(vec![finalizer.into()]);
        claim.metadata.deletion_timestamp = Some(Time(world.time()));
        let key = (OWN.to_owned(), claim.metadata.name.clone().unwrap());
        let mut last = None;
        for _ in 0..80 {
            world.claims.insert(key.clone(), claim.clone());
            last = pass(&mut world).report.blocker;
        }
        let blocker = last.expect("L2: it waits forever and reports nothing");
        assert!(blocker.reason == Reason::ClaimHeld && blocker.message.contains(named), "{blocker:?}");
    }
}

/// L2, L3: the home's claim is not deleted. All pods of the namespace are listed only when that takes long, and not every two seconds.
#[test]
fn a_claim_that_is_not_deleted_is_reported_without_frequent_lists() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    let key = ("t".to_owned(), HOME.to_owned());
    let (mut last, mut lists) = (None, 0);
    for _ in 0..80 {
        let mut view = world.view(true);
        let (actions, current) = performed(&mut world, &mut view);
        lists += actions.iter().filter(|a| matches!(a, Action::Read(Subject::ClaimUsers { .. }))).count();
        let stopped = world.record.as_ref().unwrap().spec.state.children.pods[0].stopped_at.clone();
        if stopped.is_some_and(|at| at.0 == world.time()) {
            assert_eq!(lists, 0, "its protection ends soon, which a watch shows");
        }
        last = Some(current);
        let kept = world.claims.get(&key).cloned();
        world.others();
        world.claims.extend(kept.map(|c| (key.clone(), c)));
    }
    let last = last.unwrap();
    assert_eq!(last.next, Next::Wait(std::time::Duration::from_secs(15)));
    assert!(last.report.blocker.is_some_and(|b| b.reason == Reason::ClaimHeld), "L2");
}

/// L1: the process ended after it created the archive pod and before it recorded that. The attachment is the archive pod's.
#[test]
fn the_attachment_of_the_archive_pod_blocks_nothing() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    archive_pod(&mut world).status = from(json!({"phase": "Pending"}));
    let deletion = world.record.as_mut().unwrap().spec.state.deletion.as_mut().unwrap();
    deletion.custody = None;
    deletion.steps.clear();
    world.attached = true;
    for _ in 0..6 {
        let report = pass(&mut world).report;
        assert_eq!(report.current.map(CurrentStep::id), Some("archive-sessions"), "L1: {report:?}");
    }
}

/// S6: an admin keeps the volume. With the operator's labels, the alert on orphans would never end, and no other computer could use the volume.
#[test]
fn a_volume_that_an_override_keeps_loses_only_the_operators_labels_and_annotation() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.overrides = skip("delete-volumes");
    for _ in 0..60 {
        pass(&mut world);
    }
    assert!(world.computer.is_none() && world.manifest, "L1");
    assert_eq!(policy(&world).as_deref(), Some("Retain"));
    let metadata = world.volume.unwrap().metadata;
    assert!(
        metadata.labels.unwrap_or_default().is_empty() && metadata.annotations.unwrap_or_default().is_empty(),
        "the labels or the annotation are left on it"
    );
}

/// S5: the labels of another computer on a volume neither count for this one nor are overwritten.
#[test]
fn a_volume_with_the_label_of_another_computer_is_reported() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.record.as_mut().unwrap().spec.state.children.volume = None;
    world.volume.as_mut().unwrap().metadata.labels.as_mut().unwrap().insert(UID_LABEL.into(), "another".into());
    let blocker = pass(&mut world).report.blocker.expect("L2");
    assert!(blocker.reason == Reason::VolumeMarked && blocker.message.contains("another"), "{blocker:?}");
}

/// S1: a class may set any grace period.
#[test]
fn an_extremely_long_grace_period_does_not_end_at_once() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.pods.clear();
    world.record.as_mut().unwrap().spec.snapshot.grace_period_seconds = Some(i64::MAX);
    for _ in 0..100 {
        pass(&mut world);
    }
    assert_eq!(pass(&mut world).report.current.map(CurrentStep::id), Some("stop-pods"), "S1");
    assert!(world.record.as_ref().unwrap().spec.state.children.pods[0].vanished_at.is_some());
}

/// S1: the pod garbage collector sets a pod on an out-of-service node to `Failed`. At the kubelet's last report its container was between two
/// runs.
#[test]
fn a_pod_whose_end_its_kubelet_has_not_reported_waits_for_its_node() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    world.node_lost = true;
    let status = json!({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "lastTransitionTime": "2027-01-15T08:00:00Z"}],
        "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
    world.pods.get_mut(&("t".to_owned(), MACHINE.to_owned())).unwrap().status = from(status);
    for _ in 0..30 {
        pass(&mut world);
    }
    let blocker = pass(&mut world).report.blocker.expect("S1: it counts as stopped");
    assert_eq!(blocker.reason, Reason::NodeUnreachable);
    // The kubelet recovers and kills the containers of pods that no longer exist.
    world.node_lost = false;
    for _ in 0..30 {
        pass(&mut world);
    }
    assert!(world.computer.is_none(), "L1");
}

/// L6: a stale cache shows an object that was just deleted as it was before.
#[test]
fn an_object_that_is_being_deleted_is_not_deleted_again() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let (latest, before) = (Latest::default(), world.view(true));
    let of_children = |a: &&Action| matches!(a, Action::Delete { subject: Subject::Claim { .. } | Subject::Pod { .. }, .. });
    let deletes = |actions: &[Action]| actions.iter().filter(of_children).count();
    let mut view = before.clone();
    let (actions, last) = performed(&mut world, &mut view);
    latest.note_passed(&view, &last.report);
    assert_eq!(deletes(&actions), 2, "the claim and the pod");
    let mut view = View { record: world.record.clone(), ..before };
    latest.freshen(&mut view);
    let (actions, _) = performed(&mut world, &mut view);
    assert_eq!(deletes(&actions), 0, "{actions:?}");
    assert!(world.claims[&("t".to_owned(), HOME.to_owned())].metadata.deletion_timestamp.is_some() && view.uid == UID);
}

/// The same if the computer is deleted before its volume is recorded.
#[test]
fn a_deletion_reports_a_lost_original_policy() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.record.as_mut().unwrap().spec.state.children.volume = None;
    let annotations = world.volume.as_mut().unwrap().metadata.annotations.take();
    let mut view = world.view(true);
    let (actions, last) = performed(&mut world, &mut view);
    assert!(!actions.iter().any(deletes_claim), "{actions:?}");
    let blocker = last.report.blocker.expect("L2");
    assert!(blocker.reason == Reason::VolumePolicyUnknown && blocker.message.contains("kubectl annotate pv"), "{blocker:?}");
    world.volume.as_mut().unwrap().metadata.annotations = annotations;
    let mut view = world.view(true);
    performed(&mut world, &mut view);
    let recorded = world.record.as_ref().unwrap().spec.state.children.volume.as_ref().unwrap();
    assert_eq!(recorded.original_reclaim_policy, "Delete");
}
