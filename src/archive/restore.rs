//! Writes a session's object to a folder. It must never write outside the folder, overwrite an existing file, or follow or create a link:
//! an archive contains regular files only.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use super::object::{Entry, each_entry};

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

/// Unpacks one object below `folder`.
///
/// # Errors
/// At the first entry that is not a regular file with a plain path, or that exists already.
pub fn unpack(object: impl Read, folder: &Path) -> Result<Taken, RestoreError> {
    let mut taken = Taken::default();
    each_file(object, |path, entry| {
        taken.bytes += write(folder, path, entry)?;
        taken.files += 1;
        Ok(true)
    })?;
    Ok(taken)
}

/// Appends the files of one object to a tar.
///
/// # Errors
/// At the first entry that is not a regular file with a plain path, or when the tar cannot be written.
pub fn append<W: Write>(object: impl Read, to: &mut tar::Builder<W>) -> Result<Taken, RestoreError> {
    let mut taken = Taken::default();
    each_file(object, |path, entry| {
        let mut header = entry.header().clone();
        taken.bytes += entry.size();
        taken.files += 1;
        to.append_data(&mut header, path, entry).map_err(|source| RestoreError::Io { path: path.to_owned(), source })?;
        Ok(true)
    })?;
    Ok(taken)
}

/// Writes one file of an object to `out`.
///
/// # Errors
/// When the object does not contain it: the error names the first files that it contains.
pub fn print(object: impl Read, wanted: &Path, out: &mut impl Write) -> Result<(), RestoreError> {
    let (mut held, mut printed) = (Vec::new(), false);
    each_file(object, |path, entry| {
        if path == wanted {
            std::io::copy(entry, out).map_err(|source| RestoreError::Io { path: wanted.to_owned(), source })?;
            printed = true;
        } else if held.len() < LISTED {
            held.push(format!("  {}", super::cli::plain(&path.to_string_lossy())));
        } else if held.len() == LISTED {
            held.push("  ...".to_owned());
        }
        Ok(!printed)
    })?;
    if printed { Ok(()) } else { Err(RestoreError::NoSuchFile { wanted: wanted.to_owned(), held: held.join("\n") }) }
}

/// Passes every file of an object to `see`, until `see` stops.
fn each_file<R: Read>(object: R, mut see: impl FnMut(&Path, &mut Entry<'_, R>) -> Result<bool, RestoreError>) -> Result<(), RestoreError> {
    each_entry(object, |entry| {
        let path = entry.path()?.into_owned();
        if entry.header().entry_type() != tar::EntryType::Regular || !plain(&path) {
            return Err(RestoreError::Damaged(format!("entry {} is not a regular file below the home", path.display())));
        }
        see(&path, entry)
    })
}

fn plain(path: &Path) -> bool {
    path.components().next().is_some() && path.components().all(|c| matches!(c, Component::Normal(_)))
}

fn write(folder: &Path, path: &Path, content: &mut impl Read) -> Result<u64, RestoreError> {
    let to = folder.join(path);
    let io = |source| RestoreError::Io { path: to.clone(), source };
    // A link planted in the target folder must not lead out of it.
    for parent in path.ancestors().skip(1) {
        if folder.join(parent).symlink_metadata().is_ok_and(|m| m.is_symlink()) && parent != Path::new("") {
            return Err(io(std::io::Error::other("leads through a symbolic link")));
        }
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to).map_err(io)?;
    std::io::copy(content, &mut file).map_err(io)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn object(path: &[u8], kind: tar::EntryType) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.set_entry_type(kind);
        header.set_size(1);
        header.set_mode(0o644);
        header.set_cksum();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append(&header, &b"x"[..]).unwrap();
        zstd::encode_all(tar.into_inner().unwrap().as_slice(), 1).unwrap()
    }

    #[test]
    fn the_error_for_a_missing_file_lists_the_existing_ones() {
        let error = print(object(b"s/one.jsonl", tar::EntryType::Regular).as_slice(), Path::new("s/one"), &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "the session has no file s/one. It contains:\n  s/one.jsonl");
        let mut printed = Vec::new();
        print(object(b"s/one.jsonl", tar::EntryType::Regular).as_slice(), Path::new("s/one.jsonl"), &mut printed).unwrap();
        assert_eq!(printed, b"x");
    }

    /// zstd does not detect a flipped bit in data that it stores uncompressed.
    #[test]
    fn an_object_whose_digest_differs_from_its_name_is_an_error() {
        use sha2::Digest as _;
        let good = object(b"s/one.jsonl", tar::EntryType::Regular);
        let name = hex::encode(sha2::Sha256::digest(&good));
        let print =
            |bytes: &[u8]| crate::archive::object::checked(bytes, &name, |o| super::print(o, Path::new("s/one.jsonl"), &mut Vec::new()));
        print(&good).unwrap();
        let longer = [good.as_slice(), b"x"].concat();
        assert!(print(&longer).unwrap_err().to_string().contains("do not trust"));
    }

    #[test]
    fn an_export_is_a_tar_of_exactly_the_archived_files() {
        let mut tar = tar::Builder::new(Vec::new());
        append(object(b"s/one.jsonl", tar::EntryType::Regular).as_slice(), &mut tar).unwrap();
        append(object(b"s/two.jsonl", tar::EntryType::Regular).as_slice(), &mut tar).unwrap();
        assert!(append(object(b"../out", tar::EntryType::Regular).as_slice(), &mut tar).is_err());
        let bytes = tar.into_inner().unwrap();
        let mut back = tar::Archive::new(bytes.as_slice());
        let names: Vec<_> = back.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, [Path::new("s/one.jsonl"), Path::new("s/two.jsonl")]);
    }

    #[test]
    fn nothing_is_written_outside_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("in");
        std::fs::create_dir(&inside).unwrap();
        for path in [&b"../out"[..], b"/abs", b"a/../../out"] {
            assert!(unpack(object(path, tar::EntryType::Regular).as_slice(), &inside).is_err());
        }
        assert!(unpack(object(b"link", tar::EntryType::Symlink).as_slice(), &inside).is_err());
        assert_eq!(unpack(object(b"file", tar::EntryType::Regular).as_slice(), &inside).unwrap(), Taken { files: 1, bytes: 1 });
        assert!(unpack(object(b"file", tar::EntryType::Regular).as_slice(), &inside).is_err(), "overwritten");
        std::os::unix::fs::symlink(folder.path(), inside.join("planted")).unwrap();
        assert!(unpack(object(b"planted/out", tar::EntryType::Regular).as_slice(), &inside).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something is outside");
    }
}
