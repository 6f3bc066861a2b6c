//! Reads that a deletion does not make, because an event shows the same a moment later, or the next request does (issue 15). Each test also
//! shows when the read is made after all: absence is proved by a live read (S3).

use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::disturbed::{archive_pod, pass, skip};
use super::world::{HOME, MACHINE, OWN, UID, World, from};
use crate::computer::action::{Action, Fact, Object, Subject};
use crate::computer::plan::plan;
use crate::computer::report::Next;
use crate::computer::view::View;
use crate::resources::*;

fn claim(namespace: &str, name: &str) -> (String, String) {
    (namespace.to_owned(), name.to_owned())
}

/// The pods have stopped and are gone, and the claim's protection ends a moment later: a watch shows that.
#[test]
fn pods_that_have_stopped_are_read_once_after_their_claim_is_gone() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let stopped = |world: &World| world.record.as_ref().unwrap().spec.state.children.pods[0].stopped_at.is_some();
    while !stopped(&world) {
        pass(&mut world);
    }
    world.pods.clear();
    let time = world.time();
    let home: k8s_openapi::api::core::v1::PersistentVolumeClaim =
        from(json!({"metadata": {"name": HOME, "namespace": "t", "uid": "claim", "deletionTimestamp": time}}));
    world.claims.insert(claim("t", HOME), home);
    world.record.as_mut().unwrap().spec.state.children.pods[0].stopped_at = Some(Time(time));
    let next = |world: &World| plan(&world.view(true)).next;
    let read = Next::Do(Action::Read(Subject::pod("t", MACHINE)));
    assert!(matches!(next(&world), Next::Wait(left) if left.as_secs() <= 3), "{:?}", next(&world));
    world.now += 3;
    assert_eq!(next(&world), read, "the claim is still there: another pod may use it");
    world.now -= 3;
    world.claims.clear();
    let mut view = world.view(true);
    view.facts.insert(Subject::claim("t", HOME), Fact::Gone);
    view.facts.extend(world.volume.clone().map(|pv| (Subject::volume("pv"), Fact::Volume(Box::new(reserved(pv))))));
    assert_eq!(plan(&view).next, read, "S3");
}

/// The volume as it is once it is reserved for the custody claim.
fn reserved(mut pv: PersistentVolume) -> PersistentVolume {
    pv.spec.as_mut().unwrap().claim_ref = from(json!({"namespace": OWN, "name": format!("home-{UID}")}));
    pv.status = from(json!({"phase": "Available"}));
    pv
}

/// The policy is restored and the custody claim ends: its event causes the reconcile that reads what is left.
#[test]
fn the_archive_pod_is_read_after_the_claim_that_it_used_is_gone() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    archive_pod(&mut world);
    let custody = claim(OWN, &format!("home-{UID}"));
    let mut seen = false;
    for _ in 0..40 {
        let ending = world.claims.get(&custody).is_some_and(|c| c.metadata.deletion_timestamp.is_some());
        if ending {
            seen = true;
            // A pod keeps the claim for a moment, and no cache shows that pod any more.
            let mut view = world.view(true);
            view.facts.retain(|subject, _| !matches!(subject, Subject::Pod { .. }));
            view.passed = all_before_volumes(&view);
            let pod = Subject::pod(OWN, &view.archive_pod_name(1));
            assert!(matches!(plan(&view).next, Next::Wait(_)), "{:?}", plan(&view).next);
            view.facts.insert(Subject::claim(OWN, &custody.1), Fact::Gone);
            assert_eq!(plan(&view).next, Next::Do(Action::Read(pod)), "S3");
            break;
        }
        // The claim is deleted in the middle of a reconcile: stop there.
        let mut view = world.view(true);
        while let Next::Do(action) = plan(&view).next {
            let last = matches!(&action, Action::Delete { subject: Subject::Claim { namespace, .. }, .. } if namespace == OWN);
            let effect = world.apply(action);
            view.absorb(effect);
            if last {
                break;
            }
        }
        if world.claims.get(&custody).is_none_or(|c| c.metadata.deletion_timestamp.is_none()) {
            world.others();
        }
    }
    assert!(seen, "the custody claim was never deleted");
}

/// What a process remembers that has seen every step before `delete-volumes` finished.
fn all_before_volumes(view: &View) -> std::collections::BTreeMap<crate::resources::steps::DeletionStep, StepOutcome> {
    use crate::resources::steps::{DeletionStep, Sequence as _, StepResult};
    let outcome = || StepOutcome {
        result: StepResult::Verified,
        detail: String::new(),
        at: k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(view.now),
        unknown: Unknown::new(),
    };
    DeletionStep::ALL.iter().take_while(|step| **step != DeletionStep::DeleteVolumes).map(|step| (*step, outcome())).collect()
}

/// If the custody claim exists, its create says so. A refused create says nothing: admission and quotas come first.
#[test]
fn the_custody_claim_is_read_only_after_its_create_was_refused() {
    let mut world = World::new("Delete", ArchivePolicy::Required);
    let mut created = None;
    for _ in 0..20 {
        let mut view = world.view(true);
        while let Next::Do(action) = plan(&view).next {
            if matches!(action, Action::Create(Object::Claim(_))) {
                created = Some(view.clone());
                break;
            }
            let effect = world.apply(action);
            view.absorb(effect);
        }
        if created.is_some() {
            break;
        }
        world.others();
    }
    let mut view = created.expect("no custody claim was created");
    let custody = Subject::claim(OWN, &view.custody_claim_name());
    assert!(!view.facts.contains_key(&custody), "read before its create");
    view.failures = 1;
    assert_eq!(plan(&view).next, Next::Do(Action::Read(custody)));
}

/// What has happened to the volume before.
type Change<'a> = &'a dyn Fn(&mut World);

/// The receipt says what has become of a volume that an admin keeps: it is all that is left to find it by.
#[test]
fn the_receipt_says_what_has_become_of_a_volume_that_is_kept() {
    let receipt = |change: Change<'_>| {
        let mut world = World::new("Delete", ArchivePolicy::None);
        world.overrides = skip("delete-volumes");
        change(&mut world);
        for _ in 0..60 {
            pass(&mut world);
        }
        String::from_utf8(world.receipt.expect("a receipt")).unwrap()
    };
    let volume = |world: &mut World, change: &dyn Fn(&mut Value)| {
        let mut value = serde_json::to_value(world.volume.as_ref().unwrap()).unwrap();
        change(&mut value);
        world.volume = Some(from(value));
    };
    let theirs = json!({"namespace": "t", "name": "other", "uid": "another"});
    let cases: [(&str, Change<'_>); 4] = [
        ("PersistentVolume pv is kept, without the operator's labels", &|_| ()),
        ("PersistentVolume pv no longer exists", &|world| world.volume = None),
        ("PersistentVolume pv belongs to another claim and was not changed", &|world| {
            volume(world, &|pv| pv["spec"]["claimRef"] = theirs.clone());
        }),
        ("PersistentVolume pv was not changed: it still has the operator's labels", &|world| {
            volume(world, &|pv| pv["spec"]["claimRef"] = Value::Null);
        }),
    ];
    for (text, change) in cases {
        let receipt = receipt(change);
        assert!(receipt.contains(text), "{text}: {receipt}");
    }
}
