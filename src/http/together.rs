//! One answer of the Kubernetes API for requests that ask it the same at the same time. A client with a hundred requests in flight then costs a few reviews
//! of its token at a time and not a hundred.
//!
//! It must never be a cache. An answer is given only to requests that had asked before its question was sent, so a revocation takes effect with the next
//! request (S2). While a question has been sent, the next one waits for it and collects requests; a question that takes long delays the next one for at most
//! [`PATIENCE`]. An answer is forgotten as soon as those who asked have it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Longest time that a question waits for the one before it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Questions by their key: two questions with the same key are the same question.
pub struct Together<K, T>(Arc<Mutex<HashMap<K, Question<T>>>>);

type Answer<T> = Shared<BoxFuture<'static, T>>;

struct Question<T> {
    /// The permit to send it. Each question that waits or has been sent holds a reference.
    turn: Arc<Semaphore>,
    /// The one that has not been sent, which others may join.
    waiting: Option<WeakShared<BoxFuture<'static, T>>>,
}

impl<K, T> Default for Together<K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, T> Together<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// The answer to a question that is sent after this call. `question` must send nothing before it is polled.
    pub async fn ask<F>(&self, key: K, question: impl FnOnce() -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        self.join(key, question).await
    }

    /// Joins the question that waits, or is the first to ask it.
    fn join<F>(&self, key: K, question: impl FnOnce() -> F) -> Answer<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut all = lock(&self.0);
        all.retain(|_, asked| Arc::strong_count(&asked.turn) > 1);
        let asked = all.entry(key.clone()).or_insert_with(|| Question { turn: Arc::new(Semaphore::new(1)), waiting: None });
        if let Some(answer) = asked.waiting.as_ref().and_then(WeakShared::upgrade) {
            return answer;
        }
        let (turn, all, question) = (Arc::clone(&asked.turn), Arc::clone(&self.0), question());
        let answer = async move {
            let permit = timeout(PATIENCE, turn.acquire()).await;
            // Before it is sent. A request that asks from now on needs another answer.
            if let Some(asked) = lock(&all).get_mut(&key) {
                asked.waiting = None;
            }
            let answer = question.await;
            drop(permit);
            answer
        };
        let answer = answer.boxed().shared();
        asked.waiting = answer.downgrade();
        answer
    }
}

/// Poisoning is harmless: no critical section leaves the map inconsistent.
fn lock<T>(all: &Mutex<T>) -> MutexGuard<'_, T> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio::task::JoinSet;
    use tokio::time::{Instant, sleep};

    use super::*;

    const TAKES: Duration = Duration::from_millis(10);

    /// A credential on an API server that answers after some time with what was true when the question arrived.
    #[derive(Clone, Default)]
    struct Server {
        revoked: Arc<AtomicBool>,
        asked: Arc<AtomicUsize>,
        together: Arc<Together<&'static str, bool>>,
    }

    impl Server {
        async fn answer(self) -> bool {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let valid = !self.revoked.load(Ordering::SeqCst);
            sleep(TAKES).await;
            valid
        }

        async fn valid(self) -> bool {
            let server = self.clone();
            self.together.ask("token", || server.answer()).await
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_ask_at_the_same_time_share_an_answer() {
        let (server, mut all) = (Server::default(), JoinSet::new());
        for _ in 0..100 {
            all.spawn(server.clone().valid());
        }
        let began = Instant::now();
        assert!(all.join_all().await.into_iter().all(|valid| valid));
        // The first of them asks at once, and the others while it is being answered.
        assert_eq!((server.asked(), began.elapsed()), (2, 2 * TAKES));
        assert!(server.clone().valid().await);
        assert_eq!(server.asked(), 3, "an answer was kept");
    }

    /// S2: the reason why it is no cache.
    #[tokio::test(start_paused = true)]
    async fn no_answer_is_older_than_the_request_that_gets_it() {
        let server = Server::default();
        let first = tokio::spawn(server.clone().valid());
        let second = tokio::spawn(server.clone().valid());
        sleep(TAKES / 2).await;
        server.revoked.store(true, Ordering::SeqCst);
        let third = tokio::spawn(server.clone().valid());
        assert!(first.await.unwrap(), "it asked before the revocation");
        assert!(!third.await.unwrap(), "S2: it got an answer to a question that was sent before it asked");
        // It has the answer of the third, because it had not been sent either.
        assert!(!second.await.unwrap());
        assert_eq!(server.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_disconnects_takes_no_answer_from_others() {
        let server = Server::default();
        let first = tokio::spawn(server.clone().valid());
        tokio::task::yield_now().await;
        let (second, third) = (tokio::spawn(server.clone().valid()), tokio::spawn(server.clone().valid()));
        sleep(TAKES + TAKES / 2).await;
        second.abort();
        assert!(first.await.unwrap() && third.await.unwrap());
        assert_eq!(server.asked(), 2);
    }

    /// A lost answer would delay all requests of a client by the time limit of a call, one after the other.
    #[tokio::test(start_paused = true)]
    async fn a_question_without_an_answer_delays_the_next_one_only_for_a_moment() {
        let (server, began) = (Server::default(), Instant::now());
        let together = Arc::clone(&server.together);
        let lost = tokio::spawn(async move { together.ask("token", std::future::pending::<bool>).await });
        tokio::task::yield_now().await;
        assert!(server.clone().valid().await);
        assert_eq!(began.elapsed(), PATIENCE + TAKES);
        lost.abort();
        assert!(lost.await.unwrap_err().is_cancelled());
        drop(server.together.join("other", || std::future::ready(true)));
        assert_eq!(lock(&server.together.0).keys().collect::<Vec<_>>(), [&"other"], "questions are forgotten");
    }
}
