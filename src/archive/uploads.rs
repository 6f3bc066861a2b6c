//! What archive pods have sent, for the status of their computers: a pod has no other way to say how far it is, or why it makes no progress,
//! before it ends. Known only to the process that receives it. A plan shows it, and must never decide by it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::waiting_time::Waits;

/// A pod repeats a request that has failed. It is reported when none has succeeded for this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// An upload about which nothing is heard or asked any more is dropped after this time.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// Most bytes that are kept of an error.
const TEXT: usize = 512;

/// What one archive pod has sent to this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upload {
    /// Objects that are in the store.
    pub objects: u64,
    /// Bytes of these objects, without those of an earlier attempt.
    pub bytes: u64,
    /// Why the store takes nothing.
    pub failing: Option<String>,
}

impl std::fmt::Display for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let objects = if self.objects == 1 { "object" } else { "objects" };
        write!(f, "{} {objects} received from the archive pod, {}", self.objects, megabytes(self.bytes))
    }
}

/// A size with one decimal, in MB.
fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

struct Known {
    upload: Upload,
    /// The last error, and since when there has been nothing else.
    error: Option<(String, Instant)>,
    used: Instant,
}

/// The uploads that this process receives, by UID.
#[derive(Default)]
pub struct Uploads {
    all: Mutex<HashMap<String, Known>>,
    waits: Arc<Waits>,
}

impl Uploads {
    /// Reports each stored object to `waits`.
    pub fn new(waits: Arc<Waits>) -> Self {
        Self { all: Mutex::default(), waits }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        // No critical section leaves an entry inconsistent.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes something about an upload. Only an archive pod that a record names gets this far, so there are as many entries as deletions.
    fn note(&self, uid: &str, change: impl FnOnce(&mut Known)) {
        let mut all = self.locked();
        if !all.contains_key(uid) {
            all.retain(|_, known| known.used.elapsed() < FORGOTTEN);
        }
        let known = all.entry(uid.to_owned()).or_insert_with(|| Known { upload: Upload::default(), error: None, used: Instant::now() });
        known.used = Instant::now();
        change(known);
    }

    /// An object of this size was stored.
    pub fn stored(&self, uid: &str, bytes: u64) {
        self.waits.stored(uid);
        self.note(uid, |known| {
            known.upload.objects += 1;
            known.upload.bytes = known.upload.bytes.saturating_add(bytes);
            known.error = None;
        });
    }

    /// An object is in the store since an earlier attempt.
    pub fn found(&self, uid: &str) {
        self.note(uid, |known| {
            known.upload.objects += 1;
            known.error = None;
        });
    }

    /// The store did not take an object.
    pub fn refused(&self, uid: &str, why: &str) {
        let why = crate::resources::conditions::truncate(why, TEXT);
        self.note(uid, |known| {
            let since = known.error.take().map_or_else(Instant::now, |(_, since)| since);
            known.error = Some((why, since));
        });
    }

    /// How far the upload of a deletion is. `None`: this process has received nothing.
    pub fn look(&self, uid: &str) -> Option<Upload> {
        let mut all = self.locked();
        let known = all.get_mut(uid)?;
        known.used = Instant::now();
        let failing = known.error.as_ref().filter(|(_, since)| since.elapsed() >= PATIENCE).map(|(why, _)| why.clone());
        Some(Upload { failing, ..known.upload.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_error_is_shown_when_nothing_else_happens_for_a_while() {
        let uploads = Uploads::default();
        assert_eq!(uploads.look("u"), None);
        uploads.stored("u", 8_388_608);
        uploads.refused("u", "503");
        let failing = || uploads.look("u").and_then(|upload| upload.failing);
        assert_eq!(failing(), None, "the pod repeats it");
        tokio::time::advance(PATIENCE / 2).await;
        uploads.refused("u", "503 again");
        tokio::time::advance(PATIENCE / 2).await;
        assert_eq!(failing().as_deref(), Some("503 again"));
        uploads.found("u");
        assert_eq!(failing(), None, "the store answers");
        assert_eq!(uploads.look("u").map(|u| u.to_string()).as_deref(), Some("2 objects received from the archive pod, 8.3 MB"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_for_is_dropped() {
        let uploads = Uploads::default();
        uploads.stored("old", 1);
        tokio::time::advance(FORGOTTEN).await;
        uploads.stored("new", 1);
        assert_eq!((uploads.look("old"), uploads.locked().len()), (None, 1));
    }
}
