//! How far a check is, for the status of its computer. Only for what is shown.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

/// Checks that end sooner are not shown: small archives cost no write.
const SLOW: Duration = Duration::from_secs(10);

/// Objects of an archive that were read back, and all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadBack {
    /// Those that were read.
    pub read: u64,
    /// All.
    pub all: u64,
}

impl std::fmt::Display for ReadBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "verifying: {} of {} objects read back", self.read, self.all)
    }
}

/// A running check.
#[derive(Debug)]
pub(super) struct Progress {
    began: Instant,
    reading: OnceLock<Counted>,
}

#[derive(Debug)]
struct Counted {
    objects: Arc<AtomicU64>,
    /// What earlier checks had read.
    before: u64,
    all: u64,
}

impl Progress {
    /// A check begins now.
    pub fn new() -> Self {
        Self { began: Instant::now(), reading: OnceLock::new() }
    }

    /// It reads, and counts the objects here.
    pub fn reads(&self, objects: &Arc<AtomicU64>, all: u64) {
        let counted = Counted { objects: Arc::clone(objects), before: objects.load(Ordering::Relaxed), all };
        // A check reads one archive.
        let _ = self.reading.set(counted);
    }

    /// What it has read. `None`: it began a moment ago, or it has read nothing itself, for instance because the store does not answer.
    pub fn look(&self) -> Option<ReadBack> {
        let counted = self.reading.get().filter(|_| self.began.elapsed() >= SLOW)?;
        let read = counted.objects.load(Ordering::Relaxed);
        // A check that continues within an object counts that object twice.
        (read > counted.before).then(|| ReadBack { read: read.min(counted.all), all: counted.all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_slow_check_that_reads_something_is_shown() {
        let (progress, objects) = (Progress::new(), Arc::new(AtomicU64::new(100)));
        progress.reads(&objects, 430);
        tokio::time::advance(SLOW).await;
        assert_eq!(progress.look(), None, "an earlier check has read these");
        objects.store(120, Ordering::Relaxed);
        assert_eq!(progress.look().map(|read| read.to_string()).as_deref(), Some("verifying: 120 of 430 objects read back"));
        objects.store(431, Ordering::Relaxed);
        assert_eq!(progress.look(), Some(ReadBack { read: 430, all: 430 }));
        let fast = Progress::new();
        fast.reads(&Arc::default(), 1);
        assert_eq!(fast.look(), None);
    }
}
