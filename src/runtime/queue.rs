//! The work queue, keyed by UID: a computer never runs twice at once, others are never held up by it (L3), every wait has a
//! timer (L5). kube's controller runs only what stands in the store of its main kind; here a record outlives its Computer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::time::{DelayQueue, delay_queue};

/// Longest wait; who has to wait longer looks again meanwhile. The timers panic beyond two years, and a clock that is set anew
/// changes what is left of a long wait.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Write side of the queue. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Queue(mpsc::UnboundedSender<String>);

/// Read side; see [`Work::run`].
#[derive(Debug)]
pub struct Work {
    incoming: mpsc::UnboundedReceiver<String>,
    due: DelayQueue<String>,
    timers: HashMap<String, delay_queue::Key>,
    ready: VecDeque<String>,
    queued: HashSet<String>,
    running: HashSet<String>,
    again: HashSet<String>,
}

/// A new queue.
pub fn queue() -> (Queue, Work) {
    let (sender, incoming) = mpsc::unbounded_channel();
    let work = Work {
        incoming,
        due: DelayQueue::new(),
        timers: HashMap::new(),
        ready: VecDeque::new(),
        queued: HashSet::new(),
        running: HashSet::new(),
        again: HashSet::new(),
    };
    (Queue(sender), work)
}

impl Queue {
    /// Queues a UID at once; many calls before it runs are one.
    pub fn now(&self, uid: String) {
        // The receiver only goes at shutdown, when nothing is to be done any more.
        let _ = self.0.send(uid);
    }
}

impl Work {
    /// Runs `work` for every due UID, at most `concurrency` at once, until `stop`; then waits for what runs. The result of
    /// `work` is when to run again, if at all.
    pub async fn run<F, W>(mut self, concurrency: usize, stop: CancellationToken, work: W)
    where
        W: Fn(String) -> F,
        F: Future<Output = Option<Duration>> + Send + 'static,
    {
        let mut tasks: JoinSet<(String, Option<Duration>)> = JoinSet::new();
        loop {
            self.start(concurrency, &mut tasks, &work);
            tokio::select! {
                () = stop.cancelled() => break,
                Some(uid) = self.incoming.recv() => self.enqueue(uid),
                Some(expired) = self.due.next(), if !self.due.is_empty() => {
                    let uid = expired.into_inner();
                    self.timers.remove(&uid);
                    self.enqueue(uid);
                }
                Some(done) = tasks.join_next(), if !tasks.is_empty() => match done {
                    Ok((uid, after)) => self.finished(uid, after),
                    Err(error) => tracing::error!(%error, "a reconcile panicked"),
                },
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
            let Some(uid) = self.ready.pop_front() else { return };
            self.queued.remove(&uid);
            self.running.insert(uid.clone());
            let run = work(uid.clone());
            tasks.spawn(async move {
                // A panic in one reconcile must not take its key out of the queue for ever.
                let after = tokio::spawn(run).await.unwrap_or(Some(Duration::from_secs(60)));
                (uid, after)
            });
        }
    }

    fn enqueue(&mut self, uid: String) {
        if self.running.contains(&uid) {
            self.again.insert(uid);
        } else if self.queued.insert(uid.clone()) {
            if let Some(timer) = self.timers.remove(&uid) {
                self.due.remove(&timer);
            }
            self.ready.push_back(uid);
        }
    }

    fn finished(&mut self, uid: String, after: Option<Duration>) {
        self.running.remove(&uid);
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn one_key_never_runs_twice_at_once_and_events_meanwhile_are_one_more_run() {
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
    async fn a_wait_runs_again_by_its_own_timer() {
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

    /// A time to live is up to ten years, and the timers underneath end at two: the panic would be that of the whole operator.
    #[tokio::test(start_paused = true)]
    async fn a_wait_of_years_holds_up_nobody() {
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
}
