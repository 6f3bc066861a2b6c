//! What archives share at this endpoint, and how much of it there is. What is small has places of its own, so that the small archive of one tenant does
//! not wait for a chunk of a large one on a slow line (L3). A request has a connection while it waits, so few may wait; archive pods repeat the others.

use axum::http::StatusCode;

use super::keep_alive::Outcome;
use crate::archive::Manifest;
use crate::archive::manifest::{CHUNK, SMALL};
use crate::archive::turns::{BoundedTurns, Bounds, Busy, QueueBounds, Turn};

/// Longest manifest that may be small.
const SMALL_MANIFEST: usize = 16 * 1024;
/// Most chunks of an archive whose manifest is small: they are looked up one after the other.
const FEW_CHUNKS: u64 = 1024;
/// Most bytes of the list of these chunks, as stored.
const SHORT_LIST: u64 = 64 * 1024;

/// Bytes of chunks that are received in parallel. One counts as half of the largest at least.
const CHUNKS: QueueBounds = QueueBounds { turns: Bounds { all: 4 * CHUNK, namespace: 3 * CHUNK, computer: 3 * CHUNK }, waiting: 12 };
/// The same of small ones. One counts as a third of the largest of these at least.
const SMALL_CHUNKS: QueueBounds = QueueBounds { turns: Bounds { all: 16 * SMALL, namespace: 8 * SMALL, computer: 3 * SMALL }, waiting: 12 };
/// Chunks of earlier attempts that are read back before they are used again.
const EARLIER: QueueBounds = QueueBounds { turns: Bounds { all: 8, namespace: 4, computer: 3 }, waiting: 8 };
/// Manifests that are received and checked in parallel.
const MANIFESTS: QueueBounds = QueueBounds { turns: Bounds { all: 2, namespace: 1, computer: 1 }, waiting: 2 };
/// Small ones.
const SMALL_MANIFESTS: QueueBounds = QueueBounds { turns: Bounds { all: 6, namespace: 3, computer: 1 }, waiting: 14 };
/// Objects that the HTTP API reads.
const READS: QueueBounds = QueueBounds { turns: Bounds { all: 3, namespace: 2, computer: 2 }, waiting: 12 };
/// Most bytes of chunks that archive pods send, and of objects that the HTTP API reads, at the same time. See docs/memory.md.
pub const IN_FLIGHT: (usize, usize) = (CHUNKS.turns.all + SMALL_CHUNKS.turns.all, READS.turns.all * CHUNK);
/// Connections that are left for new ones, for heads of requests, and for what is refused at once.
const LEFT: usize = 8;
const _: () = {
    let waiting = CHUNKS.waiting + SMALL_CHUNKS.waiting + EARLIER.waiting + MANIFESTS.waiting + SMALL_MANIFESTS.waiting + READS.waiting;
    let served = 2 * CHUNKS.turns.all / CHUNK
        + 3 * SMALL_CHUNKS.turns.all / SMALL
        + EARLIER.turns.all
        + MANIFESTS.turns.all
        + SMALL_MANIFESTS.turns.all
        + READS.turns.all;
    assert!(waiting + served + LEFT <= super::LIMITS.connections);
};

/// What archive pods share.
#[derive(Clone)]
pub struct Shares {
    chunks: BoundedTurns,
    small_chunks: BoundedTurns,
    earlier: BoundedTurns,
    manifests: BoundedTurns,
    small_manifests: BoundedTurns,
}

/// Namespace and UID of a computer.
pub type Of<'a> = (&'a str, &'a str);

impl Default for Shares {
    fn default() -> Self {
        Self {
            chunks: BoundedTurns::new("chunk", CHUNKS),
            small_chunks: BoundedTurns::new("small-chunk", SMALL_CHUNKS),
            earlier: BoundedTurns::new("earlier-chunk", EARLIER),
            manifests: BoundedTurns::new("manifest", MANIFESTS),
            small_manifests: BoundedTurns::new("small-manifest", SMALL_MANIFESTS),
        }
    }
}

impl Shares {
    /// Room for a chunk.
    ///
    /// # Errors
    /// 429 when too many wait.
    pub async fn chunk(&self, (namespace, uid): Of<'_>, length: usize) -> Result<Turn, Outcome> {
        let small = length <= SMALL;
        let (turns, least) = if small { (&self.small_chunks, SMALL.div_ceil(3)) } else { (&self.chunks, CHUNK / 2) };
        let size = length.max(least);
        turns.take(namespace, uid, size).await.map_err(busy)
    }

    /// The turn to read a chunk of an earlier attempt back.
    ///
    /// # Errors
    /// As [`Shares::chunk`].
    pub async fn earlier(&self, (namespace, uid): Of<'_>) -> Result<Turn, Outcome> {
        self.earlier.take(namespace, uid, 1).await.map_err(busy)
    }

    /// Room for a manifest of this length.
    ///
    /// # Errors
    /// As [`Shares::chunk`].
    pub async fn manifest(&self, (namespace, uid): Of<'_>, length: usize) -> Result<Turn, Outcome> {
        let turns = if length <= SMALL_MANIFEST { &self.small_manifests } else { &self.manifests };
        turns.take(namespace, uid, 1).await.map_err(busy)
    }

    /// The turn to check a manifest that has been received. A short one may name many chunks, and then gives its place up.
    ///
    /// # Errors
    /// As [`Shares::chunk`].
    pub async fn check(&self, (namespace, uid): Of<'_>, turn: Turn, length: usize, manifest: &Manifest) -> Result<Turn, Outcome> {
        if length > SMALL_MANIFEST || is_small(manifest) {
            return Ok(turn);
        }
        drop(turn);
        self.manifests.take(namespace, uid, 1).await.map_err(busy)
    }

    /// Room for manifests that is free.
    #[cfg(test)]
    pub fn free_for_manifests(&self) -> (usize, usize) {
        (self.manifests.free(), self.small_manifests.free())
    }
}

/// Whether few objects are looked up for it, in little memory. What it says of their number is not trusted: a short list in one piece has a bound.
fn is_small(manifest: &Manifest) -> bool {
    let lists = [&manifest.chunks, &manifest.entries, &manifest.problems];
    let short = manifest.chunks.pieces.len() <= 1 && manifest.chunks.pieces.iter().all(|piece| piece.size <= SHORT_LIST);
    manifest.chunks.count <= FEW_CHUNKS && short && lists.iter().all(|list| !list.nested)
}

/// Shares of the objects that the HTTP API reads.
pub fn reads() -> BoundedTurns {
    BoundedTurns::new("read", READS)
}

/// The answer when too many wait.
pub fn busy(_: Busy) -> Outcome {
    (StatusCode::TOO_MANY_REQUESTS, "too many requests to store or read archives are waiting; the client retries".to_owned())
}
