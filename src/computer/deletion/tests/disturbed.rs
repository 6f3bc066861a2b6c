//! Deletions disturbed by tenants, admins, lost nodes and stale caches.

use serde_json::json;

use super::times::remembering;
use super::world::{MACHINE, UID, World, from};
use super::{Crash, run};
use crate::archive::pod_program::EXIT_UNREADABLE;
use crate::computer::action::{Action, Effect, Subject};
use crate::computer::plan::plan;
use crate::computer::report::{Next, Plan};
use crate::resources::reasons::Reason;
use crate::resources::steps::CurrentStep;
use crate::resources::*;

/// Performs the planned actions until the plan waits; nobody else does anything.
pub(super) fn own_pass(world: &mut World) -> Plan {
    let mut view = world.view(true);
    loop {
        let current = plan(&view);
        let Next::Do(action) = &current.next else { return current };
        let effect = world.apply(action.clone());
        view.absorb(effect);
    }
}

/// One reconcile, then one step of the other controllers.
pub(super) fn pass(world: &mut World) -> Plan {
    let last = own_pass(world);
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

/// A tenant may be able to write the status of a Computer, from which a lost record is re-created. The status proves nothing about a volume.
#[test]
fn a_forged_status_destroys_no_volume_of_another_computer() {
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

/// After the record was lost, the status counts as far as the volume itself confirms it.
#[test]
fn a_lost_record_is_re_created_and_its_home_archived() {
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

/// S4: a namespace and a Computer were re-created with their old names; the cache still holds the old namespace.
#[test]
fn a_stale_cache_of_the_old_namespace_deletes_no_new_computer() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.computer.as_mut().unwrap().metadata.deletion_timestamp = None;
    let mut view = world.view(true);
    view.namespace_terminating = true;
    for record in [view.record.clone(), None] {
        view.record = record;
        assert!(matches!(plan(&view).next, Next::Do(Action::Read(_))), "{:?}", plan(&view).next);
    }
}

/// S9: an override is no longer needed once its step is skipped and the volume is gone.
#[test]
fn an_override_that_is_deleted_too_late_changes_nothing() {
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

/// L1, S11: the message asks an admin to create exactly this override.
#[test]
fn an_override_releases_the_pod_of_a_lost_node() {
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

/// L1: the kubelet stopped the pod (graceful shutdown of its node), then the node was lost.
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

/// S9: the proof that the node no longer writes came before the archive; the volume is gone now.
#[test]
fn a_node_that_is_lost_after_the_archive_delays_nothing() {
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

/// S6: a create that timed out succeeds after the release. The operator's own finalizer would keep the pod forever.
#[test]
fn a_pod_that_is_created_after_the_release_is_removed() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    let late = world.pods.values().next().unwrap().clone();
    world.pods.clear();
    world.record.as_mut().unwrap().spec.state.children.pods[0].uid = None;
    let (mut world, _) = run(world, Crash::Never, true);
    assert!(world.view(true).only_expiry_left());
    world.pods.insert(("t".into(), MACHINE.into()), late);
    assert!(!world.view(true).only_expiry_left());
    for _ in 0..20 {
        pass(&mut world);
    }
    assert!(world.pods.is_empty() && world.view(true).only_expiry_left());
}

/// L7: with hand-off, a store that is down keeps no namespace, even if only the receipt needs the store.
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
    assert!(world.computer.is_none(), "the namespace is kept");
    for _ in 0..5 {
        pass(&mut world);
    }
    assert!(world.receipt.is_some());
}

/// L2: a Computer that is kept by a finalizer of another controller is not "at step delete-volumes".
#[test]
fn a_released_computer_that_still_exists_names_the_foreign_finalizer() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    world.computer.as_mut().unwrap().metadata.finalizers.as_mut().unwrap().push("theirs.example/keep".into());
    for _ in 0..20 {
        pass(&mut world);
    }
    let report = pass(&mut world).report;
    assert_eq!(report.current.map(CurrentStep::id), Some("release"));
    assert!(report.blocker.is_some_and(|b| b.message.contains("theirs.example/keep")), "L2");
}

/// The archive pod, as soon as it exists.
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

/// L1, S1: quotas and webhooks refuse a create before the API server says that the object exists, and the pod itself may fill the quota. Only
/// the first create is sent without a read.
#[test]
fn an_archive_pod_that_no_cache_shows_is_found_after_a_refused_create() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    archive_pod(&mut world);
    let mut record = world.record.clone().unwrap();
    record.spec.state.deletion.as_mut().unwrap().custody = None;
    let next = |failures: u32| {
        let mut view = world.view(true);
        view.facts.retain(|subject, _| !matches!(subject, Subject::Pod { name, .. } if name.starts_with("archive-")));
        (view.record, view.failures) = (Some(record.clone()), failures);
        view.absorb(Effect::Archive(crate::archive::Verification::Missing));
        plan(&view).next
    };
    assert!(matches!(next(0), Next::Do(Action::Create(_))), "{:?}", next(0));
    assert!(matches!(next(1), Next::Do(Action::Read(Subject::Pod { .. }))), "{:?}", next(1));
}

/// L1, L2: an evicted pod has no container status with a reason or a time.
#[test]
fn the_eviction_of_an_archive_pod_is_reported_and_the_pod_replaced() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    archive_pod(&mut world);
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.time());
    let pod = archive_pod(&mut world);
    pod.status = from(json!({"phase": "Failed", "reason": "Evicted", "message": "the node is low on ephemeral-storage"}));
    pod.metadata.creation_timestamp = Some(now);
    let blocker = pass(&mut world).report.blocker.expect("L2");
    assert!(blocker.message.contains("low on ephemeral-storage"), "{blocker:?}");
    for _ in 0..10 {
        pass(&mut world);
    }
    assert!(world.pods.keys().any(|(_, name)| name.ends_with("-2")), "L1: no second attempt");
}

/// S1, S11: an unreadable file waits for an admin. Once it is given up, the next attempt starts at once with that instruction.
#[test]
fn a_file_that_cannot_be_read_blocks_until_it_is_given_up() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    let instruction = |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.spec.as_ref().unwrap().containers[0].env.clone().unwrap().into_iter().find(|e| e.name == "UNREADABLE").unwrap().value
    };
    let locked = json!({"phase": "Failed", "containerStatuses": [{"name": "archive", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": EXIT_UNREADABLE}}}]});
    assert_eq!(instruction(archive_pod(&mut world)).as_deref(), Some("Block"));
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
    assert_eq!(instruction(archive_pod(&mut world)).as_deref(), Some("GiveUp"));
    assert!(world.volume.is_some() && world.pods.keys().any(|(_, name)| name.ends_with("-2")), "no second attempt");
}

/// L1: the pause before the next attempt depends on clocks that differ.
#[test]
fn a_node_whose_clock_is_ahead_does_not_delay_the_next_attempt() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    archive_pod(&mut world).status = from(
        json!({"phase": "Failed", "containerStatuses": [{"name": "archive", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 1, "finishedAt": "2028-01-01T00:00:00Z"}}}]}),
    );
    for _ in 0..10 {
        pass(&mut world);
    }
    assert!(world.pods.keys().any(|(_, name)| name.ends_with("-2")), "no second attempt");
}

/// L2: for example the volume cannot be mounted, and the pod stays in `ContainerCreating`.
#[test]
fn an_archive_pod_that_does_not_start_is_reported() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    archive_pod(&mut world).status = from(
        json!({"phase": "Pending", "containerStatuses": [{"name": "archive", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]}),
    );
    for _ in 0..8 {
        pass(&mut world);
    }
    let blocker = pass(&mut world).report.blocker.expect("L2");
    assert!(blocker.reason == Reason::ArchivePodWaiting && blocker.message.contains("kubectl"), "{blocker:?}");
}

/// A detachment always takes a moment, which must not be reported.
#[test]
fn a_volume_that_is_just_being_detached_is_not_reported() {
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

/// L1, found by the simulator: when the deletion started, the home's claim was gone and the next one was recorded but not created. The
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

/// S6, S3: the create of a Secret succeeded after another one was issued.
#[test]
fn a_secret_with_a_former_name_is_gone_before_the_release() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    let children = &mut world.record.as_mut().unwrap().spec.state.children;
    children.former_secret_names = vec!["computer-key-never-made".into(), "computer-key-late".into()];
    world.late_secret = Some(("computer-key-late".into(), "late".into()));
    let (world, _) = run(world, Crash::Never, true);
    assert_eq!(world.late_secret, None);
}

/// S6, S3: a rotation that keeps the name of the Secret, because a machine mounts it, was interrupted after the create and before its UID was recorded.
#[test]
fn a_secret_under_the_name_of_the_retired_one_is_gone_before_the_release() {
    for there in [Some("next"), Some("secret"), None] {
        let mut world = World::new("Delete", ArchivePolicy::None);
        let children = &mut world.record.as_mut().unwrap().spec.state.children;
        let uid = children.secret_uid.take().unwrap();
        let name = children.secret_name.clone().unwrap();
        children.retired_secret = Some(RetiredSecret { name, uid, unknown: Unknown::new() });
        world.secret = there.map(str::to_owned);
        let (world, _) = run(world, Crash::Never, true);
        assert!(world.computer.is_none() && world.secret.is_none(), "{there:?}");
    }
}
