//! Packs the sessions of a home: every session one deterministic `tar.zst`, spooled to a file and named by its digest.
//!
//! Runs in the archive pod on files that a tenant wrote. It must never follow a symbolic link, open anything but regular files, or leave
//! the home; memory is bounded.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use sha2::{Digest, Sha256};

use super::fixed_size_reader::Exact;
use super::manifest::{MAX_SESSION_BYTES, ProblemKind, SessionEntry, WHOLE_HOME};
use super::problems::Problems;
use super::unreadable::Unreadable;

/// Files of one session, relative to the home, sorted.
type Files = Vec<PathBuf>;

/// The result of a search of the home.
#[derive(Debug, Default)]
pub struct Found {
    /// Files of each session, by the session's path up to the first dot.
    pub sessions: BTreeMap<PathBuf, Files>,
    /// Files that cannot be archived completely.
    pub problems: Problems,
}

/// A packed session: its entry and the spooled object.
#[derive(Debug)]
pub struct Packed {
    /// Entry for the manifest.
    pub entry: SessionEntry,
    /// The object.
    pub object: tempfile::NamedTempFile,
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

/// The folders to search, none below another, so that no file is counted twice.
fn roots(session_paths: &[String]) -> Vec<PathBuf> {
    if session_paths.is_empty() || session_paths.iter().any(|path| path == WHOLE_HOME) {
        return vec![PathBuf::new()];
    }
    // Without a trailing slash.
    let roots: Vec<PathBuf> = session_paths.iter().map(|path| Path::new(path).components().collect()).collect();
    let inner = |(n, root): (usize, &PathBuf)| roots.iter().enumerate().any(|(m, r)| root.starts_with(r) && (root != r || m < n));
    roots.iter().enumerate().filter(|found| !inner(*found)).map(|(_, root)| root.clone()).collect()
}

/// Searches the session paths; an empty list and `.` mean the whole home. A path that does not exist contains no sessions.
///
/// # Errors
/// When the home's device fails.
pub fn find(home: &Path, session_paths: &[String], unreadable: Unreadable) -> std::io::Result<Found> {
    let mut found = Found::default();
    for root in roots(session_paths) {
        // A symbolic link in the path itself would lead elsewhere.
        if root.ancestors().any(|a| home.join(a).symlink_metadata().is_ok_and(|m| m.is_symlink()) && a != Path::new("")) {
            // Unlike a link inside a folder, it hides the whole session path.
            found.problems.add(&root, ProblemKind::Unreadable, "a session path must not lead through a symbolic link");
            continue;
        }
        if home.join(&root).symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            continue;
        }
        walk(home, &root, unreadable, &mut found)?;
    }
    fold(&mut found.sessions, session_paths);
    for files in found.sessions.values_mut() {
        files.sort();
        files.dedup();
    }
    Ok(found)
}

/// If there are more sessions than a manifest can list, each session path becomes one session: none is lost, and the archive is accepted.
fn fold(sessions: &mut BTreeMap<PathBuf, Files>, session_paths: &[String]) {
    // Digest, numbers and names of the fields, as pretty JSON has them.
    let entry = |id: &PathBuf| serde_json::to_string(&id.to_string_lossy()).map_or(0, |text| text.len()) + 320;
    if sessions.keys().map(entry).sum::<usize>() <= MAX_SESSION_BYTES {
        return;
    }
    for (id, files) in std::mem::take(sessions) {
        // Without a trailing slash, which would prevent a match with its files.
        let root = session_paths.iter().find(|root| id.starts_with(root)).map(|root| Path::new(root).components().collect());
        sessions.entry(root.unwrap_or_else(|| PathBuf::from(WHOLE_HOME))).or_default().extend(files);
    }
}

fn walk(home: &Path, root: &Path, unreadable: Unreadable, found: &mut Found) -> std::io::Result<()> {
    for entry in walkdir::WalkDir::new(home.join(root)).follow_links(false).follow_root_links(false).sort_by_file_name() {
        match entry {
            Err(error) if error.io_error().is_some_and(|e| !unreadable.names(e)) => return Err(error.into()),
            Err(error) if error.path().is_some_and(|path| of_the_file_system(home, path)) => {
                found.problems.add(Path::new(LOST_AND_FOUND), ProblemKind::Special, "a folder of the file system itself");
            }
            Err(error) => {
                let path = error.path().and_then(|p| p.strip_prefix(home).ok()).unwrap_or(root).to_owned();
                found.problems.add(&path, ProblemKind::Unreadable, error);
            }
            Ok(entry) => {
                let Ok(path) = entry.path().strip_prefix(home).map(Path::to_path_buf) else { continue };
                let kind = entry.file_type();
                if kind.is_file() {
                    found.sessions.entry(session_of(root, &path)).or_default().push(path);
                } else if kind.is_symlink() {
                    let target = std::fs::read_link(entry.path()).unwrap_or_default();
                    found.problems.add(&path, ProblemKind::Symlink, target.display());
                } else if !kind.is_dir() {
                    found.problems.add(&path, ProblemKind::Special, "not a regular file");
                }
            }
        }
    }
    join_folders(found);
    Ok(())
}

/// A folder that the file system itself keeps at the top of a volume, readable by root only: not content of a machine.
const LOST_AND_FOUND: &str = "lost+found";

fn of_the_file_system(home: &Path, path: &Path) -> bool {
    path == home.join(LOST_AND_FOUND) && path.symlink_metadata().is_ok_and(|m| m.is_dir() && m.uid() == 0)
}

/// Session of a file: its path up to the first dot of its name. A name that begins with a dot is kept whole. In a whole home, each
/// top-level entry is one session.
fn session_of(root: &Path, path: &Path) -> PathBuf {
    if root.as_os_str().is_empty()
        && let Some(top) = path.components().next().filter(|_| path.components().nth(1).is_some())
    {
        return PathBuf::from(top.as_os_str());
    }
    let name = path.file_name().unwrap_or_default().as_bytes();
    let end = name.iter().skip(1).position(|b| *b == b'.').map_or(name.len(), |i| i + 1);
    let stem = std::ffi::OsStr::from_bytes(&name[..end]);
    path.parent().unwrap_or(root).join(stem)
}

/// A folder beside a session file of the same stem belongs to that session (`7f3c.jsonl` and `7f3c/…`).
fn join_folders(found: &mut Found) {
    let ids: Vec<PathBuf> = found.sessions.keys().cloned().collect();
    for id in ids {
        let home = id.ancestors().skip(1).find(|a| found.sessions.contains_key(*a)).map(Path::to_path_buf);
        if let Some((home, files)) = home.and_then(|h| Some((h, found.sessions.remove(&id)?))) {
            found.sessions.entry(home).or_default().extend(files);
        }
    }
}

/// Packs one session. `None`: none of its files could be read.
///
/// # Errors
/// When the spool cannot be written, or the home's device fails. Files of a tenant never cause an error.
pub fn pack(
    home: &Path,
    spool: &Path,
    id: &Path,
    files: &[PathBuf],
    unreadable: Unreadable,
    problems: &mut Problems,
) -> std::io::Result<Option<Packed>> {
    let object = tempfile::NamedTempFile::new_in(spool)?;
    let sink = Hashing { inner: object.reopen()?, hash: Sha256::new(), size: 0 };
    let mut tar = tar::Builder::new(zstd::Encoder::new(sink, 3)?);
    tar.mode(tar::HeaderMode::Deterministic);
    let root = rustix::fs::open(home, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let (mut count, mut bytes, mut newest) = (0, 0, 0);
    for path in files {
        let (file, metadata) = match open(&root, path) {
            Ok(opened) => opened,
            Err(error) if unreadable.names(&error) => {
                problems.add(path, ProblemKind::Unreadable, error);
                continue;
            }
            Err(error) => return Err(error),
        };
        append(&mut tar, path, &metadata, Exact::new(file, metadata.len(), unreadable), problems)?;
        count += 1;
        bytes += metadata.len();
        newest = newest.max(metadata.mtime());
    }
    let sink = tar.into_inner()?.finish()?;
    if count == 0 {
        return Ok(None);
    }
    let entry = SessionEntry {
        id: id.to_string_lossy().into_owned(),
        files: count,
        bytes,
        digest: hex::encode(sink.hash.finalize()),
        size: sink.size,
        last_modified: newest,
    };
    Ok(Some(Packed { entry, object }))
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    path: &Path,
    metadata: &std::fs::Metadata,
    mut file: Exact,
    problems: &mut Problems,
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_metadata_in_mode(metadata, tar::HeaderMode::Deterministic);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(metadata.len());
    tar.append_data(&mut header, path, &mut file)?;
    if let Some(error) = file.broken() {
        problems.add(path, ProblemKind::Unreadable, format!("cut and padded with zeros: {error}"));
    } else if file.changed() {
        problems.add(path, ProblemKind::Changed, "its size changed while it was read");
    }
    Ok(())
}

/// Opens a regular file below the home, without following a link in any part of its path, and without blocking.
fn open(root: &rustix::fd::OwnedFd, path: &Path) -> std::io::Result<(File, std::fs::Metadata)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("no longer a regular file"));
    }
    Ok((file, metadata))
}

struct Hashing {
    inner: File,
    hash: Sha256,
    size: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::unwrap_used)]
mod tests;
