//! What archive pods have sent, for the status of their computers: a pod has no other way to say how far it is, or why it makes no progress,
//! before it ends. Known only to the process that receives it.
//! `deletion/archive.rs` puts it into the report, `reconcile/publish.rs` sends the status. A plan must never depend on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::home_size::{SoFar, size};
use super::waiting_time::Waits;

/// A pod repeats a request that has failed. The error is reported when it is the answer again after this long, without a success between.
const PATIENCE: Duration = Duration::from_secs(30);
/// A pod repeats it within this time, also where six pods share a line of 500 kB/s. An error that is older is over: the store has recovered, or
/// another replica receives the objects.
const RECENT: Duration = Duration::from_secs(300);
/// An attempt follows the one before within this time.
const LAST_ATTEMPT: Duration = Duration::from_secs(600);
/// An upload of which nothing is heard any more is dropped after this time.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// Most bytes that are kept of an error.
const TEXT: usize = 512;

/// What one archive pod has sent to this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upload {
    /// UID of the pod.
    pub pod: String,
    /// Its objects that are in the store, also those of an earlier attempt.
    pub objects: u64,
    /// Bytes of those that it has sent itself.
    pub bytes: u64,
    /// What of the home is archived, as the pod says. `None`: it is a pod of an earlier version.
    pub archived: Option<SoFar>,
    /// Why the store takes nothing from the pod.
    pub failing: Option<String>,
    /// Whether the store took nothing a moment ago, from this pod or the one before.
    pub failed: bool,
}

impl std::fmt::Display for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(archived) = self.archived {
            return f.write_str(&archived.text());
        }
        let objects = if self.objects == 1 { "object" } else { "objects" };
        write!(f, "{} {objects} stored, {} sent by this attempt", self.objects, size(self.bytes))
    }
}

/// An error of the store, without a success since.
struct Refused {
    why: String,
    first: Instant,
    last: Instant,
}

struct Known {
    upload: Upload,
    refused: Option<Refused>,
    heard: Instant,
    /// Bytes that this pod has stored, or that are on their way to the store.
    reserved: u64,
    /// Bytes that earlier pods of this computer have stored.
    before: u64,
}

impl Known {
    /// Objects are sent in parallel: an earlier one may be stored later.
    fn archived(&mut self, so_far: Option<SoFar>) {
        let before = self.upload.archived.map_or(0, |before| before.done.bytes);
        if let Some(so_far) = so_far.filter(|so_far| so_far.done.bytes >= before) {
            let total = so_far.total.or(self.upload.archived.and_then(|before| before.total));
            self.upload.archived = Some(SoFar { total, ..so_far });
        }
    }
}

/// The uploads that this process receives, by UID of the computer.
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
        self.all.lock()
    }

    /// Notes something about an upload. Only an archive pod that a record names gets this far, so there are as many entries as deletions.
    fn note(&self, (uid, pod): (&str, &str), change: impl FnOnce(&mut Known)) {
        let mut all = self.locked();
        if !all.contains_key(uid) {
            all.retain(|_, known| known.heard.elapsed() < FORGOTTEN);
        }
        let new = || Known { upload: Upload::default(), refused: None, heard: Instant::now(), reserved: 0, before: 0 };
        let known = all.entry(uid.to_owned()).or_insert_with(new);
        if known.upload.pod != pod {
            known.upload = Upload { pod: pod.to_owned(), ..Upload::default() };
            known.before = known.before.saturating_add(std::mem::take(&mut known.reserved));
        }
        known.heard = Instant::now();
        change(known);
    }

    /// Whether a pod may store an object of this size: all that it has stored through this process must not exceed `most` bytes, and that of all
    /// pods of the computer not twice as much. A second attempt stores only what the first one did not. Only what is certainly stored counts, and
    /// what is on its way: otherwise lost answers would keep an archive from being stored.
    pub fn reserve(&self, of: (&str, &str), bytes: u64, most: u64) -> bool {
        let mut may = false;
        self.note(of, |known| {
            let all = known.reserved.saturating_add(bytes);
            may = all <= most && all.saturating_add(known.before) <= most.saturating_mul(2);
            known.reserved = if may { all } else { known.reserved };
        });
        may
    }

    /// A reserved object was not stored, or it was in the store before.
    pub fn release(&self, (uid, pod): (&str, &str), bytes: u64) {
        // Another attempt has begun: it has reserved nothing of this.
        if let Some(known) = self.locked().get_mut(uid).filter(|known| known.upload.pod == pod) {
            known.reserved = known.reserved.saturating_sub(bytes);
        }
    }

    /// An object of this size was stored.
    pub fn stored(&self, of: (&str, &str), bytes: u64, so_far: Option<SoFar>) {
        self.waits.stored(of.0);
        self.note(of, |known| {
            known.archived(so_far);
            known.upload.objects += 1;
            known.upload.bytes = known.upload.bytes.saturating_add(bytes);
            known.refused = None;
        });
    }

    /// An object is in the store since an earlier attempt.
    pub fn found(&self, of: (&str, &str), so_far: Option<SoFar>) {
        self.note(of, |known| {
            known.archived(so_far);
            known.upload.objects += 1;
            known.refused = None;
        });
    }

    /// The store did not take something.
    pub fn refused(&self, of: (&str, &str), why: &str) {
        let (why, last) = (crate::resources::conditions::truncate(why, TEXT), Instant::now());
        self.note(of, |known| {
            let first = known.refused.take().map_or(last, |before| before.first);
            known.refused = Some(Refused { why, first, last });
        });
    }

    /// How far the upload of a deletion is. `None`: this process has received nothing.
    pub fn look(&self, uid: &str) -> Option<Upload> {
        let all = self.locked();
        let known = all.get(uid)?;
        let refused = known.refused.as_ref().filter(|refused| refused.last.duration_since(refused.first) >= PATIENCE);
        let within = |limit: Duration| refused.filter(|refused| refused.last.elapsed() < limit);
        let failing = within(RECENT).map(|refused| refused.why.clone());
        Some(Upload { failing, failed: within(LAST_ATTEMPT).is_some(), ..known.upload.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: (&str, &str) = ("u", "pod");

    #[tokio::test(start_paused = true)]
    async fn an_error_is_shown_when_nothing_else_happens_for_a_while() {
        let uploads = Uploads::default();
        assert_eq!(uploads.look("u"), None);
        uploads.stored(POD, 8_388_608, None);
        uploads.refused(POD, "503");
        let failing = || uploads.look("u").and_then(|upload| upload.failing);
        assert_eq!(failing(), None, "the pod repeats it");
        tokio::time::advance(2 * PATIENCE).await;
        assert_eq!(failing(), None, "on a slow line the next answer takes long");
        uploads.refused(POD, "503 again");
        assert_eq!(failing().as_deref(), Some("503 again"));
        uploads.found(POD, None);
        assert_eq!(failing(), None, "the store answers");
        assert_eq!(uploads.look("u").map(|u| u.to_string()).as_deref(), Some("2 objects stored, 8.3 MB sent by this attempt"));
    }

    /// Three objects are sent in parallel, and the home is counted meanwhile.
    #[tokio::test(start_paused = true)]
    async fn what_is_archived_only_grows() {
        let uploads = Uploads::default();
        let text = || uploads.look("u").map(|upload| upload.to_string()).unwrap_or_default();
        uploads.stored(POD, 1, "2 2000000000 40 3400000000".parse().ok());
        uploads.stored(POD, 1, "1 1000000000".parse().ok());
        assert_eq!(text(), "archived 2.0 GB of about 3.4 GB, 2 of 40 sessions");
        uploads.found(POD, "3 2500000000".parse().ok());
        uploads.stored(POD, 1, None);
        assert_eq!(text(), "archived 2.5 GB of about 3.4 GB, 3 of 40 sessions");
        uploads.stored(("u", "next"), 1, "0 1000000".parse().ok());
        assert_eq!(text(), "archived 1.0 MB, 0 sessions");
    }

    /// The store has recovered, and another replica receives the objects; or the next attempt fails before it sends anything.
    #[tokio::test(start_paused = true)]
    async fn an_error_that_is_not_repeated_is_over() {
        let uploads = Uploads::default();
        uploads.refused(POD, "503");
        tokio::time::advance(PATIENCE).await;
        uploads.refused(POD, "503");
        let look = || uploads.look("u").map(|upload| (upload.failing.is_some(), upload.failed));
        assert_eq!(look(), Some((true, true)));
        tokio::time::advance(RECENT).await;
        assert_eq!(look(), Some((false, true)), "between two attempts");
        tokio::time::advance(LAST_ATTEMPT).await;
        assert_eq!(look(), Some((false, false)));
    }

    #[tokio::test(start_paused = true)]
    async fn each_attempt_counts_its_own_objects() {
        let uploads = Uploads::default();
        uploads.stored(POD, 1, None);
        uploads.found(("u", "next"), None);
        let upload = uploads.look("u").unwrap_or_default();
        assert_eq!((upload.pod.as_str(), upload.objects, upload.bytes), ("next", 1, 0));
    }

    /// The pod is not trusted. What its answer was lost of is sent again, and counts once.
    #[tokio::test(start_paused = true)]
    async fn a_pod_stores_no_more_than_it_may() {
        let uploads = Uploads::default();
        assert!(uploads.reserve(POD, 6, 10) && !uploads.reserve(POD, 5, 10), "two at the same time");
        uploads.release(POD, 6);
        assert!(uploads.reserve(POD, 6, 10) && uploads.reserve(POD, 4, 10) && !uploads.reserve(POD, 1, 10));
        assert!(uploads.reserve(POD, 1, 11), "the bound was raised");
        uploads.release(("u", "earlier"), 6);
        assert!(!uploads.reserve(POD, 1, 11) && uploads.reserve(("u", "next"), 9, 10));
        assert!(!uploads.reserve(("u", "third"), 1, 10), "a pod that begins again and again stores no more");
        assert!(uploads.reserve(("u", "fourth"), 1, 20), "the bound was raised");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_silent_is_dropped() {
        let uploads = Uploads::default();
        uploads.stored(("old", "pod"), 1, None);
        tokio::time::advance(FORGOTTEN).await;
        uploads.stored(("new", "pod"), 1, None);
        assert_eq!((uploads.look("old"), uploads.locked().len()), (None, 1));
    }
}
