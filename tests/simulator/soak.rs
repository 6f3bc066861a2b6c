//! The soak: two hundred computers in eight namespaces, some of which can never be deleted. Depending on the seed there are no other
//! faults, random faults, or random faults and a slow store. It runs seed after seed until the time is over.

use std::time::Duration;

use computer_operator::resources::RecordPhase;
use serde_json::json;
use tokio::time::Instant;

use crate::api::value::{deleting, name, namespace, uid};
use crate::api::verbs::{DeleteOptions, Part};
use crate::api::{Actor, State};
use crate::checks::record;
use crate::faults::{Faults, Mix};
use crate::life::{self, BOUND, Life};
use crate::world::World;
use crate::{actors, moves, replica, run};

/// The settings of a soak.
#[derive(Clone, Copy, Debug)]
pub struct Soak {
    pub seed: u64,
    pub computers: usize,
}

/// Namespaces that share them.
const TEAMS: usize = 8;
/// Every tenth computer is blocked: a foreign finalizer holds its claim, or its class does not exist.
const POISON: usize = 10;
const FOREIGN: &str = "theirs.example/keep";

impl Soak {
    pub fn command(&self) -> String {
        format!("cargo xtask soak --seed {} --computers {} --once", self.seed, self.computers)
    }

    /// The seed determines the mix.
    fn mix(self) -> (&'static str, Mix) {
        let until = self.computers as u64 * 60;
        let all = Mix { crash: 0.0003, lose: 0.01, silence: 0.002, refuse: 0.02, slow: 0.01, cut: 0.0005, store: 0, until };
        match self.seed % 3 {
            0 => ("poison only", Mix::default()),
            1 => ("everything", all),
            _ => ("all faults, slow store", Mix { store: 8_000, ..all }),
        }
    }

    fn team(i: usize) -> String {
        format!("team-{}", i % TEAMS)
    }
}

/// Runs seeds from `first` on, until `time` is over. Returns whether all passed.
pub fn run_for(first: u64, computers: usize, time: Duration) -> bool {
    let (began, mut seed, mut well) = (std::time::Instant::now(), first, true);
    loop {
        let soak = Soak { seed, computers };
        let round = std::time::Instant::now();
        let (wrong, said) = once(soak);
        println!("{} seed {seed}: {said}, {} s", if wrong.is_empty() { "    ok" } else { "FAILED" }, round.elapsed().as_secs());
        wrong.iter().take(10).for_each(|w| println!("        {w}"));
        if !wrong.is_empty() {
            println!("        again: {}", soak.command());
            well = false;
        }
        seed += 1;
        if began.elapsed() >= time {
            return well;
        }
    }
}

fn once(soak: Soak) -> (Vec<String>, String) {
    run::in_simulated_time(async move {
        let mut faults = Faults::new(Vec::new(), 0);
        let (mix, what) = soak.mix();
        faults.mix = what;
        let world = World::new(soak.seed, faults);
        world.with(|s| {
            moves::furnish(s, &Life::Managed.class());
            (0..TEAMS).for_each(|i| drop(s.create(Actor::Admin, "namespaces", "", json!({"metadata": {"name": Soak::team(i)}}), false)));
        });
        tokio::spawn(actors::run(world.clone()));
        (0..2).for_each(|n| drop(tokio::spawn(replica::run(world.clone(), n, 32))));
        let times = (0..soak.computers).map(|i| tokio::spawn(one(world.clone(), i))).collect::<Vec<_>>();
        let mut healthy = Vec::new();
        for time in times {
            healthy.extend(time.await.ok().flatten());
        }
        let mut wrong = ended(&world).await;
        wrong.extend(world.with(|s| s.observer.violations().to_vec()));
        healthy.sort();
        let at = |percent: usize| healthy.get(healthy.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default().as_secs();
        let said = format!(
            "{mix}: {} requests, {} s simulated, healthy deletions p50 {} s, p99 {} s",
            world.counted(),
            world.elapsed().as_secs(),
            at(50),
            at(99)
        );
        world.end();
        (wrong, said)
    })
}

/// Runs the life of one computer. Returns how long its deletion took, unless it was blocked.
async fn one(world: World, i: usize) -> Option<Duration> {
    let (team, called) = (Soak::team(i), format!("box-{i}"));
    tokio::time::sleep(Duration::from_millis(world.random(60_000))).await;
    let poison = i.is_multiple_of(POISON);
    let spec = match i % 7 {
        _ if poison && i.is_multiple_of(2 * POISON) => json!({"className": "nowhere"}),
        0 => json!({"provider": "BYOM"}),
        _ => json!({}),
    };
    let made = world.with(|s| moves::create_computer(s, Actor::Tenant, &team, &called, &spec).ok())?;
    world.notify();
    tokio::time::sleep(Duration::from_secs(60 + world.random(180))).await;
    if poison {
        world.with(|s| keep(s, &team, &made));
    }
    let propagation = ["Background", "Foreground", "Orphan"][i % 3].to_owned();
    world.with(|s| {
        let options = DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() };
        let _ = s.delete(Actor::Tenant, "computers", &team, &called, &options);
    });
    world.notify();
    let began = Instant::now();
    while world.with(|s| s.get("computers", &team, &called).is_some()) && began.elapsed() < BOUND {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    (!poison).then(|| began.elapsed())
}

/// A foreign finalizer on the claim blocks the deletion permanently.
fn keep(state: &mut State, team: &str, computer: &str) {
    let claims: Vec<String> = state
        .all("persistentvolumeclaims")
        .filter(|c| namespace(c) == team && state.observer.owner(uid(c)).is_some_and(|o| o == computer))
        .map(|c| name(c).to_owned())
        .collect();
    for claim in claims {
        let _ = state.json_patch(
            Actor::Tenant,
            ("persistentvolumeclaims", team, &claim),
            &json!([{"op": "add", "path": "/metadata/finalizers/-", "value": FOREIGN}]),
            Part::Main,
        );
    }
}

/// Healthy deletions have ended by now. The blocked ones end once their cause is removed. Then nothing is left.
async fn ended(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    let held = world.with(|s| s.all("persistentvolumeclaims").filter(|c| crate::api::value::has_finalizer(c, FOREIGN)).count());
    let going = world.with(|s| s.all("computers").filter(|c| deleting(c)).count());
    if going > held {
        wrong.push(format!("L3: {going} deletions have not ended, {held} of them are blocked by the soak"));
    }
    world.with(|s| {
        let claims: Vec<_> = s.all("persistentvolumeclaims").cloned().collect();
        for claim in claims {
            s.change("persistentvolumeclaims", namespace(&claim), name(&claim), |c| {
                if let Some(list) = c["metadata"]["finalizers"].as_array_mut() {
                    list.retain(|f| f != FOREIGN);
                }
            });
        }
    });
    world.notify();
    let released = |s: &mut State| {
        let fates: Vec<String> = s.observer.fates.keys().cloned().collect();
        s.all("computers").next().is_none()
            && fates.iter().all(|u| record(s, u).is_none_or(|r| r.spec.state.phase == RecordPhase::Released))
    };
    let began = Instant::now();
    while !world.with(released) {
        if began.elapsed() > BOUND {
            wrong.push(format!("L1: not finished: {}", world.with(|s| life::left(s))));
            return wrong;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    wrong.extend(world.with(|s| life::end_state(s)));
    wrong
}
