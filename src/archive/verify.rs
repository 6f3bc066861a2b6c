//! Reads a whole archive back before anything is destroyed (S1): every object is there, has its digest, and holds as many files
//! and bytes as the manifest says. In the background, so that a slow store holds up nobody else (L3).
//!
//! A tenant decides how large a manifest is: only one is in memory as a whole, whoever reads it and however many wait, and what a
//! check needs of it is a few bytes a session.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::object::each_entry;
use super::store::{Store, StoreError};
use super::{Manifest, later_manifest_key, manifest_key, object_key};
use crate::guards::{self, Guard};
use crate::resources::conditions::truncate;

/// Archives that are read back at the same time.
const AT_ONCE: usize = 3;
/// Archives of more than [`LARGE`] bytes that are, apart from the others.
const LARGE_AT_ONCE: usize = 1;
/// Unpacked bytes from which an archive takes so long that small ones must not wait behind it.
const LARGE: u64 = 4 << 30;

/// Manifests that are in memory as a whole.
const MANIFESTS: usize = 1;

/// What a verified archive holds.
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
    /// By whose decision some of them were left out.
    pub left_out_by: String,
}

/// The deletion that an archive must be of. The same UID can be deleted twice: when etcd is restored from a backup, the store still has the
/// archive of the deletion that the backup knows nothing of, and the home has changed since (S1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// UID of the custody claim of this deletion; `None`: there is none yet.
    pub custody_claim: Option<String>,
    /// When this deletion began, Unix seconds. Decides about manifests of earlier versions, which do not name a claim.
    pub deleted_at: i64,
}

impl Origin {
    /// Whether this deletion wrote a manifest.
    fn wrote(&self, manifest: &Manifest) -> bool {
        if manifest.custody_claim.is_empty() {
            return manifest.created_at >= self.deleted_at;
        }
        self.custody_claim.as_ref() == Some(&manifest.custody_claim)
    }

    /// Where its manifest can be.
    fn keys(&self, uid: &str) -> Vec<String> {
        let later = self.custody_claim.as_ref().map(|claim| later_manifest_key(uid, claim));
        std::iter::once(manifest_key(uid)).chain(later).collect()
    }
}

/// How an archive stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verification {
    /// A check is under way.
    Running,
    /// All of it was read back.
    Valid(Summary),
    /// There is no manifest: a live answer.
    Missing,
    /// It is damaged.
    Invalid(String),
    /// The store does not answer.
    Unavailable(String),
}

impl Verification {
    /// How long a result stands that somebody must mend first; `None`: it is given once.
    fn stands(&self) -> Option<Duration> {
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
    running: bool,
}

impl Checked {
    fn new(origin: Origin, last: Verification) -> Self {
        Self { origin, last, since: Instant::now(), running: false }
    }
}

/// A result that nobody asks for any more is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(900);

/// Checks archives in the background.
pub struct Verifier {
    checked: mpsc::Sender<String>,
    reader: Reader,
    state: Arc<Mutex<HashMap<String, Checked>>>,
}

/// Reads archives back, a few at a time.
#[derive(Clone)]
struct Reader {
    store: Arc<Store>,
    slots: Arc<Semaphore>,
    large: Arc<Semaphore>,
    manifests: Arc<Semaphore>,
}

impl Verifier {
    /// The UID of every check that ends is sent to `checked`.
    pub fn new(store: Arc<Store>, checked: mpsc::Sender<String>) -> Self {
        let slots = |n| Arc::new(Semaphore::new(n));
        let reader = Reader { store, slots: slots(AT_ONCE), large: slots(LARGE_AT_ONCE), manifests: slots(MANIFESTS) };
        Self { checked, reader, state: Arc::default() }
    }

    /// How the archive of one deletion of `uid` stands. A good result is given once. A bad one stands for a while and until another check has
    /// ended: were it asked for again at once, the status of a computer would go to and fro for as long as a store is down (L6).
    pub fn check(&self, uid: &str, origin: &Origin) -> Verification {
        let Ok(mut state) = self.state.lock() else { return Verification::Unavailable("the verifier failed".to_owned()) };
        // What was found out for another deletion says nothing about this one.
        state.retain(|of, k| k.running || (k.since.elapsed() < FORGOTTEN && (of != uid || k.origin == *origin)));
        let known = state.entry(uid.to_owned()).or_insert_with(|| Checked::new(origin.clone(), Verification::Running));
        if known.running {
            return known.last.clone();
        }
        let begin = match (&known.last, known.last.stands()) {
            (Verification::Running, _) => true,
            (_, Some(time)) => known.since.elapsed() >= time,
            (_, None) => return state.remove(uid).map_or(Verification::Running, |k| k.last),
        };
        known.running = begin;
        let last = known.last.clone();
        drop(state);
        if begin {
            self.start(uid.to_owned(), origin.clone());
        }
        last
    }

    /// What `take` takes out of the newest manifest, while it is the only one in memory.
    ///
    /// # Errors
    /// When there is none, it is damaged, or the store does not answer.
    pub async fn manifest<T>(&self, uid: &str, take: impl FnOnce(Manifest) -> T) -> Result<T, StoreError> {
        let _turn = self.reader.manifests.acquire().await;
        let bytes = self.reader.store.get(&self.reader.store.newest_manifest(uid).await?).await?;
        let manifest = Manifest::parse(&bytes).map_err(|e| StoreError::Corrupt(e.to_string()))?;
        drop(bytes);
        Ok(take(manifest))
    }

    fn start(&self, uid: String, origin: Origin) {
        let (reader, state, checked) = (self.reader.clone(), Arc::clone(&self.state), self.checked.clone());
        tokio::spawn(async move {
            let of = (uid.clone(), origin.clone());
            // A check that panics is one that failed: it would be under way for good otherwise (L1).
            let result = tokio::spawn(async move { reader.read(&of.0, &of.1).await }).await;
            let result = result.unwrap_or_else(|e| Verification::Unavailable(format!("the check failed: {e}")));
            if let Ok(mut state) = state.lock() {
                state.insert(uid.clone(), Checked::new(origin, result));
            }
            // The receiver goes only at shutdown.
            let _ = checked.send(uid).await;
        });
    }
}

impl Reader {
    /// Reads an archive back when it is its turn. Nothing of it is in memory while it waits.
    async fn read(&self, uid: &str, origin: &Origin) -> Verification {
        // Whether there is an archive at all is answered at once: a deletion waits for it before it makes one.
        match self.any(&origin.keys(uid)).await {
            Ok(true) => {}
            Ok(false) => return Verification::Missing,
            Err(error) => return Verification::Unavailable(error.to_string()),
        }
        let slots = match self.contents(uid, origin).await {
            Err(other) => return other,
            Ok(contents) => {
                let slots = if contents.unpacked > LARGE { &self.large } else { &self.slots };
                if let Ok(_slot) = slots.try_acquire() {
                    return read_all(&self.store, uid, contents).await;
                }
                slots
            }
        };
        // Never closed.
        let _slot = slots.acquire().await;
        match self.contents(uid, origin).await {
            Ok(contents) => read_all(&self.store, uid, contents).await,
            Err(other) => other,
        }
    }

    async fn any(&self, keys: &[String]) -> Result<bool, StoreError> {
        for key in keys {
            match self.store.size(key).await {
                Ok(_) => return Ok(true),
                Err(StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    async fn contents(&self, uid: &str, origin: &Origin) -> Result<Contents, Verification> {
        let _turn = self.manifests.acquire().await;
        of_deletion(&self.store, uid, origin).await
    }
}

/// Reads the newest archive of a computer back, whole.
pub async fn verify(store: &Store, uid: &str) -> Verification {
    let newest = match store.newest_manifest(uid).await {
        Ok(key) => contents(store, uid, &key, None).await,
        Err(error) => Err(Verification::Unavailable(error.to_string())),
    };
    match newest {
        Ok(contents) => read_all(store, uid, contents).await,
        Err(other) => other,
    }
}

/// What a check needs of a manifest.
struct Contents {
    /// The result, if all of it is there.
    summary: Summary,
    /// Bytes of all sessions, unpacked.
    unpacked: u64,
    sessions: Vec<Expected>,
}

/// What an object should hold.
#[derive(Clone, Copy)]
struct Expected {
    digest: [u8; 32],
    files: u64,
    bytes: u64,
}

/// What the manifest of this deletion says, or how its archive stands without one. The archive of another deletion of this UID is as
/// good as none.
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

/// What a manifest says. With an origin, one that another deletion wrote is missing.
async fn contents(store: &Store, uid: &str, key: &str, origin: Option<&Origin>) -> Result<Contents, Verification> {
    let bytes = match store.get(key).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound(_)) => return Err(Verification::Missing),
        Err(error) => return Err(Verification::Unavailable(error.to_string())),
    };
    let manifest_digest = hex::encode(Sha256::digest(&bytes));
    let manifest = Manifest::parse(&bytes).map_err(|e| Verification::Invalid(e.to_string()))?;
    drop(bytes);
    if manifest.computer.uid != uid {
        return Err(Verification::Invalid(format!("the manifest is that of {}", manifest.computer.uid)));
    }
    if guards::on(Guard::OwnArchive) && origin.is_some_and(|origin| !origin.wrote(&manifest)) {
        tracing::info!(uid, key, created_at = manifest.created_at, "an archive of an earlier deletion of this UID is left as it is");
        return Err(Verification::Missing);
    }
    let mut sessions = Vec::with_capacity(manifest.sessions.len());
    for session in &manifest.sessions {
        let mut digest = [0; 32];
        hex::decode_to_slice(&session.digest, &mut digest).map_err(|e| Verification::Invalid(e.to_string()))?;
        sessions.push(Expected { digest, files: session.files, bytes: session.bytes });
    }
    Ok(Contents {
        summary: Summary {
            manifest_digest,
            sessions: manifest.sessions.len() as u64,
            bytes: manifest.stored_bytes(),
            problems: manifest.lost(),
            left_out_by: truncate(&manifest.left_out_by, 2048),
        },
        unpacked: sessions.iter().map(|s| s.bytes).fold(0, u64::saturating_add),
        sessions,
    })
}

async fn read_all(store: &Store, uid: &str, contents: Contents) -> Verification {
    let sessions = contents.sessions.into_iter().filter(|_| guards::on(Guard::ReadBack));
    for session in sessions {
        match object(store, uid, session).await {
            Ok(()) => {}
            Err(StoreError::Unavailable(why)) => return Verification::Unavailable(why),
            Err(error) => return Verification::Invalid(error.to_string()),
        }
    }
    Verification::Valid(contents.summary)
}

async fn object(store: &Store, uid: &str, session: Expected) -> Result<(), StoreError> {
    let key = object_key(uid, &hex::encode(session.digest));
    let reader = SyncIoBridge::new(StreamReader::new(store.stream(&key).await?));
    let read = tokio::task::spawn_blocking(move || read_back(reader, session));
    read.await.unwrap_or_else(|e| Err(StoreError::Unavailable(e.to_string()))).map_err(|e| match e {
        StoreError::Corrupt(why) => StoreError::Corrupt(format!("{key}: {why}")),
        other => other,
    })
}

/// Digest, number of files and bytes, in one stream and bounded memory.
fn read_back(object: impl Read, expected: Expected) -> Result<(), StoreError> {
    let corrupt = |e: &dyn std::fmt::Display| StoreError::Corrupt(e.to_string());
    let mut hashing = Hashing { inner: object, hash: Sha256::new(), failed: None };
    let counted = count(&mut hashing, expected.bytes);
    // To the end, so that the digest is that of the whole object.
    let rest = std::io::copy(&mut hashing, &mut std::io::sink());
    if let Some(error) = hashing.failed.take() {
        return Err(StoreError::Unavailable(error));
    }
    rest.map_err(|e| StoreError::Unavailable(e.to_string()))?;
    let (files, bytes) = counted.map_err(|e| corrupt(&e))?;
    let digest = hashing.hash.finalize();
    if digest[..] != expected.digest {
        return Err(corrupt(&format!("its bytes have sha256 {}", hex::encode(digest))));
    }
    if (files, bytes) != (expected.files, expected.bytes) {
        return Err(corrupt(&format!("it holds {files} files of {bytes} bytes, not {} of {}", expected.files, expected.bytes)));
    }
    Ok(())
}

fn count(object: &mut impl Read, most: u64) -> std::io::Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    each_entry(object, |entry| {
        files += 1;
        bytes += std::io::copy(entry, &mut std::io::sink())?;
        if bytes > most {
            return Err(std::io::Error::other("it holds more than the manifest says"));
        }
        Ok(true)
    })?;
    Ok((files, bytes))
}

/// Hashes what is read, and remembers a failure of the store apart from damage in the bytes.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    failed: Option<String>,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(n) => {
                self.hash.update(&buffer[..n]);
                Ok(n)
            }
            Err(error) => {
                self.failed = Some(error.to_string());
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod memory_tests;
#[cfg(test)]
mod tests;
