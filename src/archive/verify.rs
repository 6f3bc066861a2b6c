//! Reads a complete archive back before anything is destroyed (S1): every object exists, has its digest, and contains as many files and
//! bytes as the manifest says. It runs in the background, so that a slow store does not delay other computers (L3).
//!
//! A tenant determined the size of a manifest of version 1. Two manifests must never be completely in memory at once; a check of such an
//! archive keeps only a few bytes per session, and any other check reads the index line by line.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::opened::Archive;
use super::reading::{ReadError, Reading};
use super::store::{Store, StoreError};
use super::tar_scan::Sink;
use super::{later_manifest_key, manifest_key};
use crate::guards::{self, Guard};
use crate::resources::conditions::truncate;

mod progress;
mod reader;

use progress::Progress;
pub use progress::ReadBack;
pub use reader::MEMORY;
use reader::Reader;

/// The content of a verified archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// SHA-256 of the manifest, hexadecimal.
    pub manifest_digest: String,
    /// Sessions.
    pub sessions: u64,
    /// Bytes in the store.
    pub bytes: u64,
    /// Files that lost content.
    pub problems: u64,
    /// Why some of them were left out: the class, or an override.
    pub left_out_by: String,
}

/// The deletion that an archive must belong to. The same UID can be deleted twice: when etcd is restored from a backup, the store still has
/// the archive of a deletion that the backup does not contain, and the home has changed since (S1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// UID of the custody claim of this deletion. `None`: it does not exist yet.
    pub custody_claim: Option<String>,
    /// When this deletion began, Unix seconds. It identifies manifests of earlier versions, which do not name a claim.
    pub deleted_at: i64,
    /// The namespace of the computer, whose share of the checks it uses.
    pub namespace: String,
    /// UID of its archive pod, once that has ended. That no manifest existed before does not count then.
    pub ended_pod: Option<String>,
}

impl Origin {
    /// Whether both are the same deletion.
    fn is_of_same_deletion(&self, other: &Self) -> bool {
        let of = |origin: &Self| (origin.custody_claim.clone(), origin.deleted_at, origin.namespace.clone());
        of(self) == of(other)
    }

    /// Whether this deletion wrote a manifest.
    fn wrote(&self, archive: &Archive) -> bool {
        if archive.custody_claim().is_empty() {
            return archive.created_at() >= self.deleted_at;
        }
        self.custody_claim.as_deref() == Some(archive.custody_claim())
    }

    /// Where its manifest can be.
    fn keys(&self, uid: &str) -> Vec<String> {
        let later = self.custody_claim.as_ref().map(|claim| later_manifest_key(uid, claim));
        std::iter::once(manifest_key(uid)).chain(later).collect()
    }
}

/// The state of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verification {
    /// The check is not at its end: it reads, or it is paused and waits for its turn or for the store.
    Running,
    /// It was read back completely.
    Valid(Summary),
    /// It has no manifest, according to a live answer of the store.
    Missing,
    /// It is damaged.
    Invalid(String),
    /// The store does not answer.
    Unavailable(String),
}

impl Verification {
    /// How long a bad result is reused before the next check. `None`: the result is returned once.
    fn valid_for(&self) -> Option<Duration> {
        match self {
            Self::Unavailable(_) => Some(Duration::from_secs(10)),
            Self::Invalid(_) => Some(Duration::from_secs(50)),
            Self::Running | Self::Valid(_) | Self::Missing => None,
        }
    }
}

/// What is known of one archive.
struct Checked {
    origin: Origin,
    last: Verification,
    since: Instant,
    running: Option<Arc<Progress>>,
}

impl Checked {
    fn new(origin: Origin, last: Verification) -> Self {
        Self { origin, last, since: Instant::now(), running: None }
    }

    /// Whether the result applies to this deletion as it is now. That there is no archive applies only for a moment: one may have been stored since.
    fn applies_to(&self, origin: &Origin) -> bool {
        let outdated = || self.origin.ended_pod != origin.ended_pod || self.since.elapsed() >= MISSING;
        self.origin.is_of_same_deletion(origin) && !(self.last == Verification::Missing && outdated())
    }
}

/// How long it counts that an archive does not exist: longer than an event waits in the queue.
const MISSING: Duration = Duration::from_secs(60);

/// A result that is not requested again is dropped after this time.
const FORGOTTEN: Duration = Duration::from_secs(900);

/// Checks archives in the background.
pub struct Verifier {
    checked: mpsc::Sender<String>,
    reader: Reader,
    state: Arc<Mutex<HashMap<String, Checked>>>,
}

impl Verifier {
    /// The UID of every finished check is sent to `checked`.
    pub fn new(store: Arc<Store>, checked: mpsc::Sender<String>) -> Self {
        Self { checked, reader: Reader::new(store), state: Arc::default() }
    }

    /// The state of the archive of one deletion of `uid`. A good result is returned once. A bad result is kept for a while and until another
    /// check has finished: otherwise the status of a computer would change back and forth while a store is down (L6).
    pub fn check(&self, uid: &str, origin: &Origin) -> Verification {
        let mut state = self.state.lock();
        // A result for another deletion, or from before the end of the archive pod, does not apply.
        state.retain(|of, k| k.running.is_some() || (k.since.elapsed() < FORGOTTEN && (of != uid || k.applies_to(origin))));
        let known = state.entry(uid.to_owned()).or_insert_with(|| Checked::new(origin.clone(), Verification::Running));
        if known.running.is_some() {
            return known.last.clone();
        }
        let begin = match (&known.last, known.last.valid_for()) {
            (Verification::Running, _) => true,
            (_, Some(time)) => known.since.elapsed() >= time,
            (_, None) => return state.remove(uid).map_or(Verification::Running, |k| k.last),
        };
        let progress = Arc::new(Progress::new());
        known.running = begin.then(|| Arc::clone(&progress));
        let last = known.last.clone();
        drop(state);
        if begin {
            self.start(uid.to_owned(), origin.clone(), progress);
        }
        last
    }

    /// How far the running check of a computer is. `None`: none is running, or there is nothing to show yet.
    pub fn progress(&self, uid: &str) -> Option<ReadBack> {
        self.state.lock().get(uid)?.running.as_ref()?.look()
    }

    /// The result of `look` on the key and the content of the newest archive, while its manifest is the only one in memory.
    ///
    /// # Errors
    /// When it does not exist, it is damaged, or the store does not answer.
    pub async fn with_archive<T>(
        &self,
        (namespace, uid): (&str, &str),
        look: impl AsyncFnOnce(&Store, &str, Archive) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let turn = self.reader.manifest(namespace, uid).await;
        let key = self.reader.store.newest_manifest(uid).await?;
        let bytes = self.reader.store.get(&key).await?;
        let archive = Archive::parse(&bytes).map_err(|e| StoreError::Corrupt(e.to_string()))?;
        drop(bytes);
        // A manifest of the current version is small, and a look into its index may take long.
        let _turn = matches!(archive, Archive::Old(_)).then_some(turn);
        look(&self.reader.store, &key, archive).await
    }

    fn start(&self, uid: String, origin: Origin, progress: Arc<Progress>) {
        let (reader, state, checked) = (self.reader.clone(), Arc::clone(&self.state), self.checked.clone());
        let refusing = Arc::clone(&reader.store);
        tokio::spawn(async move {
            let of = (uid.clone(), origin.clone());
            // A check that panics has failed; otherwise it would count as running forever (L1).
            let result = tokio::spawn(async move { reader.read(&of.0, &of.1, &progress).await }).await;
            let result = result.unwrap_or_else(|e| Verification::Unavailable(format!("the check failed: {e}")));
            // The next step would be to write one, which the store refuses: the reason is the store, not the archive pod.
            let result = match (result, refusing.refusal()) {
                (Verification::Missing, Some(why)) => Verification::Unavailable(why),
                (result, _) => result,
            };
            state.lock().insert(uid.clone(), Checked::new(origin, result));
            // The receiver is dropped only at shutdown.
            let _ = checked.send(uid).await;
        });
    }
}

/// Reads the newest archive of a computer back completely.
pub async fn verify(store: &Store, uid: &str) -> Verification {
    let newest = match store.newest_manifest(uid).await {
        Ok(key) => contents(store, uid, &key, None).await,
        Err(error) => Err(Verification::Unavailable(error.to_string())),
    };
    match newest {
        Ok(contents) => {
            let mut reading = Reading::new(&contents.archive, None, Nothing);
            read_all(store, contents, &mut reading, || false).await
        }
        Err(other) => other,
    }
}

/// What a check needs of a manifest.
struct Contents {
    /// The result, if everything is as the manifest says.
    summary: Summary,
    archive: Archive,
}

/// This deletion's manifest, or the state of the archive without one. An archive of another deletion of this UID counts
/// as none.
async fn of_deletion(store: &Store, uid: &str, origin: &Origin) -> Result<Contents, Verification> {
    let mut without = Verification::Missing;
    for key in origin.keys(uid) {
        match contents(store, uid, &key, Some(origin)).await {
            Ok(contents) => return Ok(contents),
            Err(Verification::Missing) => {}
            Err(Verification::Unavailable(why)) => return Err(Verification::Unavailable(why)),
            Err(other) => without = other,
        }
    }
    Err(without)
}

/// A manifest. With an origin, a manifest of another deletion counts as missing.
async fn contents(store: &Store, uid: &str, key: &str, origin: Option<&Origin>) -> Result<Contents, Verification> {
    let bytes = match store.get(key).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound(_)) => return Err(Verification::Missing),
        Err(error) => return Err(Verification::Unavailable(error.to_string())),
    };
    let manifest_digest = hex::encode(Sha256::digest(&bytes));
    let mut archive = Archive::parse(&bytes).map_err(|e| Verification::Invalid(e.to_string()))?;
    drop(bytes);
    if archive.computer().uid != uid {
        return Err(Verification::Invalid(format!("the manifest is that of {}", archive.computer().uid)));
    }
    if guards::on(Guard::OwnArchive) && origin.is_some_and(|origin| !origin.wrote(&archive)) {
        tracing::info!(uid, key, created_at = archive.created_at(), "ignoring the archive of an earlier deletion of this UID");
        return Err(Verification::Missing);
    }
    let summary = Summary {
        manifest_digest,
        sessions: archive.sessions(),
        bytes: archive.stored_bytes(),
        problems: archive.lost(),
        left_out_by: truncate(archive.left_out_by(), 2048),
    };
    archive.forget_names();
    Ok(Contents { summary, archive })
}

/// Reads what is left. [`Verification::Running`]: `pause` said so after an object.
async fn read_all(
    store: &Store,
    contents: Contents,
    reading: &mut Reading<Nothing>,
    mut pause: impl FnMut() -> bool + Send,
) -> Verification {
    let Contents { summary, archive } = contents;
    if !guards::on(Guard::ReadBack) {
        return Verification::Valid(summary);
    }
    let everything = async {
        let whole = reading.run(store, &archive, &mut pause).await?
            && reading.problems(store, &archive, &mut pause).await?
            && reading.still_there(store, &archive, pause).await?;
        Ok::<_, ReadError>(whole)
    };
    match everything.await {
        Ok(true) => Verification::Valid(summary),
        Ok(false) => Verification::Running,
        Err(ReadError::Store(StoreError::Unavailable(why))) => Verification::Unavailable(why),
        Err(error) => Verification::Invalid(error.to_string()),
    }
}

/// Content that is checked and not kept.
struct Nothing;

impl Sink for Nothing {}

#[cfg(test)]
mod fairness_tests;
#[cfg(test)]
mod memory_tests;
#[cfg(test)]
mod outage_tests;
#[cfg(test)]
mod presence_tests;
#[cfg(test)]
mod tests;
