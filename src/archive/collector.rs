//! Removes leftovers of crashes and aborted attempts from the store, a day after each deletion has ended. It decides only when to remove.
//! [`super::leftovers`] decides what may be removed, as for `archives leftovers --remove`. It checks one UID at a time and slowly, so that it never competes with
//! archives, and it must never fail a deletion.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::leftovers::{self, Found, Work};
use super::store::{Store, StoreError};

/// Time between two rounds. The first round starts after one interval, so that deletions that waited for a leader resume first.
pub const INTERVAL: Duration = Duration::from_secs(3600);
/// Pause between two UIDs: a round of 10,000 takes less than three hours, with some three requests a second.
const PAUSE: Duration = Duration::from_secs(1);
/// Time until a UID is checked again after a failure.
const AGAIN: Duration = Duration::from_secs(24 * 3600);
/// Time between the end of a deletion and its check.
const AGE: i64 = leftovers::AGE + 3600;

/// A deletion that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// UID of the computer.
    pub uid: String,
    /// When its receipt was written, Unix seconds.
    pub at: i64,
}

/// Which UIDs were checked: `None` if nothing is left, otherwise when to check again. UIDs that are no longer listed are
/// dropped, so it never has more entries than there are records.
type Seen = HashMap<String, Option<Instant>>;

/// The UIDs to check now.
fn due(ended: Vec<Ended>, seen: &mut Seen, now: i64) -> Vec<String> {
    seen.retain(|uid, _| ended.iter().any(|e| e.uid == *uid));
    let fresh = |uid: &str| seen.get(uid).is_none_or(|again| again.is_some_and(|again| again <= Instant::now()));
    ended.into_iter().filter(|e| e.at <= now - AGE && fresh(&e.uid)).map(|e| e.uid).collect()
}

/// Checks the deletions of `ended` until `stop`, and reports to `removed` how many objects were removed. `now`: the time, in Unix seconds.
pub async fn run(
    store: Arc<Store>,
    ended: impl Fn() -> Vec<Ended> + Send,
    now: impl Fn() -> i64 + Send,
    removed: impl Fn(u64) + Send,
    stop: CancellationToken,
) {
    let mut seen = Seen::new();
    loop {
        tokio::select! { biased; () = stop.cancelled() => return, () = tokio::time::sleep(INTERVAL) => {} }
        for uid in due(ended(), &mut seen, now()) {
            // The cleanup may be interrupted at any point: each removal is one request, and the next leader continues.
            let clean = leftovers::clean(&store, &uid, Work::Collect, now());
            let result = tokio::select! { biased; () = stop.cancelled() => return, result = clean => result };
            removed(result.as_ref().map_or(0, |found| found.removed));
            let again = report(&uid, &result).then(|| Instant::now() + AGAIN);
            seen.insert(uid, again);
            tokio::select! { biased; () = stop.cancelled() => return, () = tokio::time::sleep(PAUSE) => {} }
        }
    }
}

/// Logs what was done. Returns whether to check again.
fn report(uid: &str, result: &Result<Found, StoreError>) -> bool {
    match result {
        Ok(Found { removed: 0, .. }) => false,
        Ok(Found { removed, .. }) => {
            tracing::info!(uid, removed, "removed leftover objects from the archive store");
            false
        }
        Err(error) => {
            tracing::warn!(uid, %error, "cannot remove leftover objects from the archive store; retrying in a day. If the store denies deletion, grant s3:DeleteObject (docs/store.md) or set archive.collectLeftovers=false");
            true
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
