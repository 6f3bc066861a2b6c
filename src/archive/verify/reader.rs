//! Reads archives back, a few at a time and in turns, so that no archive delays the check of another tenant's (L3). Small ones have places of their own.
//! One that is too long for one turn gives its place up after a while when another one waits, and continues where it was at its next turn. Any check that
//! the store ends is continued by the next one. No part of a manifest may be in memory while a check waits.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::progress::Progress;
use super::{Contents, Nothing, Origin, Verification, of_deletion, read_all};
use crate::archive::Archive;
use crate::archive::manifest::MAX_BYTES;
use crate::archive::reading::Reading;
use crate::archive::store::{Store, StoreError};
use crate::archive::turns::{Bounds, Turn, Turns};

/// MiB for small archives that are read back in parallel.
const SMALL: Bounds = Bounds { all: 74, namespace: 44, computer: 22 };
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
/// Checks that ended before the end of their archive, and that the next check continues: those that have read most.
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

/// What an archive takes while it is read back.
#[derive(Clone, Copy)]
enum Share {
    /// A small one: MiB.
    Small(usize),
    /// A large one that is read in one turn.
    OneTurn,
    /// One that may take several.
    Turns,
}

impl Share {
    fn of(archive: &Archive) -> Self {
        if !archive.is_large() {
            let chunks = usize::try_from(archive.stored_bytes() >> 20).unwrap_or(usize::MAX);
            return Self::Small(chunks.saturating_add(BESIDES_CHUNKS));
        }
        let short = archive.read_bytes() <= ONE_TURN.0 && archive.unpacked_bytes() <= ONE_TURN.1 && archive.objects() <= ONE_TURN.2;
        if short { Self::OneTurn } else { Self::Turns }
    }
}

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
    kept: Arc<Mutex<Vec<(Unfinished, Instant)>>>,
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
    pub async fn manifest(&self, namespace: &str, uid: &str) -> Turn {
        self.manifests.take(namespace, uid, MANIFESTS).await
    }

    /// Reads an archive back, in as many turns as it takes.
    pub async fn read(&self, uid: &str, origin: &Origin, progress: &Progress) -> Verification {
        // Whether an archive exists is answered without waiting: a deletion needs the answer before it creates one.
        let of = match self.any(&origin.keys(uid)).await {
            Ok(Some(longest)) => Wanted { uid, origin, manifest: if longest > MAX_BYTES as u64 { MANIFESTS } else { MANIFEST } },
            Ok(None) => return Verification::Missing,
            Err(error) => return Verification::Unavailable(error.to_string()),
        };
        let first = match self.contents(of).await {
            Ok(contents) => contents,
            Err(other) => return other,
        };
        let share = Share::of(&first.archive);
        let mut known = Some(first);
        let (turns, size) = if let Share::Small(size) = share { (&self.small, size) } else { (&self.large, 1) };
        let several = matches!(share, Share::Turns);
        let _begun = if several { Some(self.turn(&self.begun, of, 1, &mut known).await) } else { None };
        let mut unfinished = None;
        loop {
            let turn = self.turn(turns, of, size, &mut known).await;
            let contents = match known.take() {
                Some(contents) => contents,
                None => match self.contents(of).await {
                    Ok(contents) => contents,
                    Err(other) => return self.ended(other, unfinished),
                },
            };
            let result = self.go_on(contents, &mut unfinished, progress, turn, several).await;
            if result != Verification::Running {
                return self.ended(result, unfinished);
            }
        }
    }

    /// A turn of this size. What is known of the archive is forgotten if it has to wait, and is read again afterwards.
    async fn turn(&self, turns: &Turns, of: Wanted<'_>, size: usize, known: &mut Option<Contents>) -> Turn {
        let namespace = &of.origin.namespace;
        if let Some(turn) = turns.try_take(namespace, of.uid, size) {
            return turn;
        }
        *known = None;
        turns.take(namespace, of.uid, size).await
    }

    /// Reads what is left in one turn, which ends when another one waits: after a while if it may take `several`, and when the store does not deliver.
    async fn go_on(
        &self,
        contents: Contents,
        unfinished: &mut Option<Unfinished>,
        progress: &Progress,
        turn: Turn,
        several: bool,
    ) -> Verification {
        let digest = &contents.summary.manifest_digest;
        let earlier = unfinished.take().filter(|(of, _)| of == digest).or_else(|| self.kept(digest));
        // A store that fails every few hours must not keep an archive from being verified (L8).
        let (_, reading) = unfinished.insert(earlier.unwrap_or_else(|| begin(&contents)));
        progress.reads(&reading.objects, contents.archive.objects());
        let (turn, began, mut back) = (Arc::new(turn), Instant::now(), None);
        let pause = || {
            let back = *back.get_or_insert_with(|| began.elapsed());
            several && began.elapsed() >= TURN.max(10 * back) && turn.is_awaited()
        };
        // What is read ahead must not prolong the turn.
        let held = Arc::downgrade(&turn);
        let store = self.store.shared_with(move || held.upgrade().is_some_and(|turn| turn.is_awaited()));
        read_all(&store, contents, reading, pause).await
    }

    /// The check of this manifest that has ended before its end.
    fn kept(&self, digest: &str) -> Option<Unfinished> {
        let mut kept = self.kept.lock();
        kept.retain(|(_, ended)| ended.elapsed() < CONTINUED);
        let found = kept.iter().position(|((of, _), _)| of == digest)?;
        Some(kept.swap_remove(found).0)
    }

    /// Keeps what the next check can continue.
    fn ended(&self, result: Verification, unfinished: Option<Unfinished>) -> Verification {
        let to_keep = unfinished.filter(|(_, reading)| !matches!(result, Verification::Valid(_)) && reading.can_continue());
        if let Some(unfinished) = to_keep {
            let mut kept = self.kept.lock();
            kept.retain(|(_, ended)| ended.elapsed() < CONTINUED);
            kept.push((unfinished, Instant::now()));
            if kept.len() > KEPT {
                let least = kept.iter().enumerate().min_by_key(|(_, ((_, reading), _))| reading.read_bytes());
                let least = least.map_or(0, |(place, _)| place);
                kept.swap_remove(least);
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
