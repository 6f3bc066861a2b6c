//! Checks that each guard is needed: with the guard switched off, a run must break a promise that holds with it. `docs/guards.md`, which
//! this module writes, names the promise and the command.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;

use computer_operator::guards::Guard;

use crate::hints::{TEETH, Tooth};
use crate::matrix::{self, Reference, STAGES, budget, parallel};
use crate::run::{Case, run_without};

/// How far from the request in the hint the search goes. When the code changes, the place moves only a little.
const FAR: i64 = 60;

/// A run that breaks a promise without some guards, and breaks none with them.
struct Bite {
    case: Case,
    what: String,
}

/// The result for one guard.
struct Verdict {
    tooth: &'static Tooth,
    bite: Option<Bite>,
    runs: usize,
}

/// Checks every guard; returns whether the absence of each was detected.
pub fn run_all(jobs: usize) -> bool {
    let references = matrix::references(jobs);
    let verdicts: Mutex<Vec<Verdict>> = Mutex::default();
    let all: Vec<usize> = (0..TEETH.len()).collect();
    parallel(&all, jobs, |i| {
        let tooth = &TEETH[*i];
        let verdict = prove(tooth, &references);
        match &verdict.bite {
            Some(bite) => {
                println!("    ok  {:?}, after {} runs: {}", tooth.guard, verdict.runs, bite.what.lines().next().unwrap_or_default());
            }
            None => println!("FAILED  {:?}: no check failed in {} runs", tooth.guard, verdict.runs),
        }
        verdicts.lock().unwrap().push(verdict);
    });
    let mut verdicts = verdicts.into_inner().unwrap();
    verdicts.sort_by_key(|v| v.tooth.guard);
    let complete = verdicts.iter().map(|v| v.tooth.guard).eq(Guard::ALL);
    if !complete {
        println!("FAILED  the hints do not name every guard once");
    }
    written(&verdicts) && complete && verdicts.iter().all(|v| v.bite.is_some())
}

/// Writes the table, or checks that the committed one has a row for every guard. The run in a row may be outdated.
fn written(verdicts: &[Verdict]) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guards.md");
    if std::env::var_os("WRITE_GUARDS").is_some() {
        std::fs::write(&path, table(verdicts)).expect("docs/guards.md");
        return true;
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let complete = verdicts.iter().all(|v| text.contains(&row(v.tooth))) && text.matches("\n| `").count() == verdicts.len();
    if !complete {
        println!("FAILED  docs/guards.md does not have a row for every guard: run it again with WRITE_GUARDS=1");
    }
    complete
}

/// The beginning of a guard's row.
fn row(tooth: &Tooth) -> String {
    format!("| `{:?}` | {} |", tooth.guard, tooth.about)
}

/// The first of these cases that breaks a promise only without the guards.
fn first(off: &[Guard], cases: impl Iterator<Item = Case>, references: &[Reference], runs: &mut usize) -> Option<Bite> {
    for case in cases {
        *runs += 1;
        let broken = |off: &[Guard]| {
            let outcome = run_without(off, &case);
            let budget = budget(&case, &outcome, references);
            outcome.wrong.into_iter().chain(budget).next()
        };
        // A case that also fails with all guards proves nothing about these.
        if let Some(what) = broken(off).filter(|_| broken(&[]).is_none()) {
            return Some(Bite { case, what });
        }
    }
    None
}

fn prove(tooth: &'static Tooth, references: &[Reference]) -> Verdict {
    let mut runs = 0;
    let bite = first(&[tooth.guard], around(tooth.hint), references, &mut runs);
    Verdict { tooth, bite, runs }
}

/// The hinted case, then the same a request earlier, later, and so on.
fn around(hint: &str) -> impl Iterator<Item = Case> {
    let case: Case = serde_json::from_str(hint).expect("a case");
    let places: Vec<i64> =
        if case.faults.is_empty() { vec![0] } else { std::iter::once(0).chain((1..=FAR).flat_map(|d| [-d, d])).collect() };
    places.into_iter().filter_map(move |by| {
        let mut case = case.clone();
        for fault in &mut case.faults {
            fault.at = fault.at.checked_add_signed(by).filter(|at| *at > 0)?;
        }
        Some(case)
    })
}

/// Finds a hint: the first run of some matrices that breaks a promise without these guards.
pub fn search(off: &[Guard], stages: &[String], thin: usize, jobs: usize) -> bool {
    let references = matrix::references(jobs);
    let (mut runs, mut found) = (0, false);
    for stage in STAGES.iter().filter(|s| stages.iter().any(|n| n == s.name)) {
        let (cases, _) = matrix::cases(stage, &references, thin);
        if let Some(bite) = first(off, cases.into_iter(), &references, &mut runs) {
            println!("    ok  {off:?}: {}, after {runs} runs: {}\n        {}", stage.name, bite.what, bite.case.json());
            found = true;
        } else {
            println!("        {off:?}: {}: no check failed, {runs} runs so far", stage.name);
        }
    }
    found
}

/// A guard by its name.
pub fn named(name: &str) -> Result<Guard, String> {
    let names = || Guard::ALL.map(|g| format!("{g:?}")).join(", ");
    Guard::ALL.into_iter().find(|g| format!("{g:?}") == name).ok_or_else(|| format!("unknown guard; valid names: {}", names()))
}

fn table(verdicts: &[Verdict]) -> String {
    let mut text = String::from(
        "<!-- Written by `WRITE_GUARDS=1 cargo test --features guards-off --test simulator -- teeth`. -->\n\
         # Guards, and what breaks without them\n\n\
         Each guard (`src/guards.rs`) was switched off alone. A run of the simulator then broke the promise named here (`S` and `L` as in\n\
         `docs/reliability.md`); the same run with the guard breaks none. The last column repeats that run and prints its journal.\n\n\
         | guard | what it does | broken without it | the run |\n|---|---|---|---|\n",
    );
    for Verdict { tooth, bite, .. } in verdicts {
        let (promise, command) = bite.as_ref().map_or(("**nothing**", String::new()), |bite| {
            let promise = bite.what.split([':', ' ']).next().unwrap_or_default();
            let command = bite.case.command().replace("-- --case", &format!("-- --without {:?} --case", tooth.guard));
            (promise, format!("`{command}`"))
        });
        let _ = writeln!(text, "{} {promise} | {command} |", row(tooth));
    }
    text
}
