//! Writes receipts to the store. A store that hangs must never delay other computers (L3): a caller waits for a moment, then returns, and
//! is requeued when its receipt is stored.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::manifest::{MAX_BYTES, is_digest};
use super::receipt_key;
use super::store::{ReceiptPut, Store, StoreError};
use super::turns::Turns;

/// How long a caller waits for a store that has been fast so far.
const PATIENCE: Duration = Duration::from_secs(1);
/// Receipts that are sent in parallel, and those of one namespace.
const AT_ONCE: (usize, usize) = (32, 16);
/// A stored receipt that is not requested again is dropped after this time: the store has it.
const FORGOTTEN: Duration = Duration::from_secs(900);

/// A receipt that is being sent; with its bytes once it is stored.
struct Sent {
    since: Instant,
    stored: Option<Vec<u8>>,
}

/// The known receipts, by UID.
#[derive(Default)]
struct Known {
    sent: HashMap<String, Sent>,
    /// The UIDs whose receipt failed since the store last accepted one: they are requeued when it accepts one again.
    failed: HashSet<String>,
}

/// The SHA-256 of the manifest that the deletion has verified, as the receipt in the store says. `None`: the receipt names none.
///
/// # Errors
/// [`StoreError::NotFound`] when there is no receipt.
pub(super) async fn verified(store: &Store, uid: &str) -> Result<Option<String>, StoreError> {
    let key = receipt_key(uid);
    if store.size(&key).await? > MAX_BYTES as u64 {
        return Ok(None);
    }
    let receipt: serde_json::Value = serde_json::from_slice(&store.get(&key).await?).unwrap_or_default();
    let digest = receipt["archive"]["manifestDigest"].as_str().filter(|digest| is_digest(digest) && receipt["computer"]["uid"] == uid);
    Ok(digest.map(str::to_owned))
}

/// Writes receipts to a store.
pub(super) struct Receipts {
    store: Arc<Store>,
    called: mpsc::Sender<String>,
    known: Arc<Mutex<Known>>,
    turns: Turns,
    /// The last one took too long: callers do not wait until one is stored.
    slow: Arc<AtomicBool>,
}

fn locked(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    // Each change is one insertion or removal.
    known.lock()
}

impl Receipts {
    /// The UID of a receipt that is stored after its caller stopped waiting is sent to `called`, and the UIDs of those that failed before.
    pub fn new(store: Arc<Store>, called: mpsc::Sender<String>) -> Self {
        let turns = Turns::of("receipt", AT_ONCE.0, AT_ONCE.1);
        Self { store, called, known: Arc::default(), turns, slow: Arc::default() }
    }

    /// Stores a receipt, create-only. Returns the stored bytes, which may be those of an earlier attempt.
    ///
    /// # Errors
    /// When the outcome is not known, or not known yet.
    pub async fn put(&self, namespace: &str, uid: &str, bytes: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        {
            let mut known = locked(&self.known);
            known.sent.retain(|_, sent| sent.stored.is_none() || sent.since.elapsed() < FORGOTTEN);
            if let Some(sent) = known.sent.get_mut(uid) {
                let stored = sent.stored.take().ok_or_else(not_yet)?;
                known.sent.remove(uid);
                return Ok(stored);
            }
            known.sent.insert(uid.to_owned(), Sent { since: Instant::now(), stored: None });
        }
        let answer = self.send((namespace.to_owned(), uid.to_owned()), bytes);
        let patience = if self.slow.load(Ordering::Relaxed) { Duration::ZERO } else { PATIENCE };
        if let Ok(Ok(result)) = timeout(patience, answer).await {
            return result;
        }
        self.slow.store(true, Ordering::Relaxed);
        Err(not_yet())
    }

    fn send(&self, (namespace, uid): (String, String), bytes: Vec<u8>) -> oneshot::Receiver<Result<Vec<u8>, StoreError>> {
        let (sender, receiver) = oneshot::channel();
        let (store, turns, known) = (Arc::clone(&self.store), self.turns.clone(), Arc::clone(&self.known));
        let (slow, called) = (Arc::clone(&self.slow), self.called.clone());
        tokio::spawn(async move {
            let (key, of) = (receipt_key(&uid), uid.clone());
            // A panic must not leave the receipt in the state "being sent" forever.
            let put = tokio::spawn(async move {
                let _turn = turns.take(&namespace, &of, 1).await;
                store.put_once(&key, bytes.clone()).await.map(|put| match put {
                    ReceiptPut::Created | ReceiptPut::SameAlready => bytes,
                    // Written by a reconcile that crashed before it could save the record: the stored receipt is kept (S7).
                    ReceiptPut::Other(existing) => existing,
                })
            });
            let result = put.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())));
            let waiting = settle(&mut locked(&known), &uid, result.is_ok());
            if result.is_ok() {
                slow.store(false, Ordering::Relaxed);
            }
            match sender.send(result) {
                // A failure is retried by the caller's backoff.
                Ok(()) | Err(Err(_)) => {}
                Err(Ok(stored)) => {
                    locked(&known).sent.insert(uid.clone(), Sent { since: Instant::now(), stored: Some(stored) });
                    let _ = called.send(uid).await;
                }
            }
            // The receiver is dropped only at shutdown.
            for uid in waiting {
                let _ = called.send(uid).await;
            }
        });
        receiver
    }
}

/// A receipt is no longer being sent. Returns the UIDs to requeue, because the store accepts receipts again.
fn settle(known: &mut Known, uid: &str, stored: bool) -> HashSet<String> {
    known.sent.remove(uid);
    known.failed.remove(uid);
    if stored {
        return std::mem::take(&mut known.failed);
    }
    known.failed.insert(uid.to_owned());
    HashSet::new()
}

fn not_yet() -> StoreError {
    StoreError::Unavailable("the store has not answered yet".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::throttle::{ThrottleConfig, ThrottledStore};

    use super::*;

    fn receipts(wait: Duration) -> (Receipts, mpsc::Receiver<String>) {
        let config = ThrottleConfig { wait_put_per_call: wait, ..ThrottleConfig::default() };
        let (sender, called) = mpsc::channel(8);
        (Receipts::new(Arc::new(Store::new(Arc::new(ThrottledStore::new(InMemory::new(), config)))), sender), called)
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_store_is_waited_for() {
        let (receipts, mut called) = receipts(Duration::from_millis(300));
        assert_eq!(receipts.put("t", "u", b"one".to_vec()).await.unwrap(), b"one");
        assert_eq!(receipts.put("t", "u", b"two".to_vec()).await.unwrap(), b"one", "S7: the first one is kept");
        assert!(called.try_recv().is_err());
    }

    /// Found with a real S3 server that was paused: seventy deletions blocked all workers of an operator for 20 s at a time.
    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_delays_no_other_computer_and_waiting_ones_are_requeued() {
        let (receipts, mut called) = receipts(Duration::from_secs(10));
        let began = Instant::now();
        for uid in ["u", "v", "w"] {
            assert!(matches!(receipts.put("t", uid, uid.as_bytes().to_vec()).await, Err(StoreError::Unavailable(_))));
            assert!(receipts.put("t", uid, b"again".to_vec()).await.is_err(), "it is on its way");
        }
        assert!(began.elapsed() < 2 * PATIENCE, "{:?}", began.elapsed());
        for _ in 0..3 {
            let uid = called.recv().await.unwrap();
            assert_eq!(receipts.put("t", &uid, b"later".to_vec()).await.unwrap(), uid.as_bytes());
        }
        assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_reported_and_retried() {
        let (receipts, mut called) = receipts(Duration::from_secs(60));
        assert!(receipts.put("t", "u", b"one".to_vec()).await.is_err());
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(called.try_recv().is_err() && locked(&receipts.known).sent.is_empty(), "it failed after 20 s");
        assert!(receipts.put("t", "u", b"two".to_vec()).await.is_err());
    }

    #[test]
    fn computers_whose_receipt_failed_are_requeued_when_the_store_accepts_another() {
        let mut known = Known::default();
        for uid in ["u", "v"] {
            assert!(settle(&mut known, uid, false).is_empty());
        }
        assert_eq!(settle(&mut known, "v", true), ["u".to_owned()].into());
        assert!(settle(&mut known, "w", true).is_empty(), "once");
    }
}
