//! The matrices: every life, with each kind of fault at every request. By default a sample of each runs, with `--full` all of it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::faults::{Act, Fault, Side};
use crate::life::Life;
use crate::moves::Move;
use crate::run::{Case, Outcome, run};

/// A matrix.
pub struct Stage {
    pub name: &'static str,
    /// What it injects.
    pub about: &'static str,
    /// By default every n-th case runs.
    stride: usize,
    cases: fn(&Reference, &mut Vec<Case>),
}

/// A life without a fault.
pub struct Reference {
    life: Life,
    leaders: usize,
    outcome: Outcome,
}

pub const STAGES: [Stage; 11] = [
    Stage { name: "undisturbed", about: "every life, one leader and two", stride: 1, cases: |r, all| all.push(r.case()) },
    Stage { name: "crash", about: "killed before and after every request", stride: 9, cases: crash },
    Stage { name: "lost", about: "every request and every answer lost (connection reset, or no answer) or late", stride: 18, cases: lost },
    Stage { name: "refused", about: "every request refused once: 403, 404 from a proxy, 409, 429, 500", stride: 27, cases: refused },
    Stage { name: "stale", about: "caches always stale, and watches held back at every request", stride: 15, cases: stale },
    Stage { name: "unobserved", about: "all watches cut at every request; changes meanwhile are never shown", stride: 12, cases: cut },
    Stage { name: "recreated", about: "deleted and re-created under the same name at every request", stride: 9, cases: recreated },
    Stage { name: "moves", about: "each of the adversary's moves after every request", stride: 111, cases: moves },
    Stage {
        name: "down",
        about: "each of the adversary's moves while the operator is down, starting at every request",
        stride: 111,
        cases: down,
    },
    Stage { name: "absent", about: "no operator for longer than BestEffort waits, starting at every request", stride: 5, cases: absent },
    Stage {
        name: "lasting",
        about: "a panic in a reconcile or a watch; requests refused for minutes; writes undone by a webhook; machines that end at once",
        stride: 151,
        cases: lasting,
    },
];

impl Stage {
    /// The stride of a sample with one case in `stride`, or with all where the matrix has only one for each life.
    pub fn few(&self, stride: usize) -> usize {
        if self.stride == 1 { 1 } else { stride }
    }
}

impl Reference {
    fn case(&self) -> Case {
        Case::new(self.life, self.leaders)
    }

    /// One case for every request.
    fn each(&self, side: Side, act: &Act, all: &mut Vec<Case>) {
        for at in 1..=self.outcome.requests {
            let mut case = self.case();
            case.faults = vec![Fault { at, side, act: act.clone() }];
            all.push(case);
        }
    }
}

fn crash(reference: &Reference, all: &mut Vec<Case>) {
    for side in [Side::Before, Side::After] {
        reference.each(side, &Act::Crash { down: 500, moves: Vec::new() }, all);
    }
}

fn lost(reference: &Reference, all: &mut Vec<Case>) {
    for side in [Side::Before, Side::After] {
        reference.each(side, &Act::Lose, all);
        reference.each(side, &Act::Silence, all);
    }
    // The fault comes when another leader has continued, or has finished.
    for late in [600, 6_000] {
        reference.each(Side::Before, &Act::Slow(late), all);
    }
}

fn refused(reference: &Reference, all: &mut Vec<Case>) {
    for code in [403, 404, 409, 429, 500] {
        reference.each(Side::Before, &Act::Answer(code), all);
    }
}

fn stale(reference: &Reference, all: &mut Vec<Case>) {
    for lag in 1..=6 {
        all.push(Case { lag, ..reference.case() });
    }
    for events in [1, 3, 8] {
        reference.each(Side::After, &Act::Hold { events }, all);
    }
}

fn cut(reference: &Reference, all: &mut Vec<Case>) {
    for time in [50, 15_000, 40_000] {
        reference.each(Side::After, &Act::Cut { time }, all);
    }
}

fn recreated(reference: &Reference, all: &mut Vec<Case>) {
    for side in [Side::Before, Side::After] {
        reference.each(side, &Act::Do(Move::Recreate), all);
    }
    reference.each(Side::After, &Act::Crash { down: 20_000, moves: vec![Move::Recreate] }, all);
}

/// The moves that apply to a life. A clock that is ahead ends a time to live early, by definition: `runtime::clock` prevents that and
/// has its own tests.
fn moves_for(life: Life) -> impl Iterator<Item = Move> {
    Move::ALL.into_iter().filter(move |what| life != Life::Expiring || !matches!(what, Move::ClockAhead))
}

fn moves(reference: &Reference, all: &mut Vec<Case>) {
    for what in moves_for(reference.life) {
        reference.each(Side::After, &Act::Do(what), all);
    }
    // The operator learns of the longer time to live only from its request.
    if reference.life == Life::Expiring {
        for at in 1..=reference.outcome.requests {
            let fault = |act| Fault { at, side: Side::After, act };
            all.push(Case { faults: vec![fault(Act::Hold { events: 50 }), fault(Act::Do(Move::Prolong))], ..reference.case() });
        }
    }
}

/// With two leaders the other one would continue, as in `moves`.
fn down(reference: &Reference, all: &mut Vec<Case>) {
    if reference.leaders > 1 {
        return;
    }
    for what in moves_for(reference.life) {
        reference.each(Side::Before, &Act::Crash { down: 90_000, moves: vec![what] }, all);
    }
}

/// Within the bound of L1, and beyond the deadline of the class.
fn absent(reference: &Reference, all: &mut Vec<Case>) {
    if reference.life == Life::BestEffort {
        reference.each(Side::Before, &Act::Crash { down: 1_500_000, moves: Vec::new() }, all);
    }
}

fn lasting(reference: &Reference, all: &mut Vec<Case>) {
    reference.each(Side::Before, &Act::Panic, all);
    for kind in ["computers", "computerrecords", "namespaces", "pods", "persistentvolumeclaims", "computerclasses", "apikeys"] {
        reference.each(Side::After, &Act::PanicWatch { kind: kind.to_owned() }, all);
    }
    let refusals = [
        ("/status", 403),
        ("GET /apis/computer-operator.dev", 403),
        ("/persistentvolumes", 500),
        ("PATCH ", 409),
        ("PUT ", 409),
        ("POST ", 409),
    ];
    for (part, code) in refusals {
        reference.each(Side::After, &Act::Deny { part: part.to_owned(), code, time: 300_000 }, all);
    }
    for what in Move::LASTING {
        reference.each(Side::After, &Act::Do(what), all);
    }
}

/// The lives without faults, with one leader and with two.
pub fn references(jobs: usize) -> Vec<Reference> {
    let lives: Vec<(Life, usize)> = Life::ALL.iter().flat_map(|l| [(*l, 1), (*l, 2)]).collect();
    let references: Mutex<Vec<Reference>> = Mutex::default();
    parallel(&lives, jobs, |(life, leaders)| {
        let outcome = run(&Case::new(*life, *leaders));
        references.lock().unwrap().push(Reference { life: *life, leaders: *leaders, outcome });
    });
    let mut references = references.into_inner().unwrap();
    references.sort_by_key(|r| (r.life as usize, r.leaders));
    references
}

/// Cases of a matrix, every n-th.
pub fn cases(stage: &Stage, references: &[Reference], stride: usize) -> (Vec<Case>, usize) {
    let mut cases = Vec::new();
    for reference in references {
        (stage.cases)(reference, &mut cases);
    }
    let all = cases.len();
    (cases.into_iter().step_by(stride).collect(), all)
}

/// Runs the named matrices, or all of them, or the `k`-th of `n` parts of each. The checks that belong to no matrix run with the first
/// part. Returns whether all passed.
pub fn run_stages(names: &[String], full: bool, thin: usize, (k, n): (usize, usize), jobs: usize) -> bool {
    let chosen = |s: &&Stage| names.is_empty() || names.iter().any(|n| n == s.name);
    let references = references(jobs);
    let alone = || regressions(&references) & crate::lasting::run_all(jobs) & crate::repeatable::run_all(&references, jobs);
    let mut well = k > 1 || alone();
    let (mut runs, began) = (0, Instant::now());
    for stage in STAGES.iter().filter(chosen) {
        let (cases, all) = cases(stage, &references, if full { 1 } else { stage.stride } * thin.max(1));
        let cases: Vec<Case> = cases.into_iter().skip(k - 1).step_by(n).collect();
        runs += cases.len();
        well &= one(stage, &cases, all, &references, jobs);
    }
    println!("{runs} runs in {} s", began.elapsed().as_secs());
    well
}

/// Repeats the cases of former faults.
fn regressions(references: &[Reference]) -> bool {
    let mut well = true;
    for (what, case) in crate::regressions::ALL {
        let case: Case = serde_json::from_str(case).expect("a case");
        let outcome = run(&case);
        let wrong: Vec<String> = outcome.wrong.iter().cloned().chain(budget(&case, &outcome, references)).collect();
        if !wrong.is_empty() {
            println!("FAILED  regression: {what}\n        now: {}\n        {}", wrong.join("\n        "), case.command());
            well = false;
        }
    }
    well
}

fn one(stage: &Stage, cases: &[Case], all: usize, references: &[Reference], jobs: usize) -> bool {
    let began = Instant::now();
    let failures: Mutex<Vec<(Case, Vec<String>)>> = Mutex::default();
    parallel(cases, jobs, |case| {
        let mut outcome = run(case);
        outcome.wrong.extend(budget(case, &outcome, references));
        if !outcome.wrong.is_empty() {
            println!("        {}: {}\n        {}", stage.name, outcome.wrong[0].lines().next().unwrap_or_default(), case.command());
            failures.lock().unwrap().push((case.clone(), outcome.wrong));
        }
    });
    let failures = failures.into_inner().unwrap();
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "{verdict:>6}  {:<12} {:>5} of {all:>5} runs, {} failed, {} s: {}",
        stage.name,
        cases.len(),
        failures.len(),
        began.elapsed().as_secs(),
        stage.about
    );
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for (case, wrong) in &failures {
        let kind: String = wrong[0].chars().filter(|c| !c.is_ascii_hexdigit() || !c.is_ascii_digit()).take(60).collect();
        let seen = kinds.entry(kind).or_default();
        *seen += 1;
        if *seen <= 2 {
            println!(
                "        {}\n        seed {}: {}",
                wrong.iter().take(3).cloned().collect::<Vec<_>>().join("\n        "),
                case.seed,
                case.command()
            );
        }
    }
    failures.is_empty()
}

/// Creates and deletes match the run without a fault, within what one fault explains, and there is no request storm.
pub fn budget(case: &Case, outcome: &Outcome, references: &[Reference]) -> Vec<String> {
    let mut wrong = Vec::new();
    if outcome.requests > crate::life::STORM && outcome.wrong.is_empty() {
        wrong.push(format!("L6: request storm: {} requests", outcome.requests));
    }
    if case.faults.is_empty() && case.lag == 0 && !matches!(case.life, Life::Override | Life::GivenUp) {
        wrong.extend(outcome.idle.iter().cloned());
    }
    let most = crate::pace::most_requests(case.life).filter(|_| case.faults.is_empty() && case.lag == 0 && case.leaders == 1);
    if let Some(most) = most.filter(|most| outcome.requests > *most) {
        wrong.push(format!("L6: {} requests in a life without faults, not {most}", outcome.requests));
    }
    // A stale cache is no reason to repeat a request that succeeded.
    let behind_only = case.faults.iter().all(|f| matches!(f.act, Act::Hold { .. } | Act::Cut { .. }));
    if behind_only && case.leaders == 1 {
        wrong.extend(outcome.repeated.iter().map(|(what, n)| format!("L6: {what} was being deleted and was deleted {n} times more")));
    }
    let by_tenant = case.faults.iter().any(|f| match &f.act {
        Act::Do(_) => true,
        Act::Crash { moves, .. } => !moves.is_empty(),
        _ => false,
    });
    let Some(reference) = references.iter().find(|r| r.life == case.life && r.leaders == case.leaders).filter(|_| !by_tenant) else {
        return wrong;
    };
    for (what, found, usual) in
        [("creates", &outcome.creates, &reference.outcome.creates), ("deletes", &outcome.deletes, &reference.outcome.deletes)]
    {
        for (kind, n) in found {
            let most = usual.get(kind).copied().unwrap_or(0) + 2;
            if *n > most {
                wrong.push(format!("S10: {n} {what} of {kind}, {} without a fault", most - 2));
            }
        }
    }
    wrong
}

pub fn parallel<T: Sync>(items: &[T], jobs: usize, work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::SeqCst)) {
                    work(item);
                }
            });
        }
    });
}
