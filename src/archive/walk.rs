//! Searches the session paths of a home. Yields what is found in a fixed order, the files of a session one after the other, and each folder
//! after its content. It must never follow a symbolic link or leave the home; memory is bounded, whatever the number of files.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::folder_names::{Kind, Name, Names};
use super::manifest::{ProblemKind, WHOLE_HOME};
use super::unreadable::Unreadable;

/// Memory for names, of all folders together. A folder takes half of what is left.
const NAMES: usize = 32 * 1024 * 1024;
/// What a folder may take in any case. A path has 4096 bytes, so at most 2048 folders lie in each other.
const LEAST: usize = 16 * 1024;
/// How often a folder is read before the folders around it give their memory to it. They are read again later.
const SCANS: u32 = 16;
/// A folder that the file system itself keeps at the top of a volume, readable by root only: not content of a machine.
const LOST_AND_FOUND: &str = "lost+found";

/// Something in a home.
#[derive(Debug)]
pub enum Found {
    /// A regular file, a symbolic link, or a folder whose content was yielded before.
    Item {
        /// Id of its session. `None`: a folder or a link that belongs to no session.
        session: Option<Rc<Path>>,
        /// Its path relative to the home.
        path: PathBuf,
        /// What it is.
        kind: Kind,
    },
    /// What cannot be archived.
    Problem {
        /// Its path relative to the home.
        path: PathBuf,
        /// What is wrong.
        kind: ProblemKind,
        /// Details.
        detail: String,
    },
}

/// A folder that is being searched.
struct Level {
    path: PathBuf,
    session: Option<Rc<Path>>,
    names: Names,
    last: Option<Name>,
    /// How often it was read.
    scans: u32,
    /// The session of the last file.
    group: Option<Rc<Path>>,
}

/// A search.
pub struct Walk {
    home: Rc<OwnedFd>,
    roots: std::vec::IntoIter<PathBuf>,
    whole: bool,
    levels: Vec<Level>,
    unreadable: Unreadable,
    budget: usize,
    progress: Arc<AtomicU64>,
    /// Reads of folders so far.
    #[cfg(test)]
    scans: std::cell::Cell<usize>,
}

/// Checks a session path of a class: `.` for the whole home, or relative without a part that is `.` or `..`.
///
/// # Errors
/// A message that names the path.
pub fn check_path(path: &str) -> Result<(), String> {
    let plain = |path: &str| !path.starts_with('/') && path.split('/').all(|part| part != "." && part != "..");
    if path == WHOLE_HOME || (plain(path) && !path.is_empty()) {
        return Ok(());
    }
    Err(format!(
        "session path {path:?} cannot be used: name a folder relative to the home, without a part that is '.' or '..', or '.' alone for the whole home"
    ))
}

/// The folders to search, none below another, so that no file is archived twice. An empty path is the whole home.
pub fn roots(session_paths: &[String]) -> Vec<PathBuf> {
    if session_paths.is_empty() || session_paths.iter().any(|path| path == WHOLE_HOME) {
        return vec![PathBuf::new()];
    }
    // Without a trailing slash.
    let roots: Vec<PathBuf> = session_paths.iter().map(|path| Path::new(path).components().collect()).collect();
    let inner = |(n, root): (usize, &PathBuf)| roots.iter().enumerate().any(|(m, r)| root.starts_with(r) && (root != r || m < n));
    let mut outer: Vec<PathBuf> = roots.iter().enumerate().filter(|found| !inner(*found)).map(|(_, root)| root.clone()).collect();
    // Files of one session are neighbours.
    outer.sort();
    outer
}

/// Opens a path below the home, without following a link in any part of it, and without blocking.
pub fn open(home: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    // The kernel refuses O_NONBLOCK together with O_PATH, which never blocks.
    let nonblock = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK };
    let flags = flags | nonblock | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat2(home, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?)
}

impl Walk {
    /// Searches these folders of a home.
    pub fn new(home: Rc<OwnedFd>, roots: Vec<PathBuf>, unreadable: Unreadable) -> Self {
        let whole = roots.iter().any(|root| root.as_os_str().is_empty());
        Self {
            home,
            roots: roots.into_iter(),
            whole,
            levels: Vec::new(),
            unreadable,
            budget: NAMES,
            progress: Arc::default(),
            #[cfg(test)]
            scans: std::cell::Cell::default(),
        }
    }

    /// Counts what is read in `progress`.
    #[must_use]
    pub fn counted(self, progress: Arc<AtomicU64>) -> Self {
        Self { progress, ..self }
    }

    /// Takes this much memory for names.
    #[must_use]
    pub fn with_memory(self, budget: usize) -> Self {
        Self { budget, ..self }
    }

    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// When the home's device fails.
    pub fn find_next(&mut self) -> io::Result<Option<Found>> {
        loop {
            let found = match self.levels.last_mut().map(|level| level.names.pop()) {
                Some(Some(name)) => self.name(name)?,
                Some(None) => self.exhausted()?,
                None => match self.roots.next() {
                    Some(root) => self.root(root)?,
                    None => return Ok(None),
                },
            };
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// Begins with a session path. One that does not exist contains no sessions.
    fn root(&mut self, root: PathBuf) -> io::Result<Option<Found>> {
        let kind = match open(&self.home, &root, OFlags::PATH).and_then(|fd| File::from(fd).metadata()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // A link inside a folder is archived; here it hides the whole session path.
            Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => return Ok(Some(behind_a_link(root))),
            Ok(metadata) if metadata.is_symlink() => return Ok(Some(behind_a_link(root))),
            Err(error) => return self.failed(root, error),
            Ok(metadata) if metadata.is_dir() => return self.enter(root, None),
            Ok(metadata) if metadata.is_file() => Kind::File,
            Ok(_) => Kind::Special,
        };
        let name = Name::new(std::os::unix::ffi::OsStrExt::as_bytes(root.file_name().unwrap_or_default()), kind);
        let session = root.with_file_name(name.stem());
        Ok(Some(item(Some(session.into()), root, kind)))
    }

    /// A name of the current folder.
    fn name(&mut self, name: Name) -> io::Result<Option<Found>> {
        // In a whole home, each entry at the top is one session.
        let top = self.whole && self.levels.len() == 1;
        let own = name.kind == Kind::File || (name.kind == Kind::Folder && top);
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        let (path, id) = (level.path.join(name.text()), level.path.join(name.stem()));
        let of_group = level.group.clone().filter(|group| **group == *id);
        let session = level.session.clone().or(of_group).or_else(|| own.then(|| id.into()));
        if name.kind == Kind::File {
            level.group.clone_from(&session);
        }
        let kind = name.kind;
        level.last = Some(name);
        if kind == Kind::Folder { self.enter(path, session) } else { Ok(Some(item(session, path, kind))) }
    }

    /// Begins with a folder.
    fn enter(&mut self, path: PathBuf, session: Option<Rc<Path>>) -> io::Result<Option<Found>> {
        match self.names(&path, None) {
            Ok(names) => {
                self.levels.push(Level { path, session, names, last: None, scans: 1, group: None });
                Ok(None)
            }
            Err(error) => self.failed(path, error),
        }
    }

    /// The current folder has no more names in memory.
    fn exhausted(&mut self) -> io::Result<Option<Found>> {
        let Some(level) = self.levels.pop() else { return Ok(None) };
        if level.names.more.is_none() {
            let home = level.path.as_os_str().is_empty();
            return Ok((!home).then(|| item(level.session, level.path, Kind::Folder)));
        }
        if level.scans.is_multiple_of(SCANS) {
            self.levels.iter_mut().for_each(|outer| outer.names.forget(outer.last.as_ref()));
        }
        match self.names(&level.path, level.last.as_ref()) {
            Ok(names) => {
                self.levels.push(Level { names, scans: level.scans + 1, ..level });
                Ok(None)
            }
            Err(error) => self.failed(level.path, error),
        }
    }

    fn names(&self, path: &Path, last: Option<&Name>) -> io::Result<Names> {
        #[cfg(test)]
        self.scans.set(self.scans.get() + 1);
        let held: usize = self.levels.iter().map(|level| level.names.cost()).sum();
        let budget = (self.budget.saturating_sub(held) / 2).max(LEAST.min(self.budget));
        Names::after(open(&self.home, path, OFlags::RDONLY | OFlags::DIRECTORY)?, last, budget, &self.progress)
    }

    fn failed(&self, path: PathBuf, error: io::Error) -> io::Result<Option<Found>> {
        if !self.unreadable.names(&error) {
            return Err(error);
        }
        if path == Path::new(LOST_AND_FOUND)
            && open(&self.home, &path, OFlags::PATH).and_then(|fd| File::from(fd).metadata()).is_ok_and(|m| m.is_dir() && m.uid() == 0)
        {
            return Ok(Some(problem(path, ProblemKind::Special, "a folder of the file system itself")));
        }
        Ok(Some(problem(path, ProblemKind::Unreadable, error)))
    }
}

fn item(session: Option<Rc<Path>>, path: PathBuf, kind: Kind) -> Found {
    match kind {
        Kind::Special => problem(path, ProblemKind::Special, "not a regular file"),
        kind => Found::Item { session, path, kind },
    }
}

fn problem(path: PathBuf, kind: ProblemKind, detail: impl std::fmt::Display) -> Found {
    Found::Problem { path, kind, detail: detail.to_string() }
}

fn behind_a_link(root: PathBuf) -> Found {
    problem(root, ProblemKind::Unreadable, "a session path must not lead through a symbolic link")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
