//! An archive in the store, of either version, for reading: what its manifest says, its index line by line, and its chunks in order. Memory is
//! bounded: of the index, one piece of a list is in memory, and of the chunks, those that are read ahead.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio_util::task::AbortOnDropHandle;

use super::chunk_key;
use super::manifest::{Chunk, Entry, FRAME, Invalid, List, Manifest, ManifestComputer, Problem, VERSION, ids_of_path};
use super::old_format::{OldManifest, OldSession};
use super::store::{Store, StoreError};

/// Chunks of one archive that are read ahead.
const AHEAD: usize = 2;

/// The manifest of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Archive {
    /// Version 1: one object a session.
    Old(Arc<OldManifest>),
    /// The current version.
    New(Box<Manifest>),
}

impl Archive {
    /// Parses and checks a manifest of either version.
    ///
    /// # Errors
    /// When it is not a manifest of a known version, or breaks a bound.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        #[derive(serde::Deserialize)]
        struct Version {
            version: u32,
        }
        let version = serde_json::from_slice::<Version>(bytes).map_err(|e| Invalid(e.to_string()))?.version;
        match version {
            1 => OldManifest::parse(bytes).map(|m| Self::Old(Arc::new(m))),
            VERSION => Manifest::parse(bytes).map(|m| Self::New(Box::new(m))),
            other => Err(Invalid(format!("version {other} is not known to this version of the operator: upgrade it"))),
        }
    }

    /// Whose archive it is.
    pub fn computer(&self) -> &ManifestComputer {
        match self {
            Self::Old(m) => &m.computer,
            Self::New(m) => &m.computer,
        }
    }

    /// When it was packed, Unix seconds.
    pub fn created_at(&self) -> i64 {
        match self {
            Self::Old(m) => m.created_at,
            Self::New(m) => m.created_at,
        }
    }

    /// UID of the claim that the home was read through. Empty: not known.
    pub fn custody_claim(&self) -> &str {
        match self {
            Self::Old(m) => &m.custody_claim,
            Self::New(m) => &m.custody_claim,
        }
    }

    /// Why files were left out.
    pub fn left_out_by(&self) -> &str {
        match self {
            Self::Old(m) => &m.left_out_by,
            Self::New(m) => &m.left_out_by,
        }
    }

    /// Sessions.
    pub fn sessions(&self) -> u64 {
        match self {
            Self::Old(m) => m.sessions.len() as u64,
            Self::New(m) => m.sessions,
        }
    }

    /// Bytes of its chunks, or objects, in the store.
    pub fn stored_bytes(&self) -> u64 {
        match self {
            Self::Old(m) => m.sessions.iter().map(|s| s.size).fold(0, u64::saturating_add),
            Self::New(m) => m.stored_bytes,
        }
    }

    /// Bytes that are read when all of it is decompressed.
    pub fn unpacked_bytes(&self) -> u64 {
        match self {
            Self::Old(m) => m.sessions.iter().map(|s| s.bytes).fold(0, u64::saturating_add),
            Self::New(m) => m.tar_bytes,
        }
    }

    /// Problems that lost content.
    pub fn lost(&self) -> u64 {
        match self {
            Self::Old(m) => m.lost(),
            Self::New(m) => m.lost_count,
        }
    }

    /// All problems.
    pub fn problem_count(&self) -> u64 {
        match self {
            Self::Old(m) => m.problem_count,
            Self::New(m) => m.problems.count,
        }
    }

    /// Forgets what reading the content does not need: a manifest of version 1 may list tens of thousands of sessions.
    pub fn forget_names(&mut self) {
        if let Self::Old(m) = self {
            let m = Arc::make_mut(m);
            m.problems = Vec::new();
            for session in &mut m.sessions {
                session.id = String::new();
            }
        }
    }

    /// Its entries, in order.
    pub fn entries(&self, store: &Store) -> Entries {
        match self {
            Self::Old(m) => Entries::Old(Arc::clone(m), 0),
            Self::New(m) => Entries::New(Box::new(Lines::new(store, &m.computer.uid, &m.entries))),
        }
    }

    /// Its problems: of version 1, the first ones.
    pub fn problems(&self, store: &Store) -> Listed<Problem> {
        match self {
            Self::Old(m) => Listed::Here(m.problems.clone().into_iter()),
            Self::New(m) => Listed::Lines(Box::new(Lines::new(store, &m.computer.uid, &m.problems))),
        }
    }

    /// The session that a file belongs to.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub async fn session_of_path(&self, store: &Store, path: &str) -> Result<Option<Entry>, StoreError> {
        let ids: Vec<&str> = ids_of_path(path).collect();
        let (mut entries, mut best) = (self.entries(store), None);
        while let Some(entry) = entries.next().await? {
            // A loose folder or link never contains a file, but a link is one itself.
            let rank = ids.iter().position(|id| *id == entry.id).filter(|rank| entry.files > 0 || *rank == 0);
            if let Some(rank) = rank.filter(|rank| best.as_ref().is_none_or(|(other, _)| rank < other)) {
                best = Some((rank, entry));
            }
        }
        Ok(best.map(|(_, entry)| entry))
    }
}

/// A list that is in the manifest, or in the index.
pub enum Listed<T> {
    /// In the manifest.
    Here(std::vec::IntoIter<T>),
    /// In the index.
    Lines(Box<Lines<T>>),
}

impl<T: DeserializeOwned> Listed<T> {
    /// The next line.
    ///
    /// # Errors
    /// As [`Lines::next`].
    pub async fn next(&mut self) -> Result<Option<T>, StoreError> {
        match self {
            Self::Here(items) => Ok(items.next()),
            Self::Lines(lines) => lines.next().await,
        }
    }
}

/// The entries of an archive.
pub enum Entries {
    /// Of version 1: each has an object of its own.
    Old(Arc<OldManifest>, usize),
    /// Of the current version.
    New(Box<Lines<Entry>>),
    /// One that is known already.
    One(Option<Entry>),
}

impl Entries {
    /// The next one. An entry of version 1 is an object: its digest is that of the object, and it has no place in a tar.
    ///
    /// # Errors
    /// As [`Lines::next`].
    pub async fn next(&mut self) -> Result<Option<Entry>, StoreError> {
        match self {
            Self::Old(manifest, n) => {
                *n += 1;
                Ok(manifest.sessions.get(*n - 1).map(of_old))
            }
            Self::New(lines) => lines.next().await,
            Self::One(entry) => Ok(entry.take()),
        }
    }
}

fn of_old(session: &OldSession) -> Entry {
    let OldSession { files, bytes, last_modified, size, .. } = *session;
    Entry { id: session.id.clone(), digest: session.digest.clone(), files, bytes, last_modified, size, tar_bytes: 0, offset: 0 }
}

/// Reads an object and checks that its bytes have the digest in its name.
///
/// # Errors
/// [`StoreError::Corrupt`] when they do not, or it has another size.
pub async fn blob(store: &Store, uid: &str, chunk: &Chunk) -> Result<Vec<u8>, StoreError> {
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
