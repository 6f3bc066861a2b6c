//! Reads a tar, piece by piece, in bounded memory. It comes from a pod that reads files of tenants and must never be trusted: an entry may
//! have an endless name, any type, and a path that leads elsewhere.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::restore::RestoreError;
use super::tar_header::{BLOCK, Extent, Kind, padding};

/// Most bytes before the content of an entry: its headers, its name, and the list of its parts.
const HEADERS: usize = 2 << 20;

/// An entry of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarEntry {
    /// Its path: plain, relative.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Permissions.
    pub mode: u32,
    /// User id of its owner.
    pub uid: u64,
    /// Group id of its owner.
    pub gid: u64,
    /// Modification time, Unix seconds.
    pub mtime: u64,
    /// Bytes of the file, including holes.
    pub size: u64,
    /// Parts that are not holes.
    pub extents: Vec<Extent>,
}

/// Receives what is in a tar. An error ends the reading.
pub trait Sink: Send + 'static {
    /// Bytes of the tar itself, without its end.
    fn tar(&mut self, _bytes: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }
    /// An entry begins.
    fn entry(&mut self, _entry: &TarEntry) -> Result<(), RestoreError> {
        Ok(())
    }
    /// Bytes of its file, at this offset.
    fn content(&mut self, _at: u64, _bytes: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }
    /// The entry is complete.
    fn end(&mut self, _entry: &TarEntry) -> Result<(), RestoreError> {
        Ok(())
    }
}

enum State {
    /// At the beginning of an entry, or within its first block.
    Header,
    /// Within a long name for the next entry.
    Name { link: bool, left: usize, pad: usize },
    /// Within a block of parts of a sparse file.
    Parts(Box<TarEntry>, u64),
    /// Within the content: bytes of it that are left, and the part and how much of it has been read.
    Content { entry: Box<TarEntry>, stored: u64, part: usize, within: u64 },
    /// Within zeros up to the next block.
    Padding(usize),
    /// After a block of zeros.
    End,
}

/// Reads one tar.
pub struct Scanner {
    state: State,
    block: Vec<u8>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    headers: usize,
    /// Files so far.
    pub files: u64,
    /// Their bytes, including holes.
    pub bytes: u64,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { state: State::Header, block: Vec::new(), name: None, link: None, headers: 0, files: 0, bytes: 0 }
    }
}

fn damaged(why: impl std::fmt::Display) -> RestoreError {
    RestoreError::Damaged(why.to_string())
}

impl Scanner {
    /// Whether a new entry can begin here.
    pub fn between_entries(&self) -> bool {
        matches!(self.state, State::Header) && self.block.is_empty() && self.name.is_none() && self.link.is_none()
    }

    /// Whether the end of the tar was read.
    pub fn ended(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// Reads the next bytes.
    ///
    /// # Errors
    /// When it is not a valid tar, or the sink fails.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut impl Sink) -> Result<(), RestoreError> {
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                State::Header | State::Parts(..) => self.block(bytes, sink)?,
                State::Name { link, left, pad } => {
                    let taken = bytes.len().min(*left + *pad);
                    let (named, rest) = bytes.split_at(taken.min(*left));
                    let name = if *link { &mut self.link } else { &mut self.name };
                    name.get_or_insert_default().extend_from_slice(named);
                    *left -= named.len();
                    *pad -= taken - named.len();
                    let done = *left == 0 && *pad == 0;
                    debug_assert!(rest.len() + named.len() == bytes.len());
                    sink.tar(&bytes[..taken])?;
                    if done {
                        self.state = State::Header;
                    }
                    taken
                }
                State::Content { .. } => self.content(bytes, sink)?,
                State::Padding(left) => {
                    let taken = bytes.len().min(*left);
                    *left -= taken;
                    if *left == 0 {
                        self.state = State::Header;
                    }
                    sink.tar(&bytes[..taken])?;
                    taken
                }
                State::End => {
                    if bytes.iter().any(|b| *b != 0) {
                        return Err(damaged("the tar continues after its end"));
                    }
                    bytes.len()
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Collects a block, and reads it when it is complete.
    fn block(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<usize, RestoreError> {
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() < BLOCK {
            return Ok(taken);
        }
        let block = std::mem::take(&mut self.block);
        self.headers += BLOCK;
        if self.headers > HEADERS {
            return Err(damaged(format!("an entry has more than {HEADERS} bytes before its content")));
        }
        match std::mem::replace(&mut self.state, State::Header) {
            State::Parts(entry, stored) => {
                sink.tar(&block)?;
                self.parts(entry, stored, &block, sink)?;
            }
            _ if block.iter().all(|b| *b == 0) => {
                if self.name.is_some() || self.link.is_some() {
                    return Err(damaged("a name without an entry"));
                }
                self.state = State::End;
            }
            _ => {
                sink.tar(&block)?;
                self.header(Header::from_byte_slice(&block), sink)?;
            }
        }
        Ok(taken)
    }

    fn header(&mut self, header: &Header, sink: &mut impl Sink) -> Result<(), RestoreError> {
        checksum(header)?;
        let size = header.entry_size().map_err(damaged)?;
        let kind = header.entry_type();
        if let EntryType::GNULongName | EntryType::GNULongLink = kind {
            let left = usize::try_from(size).ok().filter(|left| *left > 0 && self.headers + left <= HEADERS);
            let left = left.ok_or_else(|| damaged(format!("an entry has more than {HEADERS} bytes before its content")))?;
            self.headers += left;
            self.state = State::Name { link: kind == EntryType::GNULongLink, left, pad: padding(size).len() };
            return Ok(());
        }
        let path = self.path(header, kind)?;
        let target = self.link.take().map_or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned), |long| Some(text(long)));
        let target = target.map(|target| PathBuf::from(std::ffi::OsStr::from_bytes(&target)));
        let kind = match kind {
            EntryType::Regular | EntryType::GNUSparse => Kind::File,
            EntryType::Link => Kind::HardLink(target.filter(|t| plain(t)).ok_or_else(|| damaged("a hard link that leads elsewhere"))?),
            EntryType::Symlink => Kind::Link(target.ok_or_else(|| damaged("a link without a target"))?),
            EntryType::Directory => Kind::Folder,
            other => return Err(damaged(format!("entry {} has the type {other:?}, which no archive has", path.display()))),
        };
        if kind != Kind::File && size != 0 {
            return Err(damaged(format!("entry {} has content and is no file", path.display())));
        }
        let mut entry = Box::new(TarEntry {
            path,
            kind,
            // What was not kept is empty.
            mode: header.mode().unwrap_or(0o600),
            uid: header.uid().unwrap_or(0),
            gid: header.gid().unwrap_or(0),
            mtime: header.mtime().unwrap_or(0),
            size,
            extents: vec![(0, size)],
        });
        let Some(gnu) = header.as_gnu().filter(|_| header.entry_type() == EntryType::GNUSparse) else {
            return self.begin(entry, size, sink);
        };
        entry.size = gnu.real_size().map_err(damaged)?;
        entry.extents.clear();
        add(&mut entry, &gnu.sparse)?;
        if gnu.is_extended() {
            self.state = State::Parts(entry, size);
            return Ok(());
        }
        self.begin(entry, size, sink)
    }

    fn path(&mut self, header: &Header, kind: EntryType) -> Result<PathBuf, RestoreError> {
        let bytes = self.name.take().map_or_else(|| header.path_bytes().into_owned(), text);
        let path: PathBuf = std::ffi::OsStr::from_bytes(&bytes).into();
        // Only the path of a folder ends with a slash.
        if !plain(&path) || (kind != EntryType::Directory && bytes.ends_with(b"/")) {
            return Err(damaged(format!("entry {} is not a file below the home", path.display())));
        }
        Ok(if kind == EntryType::Directory { path.components().collect() } else { path })
    }

    fn parts(&mut self, mut entry: Box<TarEntry>, stored: u64, block: &[u8], sink: &mut impl Sink) -> Result<(), RestoreError> {
        let mut more = GnuExtSparseHeader::new();
        more.as_mut_bytes().copy_from_slice(block);
        add(&mut entry, &more.sparse)?;
        if more.is_extended() {
            self.state = State::Parts(entry, stored);
            return Ok(());
        }
        self.begin(entry, stored, sink)
    }

    /// The headers of an entry are complete.
    fn begin(&mut self, entry: Box<TarEntry>, stored: u64, sink: &mut impl Sink) -> Result<(), RestoreError> {
        if entry.extents.iter().try_fold(0_u64, |sum, (_, bytes)| sum.checked_add(*bytes)) != Some(stored) {
            return Err(damaged(format!("the parts of {} are not what is stored of it", entry.path.display())));
        }
        self.headers = 0;
        self.files += u64::from(matches!(entry.kind, Kind::File | Kind::HardLink(_)));
        self.bytes = self.bytes.saturating_add(entry.size);
        sink.entry(&entry)?;
        if stored == 0 {
            return sink.end(&entry);
        }
        self.state = State::Content { entry, stored, part: 0, within: 0 };
        Ok(())
    }

    fn content(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<usize, RestoreError> {
        let State::Content { entry, stored, part, within } = &mut self.state else { return Ok(0) };
        // The parts have as many bytes as are stored.
        while entry.extents.get(*part).is_some_and(|(_, length)| *within == *length) {
            (*part, *within) = (*part + 1, 0);
        }
        let (offset, length) = entry.extents.get(*part).copied().unwrap_or_default();
        let taken = usize::try_from(length - *within).unwrap_or(usize::MAX).min(bytes.len());
        let now = &bytes[..taken];
        sink.tar(now)?;
        sink.content(offset + *within, now)?;
        *within += taken as u64;
        *stored -= taken as u64;
        if *stored == 0 {
            let total: u64 = entry.extents.iter().map(|(_, bytes)| bytes).sum();
            let pad = padding(total).len();
            sink.end(entry)?;
            self.state = if pad == 0 { State::Header } else { State::Padding(pad) };
        }
        Ok(taken)
    }
}

/// The checksum of a header counts its own field as spaces.
fn checksum(header: &Header) -> Result<(), RestoreError> {
    let sum = |bytes: &[u8]| bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
    let bytes = header.as_bytes();
    let found = sum(&bytes[..148]) + 8 * u32::from(b' ') + sum(&bytes[156..]);
    if header.cksum().map_err(damaged)? == found { Ok(()) } else { Err(damaged("the checksum of a header is wrong")) }
}

/// Adds parts of a sparse file: in order, and within the file.
fn add(entry: &mut TarEntry, fields: &[GnuSparseHeader]) -> Result<(), RestoreError> {
    for field in fields.iter().take_while(|field| !field.is_empty()) {
        let (offset, bytes) = (field.offset().map_err(damaged)?, field.length().map_err(damaged)?);
        let from = entry.extents.last().map_or(0, |(offset, bytes)| offset + bytes);
        if offset < from || offset.checked_add(bytes).is_none_or(|end| end > entry.size) {
            return Err(damaged(format!("the parts of {} are not in order", entry.path.display())));
        }
        entry.extents.push((offset, bytes));
    }
    Ok(())
}

/// A long name without the zero at its end.
fn text(mut long: Vec<u8>) -> Vec<u8> {
    if long.last() == Some(&0) {
        long.pop();
    }
    long
}

/// Whether a path leads to a place below the folder that it is relative to.
pub fn plain(path: &Path) -> bool {
    path.components().next().is_some() && path.components().all(|c| matches!(c, Component::Normal(_)))
}
