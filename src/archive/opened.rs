//! An archive in the store, of either version, for reading: what its manifest says, its entries and its problems. Memory is bounded: of the
//! index, one piece of a list is in memory.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::index::Lines;
use super::manifest::{Entry, Invalid, Manifest, ManifestComputer, Problem, VERSION, ids_of_path};
use super::old_format::{OldManifest, OldSession};
use super::store::{Store, StoreError};

/// Stored bytes above which an archive takes so long that small ones must not wait for it: 16 s on a line of 500 kB/s.
const LARGE: u64 = 8 << 20;
/// Bytes above which it does once they are decompressed.
const LARGE_UNPACKED: u64 = 64 << 20;
/// Objects above which it does.
const LARGE_OBJECTS: u64 = 256;

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

    /// Bytes that are read from the store to read all of it: its objects, and its index. Where the manifest does not say how long the index is, any number.
    pub fn read_bytes(&self) -> u64 {
        let Self::New(m) = self else { return self.stored_bytes() };
        let lists = [&m.chunks, &m.entries, &m.problems];
        if lists.iter().any(|list| list.nested) {
            return u64::MAX;
        }
        lists.iter().flat_map(|list| &list.pieces).map(|piece| piece.size).fold(m.stored_bytes, u64::saturating_add)
    }

    /// Whether reading it takes long: it has many bytes, many objects, or a large index.
    pub fn is_large(&self) -> bool {
        self.read_bytes() > LARGE || self.unpacked_bytes() > LARGE_UNPACKED || self.objects() > LARGE_OBJECTS
    }

    /// Objects with its content.
    pub fn objects(&self) -> u64 {
        match self {
            Self::Old(m) => m.sessions.len() as u64,
            Self::New(m) => m.chunks.count,
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
        let ids: Vec<&str> = ids_of_path(path, matches!(self, Self::Old(_))).collect();
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
    Entry {
        id: session.id.clone(),
        id_bytes: None,
        digest: session.digest.clone(),
        files,
        bytes,
        last_modified,
        size,
        tar_bytes: 0,
        offset: 0,
    }
}
