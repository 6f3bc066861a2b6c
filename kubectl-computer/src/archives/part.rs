//! The file of a download until it is whole. It is beside its place, and gets its name only when everything in it was compared: a file with that name is always
//! whole, and an existing file is never replaced. A part is removed only when its content is wrong.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::check::Check;
use super::fault::Fault;

/// A part of a file.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    /// Opens what an earlier command has downloaded of the archive with this `ETag`, or begins.
    ///
    /// # Errors
    /// When it cannot be written, or another command writes it.
    pub fn open(file: &Path, etag: &str) -> Result<Self> {
        let path = path_of(file, etag);
        // Sessions may contain secrets.
        let opened = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let file = opened.with_context(|| format!("{} cannot be written", path.display()))?;
        // Some file systems have no locks: two commands then end with a wrong digest.
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            bail!("another command downloads to {}: wait until it ends", path.display());
        }
        Ok(Self { path, file })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compares what it has.
    ///
    /// # Errors
    /// When it cannot be read, or is not the beginning of what is expected.
    pub fn compare(&mut self, check: &mut Check) -> Result<(), Fault> {
        check.read(&mut self.file).map_err(|fault| fault.context(self.path.display().to_string()))
    }

    /// Gives the whole file its name. Unlike a rename, a link never replaces a file; some file systems have no links.
    ///
    /// # Errors
    /// When there is a file with that name. The part is kept.
    pub fn complete(self, file: &Path) -> Result<()> {
        self.file.sync_all()?;
        let exists = || format!("{} exists: the download is complete in {}", file.display(), self.path.display());
        match std::fs::hard_link(&self.path, file) {
            Ok(()) => std::fs::remove_file(&self.path)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(exists()),
            Err(_) => {
                ensure!(!file.try_exists()?, exists());
                std::fs::rename(&self.path, file)?;
            }
        }
        Ok(())
    }

    /// Removes it: its content is wrong.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).with_context(|| format!("{} cannot be removed", self.path.display()))
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The path of a part. It has the digest of the tag, so that another archive is never continued.
fn path_of(file: &Path, etag: &str) -> PathBuf {
    let digest = hex::encode(Sha256::digest(etag));
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}.part", &digest[..16]));
    name.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let begin = || {
            let mut part = Part::open(&file, "\"tag\"").unwrap();
            part.file.set_len(0).unwrap();
            part.write_all(b"new").unwrap();
            part
        };
        std::fs::write(&file, "old").unwrap();
        let part = begin();
        let path = part.path().to_owned();
        assert!(part.complete(&file).unwrap_err().to_string().contains("complete in"));
        assert_eq!((std::fs::read(&path).unwrap(), std::fs::read(&file).unwrap()), (b"new".to_vec(), b"old".to_vec()));
        std::fs::remove_file(&file).unwrap();
        begin().complete(&file).unwrap();
        assert!(!path.exists() && std::fs::read(&file).unwrap() == b"new");
    }

    /// Their bytes would be mixed.
    #[test]
    fn two_commands_never_write_the_same_part() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let first = Part::open(&file, "\"tag\"").unwrap();
        assert!(Part::open(&file, "\"tag\"").unwrap_err().to_string().contains("another command"));
        assert!(Part::open(&file, "\"other\"").is_ok());
        drop(first);
        assert!(Part::open(&file, "\"tag\"").is_ok());
    }

    /// The tag of a session begins with the digest of its tar, which another archive may have as well.
    #[test]
    fn a_part_of_another_archive_is_not_continued() {
        let file = Path::new("box.tar.zst");
        let (one, other) = (path_of(file, "\"0123456789abcdef0123-1\""), path_of(file, "\"0123456789abcdef0123-2\""));
        assert_ne!(one, other);
        assert!(one.to_str().unwrap().starts_with("box.tar.zst.") && one.extension().unwrap() == "part");
    }
}
