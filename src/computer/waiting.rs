//! What a reconcile that now waits was based on. An event that shows nothing new (most are the operator's own writes: the status, the record, a
//! deletion) needs no further reconcile, and none of its live reads.
//!
//! It must never hide a change: only a Computer of exactly a version that the reconcile has read or written, with the same children, class,
//! overrides and record, counts as unchanged, and never for longer than the reconcile asked to wait.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::view::View;
use super::view_digest;

/// The last reconcile of each UID.
#[derive(Debug, Default)]
pub struct Waiting(Mutex<HashMap<String, Last>>);

#[derive(Debug)]
enum Last {
    /// It runs. `woken`: something has happened meanwhile that no view shows.
    Runs { woken: bool },
    /// It waits.
    Waits(Basis),
}

/// After this time a reconcile runs, whatever an event shows.
const LONGEST: Duration = Duration::from_secs(3600);

/// What a reconcile was based on, and what the caches will show of its own writes.
#[derive(Debug)]
pub struct Basis {
    /// Digests of what the caches hold, with the version of the record.
    digests: Vec<u64>,
    /// Versions of the Computer.
    versions: Vec<Option<String>>,
    /// The end of the wait; `None`: only an event ends it.
    until: Option<Instant>,
    /// After that, any event ends it.
    expires: Instant,
}

impl Basis {
    /// Nothing counts as unchanged yet.
    pub fn until(after: Option<Duration>) -> Self {
        let now = Instant::now();
        Self { digests: Vec::new(), versions: Vec::new(), until: after.map(|after| now + after), expires: now + LONGEST }
    }

    /// What this view shows counts as unchanged.
    #[must_use]
    pub fn with(mut self, view: &View) -> Self {
        self.digests.push(digest(view));
        self.with_version(version(view))
    }

    /// A Computer of this version counts as unchanged.
    #[must_use]
    pub fn with_version(mut self, version: Option<String>) -> Self {
        self.versions.push(version);
        self
    }
}

impl Waiting {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Last>> {
        self.0.lock()
    }

    /// A reconcile begins.
    pub fn begin(&self, uid: &str) {
        self.all().insert(uid.to_owned(), Last::Runs { woken: false });
    }

    /// The reconcile waits, unless it was woken while it ran.
    pub fn note(&self, uid: &str, basis: Basis) {
        let mut all = self.all();
        if matches!(all.remove(uid), Some(Last::Runs { woken: false })) {
            all.insert(uid.to_owned(), Last::Waits(basis));
        }
    }

    /// This process has written a Computer of this version since.
    pub fn note_version(&self, uid: &str, version: Option<String>) {
        if let Some(Last::Waits(basis)) = self.all().get_mut(uid) {
            basis.versions.push(version);
        }
    }

    /// How long to wait if this view shows nothing new: `Some(None)` until an event. `None`: reconcile now.
    pub fn left(&self, view: &View) -> Option<Option<Duration>> {
        let all = self.all();
        let Last::Waits(basis) = all.get(&view.uid)? else { return None };
        let now = Instant::now();
        let same = basis.versions.contains(&version(view)) && basis.digests.contains(&digest(view));
        if !same || basis.expires <= now {
            return None;
        }
        let Some(until) = basis.until else { return Some(None) };
        (until > now).then(|| Some(until - now))
    }

    /// Something has happened that no view shows: the next event, or this one, causes a reconcile.
    pub fn wake(&self, uid: &str) {
        if let Some(last) = self.all().get_mut(uid) {
            *last = Last::Runs { woken: true };
        }
    }

    /// The computer is gone.
    pub fn forget(&self, uid: &str) {
        self.all().remove(uid);
    }
}

/// The version of the Computer.
pub fn version(view: &View) -> Option<String> {
    view.computer.as_ref().and_then(|c| c.metadata.resource_version.clone())
}

fn digest(view: &View) -> u64 {
    view_digest::with_record(view_digest::digest(view), view)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view(version: &str, suspended: bool) -> View {
        let metadata = json!({"name": "c", "namespace": "t", "uid": "u", "resourceVersion": version});
        View::of(json!({"metadata": metadata, "spec": {"suspended": suspended}}))
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_the_reconcile_has_read_or_written_counts_as_unchanged_and_not_after_its_time() {
        let waiting = Waiting::default();
        assert_eq!(waiting.left(&view("1", false)), None, "the first");
        waiting.begin("u");
        assert_eq!(waiting.left(&view("1", false)), None, "it runs");
        let basis = Basis::until(Some(Duration::from_secs(15))).with(&view("1", false)).with_version(Some("3".to_owned()));
        waiting.note("u", basis);
        tokio::time::advance(Duration::from_secs(5)).await;
        let rest = Some(Some(Duration::from_secs(10)));
        assert_eq!((waiting.left(&view("1", false)), waiting.left(&view("3", false))), (rest, rest));
        assert_eq!(waiting.left(&view("2", false)), None, "written by another client");
        assert_eq!(waiting.left(&view("3", true)), None, "its spec has changed");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(waiting.left(&view("1", false)), None, "the wait has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_without_an_end_lasts_until_an_event_and_not_for_days() {
        let waiting = Waiting::default();
        waiting.begin("u");
        waiting.note("u", Basis::until(None).with(&view("1", false)));
        assert_eq!(waiting.left(&view("1", false)), Some(None));
        tokio::time::advance(LONGEST).await;
        assert_eq!(waiting.left(&view("1", false)), None, "the clock may have been changed");
    }

    /// The store answers while the status is written: the wait must not begin after that.
    #[tokio::test(start_paused = true)]
    async fn a_reconcile_that_was_woken_while_it_ran_does_not_wait() {
        let waiting = Waiting::default();
        let basis = || Basis::until(None).with(&view("1", false));
        waiting.begin("u");
        waiting.wake("u");
        waiting.note("u", basis());
        assert_eq!(waiting.left(&view("1", false)), None, "woken while it ran");
        waiting.begin("u");
        waiting.note("u", basis());
        waiting.wake("u");
        assert_eq!(waiting.left(&view("1", false)), None, "woken while it waited");
        waiting.begin("u");
        waiting.forget("u");
        waiting.note("u", basis());
        assert_eq!(waiting.left(&view("1", false)), None, "gone");
    }
}
