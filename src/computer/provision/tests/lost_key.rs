//! A live key whose Secret is gone is replaced, and nothing else waits for that.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::world::{UID, World, from};
use crate::computer::action::{Action, Effect, Fact, Object, Subject};
use crate::computer::key_checks::PERIOD;
use crate::computer::plan::plan;
use crate::computer::report::Next;
use crate::computer::view::View;
use crate::resources::reasons::Reason;
use crate::resources::*;

/// A computer in use, whose key is to be checked.
fn in_use(spec: serde_json::Value) -> World {
    let mut world = World::new(spec);
    world.settle(None);
    world.key_check_in = Some(Duration::ZERO);
    world
}

fn secret(world: &World) -> (String, Option<String>) {
    let children = &world.state().children;
    (children.secret_name.clone().unwrap(), children.secret_uid.clone())
}

#[test]
fn a_key_whose_secret_is_gone_or_is_another_object_is_replaced() {
    for spec in [json!({}), json!({"provider": "BYOM"}), json!({"suspended": true})] {
        for another in [false, true] {
            let mut world = in_use(spec.clone());
            let (name, uid) = secret(&world);
            let (hash, credential) = (world.state().key_hash.clone(), world.state().credential);
            world.secrets.clear();
            if another {
                world.secrets.insert(name.clone(), "restored".to_owned());
            }
            let end = world.settle(None);
            let (renewed, renewed_uid) = secret(&world);
            assert!(renewed != name && renewed_uid.is_some() && renewed_uid != uid && world.state().key_hash != hash);
            assert_eq!(world.secrets.get(&renewed), renewed_uid.as_ref());
            // Its UID was recorded, so no create is in flight, and what has its name now belongs to another client (S5).
            assert!(world.state().children.former_secret_names.is_empty());
            assert_eq!(world.state().credential, credential);
            let ready = end.report.ready.unwrap();
            assert!(ready.status, "{ready:?}");
            assert_eq!(end.next, Next::Wait(PERIOD));
        }
    }
}

#[test]
fn a_key_that_exists_costs_one_read_when_it_is_due_and_none_before() {
    let mut world = in_use(json!({}));
    let before = (world.writes, secret(&world));
    assert_eq!(plan(&world.view()).next, Next::Do(Action::Read(Subject::secret("t", &before.1.0))));
    assert!(plan(&world.view()).report.ready.unwrap().status, "nothing is known to be wrong");
    assert_eq!(world.settle(None).next, Next::Wait(PERIOD));
    let left = Duration::from_secs(90);
    world.key_check_in = Some(left);
    world.secrets.clear();
    assert_eq!(world.settle(None).next, Next::Wait(left));
    assert_eq!((world.writes, secret(&world)), before);
}

#[test]
fn a_crash_after_any_request_leaves_one_key() {
    for n in 1..12 {
        let mut world = in_use(json!({}));
        world.secrets.clear();
        world.settle(Some(n));
        assert_eq!(world.secrets.len(), 1, "crash {n}");
        assert_eq!(secret(&world).1.as_ref(), world.secrets.values().next(), "crash {n}");
    }
}

/// The view of a computer whose new key is recorded and has no Secret yet.
fn while_renewing(world: &mut World) -> View {
    let state = &mut world.record.as_mut().unwrap().spec.state;
    (state.children.secret_uid, state.key_issued_at) = (None, None);
    world.secrets.clear();
    world.passes += 1;
    let mut view = world.view();
    let name = secret(world).0;
    view.facts.insert(Subject::secret("t", &name), Fact::Gone);
    view
}

/// S1: a quota or a webhook may refuse every Secret.
#[test]
fn a_key_that_cannot_be_issued_does_not_keep_the_volume_from_being_protected() {
    let mut world = in_use(json!({}));
    world.volume.as_mut().unwrap().spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Delete".to_owned());
    let view = while_renewing(&mut world);
    assert!(
        matches!(plan(&view).next, Next::Do(Action::Retain { .. } | Action::Read(Subject::LiveVolume { .. }))),
        "{:?}",
        plan(&view).next
    );
}

#[test]
fn a_machine_that_does_not_start_gets_another_key() {
    let mut world = in_use(json!({}));
    let name = secret(&world).0;
    for pod in world.pods.values_mut() {
        pod.status = from(json!({"phase": "Pending"}));
    }
    let shown = plan(&world.view());
    assert_eq!(shown.next, Next::Do(Action::Read(Subject::secret("t", &name))));
    assert_eq!(shown.report.phase, Some(Phase::Provisioning));
}

/// The token of a recorded key is known to one leader. Another one lets it write the Secret first.
#[test]
fn a_key_that_was_recorded_a_moment_ago_is_not_ready_and_is_not_replaced() {
    let mut world = in_use(json!({}));
    let mut view = while_renewing(&mut world);
    view.record.as_mut().unwrap().spec.state.key_issued_at = Some(Time(view.now));
    let waiting = plan(&view);
    assert_eq!(waiting.next, Next::Wait(Duration::from_secs(20)));
    let ready = waiting.report.ready.unwrap();
    assert_eq!((ready.status, ready.reason), (false, Reason::KeyReplacement));
    view.now = view.now.checked_add(jiff::SignedDuration::from_secs(21)).unwrap();
    view.finalizer_confirmed = true;
    assert!(matches!(plan(&view).next, Next::Do(Action::SaveRecord(_))));
    // L6: this process has failed to create the Secret. It waits longer, and the wait neither ends its backoff nor withdraws the reason.
    view.failures = 2;
    let waiting = plan(&view);
    assert!(matches!(waiting.next, Next::Wait(_)) && waiting.report.checking, "{:?}", waiting.next);
    view.now = view.now.checked_add(jiff::SignedDuration::from_secs(60)).unwrap();
    assert!(matches!(plan(&view).next, Next::Do(Action::SaveRecord(_))));
}

#[test]
fn a_computer_that_is_being_deleted_gets_no_key() {
    let mut world = in_use(json!({}));
    let mut view = while_renewing(&mut world);
    view.computer.as_mut().unwrap().metadata.deletion_timestamp = Some(from(json!("2027-01-15T08:00:00Z")));
    let creates = |next: &Next| matches!(next, Next::Do(Action::Create(Object::Secret(_))));
    assert!(!creates(&plan(&view).next));
    view.computer.as_mut().unwrap().metadata.deletion_timestamp = None;
    let record = view.record.as_mut().unwrap();
    record.spec.state.credential = CredentialState::Revoked;
    let next = plan(&view).next;
    assert!(!creates(&next) && !matches!(next, Next::Do(Action::SaveRecord(_))), "S2: {next:?} for {UID}");
}

#[test]
fn a_rotation_issues_one_key_and_deletes_the_secret_of_the_old_one() {
    for overlap in [0, 600] {
        for n in 1..14 {
            let mut world = in_use(json!({}));
            let (first, hash) = (secret(&world), world.state().key_hash.clone());
            world.computer.spec.key = KeySettings { rotation: Some("2027".to_owned()), overlap_seconds: overlap };
            let ready = plan(&world.view()).report.ready.unwrap();
            assert!(!ready.status && ready.reason == Reason::KeyReplacement, "the old key may have ended already");
            let end = world.settle(Some(n));
            assert!(end.report.ready.unwrap().status, "crash {n}");
            let state = world.state().clone();
            assert_ne!((secret(&world), &state.key_hash), (first, &hash), "crash {n}");
            assert_eq!(world.secrets.len(), 1, "the old Secret is gone; crash {n}");
            assert_eq!(secret(&world).1.as_ref(), world.secrets.values().next(), "crash {n}");
            assert_eq!((state.key_rotation.as_deref(), state.children.retired_secret), (Some("2027"), None), "crash {n}");
            assert_eq!(state.former_key, None, "the overlap ends with the 20 minutes of the test; crash {n}");
        }
    }
}

/// The old key is kept for the overlap only, and a lost Secret has none.
#[test]
fn the_old_key_is_recorded_for_the_overlap_of_a_rotation() {
    let mut world = in_use(json!({}));
    let hash = world.state().key_hash.clone().unwrap();
    world.computer.spec.key = KeySettings { rotation: Some("2027".to_owned()), overlap_seconds: 600 };
    let mut view = world.view();
    view.finalizer_confirmed = true;
    let Next::Do(Action::SaveRecord(saved)) = plan(&view).next else { panic!("{:?}", plan(&view).next) };
    let former = saved.spec.state.former_key.unwrap();
    assert_eq!((former.hash, former.until.0), (hash, view.now.checked_add(jiff::SignedDuration::from_secs(600)).unwrap()));
    let mut view = while_renewing(&mut world);
    view.finalizer_confirmed = true;
    let Next::Do(Action::SaveRecord(saved)) = plan(&view).next else { panic!("{:?}", plan(&view).next) };
    assert_eq!(saved.spec.state.former_key, None);
}

/// The requests about Secrets after a rotation, up to the first wait. `held`: a finalizer keeps the old Secret.
fn requests_of_a_rotation(overlap: i64, failures: u32, held: bool) -> (Vec<&'static str>, View) {
    let mut world = in_use(json!({}));
    world.computer.spec.key = KeySettings { rotation: Some("2027".to_owned()), overlap_seconds: overlap };
    world.passes += 1;
    let mut view = world.view();
    view.failures = failures;
    let mut made = Vec::new();
    for _ in 0..40 {
        let Next::Do(action) = plan(&view).next else { return (made, view) };
        match &action {
            Action::Create(Object::Secret(_)) => made.push("create"),
            Action::Delete { subject, .. } if held => {
                made.push("delete");
                view.absorb(Effect::Learned(subject.clone(), Fact::Held("uid".to_owned())));
                continue;
            }
            Action::Delete { .. } => made.push("delete"),
            _ => {}
        }
        view.absorb(world.apply(action));
    }
    panic!("it does not end: {made:?}");
}

/// L1: a quota may have no room for two Secrets, and a webhook or a finalizer may keep the first.
#[test]
fn the_old_secret_goes_first_unless_its_key_overlaps_or_it_cannot_go() {
    assert_eq!(requests_of_a_rotation(0, 0, false).0, ["delete", "create"]);
    assert_eq!(requests_of_a_rotation(600, 0, false).0, ["create", "delete"]);
    assert_eq!(requests_of_a_rotation(0, 2, false).0, ["create", "delete"]);
    let (made, view) = requests_of_a_rotation(0, 0, true);
    assert_eq!(made, ["delete", "create"]);
    let children = &view.record.as_ref().unwrap().spec.state.children;
    assert_eq!((children.former_secret_names.len(), &children.retired_secret), (1, &None), "the deletion of the computer waits for it");
}

/// 0 ends an overlap permanently: a later value must not revive a key that has leaked (S2).
#[test]
fn an_overlap_that_is_taken_back_is_removed_from_the_record() {
    let mut world = in_use(json!({}));
    let until = Time(world.view().now.checked_add(jiff::SignedDuration::from_hours(1)).unwrap());
    world.record.as_mut().unwrap().spec.state.former_key = Some(FormerKey { hash: "x".to_owned(), until, unknown: Unknown::new() });
    world.settle(None);
    assert_eq!(world.state().former_key, None);
}

/// A quota that refuses every pod must not keep a rotated key from being issued: the old one is dead already.
#[test]
fn every_other_retry_of_a_refused_pod_begins_with_the_key() {
    let mut world = in_use(json!({}));
    world.computer.spec.key.rotation = Some("2027".to_owned());
    world.pods.clear();
    world.record.as_mut().unwrap().spec.state.children.pods[0].uid = None;
    let mut view = world.view();
    view.finalizer_confirmed = true;
    let name = world.state().children.pods[0].name.clone();
    view.facts.insert(Subject::pod("t", &name), Fact::Gone);
    assert!(matches!(plan(&view).next, Next::Do(Action::Create(Object::Machine(_)))), "{:?}", plan(&view).next);
    view.failures = 1;
    assert!(matches!(plan(&view).next, Next::Do(Action::SaveRecord(_))));
}

/// L6: the cache still shows a Computer that is gone. The garbage collector would delete each new claim, pod or Secret.
#[test]
fn nothing_is_re_created_for_a_computer_that_is_gone() {
    type Lose = fn(&mut World);
    let lose: [(&str, Lose); 3] = [
        ("a Secret", |world| world.secrets.clear()),
        ("the claim", |world| world.claims.clear()),
        ("the pod", |world| {
            world.pods.clear();
            let now = Timestamp::from_second(world.now - 3600).unwrap();
            world.record.as_mut().unwrap().spec.state.children.pods[0].stopped_at = Some(Time(now));
        }),
    ];
    for (what, lose) in lose {
        let mut world = in_use(json!({}));
        lose(&mut world);
        let mut view = world.view();
        let read = loop {
            match plan(&view).next {
                Next::Do(Action::ReadComputer) => break true,
                Next::Do(action @ Action::Read(_)) => view.absorb(world.apply(action)),
                next => panic!("{what}: {next:?} before a live read of the Computer"),
            }
        };
        view.absorb(Effect::Computer(None));
        assert!(read && view.deleting(), "{what}");
    }
}
