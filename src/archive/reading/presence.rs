//! Looks for the objects of an archive that earlier turns of a check have read: days may have passed since (S1). An archive of a terabyte has 130,000
//! of them, so this must never be one piece of work: it is done in batches, and the check may give its turn up after each.

use super::super::copies;
use super::super::index::{Lines, Pieces, patiently};
use super::super::manifest::{Chunk, Manifest};
use super::super::store::{Store, StoreError};

/// Objects that are looked up in parallel, one batch after the other.
pub(super) const BATCH: usize = 64;

/// How far the search is.
pub(super) struct Presence {
    /// Bytes of the archive that earlier turns have read.
    until: u64,
    /// Objects that were found.
    found: u64,
}

impl Presence {
    /// Nothing was looked up yet.
    pub fn new(until: u64) -> Self {
        Self { until, found: 0 }
    }

    /// Looks up what is left, until `pause` says so after a batch. Returns whether everything is there.
    ///
    /// # Errors
    /// When an object is gone, or the store does not answer for a while.
    pub async fn run(&mut self, store: &Store, manifest: &Manifest, mut pause: impl FnMut() -> bool) -> Result<bool, StoreError> {
        // Everything was read in this turn.
        if self.until == 0 {
            return Ok(true);
        }
        let uid = &manifest.computer.uid;
        let mut objects = Objects::new(store, manifest, self.until);
        for _ in 0..self.found {
            objects.next().await?;
        }
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            while batch.len() < BATCH
                && let Some(object) = objects.next().await?
            {
                batch.push(object);
            }
            futures::future::try_join_all(batch.iter().map(|object| there(store, uid, object))).await?;
            self.found += batch.len() as u64;
            if batch.len() < BATCH {
                return Ok(true);
            }
            if pause() {
                return Ok(false);
            }
        }
    }
}

async fn there(store: &Store, uid: &str, object: &Chunk) -> Result<(), StoreError> {
    let gone = || StoreError::Corrupt(format!("object {} was read back, and is no longer in the store", object.digest));
    let look = || copies::is_stored(store, uid, object);
    if patiently(store, &object.digest, look).await? { Ok(()) } else { Err(gone()) }
}

/// The pieces of the lists that are not read here, and the chunks up to an offset.
struct Objects {
    lists: [Pieces; 2],
    chunks: Lines<Chunk>,
    offset: u64,
    until: u64,
}

impl Objects {
    fn new(store: &Store, manifest: &Manifest, until: u64) -> Self {
        let uid = &manifest.computer.uid;
        let lists = [&manifest.entries, &manifest.problems].map(|list| Pieces::new(store, uid, list));
        Self { lists, chunks: Lines::new(store, uid, &manifest.chunks), offset: 0, until }
    }

    async fn next(&mut self) -> Result<Option<Chunk>, StoreError> {
        for list in &mut self.lists {
            if let Some(piece) = list.next().await? {
                return Ok(Some(piece));
            }
        }
        let chunk = if self.offset < self.until { self.chunks.next().await? } else { None };
        self.offset = chunk.as_ref().map_or(self.offset, |chunk| self.offset.saturating_add(chunk.size));
        Ok(chunk)
    }
}
