//! Limits parallel requests, per computer and in total (L3), so that no computer can use up what others need. A request waits for the limit of
//! its computer first; one request of each computer at a time waits for the total, so computers take turns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room for requests, in units of the caller.
pub struct Room {
    all: Arc<Semaphore>,
    share: usize,
    shares: Mutex<HashMap<String, Weak<Share>>>,
}

/// What one computer has.
struct Share {
    room: Arc<Semaphore>,
    /// For the one request that waits for the common room.
    turn: Semaphore,
}

/// Room that is released when it is dropped.
pub struct Taken {
    _room: Option<OwnedSemaphorePermit>,
    /// The share lives as long as a request that has some of it.
    _share: Arc<Share>,
    _all: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// As much as this, and `share` for one computer.
    pub fn new(all: usize, share: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), share, shares: Mutex::default() }
    }

    /// Waits for room for a computer; `size` must not be more than its share.
    pub async fn take(&self, uid: &str, size: u32) -> Taken {
        // Neither is ever closed.
        let share = self.share_of(uid);
        let room = Arc::clone(&share.room).acquire_many_owned(size).await.ok();
        let all = {
            let _turn = share.turn.acquire().await;
            Arc::clone(&self.all).acquire_many_owned(size).await.ok()
        };
        Taken { _room: room, _share: share, _all: all }
    }

    fn share_of(&self, uid: &str) -> Arc<Share> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(uid).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share { room: Arc::new(Semaphore::new(self.share)), turn: Semaphore::new(1) });
        shares.insert(uid.to_owned(), Arc::downgrade(&share));
        share
    }

    /// What is free.
    #[cfg(test)]
    pub fn free(&self) -> usize {
        self.all.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L3: twenty small archives behind giants, each of which sends all the time. Of ten giants, thirty requests once waited before a small one.
    #[tokio::test(start_paused = true)]
    async fn a_small_archive_waits_for_one_request_of_each_giant_at_most() {
        use std::time::Duration;
        const TURN: Duration = Duration::from_secs(60);
        for giants in [3_u32, 6, 10] {
            let room = Arc::new(Room::new(48, 24));
            let mut tasks = tokio::task::JoinSet::new();
            for n in 0..giants * 40 {
                let room = Arc::clone(&room);
                tasks.spawn(async move {
                    // Not in lockstep.
                    tokio::time::sleep(TURN * (n % 7) / 7).await;
                    loop {
                        let _taken = room.take(&format!("giant-{}", n % giants), 8).await;
                        tokio::time::sleep(TURN).await;
                    }
                });
            }
            tokio::time::sleep(TURN * 3).await;
            let mut longest = Duration::ZERO;
            for n in 0..20 {
                let began = tokio::time::Instant::now();
                drop(room.take(&format!("small-{n}"), 1).await);
                longest = longest.max(began.elapsed());
            }
            // Six requests are served in a turn.
            assert!(longest <= TURN * (giants + 6) / 6, "{giants} giants: {longest:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_computer_gets_its_share_and_gives_it_back() {
        let room = Room::new(4, 2);
        let taken = room.take("a", 2).await;
        let more = tokio::time::timeout(std::time::Duration::from_secs(1), room.take("a", 1)).await;
        assert!(more.is_err() && room.free() == 2, "one computer has more than its share");
        let other = room.take("b", 2).await;
        assert_eq!(room.free(), 0);
        drop((taken, other));
        drop(room.take("a", 1).await);
        assert_eq!(room.free(), 4);
    }
}
