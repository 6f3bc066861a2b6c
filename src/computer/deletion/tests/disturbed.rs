//! What tenants, admins, lost nodes and caches that are behind do to a deletion.

use serde_json::json;

use super::times::remembering;
use super::world::{MACHINE, UID, World, from};
use super::{Crash, run};
use crate::computer::action::Action;
use crate::computer::plan::plan;
use crate::computer::report::{Next, Plan};
use crate::resources::reasons::Reason;
use crate::resources::steps::CurrentStep;
use crate::resources::*;

/// One pass, then the others' part.
pub(super) fn pass(world: &mut World) -> Plan {
    let mut view = world.view(true);
    let last = loop {
        let current = plan(&view);
        let Next::Do(action) = &current.next else { break current };
        let effect = world.apply(action.clone());
        view.absorb(effect);
    };
    world.others();
    if last.report.waits {
        world.waited += std::time::Duration::from_secs(10);
    }
    last
}

pub(super) fn skip(step: &str) -> Vec<DeletionOverride> {
    vec![from(
        json!({"metadata": {"name": "o"}, "spec": {"computer": {"namespace": "t", "name": "c", "uid": UID}, "skip": [step], "reason": "an admin has decided"}}),
    )]
}

/// A tenant may be able to write the status of a Computer, from which a lost record is made again. Of a volume it proves nothing.
#[test]
fn a_forged_status_destroys_no_volume_of_somebody_else() {
    let volume = json!({"name": "pv", "uid": "pv-uid", "originalReclaimPolicy": "Delete"});
    for forged in
        [json!({"claimName": "mine", "claimUid": "victims", "volume": volume}), json!({"claimName": "mine", "claimUid": "victims"})]
    {
        let mut world = World::new("Delete", ArchivePolicy::Required);
        world.record = None;
        world.pods.clear();
        world.claims = [(("victim".into(), "home".into()), from(json!({"metadata": {"uid": "victims"}})))].into();
        let pv = world.volume.as_mut().unwrap();
        pv.metadata.labels.as_mut().unwrap().insert(UID_LABEL.into(), "victim".into());
        pv.spec.as_mut().unwrap().claim_ref = from(json!({"namespace": "victim", "name": "home", "uid": "victims"}));
        let before = world.volume.clone();
        world.computer.as_mut().unwrap().status = from(json!({"children": forged}));
        for _ in 0..100 {
            pass(&mut world);
        }
        assert_eq!(world.volume, before, "S5");
        assert!(world.computer.is_none(), "L1: and the deletion ends");
    }
}

/// The status of a lost record is still good for what the volume itself confirms.
#[test]
fn a_lost_record_is_made_again_and_its_home_archived() {
    for policy in ["Delete", "Retain"] {
        let mut world = World::new(policy, ArchivePolicy::Required);
        let children = world.record.take().unwrap().spec.state.children;
        world.computer.as_mut().unwrap().status = from(json!({"children": children}));
        for _ in 0..100 {
            pass(&mut world);
        }
        assert!(world.computer.is_none() && world.manifest && world.receipt.is_some());
        assert_eq!(world.volume.is_some(), policy == "Retain");
    }
}

/// S4: a namespace and a Computer were made again under their old names; the cache still shows the old namespace.
#[test]
fn a_stale_cache_of_the_old_namespace_ends_no_new_computer() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.computer.as_mut().unwrap().metadata.deletion_timestamp = None;
    let mut view = world.view(true);
    view.namespace_terminating = true;
    for record in [view.record.clone(), None] {
        view.record = record;
        assert!(matches!(plan(&view).next, Next::Do(Action::Read(_))), "{:?}", plan(&view).next);
    }
}

/// S9: an override that was in force is not needed any more once its step is left out and the volume gone.
#[test]
fn an_override_that_is_taken_back_too_late_changes_nothing() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    world.overrides = skip("archive-sessions");
    while world.volume.is_some() {
        pass(&mut world);
    }
    assert!(world.computer.is_some());
    let overrides = std::mem::take(&mut world.overrides);
    for _ in 0..20 {
        assert_eq!(pass(&mut world).report.blocker, None);
    }
    world.overrides = overrides;
    assert!(world.computer.is_none() && world.receipt.is_some());
}

/// L1, S11: the admin was told to create exactly this override.
#[test]
fn an_override_lets_the_pod_of_a_lost_node_go() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    world.record.as_mut().unwrap().metadata.resource_version = Some("1".to_owned());
    world.node_lost = true;
    let latest = crate::computer::memory::Latest::default();
    for _ in 0..70 {
        remembering(&mut world, &latest);
    }
    let blocker = remembering(&mut world, &latest).report.blocker.expect("blocked");
    assert!(blocker.message.contains("skips stop-pods"), "{blocker:?}");
    world.overrides = skip("stop-pods");
    for _ in 0..20 {
        pass(&mut world);
    }
    assert!(world.computer.is_none(), "{:?}", pass(&mut world).report);
}

/// L1: the kubelet ended the pod (a graceful shutdown of its node), and then the node was gone.
#[test]
fn a_pod_that_has_stopped_does_not_wait_for_its_node() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    world.node_lost = true;
    let pod = world.pods.values_mut().next().unwrap();
    pod.status = from(
        json!({"phase": "Failed", "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}]}),
    );
    for _ in 0..40 {
        pass(&mut world);
    }
    assert!(world.computer.is_none(), "{:?}", pass(&mut world).report);
}

/// S9: whether its node had stopped writing was asked, and answered, before the archive; the volume is gone now.
#[test]
fn a_node_that_is_lost_after_the_archive_holds_up_nothing() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.pods.clear();
    while world.volume.is_some() {
        pass(&mut world);
    }
    world.node_lost = true;
    for _ in 0..20 {
        assert_eq!(pass(&mut world).report.blocker, None);
    }
    assert!(world.computer.is_none());
}

/// S6: a create that was given up is still under way and comes to be after the release: our own finalizer would hold the pod for ever.
#[test]
fn a_pod_that_comes_to_be_after_the_release_is_taken_away() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    let late = world.pods.values().next().unwrap().clone();
    world.pods.clear();
    world.record.as_mut().unwrap().spec.state.children.pods[0].uid = None;
    let (mut world, _) = run(world, Crash::Never, true);
    assert!(world.view(true).settled());
    world.pods.insert(("t".into(), MACHINE.into()), late);
    assert!(!world.view(true).settled());
    for _ in 0..20 {
        pass(&mut world);
    }
    assert!(world.pods.is_empty() && world.view(true).settled());
}

/// L7: with hand-off a store that is down holds no namespace, even if the store is needed for the receipt only.
#[test]
fn hand_off_does_not_wait_for_the_receipt() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    world.terminating = true;
    world.record.as_mut().unwrap().spec.snapshot.archive.on_namespace_deletion = OnNamespaceDeletion::HandOff;
    for _ in 0..40 {
        let mut view = world.view(true);
        while let Next::Do(action) = plan(&view).next {
            if matches!(action, Action::PutReceipt(_)) {
                break;
            }
            let effect = world.apply(action);
            view.absorb(effect);
        }
        world.others();
    }
    assert!(world.computer.is_none(), "the namespace is held");
    for _ in 0..5 {
        pass(&mut world);
    }
    assert!(world.receipt.is_some());
}

/// L2: a Computer that stays because of somebody else's finalizer is not "at step delete-volumes".
#[test]
fn a_released_computer_that_is_still_held_says_by_whom() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    world.computer.as_mut().unwrap().metadata.finalizers.as_mut().unwrap().push("theirs.example/keep".into());
    for _ in 0..20 {
        pass(&mut world);
    }
    let report = pass(&mut world).report;
    assert_eq!(report.current.map(CurrentStep::id), Some("release"));
    assert!(report.blocker.is_some_and(|b| b.message.contains("theirs.example/keep")), "L2");
}

/// The archive pod, as soon as there is one.
pub(super) fn archive_pod(world: &mut World) -> &mut k8s_openapi::api::core::v1::Pod {
    for _ in 0..20 {
        if world.pods.keys().any(|(_, name)| name.starts_with("archive-")) {
            break;
        }
        pass(world);
    }
    let (_, pod) = world.pods.iter_mut().find(|((_, name), _)| name.starts_with("archive-")).expect("an archive pod");
    pod.metadata.creation_timestamp = from(json!("2027-01-15T08:00:00Z"));
    pod
}

/// L1, L2: an evicted pod has no container that could say why, or when.
#[test]
fn an_evicted_archive_pod_says_why_and_is_replaced() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    archive_pod(&mut world);
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.time());
    let pod = archive_pod(&mut world);
    pod.status = from(json!({"phase": "Failed", "reason": "Evicted", "message": "the node is low on ephemeral-storage"}));
    pod.metadata.creation_timestamp = Some(now);
    let told = pass(&mut world).report.blocker.expect("L2");
    assert!(told.message.contains("low on ephemeral-storage"), "{told:?}");
    for _ in 0..10 {
        pass(&mut world);
    }
    assert!(world.pods.keys().any(|(_, name)| name.ends_with("-2")), "L1: no second attempt");
}

/// S1, S11: a locked file waits for an admin; given up, the next attempt begins at once and is told so.
#[test]
fn a_file_that_cannot_be_read_blocks_until_it_is_given_up() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    let told = |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.spec.as_ref().unwrap().containers[0].env.clone().unwrap().into_iter().find(|e| e.name == "UNREADABLE").unwrap().value
    };
    let locked = json!({"phase": "Failed", "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 3}}}]});
    assert_eq!(told(archive_pod(&mut world)).as_deref(), Some("Block"));
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.time());
    let pod = archive_pod(&mut world);
    (pod.status, pod.metadata.creation_timestamp) = (from(locked), Some(now));
    for _ in 0..10 {
        let blocker = pass(&mut world).report.blocker.expect("it is blocked");
        assert!(blocker.reason == Reason::UnreadableFiles && blocker.message.contains("unreadable-files"), "{blocker:?}");
    }
    world.overrides = skip("unreadable-files");
    for _ in 0..3 {
        pass(&mut world);
    }
    assert_eq!(told(archive_pod(&mut world)).as_deref(), Some("GiveUp"));
    assert!(world.volume.is_some() && world.pods.keys().any(|(_, name)| name.ends_with("-2")), "no second attempt");
}

/// L1: the pause before the next attempt is measured by clocks that do not agree.
#[test]
fn a_node_whose_clock_is_ahead_does_not_hold_the_next_attempt_up() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    archive_pod(&mut world).status = from(
        json!({"phase": "Failed", "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 1, "finishedAt": "2028-01-01T00:00:00Z"}}}]}),
    );
    for _ in 0..10 {
        pass(&mut world);
    }
    assert!(world.pods.keys().any(|(_, name)| name.ends_with("-2")), "no second attempt");
}

/// L2: nobody can mount the volume there, say; the pod sits in `ContainerCreating`.
#[test]
fn an_archive_pod_that_does_not_start_is_told_about() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    archive_pod(&mut world).status = from(
        json!({"phase": "Pending", "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]}),
    );
    for _ in 0..8 {
        pass(&mut world);
    }
    let blocker = pass(&mut world).report.blocker.expect("L2");
    assert!(blocker.reason == Reason::ArchivePodWaiting && blocker.message.contains("kubectl"), "{blocker:?}");
}

/// Every volume takes a moment to be let go by its node: that is no alarm.
#[test]
fn a_volume_that_is_just_being_detached_blocks_nothing_yet() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    world.attached = true;
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.time());
    world.computer.as_mut().unwrap().metadata.deletion_timestamp = Some(now);
    for _ in 0..3 {
        assert_eq!(pass(&mut world).report.blocker, None);
    }
    for _ in 0..5 {
        pass(&mut world);
    }
    assert_eq!(pass(&mut world).report.blocker.map(|b| b.reason), Some(Reason::VolumeAttached));
    world.attached = false;
    for _ in 0..10 {
        pass(&mut world);
    }
    assert!(world.computer.is_none());
}

/// L1, found by the simulator: the home's claim was gone and the next one on record, but not made, when the deletion began. The
/// volume still names the old one.
#[test]
fn a_home_between_two_claims_is_archived() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.claims.clear();
    world.pods.clear();
    let children = &mut world.record.as_mut().unwrap().spec.state.children;
    children.pods.clear();
    children.claim_name = Some("the-next".into());
    let gone = children.claim_uid.take();
    children.volume.as_mut().unwrap().former_claim_uid = gone;
    for _ in 0..100 {
        pass(&mut world);
    }
    assert!(world.computer.is_none() && world.manifest && world.receipt.is_some());
}

/// S6, S3: a Secret whose create came true after another one was issued.
#[test]
fn a_secret_under_a_former_name_is_gone_before_the_release() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    let children = &mut world.record.as_mut().unwrap().spec.state.children;
    children.former_secret_names = vec!["computer-key-never-made".into(), "computer-key-late".into()];
    world.late_secret = Some(("computer-key-late".into(), "late".into()));
    let (world, _) = run(world, Crash::Never, true);
    assert_eq!(world.late_secret, None);
}
