//! A model of the deletion for the stateright checker, with the *same* pure `plan` as the operator: two computers with the same name, two
//! leaders with arbitrarily stale views, crashes, in every order. One step is one request, or one step of another actor in the cluster.

use std::hash::{Hash, Hasher};

use computer_operator::computer::plan::plan;
use computer_operator::computer::report::Next;
use computer_operator::computer::view::View;
use stateright::{Checker, Model, Property};

use crate::small::{Core, OLD, perform, view};

/// A running reconcile.
#[derive(Clone)]
pub struct Pass {
    view: View,
    print: String,
}

impl Pass {
    fn of(view: View) -> Self {
        let print = serde_json::to_string(&(&view.computer, &view.record)).unwrap_or_default()
            + &format!("{:?} {:?} {:?} {}", view.facts, view.archive, view.receipt, view.finalizer_confirmed);
        Self { view, print }
    }
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", plan(&self.view).next)
    }
}

impl PartialEq for Pass {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

impl Hash for Pass {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.print.hash(state);
    }
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Everything {
    core: Core,
    passes: Vec<Option<Pass>>,
    crashes: u8,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// A leader reads its caches as they are now; its requests may follow much later.
    Begin(usize),
    /// It makes its next request.
    Request(usize),
    /// The process ends before its next request.
    Crash(usize),
    /// The other actors: kubelet, volume controllers, the archive pod, the tenant who re-creates the computer.
    Other(crate::small::Other),
}

struct Deletion {
    leaders: usize,
    crashes: u8,
}

impl Model for Deletion {
    type State = Everything;
    type Action = Step;

    fn init_states(&self) -> Vec<Everything> {
        vec![Everything { core: Core::new(), passes: vec![None; self.leaders], crashes: self.crashes }]
    }

    fn actions(&self, state: &Everything, actions: &mut Vec<Step>) {
        for (leader, pass) in state.passes.iter().enumerate() {
            match pass {
                None if !state.core.over() => actions.push(Step::Begin(leader)),
                None => {}
                Some(_) => {
                    actions.push(Step::Request(leader));
                    if state.crashes > 0 {
                        actions.push(Step::Crash(leader));
                    }
                }
            }
        }
        actions.extend(state.core.others().into_iter().map(Step::Other));
    }

    fn next_state(&self, last: &Everything, step: Step) -> Option<Everything> {
        let mut next = last.clone();
        match step {
            Step::Begin(leader) => {
                let view = view(&next.core, leader);
                // A reconcile without a request changes nothing.
                if !matches!(plan(&view).next, Next::Do(_)) {
                    return None;
                }
                next.passes[leader] = Some(Pass::of(view));
            }
            Step::Request(leader) => {
                let mut view = next.passes[leader].take()?.view;
                let Next::Do(action) = plan(&view).next else { return Some(next) };
                if let Some(effect) = perform(&mut next.core, action, &view) {
                    view.absorb(effect);
                    if matches!(plan(&view).next, Next::Do(_)) {
                        next.passes[leader] = Some(Pass::of(view));
                    }
                }
            }
            Step::Crash(leader) => {
                next.passes[leader] = None;
                next.crashes -= 1;
            }
            Step::Other(other) => next.core.act(other),
        }
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("S1 to S9 hold", |_, s: &Everything| s.core.broken.is_none()),
            Property::sometimes("the old one is released", |_, s: &Everything| s.core.released(OLD)),
            Property::sometimes("the new one is unchanged at the end", |_, s: &Everything| {
                s.core.over() && s.core.successor_is_unchanged()
            }),
        ]
    }
}

/// The most states that are checked with two leaders. Beyond that the check stops, and says so.
const MOST: usize = 40_000;

/// Runs the check; returns whether every property holds.
pub fn run_all(full: bool) -> bool {
    let mut well = true;
    for (leaders, crashes) in [(1, 2), (2, 1)] {
        let began = std::time::Instant::now();
        let checker = Deletion { leaders, crashes }.checker().threads(2);
        let checker = if full { checker } else { checker.target_state_count(MOST) };
        let checker = checker.spawn_bfs().join();
        let whole = if checker.is_done() && (full || checker.state_count() < MOST) { "all" } else { "the first" };
        println!(
            "{leaders} leaders, {crashes} crashes: {whole} {} states, depth {}, {} s",
            checker.unique_state_count(),
            checker.max_depth(),
            began.elapsed().as_secs()
        );
        if let Some(path) = checker.discovery("S1 to S9 hold") {
            well = false;
            println!("FAILED  {:?}", path.last_state().core.broken);
            path.into_actions().iter().for_each(|a| println!("        {a:?}"));
        }
        // Both ends are deep: they are only required where all states are checked.
        for end in ["the old one is released", "the new one is unchanged at the end"] {
            if whole == "all" && checker.discovery(end).is_none() {
                well = false;
                println!("FAILED  never: {end}");
            }
        }
    }
    well
}
