//! Reads the content of an archive of either version, completely or one session, and checks everything that the index says about it: digests,
//! files, bytes, and where each entry lies. What is read goes to a [`Sink`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use zstd::bulk::Decompressor;

use super::frames;
use super::index::{Chunks, Lines};
use super::manifest::{Entry, FRAME, Manifest, Problem};
use super::old_objects;
use super::opened::{Archive, Entries};
use super::restore::RestoreError;
use super::store::{Store, StoreError};
use super::tar_header::END;
use super::tar_scan::{Scanner, Sink};
use super::while_hashed::while_hashed;

mod presence;

use presence::Presence;

/// Entries of the index that wait for their frames: a chunk may contain tens of thousands.
const QUEUED: usize = 4096;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store does not answer, or an object is missing or damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The content is damaged, or the sink failed.
    #[error(transparent)]
    Content(#[from] RestoreError),
}

/// Reads an archive, or one entry of it. Returns the sink.
///
/// # Errors
/// When something is missing, damaged, or not what the index says. What the sink received before must then not be trusted.
pub async fn read<S: Sink>(store: &Store, archive: &Archive, one: Option<Entry>, sink: S) -> Result<S, ReadError> {
    let mut reading = Reading::new(archive, one, sink);
    reading.run(store, archive, || false).await?;
    reading.checked.map_or_else(|| Err(not_as_listed().into()), |checker| Ok(checker.sink))
}

/// A read of an archive, or of one entry, that continues where it was after the store has failed. What was read before is not read again.
pub struct Reading<S> {
    one: Option<Entry>,
    /// `None`: the content is damaged, or the sink failed.
    checked: Option<Box<Checker<S>>>,
    /// Where the bytes begin that are not checked yet.
    at: u64,
    /// Where they began when this turn began.
    before: u64,
    /// Whether the content was read to its end.
    complete: bool,
    /// Entries that the checker has got.
    begun: u64,
    /// Of the list of problems: pieces, lines, and how many of these lost content.
    problems: (u64, u64, u64),
    /// How far the search for what earlier turns have read is. `None`: it has not begun.
    presence: Option<Presence>,
    /// Objects that were read, without those of the index. For the status only.
    pub objects: Arc<AtomicU64>,
}

/// What the index says of an entry, without its id.
struct Expected {
    digest: [u8; 32],
    files: u64,
    bytes: u64,
    tar_bytes: u64,
    offset: u64,
    size: u64,
}

impl Expected {
    fn of(entry: &Entry) -> Result<Self, StoreError> {
        let mut digest = [0; 32];
        hex::decode_to_slice(&entry.digest, &mut digest).map_err(|e| StoreError::Corrupt(format!("the index: {e}")))?;
        let Entry { files, bytes, tar_bytes, offset, size, .. } = *entry;
        Ok(Self { digest, files, bytes, tar_bytes, offset, size })
    }
}

impl<S: Sink> Reading<S> {
    /// A read from the beginning.
    pub fn new(archive: &Archive, one: Option<Entry>, sink: S) -> Self {
        let most = one.as_ref().map_or(archive.unpacked_bytes(), |entry| entry.tar_bytes);
        let at = one.as_ref().map_or(0, |entry| entry.offset);
        Self {
            one,
            checked: Some(Box::new(Checker::new(sink, most))),
            at,
            before: at,
            complete: false,
            begun: 0,
            problems: (0, 0, 0),
            presence: None,
            objects: Arc::default(),
        }
    }

    /// Bytes that were read.
    pub fn read_bytes(&self) -> u64 {
        self.at
    }

    /// Whether it can be continued: it has read something, and only the store failed.
    pub fn can_continue(&self) -> bool {
        self.begun > 0 && self.checked.is_some()
    }

    /// Reads what is left, until `pause` says so: it is asked after each chunk. Returns whether everything was read. An archive of version 1 is read in one go.
    ///
    /// # Errors
    /// As [`read`].
    pub async fn run(&mut self, store: &Store, archive: &Archive, pause: impl FnMut() -> bool + Send) -> Result<bool, ReadError> {
        match archive {
            Archive::Old(manifest) => {
                let mut entries = self.one.clone().map_or_else(|| archive.entries(store), |entry| Entries::One(Some(entry)));
                let mut checker = self.checked.take().ok_or_else(not_as_listed)?;
                while let Some(entry) = entries.next().await? {
                    checker.sink = old_objects::read(store, &manifest.computer.uid, entry, checker.sink).await?;
                    self.objects.fetch_add(1, Ordering::Relaxed);
                }
                self.checked = Some(checker);
                Ok(true)
            }
            Archive::New(manifest) => {
                self.before = self.at;
                if !self.complete {
                    self.complete = self.chunks(store, manifest, archive, pause).await?;
                }
                Ok(self.complete)
            }
        }
    }

    async fn chunks(
        &mut self,
        store: &Store,
        manifest: &Manifest,
        archive: &Archive,
        mut pause: impl FnMut() -> bool + Send,
    ) -> Result<bool, ReadError> {
        let whole = self.one.is_none();
        let range = self.one.as_ref().map_or(0..manifest.stored_bytes, |entry| entry.offset..entry.offset.saturating_add(entry.size));
        let entries = self.one.clone().map_or_else(|| archive.entries(store), |entry| Entries::One(Some(entry)));
        let mut entries = InOrder { entries, end: range.start, sessions: 0, files: 0, bytes: 0 };
        for _ in 0..self.begun {
            entries.next().await?;
        }
        let mut chunks = Chunks::new(store, manifest, self.at..range.end);
        let mut next = entries.next().await?;
        while let Some((at, bytes)) = chunks.next().await? {
            if at != self.at {
                return Err(not_as_listed().into());
            }
            self.chunk(Bytes::from(bytes), &mut entries, &mut next).await?;
            self.objects.fetch_add(1, Ordering::Relaxed);
            if pause() {
                return Ok(false);
            }
        }
        let checker = self.checked.as_ref().ok_or_else(not_as_listed)?;
        let found = (entries.sessions, entries.files, entries.bytes, checker.tar_bytes);
        let known = manifest.stored_digest.is_empty() || manifest.stored_digest == hex::encode(checker.stored.clone().finalize());
        let counted = !whole || (known && found == (manifest.sessions, manifest.files, manifest.bytes, manifest.tar_bytes));
        let complete = checker.complete(whole) && next.is_none() && counted && (!whole || chunks.at_end().await?);
        if complete { Ok(true) } else { Err(not_as_listed().into()) }
    }

    /// Reads the list of what was not archived completely, as [`Reading::run`] does.
    ///
    /// # Errors
    /// When it is missing, damaged, or lists another number of losses than the manifest says.
    pub async fn problems(&mut self, store: &Store, archive: &Archive, mut pause: impl FnMut() -> bool) -> Result<bool, StoreError> {
        let Archive::New(manifest) = archive else { return Ok(true) };
        let (pieces, mut lines, mut lost) = self.problems;
        let mut problems = Lines::<Problem>::after(store, &manifest.computer.uid, &manifest.problems, (pieces, lines)).await?;
        while let Some(problem) = problems.next().await? {
            (lines, lost) = (lines + 1, lost + u64::from(problem.kind.lost()));
            if let Some(pieces) = problems.between_pieces() {
                self.problems = (pieces, lines, lost);
                if pause() {
                    return Ok(false);
                }
            }
        }
        let said = manifest.lost_count;
        let differ = || StoreError::Corrupt(format!("the index lists {lost} files that lost content, the manifest {said}"));
        if lost == said { Ok(true) } else { Err(differ()) }
    }

    /// Looks again for the objects that earlier turns have read, as the last part of a check that took several, and as [`Reading::run`] does.
    ///
    /// # Errors
    /// When one is gone, or the store does not answer.
    pub async fn still_there(&mut self, store: &Store, archive: &Archive, pause: impl FnMut() -> bool) -> Result<bool, StoreError> {
        let Archive::New(manifest) = archive else { return Ok(true) };
        // After a failure it begins again: the next check may come much later.
        let mut presence = self.presence.take().unwrap_or_else(|| Presence::new(self.before));
        let found = presence.run(store, manifest, pause).await;
        // Another check of a damaged archive must not continue here.
        self.checked.take_if(|_| found.as_ref().is_err_and(|error| !matches!(error, StoreError::Unavailable(_))));
        let all = found?;
        self.presence = Some(presence).filter(|_| !all);
        Ok(all)
    }

    /// Checks the next bytes, all of one chunk.
    async fn chunk(&mut self, mut bytes: Bytes, entries: &mut InOrder, next: &mut Option<Entry>) -> Result<(), ReadError> {
        let end = self.at + bytes.len() as u64;
        while !bytes.is_empty() {
            let checker = self.checked.as_mut().ok_or_else(not_as_listed)?;
            while checker.expected.len() < QUEUED
                && let Some(entry) = next.take_if(|entry| entry.offset < end)
            {
                checker.expected.push_back(Expected::of(&entry)?);
                self.begun += 1;
                *next = entries.next().await?;
            }
            // More entries begin in this chunk than are queued: up to the first of them.
            let until = next.as_ref().map_or(end, |entry| entry.offset.clamp(self.at, end));
            let part = bytes.split_to(usize::try_from(until - self.at).unwrap_or(usize::MAX).min(bytes.len()));
            if part.is_empty() {
                return Err(not_as_listed().into());
            }
            let (mut checker, at) = (self.checked.take().ok_or_else(not_as_listed)?, self.at);
            let done = blocking(move || {
                checker.chunk(at, &part)?;
                Ok(checker)
            });
            self.checked = Some(done.await?);
            self.at = until;
        }
        Ok(())
    }
}

fn not_as_listed() -> RestoreError {
    RestoreError::Damaged("its chunks are not what the index says".to_owned())
}

/// The entries of an index that is not trusted, each of which begins where the one before it ends: so no more of them can wait for a chunk
/// than it has bytes.
struct InOrder {
    entries: Entries,
    end: u64,
    sessions: u64,
    files: u64,
    bytes: u64,
}

impl InOrder {
    async fn next(&mut self) -> Result<Option<Entry>, StoreError> {
        let Some(entry) = self.entries.next().await? else { return Ok(None) };
        let end = entry.offset.checked_add(entry.size).filter(|end| entry.offset == self.end && *end > entry.offset);
        self.end = end.ok_or_else(|| StoreError::Corrupt("the index: its entries are not contiguous".to_owned()))?;
        self.sessions += u64::from(entry.files > 0);
        self.files = self.files.saturating_add(entry.files);
        self.bytes = self.bytes.saturating_add(entry.bytes);
        Ok(Some(entry))
    }
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static) -> Result<T, ReadError> {
    let done = crate::runtime::blocking::run(work).await;
    Ok(done.map_err(|e| StoreError::Unavailable(e.to_string()))??)
}

/// Checks chunks against the index.
struct Checker<S> {
    sink: S,
    scanner: Scanner,
    expected: VecDeque<Expected>,
    /// Of the current entry: its digest so far, and bytes of its frames that were read.
    hash: Sha256,
    read: u64,
    of_entry: u64,
    /// Of all chunks so far.
    stored: Sha256,
    tar_bytes: u64,
    /// Most bytes of the tar: a chunk may contain hundreds of gigabytes of zeros.
    most: u64,
    ended: bool,
}

impl<S: Sink> Checker<S> {
    fn new(sink: S, most: u64) -> Self {
        Self {
            sink,
            scanner: Scanner::default(),
            expected: VecDeque::new(),
            hash: Sha256::new(),
            read: 0,
            of_entry: 0,
            stored: Sha256::new(),
            tar_bytes: 0,
            most,
            ended: false,
        }
    }

    fn complete(&self, whole: bool) -> bool {
        self.expected.is_empty() && self.ended == whole
    }

    /// Checks a chunk that begins at this offset. The entries that begin in it are expected.
    fn chunk(&mut self, mut offset: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let (mut stored, mut decompressor) = (std::mem::take(&mut self.stored), Decompressor::new()?);
        let checked = while_hashed(&mut stored, bytes, || {
            frames::each(&mut decompressor, bytes, FRAME, |size, plain| {
                self.frame(offset, size, plain)?;
                offset += size;
                Ok(())
            })
        });
        self.stored = stored;
        checked
    }

    fn frame(&mut self, offset: u64, size: u64, plain: &[u8]) -> Result<(), RestoreError> {
        let damaged = |why: String| RestoreError::Damaged(format!("the frame at {offset} {why}"));
        self.tar_bytes += plain.len() as u64;
        if self.tar_bytes > self.most {
            return Err(damaged("contains more than the manifest says".to_owned()));
        }
        let Some(entry) = self.expected.front() else {
            // Only the end of the tar belongs to no entry.
            if self.ended || plain != END {
                return Err(damaged("belongs to no entry of the index".to_owned()));
            }
            self.ended = true;
            return Ok(());
        };
        if self.ended || (self.read == 0 && entry.offset != offset) {
            return Err(damaged(format!("is not the beginning of an entry, which the index has at {}", entry.offset)));
        }
        self.hash.update(plain);
        self.read += size;
        self.of_entry += plain.len() as u64;
        if self.of_entry > entry.tar_bytes {
            return Err(damaged("is longer than its entry in the index".to_owned()));
        }
        self.scanner.feed(plain, &mut self.sink)?;
        if self.read < entry.size {
            return Ok(());
        }
        let digest = std::mem::take(&mut self.hash).finalize();
        let found = (self.read, self.of_entry, self.scanner.files, self.scanner.bytes);
        let said = (entry.size, entry.tar_bytes, entry.files, entry.bytes);
        if digest[..] != entry.digest || found != said || !self.scanner.between_entries() {
            let shown = format!("ends an entry of (stored, tar, files, bytes) {found:?}, sha256 {}", hex::encode(digest));
            return Err(damaged(format!("{shown}; the index says {said:?}, sha256 {}", hex::encode(entry.digest))));
        }
        (self.read, self.of_entry, self.scanner) = (0, 0, Scanner::default());
        self.expected.pop_front();
        Ok(())
    }
}
