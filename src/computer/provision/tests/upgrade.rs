//! Records that another version of the operator wrote.

use serde_json::json;

use super::world::{World, from};
use crate::computer::plan::plan;
use crate::computer::report::{Next, Plan};
use crate::resources::*;

fn snapshot(world: &mut World) -> &mut Snapshot {
    &mut world.record.as_mut().unwrap().spec.snapshot
}

/// A computer whose pod was created by an earlier version, which built it differently.
fn upgraded() -> World {
    let mut world = World::new(json!({}));
    world.settle(None);
    let old = snapshot(&mut world);
    (old.pod_hash, old.template_hash) = (Some("0123456789abcdef".into()), None);
    world
}

/// A pod that an earlier version created has no label with the name and no host name. It is kept, and it is no drift.
#[test]
fn an_existing_pod_is_kept_and_the_next_one_has_the_host_name() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let name = world.pods.keys().next().unwrap().clone();
    let pod = world.pods.get_mut(&name).unwrap();
    let spec = pod.spec.as_mut().unwrap();
    assert_eq!(spec.hostname.take().as_deref(), Some("c"));
    pod.metadata.labels.as_mut().unwrap().remove(NAME_LABEL);
    let before = world.writes;
    let end = world.settle(None);
    assert!(world.writes == before && end.report.drift.is_none() && world.pods.contains_key(&name), "{:?}", end.report);
}

#[test]
fn an_upgrade_shows_no_drift_and_a_change_after_it_does() {
    let mut world = upgraded();
    let before = world.writes;
    let Plan { report, .. } = world.settle(None);
    assert_eq!((report.phase, report.drift), (Some(Phase::Active), None));
    assert_eq!(world.writes, before + 1, "the new hash is written once");
    assert!(snapshot(&mut world).pod_hash.is_some(), "a rollback finds its own hash");
    world.settle(None);
    assert_eq!(world.writes, before + 1, "L6");
    world.user = Some(4242);
    assert!(world.settle(None).report.drift.is_some());
}

#[test]
fn drift_that_an_earlier_version_reported_is_still_reported() {
    let mut world = upgraded();
    let drifted = json!([{"type": "Drifted", "status": "True", "reason": "ClassChanged", "message": "", "lastTransitionTime": "2027-01-15T08:00:00Z"}]);
    world.computer.status = from(json!({"conditions": drifted}));
    let shown = plan(&world.view());
    assert_eq!((shown.report.drift.is_some(), shown.next), (true, Next::Settled));
    world.computer.spec.suspended = true;
    world.settle(None);
    world.computer.spec.suspended = false;
    assert_eq!(world.settle(None).report.drift, None, "another pod was created");
}

/// S6: a create that timed out succeeds long after another Secret was issued. With `--cascade=orphan` the garbage collector does not delete it.
#[test]
fn the_record_keeps_the_name_of_a_secret_that_was_replaced() {
    let mut world = World::new(json!({"provider": "BYOM"}));
    world.settle(None);
    let children = &mut world.record.as_mut().unwrap().spec.state.children;
    let first = children.secret_name.clone().unwrap();
    children.secret_uid = None;
    world.secrets.clear();
    world.settle(None);
    let children = world.state().children.clone();
    assert_ne!(children.secret_name.as_ref(), Some(&first));
    assert_eq!(children.former_secret_names, [first]);
}
