//! Turns at what archives share: room for chunks, checks, receipts. A tenant with much to archive must never delay the others for longer than a
//! turn (L3, L9), so a turn is as short as one chunk, or is given up when another one waits.
//!
//! Namespaces take turns, and within each of them its computers: next is who has had least, in units of the caller (bytes, or one for each turn). This is
//! start-time fair queueing (Goyal, Vin and Cheng, 1996). A namespace that did not wait, or that its bound held back, is treated as one that has had as
//! much as the last one served: what it did not use is not saved. One that has had more waits until the others have caught up. A waiter is never skipped
//! in favour of a smaller request, otherwise a large one would starve.
//!
//! A waiter that is dropped leaves the queue. Any number may wait for [`Turns`]. When too many wait for [`BoundedTurns`], one of the namespace with the
//! most is turned away ([`Busy`]), and of several such namespaces one of that which would be served last.
//!
//! How much there is of each is set by the callers: `ingest/shares.rs` (uploads, reads), `verify/reader.rs` (checks), `receipt_writer.rs` (receipts).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::time::Instant;

mod wait_metric;

use wait_metric::Label;
pub use wait_metric::{REFUSALS, WAITS};

/// How much there is, in units of the caller.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// For all.
    pub all: usize,
    /// Most that one namespace has.
    pub namespace: usize,
    /// Most that one computer has.
    pub computer: usize,
}

/// How much there is, and how many may wait for it.
#[derive(Clone, Copy, Debug)]
pub struct QueueBounds {
    /// How much.
    pub turns: Bounds,
    /// Most that wait.
    pub waiting: usize,
}

/// Most namespaces without a request that are remembered because they have had more than others.
const REMEMBERED: usize = 1000;

/// Too many wait: ask again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many wait for their turn")]
pub struct Busy;

/// Something that is shared, and for which any number may wait.
#[derive(Clone)]
pub struct Turns {
    name: &'static str,
    state: Arc<Mutex<State>>,
}

/// Something that is shared, and for which few may wait.
#[derive(Clone)]
pub struct BoundedTurns {
    turns: Turns,
}

/// A turn, or the place of one who waits for it. It ends when this is dropped.
pub struct Turn {
    turns: Turns,
    number: u64,
    namespace: String,
    uid: String,
    size: usize,
}

struct State {
    bounds: Bounds,
    /// Most that wait.
    most_waiting: usize,
    held: usize,
    waiting: usize,
    /// Of the last one who came.
    number: u64,
    /// Those who have their turn.
    granted: HashSet<u64>,
    /// What the namespace that was served last had had before. It never falls.
    floor: u64,
    namespaces: HashMap<String, Namespace>,
}

#[derive(Default)]
struct Namespace {
    held: usize,
    had: u64,
    /// As that of all, for its computers.
    floor: u64,
    computers: HashMap<String, Computer>,
}

#[derive(Default)]
struct Computer {
    held: usize,
    had: u64,
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    number: u64,
    size: usize,
    grant: oneshot::Sender<()>,
}

impl Turns {
    /// With these bounds. The name is the label of the metric, see [`WAITS`].
    pub fn new(name: &'static str, bounds: Bounds) -> Self {
        Self::with(name, QueueBounds { turns: bounds, waiting: usize::MAX })
    }

    /// This many turns at once, each of size 1 and as many for one namespace as `namespace` says.
    pub fn of(name: &'static str, all: usize, namespace: usize) -> Self {
        Self::new(name, Bounds { all, namespace, computer: namespace })
    }

    fn with(name: &'static str, QueueBounds { turns: bounds, waiting: most_waiting }: QueueBounds) -> Self {
        let (granted, namespaces) = (HashSet::new(), HashMap::new());
        let state = State { bounds, most_waiting, held: 0, waiting: 0, number: 0, granted, floor: 0, namespaces };
        Self { name, state: Arc::new(Mutex::new(state)) }
    }

    /// Waits for the turn of a computer. What is larger than its share counts as its share.
    pub async fn take(&self, namespace: &str, uid: &str, size: usize) -> Turn {
        loop {
            // Nobody is turned away.
            if let Ok(turn) = self.wait(namespace, uid, size).await {
                return turn;
            }
        }
    }

    async fn wait(&self, namespace: &str, uid: &str, size: usize) -> Result<Turn, Busy> {
        let began = Instant::now();
        let (turn, granted) = self.join(namespace, uid, size);
        granted.await.map_err(|_| Busy)?;
        WAITS.get_or_create(&Label { slot: self.name }).observe(began.elapsed().as_secs_f64());
        Ok(turn)
    }

    /// A turn, if it is this computer's now.
    pub fn try_take(&self, namespace: &str, uid: &str, size: usize) -> Option<Turn> {
        let (turn, mut granted) = self.join(namespace, uid, size);
        granted.try_recv().ok()?;
        WAITS.get_or_create(&Label { slot: self.name }).observe(0.0);
        Some(turn)
    }

    fn join(&self, namespace: &str, uid: &str, size: usize) -> (Turn, oneshot::Receiver<()>) {
        let (grant, granted) = oneshot::channel();
        let mut state = self.locked();
        state.number += 1;
        let (number, size) = (state.number, size.clamp(1, state.bounds.computer.max(1)));
        state.push((namespace, uid), Waiter { number, size, grant });
        state.serve();
        if state.waiting > state.most_waiting {
            state.turn_away();
        }
        drop(state);
        (Turn { turns: self.clone(), number, namespace: namespace.to_owned(), uid: uid.to_owned(), size }, granted)
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        // No critical section leaves it inconsistent.
        self.state.lock()
    }

    /// What is free.
    #[cfg(test)]
    pub fn free(&self) -> usize {
        let state = self.locked();
        state.bounds.all - state.held
    }
}

impl BoundedTurns {
    /// With these bounds. The name is the label of the metrics, see [`WAITS`] and [`REFUSALS`].
    pub fn new(name: &'static str, bounds: QueueBounds) -> Self {
        Self { turns: Turns::with(name, bounds) }
    }

    /// As [`Turns::take`].
    ///
    /// # Errors
    /// [`Busy`] when too many wait, and this one is to come back.
    pub async fn take(&self, namespace: &str, uid: &str, size: usize) -> Result<Turn, Busy> {
        self.turns.wait(namespace, uid, size).await.inspect_err(|Busy| {
            REFUSALS.get_or_create(&Label { slot: self.turns.name }).inc();
        })
    }

    /// What is free.
    #[cfg(test)]
    pub fn free(&self) -> usize {
        self.turns.free()
    }
}

impl Turn {
    /// Whether another one waits for the end of this or another turn.
    pub fn is_awaited(&self) -> bool {
        self.turns.locked().waiting > 0
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.locked();
        state.leave((&self.namespace, &self.uid), self.number, self.size);
        state.serve();
        state.tidy();
    }
}

impl State {
    fn push(&mut self, (namespace, uid): (&str, &str), waiter: Waiter) {
        let namespace = self.namespaces.entry(namespace.to_owned()).or_default();
        namespace.computers.entry(uid.to_owned()).or_default().waiting.push_back(waiter);
        self.waiting += 1;
    }

    /// Gives turns to those who are next, as long as there is room.
    fn serve(&mut self) {
        while let Some((name, uid)) = self.next() {
            let Some(namespace) = self.namespaces.get_mut(&name) else { return };
            let Some(computer) = namespace.computers.get_mut(&uid) else { return };
            if computer.waiting.front().is_none_or(|next| self.held + next.size > self.bounds.all) {
                return;
            }
            let Some(waiter) = computer.waiting.pop_front() else { return };
            (self.floor, namespace.floor) = (namespace.had.max(self.floor), computer.had.max(namespace.floor));
            (namespace.had, computer.had) = (self.floor + waiter.size as u64, namespace.floor + waiter.size as u64);
            namespace.held += waiter.size;
            computer.held += waiter.size;
            self.held += waiter.size;
            self.waiting -= 1;
            self.granted.insert(waiter.number);
            // One that has gone away gives its turn back when its place is dropped.
            let _ = waiter.grant.send(());
        }
    }

    /// Namespace and computer that are next.
    fn next(&self) -> Option<(String, String)> {
        let first = self.namespaces.iter().filter_map(|(name, namespace)| {
            let (uid, waiter) = namespace.next(self.bounds)?;
            Some(((namespace.had.max(self.floor), waiter.number), name, uid))
        });
        first.min_by_key(|(order, ..)| *order).map(|(_, name, uid)| (name.clone(), uid.clone()))
    }

    /// Turns away the last one of the computer with the most waiters, of the namespace with the most.
    fn turn_away(&mut self) {
        let floor = self.floor;
        let Some(namespace) = self.namespaces.values_mut().max_by_key(|namespace| namespace.waiting(floor)) else { return };
        let floor = namespace.floor;
        let most = namespace.computers.values_mut().max_by_key(|computer| computer.waiting(floor));
        self.waiting -= usize::from(most.and_then(|computer| computer.waiting.pop_back()).is_some());
    }

    /// Forgets namespaces without a request, except those that have had more than others.
    fn tidy(&mut self) {
        let idle = self.held == 0 && self.waiting == 0;
        let forget_all = idle || self.namespaces.len() > REMEMBERED;
        self.namespaces.retain(|_, namespace| !namespace.computers.is_empty() || (!forget_all && namespace.had > self.floor));
    }

    /// One that has its turn, waits for it, or was turned away.
    fn leave(&mut self, (name, uid): (&str, &str), number: u64, size: usize) {
        let Some(namespace) = self.namespaces.get_mut(name) else { return };
        let Entry::Occupied(mut computer) = namespace.computers.entry(uid.to_owned()) else { return };
        let of = computer.get_mut();
        let held = if self.granted.remove(&number) { size } else { 0 };
        let before = of.waiting.len();
        of.waiting.retain(|waiter| waiter.number != number);
        self.waiting -= before - of.waiting.len();
        of.held -= held;
        if of.held == 0 && of.waiting.is_empty() {
            computer.remove();
        }
        namespace.held -= held;
        self.held -= held;
    }
}

impl Namespace {
    /// The computer that is next, if the shares allow it.
    fn next(&self, bounds: Bounds) -> Option<(&String, &Waiter)> {
        let first = self.computers.iter().filter_map(|(uid, computer)| {
            let waiter = computer.waiting.front().filter(|waiter| computer.held + waiter.size <= bounds.computer)?;
            Some(((computer.had.max(self.floor), waiter.number), uid, waiter))
        });
        let (_, uid, waiter) = first.min_by_key(|(order, ..)| *order)?;
        (self.held + waiter.size <= bounds.namespace).then_some((uid, waiter))
    }

    /// How many wait, what it has had, and the last one.
    fn waiting(&self, floor: u64) -> (usize, u64, Option<u64>) {
        let each = self.computers.values().map(|computer| computer.waiting(self.floor));
        let (all, last) = each.fold((0, None), |(all, last), (waiting, _, number)| (all + waiting, last.max(number)));
        (all, self.had.max(floor), last)
    }
}

impl Computer {
    fn waiting(&self, floor: u64) -> (usize, u64, Option<u64>) {
        (self.waiting.len(), self.had.max(floor), self.waiting.back().map(|waiter| waiter.number))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
