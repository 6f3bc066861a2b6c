//! Checks the archive store before anybody depends on it: that it can be written, read and listed, and that it never overwrites an object, not even
//! in a race. S7 rests on that, and several S3-compatible servers fail it, so nothing is written to a store that fails (`Store::refuse_writes`).
//!
//! Every replica checks the store when it starts, and then repeats a short check: a create-only request for an object that exists. Its refusal proves
//! the address, TLS, the credentials, the right to write, the clock and conditional writes, and leaves nothing behind. The result is `/readyz/store`
//! and a metric, and the replica is ready once the store has passed. A check must never touch an object outside of [`FOLDER`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
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
/// Longest time of a check, whose objects have a few bytes.
const LIMIT: Duration = Duration::from_secs(120);

const OVERWRITES: &str = "the archive store overwrites existing objects, so archives and receipts would not be safe in it: use a store that supports conditional writes (If-None-Match: *)";
const UNCHECKED: &str = "the archive store is being checked, because the operator has just started";

/// Why a store did not pass.
#[derive(Debug, PartialEq, Eq)]
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

/// An error with what was tried, and the right in S3 that it needs.
fn while_trying(what: &'static str, right: &'static str) -> impl Fn(StoreError) -> Failed {
    move |error| Failed::Unusable(format!("{what} failed, which needs {right}: {error}"))
}

/// Checks everything that archives need.
///
/// # Errors
/// The first thing that the store does not do.
pub async fn whole(store: &Store) -> Result<(), Failed> {
    let id: u128 = rand::random();
    let key = format!("{FOLDER}race-{id:032x}");
    let result = race(store, &key, id).await;
    // The right to delete is not required. Without it, each start of a replica leaves an object of a few bytes.
    let _ = store.delete_check(&key).await;
    result?;
    short(store).await
}

async fn race(store: &Store, key: &str, id: u128) -> Result<(), Failed> {
    let writing = while_trying("writing an object", "s3:PutObject");
    let content = |creator: usize| Bytes::from(format!("creator {creator} of check {id:032x}"));
    let mut creators = JoinSet::new();
    for creator in 0..CREATORS {
        let (store, key, content) = (store.clone(), key.to_owned(), content(creator));
        creators.spawn(async move { (creator, store.create_unrefused(&key, content).await) });
    }
    let mut winners = Vec::new();
    let mut unknown = None;
    for (creator, created) in creators.join_all().await {
        match created {
            Ok(true) => winners.push(creator),
            Ok(false) => {}
            Err(error) => unknown = Some(error),
        }
    }
    if winners.len() > 1 {
        return Err(Failed::Overwrites);
    }
    if let Some(error) = unknown {
        return Err(writing(error));
    }
    let Some(winner) = winners.first() else {
        return Err(Failed::Unusable(format!(
            "the archive store refused to create {key}, which does not exist: check that it supports conditional writes"
        )));
    };
    let reading = while_trying("reading an object", "s3:GetObject");
    if store.get(key).await.map_err(&reading)? != content(*winner) {
        return Err(Failed::Overwrites);
    }
    if store.create_unrefused(key, content(CREATORS)).await.map_err(&writing)?
        || store.get(key).await.map_err(&reading)? != content(*winner)
    {
        return Err(Failed::Overwrites);
    }
    let listing = while_trying("listing objects", "s3:ListBucket");
    if !store.has_any(FOLDER.trim_end_matches('/')).await.map_err(&listing)? {
        return Err(Failed::Unusable(format!(
            "the archive store does not list {key}, which exists: use a store whose listings are consistent"
        )));
    }
    match store.get(&format!("{FOLDER}absent-{id:032x}")).await {
        Err(StoreError::NotFound(_)) => Ok(()),
        Ok(_) => Err(Failed::Unusable("the archive store returned an object that does not exist: check its endpoint".to_owned())),
        Err(error) => Err(while_trying("looking for an object that does not exist", "s3:GetObject and s3:ListBucket")(error)),
    }
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the store passed its last check, and what to show on `/readyz/store`.
    pub fn report(&self) -> (bool, String) {
        match &self.locked().last {
            None => (false, "the archive store is being checked".to_owned()),
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

/// Checks the store until `stop` is cancelled, and calls `checked` after each check with whether it passed. Refuses writes until the first check has
/// passed, and after one has shown that the store overwrites.
pub async fn watch(store: Arc<Store>, health: Arc<Health>, checked: impl Fn(bool) + Send, stop: CancellationToken) {
    let (mut passed, mut ever) = (false, false);
    loop {
        let result = tokio::select! {
            () = stop.cancelled() => return,
            result = check(&store, passed) => result,
        };
        passed = result.is_ok();
        ever |= passed;
        match &result {
            Ok(()) => store.refuse_writes(None),
            // A store that has passed and fails now may be down: what is written later is as safe as before.
            Err(Failed::Unusable(_)) if ever => {}
            Err(why) => store.refuse_writes(Some(why.to_string())),
        }
        let space = space(&store).await;
        health.locked().space = space;
        let result = result.map_err(|why| why.to_string());
        if health.set(result.clone()) {
            match result {
                Ok(()) => tracing::info!("the archive store passed its check"),
                Err(why) => tracing::error!("the archive store did not pass its check: {why}"),
            }
        }
        checked(passed);
        let pause = if passed { INTERVAL } else { RETRY };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn check(store: &Store, passed: bool) -> Result<(), Failed> {
    let late =
        || Failed::Unusable(format!("the archive store did not complete a check within {} s: check that it is running", LIMIT.as_secs()));
    let check = async { if passed { short(store).await } else { whole(store).await } };
    timeout(LIMIT, check).await.unwrap_or_else(|_| Err(late()))
}

/// A volume that hangs must not block the other tasks.
async fn space(store: &Arc<Store>) -> Option<Space> {
    let store = Arc::clone(store);
    tokio::task::spawn_blocking(move || store.space()).await.ok()?.ok()?
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
