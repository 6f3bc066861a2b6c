//! Guards have teeth: with any one of them switched off, the matrices must fail. Which promise was seen broken, and by which matrix,
//! is `docs/guards.md`; the file must be what this writes.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;

use computer_operator::guards::{self, Guard};

use crate::matrix::{self, Reference, STAGES, Stage, budget, parallel};
use crate::run::{Case, run};

/// Most runs that a guard is looked for in.
const MOST: usize = 400;

/// What was seen without a guard.
struct Bite {
    guard: Guard,
    /// The matrix, and what it said; `None`: nothing.
    seen: Option<(&'static str, String, Case)>,
    runs: usize,
}

/// What a guard is for, and the matrices that are most likely to miss it.
fn about(guard: Guard) -> (&'static str, &'static [&'static str]) {
    match guard {
        Guard::DeletePrecondition => ("Every delete names the UID that it is meant for", &["moves", "down"]),
        Guard::FinalizerFence => ("A patch of a Computer's finalizers tests its UID and its version", &["recreated", "moves", "down"]),
        Guard::StatusFence => ("A status goes only to the UID that it was computed for", &["recreated", "moves", "down"]),
        Guard::RecordVersion => ("A record is only replaced in the version that was read", &["undisturbed", "stale"]),
        Guard::LiveAbsence => ("What a cache does not hold is looked for live", &["stale", "unobserved", "down"]),
        Guard::LiveRecord => ("Nothing is made on the word of a record that a cache holds", &["unobserved"]),
        Guard::OldFacts => {
            ("What was learned before somebody else wrote the record is not held against it", &["undisturbed", "crash", "stale"])
        }
        Guard::LatestRecord => ("A plan is not made on an older record than this process has seen", &["unobserved"]),
        Guard::TypedNotFound => ("Only the API server's own word is an absence, not any 404", &["refused"]),
        Guard::RecordedUid => ("Under a recorded name only the recorded UID is ours", &["moves", "down"]),
        Guard::WritersStopped => ("A pod has stopped when its kubelet says so", &["moves", "down"]),
        Guard::VanishedPod => ("A pod that vanished without that word is waited for", &["moves", "down"]),
        Guard::ClaimGone => ("The claim is gone before the archive reads", &["moves", "down"]),
        Guard::RetainFirst => ("A bound volume is set to Retain before anything else happens to it", &["undisturbed"]),
        Guard::SecureFirst => ("A volume that is bound but not on record is secured before its claim goes", &["recreated", "moves"]),
        Guard::LiveLast => ("The key goes live only when the home is protected", &["undisturbed"]),
        Guard::RevokeFirst => ("The key is revoked before anything is archived", &["undisturbed"]),
        Guard::SecretGone => ("The key's Secret is gone before the release", &["undisturbed"]),
        Guard::DyingComputer => ("A Computer that is being deleted authenticates nobody", &["undisturbed"]),
        Guard::DyingNamespace => ("Neither does a namespace that is being deleted", &["undisturbed"]),
        Guard::ReadBack => ("An archive is read back, whole, before anything is destroyed", &["moves"]),
        Guard::CreateOnly => ("What is in the store is never overwritten", &["undisturbed", "crash"]),
        Guard::ObjectDigest => ("Bytes that do not have the digest of their name never become visible", &["undisturbed"]),
        Guard::IngestUid => ("An archive pod writes for its own computer only", &["undisturbed"]),
        Guard::OverrideTarget => ("An override counts for the computer that it names", &["undisturbed"]),
        Guard::CustodyGone => ("The archive pod and the custody claim are gone before the release", &["undisturbed"]),
        Guard::VolumeGone => ("A volume that is to go is gone before the release", &["undisturbed"]),
        Guard::ReceiptFirst => ("The receipt is stored before the release", &["undisturbed"]),
        Guard::NoWayBack => ("A deletion that has begun goes on, whatever a cache shows", &["stale", "unobserved", "recreated", "moves"]),
        Guard::CheckPause => ("A check that failed is not repeated at once", &["undisturbed"]),
    }
}

/// Whether every guard was missed.
pub fn run_all(jobs: usize) -> bool {
    let references = matrix::references(jobs);
    let bites: Mutex<Vec<Bite>> = Mutex::default();
    parallel(&Guard::ALL, jobs, |guard| {
        let bite = bite(*guard, &references);
        match &bite.seen {
            Some((stage, what, case)) => {
                println!("    ok  {guard:?}: {stage}, after {} runs: {what}\n        {}", bite.runs, case.command());
            }
            None => println!("FAILED  {guard:?}: nobody noticed in {} runs", bite.runs),
        }
        bites.lock().unwrap().push(bite);
    });
    let mut bites = bites.into_inner().unwrap();
    bites.sort_by_key(|b| b.guard);
    let text = table(&bites);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guards.md");
    let same = std::fs::read_to_string(&path).is_ok_and(|old| old == text);
    if std::env::var_os("WRITE_GUARDS").is_some() {
        std::fs::write(&path, &text).expect("docs/guards.md");
    } else if !same {
        println!("FAILED  docs/guards.md is not what this run says: run it again with WRITE_GUARDS=1");
    }
    bites.iter().all(|b| b.seen.is_some()) && (same || std::env::var_os("WRITE_GUARDS").is_some())
}

fn bite(guard: Guard, references: &[Reference]) -> Bite {
    let mut runs = 0;
    let hints = about(guard).1;
    let stages = STAGES.iter().filter(|s| hints.contains(&s.name)).collect::<Vec<&Stage>>();
    for stage in &stages {
        let (cases, _) = matrix::cases(stage, references, 1);
        // From all over the matrix, not only its beginning.
        let most = MOST / stages.len();
        let stride = (cases.len() / most).max(1);
        for case in cases.iter().step_by(stride) {
            runs += 1;
            let wrong = guards::without(Some(guard), || {
                let outcome = run(case);
                let budget = budget(case, &outcome, references);
                outcome.wrong.into_iter().chain(budget).next()
            });
            // A case that fails with all guards says nothing about this one.
            if let Some(what) = wrong.filter(|_| run(case).wrong.is_empty()) {
                return Bite { guard, seen: Some((stage.name, what, case.clone())), runs };
            }
        }
    }
    Bite { guard, seen: None, runs }
}

fn table(bites: &[Bite]) -> String {
    let mut text = String::from(
        "<!-- Written by `WRITE_GUARDS=1 cargo test --features guards-off --test simulator -- teeth`; the same without the variable fails when it differs. -->\n\
         # Guards, and what breaks without them\n\n\
         Each guard (`src/guards.rs`) was switched off alone. The promise (`S` and `L` as in `docs/reliability.md`) that was then seen\n\
         broken, and the matrix of the simulator that saw it first:\n\n\
         | guard | what it does | broken without it | seen by |\n|---|---|---|---|\n",
    );
    for bite in bites {
        let (promise, stage) = bite
            .seen
            .as_ref()
            .map_or(("**nothing**", "**nobody**"), |(stage, what, _)| (what.split([':', ' ']).next().unwrap_or_default(), *stage));
        let _ = writeln!(text, "| `{:?}` | {} | {promise} | {stage} |", bite.guard, about(bite.guard).0);
    }
    text
}
