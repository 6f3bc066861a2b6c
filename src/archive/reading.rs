//! Reads the content of an archive of either version, completely or one session, and checks everything that the index says about it: digests,
//! files, bytes, and where each entry lies. What is read goes to a [`Sink`].

use std::collections::VecDeque;
use std::io::Write;

use bytes::Bytes;
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};
use zstd::bulk::Decompressor;
use zstd::stream::write::Decoder;

use super::frames;
use super::manifest::{Entry, FRAME, Manifest};
use super::old_format::{WINDOW_LOG, object_key};
use super::opened::{Archive, Chunks, Entries};
use super::restore::RestoreError;
use super::store::{Store, StoreError};
use super::tar_header::END;
use super::tar_scan::{Scanner, Sink};

/// Entries of the index that wait for their frames: a chunk may contain tens of thousands.
const QUEUED: usize = 4096;
/// Bytes of an old object that are decompressed at once.
const AT_ONCE: usize = 1 << 20;

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
    match archive {
        Archive::Old(manifest) => {
            let mut entries = one.map_or_else(|| archive.entries(store), |entry| Entries::One(Some(entry)));
            let mut sink = sink;
            while let Some(entry) = entries.next().await? {
                sink = object(store, &manifest.computer.uid, entry, sink).await?;
            }
            Ok(sink)
        }
        Archive::New(manifest) => chunks(store, manifest, archive, one, sink).await,
    }
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

async fn chunks<S: Sink>(store: &Store, manifest: &Manifest, archive: &Archive, one: Option<Entry>, sink: S) -> Result<S, ReadError> {
    let whole = one.is_none();
    let range = one.as_ref().map_or(0..manifest.stored_bytes, |entry| entry.offset..entry.offset.saturating_add(entry.size));
    let most = one.as_ref().map_or(manifest.tar_bytes, |entry| entry.tar_bytes);
    let entries = one.map_or_else(|| archive.entries(store), |entry| Entries::One(Some(entry)));
    let mut entries = InOrder { entries, end: range.start, sessions: 0, files: 0, bytes: 0 };
    let mut chunks = Chunks::new(store, manifest, range);
    let mut checker = Checker::new(sink, most).map_err(RestoreError::from)?;
    let mut next = entries.next().await?;
    while let Some((mut at, bytes)) = chunks.next().await? {
        let (end, mut bytes) = (at + bytes.len() as u64, Bytes::from(bytes));
        while !bytes.is_empty() {
            while checker.expected.len() < QUEUED
                && let Some(entry) = next.take_if(|entry| entry.offset < end)
            {
                checker.expected.push_back(Expected::of(&entry)?);
                next = entries.next().await?;
            }
            // More entries begin in this chunk than are queued: up to the first of them.
            let until = next.as_ref().map_or(end, |entry| entry.offset.clamp(at, end));
            let part = bytes.split_to(usize::try_from(until - at).unwrap_or(usize::MAX).min(bytes.len()));
            if part.is_empty() {
                return Err(not_as_listed().into());
            }
            checker = blocking(move || {
                checker.chunk(at, &part)?;
                Ok(checker)
            })
            .await?;
            at = until;
        }
    }
    let found = (entries.sessions, entries.files, entries.bytes, checker.tar_bytes);
    let counted = !whole || found == (manifest.sessions, manifest.files, manifest.bytes, manifest.tar_bytes);
    let complete = checker.complete(whole) && next.is_none() && counted && (!whole || chunks.at_end().await?);
    if complete { Ok(checker.sink) } else { Err(not_as_listed().into()) }
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
        self.end = end.ok_or_else(|| StoreError::Corrupt("the index: its entries do not lie one after the other".to_owned()))?;
        self.sessions += u64::from(entry.files > 0);
        self.files = self.files.saturating_add(entry.files);
        self.bytes = self.bytes.saturating_add(entry.bytes);
        Ok(Some(entry))
    }
}

/// Reads the list of what was not archived completely.
///
/// # Errors
/// When it is missing, damaged, or lists another number of losses than the manifest says.
pub async fn problems(store: &Store, archive: &Archive) -> Result<(), StoreError> {
    let Archive::New(manifest) = archive else { return Ok(()) };
    let (mut problems, mut lost) = (archive.problems(store), 0);
    while let Some(problem) = problems.next().await? {
        lost += u64::from(problem.kind.lost());
    }
    let said = manifest.lost_count;
    if lost == said {
        Ok(())
    } else {
        Err(StoreError::Corrupt(format!("the index lists {lost} files that lost content, the manifest {said}")))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static) -> Result<T, ReadError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|e| StoreError::Unavailable(e.to_string()))??)
}

/// Checks chunks against the index.
struct Checker<S> {
    sink: S,
    decompressor: Decompressor<'static>,
    scanner: Scanner,
    expected: VecDeque<Expected>,
    /// Of the current entry: its digest so far, and bytes of its frames that were read.
    hash: Sha256,
    read: u64,
    of_entry: u64,
    tar_bytes: u64,
    /// Most bytes of the tar: a chunk may contain hundreds of gigabytes of zeros.
    most: u64,
    ended: bool,
}

impl<S: Sink> Checker<S> {
    fn new(sink: S, most: u64) -> std::io::Result<Self> {
        Ok(Self {
            sink,
            decompressor: Decompressor::new()?,
            scanner: Scanner::default(),
            expected: VecDeque::new(),
            hash: Sha256::new(),
            read: 0,
            of_entry: 0,
            tar_bytes: 0,
            most,
            ended: false,
        })
    }

    fn complete(&self, whole: bool) -> bool {
        self.expected.is_empty() && self.ended == whole
    }

    /// Checks a chunk that begins at this offset. The entries that begin in it are expected.
    fn chunk(&mut self, mut offset: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let mut decompressor = std::mem::replace(&mut self.decompressor, Decompressor::new()?);
        frames::each(&mut decompressor, bytes, FRAME, |size, plain| {
            self.frame(offset, size, plain)?;
            offset += size;
            Ok::<(), RestoreError>(())
        })?;
        self.decompressor = decompressor;
        Ok(())
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

/// Reads an object of version 1.
async fn object<S: Sink>(store: &Store, uid: &str, entry: Entry, sink: S) -> Result<S, ReadError> {
    let key = object_key(uid, &entry.digest);
    let mut stream = store.stream(&key).await?;
    let mut decoder = Decoder::new(Unpacked { scanner: Scanner::default(), sink, failed: None }).map_err(RestoreError::from)?;
    decoder.window_log_max(WINDOW_LOG).map_err(RestoreError::from)?;
    let (mut hash, mut pending, mut open) = (Sha256::new(), Vec::new(), true);
    while open {
        match stream.next().await {
            Some(bytes) => pending.extend_from_slice(&bytes.map_err(|e| StoreError::Unavailable(e.to_string()))?),
            None => open = false,
        }
        if open && pending.len() < AT_ONCE {
            continue;
        }
        let (bytes, most) = (std::mem::take(&mut pending), entry.bytes);
        (decoder, hash) = blocking(move || {
            hash.update(&bytes);
            let written = decoder.write_all(&bytes).and_then(|()| if open { Ok(()) } else { decoder.flush() });
            if let Some(error) = decoder.get_mut().failed.take() {
                return Err(error);
            }
            written?;
            if decoder.get_ref().scanner.bytes > most {
                return Err(RestoreError::Damaged("it contains more than the manifest says".to_owned()));
            }
            Ok((decoder, hash))
        })
        .await
        .map_err(|error| named(&key, error))?;
    }
    let found = hex::encode(hash.finalize());
    let Unpacked { scanner, sink, .. } = decoder.into_inner();
    let damaged = |why: String| named(&key, RestoreError::Damaged(why).into());
    if found != entry.digest {
        return Err(damaged(format!("its bytes have sha256 {found}")));
    }
    if !scanner.ended() {
        return Err(damaged("its tar has no end".to_owned()));
    }
    if (scanner.files, scanner.bytes) != (entry.files, entry.bytes) {
        let (files, bytes) = (scanner.files, scanner.bytes);
        return Err(damaged(format!("it contains {files} files of {bytes} bytes, not {} of {}", entry.files, entry.bytes)));
    }
    Ok(sink)
}

fn named(key: &str, error: ReadError) -> ReadError {
    match error {
        ReadError::Content(RestoreError::Damaged(why)) => ReadError::Content(RestoreError::Damaged(format!("{key}: {why}"))),
        other => other,
    }
}

/// Scans what is decompressed.
struct Unpacked<S> {
    scanner: Scanner,
    sink: S,
    failed: Option<RestoreError>,
}

impl<S: Sink> Write for Unpacked<S> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.scanner.feed(bytes, &mut self.sink).map_err(|error| {
            let shown = std::io::Error::other(error.to_string());
            self.failed = Some(error);
            shown
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
