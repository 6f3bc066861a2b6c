//! What a process remembers between two reconciles, and decisions that are withdrawn meanwhile.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use serde_json::json;

use super::disturbed::{archive_pod, pass, skip};
use super::world::{World, from};
use crate::archive::uploads::Upload;
use crate::computer::action::Action;
use crate::computer::plan::plan;
use crate::computer::report::{Next, Report};
use crate::resources::reasons::Reason;
use crate::resources::steps::{DeletionStep, StepResult};
use crate::resources::*;

/// S1: a finished step is remembered only with the version of the record with which it finished: a pod that another leader has recorded since
/// is stopped before anything is archived.
#[test]
fn a_step_that_finished_with_another_version_of_the_record_runs_again() {
    let latest = crate::computer::memory::Latest::default();
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.record.as_mut().unwrap().metadata.resource_version = Some("1".to_owned());
    let outcome = StepOutcome { result: StepResult::Verified, detail: String::new(), at: MicroTime(world.time()), unknown: Unknown::new() };
    let steps = BTreeMap::from([(DeletionStep::RevokeCredentials, outcome)]);
    let report = Report { phase: Some(Phase::Deleting), passed: steps.clone(), ..Report::default() };
    latest.note_passed(&world.view(true), &report);
    latest.note_passed(&world.view(true), &Report::default());
    let seen = |world: &World| {
        let mut view = world.view(true);
        latest.freshen(&mut view);
        view.passed
    };
    assert_eq!(seen(&world), steps, "an unnecessary request");
    world.record.as_mut().unwrap().metadata.resource_version = Some("2".to_owned());
    assert!(seen(&world).is_empty());
}

/// S1, S11: the decision could not be recorded, the override was withdrawn, then the API server recovered.
#[test]
fn an_override_that_is_withdrawn_before_it_is_recorded_destroys_nothing() {
    let latest = crate::computer::memory::Latest::default();
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.record.as_mut().unwrap().metadata.resource_version = Some("1".to_owned());
    world.no_archive = true;
    world.overrides = skip("archive-sessions");
    let decides = |action: &Action| match action {
        Action::SaveRecord(r) => r.spec.state.deletion.as_ref().is_some_and(|d| d.steps.get(DeletionStep::ArchiveSessions).is_some()),
        _ => false,
    };
    let mut withdrawn = 0;
    for _ in 0..100 {
        let mut view = world.view(true);
        latest.freshen(&mut view);
        loop {
            let current = plan(&view);
            let action = match &current.next {
                Next::Do(action) if !decides(action) => action.clone(),
                stopped => {
                    withdrawn += u32::from(matches!(stopped, Next::Do(_)));
                    latest.note_passed(&view, &current.report);
                    break;
                }
            };
            let effect = world.apply(action);
            view.absorb(effect);
        }
        world.others();
        if withdrawn > 0 {
            world.overrides.clear();
        }
    }
    assert_eq!(withdrawn, 1, "the override still counts");
    assert!(world.volume.is_some(), "S1: destroyed without an archive");
}

/// S11: by an override, the pod gives up files, and the override is withdrawn while the pod runs.
#[test]
fn the_manifest_names_the_override_that_was_in_effect_when_the_pod_started() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    world.overrides = skip("unreadable-files");
    let by = |pod: &k8s_openapi::api::core::v1::Pod| {
        let env = pod.spec.as_ref().unwrap().containers[0].env.clone().unwrap();
        env.into_iter().find(|e| e.name == "LEFT_OUT_BY").unwrap().value.unwrap_or_default()
    };
    assert!(by(archive_pod(&mut world)).starts_with("by DeletionOverride o: "), "the manifest would name no decision");
    let first = archive_pod(&mut world).metadata.uid.clone();
    world.overrides.clear();
    // The pod has not started, so it has given up nothing.
    let pod = archive_pod(&mut world);
    pod.status = from(json!({"phase": "Pending"}));
    crate::runtime::cached_fields::pod(pod);
    for _ in 0..6 {
        pass(&mut world);
    }
    let pod = archive_pod(&mut world);
    assert!(by(pod).is_empty() && pod.metadata.uid != first, "S11: a withdrawn override still gives up files");
    // Two overrides with the same content are two decisions.
    for (name, uid) in [("first", "1"), ("second", "2")] {
        let mut decision = skip("unreadable-files");
        (decision[0].metadata.name, decision[0].metadata.uid) = (Some(name.to_owned()), Some(uid.to_owned()));
        world.overrides = decision;
        let pod = archive_pod(&mut world);
        pod.status = from(json!({"phase": "Pending"}));
        crate::runtime::cached_fields::pod(pod);
        for _ in 0..6 {
            pass(&mut world);
        }
        assert!(by(archive_pod(&mut world)).contains(name), "S11: {name} is not named");
    }
}

/// L2: a read-back that exceeds the deadline is reported; one within the deadline is not.
#[test]
fn an_archive_check_is_reported_only_when_it_exceeds_the_deadline() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    archive_pod(&mut world);
    let looking = |world: &World| {
        let mut view = world.view(true);
        view.archive = Some(crate::archive::Verification::Running);
        plan(&view).report
    };
    let report = looking(&world);
    assert!(report.checking && report.blocker.is_none(), "{report:?}");
    world.now += 2 * 3600;
    let report = looking(&world);
    assert!(report.checking && report.blocker.is_some_and(|b| b.reason == Reason::ArchiveOverdue), "L2");
}

/// S5: an admin has reserved the volume for another claim by name, without a UID.
#[test]
fn a_volume_that_is_reserved_for_another_claim_keeps_its_policy() {
    let mut world = World::new("Delete", ArchivePolicy::None);
    let now = Time(world.time());
    world.computer.as_mut().unwrap().metadata.deletion_timestamp = Some(now);
    let claim = from(json!({"namespace": "another", "name": "database"}));
    world.volume.as_mut().unwrap().spec.as_mut().unwrap().claim_ref = Some(claim);
    world.claims.clear();
    for _ in 0..10 {
        pass(&mut world);
    }
    assert_eq!(pass(&mut world).report.blocker.map(|b| b.reason), Some(Reason::VolumeTaken));
    let spec = world.volume.expect("S5: it is gone").spec.unwrap();
    assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Retain"), "S5");
}

/// L1, S10: another leader has created the pod of an earlier attempt again from a stale record. It would keep the custody claim forever.
#[test]
fn the_archive_pods_of_all_attempts_are_deleted() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let late = archive_pod(&mut world).clone();
    let (namespace, name) = (late.metadata.namespace.clone().unwrap(), late.metadata.name.clone().unwrap());
    let next = format!("{}2", name.strip_suffix('1').unwrap());
    let mut second = world.pods.remove(&(namespace.clone(), name.clone())).unwrap();
    second.metadata.name = Some(next.clone());
    world.pods.insert((namespace.clone(), next), second);
    world.record.as_mut().unwrap().spec.state.deletion.as_mut().unwrap().custody.as_mut().unwrap().attempt = 2;
    for n in 0..40 {
        if n == 1 {
            world.pods.insert((namespace.clone(), name.clone()), late.clone());
        }
        pass(&mut world);
    }
    assert!(world.pods.is_empty() && world.computer.is_none(), "{:?}", world.pods.keys());
}

/// L2: the store accepts nothing. The archive is blocked between two attempts and also while the next one runs.
#[test]
fn an_archive_that_has_failed_is_blocked_until_an_attempt_succeeds() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    let running = from(json!({"phase": "Running"}));
    archive_pod(&mut world).status = Some(running);
    assert_eq!(pass(&mut world).report.blocker, None, "the first attempt");
    let ((namespace, name), mut pod) = world.pods.pop_last().expect("the archive pod");
    let second = format!("{}2", name.strip_suffix('1').unwrap());
    pod.metadata.name = Some(second.clone());
    world.pods.insert((namespace, second.clone()), pod);
    world.record.as_mut().unwrap().spec.state.deletion.as_mut().unwrap().custody.as_mut().unwrap().attempt = 2;
    let blocker = pass(&mut world).report.blocker.expect("L2");
    assert!(blocker.reason == Reason::ArchiveFailed && blocker.message.contains(&second), "{blocker:?}");
}

/// L8: the read-back of a large archive takes hours, and nothing showed whether it makes progress.
#[test]
fn a_running_read_back_is_shown() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    archive_pod(&mut world);
    let shown = |world: &World| {
        let mut view = world.view(true);
        view.archive = Some(crate::archive::Verification::Running);
        view.upload = Some(Upload { objects: 430, ..Upload::default() });
        view.read_back = Some(crate::archive::ReadBack { read: 120, all: 430 });
        plan(&view).report
    };
    world.now = shown(&world).deletion[2].started_at.clone().unwrap().0.as_second() + 60;
    let report = shown(&world);
    assert_eq!((report.progress.as_deref(), report.checking), (Some("verifying: 120 of 430 objects read back"), true));
}

/// Users see how far a long upload is, and why the store takes nothing, while the pod runs.
#[test]
fn a_running_upload_is_shown() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    world.no_archive = true;
    archive_pod(&mut world).status = Some(from(json!({"phase": "Running"})));
    let pod = archive_pod(&mut world).metadata.uid.clone().unwrap();
    let upload = Upload { pod, objects: 3, bytes: 20_000_000, ..Upload::default() };
    let shown = |world: &World, upload: &Upload| {
        let mut view = world.view(true);
        view.archive = Some(crate::archive::Verification::Missing);
        view.upload = Some(upload.clone());
        plan(&view).report
    };
    let began = shown(&world, &upload).deletion[2].started_at.clone().unwrap().0.as_second();
    world.now = began + 5;
    assert_eq!(shown(&world, &upload).progress, None, "a small home costs no write");
    world.now = began + 60;
    let report = shown(&world, &upload);
    assert_eq!((report.progress.as_deref(), report.blocker), (Some("3 objects stored, 20.0 MB sent by this attempt"), None));
    let of_home = "12 1200000000 40 3400000000".parse().ok();
    let text = shown(&world, &Upload { archived: of_home, ..upload.clone() }).progress;
    assert_eq!(text.as_deref(), Some("archived 1.2 GB of about 3.4 GB, 12 of 40 sessions"));
    let refused = Upload { failing: Some("bucket b: 403 AccessDenied".to_owned()), failed: true, ..upload };
    let blocker = shown(&world, &refused).blocker.expect("L2");
    assert!(blocker.reason == Reason::StoreUnavailable && blocker.message.contains("403 AccessDenied"), "{blocker:?}");
    let of_another_pod = Upload { pod: "another".to_owned(), ..refused.clone() };
    assert_eq!(shown(&world, &of_another_pod).blocker, None, "this attempt has sent nothing yet");
    // The pod ends without an archive, and the next attempt waits: the cause is the same, and so is the reason.
    let ended = json!({"terminated": {"exitCode": 1, "finishedAt": world.time()}});
    archive_pod(&mut world).status = Some(from(json!({"phase": "Failed", "containerStatuses": [{"name": "archive", "image": "i",
        "imageID": "i", "ready": false, "restartCount": 0, "state": ended}]})));
    let reason = |upload: &Upload| shown(&world, upload).blocker.map(|b| b.reason);
    assert_eq!(shown(&world, &refused).progress, None, "L6: it was blocked before, and has not moved since");
    assert_eq!(reason(&Upload { failing: None, ..refused.clone() }), Some(Reason::StoreUnavailable));
    assert_eq!(reason(&of_another_pod), Some(Reason::ArchiveFailed), "its failure has another cause");
    assert_eq!(reason(&Upload { failed: false, ..refused }), Some(Reason::ArchiveFailed));
}
