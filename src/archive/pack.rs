//! Packs the session paths of a home into an archive, in one pass, without temporary files: each object is sent as soon as it is full.
//!
//! Runs in the archive pod on files that a tenant wrote. It must never follow a symbolic link, open anything but regular files, or leave
//! the home; memory is bounded.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

use super::chunks::{Described, Sizes, Take, Writer};
use super::fixed_size_reader::Exact;
use super::folder_names::Kind as Found;
use super::holes;
use super::home_size::Tally;
use super::manifest::{Manifest, ProblemKind};
use super::problems::Problems;
use super::tar_header::{self, Extent, Kind, padding};
use super::unreadable::Unreadable;
use super::walk::{self, Walk, open};

/// Bytes that are read at once.
const BUFFER: usize = 128 * 1024;
/// Memory for the names of files that have several, in a session and in all of them. Above it, another name of a file is archived as a copy.
const LINKS: usize = 16 * 1024 * 1024;
/// Bytes of files that are archived again because they have names in several sessions. Above it, another name is a hard link to the other session:
/// 65,000 names of one file must not become 65,000 copies (L1).
const COPIES: u64 = if cfg!(test) { 300_000 } else { 1 << 30 };
/// Files up to this size are always copied, as other small files are.
const SMALL: u64 = 64 * 1024;

/// What is packed, and how.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Where the home is mounted.
    pub home: &'a Path,
    /// The session paths; none, or `.`: the whole home.
    pub session_paths: &'a [String],
    /// What to do with a file that cannot be read.
    pub unreadable: Unreadable,
    /// Sizes of frames and chunks.
    pub sizes: Sizes,
    /// Grows with everything that is read: without growth, the volume does not answer.
    pub progress: Arc<AtomicU64>,
    /// Counts what is packed.
    pub tally: Arc<Tally>,
}

/// Packs a home. The objects go to `take`; the manifest gets what it says about them. Returns what could not be archived.
///
/// # Errors
/// When the home's device fails, or an object is not taken. Files of a tenant never cause an error.
pub fn pack<'a>(request: &Request<'_>, manifest: &mut Manifest, take: &'a mut Take<'a>) -> io::Result<Problems> {
    pack_with(request, manifest, take, holes::extents)
}

/// Finds the parts of a file that are not holes.
type Extents = fn(&File, &Metadata, &mut u64, &AtomicU64) -> io::Result<Option<Vec<Extent>>>;

fn pack_with<'a>(request: &Request<'_>, manifest: &mut Manifest, take: &'a mut Take<'a>, extents: Extents) -> io::Result<Problems> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let home = Rc::new(rustix::fs::open(request.home, flags, Mode::empty())?);
    let roots = walk::roots(request.session_paths);
    let mut packer = Packer {
        home: Rc::clone(&home),
        roots: roots.clone(),
        unreadable: request.unreadable,
        extents,
        zeros: holes::ZEROS,
        out: Writer::new(request.sizes, take)?,
        problems: Problems::default(),
        session: None,
        entry: Described::default(),
        began: false,
        names: Links::default(),
        everywhere: Links::default(),
        copied: 0,
        buffer: vec![0; BUFFER],
        progress: Arc::clone(&request.progress),
        tally: Arc::clone(&request.tally),
    };
    let mut walk = Walk::new(home, roots, request.unreadable).counted(Arc::clone(&request.progress));
    manifest.session_paths = request.session_paths.to_vec();
    while let Some(found) = walk.find_next()? {
        request.progress.fetch_add(1, Ordering::Relaxed);
        match found {
            walk::Found::Problem { path, kind, detail } => packer.problem(&path, kind, detail)?,
            walk::Found::Item { session, path, kind } => {
                if session.is_none() || packer.session != session {
                    packer.end(manifest)?;
                }
                packer.item(session, &path, kind)?;
            }
        }
    }
    packer.end(manifest)?;
    packer.out.finish(manifest)?;
    manifest.lost_count = packer.problems.lost;
    Ok(packer.problems)
}

struct Packer<'a> {
    home: Rc<OwnedFd>,
    roots: Vec<PathBuf>,
    unreadable: Unreadable,
    extents: Extents,
    /// Holes that may still be read as zeros.
    zeros: u64,
    out: Writer<'a>,
    problems: Problems,
    session: Option<Rc<Path>>,
    entry: Described,
    /// Something of the entry was written.
    began: bool,
    /// Files of the session with several names.
    names: Links,
    /// Larger files of all sessions with several names.
    everywhere: Links,
    /// Bytes of files that are in another session as well.
    copied: u64,
    buffer: Vec<u8>,
    progress: Arc<AtomicU64>,
    tally: Arc<Tally>,
}

/// First names of files that have several, by device and inode.
#[derive(Default)]
struct Links {
    names: HashMap<(u64, u64), PathBuf>,
    bytes: usize,
}

impl Links {
    fn get(&self, file: &Metadata) -> Option<&PathBuf> {
        self.names.get(&(file.dev(), file.ino())).filter(|_| file.nlink() > 1)
    }

    fn add(&mut self, path: &Path, file: &Metadata) {
        self.bytes += path.as_os_str().len() + 100;
        if self.bytes <= LINKS {
            self.names.insert((file.dev(), file.ino()), path.to_owned());
        }
    }
}

/// Bytes of a file that are on its disk.
fn on_disk(file: &Metadata) -> u64 {
    file.len().min(file.blocks().saturating_mul(512))
}

/// What was read of an item before anything of it is written: an item that cannot be read must leave nothing in the tar or in the index.
enum Content {
    File(Option<Vec<Extent>>),
    HardLink(PathBuf),
    Link(PathBuf),
    Folder,
}

/// What changes with the content of a file.
fn state(metadata: &Metadata) -> (u64, [i64; 4]) {
    (metadata.len(), [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()])
}

/// Copies everything, with few requests to the kernel.
fn copy(from: &mut impl io::Read, to: &mut impl io::Write, buffer: &mut [u8], progress: &AtomicU64, tally: &Tally) -> io::Result<u64> {
    let mut copied = 0;
    loop {
        match from.read(buffer) {
            Ok(0) => return Ok(copied),
            Ok(read) => {
                progress.fetch_add(1, Ordering::Relaxed);
                tally.bytes.fetch_add(read as u64, Ordering::Relaxed);
                to.write_all(&buffer[..read])?;
                copied += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Packer<'_> {
    fn problem(&mut self, path: &Path, kind: ProblemKind, detail: impl std::fmt::Display) -> io::Result<()> {
        let line = self.problems.add(path, kind, detail);
        self.out.problem(&line)
    }

    /// The entry is complete.
    fn end(&mut self, manifest: &mut Manifest) -> io::Result<()> {
        let entry = std::mem::take(&mut self.entry);
        self.session = None;
        self.names = Links::default();
        if !std::mem::take(&mut self.began) {
            return Ok(());
        }
        manifest.sessions += u64::from(entry.files > 0);
        self.tally.sessions.store(manifest.sessions, Ordering::Relaxed);
        manifest.files += entry.files;
        manifest.bytes = manifest.bytes.saturating_add(entry.bytes);
        self.out.end_entry(&entry)
    }

    fn item(&mut self, session: Option<Rc<Path>>, path: &Path, kind: Found) -> io::Result<()> {
        let flags = if kind == Found::File { OFlags::RDONLY } else { OFlags::PATH };
        let opened = open(&self.home, path, flags).and_then(|fd| {
            let file = File::from(fd);
            let metadata = file.metadata()?;
            let same = match kind {
                Found::File => metadata.is_file(),
                Found::Link => metadata.is_symlink(),
                _ => metadata.is_dir(),
            };
            if !same {
                return Err(io::Error::other("it is no longer what it was when the folder was read"));
            }
            let content = self.content(kind, &file, &metadata)?;
            Ok((file, metadata, content))
        });
        let (file, metadata, content) = match opened {
            Ok(opened) => opened,
            Err(error) if self.unreadable.names(&error) => return self.problem(path, ProblemKind::Unreadable, error),
            Err(error) => return Err(error),
        };
        if !self.began {
            let id = session.as_deref().unwrap_or(path).as_os_str().as_bytes().to_vec();
            self.entry = Described { id, last_modified: metadata.mtime(), ..Described::default() };
        }
        (self.session, self.began) = (session, true);
        match content {
            Content::File(extents) => self.file(path, file, &metadata, extents),
            Content::HardLink(first) => {
                self.count(&metadata);
                tar_header::write(&mut self.out, path, &Kind::HardLink(first), &metadata, &[])
            }
            Content::Link(target) => self.link(path, target, &metadata),
            Content::Folder => tar_header::write(&mut self.out, path, &Kind::Folder, &metadata, &[]),
        }
    }

    fn content(&mut self, kind: Found, file: &File, metadata: &Metadata) -> io::Result<Content> {
        Ok(match kind {
            Found::File => match self.first_name(metadata).cloned() {
                Some(first) => Content::HardLink(first),
                None => Content::File((self.extents)(file, metadata, &mut self.zeros, &self.progress)?),
            },
            Found::Link => {
                let target = rustix::fs::readlinkat(file, "", Vec::new())?;
                Content::Link(PathBuf::from(std::ffi::OsStr::from_bytes(target.as_bytes())))
            }
            _ => Content::Folder,
        })
    }

    fn file(&mut self, path: &Path, mut file: File, metadata: &Metadata, extents: Option<Vec<Extent>>) -> io::Result<()> {
        self.count(metadata);
        self.entry.bytes = self.entry.bytes.saturating_add(metadata.len());
        tar_header::write(&mut self.out, path, &Kind::File, metadata, extents.as_deref().unwrap_or_default())?;
        let (mut changed, mut broken, mut stored) = (false, None, 0);
        for (at, bytes) in extents.unwrap_or_else(|| vec![(0, metadata.len())]) {
            file.seek(SeekFrom::Start(at))?;
            let mut exact = Exact::new(file.try_clone()?, bytes, self.unreadable);
            stored += copy(&mut exact, &mut self.out, &mut self.buffer, &self.progress, &self.tally)?;
            broken = exact.broken().or(broken);
            changed |= exact.cut();
        }
        self.out.write_all(padding(stored))?;
        if let Some(error) = broken {
            return self.problem(path, ProblemKind::Unreadable, format!("cut and padded with zeros: {error}"));
        }
        if changed || state(&file.metadata()?) != state(metadata) {
            return self.problem(path, ProblemKind::Changed, "it changed while it was read");
        }
        // Another name of a file that lost content is read and listed itself.
        self.remember(path, metadata);
        Ok(())
    }

    fn count(&mut self, file: &Metadata) {
        self.entry.files += 1;
        self.entry.last_modified = self.entry.last_modified.max(file.mtime());
    }

    /// The name that another name of a file is a hard link to: in the session, or in an earlier one when too much was copied.
    fn first_name(&self, file: &Metadata) -> Option<&PathBuf> {
        let enough = self.copied.saturating_add(on_disk(file)) > COPIES;
        self.names.get(file).or_else(|| self.everywhere.get(file).filter(|_| enough))
    }

    /// Remembers the first name of a file with several, in its session and in all of them.
    fn remember(&mut self, path: &Path, file: &Metadata) {
        if file.nlink() < 2 {
            return;
        }
        self.names.add(path, file);
        if self.everywhere.get(file).is_some() {
            self.copied = self.copied.saturating_add(on_disk(file));
        } else if on_disk(file) > SMALL {
            self.everywhere.add(path, file);
        }
    }

    fn link(&mut self, path: &Path, target: PathBuf, metadata: &Metadata) -> io::Result<()> {
        if !self.leads_into_the_archive(path, &target) {
            self.problem(path, ProblemKind::Symlink, target.display())?;
        }
        tar_header::write(&mut self.out, path, &Kind::Link(target), metadata, &[])
    }

    /// Whether a link, as it is written, leads to a place below the session paths.
    fn leads_into_the_archive(&self, link: &Path, target: &Path) -> bool {
        let mut place = link.parent().unwrap_or(Path::new("")).to_owned();
        for part in target.components() {
            match part {
                Component::Normal(name) => place.push(name),
                Component::CurDir => {}
                Component::ParentDir if place.pop() => {}
                _ => return false,
            }
        }
        self.roots.iter().any(|root| place.starts_with(root))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
