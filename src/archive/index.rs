//! The index of an archive in the store, line by line, and its chunks in order. Both come from a pod that must never be trusted. Memory is
//! bounded: one piece of a list, and the chunks that are read ahead.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::Range;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::copies;
use super::manifest::{CHUNK, Chunk, FRAME, List, Manifest, distinct};
use super::store::{Store, StoreError};

/// Chunks of one archive that are read ahead: this many, and two of the largest at most.
const AHEAD: usize = 16;
/// How long one object is requested again after its first failure while the store is unavailable. The objects before it are not read again.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long one object is requested again when others wait for the turn of its reader.
const STUCK: Duration = Duration::from_secs(30);
/// Longest pause between two requests about one object.
const PAUSE: Duration = Duration::from_secs(20);

/// Most pieces of a list that is nested: a pod that is not trusted must not cause any number of requests with one manifest.
const PIECES: usize = 4_000_000;

/// Reads an object and checks that its bytes have the digest in its name. A store that is unavailable for some time does not end the read,
/// and wrong bytes are read a second time: some stores deliver them once.
///
/// # Errors
/// [`StoreError::Corrupt`] when the bytes do not have the digest, or the object has another size.
pub async fn blob(store: &Store, uid: &str, chunk: &Chunk) -> Result<Vec<u8>, StoreError> {
    if !chunk.is_valid() {
        return Err(corrupt(format_args!("it names {:?} of {} bytes, which cannot be a chunk", chunk.digest, chunk.size)));
    }
    let read = || copies::read(store, uid, chunk);
    match patiently(store, &chunk.digest, read).await {
        Err(error @ StoreError::Corrupt(_)) => {
            tracing::info!(uid, digest = chunk.digest, %error, "an object of an archive has wrong bytes; reading it again");
            patiently(store, &chunk.digest, read).await
        }
        read => read,
    }
}

/// The result of a request about one object, which is repeated while the store is unavailable: for [`PATIENCE`], or for [`STUCK`] when others wait.
///
/// # Errors
/// That of the last request.
pub async fn patiently<T, R>(store: &Store, digest: &str, request: impl Fn() -> R) -> Result<T, StoreError>
where
    R: Future<Output = Result<T, StoreError>>,
{
    let (mut since, mut pause) = (None, Duration::from_secs(1));
    loop {
        let error = match request().await {
            Err(error @ StoreError::Unavailable(_)) => error,
            other => return other,
        };
        let failing = since.get_or_insert_with(Instant::now).elapsed() + pause;
        if failing >= PATIENCE || (failing >= STUCK && store.is_wanted_by_others()) {
            return Err(error);
        }
        tracing::info!(digest, %error, "the store does not answer about an object of an archive; retrying");
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(PAUSE);
    }
}

fn corrupt(why: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("the index: {why}"))
}

/// The pieces of a list that contain its lines, in order.
pub struct Pieces {
    store: Store,
    uid: String,
    nested: bool,
    /// Those that the manifest names.
    named: std::vec::IntoIter<Chunk>,
    /// Those that the last of them names.
    inner: std::vec::IntoIter<Chunk>,
    /// How many a nested list may still name.
    left: usize,
}

impl Pieces {
    /// Of this list.
    pub fn new(store: &Store, uid: &str, list: &List) -> Self {
        let (named, inner) = (list.pieces.clone().into_iter(), Vec::new().into_iter());
        Self { store: store.clone(), uid: uid.to_owned(), nested: list.nested, named, inner, left: PIECES }
    }

    /// The next one.
    ///
    /// # Errors
    /// As [`Lines::next`].
    pub async fn next(&mut self) -> Result<Option<Chunk>, StoreError> {
        loop {
            if let Some(piece) = self.inner.next() {
                return Ok(Some(piece));
            }
            let Some(piece) = self.named.next() else { return Ok(None) };
            if !self.nested {
                return Ok(Some(piece));
            }
            let text = self.text(&piece).await?;
            let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
            let inner: Vec<Chunk> = lines.map(serde_json::from_slice).collect::<Result<_, _>>().map_err(corrupt)?;
            self.left = self.left.checked_sub(inner.len()).ok_or_else(|| corrupt("it names too many pieces"))?;
            if !distinct(&inner) {
                return Err(corrupt("it names a piece twice"));
            }
            self.inner = inner.into_iter();
        }
    }

    /// The content of a piece.
    async fn text(&self, piece: &Chunk) -> Result<Vec<u8>, StoreError> {
        if !piece.is_piece() {
            return Err(corrupt(format_args!("{:?} of {} bytes cannot be a piece of it", piece.digest, piece.size)));
        }
        let bytes = blob(&self.store, &self.uid, piece).await?;
        super::frames::only(&bytes, FRAME).map_err(corrupt)
    }
}

/// The lines of a list of the index.
pub struct Lines<T> {
    pieces: Pieces,
    /// Pieces whose lines have begun.
    begun: u64,
    /// Lines that are left. `None`: as many as there are.
    left: Option<u64>,
    text: Vec<u8>,
    at: usize,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// Of this list.
    pub fn new(store: &Store, uid: &str, list: &List) -> Self {
        Self::of(Pieces::new(store, uid, list), Some(list.count))
    }

    /// Of this list, whatever its number of lines.
    pub fn uncounted(store: &Store, uid: &str, list: &List) -> Self {
        Self::of(Pieces::new(store, uid, list), None)
    }

    fn of(pieces: Pieces, left: Option<u64>) -> Self {
        Self { pieces, begun: 0, left, text: Vec::new(), at: 0, of: PhantomData }
    }

    /// The rest of a list after this many of its pieces, which have this many lines.
    ///
    /// # Errors
    /// As [`Lines::next`], and when it is not so long.
    pub async fn after(store: &Store, uid: &str, list: &List, (pieces, lines): (u64, u64)) -> Result<Self, StoreError> {
        let left = list.count.checked_sub(lines).ok_or_else(|| corrupt("it has fewer lines than were read"))?;
        let mut rest = Self { begun: pieces, ..Self::of(Pieces::new(store, uid, list), Some(left)) };
        for _ in 0..pieces {
            rest.pieces.next().await?.ok_or_else(|| corrupt("it has fewer pieces than were read"))?;
        }
        Ok(rest)
    }

    /// How many pieces have begun, if all of their lines have been read.
    pub fn between_pieces(&self) -> Option<u64> {
        (self.at == self.text.len()).then_some(self.begun)
    }

    /// The next line; `None` after as many as the manifest says.
    ///
    /// # Errors
    /// When the store does not answer, or the index is damaged.
    pub async fn next(&mut self) -> Result<Option<T>, StoreError> {
        while self.at == self.text.len() {
            let Some(piece) = self.pieces.next().await? else {
                let left = self.left.unwrap_or(0);
                return if left == 0 { Ok(None) } else { Err(corrupt(format_args!("{left} lines are missing"))) };
            };
            (self.text, self.at) = (self.pieces.text(&piece).await?, 0);
            self.begun += 1;
        }
        let rest = &self.text[self.at..];
        let end = rest.iter().position(|b| *b == b'\n').ok_or_else(|| corrupt("a line has no end"))?;
        let line = serde_json::from_slice(&rest[..end]).map_err(corrupt)?;
        self.at += end + 1;
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1).ok_or_else(|| corrupt("it has more lines than the manifest says"))?;
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
    ahead: VecDeque<(Range<u64>, Ahead)>,
    /// Most of them.
    most: usize,
}

impl Chunks {
    /// The chunks in this range of bytes.
    pub fn new(store: &Store, manifest: &Manifest, range: Range<u64>) -> Self {
        Self { lines: Lines::new(store, &manifest.computer.uid, &manifest.chunks), range, offset: 0, ahead: VecDeque::new(), most: AHEAD }
    }

    /// Reads none ahead, so that one chunk is in memory.
    #[must_use]
    pub fn one_at_a_time(self) -> Self {
        Self { most: 1, ..self }
    }

    /// The next bytes, all of one chunk within the range, and their offset.
    ///
    /// # Errors
    /// When the store does not answer, or a chunk is damaged or missing.
    pub async fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        while self.has_room() && self.offset < self.range.end {
            let Some(chunk) = self.lines.next().await? else {
                return Err(corrupt("its chunks have fewer bytes than the manifest says"));
            };
            let (from, to) = (self.offset, self.offset.saturating_add(chunk.size));
            self.offset = to;
            if to > self.range.start {
                let (store, uid) = (self.lines.pieces.store.clone(), self.lines.pieces.uid.clone());
                let read = tokio::spawn(async move { blob(&store, &uid, &chunk).await });
                self.ahead.push_back((from..to, AbortOnDropHandle::new(read)));
            }
        }
        let Some((Range { start: from, .. }, read)) = self.ahead.pop_front() else { return Ok(None) };
        let mut bytes = read.await.map_err(|e| StoreError::Unavailable(e.to_string()))??;
        let within = |place: u64| usize::try_from(place.saturating_sub(from)).unwrap_or(usize::MAX);
        bytes.truncate(within(self.range.end));
        let skip = within(self.range.start).min(bytes.len());
        bytes.drain(..skip);
        Ok(Some((from.max(self.range.start), bytes)))
    }

    /// Whether another chunk may be read ahead.
    fn has_room(&self) -> bool {
        let bytes: u64 = self.ahead.iter().map(|(range, _)| range.end - range.start).sum();
        self.ahead.len() < self.most && bytes <= CHUNK as u64
    }

    /// Whether no chunk is left, and no byte of the last one.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub async fn at_end(&mut self) -> Result<bool, StoreError> {
        Ok(self.ahead.is_empty() && self.offset == self.range.end && self.lines.next().await?.is_none())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A list with fewer lines than were read of it once counted as one of any length.
    #[tokio::test]
    async fn a_list_that_is_shorter_than_what_was_read_of_it_is_damaged() {
        let store = Store::new(std::sync::Arc::new(object_store::memory::InMemory::new()));
        let list = List { count: 3, pieces: vec![Chunk { digest: "0".repeat(64), size: 1 }], nested: false };
        for read in [(1, 4), (1, u64::MAX), (2, 3), (u64::MAX, 0)] {
            let rest = Lines::<Chunk>::after(&store, "u", &list, read).await;
            assert!(matches!(rest, Err(StoreError::Corrupt(_))), "{read:?}");
        }
        assert_eq!(Lines::<Chunk>::after(&store, "u", &list, (1, 3)).await.unwrap().next().await.unwrap(), None);
    }
}
