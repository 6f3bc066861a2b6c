//! The index of an archive in the store, line by line, and its chunks in order. Both come from a pod that must never be trusted. Memory is
//! bounded: one piece of a list, and the chunks that are read ahead.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::Range;
use std::time::Duration;

use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::chunk_key;
use super::manifest::{Chunk, FRAME, List, Manifest};
use super::store::{Store, StoreError};

/// Chunks of one archive that are read ahead.
const AHEAD: usize = 2;
/// How long one object is requested again after its first failure while the store is unavailable. The objects before it are not read again.
const PATIENCE: Duration = Duration::from_secs(600);
/// Longest pause between two requests for one object.
const PAUSE: Duration = Duration::from_secs(20);

/// Reads an object and checks that its bytes have the digest in its name. A store that is unavailable for some time does not end the read,
/// and wrong bytes are read a second time: some stores deliver them once.
///
/// # Errors
/// [`StoreError::Corrupt`] when the bytes do not have the digest, or the object has another size.
pub async fn blob(store: &Store, uid: &str, chunk: &Chunk) -> Result<Vec<u8>, StoreError> {
    let (mut failing, mut pause, mut wrong) = (None, Duration::from_secs(1), false);
    loop {
        match read_once(store, uid, chunk).await {
            Err(error @ StoreError::Unavailable(_)) if failing.get_or_insert_with(Instant::now).elapsed() + pause < PATIENCE => {
                tracing::info!(uid, digest = chunk.digest, %error, "an object of an archive cannot be read; retrying");
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(PAUSE);
            }
            Err(error @ StoreError::Corrupt(_)) if !wrong => {
                tracing::info!(uid, digest = chunk.digest, %error, "an object of an archive has wrong bytes; reading it again");
                wrong = true;
            }
            read => return read,
        }
    }
}

async fn read_once(store: &Store, uid: &str, chunk: &Chunk) -> Result<Vec<u8>, StoreError> {
    let key = chunk_key(uid, &chunk.digest);
    if !chunk.is_valid() {
        return Err(StoreError::Corrupt(format!("the index names {key} of {} bytes, which cannot be a chunk", chunk.size)));
    }
    let bytes = store.get_sized(&key, chunk.size).await?;
    let hashed = tokio::task::spawn_blocking(move || (hex::encode(Sha256::digest(&bytes)), bytes)).await;
    let (found, bytes) = hashed.map_err(|e| StoreError::Unavailable(e.to_string()))?;
    if found == chunk.digest { Ok(bytes) } else { Err(StoreError::Corrupt(format!("{key}: its bytes have sha256 {found}"))) }
}

/// The lines of a list of the index.
pub struct Lines<T> {
    store: Store,
    uid: String,
    pieces: std::vec::IntoIter<Chunk>,
    /// Lines that are left. `None`: as many as there are.
    left: Option<u64>,
    text: Vec<u8>,
    at: usize,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// Of this list.
    pub fn new(store: &Store, uid: &str, list: &List) -> Self {
        Self::of(store, uid, list.pieces.clone(), Some(list.count))
    }

    /// Of these pieces, whatever their number of lines.
    pub fn uncounted(store: &Store, uid: &str, pieces: Vec<Chunk>) -> Self {
        Self::of(store, uid, pieces, None)
    }

    fn of(store: &Store, uid: &str, pieces: Vec<Chunk>, left: Option<u64>) -> Self {
        let pieces = pieces.into_iter();
        Self { store: store.clone(), uid: uid.to_owned(), pieces, left, text: Vec::new(), at: 0, of: PhantomData }
    }

    /// The next line; `None` after as many as the manifest says.
    ///
    /// # Errors
    /// When the store does not answer, or the index is damaged.
    pub async fn next(&mut self) -> Result<Option<T>, StoreError> {
        let corrupt = |e: &dyn std::fmt::Display| StoreError::Corrupt(format!("the index: {e}"));
        while self.at == self.text.len() {
            let Some(piece) = self.pieces.next() else {
                let left = self.left.unwrap_or(0);
                return if left == 0 { Ok(None) } else { Err(corrupt(&format!("{left} lines are missing"))) };
            };
            let bytes = blob(&self.store, &self.uid, &piece).await?;
            (self.text, self.at) = (super::frames::only(&bytes, FRAME).map_err(|e| corrupt(&e))?, 0);
        }
        let rest = &self.text[self.at..];
        let end = rest.iter().position(|b| *b == b'\n').ok_or_else(|| corrupt(&"a line has no end"))?;
        let line = serde_json::from_slice(&rest[..end]).map_err(|e| corrupt(&e))?;
        self.at += end + 1;
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1).ok_or_else(|| corrupt(&"it has more lines than the manifest says"))?;
        }
        Ok(Some(line))
    }
}

/// A chunk that is being read.
type Ahead = AbortOnDropHandle<Result<Vec<u8>, StoreError>>;

/// The chunks of an archive in order, or those in a range of its bytes. The next ones are read ahead.
pub struct Chunks {
    lines: Lines<Chunk>,
    range: Range<u64>,
    /// Bytes of the chunks so far.
    offset: u64,
    ahead: VecDeque<(u64, Ahead)>,
}

impl Chunks {
    /// The chunks in this range of bytes.
    pub fn new(store: &Store, manifest: &Manifest, range: Range<u64>) -> Self {
        Self { lines: Lines::new(store, &manifest.computer.uid, &manifest.chunks), range, offset: 0, ahead: VecDeque::new() }
    }

    /// The next bytes, all of one chunk within the range, and their offset.
    ///
    /// # Errors
    /// When the store does not answer, or a chunk is damaged or missing.
    pub async fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        while self.ahead.len() < AHEAD && self.offset < self.range.end {
            let Some(chunk) = self.lines.next().await? else {
                return Err(StoreError::Corrupt("the index: its chunks have fewer bytes than the manifest says".to_owned()));
            };
            let (from, to) = (self.offset, self.offset.saturating_add(chunk.size));
            self.offset = to;
            if to > self.range.start {
                let (store, uid) = (self.lines.store.clone(), self.lines.uid.clone());
                let read = tokio::spawn(async move { blob(&store, &uid, &chunk).await });
                self.ahead.push_back((from, AbortOnDropHandle::new(read)));
            }
        }
        let Some((from, read)) = self.ahead.pop_front() else { return Ok(None) };
        let mut bytes = read.await.map_err(|e| StoreError::Unavailable(e.to_string()))??;
        let within = |place: u64| usize::try_from(place.saturating_sub(from)).unwrap_or(usize::MAX);
        bytes.truncate(within(self.range.end));
        let skip = within(self.range.start).min(bytes.len());
        bytes.drain(..skip);
        Ok(Some((from.max(self.range.start), bytes)))
    }

    /// Whether no chunk is left.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub async fn at_end(&mut self) -> Result<bool, StoreError> {
        Ok(self.ahead.is_empty() && self.lines.next().await?.is_none())
    }
}
