//! A machine that gets its key: it follows each next key, has no more rights than its class says, and nothing changes for other classes.

use std::time::Duration;

use serde_json::json;

use super::world::{World, from};
use crate::computer::action::{Action, Effect, Fact, Object, Subject};
use crate::computer::plan::plan;
use crate::computer::report::Next;
use crate::resources::*;

/// A computer in use whose class says this about keys.
fn of_class(key: serde_json::Value) -> World {
    let mut world = World::new(json!({}));
    world.class_key = key;
    world.settle(None);
    world.key_check_in = Some(Duration::ZERO);
    world
}

fn mounted() -> World {
    of_class(json!({"mountPath": "/run/computer"}))
}

fn secret(world: &World) -> (String, Option<String>) {
    let children = &world.state().children;
    (children.secret_name.clone().unwrap(), children.secret_uid.clone())
}

fn rotate(world: &mut World, to: &str) {
    world.computer.spec.key.rotation = Some(to.to_owned());
}

fn restart(world: &mut World) {
    world.computer.spec.suspended = true;
    world.settle(None);
    world.computer.spec.suspended = false;
    world.settle(None);
}

fn volumes(world: &World) -> usize {
    world.pods.values().next().unwrap().spec.as_ref().unwrap().volumes.as_ref().unwrap().len()
}

#[test]
fn the_machine_mounts_its_secret_and_the_key_has_the_rights_of_an_agent() {
    let world = mounted();
    let (name, _) = secret(&world);
    let state = world.state();
    assert_eq!(state.children.pods[0].key_secret.as_ref(), Some(&name));
    assert_eq!(state.key_allow, Some(vec!["get".to_owned(), "sessions".to_owned()]));
    assert!(world.followed.contains(&name), "the kubelet does not follow an immutable Secret");
    assert_eq!(volumes(&world), 2);
    let annotations = world.pods.values().next().unwrap().metadata.annotations.clone().unwrap();
    assert_eq!(annotations.get(URL_ANNOTATION).map(String::as_str), Some("http://api"));
}

#[test]
fn nothing_changes_for_a_class_that_says_nothing_about_keys() {
    let world = of_class(json!(null));
    let state = world.state();
    assert_eq!((state.key_allow.clone(), state.key_mounted, state.children.secret_followed), (None, false, false));
    assert!(world.followed.is_empty() && volumes(&world) == 1 && state.children.pods[0].key_secret.is_none());
    let stored = serde_json::to_string(state).unwrap();
    assert!(!stored.contains("keyAllow") && !stored.contains("keyMounted") && !stored.contains("secretFollowed"), "{stored}");
}

#[test]
fn a_rotation_keeps_the_name_so_that_the_machine_follows() {
    let mut world = mounted();
    let mut before = secret(&world);
    for n in 1..4 {
        rotate(&mut world, &n.to_string());
        let uids = world.uids;
        let end = world.settle(None);
        assert_eq!(world.uids, uids + 1, "one Secret for one rotation");
        let now = secret(&world);
        assert_eq!((&now.0, end.report.drift), (&before.0, None));
        assert_ne!(now.1, before.1);
        assert_eq!(world.secrets, [(now.0.clone(), now.1.clone().unwrap())].into());
        before = now;
    }
    assert_eq!(world.pods.len(), 1, "without a restart");
}

/// A crash may lose the token between two writes. Then the name changes, because a create under the old one may be in flight, and it is shown.
#[test]
fn a_crash_in_a_rotation_leaves_one_key_that_the_machine_mounts_or_says_what_to_do() {
    for n in 1..14 {
        let mut world = mounted();
        let (first, hash) = (secret(&world), world.state().key_hash.clone());
        rotate(&mut world, "2");
        let end = world.settle(Some(n));
        let now = secret(&world);
        assert!(now.1 != first.1 && world.state().key_hash != hash, "crash {n}");
        // What has a name whose create was interrupted is deleted with the computer.
        let former = world.state().children.former_secret_names.clone();
        let current: std::collections::BTreeMap<_, _> =
            world.secrets.clone().into_iter().filter(|(name, _)| !former.contains(name)).collect();
        assert_eq!(current, [(now.0.clone(), now.1.clone().unwrap())].into(), "crash {n}");
        assert_eq!(world.state().children.retired_secret, None, "crash {n}");
        let said = end.report.drift.unwrap_or_default();
        assert_eq!(now.0 != first.0, said.contains("Suspend and resume the computer"), "crash {n}: {said}");
        restart(&mut world);
        assert_eq!(world.state().children.pods[0].key_secret.as_ref(), Some(&now.0), "crash {n}");
        assert_eq!(world.settle(None).report.drift, None, "crash {n}");
    }
}

#[test]
fn a_lost_secret_comes_back_under_its_name_unless_another_object_has_it() {
    let mut world = mounted();
    let (name, uid) = secret(&world);
    world.secrets.clear();
    assert_eq!(world.settle(None).report.drift, None);
    assert!(secret(&world).0 == name && secret(&world).1 != uid);
    world.secrets.insert(name.clone(), "restored".to_owned());
    world.settle(None);
    assert_ne!(secret(&world).0, name);
    assert!(world.settle(None).report.drift.unwrap().contains(&name));
}

/// S5: the name of a Secret that a machine mounts is no secret. Another client can create one between the operator's delete and its create.
#[test]
fn a_foreign_secret_under_a_kept_name_is_not_adopted() {
    for before_the_create in [true, false] {
        let mut world = mounted();
        let (name, uid) = secret(&world);
        rotate(&mut world, "2");
        world.passes += 1;
        let mut view = world.view();
        while let Next::Do(action) = plan(&view).next {
            let creates = matches!(&action, Action::Create(Object::Secret(_)));
            if creates && before_the_create {
                world.secrets.insert(name.clone(), "foreign".to_owned());
            } else if creates {
                world.secrets.insert(name.clone(), "foreign".to_owned());
                break; // the operator crashes before its request is sent
            }
            view.absorb(world.apply(action));
        }
        world.others();
        let requests = world.writes;
        world.settle(None);
        let now = secret(&world);
        assert!(now.0 != name && now.1.is_some() && now.1 != uid && now.1.as_deref() != Some("foreign"), "{now:?}");
        assert!(world.writes < requests + 5, "a hot loop: {} requests", world.writes - requests);
        assert_eq!(world.state().children.former_secret_names, [name]);
        let writes = world.writes;
        world.settle(None);
        assert_eq!(world.writes, writes, "L6");
    }
}

/// L1: the next key must not wait for what keeps the Secret of the last one.
#[test]
fn a_finalizer_on_the_old_secret_does_not_keep_the_next_key_from_being_issued() {
    let mut world = mounted();
    let (name, uid) = secret(&world);
    rotate(&mut world, "2");
    for _ in 0..10 {
        world.passes += 1;
        let mut view = world.view();
        while let Next::Do(action) = plan(&view).next {
            let effect = match action {
                Action::Delete { subject: subject @ Subject::Secret { .. }, uid: of } if Some(&of) == uid.as_ref() => {
                    Effect::Learned(subject, Fact::Held(of))
                }
                action => world.apply(action),
            };
            view.absorb(effect);
        }
        world.others();
    }
    let children = &world.state().children;
    assert!(children.secret_uid.is_some() && children.secret_name.as_ref() != Some(&name));
    assert_eq!(children.former_secret_names, [name], "the deletion of the computer waits for it");
}

/// Clients rely on the rights that a key has. They become fewer when the key enters the machine, not before.
#[test]
fn a_class_that_gets_a_mount_path_applies_at_the_next_start() {
    let mut world = of_class(json!(null));
    let before = (world.writes, secret(&world));
    world.class_key = json!({"mountPath": "/run/computer"});
    let end = world.settle(None);
    assert_eq!((world.writes, secret(&world), end.report.drift), (before.0, before.1.clone(), None));
    restart(&mut world);
    assert_eq!(volumes(&world), 2);
    assert_eq!(world.state().children.pods[0].key_secret.as_ref(), Some(&before.1.0), "the same key");
    assert_eq!(world.state().key_allow, Some(vec!["get".to_owned(), "sessions".to_owned()]));
    // Its Secret is immutable, so this machine does not follow the first rotation. It is shown, and the next start helps.
    rotate(&mut world, "2");
    assert!(world.settle(None).report.drift.is_some());
    restart(&mut world);
    let name = secret(&world).0;
    rotate(&mut world, "3");
    assert_eq!(world.settle(None).report.drift, None);
    assert_eq!(secret(&world).0, name);
}

/// S2: no machine may find its key with more rights than its class gives it then.
#[test]
fn the_rights_are_recorded_before_the_pod_is_created() {
    let mut world = of_class(json!(null));
    world.class_key = json!({"mountPath": "/run/computer", "allow": ["get"]});
    world.computer.spec.suspended = true;
    world.settle(None);
    world.computer.spec.suspended = false;
    world.passes += 1;
    let mut view = world.view();
    while let Next::Do(action) = plan(&view).next {
        if let Action::Create(Object::Machine(pod)) = &action {
            let mounts = pod.to_string().contains("computer-key");
            assert!(mounts && world.state().key_allow == Some(vec!["get".to_owned()]), "{pod}");
            return;
        }
        view.absorb(world.apply(action));
    }
    panic!("no pod was created");
}

#[test]
fn what_the_class_allows_applies_at_once_and_a_class_that_is_gone_changes_nothing() {
    let mut world = of_class(json!(null));
    let pod = world.pods.keys().next().unwrap().clone();
    world.class_key = json!({"allow": ["get", "delete"]});
    world.settle(None);
    assert_eq!(world.state().key_allow, Some(vec!["get".to_owned(), "delete".to_owned()]));
    world.class_key = json!({"allow": []});
    world.settle(None);
    assert_eq!(world.state().key_allow, Some(vec![]));
    let writes = world.writes;
    world.settle(None);
    assert_eq!(world.writes, writes, "L6");
    assert!(world.pods.contains_key(&pod) && world.settle(None).report.drift.is_none());
    let mut view = world.view();
    view.class = crate::computer::view::ClassState::Missing;
    view.finalizer_confirmed = true;
    view.key_check_in = None;
    assert!(!matches!(plan(&view).next, Next::Do(Action::SaveRecord(_))));
    world.class_key = json!(null);
    world.settle(None);
    assert_eq!(world.state().key_allow, None);
}

/// S2: a copy of a key that was in a machine must not gain rights when the class stops mounting keys. Only another key has all of them.
#[test]
fn a_key_that_was_in_a_machine_keeps_its_few_rights_until_another_one_is_issued() {
    let few = Some(vec!["get".to_owned(), "sessions".to_owned()]);
    let mut world = mounted();
    let hash = world.state().key_hash.clone();
    world.class_key = json!(null);
    restart(&mut world);
    assert_eq!((volumes(&world), &world.state().key_hash), (1, &hash), "the same key, in no machine");
    assert!(world.state().key_mounted && world.state().key_allow == few, "{:?}", world.state().key_allow);
    world.computer.spec.key.overlap_seconds = 3600;
    rotate(&mut world, "2");
    world.settle(None);
    assert_eq!(world.state().key_allow, few, "the old key still authenticates");
    world.computer.spec.key.overlap_seconds = 0;
    rotate(&mut world, "3");
    world.settle(None);
    assert!(!world.state().key_mounted && world.state().key_allow.is_none(), "{:?}", world.state().key_allow);
}

/// A running machine that mounts the Secret gets the next key too.
#[test]
fn the_next_key_has_few_rights_while_a_machine_still_mounts_its_secret() {
    let mut world = mounted();
    world.class_key = json!(null);
    rotate(&mut world, "2");
    world.settle(None);
    assert_eq!((volumes(&world), world.state().key_mounted), (2, true));
    assert_eq!(world.state().key_allow, Some(vec!["get".to_owned(), "sessions".to_owned()]));
}

/// An older record has none of the fields.
#[test]
fn a_record_of_an_earlier_version_allows_everything() {
    let state: RecordState = from(json!({"credential": "Live", "keyHash": "x"}));
    assert_eq!((state.key_allow, state.key_mounted, state.children.secret_followed), (None, false, false));
}
