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
/// MiB for a large one: three chunks, a frame, two pieces of its index as stored and as lines, and the headers of an entry.
const ONE_LARGE: usize = 37;
/// Large archives that are read back in parallel, and those of one namespace. None of them keeps its place for longer than a turn while another one waits:
/// one that the store does not deliver is given up then.
pub(super) const LARGE: (usize, usize) = (2, 2);
/// Those of them that are read in several turns and have begun.
const BEGUN: (usize, usize) = (6, 1);
/// Bytes to read, decompressed bytes and objects of a large archive that is read in one turn.
const ONE_TURN: (u64, u64, u64) = (64 << 20, 1 << 30, if cfg!(test) { 1000 } else { 4096 });
/// How long a turn lasts at least while others wait. It also lasts ten times as long as it took to come back to where the last one had ended.
const TURN: Duration = Duration::from_secs(30);
/// MiB for manifests that are completely in memory. One that is longer than any of the current version gets all of it.
const MANIFESTS: usize = 64;
/// MiB for one of the current version, as stored and as parsed.
const MANIFEST: usize = 4;
/// Checks that ended before the end of their archive, and that the next check continues: all that an outage of the store can end.
const KEPT: usize = BEGUN.0;
/// How long such a check is kept. Later, the archive is read from its beginning: what was read may have changed (S1). A check that is continued looks for
/// every object again when it ends, and does not read it again, however long it takes.
pub(super) const CONTINUED: Duration = Duration::from_secs(24 * 3600);
/// Bytes of a check between its turns, or that is kept: headers of a tar that are not complete, and entries that wait for their frames.
const UNFINISHED: usize = 2400 << 10;
/// Most bytes of archives that are being read, of manifests, and of checks that are neither running nor at their end. See docs/memory.md.
pub const MEMORY: [usize; 3] = [(SMALL.all + LARGE.0 * ONE_LARGE) << 20, MANIFESTS << 20, (BEGUN.0 + KEPT) * UNFINISHED];

/// A check that has not reached the end: the digest of the manifest, and what is left to read.
type Unfinished = (String, Reading<Nothing>);

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
    /// Checks that a failure of the store has ended, and when.
    kept: Arc<Mutex<VecDeque<(Unfinished, Instant)>>>,
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
                let (read, unpacked, objects) = (archive.read_bytes(), archive.unpacked_bytes(), archive.objects());
                let one_turn = read <= ONE_TURN.0 && unpacked <= ONE_TURN.1 && objects <= ONE_TURN.2;
                drop(contents);
                self.in_turns(of, progress, one_turn).await
            }
            Ok(contents) => self.at_once(of, progress, contents).await,
        }
    }

    /// A small archive.
    async fn at_once(&self, of: Wanted<'_>, progress: &Progress, contents: Contents) -> Verification {
        let size = BESIDES_CHUNKS + usize::try_from(contents.summary.bytes >> 20).unwrap_or(usize::MAX - BESIDES_CHUNKS);
        if let Some(turn) = self.small.try_take(&of.origin.namespace, of.uid, size) {
            return self.in_one_turn(contents, progress, turn).await;
        }
        drop(contents);
        // Any number may wait, so nobody is turned away.
        let Ok(turn) = self.small.take(&of.origin.namespace, of.uid, size).await else { return Verification::Running };
        match self.contents(of).await {
            Ok(contents) => self.in_one_turn(contents, progress, turn).await,
            Err(other) => other,
        }
    }

    /// An archive that is read to its end, unless the store does not deliver it and another one waits.
    async fn in_one_turn(&self, contents: Contents, progress: &Progress, turn: Turn) -> Verification {
        let mut unfinished = begin(&contents);
        self.go_on(contents, &mut unfinished, progress, &Arc::new(turn), || false).await.unwrap_or(Verification::Running)
    }

    /// A large archive.
    async fn in_turns(&self, of: Wanted<'_>, progress: &Progress, one_turn: bool) -> Verification {
        let _begun = if one_turn { None } else { Some(self.begun.take(&of.origin.namespace, of.uid, 1).await) };
        let mut paused: Option<Unfinished> = None;
        loop {
            let Ok(turn) = self.large.take(&of.origin.namespace, of.uid, 1).await else { return Verification::Running };
            let contents = match self.contents(of).await {
                Ok(contents) => contents,
                Err(other) => return self.ended(other, paused),
            };
            if one_turn {
                return self.in_one_turn(contents, progress, turn).await;
            }
            let digest = &contents.summary.manifest_digest;
            let earlier = paused.take().filter(|(of, _)| of == digest).or_else(|| self.kept(digest));
            // A store that fails every few hours must not keep a large archive from being verified (L8).
            let mut unfinished = earlier.unwrap_or_else(|| begin(&contents));
            let (turn, began, mut back) = (Arc::new(turn), Instant::now(), None);
            let pause = || {
                let back = *back.get_or_insert_with(|| began.elapsed());
                began.elapsed() >= TURN.max(10 * back) && turn.is_awaited()
            };
            match self.go_on(contents, &mut unfinished, progress, &turn, pause).await {
                Some(result) => return self.ended(result, Some(unfinished)),
                None => paused = Some(unfinished),
            }
        }
    }

    async fn go_on(
        &self,
        contents: Contents,
        (_, reading): &mut Unfinished,
        progress: &Progress,
        turn: &Arc<Turn>,
        pause: impl FnMut() -> bool + Send,
    ) -> Option<Verification> {
        progress.reads(&reading.objects, contents.archive.objects());
        // What is read ahead must not prolong the turn.
        let turn = Arc::downgrade(turn);
        let store = self.store.shared_with(move || turn.upgrade().is_some_and(|turn| turn.is_awaited()));
        read_all(&store, contents, reading, pause).await
    }

    /// The check of this manifest that has ended before its end.
    fn kept(&self, digest: &str) -> Option<Unfinished> {
        let mut kept = self.kept.lock().ok()?;
        kept.retain(|(_, ended)| ended.elapsed() < CONTINUED);
        let found = kept.iter().position(|((of, _), _)| of == digest)?;
        kept.remove(found).map(|(unfinished, _)| unfinished)
    }

    /// Keeps what the next check can continue.
    fn ended(&self, result: Verification, unfinished: Option<Unfinished>) -> Verification {
        let to_keep = unfinished.filter(|(_, reading)| !matches!(result, Verification::Valid(_)) && reading.can_continue());
        if let Some(unfinished) = to_keep
            && let Ok(mut kept) = self.kept.lock()
        {
            kept.push_back((unfinished, Instant::now()));
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

fn begin(contents: &Contents) -> Unfinished {
    (contents.summary.manifest_digest.clone(), Reading::new(&contents.archive, None, Nothing))
}
