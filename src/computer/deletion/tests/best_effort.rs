//! `BestEffort` gives up only while no work on the archive is in progress (S1, L8).

use std::time::Duration;

use serde_json::json;

use super::disturbed::{archive_pod, pass};
use super::world::{World, from};
use crate::archive::Verification;
use crate::computer::action::Action;
use crate::computer::apply::Error;
use crate::computer::plan::plan;
use crate::computer::report::{Next, Plan};
use crate::computer::view::View;
use crate::resources::reasons::Reason;
use crate::resources::steps::{DeletionStep, StepResult};
use crate::resources::*;

/// S9: the step was skipped when its deadline had passed. The volume is gone now, which must not start a second wait.
#[test]
fn best_effort_gives_up_once() {
    let mut world = World::new("Delete", ArchivePolicy::BestEffort);
    world.no_archive = true;
    let begun = world.now;
    for _ in 0..600 {
        if let Some(blocker) = pass(&mut world).report.blocker {
            assert_ne!(blocker.reason, Reason::VolumeLost);
        }
    }
    assert!(world.computer.is_none(), "L1: {:?}", pass(&mut world).report);
    let receipt: serde_json::Value = serde_json::from_slice(&world.receipt.unwrap()).unwrap();
    let written: jiff::Timestamp = from(receipt["writtenAt"].clone());
    assert!(written.as_second() - begun < 3600 + 300, "a second deadline");
}

/// A deletion whose archive pod exists and whose archive step started two hours ago by the wall clock.
fn two_hours_later() -> World {
    let mut world = World::new("Delete", ArchivePolicy::BestEffort);
    world.no_archive = true;
    for _ in 0..10 {
        pass(&mut world);
    }
    archive_pod(&mut world);
    world.now += 7200;
    world
}

fn planned(world: &mut World, mut change: impl FnMut(&mut View)) -> Plan {
    let mut view = world.view(true);
    loop {
        change(&mut view);
        let current = plan(&view);
        let Next::Do(action) = &current.next else { return current };
        let effect = world.apply(action.clone());
        view.absorb(effect);
    }
}

fn given_up(world: &World) -> bool {
    world.record.as_ref().unwrap().spec.state.deletion.as_ref().unwrap().steps.get(DeletionStep::ArchiveSessions).is_some()
}

/// The operator was down for two hours, or a clock was set forward: by the recorded times, the step has exceeded its deadline.
#[test]
fn time_without_a_running_operator_does_not_count() {
    let mut world = two_hours_later();
    let last = planned(&mut world, |view| view.archive = Some(Verification::Running));
    assert!(last.report.checking && !given_up(&world), "a read-back is running: {last:?}");
    let last = planned(&mut world, |_| ());
    assert!(last.report.waits && !given_up(&world), "{last:?}");
    assert!(matches!(last.next, Next::Wait(after) if after <= Duration::from_secs(30)), "the whole wait counts: {last:?}");
}

/// L8: a running archive pod and a running read-back are waited for, however long the deletion has waited before.
#[test]
fn work_on_the_archive_is_waited_for() {
    let mut world = two_hours_later();
    world.waited = Duration::from_secs(9999);
    archive_pod(&mut world).status = from(json!({"phase": "Running"}));
    let last = planned(&mut world, |_| ());
    assert!(!last.report.waits && !given_up(&world), "the pod is running: {last:?}");
    archive_pod(&mut world).status = from(json!({"phase": "Pending"}));
    let last = planned(&mut world, |view| view.archive = Some(Verification::Running));
    assert!(last.report.checking && !given_up(&world), "{last:?}");
}

/// The archive in the store is complete, but the volume was lost before it was read back.
#[test]
fn a_complete_archive_is_used_and_not_given_up() {
    let mut world = two_hours_later();
    world.volume = None;
    world.manifest = true;
    let last = pass(&mut world);
    assert_eq!(last.report.blocker.expect("blocked").reason, Reason::VolumeLost);
    world.waited = Duration::from_secs(9999);
    planned(&mut world, |_| ());
    let deletion = world.record.as_ref().unwrap().spec.state.deletion.clone().unwrap();
    assert!(deletion.archive.is_some(), "{deletion:?}");
}

/// A process gives up nothing only because of the recorded wait, and it records its own wait periodically.
#[test]
fn the_wait_survives_a_restart_and_is_confirmed_by_the_next_process() {
    let mut world = two_hours_later();
    world.waited = Duration::from_secs(3700);
    let own = |seconds| move |view: &mut View| view.waited.here = Duration::from_secs(seconds);
    planned(&mut world, own(59));
    let waited = world.record.as_ref().unwrap().spec.state.deletion.as_ref().unwrap().waited_seconds;
    assert!(waited == 3700 && !given_up(&world), "{waited}");
    planned(&mut world, own(60));
    assert!(given_up(&world));
    let detail = world.record.unwrap().spec.state.deletion.unwrap().steps.get(DeletionStep::ArchiveSessions).unwrap().detail.clone();
    assert!(detail.contains("BestEffort, deadline exceeded: nothing worked on the archive for 3600 s in total"), "{detail}");
}

/// The sessions are given up when the store is permanently down, and when the archive in it is damaged.
#[test]
fn a_store_that_is_permanently_down_is_given_up() {
    for verdict in [Verification::Unavailable("no answer".into()), Verification::Invalid("a byte short".into())] {
        let mut world = two_hours_later();
        world.waited = Duration::from_secs(3600);
        planned(&mut world, |view| view.archive = Some(verdict.clone()));
        assert!(given_up(&world), "{verdict:?}");
    }
}

/// A deletion without an archive pod, whose creation the API server refuses: a quota, or a missing right.
fn refused() -> World {
    let mut world = two_hours_later();
    let attempt = archive_pod(&mut world).metadata.clone();
    world.pods.remove(&(attempt.namespace.unwrap(), attempt.name.unwrap()));
    world.refused = Some("creating Pod archive: exceeded quota: pods=0".to_owned());
    world
}

/// The first request of a reconcile that changes a child or gives the sessions up, without performing it.
fn next_change(world: &World) -> (Plan, Action) {
    let gives_up = |action: &Action| match action {
        Action::SaveRecord(r) => r.spec.state.deletion.as_ref().is_some_and(|d| d.steps.get(DeletionStep::ArchiveSessions).is_some()),
        _ => false,
    };
    let (mut world, mut view) = (world.clone(), world.view(true));
    loop {
        let current = plan(&view);
        match &current.next {
            Next::Do(action) if action.changes_child() || gives_up(action) => {
                let action = action.clone();
                return (current, action);
            }
            Next::Do(action) => {
                let effect = world.apply(action.clone());
                view.absorb(effect);
            }
            next => panic!("{next:?}"),
        }
    }
}

/// Found in a review: the wait was not counted while the next request was always refused, so nothing was ever given up.
#[test]
fn a_request_that_is_always_refused_is_given_up() {
    let mut world = refused();
    assert!(next_change(&world).1.changes_child(), "it has not waited yet");
    world.waited = Duration::from_secs(3600);
    let (_, action) = next_change(&world);
    let Action::SaveRecord(record) = action else { panic!("not given up: {action:?}") };
    let deletion = record.spec.state.deletion.unwrap();
    let outcome = deletion.steps.get(DeletionStep::ArchiveSessions).expect("S9: given up without a record");
    assert_eq!(outcome.result, StepResult::Skipped);
    assert!(outcome.detail.contains("exceeded quota"), "{}", outcome.detail);
}

/// Without a refusal, the same request is sent: the deletion may have waited for something else before.
#[test]
fn a_request_that_is_not_refused_is_sent_first() {
    let mut world = refused();
    world.waited = Duration::from_secs(3600);
    world.refused = None;
    assert!(next_change(&world).1.changes_child());
}

/// Only the answer of a working API server is a refusal. An outage, a timeout or a conflict gives up nothing.
#[test]
fn an_outage_does_not_count_as_a_refusal() {
    let world = refused();
    let (planned, _) = next_change(&world);
    let refused = |code: u16, reason: &str, message: &str| {
        let status = json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message});
        let source = kube::Error::Api(Box::new(from(status))).into();
        crate::computer::failed_request::refused(&world.view(true), &planned, &Error::call("creating Pod archive", source))
    };
    for (code, reason) in [(403, "Forbidden"), (422, "Invalid")] {
        assert!(refused(code, reason, "exceeded quota").is_some_and(|text| text.contains("exceeded quota")), "{code}");
    }
    for (code, reason) in [(401, "Unauthorized"), (409, "Conflict"), (429, "TooManyRequests"), (500, "InternalError"), (503, "")] {
        assert_eq!(refused(code, reason, ""), None, "{code}");
    }
    let timeout = Error::call("", crate::runtime::client::CallError::Timeout);
    assert_eq!(crate::computer::failed_request::refused(&world.view(true), &planned, &timeout), None);
    assert_eq!(crate::computer::failed_request::refused(&world.view(true), &planned, &Error::Store("down".to_owned())), None);
}
