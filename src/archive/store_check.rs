//! Checks the archive store before anybody depends on it: that it can be written, read and listed, and that it never overwrites an object, not even
//! in a race. S7 rests on that, and several S3-compatible servers fail it, so nothing is written to a store that fails (`Store::refuse_writes`).
//!
//! Every replica checks the store when it starts, and then repeats a short check: a create-only request for an object that exists. Its refusal proves
//! the address, TLS, the credentials, the right to write, the clock and conditional writes, and leaves nothing behind. The result is `/readyz/store`
//! and a metric, and the replica is ready once the store has passed. A check must never touch an object outside of [`FOLDER`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::store::{Space, Store, StoreError};

/// Folder of the objects of checks.
pub(super) const FOLDER: &str = "checks/";
/// Creators of one object.
const CREATORS: usize = 32;
/// Time between two short checks.
const INTERVAL: Duration = Duration::from_secs(120);
/// Time to the next check after one that failed.
const RETRY: Duration = Duration::from_secs(15);
/// Tries of the last creator of the race, and the pause between two: some stores accept one write a second for each key.
const LATE_TRIES: u32 = 5;
const LATE_PAUSE: Duration = Duration::from_secs(2);
/// A result that is older than this is no result: the check hangs.
const STALE: Duration = Duration::from_secs(300);
/// Longest time of a check, whose objects have a few bytes.
const LIMIT: Duration = Duration::from_secs(120);

const OVERWRITES: &str = "the archive store overwrites existing objects, so archives and receipts would not be safe in it: use a store that supports conditional writes (If-None-Match: *)";
const UNCHECKED: &str = "the archive store is being checked, because the operator has just started";

/// Why a store did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// It overwrites.
    Overwrites,
    /// It cannot be used, and the result says nothing about overwriting.
    Unusable(String),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Overwrites => f.write_str(OVERWRITES),
            Self::Unusable(why) => f.write_str(why),
        }
    }
}

/// An error with what was tried and, where access was denied, the right in S3 that it needs. It contains no key that differs between attempts:
/// each different text would be a status write.
fn while_trying(what: &'static str, right: &'static str) -> impl Fn(StoreError) -> Failed {
    move |error| {
        let error = error.to_string();
        let right = if error.contains("denies access") { format!(", which needs {right}") } else { String::new() };
        Failed::Unusable(format!("{what} failed{right}: {error}"))
    }
}

/// What one process has found out about its store.
#[derive(Debug)]
pub struct Checker {
    /// Distinguishes the objects of this process. One process leaves at most one object behind, even without the right to delete it.
    id: u128,
    /// The race has shown one winner: it is not repeated.
    raced: bool,
}

impl Default for Checker {
    fn default() -> Self {
        Self { id: rand::random(), raced: false }
    }
}

impl Checker {
    /// Checks everything that archives need.
    ///
    /// # Errors
    /// The first thing that the store does not do.
    pub async fn whole(&mut self, store: &Store) -> Result<(), Failed> {
        let key = format!("{FOLDER}race-{:032x}", self.id);
        if !self.raced {
            let result = race(store, &key, self.id).await;
            // The right to delete is not required.
            let _ = store.delete_check(&key).await;
            result?;
            self.raced = true;
        }
        short(store).await?;
        let listing = while_trying("listing objects", "s3:ListBucket");
        if !store.has_any(FOLDER.trim_end_matches('/')).await.map_err(&listing)? {
            return Err(Failed::Unusable(
                "the archive store does not list an object that exists: use a store whose listings are consistent".to_owned(),
            ));
        }
        match store.get(&format!("{FOLDER}absent-{:032x}", self.id)).await {
            Err(StoreError::NotFound(_)) => Ok(()),
            Ok(_) => Err(Failed::Unusable("the archive store returned an object that does not exist: check its endpoint".to_owned())),
            Err(error) => Err(while_trying("looking for an object that does not exist", "s3:GetObject and s3:ListBucket")(error)),
        }
    }
}

/// Creates one object many times at once: at most one creator wins, and what it wrote stays. A store that throttles may fail some
/// creators: that says nothing about the others.
async fn race(store: &Store, key: &str, id: u128) -> Result<(), Failed> {
    let content = |creator: usize| Bytes::from(format!("creator {creator} of check {id:032x}"));
    let mut creators = JoinSet::new();
    for creator in 0..CREATORS {
        let (store, key, content) = (store.clone(), key.to_owned(), content(creator));
        creators.spawn(async move { (creator, store.create_unrefused(&key, content).await) });
    }
    let (mut winners, mut failure) = (Vec::new(), None);
    for (creator, created) in creators.join_all().await {
        match created {
            Ok(true) => winners.push(creator),
            Ok(false) => {}
            Err(error) => failure = Some(error),
        }
    }
    if winners.len() > 1 {
        return Err(Failed::Overwrites);
    }
    // The answer to the winner can be lost, and its own retry refused.
    let candidates = if winners.is_empty() { (0..CREATORS).collect() } else { winners };
    let stored = match (store.get(key).await, failure) {
        (Ok(stored), _) => stored,
        (Err(_), Some(failure)) => return Err(while_trying("writing an object", "s3:PutObject")(failure)),
        (Err(StoreError::NotFound(_)), None) => {
            return Err(Failed::Unusable(
                "the archive store refused to create an object that does not exist: check that it supports conditional writes".to_owned(),
            ));
        }
        (Err(error), None) => return Err(while_trying("reading an object", "s3:GetObject")(error)),
    };
    if !candidates.iter().any(|creator| content(*creator) == stored) {
        return Err(Failed::Overwrites);
    }
    let late = content(CREATORS);
    if refused_later(store, key, &late).await? { Ok(()) } else { Err(Failed::Overwrites) }
}

/// Whether one more creator is refused, and what is stored stays. A store that has just throttled gets a few tries.
async fn refused_later(store: &Store, key: &str, late: &Bytes) -> Result<bool, Failed> {
    let mut tries = 0;
    let created = loop {
        match store.create_unrefused(key, late.clone()).await {
            Ok(created) => break created,
            Err(_) if tries < LATE_TRIES => tries += 1,
            Err(error) => return Err(while_trying("writing an object", "s3:PutObject")(error)),
        }
        tokio::time::sleep(LATE_PAUSE).await;
    };
    let stored = store.get(key).await.map_err(while_trying("reading an object", "s3:GetObject"))?;
    Ok(!created && stored != *late)
}

/// A create-only request for an object that exists.
///
/// # Errors
/// When it is not refused.
pub async fn short(store: &Store) -> Result<(), Failed> {
    let writing = while_trying("writing an object", "s3:PutObject");
    let key = format!("{FOLDER}exists");
    let content = Bytes::from_static(b"The operator checks that this object cannot be replaced.\n");
    // The first time it is created.
    for _ in 0..2 {
        if !store.create_unrefused(&key, content.clone()).await.map_err(&writing)? {
            return Ok(());
        }
    }
    Err(Failed::Overwrites)
}

/// The result of the last check.
#[derive(Debug, Default)]
pub struct Health(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// `None`: no check is complete.
    last: Option<(Result<(), String>, Instant)>,
    space: Option<Space>,
}

impl Health {
    fn locked(&self) -> MutexGuard<'_, Known> {
        // Each change is one assignment.
        self.0.lock()
    }

    /// Whether the store passed its last check, and what to show on `/readyz/store`.
    pub fn report(&self) -> (bool, String) {
        match &self.locked().last {
            None => (false, "the archive store is being checked".to_owned()),
            Some((_, at)) if at.elapsed() > STALE => {
                (false, format!("the archive store does not answer: its last check ended {} s ago", at.elapsed().as_secs()))
            }
            Some((Ok(()), at)) => (true, format!("the archive store passed its check {} s ago", at.elapsed().as_secs())),
            Some((Err(why), at)) => (false, format!("{why} (checked {} s ago)", at.elapsed().as_secs())),
        }
    }

    /// The space of a store in a folder, as of the last check.
    pub fn space(&self) -> Option<Space> {
        self.locked().space
    }

    /// Returns whether the result differs from the one before.
    fn set(&self, result: Result<(), String>) -> bool {
        let mut known = self.locked();
        let changed = known.last.as_ref().is_none_or(|(before, _)| *before != result);
        known.last = Some((result, Instant::now()));
        changed
    }
}

/// Refuses writes until [`watch`] has seen the store pass a check.
pub fn refuse_until_checked(store: &Store) {
    store.refuse_writes(Some(UNCHECKED.to_owned()));
}

/// Checks the store until `stop` is cancelled, and calls `report` after each check with whether it passed. Refuses writes until the first check has
/// passed, and after one has shown that the store overwrites.
pub async fn watch(store: Arc<Store>, health: Arc<Health>, report: impl Fn(bool) + Send, stop: CancellationToken) {
    let (mut checker, mut last, mut ever) = (Checker::default(), Err(Failed::Unusable(String::new())), false);
    loop {
        // A store that has passed once is not burdened with a whole check while it recovers.
        let whole = !ever || last == Err(Failed::Overwrites);
        checker.raced &= last != Err(Failed::Overwrites);
        last = tokio::select! {
            () = stop.cancelled() => return,
            result = check(&store, &mut checker, whole) => result,
        };
        ever |= last.is_ok();
        match &last {
            Ok(()) => store.refuse_writes(None),
            // A store that has passed and fails now may be down: what is written later is as safe as before.
            Err(Failed::Unusable(_)) if ever => {}
            Err(why) => store.refuse_writes(Some(why.to_string())),
        }
        let result = last.clone().map_err(|why| why.to_string());
        if health.set(result.clone()) {
            match result {
                Ok(()) => tracing::info!("the archive store passed its check"),
                Err(why) => tracing::error!("the archive store did not pass its check: {why}"),
            }
        }
        let space = store.space().await.ok().flatten();
        health.locked().space = space;
        report(last.is_ok());
        let pause = if last.is_ok() { INTERVAL } else { RETRY };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn check(store: &Store, checker: &mut Checker, whole: bool) -> Result<(), Failed> {
    let late =
        || Failed::Unusable(format!("the archive store did not complete a check within {} s: check that it is running", LIMIT.as_secs()));
    let check = async { if whole { checker.whole(store).await } else { short(store).await } };
    timeout(LIMIT, check).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
