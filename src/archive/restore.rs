//! Writes what an archive contains to a folder, or one of its files to an output. It must never write outside the folder, overwrite an
//! existing file, or follow a link.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::tar_header::Kind;
use super::tar_scan::{Sink, TarEntry, plain};

/// How many files a message lists.
const LISTED: usize = 20;

/// Why an archive was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The object is not a valid archive.
    #[error("damaged archive: {0}")]
    Damaged(String),
    /// The session is valid, but does not contain the file.
    #[error("the session has no file {wanted}. It contains:\n{held}")]
    NoSuchFile {
        /// The requested file.
        wanted: PathBuf,
        /// The first files that it contains, one per line.
        held: String,
    },
    /// The folder cannot be written.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// An error while an object is read. Errors of the target name the target themselves.
impl From<std::io::Error> for RestoreError {
    fn from(error: std::io::Error) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// What was extracted from an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Writes entries below a folder, with their modes, times, links and holes; as root also with their owners. A mode never gets the bits that
/// run a program as another user.
pub struct Unpack {
    folder: PathBuf,
    file: Option<File>,
    /// What was written so far.
    pub taken: Taken,
}

impl Unpack {
    /// Below this folder, which is made if it does not exist.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), file: None, taken: Taken::default() }
    }

    /// Where an entry goes. A link planted in the target folder must not lead out of it.
    fn place(&self, path: &Path) -> Result<PathBuf, RestoreError> {
        let to = self.folder.join(path);
        let leads_away = |parent: &Path| self.folder.join(parent).symlink_metadata().is_ok_and(|m| m.is_symlink());
        if !plain(path) || path.ancestors().skip(1).any(|parent| !parent.as_os_str().is_empty() && leads_away(parent)) {
            return Err(at(&to)(std::io::Error::other("leads through a symbolic link")));
        }
        Ok(to)
    }
}

/// Sets owner, mode and time of what was written.
fn set_metadata(entry: &TarEntry, to: &Path) -> std::io::Result<()> {
    if is_root() {
        let id = |id: u64| u32::try_from(id).ok();
        std::os::unix::fs::lchown(to, id(entry.uid), id(entry.gid))?;
    }
    if !matches!(entry.kind, Kind::Link(_)) {
        std::fs::set_permissions(to, Permissions::from_mode(entry.mode & 0o1777))?;
    }
    let time = Timespec { tv_sec: i64::try_from(entry.mtime).unwrap_or(i64::MAX), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Whether files can be given to other users.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::Io { path, source }
}

/// A file with very many names is archived once.
fn elsewhere(first: &Path) -> std::io::Error {
    let first = super::cli::plain(&first.to_string_lossy());
    std::io::Error::other(format!("it is another name of {first}, which is in another session: restore the archive without --session"))
}

impl Sink for Unpack {
    fn entry(&mut self, entry: &TarEntry) -> Result<(), RestoreError> {
        let to = self.place(&entry.path)?;
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(at(parent))?;
        }
        match &entry.kind {
            Kind::File => {
                let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to).map_err(at(&to))?;
                file.set_len(if entry.extents == [(0, entry.size)] { 0 } else { entry.size }).map_err(at(&to))?;
                self.file = Some(file);
            }
            Kind::HardLink(target) => {
                let first = self.place(target)?;
                let linked = std::fs::hard_link(&first, &to);
                linked.map_err(|error| if first.symlink_metadata().is_err() { elsewhere(target) } else { error }).map_err(at(&to))?;
            }
            Kind::Link(target) => std::os::unix::fs::symlink(target, &to).map_err(at(&to))?,
            // It may be there with its content.
            Kind::Folder if to.symlink_metadata().is_ok_and(|m| m.is_dir()) => {}
            Kind::Folder => std::fs::create_dir(&to).map_err(at(&to))?,
        }
        Ok(())
    }

    fn content(&mut self, place: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let Some(file) = &self.file else { return Ok(()) };
        file.write_all_at(bytes, place).map_err(|source| RestoreError::Io { path: self.folder.clone(), source })
    }

    fn end(&mut self, entry: &TarEntry) -> Result<(), RestoreError> {
        self.file = None;
        self.taken.count(entry);
        if matches!(entry.kind, Kind::HardLink(_)) {
            return Ok(());
        }
        let to = self.place(&entry.path)?;
        set_metadata(entry, &to).map_err(at(&to))
    }
}

impl Taken {
    /// Counts an entry.
    pub fn count(&mut self, entry: &TarEntry) {
        self.files += u64::from(matches!(entry.kind, Kind::File | Kind::HardLink(_)));
        self.bytes = self.bytes.saturating_add(entry.size);
    }
}

/// Writes one file to an output.
pub struct Print<W> {
    wanted: PathBuf,
    out: W,
    now: Option<u64>,
    /// Whether it was there.
    pub printed: bool,
    /// It is another name of this file.
    pub same_as: Option<PathBuf>,
    held: Vec<String>,
}

impl<W: Write> Print<W> {
    /// This file.
    pub fn new(wanted: &Path, out: W) -> Self {
        Self { wanted: wanted.to_owned(), out, now: None, printed: false, same_as: None, held: Vec::new() }
    }

    /// The output.
    ///
    /// # Errors
    /// When the file was not there: the error names the first files that were.
    pub fn finish(self) -> Result<W, RestoreError> {
        if self.printed {
            return Ok(self.out);
        }
        Err(RestoreError::NoSuchFile { wanted: self.wanted, held: self.held.join("\n") })
    }

    /// The output, to print another file.
    pub fn into_out(self) -> W {
        self.out
    }

    /// Zeros up to this offset: holes.
    fn up_to(&mut self, place: u64) -> Result<(), RestoreError> {
        let Some(now) = &mut self.now else { return Ok(()) };
        let hole = place.saturating_sub(*now);
        *now = place;
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), hole), &mut self.out).map_err(at(&self.wanted))?;
        Ok(())
    }
}

impl<W: Write + Send + 'static> Sink for Print<W> {
    fn entry(&mut self, entry: &TarEntry) -> Result<(), RestoreError> {
        if entry.path == self.wanted {
            match &entry.kind {
                Kind::File => self.now = Some(0),
                Kind::HardLink(target) => self.same_as = Some(target.clone()),
                Kind::Link(_) | Kind::Folder => {}
            }
        } else if self.held.len() < LISTED {
            self.held.push(format!("  {}", super::cli::plain(&entry.path.to_string_lossy())));
        } else if self.held.len() == LISTED {
            self.held.push("  ...".to_owned());
        }
        Ok(())
    }

    fn content(&mut self, place: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        if self.now.is_none() {
            return Ok(());
        }
        self.up_to(place)?;
        self.now = Some(place + bytes.len() as u64);
        self.out.write_all(bytes).map_err(at(&self.wanted))
    }

    fn end(&mut self, entry: &TarEntry) -> Result<(), RestoreError> {
        if self.now.is_some() {
            self.up_to(entry.size)?;
            self.printed = true;
            self.now = None;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
