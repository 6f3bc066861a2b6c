//! Coalesces the same request to the Kubernetes API: callers that need it at the same time share one response. A client with a hundred requests in flight then
//! costs a few reviews of its token at a time and not a hundred.
//!
//! It must never be a cache. A response is shared only by callers that came before its request was sent, so a revocation takes effect with the next
//! request (S2). While a request is in flight, the next one waits for it and collects callers; one that takes long delays the next for at most
//! [`PATIENCE`]. A response is forgotten as soon as its callers have it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Longest time that a request waits for the one before it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Requests by their key: two with the same key are the same request.
pub struct Coalescer<K, T>(Arc<Mutex<HashMap<K, Requests<T>>>>);

type Response<T> = Shared<BoxFuture<'static, T>>;

/// The requests with one key.
struct Requests<T> {
    /// The permit to send. Each request that waits or is in flight holds a reference.
    turn: Arc<Semaphore>,
    /// The one that has not been sent, which others may join.
    waiting: Option<WeakShared<BoxFuture<'static, T>>>,
}

impl<K, T> Default for Coalescer<K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, T> Coalescer<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// The response to a request that is sent after this call. `request` must send nothing before it is polled.
    pub async fn send<F>(&self, key: K, request: impl FnOnce() -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        self.join(key, request).await
    }

    /// Joins the request that waits, or is the first to need it.
    fn join<F>(&self, key: K, request: impl FnOnce() -> F) -> Response<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut all = self.0.lock();
        all.retain(|_, requests| Arc::strong_count(&requests.turn) > 1);
        let same = all.entry(key.clone()).or_insert_with(|| Requests { turn: Arc::new(Semaphore::new(1)), waiting: None });
        if let Some(response) = same.waiting.as_ref().and_then(WeakShared::upgrade) {
            return response;
        }
        let (turn, all, request) = (Arc::clone(&same.turn), Arc::clone(&self.0), request());
        let response = async move {
            let permit = timeout(PATIENCE, turn.acquire()).await;
            // Before it is sent. A caller that comes from now on needs another response.
            if let Some(same) = all.lock().get_mut(&key) {
                same.waiting = None;
            }
            let response = request.await;
            drop(permit);
            response
        };
        let response = response.boxed().shared();
        same.waiting = response.downgrade();
        response
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio::task::JoinSet;
    use tokio::time::{Instant, sleep};

    use super::*;

    const TAKES: Duration = Duration::from_millis(10);

    /// A credential on an API server that responds after some time with what was true when the request arrived.
    #[derive(Clone, Default)]
    struct Server {
        revoked: Arc<AtomicBool>,
        asked: Arc<AtomicUsize>,
        coalescer: Arc<Coalescer<&'static str, bool>>,
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
            self.coalescer.send("token", || server.answer()).await
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_at_the_same_time_share_a_response() {
        let (server, mut all) = (Server::default(), JoinSet::new());
        for _ in 0..100 {
            all.spawn(server.clone().valid());
        }
        let began = Instant::now();
        assert!(all.join_all().await.into_iter().all(|valid| valid));
        // The request of the first is sent at once, and that of the others after its response.
        assert_eq!((server.asked(), began.elapsed()), (2, 2 * TAKES));
        assert!(server.clone().valid().await);
        assert_eq!(server.asked(), 3, "a response was kept");
    }

    /// S2: the reason why it is no cache.
    #[tokio::test(start_paused = true)]
    async fn no_response_is_older_than_its_caller() {
        let server = Server::default();
        let first = tokio::spawn(server.clone().valid());
        let second = tokio::spawn(server.clone().valid());
        sleep(TAKES / 2).await;
        server.revoked.store(true, Ordering::SeqCst);
        let third = tokio::spawn(server.clone().valid());
        assert!(first.await.unwrap(), "it came before the revocation");
        assert!(!third.await.unwrap(), "S2: it got a response to a request that was sent before it came");
        // It shares that of the third, because it had not been sent either.
        assert!(!second.await.unwrap());
        assert_eq!(server.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_disconnects_takes_no_response_from_others() {
        let server = Server::default();
        let first = tokio::spawn(server.clone().valid());
        tokio::task::yield_now().await;
        let (second, third) = (tokio::spawn(server.clone().valid()), tokio::spawn(server.clone().valid()));
        sleep(TAKES + TAKES / 2).await;
        second.abort();
        assert!(first.await.unwrap() && third.await.unwrap());
        assert_eq!(server.asked(), 2);
    }

    /// A lost response would delay all requests of a client by the time limit of a call, one after the other.
    #[tokio::test(start_paused = true)]
    async fn a_request_without_a_response_delays_the_next_one_only_for_a_moment() {
        let (server, began) = (Server::default(), Instant::now());
        let coalescer = Arc::clone(&server.coalescer);
        let lost = tokio::spawn(async move { coalescer.send("token", std::future::pending::<bool>).await });
        tokio::task::yield_now().await;
        assert!(server.clone().valid().await);
        assert_eq!(began.elapsed(), PATIENCE + TAKES);
        lost.abort();
        assert!(lost.await.unwrap_err().is_cancelled());
        drop(server.coalescer.join("other", || std::future::ready(true)));
        assert_eq!(server.coalescer.0.lock().keys().collect::<Vec<_>>(), [&"other"], "requests are forgotten");
    }
}
