//! An archive that would be larger than its class allows waits for an admin, under every policy.

use std::time::Duration;

use serde_json::json;

use super::disturbed::{archive_pod, pass};
use super::world::{World, from};
use crate::archive::Verification;
use crate::archive::pod_program::EXIT_TOO_LARGE;
use crate::computer::action::{Action, Subject};
use crate::computer::plan::plan;
use crate::computer::report::{Next, Plan};
use crate::computer::view::ClassState;
use crate::resources::reasons::Reason;
use crate::resources::*;

/// A deletion whose archive pod has ended because the archive would have more than a gibibyte.
fn too_large(policy: ArchivePolicy) -> World {
    let mut world = World::new("Delete", policy);
    world.no_archive = true;
    world.record.as_mut().unwrap().spec.snapshot.archive.max_bytes = Some(from(json!("1Gi")));
    for _ in 0..10 {
        pass(&mut world);
    }
    let ended = json!({"terminated": {"exitCode": EXIT_TOO_LARGE, "finishedAt": world.time()}});
    archive_pod(&mut world).status = Some(from(json!({"phase": "Failed", "containerStatuses": [{"name": "archive", "image": "i",
        "imageID": "i", "ready": false, "restartCount": 0, "state": ended}]})));
    world
}

/// The plan while the class allows this. `None`: the class does not exist any more.
fn planned(world: &World, most: Option<&str>) -> Plan {
    let mut view = world.view(true);
    view.archive = Some(Verification::Missing);
    view.settings.archive_max_bytes = 1 << 40;
    if let Some(most) = most {
        let spec = json!({"podTemplate": {}, "archive": {"maxBytes": most}});
        let class =
            json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerClass", "metadata": {"name": "k"}, "spec": spec});
        view.class = ClassState::Found(Box::new(from(class)));
    }
    plan(&view)
}

/// Nothing would change with another attempt, and each would read the whole home.
#[test]
fn the_deletion_waits_without_another_attempt_until_the_bound_is_raised() {
    let mut world = too_large(ArchivePolicy::Required);
    world.now += 100_000;
    for most in [None, Some("1Gi"), Some("1"), Some("1073741824")] {
        let current = planned(&world, most);
        let blocker = current.report.blocker.expect("L2");
        assert!(blocker.reason == Reason::ArchiveTooLarge && matches!(current.next, Next::Wait(_)), "{most:?} {blocker:?}");
        assert!(blocker.message.contains("1073741824 bytes (1.0 GB)") && blocker.message.contains("Raise archive.maxBytes"), "{blocker:?}");
    }
    // Without a bound of its own, the class has that of the operator.
    for most in ["2Gi", "0"] {
        let Next::Do(Action::Delete { subject: Subject::Pod { name, .. }, .. }) = planned(&world, Some(most)).next else {
            panic!("{most}: the next attempt does not begin at once")
        };
        assert!(name.starts_with("archive-"));
    }
}

/// S1: the sessions would fit into the store. Only an admin decides to give them up because of a number.
#[test]
fn best_effort_does_not_give_the_sessions_up_because_of_the_bound() {
    let mut world = too_large(ArchivePolicy::BestEffort);
    world.waited = Duration::from_secs(100_000);
    let current = planned(&world, None);
    assert_eq!(current.report.blocker.map(|b| b.reason), Some(Reason::ArchiveTooLarge));
    assert!(matches!(current.next, Next::Wait(_)) && !current.report.waits, "that time does not count");
}

/// The pod itself and the ingest endpoint have one bound; a pod that has not started gets the raised one.
#[test]
fn the_archive_pod_has_the_bound() {
    let mut world = too_large(ArchivePolicy::Required);
    let pod = archive_pod(&mut world);
    assert_eq!(pod.metadata.annotations.as_ref().unwrap()[MAX_BYTES_ANNOTATION], "1073741824");
    let spec = serde_json::to_string(&pod.spec).unwrap();
    assert!(spec.contains(r#"{"name":"MAX_BYTES","value":"1073741824"}"#), "{spec}");
    pod.status = Some(from(json!({"phase": "Pending"})));
    crate::runtime::cached_fields::pod(pod);
    assert!(matches!(planned(&world, Some("1Gi")).next, Next::Wait(_)));
    assert!(matches!(planned(&world, Some("2Gi")).next, Next::Do(Action::Delete { .. })));
}
