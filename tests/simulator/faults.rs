//! The faults and when they happen: a list for the n-th request of the operators, or a random mix. `World::fire` in `world.rs` performs
//! them. For `Act::Lose` it returns `Verdict::Reset`, which `api/server.rs` and `store.rs` turn into a broken connection. `--case` repeats one run.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::api::failure::Failure;
use crate::api::kinds;
use crate::api::state::Change;
use crate::moves::Move;
use crate::world::Caller;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// The request has not arrived.
    Before,
    /// It was performed, and the answer has not arrived.
    After,
}

/// What happens to a request.
pub enum Verdict {
    Go,
    Reset,
    Answer(Failure),
}

/// A fault. Times are milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Act {
    /// The client's process is killed and restarted after a while; meanwhile these moves are made.
    Crash { down: u64, moves: Vec<Move> },
    /// The connection breaks before or after the request is performed.
    Lose,
    /// No answer, ever.
    Silence,
    /// The server answers with this code instead.
    Answer(u16),
    /// The request is slow.
    Slow(u64),
    /// A move is made at this moment.
    Do(Move),
    /// No watch shows anything until that many more changes were made, or a while has passed.
    Hold { events: usize },
    /// All watches break. Changes meanwhile are never shown, only their result.
    Cut { time: u64 },
    /// The code that waits for the answer panics.
    Panic,
    /// The task that watches this kind panics when it opens its next watch.
    PanicWatch { kind: String },
    /// All requests whose verb and path contain this text get this code for a while.
    Deny { part: String, code: u16, time: u64 },
}

/// One fault and its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    pub at: u64,
    pub side: Side,
    pub act: Act,
}

/// Random faults, each with its probability for every request.
#[derive(Clone, Debug, Default)]
pub struct Mix {
    pub crash: f64,
    pub lose: f64,
    pub silence: f64,
    pub refuse: f64,
    pub slow: f64,
    pub cut: f64,
    /// Every request to the archive store takes up to this many milliseconds longer, permanently.
    pub store: u64,
    /// All of these faults end after this many requests, so that the deletions can end.
    pub until: u64,
}

#[derive(Debug, Default)]
pub struct Faults {
    pub list: Vec<Fault>,
    pub mix: Mix,
    /// Every watch is always this many changes behind.
    pub lag: usize,
    /// Requests whose path contains this text are refused with this code until the instant.
    pub denied: Option<(String, u16, Instant)>,
    /// Requests whose verb and path contain this text take this much longer.
    pub slow: Option<(String, Duration)>,
    /// The kind whose next watch panics.
    pub doomed: Option<String>,
    /// When a watch panicked whose replica has not exited since.
    pub died: Option<Instant>,
    /// The archive store does not answer before this instant.
    pub store_down: Option<Instant>,
    held: Option<(usize, usize, Instant)>,
    cuts: Vec<(Instant, Instant)>,
}

/// Changes that are held back are shown after this time at the latest.
const HELD: Duration = Duration::from_secs(60);
/// A watch that lags by a number of changes lags at most this long.
const LAG: Duration = Duration::from_secs(10);

impl Faults {
    pub fn new(list: Vec<Fault>, lag: usize) -> Self {
        Self { list, lag, ..Self::default() }
    }

    /// What happens to the n-th request.
    pub fn due(&mut self, n: u64, side: Side, what: &str, random: &mut StdRng) -> Vec<Act> {
        let mut acts: Vec<Act> = self.list.iter().filter(|f| f.at == n && f.side == side).map(|f| f.act.clone()).collect();
        if side == Side::Before
            && let Some((part, code, until)) = &self.denied
            && what.contains(part.as_str())
            && Instant::now() < *until
        {
            acts.push(Act::Answer(*code));
        }
        if side == Side::Before
            && let Some((part, time)) = &self.slow
            && what.contains(part.as_str())
        {
            acts.push(Act::Slow(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)));
        }
        if n < self.mix.until {
            acts.extend(self.mix.by_chance(side, random));
        }
        acts
    }

    pub fn hold(&mut self, from: usize, events: usize) {
        self.held = Some((from, from + events, Instant::now() + HELD));
    }

    pub fn cut(&mut self, time: Duration) {
        self.cuts.push((Instant::now(), Instant::now() + time));
    }

    /// Whether a watch that was opened then has been broken since.
    pub fn cut_since(&self, caller: &Caller, opened: Instant) -> bool {
        caller.actor.is_operator() && self.cuts.iter().any(|(at, _)| *at >= opened)
    }

    /// Whether lists and watches fail at present.
    pub fn unreachable(&self, caller: &Caller) -> bool {
        caller.actor.is_operator() && self.cuts.iter().any(|(at, until)| (*at..*until).contains(&Instant::now()))
    }

    /// When the last cut ended, if it has: watches from before it get a 410.
    pub fn compacted_at(&self) -> Option<Instant> {
        self.cuts.iter().map(|(_, until)| *until).filter(|until| *until <= Instant::now()).max()
    }

    /// Whether a watch shows the change at this index of the log now, and when it does or may.
    pub fn visible(&self, caller: &Caller, index: usize, change: &Change, latest: usize) -> (bool, Instant) {
        let usual = change.at + Duration::from_micros(1_000 + change.rv.wrapping_mul(7_919) % 20_000);
        if !caller.actor.is_operator() {
            return (true, change.at);
        }
        let behind = change.at + LAG;
        if latest <= index + self.lag && Instant::now() < behind {
            return (false, behind);
        }
        match self.held {
            Some((from, until, end)) if index >= from && latest < until && Instant::now() < end => (false, end),
            _ => (true, usual),
        }
    }
}

impl Mix {
    fn by_chance(&self, side: Side, random: &mut StdRng) -> Vec<Act> {
        let mut acts = Vec::new();
        let mut chance = |p: f64| p > 0.0 && random.random_bool(p);
        if chance(self.crash) {
            acts.push(Act::Crash { down: 500, moves: Vec::new() });
        }
        if chance(self.lose) {
            acts.push(Act::Lose);
        }
        if chance(self.silence) {
            acts.push(Act::Silence);
        }
        if side == Side::Before && chance(self.refuse) {
            acts.push(Act::Answer([409, 429, 500, 503, 403][random.random_range(0..5)]));
        } else if side == Side::Before && chance(self.slow) {
            acts.push(Act::Slow(random.random_range(100..12_000)));
        } else if chance(self.cut) {
            acts.push(Act::Cut { time: random.random_range(10..30_000) });
        }
        acts
    }
}

/// A refusal with this code.
pub fn failure(code: u16) -> Failure {
    match code {
        // Not from the API server itself: from a proxy, or for a kind that is not served.
        404 => Failure { reason: "", message: "404 page not found".to_owned(), ..Failure::server(404) },
        403 => Failure::forbidden(kinds::meta("pods"), "x"),
        409 => Failure::modified(kinds::meta("pods"), "x"),
        code => Failure::server(code),
    }
}
