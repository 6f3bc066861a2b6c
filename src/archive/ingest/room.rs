//! Shares room for parallel requests between computers (L3). Room of one computer must never be used up by another: each gets a part of it at
//! most, and waits for its own part before it waits for the common one, where requests are served in order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room for requests, in units of the caller.
pub struct Room {
    all: Arc<Semaphore>,
    share: usize,
    shares: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Room that is given back when it is dropped.
pub struct Taken {
    _share: Option<OwnedSemaphorePermit>,
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
        let share = self.share_of(uid).acquire_many_owned(size).await.ok();
        let all = Arc::clone(&self.all).acquire_many_owned(size).await.ok();
        Taken { _share: share, _all: all }
    }

    fn share_of(&self, uid: &str) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(uid).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.share));
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

    /// L3: twenty small archives behind three giants, each of which sends all the time: a small one waits for one turn of a chunk at most.
    #[tokio::test(start_paused = true)]
    async fn a_small_archive_waits_for_one_chunk_of_the_giants_at_most() {
        use std::time::Duration;
        let (room, turn) = (Arc::new(Room::new(48, 24)), Duration::from_secs(10));
        for giant in ["a", "b", "c"] {
            for _ in 0..40 {
                let room = Arc::clone(&room);
                tokio::spawn(async move {
                    loop {
                        let _taken = room.take(giant, 8).await;
                        tokio::time::sleep(turn).await;
                    }
                });
            }
        }
        tokio::time::sleep(turn / 2).await;
        for n in 0..20 {
            let began = tokio::time::Instant::now();
            drop(room.take(&format!("small-{n}"), 1).await);
            assert!(began.elapsed() <= turn, "{n}: {:?}", began.elapsed());
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
