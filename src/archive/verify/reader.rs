//! Reads archives back, a few at a time and in turns, so that no archive delays the check of another tenant's (L3). Small ones have places of their own,
//! and are read in one go. A large one gives its place up after a while when another one waits, and continues where it was at its next turn.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::progress::Progress;
use super::{Contents, Nothing, Origin, Verification, of_deletion, read_all};
use crate::archive::manifest::MAX_BYTES;
use crate::archive::reading::Reading;
use crate::archive::store::{Store, StoreError};
use crate::archive::turns::{Bounds, Busy, Turn, Turns};

/// MiB for small archives that are read back in parallel.
const SMALL: Bounds = Bounds { all: 74, namespace: 44, computer: 22, waiting: usize::MAX };
/// MiB for one of them, besides its chunks.
const BESIDES_CHUNKS: usize = 14;
/// Large archives that are read back in parallel, and those of one namespace.
pub(super) const LARGE: (usize, usize) = (2, 2);
/// Those of them that are read in several turns and have begun. Between its turns one takes 2 MiB at most.
const BEGUN: (usize, usize) = (6, 1);
/// Stored bytes, decompressed bytes and objects of a large archive that is read in one turn.
const ONE_TURN: (u64, u64, u64) = (64 << 20, 1 << 30, if cfg!(test) { 1000 } else { 4096 });
/// How long a turn lasts at least while others wait. It also lasts ten times as long as it took to come back to where the last one had ended.
const TURN: Duration = Duration::from_secs(30);
/// MiB for manifests that are completely in memory. One that is longer than any of the current version gets all of it.
const MANIFESTS: usize = 64;
/// MiB for one of the current version, as stored and as parsed.
const MANIFEST: usize = 4;
/// Checks that ended before the end of their archive, and that the next check continues. One takes 2 MiB at most.
const KEPT: usize = 3;
/// How long after its beginning such a check is continued. Later, the archive is read from its beginning: what was read may be gone (S1).
pub(super) const CONTINUED: Duration = Duration::from_secs(24 * 3600);

/// A check that has not reached the end: the digest of the manifest, what is left to read, and when it began.
type Kept = (String, Reading<Nothing>, Instant);

/// The archive that is to be read, and the MiB that its manifest may take.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    uid: &'a str,
    origin: &'a Origin,
    manifest: usize,
}

/// Reads archives back.
#[derive(Clone)]
pub(super) struct Reader {
    pub store: Arc<Store>,
    manifests: Turns,
    small: Turns,
    large: Turns,
    begun: Turns,
    /// Checks that a failure of the store has ended.
    kept: Arc<Mutex<VecDeque<Kept>>>,
}

impl Reader {
    /// Reads from this store.
    pub fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            manifests: Turns::of("read-manifest", MANIFESTS, MANIFESTS),
            small: Turns::new("small-verification", SMALL),
            large: Turns::of("verification", LARGE.0, LARGE.1),
            begun: Turns::of("begin-verification", BEGUN.0, BEGUN.1),
            kept: Arc::default(),
        }
    }

    /// The turn to have a manifest of any length in memory.
    pub async fn manifest(&self, namespace: &str, uid: &str) -> Result<Turn, Busy> {
        self.manifests.take(namespace, uid, MANIFESTS).await
    }

    /// Waits for a turn and reads an archive back. No part of a manifest is in memory while it waits.
    pub async fn read(&self, uid: &str, origin: &Origin, progress: &Progress) -> Verification {
        // Whether an archive exists is answered without waiting: a deletion needs the answer before it creates one.
        let of = match self.any(&origin.keys(uid)).await {
            Ok(Some(longest)) => Wanted { uid, origin, manifest: if longest > MAX_BYTES as u64 { MANIFESTS } else { MANIFEST } },
            Ok(None) => return Verification::Missing,
            Err(error) => return Verification::Unavailable(error.to_string()),
        };
        match self.contents(of).await {
            Err(other) => other,
            Ok(contents) if contents.large => {
                let archive = &contents.archive;
                let (stored, unpacked, objects) = (archive.stored_bytes(), archive.unpacked_bytes(), archive.objects());
                let one_turn = stored <= ONE_TURN.0 && unpacked <= ONE_TURN.1 && objects <= ONE_TURN.2;
                drop(contents);
                self.in_turns(of, progress, one_turn).await
            }
            Ok(contents) => self.at_once(of, progress, contents).await,
        }
    }

    /// A small archive.
    async fn at_once(&self, of: Wanted<'_>, progress: &Progress, contents: Contents) -> Verification {
        let size = BESIDES_CHUNKS + usize::try_from(contents.summary.bytes >> 20).unwrap_or(usize::MAX - BESIDES_CHUNKS);
        if let Some(_turn) = self.small.try_take(&of.origin.namespace, of.uid, size) {
            return self.read_back(contents, progress).await;
        }
        drop(contents);
        let _turn = self.small.take(&of.origin.namespace, of.uid, size).await;
        match self.contents(of).await {
            Ok(contents) => self.read_back(contents, progress).await,
            Err(other) => other,
        }
    }

    async fn read_back(&self, contents: Contents, progress: &Progress) -> Verification {
        let mut reading = self.begin(&contents);
        let result = self.go_on(contents, &mut reading, progress, || false).await;
        self.ended(result.unwrap_or(Verification::Running), reading)
    }

    /// A large archive.
    async fn in_turns(&self, of: Wanted<'_>, progress: &Progress, one_turn: bool) -> Verification {
        let _begun = if one_turn { None } else { Some(self.begun.take(&of.origin.namespace, of.uid, 1).await) };
        let mut paused: Option<Kept> = None;
        loop {
            let turn = self.large.take(&of.origin.namespace, of.uid, 1).await;
            let contents = match self.contents(of).await {
                Ok(contents) => contents,
                Err(other) => return other,
            };
            let digest = &contents.summary.manifest_digest;
            let mut reading = paused.take().filter(|(of, ..)| of == digest).unwrap_or_else(|| self.begin(&contents));
            let (began, mut back) = (Instant::now(), None);
            let awaited = move || {
                let back = *back.get_or_insert_with(|| began.elapsed());
                !one_turn && began.elapsed() >= TURN.max(10 * back) && turn.as_ref().is_ok_and(Turn::is_awaited)
            };
            match self.go_on(contents, &mut reading, progress, awaited).await {
                Some(result) => return self.ended(result, reading),
                None => paused = Some(reading),
            }
        }
    }

    async fn go_on(
        &self,
        contents: Contents,
        (_, reading, _): &mut Kept,
        progress: &Progress,
        pause: impl FnMut() -> bool + Send,
    ) -> Option<Verification> {
        progress.reads(&reading.objects, contents.archive.objects());
        read_all(&self.store, contents, reading, pause).await
    }

    /// Begins where an earlier check of the same manifest has ended: a store that fails every few hours must not keep a large archive from being
    /// verified (L8).
    fn begin(&self, contents: &Contents) -> Kept {
        let digest = &contents.summary.manifest_digest;
        let new = || (digest.clone(), Reading::new(&contents.archive, None, Nothing), Instant::now());
        self.earlier(digest).unwrap_or_else(new)
    }

    fn earlier(&self, digest: &str) -> Option<Kept> {
        let mut kept = self.kept.lock().ok()?;
        kept.retain(|(_, _, began)| began.elapsed() < CONTINUED);
        let found = kept.iter().position(|(of, ..)| of == digest)?;
        kept.remove(found)
    }

    /// Keeps what the next check can continue.
    fn ended(&self, result: Verification, reading: Kept) -> Verification {
        if !matches!(result, Verification::Valid(_))
            && reading.1.can_continue()
            && let Ok(mut kept) = self.kept.lock()
        {
            kept.push_back(reading);
            while kept.len() > KEPT {
                kept.pop_front();
            }
        }
        result
    }

    /// The size of its first manifest. An earlier version wrote only that one.
    async fn any(&self, keys: &[String]) -> Result<Option<u64>, StoreError> {
        for key in keys {
            match self.store.size(key).await {
                Ok(size) => return Ok(Some(size)),
                Err(StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn contents(&self, of: Wanted<'_>) -> Result<Contents, Verification> {
        let _turn = self.manifests.take(&of.origin.namespace, of.uid, of.manifest).await;
        of_deletion(&self.store, of.uid, of.origin).await
    }
}
