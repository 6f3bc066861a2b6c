//! The work queue, keyed by UID. A UID must never be reconciled twice at the same time or block others (L3), and every wait has a timer (L5). kube's
//! controller is not used, because it reconciles only objects in the store of its main kind, while here a record outlives its Computer.
//!
//! Groups (namespaces) share the workers. A group gets at most an equal share, and one share always stays free, so that a namespace with slow requests (a
//! webhook that times out) cannot occupy all workers (L3). Groups take turns.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::StreamExt;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::time::{DelayQueue, delay_queue};

/// Maximum wait; a UID with a longer wait is reconciled in between. Timers of more than two years panic, and a change of the clock affects long waits.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Time until a UID is reconciled again after a panic, because it is likely to panic again.
const AFTER_PANIC: Duration = Duration::from_secs(60);

/// Number of reconciles of this process that panicked.
pub static PANICS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Write side of the queue. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Queue(mpsc::UnboundedSender<String>);

/// The group of a UID.
type GroupOf = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// Read side; see [`Work::run`].
pub struct Work {
    incoming: mpsc::UnboundedReceiver<String>,
    due: DelayQueue<String>,
    timers: HashMap<String, delay_queue::Key>,
    ready: Ready,
    /// Running UIDs with their group.
    running: HashMap<String, String>,
    again: HashSet<String>,
    group_of: GroupOf,
}

/// UIDs that wait for a worker, in order per group, and the groups in the order of their turns.
#[derive(Default)]
struct Ready {
    turns: VecDeque<String>,
    groups: HashMap<String, VecDeque<String>>,
    queued: HashSet<String>,
    running: HashMap<String, usize>,
}

impl Ready {
    fn push(&mut self, group: String, uid: String) {
        let waiting = self.groups.entry(group.clone()).or_default();
        if waiting.is_empty() {
            self.turns.push_back(group);
        }
        waiting.push_back(uid.clone());
        self.queued.insert(uid);
    }

    /// The next UID that may run. Only groups with running UIDs can have reached their share, so few groups are skipped.
    fn next(&mut self, workers: usize) -> Option<(String, String)> {
        for _ in 0..self.turns.len() {
            let group = self.turns.pop_front()?;
            let active = self.running.len() + usize::from(!self.running.contains_key(&group));
            let share = (workers / (active + 1)).max(1);
            let waiting = self.groups.get_mut(&group)?;
            if self.running.get(&group).is_some_and(|n| *n >= share) {
                self.turns.push_back(group);
                continue;
            }
            let uid = waiting.pop_front()?;
            if waiting.is_empty() {
                self.groups.remove(&group);
            } else {
                self.turns.push_back(group.clone());
            }
            self.queued.remove(&uid);
            *self.running.entry(group.clone()).or_default() += 1;
            return Some((group, uid));
        }
        None
    }

    /// A UID of this group has finished.
    fn ended(&mut self, group: &str) {
        if let Some(n) = self.running.get_mut(group) {
            *n -= 1;
            if *n == 0 {
                self.running.remove(group);
            }
        }
    }
}

/// Creates a queue. All UIDs belong to one group unless [`Work::shared_by`] is called.
pub fn queue() -> (Queue, Work) {
    let (sender, incoming) = mpsc::unbounded_channel();
    let work = Work {
        incoming,
        due: DelayQueue::new(),
        timers: HashMap::new(),
        ready: Ready::default(),
        running: HashMap::new(),
        again: HashSet::new(),
        group_of: Arc::new(|_| String::new()),
    };
    (Queue(sender), work)
}

impl Queue {
    /// Queues a UID at once. Several calls before it runs cause one run.
    pub fn now(&self, uid: String) {
        // The receiver is dropped only at shutdown, when the UID does not matter any more.
        let _ = self.0.send(uid);
    }
}

impl Work {
    /// Shares the workers among groups of UIDs.
    #[must_use]
    pub fn shared_by(self, group_of: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self { group_of: Arc::new(group_of), ..self }
    }

    /// Runs `work` for every due UID, at most `concurrency` concurrently, until `stop` is cancelled; then waits for running work. `work` returns when to run
    /// again, if at all.
    pub async fn run<F, W>(mut self, concurrency: usize, stop: CancellationToken, work: W)
    where
        W: Fn(String) -> F,
        F: Future<Output = Option<Duration>> + Send + 'static,
    {
        let mut tasks: JoinSet<(String, Option<Duration>)> = JoinSet::new();
        loop {
            self.start(concurrency, &mut tasks, &work);
            tokio::select! {
                // In this order, so that a simulation can be repeated. What comes first is bounded by what comes last, so nothing starves.
                biased;
                () = stop.cancelled() => break,
                Some(done) = tasks.join_next(), if !tasks.is_empty() => match done {
                    Ok((uid, after)) => self.finished(uid, after),
                    // The task itself cannot panic; only a runtime that shuts down cancels it.
                    Err(error) => tracing::error!(%error, "a worker was cancelled"),
                },
                Some(expired) = self.due.next(), if !self.due.is_empty() => {
                    let uid = expired.into_inner();
                    self.timers.remove(&uid);
                    self.enqueue(uid);
                }
                Some(uid) = self.incoming.recv() => self.enqueue(uid),
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    fn start<F, W>(&mut self, concurrency: usize, tasks: &mut JoinSet<(String, Option<Duration>)>, work: &W)
    where
        W: Fn(String) -> F,
        F: Future<Output = Option<Duration>> + Send + 'static,
    {
        while self.running.len() < concurrency {
            let Some((group, uid)) = self.ready.next(concurrency) else { return };
            self.running.insert(uid.clone(), group);
            let run = work(uid.clone());
            tasks.spawn(async move {
                // A panic must not remove the UID from the queue forever.
                let after = tokio::spawn(run).await.unwrap_or_else(|error| {
                    PANICS.inc();
                    tracing::error!(uid, %error, retry = ?AFTER_PANIC, "a reconcile panicked, requeued; this is a bug: report it with the panic message above");
                    Some(AFTER_PANIC)
                });
                (uid, after)
            });
        }
    }

    fn enqueue(&mut self, uid: String) {
        if self.running.contains_key(&uid) {
            self.again.insert(uid);
        } else if !self.ready.queued.contains(&uid) {
            if let Some(timer) = self.timers.remove(&uid) {
                self.due.remove(&timer);
            }
            let group = (self.group_of)(&uid);
            self.ready.push(group, uid);
        }
    }

    fn finished(&mut self, uid: String, after: Option<Duration>) {
        if let Some(group) = self.running.remove(&uid) {
            self.ready.ended(&group);
        }
        if self.again.remove(&uid) {
            self.enqueue(uid);
        } else if let Some(after) = after {
            let timer = self.due.insert_at(uid.clone(), Instant::now() + after.min(LONGEST));
            self.timers.insert(uid, timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_uid_never_runs_concurrently_and_events_during_a_run_cause_one_more_run() {
        let (queue, work) = queue();
        let (now, most, runs) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let stop = CancellationToken::new();
        let (n, m, r, q) = (now.clone(), most.clone(), runs.clone(), queue.clone());
        queue.now("a".into());
        let task = tokio::spawn(work.run(8, stop.clone(), move |_| {
            let (n, m, r, q) = (n.clone(), m.clone(), r.clone(), q.clone());
            async move {
                m.fetch_max(n.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                if r.fetch_add(1, Ordering::SeqCst) == 0 {
                    for _ in 0..10 {
                        q.now("a".into());
                    }
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                n.fetch_sub(1, Ordering::SeqCst);
                None
            }
        }));
        tokio::time::sleep(Duration::from_secs(30)).await;
        stop.cancel();
        task.await.expect("the queue ends");
        assert_eq!((most.load(Ordering::SeqCst), runs.load(Ordering::SeqCst)), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_uid_runs_again_by_its_timer() {
        let (queue, work) = queue();
        let runs = Arc::new(AtomicUsize::new(0));
        let (stop, r) = (CancellationToken::new(), runs.clone());
        queue.now("a".into());
        let task = tokio::spawn(work.run(1, stop.clone(), move |_| {
            r.fetch_add(1, Ordering::SeqCst);
            async { Some(Duration::from_secs(10)) }
        }));
        tokio::time::sleep(Duration::from_secs(35)).await;
        stop.cancel();
        task.await.expect("the queue ends");
        assert_eq!(runs.load(Ordering::SeqCst), 4);
    }

    /// A time to live can be ten years, but the timers panic beyond two, which would crash the operator.
    #[tokio::test(start_paused = true)]
    async fn a_wait_of_years_does_not_affect_others() {
        let (queue, work) = queue();
        let runs = Arc::new(AtomicUsize::new(0));
        let (stop, r) = (CancellationToken::new(), runs.clone());
        queue.now("patient".into());
        let task = tokio::spawn(work.run(1, stop.clone(), move |uid| {
            r.fetch_add(usize::from(uid == "other"), Ordering::SeqCst);
            async move { (uid == "patient").then_some(Duration::from_secs(315_360_000)) }
        }));
        tokio::time::sleep(Duration::from_secs(1)).await;
        queue.now("other".into());
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.cancel();
        task.await.expect("the queue ends");
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    /// L3: a namespace whose requests hang occupies at most its share of the workers, however many UIDs it has queued.
    #[tokio::test(start_paused = true)]
    async fn a_group_whose_work_hangs_leaves_workers_for_others() {
        let (queue, work) = queue();
        let work = work.shared_by(|uid| uid.split('/').next().unwrap_or_default().to_owned());
        let (runs, hanging) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (stop, r, h) = (CancellationToken::new(), runs.clone(), hanging.clone());
        for i in 0..100 {
            queue.now(format!("slow/{i}"));
            queue.now(format!("slower/{i}"));
        }
        let task = tokio::spawn(work.run(8, stop.clone(), move |uid| {
            let (r, h) = (r.clone(), h.clone());
            async move {
                if uid.starts_with("slow") {
                    h.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                }
                r.fetch_add(1, Ordering::SeqCst);
                None
            }
        }));
        tokio::time::sleep(Duration::from_secs(1)).await;
        // A single group gets half of the workers, two groups get a third each.
        assert!((3..=6).contains(&hanging.load(Ordering::SeqCst)), "{hanging:?}");
        (0..50).for_each(|i| queue.now(format!("quick/{i}")));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(runs.load(Ordering::SeqCst), 50);
        task.abort();
    }

    /// Also with a single worker for any number of groups.
    #[tokio::test(start_paused = true)]
    async fn every_group_gets_its_turn_with_one_worker() {
        let (queue, work) = queue();
        let work = work.shared_by(|uid| uid[..1].to_owned());
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (stop, seen) = (CancellationToken::new(), order.clone());
        for uid in ["a1", "a2", "a3", "b1"] {
            queue.now(uid.to_owned());
        }
        let task = tokio::spawn(work.run(1, stop.clone(), move |uid| {
            let seen = seen.clone();
            async move {
                // All UIDs are queued by the time the first one finishes.
                tokio::time::sleep(Duration::from_secs(1)).await;
                seen.lock().unwrap().push(uid);
                None
            }
        }));
        tokio::time::sleep(Duration::from_secs(10)).await;
        stop.cancel();
        task.await.expect("the queue ends");
        assert_eq!(*order.lock().unwrap(), ["a1", "a2", "b1", "a3"]);
    }

    /// B3.
    #[tokio::test(start_paused = true)]
    async fn a_panic_is_counted_and_its_uid_runs_again() {
        let (queue, work) = queue();
        let runs = Arc::new(AtomicUsize::new(0));
        let (stop, r, before) = (CancellationToken::new(), runs.clone(), PANICS.get());
        queue.now("a".into());
        let task = tokio::spawn(work.run(1, stop.clone(), move |_| {
            let first = r.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                assert!(!first, "the first run panics");
                None
            }
        }));
        tokio::time::sleep(AFTER_PANIC + Duration::from_secs(1)).await;
        stop.cancel();
        task.await.expect("the queue ends");
        assert_eq!((runs.load(Ordering::SeqCst), PANICS.get() - before), (2, 1));
    }
}
