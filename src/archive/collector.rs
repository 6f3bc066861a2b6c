//! Removes leftovers of crashes and aborted attempts from the store, a day after each deletion has ended. It decides only when to remove.
//! [`super::leftovers`] decides what may be removed, as for `archives leftovers --remove`. It checks one UID at a time and slowly, so that it never competes with
//! archives, and it must never fail a deletion.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::holds::Holds;
use super::leftovers::{self, Found, Work};
use super::store::{Store, StoreError};

/// Time between two rounds. The first round starts after one interval, so that deletions that waited for a leader resume first.
pub const INTERVAL: Duration = Duration::from_secs(3600);
/// Pause between two UIDs: with 10,000 ended deletions a first round takes about three hours.
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
    let listed: HashSet<&str> = ended.iter().map(|e| e.uid.as_str()).collect();
    seen.retain(|uid, _| listed.contains(uid.as_str()));
    let fresh = |uid: &str| seen.get(uid).is_none_or(|again| again.is_some_and(|again| again <= Instant::now()));
    ended.into_iter().filter(|e| e.at <= now - AGE && fresh(&e.uid)).map(|e| e.uid).collect()
}

/// Checks the deletions of `ended` until `stop`. `now`: the time, in Unix seconds. What the `holds` name stays.
pub async fn run(
    (store, holds): (Arc<Store>, Arc<dyn Holds>),
    ended: impl Fn() -> Vec<Ended> + Send,
    now: impl Fn() -> i64 + Send,
    stop: CancellationToken,
) {
    let mut seen = Seen::new();
    loop {
        tokio::select! { biased; () = stop.cancelled() => return, () = tokio::time::sleep(INTERVAL) => {} }
        for uid in due(ended(), &mut seen, now()) {
            // The cleanup may be interrupted at any point: each removal is one request, and the next leader continues.
            let clean = leftovers::clean_unless_held(&store, &uid, Work::Collect, now(), Some(&*holds));
            let result = tokio::select! { biased; () = stop.cancelled() => return, result = clean => result };
            seen.insert(uid.clone(), result.is_err().then(|| Instant::now() + AGAIN));
            if !report(&uid, result) {
                break;
            }
            tokio::select! { biased; () = stop.cancelled() => return, () = tokio::time::sleep(PAUSE) => {} }
        }
    }
}

/// Logs the result. Returns whether to continue with the next UID: not if the store fails, since it would fail for each of them.
fn report(uid: &str, result: Result<Found, StoreError>) -> bool {
    match result {
        Ok(Found { removed: 0, .. }) => true,
        Ok(Found { removed, .. }) => {
            tracing::info!(uid, removed, "removed leftover objects from the archive store");
            true
        }
        Err(StoreError::Config(why)) => {
            tracing::info!(uid, why, "leftover objects stay in the archive store; the check is repeated in a day");
            true
        }
        Err(error) => {
            tracing::warn!(uid, %error, "cannot remove leftover objects from the archive store; the next round is in an hour");
            false
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
