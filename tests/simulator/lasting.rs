//! Scenarios with faults that last: how often the operator retries, what it reports, and that other computers are not delayed. They run
//! with every matrix.

use std::sync::Mutex;
use std::time::Duration;

use computer_operator::resources::RecordPhase;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::value::{name, namespace, text};
use crate::api::{Actor, State};
use crate::checks::record;
use crate::contested::policy_is_set_back_at_once;
use crate::faults::Faults;
use crate::life::{BOUND, Life};
use crate::matrix::parallel;
use crate::moves::{self, BOX, Move, SYSTEM, TEAM, create_computer};
use crate::world::{Caller, World};
use crate::{actors, replica, run};

/// What is wrong, if anything is.
pub type Outcome = Result<(), String>;
type Scenario = fn() -> Outcome;

const ALL: [(&str, Scenario); 14] = [
    ("a store whose error text differs each time is retried with backoff", store_texts),
    ("an API server whose error text differs each time is retried with backoff", server_texts),
    ("a Computer with a finalizer of another controller for a month costs few requests, and stays reported and counted as blocked", held),
    ("a machine that ends at once is re-created with backoff", ends_at_once),
    ("a finalizer that a webhook removes is reported, and retried with backoff", finalizer_undone),
    ("marks on a volume that a webhook removes are reported, and retried with backoff", marks_undone),
    ("a policy of a volume that another controller sets back at once is reported, and retried with backoff", policy_is_set_back_at_once),
    ("a replica exits when one of its tasks has died", dead_tasks),
    ("a conflict that lasts is reported", lasting_conflict),
    ("shutdown is prompt, however slow the API server is", prompt_stop),
    ("BestEffort gives up an archive pod that a quota refuses for the whole deadline", always_refused),
    ("BestEffort gives up nothing because the API server fails", failing_for_long),
    ("a slow namespace does not delay another one", slow_namespace),
    ("a hundred pods that disappeared do not delay a deletion", many_pods),
];

/// Runs all scenarios; returns whether all passed.
pub fn run_all(jobs: usize) -> bool {
    let failed: Mutex<bool> = Mutex::default();
    parallel(&ALL, jobs, |(what, scenario)| {
        let began = std::time::Instant::now();
        let outcome = scenario();
        println!("{:>6}  lasting: {what}, {} s", if outcome.is_ok() { "ok" } else { "FAILED" }, began.elapsed().as_secs());
        if let Err(wrong) = outcome {
            println!("        {wrong}");
            *failed.lock().unwrap() = true;
        }
    });
    !failed.into_inner().unwrap()
}

/// A simulation with one computer and one replica.
pub fn with_one(life: Life, script: impl AsyncFnOnce(&World) -> Outcome) -> Outcome {
    run::in_simulated_time(async move {
        let world = World::new(1, Faults::default());
        world.with(|s| moves::furnish(s, &life.class()));
        tokio::spawn(actors::run(world.clone()));
        tokio::spawn(replica::run(world.clone(), 0, 8));
        let outcome = match world.with(|s| create_computer(s, Actor::Tenant, TEAM, BOX, &life.spec())) {
            Ok(_) => script(&world).await,
            Err(code) => Err(format!("the Computer was refused: {code}")),
        };
        let broken = world.with(|s| s.observer.violations().first().cloned());
        world.end();
        broken.map_or(outcome, Err)
    })
}

/// Waits until the condition is true; returns whether it became true in time.
pub async fn until(world: &World, seconds: u64, mut there: impl FnMut(&mut State) -> bool) -> bool {
    world.notify();
    let began = Instant::now();
    while !world.with(&mut there) {
        if began.elapsed() > Duration::from_secs(seconds) {
            return false;
        }
        let pause = if began.elapsed() < Duration::from_secs(2) { 5 } else { 500 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    true
}

/// Counts the operators' requests during that time.
async fn requests_in(world: &World, seconds: u64) -> u64 {
    let before = world.counted();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    world.counted() - before
}

fn computer(state: &State) -> Option<Value> {
    state.get("computers", TEAM, BOX).map(|c| (**c).clone())
}

pub fn is_active(state: &mut State) -> bool {
    computer(state).is_some_and(|c| text(&c, "/status/phase") == Some("Active"))
}

fn gone(state: &mut State) -> bool {
    state.get("computers", TEAM, BOX).is_none()
}

/// Whether the condition `Blocked` of the Computer contains this reason or text.
pub fn blocked(state: &State, by: &str) -> bool {
    let conditions = computer(state).map(|c| c["status"]["conditions"].clone()).unwrap_or_default();
    conditions.as_array().into_iter().flatten().any(|c| c["type"] == "Blocked" && c.to_string().contains(by))
}

fn forever() -> Instant {
    Instant::now() + Duration::from_secs(100_000_000)
}

pub fn check(holds: bool, wrong: &str) -> Outcome {
    if holds { Ok(()) } else { Err(wrong.to_owned()) }
}

fn store_texts() -> Outcome {
    with_one(Life::Unarchived, async |world| {
        check(until(world, 600, is_active).await, "the computer is not active")?;
        world.faults().store_down = Some(forever());
        moves::perform(world, Move::Delete);
        check(until(world, 300, |s| blocked(s, "StoreUnavailable")).await, "the store's failure is not reported")?;
        let made = requests_in(world, 60).await;
        check(made <= 150, &format!("{made} requests in a minute"))?;
        let made = requests_in(world, 1800).await;
        check(made <= 300, &format!("{made} requests in half an hour"))?;
        world.faults().store_down = None;
        check(until(world, 600, gone).await, "the deletion does not continue after the store recovered")?;
        Ok(())
    })
}

fn server_texts() -> Outcome {
    with_one(Life::Managed, async |world| {
        check(until(world, 600, is_active).await, "the computer is not active")?;
        world.faults().denied = Some(("PATCH /api/v1/persistentvolumes".to_owned(), 500, forever()));
        moves::perform(world, Move::Delete);
        check(until(world, 300, |s| blocked(s, "ApiServerUnavailable")).await, "the API server's failure is not reported")?;
        let made = requests_in(world, 60).await;
        check(made <= 150, &format!("{made} requests in a minute"))?;
        let made = requests_in(world, 1800).await;
        check(made <= 300, &format!("{made} requests in half an hour"))?;
        world.faults().denied = None;
        check(until(world, 900, gone).await, "the deletion does not continue after the API server recovered")?;
        let written = |s: &mut State| s.all("events").any(|e| text(e, "/reason") == Some("WriteReceiptCompleted"));
        check(until(world, 60, written).await, "no event says that the receipt is written")?;
        Ok(())
    })
}

const FOREIGN: &str = "theirs.example/keep";
const HELD: &str = "computer_operator_deletions_blocked{step=\"release\",reason=\"ComputerHeld\"}";

fn held() -> Outcome {
    with_one(Life::Unarchived, async |world| {
        check(until(world, 600, is_active).await, "the computer is not active")?;
        world.with(|s| {
            s.change("computers", TEAM, BOX, |c| {
                c["metadata"]["finalizers"].as_array_mut().into_iter().for_each(|f| f.push(json!(FOREIGN)));
            });
        });
        moves::perform(world, Move::Delete);
        check(until(world, 600, |s| blocked(s, "ComputerHeld")).await, "the foreign finalizer is not reported in a condition")?;
        let event = |s: &mut State| s.all("events").any(|e| text(e, "/reason") == Some("ComputerHeld"));
        check(until(world, 60, event).await, "the foreign finalizer is not reported in an event")?;
        let counted = |_: &mut State| world.figures(0).contains(&format!("{HELD} 1"));
        check(until(world, 60, counted).await, "it is not counted as blocked")?;
        let made = requests_in(world, 3_600).await;
        check(made <= 60, &format!("{made} requests in an hour"))?;
        // A month passes: simulating every minute of it would take minutes.
        world.with(|s| {
            let (month_ago, within) = (s.stamp(-31 * 86_400), SYSTEM);
            let records: Vec<String> = s.all("computerrecords").map(|r| name(r).to_owned()).collect();
            for record in records {
                s.change("computerrecords", within, &record, |r| r["spec"]["state"]["deletion"]["receipt"]["at"] = json!(month_ago));
            }
        });
        world.notify();
        let made = requests_in(world, 60).await;
        check(made <= 60, &format!("after 31 days: {made} requests in a minute"))?;
        let made = requests_in(world, 3 * 3_600).await;
        check(made <= 100, &format!("after 31 days: {made} requests in three hours"))?;
        check(world.figures(0).contains(&format!("{HELD} 1")), "after a month it is no longer counted as blocked")?;
        world.with(|s| s.change("computers", TEAM, BOX, |c| c["metadata"]["finalizers"] = json!([])));
        let removed = |s: &mut State| s.get("computers", TEAM, BOX).is_none();
        check(until(world, 60, removed).await, "the Computer still exists")?;
        tokio::time::sleep(Duration::from_secs(300)).await;
        check(world.figures(0).contains(&format!("{HELD} 0")), "the Computer is gone, but still counted as blocked")?;
        Ok(())
    })
}

fn ends_at_once() -> Outcome {
    with_one(Life::Managed, async |world| {
        check(until(world, 600, is_active).await, "the computer is not active")?;
        moves::perform(world, Move::EndMachines);
        let pods = |s: &mut State| s.observer.creates.get("pods").copied().unwrap_or_default();
        tokio::time::sleep(Duration::from_secs(30)).await;
        let before = world.with(pods);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let made = world.with(pods) - before;
        check(made <= 8, &format!("{made} pods in ten minutes"))?;
        check(world.with(|s| blocked(s, "CrashLoop")), "the crash loop is not reported")?;
        world.with(|s| s.kubelet.ends_at_once = false);
        check(until(world, 400, is_active).await, "the computer is not active although its machine runs again")?;
        Ok(())
    })
}

/// The operator's writes succeed and change nothing: this is reported and retried with backoff. Then the writes take effect again.
async fn undone(world: &World, what: &str) -> Outcome {
    world.with(|s| s.undone_until = Some(forever()));
    check(until(world, 300, |s| blocked(s, what)).await, "the undone write is not reported")?;
    let made = requests_in(world, 60).await;
    check(made <= 150, &format!("{made} requests in a minute"))?;
    let made = requests_in(world, 1_800).await;
    check(made <= 300, &format!("{made} requests in half an hour"))?;
    world.with(|s| s.undone_until = None);
    check(until(world, 600, is_active).await, "it does not continue after its writes take effect again")?;
    Ok(())
}

fn finalizer_undone() -> Outcome {
    with_one(Life::Managed, async |world| undone(world, "finalizer").await)
}

fn marks_undone() -> Outcome {
    with_one(Life::Managed, async |world| {
        let held = |s: &mut State| computer(s).is_some_and(|c| moves::holds(&c));
        check(until(world, 60, held).await, "there is no finalizer")?;
        undone(world, "PersistentVolume").await
    })
}

fn dead_tasks() -> Outcome {
    let kinds = ["computers", "computerrecords", "pods", "persistentvolumes", "computerclasses", "apikeys"];
    for kind in kinds {
        with_one(Life::Byom, async |world| {
            check(until(world, 600, is_active).await, "the computer is not active")?;
            world.faults().doomed = Some(kind.to_owned());
            world.faults().cut(Duration::from_millis(10));
            let died = until(world, 600, |_| world.faults().doomed.is_none()).await;
            check(died, &format!("no watch of {kind} was opened"))?;
            let ended = until(world, 60, |_| world.faults().died.is_none()).await;
            check(ended, &format!("the watch of {kind} died, and its replica continues without it"))?;
            Ok(())
        })?;
    }
    Ok(())
}

fn lasting_conflict() -> Outcome {
    with_one(Life::Managed, async |world| {
        world.faults().denied = Some(("PATCH /api/v1/persistentvolumes".to_owned(), 409, forever()));
        check(until(world, 300, |s| blocked(s, "Conflict")).await, "the lasting conflict is not reported")?;
        world.faults().denied = None;
        check(until(world, 600, is_active).await, "it does not continue after the conflict")?;
        Ok(())
    })
}

const ARCHIVE_PODS: &str = "POST /api/v1/namespaces/computer-operator-system/pods";

/// Deletes a computer whose class says `BestEffort` while every request for an archive pod is answered like this.
async fn without_archive_pods(world: &World, code: u16) -> Outcome {
    check(until(world, 600, is_active).await, "the computer is not active")?;
    world.faults().denied = Some((ARCHIVE_PODS.to_owned(), code, forever()));
    moves::perform(world, Move::Delete);
    Ok(())
}

fn always_refused() -> Outcome {
    with_one(Life::BestEffort, async |world| {
        // The home cannot be archived.
        world.with(|s| s.observer.store_dead = true);
        without_archive_pods(world, 403).await?;
        check(until(world, 300, |s| blocked(s, "Forbidden")).await, "the refusal of the archive pod is not reported")?;
        check(!until(world, 400, gone).await, "it was given up before its deadline of 600 s")?;
        let made = requests_in(world, 60).await;
        check(made <= 100, &format!("{made} requests in a minute"))?;
        let ended = until(world, 900, gone).await;
        let left = world.with(|s| crate::life::left(s));
        check(ended, &format!("L1: a refusal is waited for forever: {left}"))?;
        let receipt = world.with(|s| s.observer.fates.keys().next().cloned().and_then(|uid| s.observer.receipt(&uid)));
        let said = receipt.map(|r| r.to_string()).unwrap_or_default();
        check(said.contains("BestEffort") && said.contains("forbidden"), &format!("the receipt does not say why: {said}"))
    })
}

fn failing_for_long() -> Outcome {
    with_one(Life::BestEffort, async |world| {
        without_archive_pods(world, 503).await?;
        check(!until(world, 3 * 3600, gone).await, "S1: given up because the API server failed")?;
        world.faults().denied = None;
        check(until(world, 900, gone).await, "L1: the deletion does not continue after the API server recovered")
    })
}

fn prompt_stop() -> Outcome {
    // In the middle of a reconcile of about ten requests, and of the check of a class, whose pods an admission webhook delays.
    stopped("", 2, 7)?;
    stopped("computer-operator-system/pods", 10, 3)
}

fn stopped(slow: &str, latency: u64, after: u64) -> Outcome {
    run::in_simulated_time(async {
        let world = World::new(1, Faults::default());
        world.with(|s| moves::furnish(s, &Life::Managed.class()));
        tokio::spawn(actors::run(world.clone()));
        world.faults().slow = Some((slow.to_owned(), Duration::from_secs(latency)));
        let (caller, stop) = (Caller::new(Actor::Operator(0)), CancellationToken::new());
        let (inside, token) = (world.clone(), stop.clone());
        let task = tokio::spawn(async move { replica::lead(&inside, &caller, 0, 8, token).await });
        let made = world.with(|s| create_computer(s, Actor::Tenant, TEAM, BOX, &json!({})));
        world.notify();
        tokio::time::sleep(Duration::from_secs(after)).await;
        let began = Instant::now();
        stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(300), task).await;
        let took = began.elapsed();
        world.end();
        check(made.is_ok() && matches!(ended, Ok(Ok(Ok(())))), "the shutdown was not clean")?;
        check(took < Duration::from_secs(5), &format!("it exited {} ms after the request to stop", took.as_millis()))?;
        Ok(())
    })
}

fn slow_namespace() -> Outcome {
    run::in_simulated_time(async {
        let world = World::new(1, Faults::default());
        world.with(|s| {
            moves::furnish(s, &Life::Managed.class());
            let _ = s.create(Actor::Admin, "namespaces", "", json!({"metadata": {"name": "slow"}}), false);
        });
        tokio::spawn(actors::run(world.clone()));
        world.faults().slow = Some(("namespaces/slow/".to_owned(), Duration::from_secs(10)));
        tokio::spawn(replica::run(world.clone(), 0, 8));
        world.with(|s| {
            for i in 0..40 {
                let _ = create_computer(s, Actor::Tenant, "slow", &format!("box-{i}"), &json!({"provider": "BYOM"}));
            }
        });
        world.notify();
        tokio::time::sleep(Duration::from_secs(30)).await;
        let made = world.with(|s| create_computer(s, Actor::Tenant, TEAM, BOX, &json!({"provider": "BYOM"})));
        let active = until(&world, 10, is_active).await;
        world.end();
        check(made.is_ok() && active, "one slow namespace delays a computer of another one")
    })
}

fn many_pods() -> Outcome {
    with_one(Life::Managed, async |world| {
        check(until(world, 600, is_active).await, "the computer is not active")?;
        world.with(|s| {
            let records: Vec<String> = s.all("computerrecords").map(|r| name(r).to_owned()).collect();
            let within = s.all("computerrecords").map(|r| namespace(r).to_owned()).next().unwrap_or_default();
            let at = s.stamp(-100);
            for record in records {
                s.change("computerrecords", &within, &record, |r| {
                    let lost = |i: usize| json!({"name": format!("machine-{i:032x}"), "uid": format!("lost-{i}"), "node": "node-1", "vanishedAt": at});
                    let pods = r["spec"]["state"]["children"]["pods"].as_array_mut();
                    if let Some(pods) = pods {
                        pods.splice(0..0, (0..100).map(lost));
                    }
                });
            }
        });
        moves::perform(world, Move::Delete);
        let released = |s: &mut State| {
            let uids: Vec<String> = s.observer.fates.keys().cloned().collect();
            uids.iter().all(|u| record(s, u).is_some_and(|r| r.spec.state.phase == RecordPhase::Released))
        };
        check(until(world, BOUND.as_secs(), released).await, "the deletion does not end")?;
        Ok(())
    })
}
