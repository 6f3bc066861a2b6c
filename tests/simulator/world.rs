//! One simulated cluster: API server, archive store, clock, randomness, and the journal of all requests.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use computer_operator::computer::metrics::Metrics;
use computer_operator::runtime::time_and_random::Sources;
use jiff::SignedDuration;
use kube::Client;
use object_store::memory::InMemory;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::failure::Answer;
use crate::api::state::time_since;
use crate::api::{Actor, State, server};
use crate::faults::{Act, Faults, Side, Verdict};
use crate::moves;
use crate::observer::Observer;

#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    faults: Mutex<Faults>,
    journal: Mutex<Vec<String>>,
    random: Mutex<StdRng>,
    changed: Arc<Changed>,
    start: Instant,
    objects: Arc<InMemory>,
    routers: Mutex<Vec<(usize, Arc<Process>, axum::Router)>>,
    requests: AtomicU64,
    /// Seconds by which the operators' clock is ahead.
    ahead: AtomicI64,
    figures: Mutex<std::collections::BTreeMap<usize, Arc<Metrics>>>,
}

/// The beginning of the text of every injected panic.
pub const INJECTED: &str = "the simulation panics";

/// The version of what can be seen, and who waits for the next one. Tokio's `watch` wakes its receivers in a random order, so a run could not be
/// repeated.
#[derive(Default)]
struct Changed {
    resource_version: AtomicU64,
    version: AtomicU64,
    woken: Notify,
}

impl Changed {
    fn wake(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.woken.notify_waiters();
    }
}

/// Waits for changes of the state.
pub struct Changes {
    seen: u64,
    of: Arc<Changed>,
}

impl Changes {
    /// Resolves when there is a version that has not been seen here.
    pub async fn changed(&mut self) {
        loop {
            let mut woken = std::pin::pin!(self.of.woken.notified());
            woken.as_mut().enable();
            let version = self.of.version.load(Ordering::SeqCst);
            if version != self.seen {
                self.seen = version;
                return;
            }
            woken.await;
        }
    }

    /// Marks the latest version as seen.
    pub fn skip(&mut self) {
        self.seen = self.of.version.load(Ordering::SeqCst);
    }
}

/// A process that can be killed. After that, none of its requests has an effect.
#[derive(Debug, Default)]
pub struct Process {
    dead: AtomicBool,
    pub died: Notify,
    pub down: Mutex<Duration>,
}

/// The client of a request, and its process.
#[derive(Clone, Debug)]
pub struct Caller {
    pub actor: Actor,
    pub process: Arc<Process>,
}

impl Caller {
    pub fn new(actor: Actor) -> Self {
        Self { actor, process: Arc::default() }
    }

    pub fn alive(&self) -> bool {
        !self.process.dead.load(Ordering::SeqCst)
    }

    pub fn die(&self, down: Duration) {
        *self.process.down.lock().unwrap() = down;
        self.process.dead.store(true, Ordering::SeqCst);
        self.process.died.notify_one();
    }
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let (start, objects) = (Instant::now(), Arc::new(InMemory::new()));
        let observer = Observer::new(Arc::clone(&objects));
        let random = StdRng::seed_from_u64(seed);
        Self(Arc::new(Inner {
            state: Mutex::new(State::new(start, seed, observer)),
            faults: Mutex::new(faults),
            journal: Mutex::default(),
            random: Mutex::new(random),
            changed: Arc::default(),
            start,
            objects,
            routers: Mutex::default(),
            requests: AtomicU64::new(0),
            ahead: AtomicI64::new(0),
            figures: Mutex::default(),
        }))
    }

    /// Reads or changes the state. The lock is never held over an await.
    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.state.lock().unwrap())
    }

    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.0.faults.lock().unwrap()
    }

    pub fn objects(&self) -> Arc<InMemory> {
        Arc::clone(&self.0.objects)
    }

    /// Resolves when the state has changed.
    pub fn changes(&self) -> Changes {
        Changes { seen: self.0.changed.version.load(Ordering::SeqCst), of: Arc::clone(&self.0.changed) }
    }

    pub fn notify(&self) {
        let rv = self.with(|s| s.rv());
        if self.0.changed.resource_version.swap(rv, Ordering::SeqCst) != rv {
            self.0.changed.wake();
        }
    }

    pub fn client(&self, caller: &Caller) -> Client {
        let (world, caller) = (self.clone(), caller.clone());
        Client::new(tower::service_fn(move |request| server::handle(world.clone(), caller.clone(), request)), "default")
    }

    /// The clock and the randomness of a process in this world.
    pub fn sources(&self) -> Sources {
        let (start, clock, world) = (self.0.start, self.clone(), self.clone());
        let ahead = move || SignedDuration::from_secs(clock.0.ahead.load(Ordering::SeqCst));
        Sources::new(move || time_since(start) + ahead(), move |bytes| world.0.random.lock().unwrap().fill_bytes(bytes))
    }

    pub fn clock_ahead(&self, seconds: i64) {
        self.0.ahead.store(seconds, Ordering::SeqCst);
    }

    pub fn random(&self, below: u64) -> u64 {
        self.0.random.lock().unwrap().random_range(0..below.max(1))
    }

    pub fn elapsed(&self) -> Duration {
        self.0.start.elapsed()
    }

    /// The latency of one direction.
    pub async fn latency(&self, caller: &Caller) {
        if caller.actor.is_operator() {
            let micros = 500 + self.random(7_500);
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
    }

    /// A dead process never gets an answer.
    pub async fn dead_wait(&self, caller: &Caller) {
        if !caller.alive() {
            std::future::pending::<()>().await;
        }
    }

    /// The number of an operator's request; requests of other clients are not counted.
    pub fn count(&self, caller: &Caller) -> Option<u64> {
        (caller.actor.is_operator() && caller.alive()).then(|| self.0.requests.fetch_add(1, Ordering::SeqCst) + 1)
    }

    pub fn counted(&self) -> u64 {
        self.0.requests.load(Ordering::SeqCst)
    }

    /// Applies the faults of the n-th request, before it is performed or after. It may never return.
    pub async fn fire(&self, caller: &Caller, n: Option<u64>, side: Side, what: &str) -> Verdict {
        self.dead_wait(caller).await;
        let Some(n) = n else { return Verdict::Go };
        let mut verdict = Verdict::Go;
        let acts = self.0.faults.lock().unwrap().due(n, side, what, &mut self.0.random.lock().unwrap());
        for act in acts {
            self.note(format!("        !! {side:?} request {n} of {:?}: {act:?}", caller.actor));
            match act {
                Act::Crash { down, moves } => {
                    caller.die(Duration::from_millis(down));
                    self.until_settled(Duration::from_millis(down));
                    for what in moves {
                        moves::perform(self, what);
                    }
                    std::future::pending::<()>().await;
                }
                Act::Do(what) => moves::perform(self, what),
                Act::Silence => std::future::pending::<()>().await,
                Act::Lose => verdict = Verdict::Reset,
                // The texts of real errors differ from one to the next: ports, times, request ids.
                Act::Answer(code) => {
                    let mut failure = crate::faults::failure(code);
                    failure.message = format!("{}, request {n}", failure.message);
                    verdict = Verdict::Answer(failure);
                }
                Act::Panic => panic!("{INJECTED}: request {n}"),
                Act::PanicWatch { kind } => {
                    self.faults().doomed = Some(kind);
                    self.faults().cut(Duration::from_millis(10));
                    self.0.changed.wake();
                }
                Act::Deny { part, code, time } => self.faults().denied = Some((part, code, Instant::now() + Duration::from_millis(time))),
                Act::Slow(time) => tokio::time::sleep(Duration::from_millis(time)).await,
                Act::Hold { events } => {
                    let seen = self.with(|s| s.log.len());
                    self.faults().hold(seen, events);
                }
                Act::Cut { time } => {
                    self.faults().cut(Duration::from_millis(time));
                    self.0.changed.wake();
                }
            }
        }
        verdict
    }

    /// The run does not end before a killed process has restarted and has had time for its first reconciles.
    fn until_settled(&self, down: Duration) {
        self.with(|s| s.observer.wanted += 1);
        let world = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(down + Duration::from_secs(20)).await;
            world.with(|s| s.observer.wanted -= 1);
            world.notify();
        });
    }

    pub fn journal(&self, caller: &Caller, n: Option<u64>, what: &str, result: &Answer) {
        if caller.actor.is_operator() {
            let outcome = result.as_ref().err().map_or_else(|| "ok".to_owned(), |f| format!("{} {}", f.code, f.message));
            self.note(format!("{:>4} {:?} {what}: {outcome}", n.map_or(String::new(), |n| n.to_string()), caller.actor));
        }
    }

    pub fn note(&self, line: impl std::fmt::Display) {
        let at = self.elapsed();
        self.0.journal.lock().unwrap().push(format!("{:>9.3} {line}", at.as_secs_f64()));
    }

    pub fn whole_story(&self) -> Vec<String> {
        self.0.journal.lock().unwrap().clone()
    }

    /// The metrics of a new process of a replica.
    pub fn new_figures(&self, replica: usize) -> Arc<Metrics> {
        let metrics = Arc::new(Metrics::new());
        self.0.figures.lock().unwrap().insert(replica, Arc::clone(&metrics));
        metrics
    }

    /// What a replica exposes at `/metrics`.
    pub fn figures(&self, replica: usize) -> String {
        self.0.figures.lock().unwrap().get(&replica).and_then(|m| m.text().ok()).unwrap_or_default()
    }

    /// Panics if the task that opens this watch or list must die.
    pub fn open(&self, caller: &Caller, kind: &str) {
        let mut faults = self.faults();
        if !caller.actor.is_operator() || faults.doomed.as_deref() != Some(kind) {
            return;
        }
        (faults.doomed, faults.died) = (None, Some(Instant::now()));
        drop(faults);
        panic!("{INJECTED}: the watch of {kind}");
    }

    /// The ingest endpoints of the replicas.
    pub fn serve(&self, replica: usize, process: &Arc<Process>, router: axum::Router) {
        let mut routers = self.0.routers.lock().unwrap();
        routers.retain(|(r, ..)| *r != replica);
        routers.push((replica, Arc::clone(process), router));
    }

    /// The parts of a world refer to the world: without this it would never be freed.
    pub fn end(&self) {
        self.0.routers.lock().unwrap().clear();
    }

    /// Whether any replica runs.
    pub fn any_alive(&self) -> bool {
        self.0.routers.lock().unwrap().iter().any(|(_, process, _)| !process.dead.load(Ordering::SeqCst))
    }

    /// A replica that answers, as the Service would choose it.
    pub fn endpoint(&self) -> Option<axum::Router> {
        let routers = self.0.routers.lock().unwrap();
        let alive: Vec<_> = routers.iter().filter(|(_, p, _)| !p.dead.load(Ordering::SeqCst)).collect();
        let chosen = usize::try_from(self.random(alive.len() as u64)).ok()?;
        alive.get(chosen).map(|(_, _, router)| router.clone())
    }
}
