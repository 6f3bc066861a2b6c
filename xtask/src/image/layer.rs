//! A tar file with fixed times and owners, so that the same files give the same digest: a layer of an image, or an archive of a release.

use std::io::{self, Write as _};

use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

/// "Unknown" in the header of a gzip file, so that the machine does not change its bytes.
const NO_SYSTEM: u8 = 255;

/// A tar file being filled. Paths are relative, without a leading slash.
pub struct Layer {
    tar: Builder<Vec<u8>>,
    seconds: u64,
}

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}

impl Layer {
    /// Every entry has the time of the epoch.
    pub fn new() -> Self {
        Self::at(0)
    }

    /// Every entry has this time, in seconds since the epoch.
    pub fn at(seconds: u64) -> Self {
        Self { tar: Builder::new(Vec::new()), seconds }
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When the path is not valid in a tar file.
    pub fn file(&mut self, path: &str, bytes: &[u8], mode: u32, uid: u32) -> io::Result<()> {
        let mut header = self.header(EntryType::Regular, mode, uid);
        header.set_size(bytes.len() as u64);
        self.tar.append_data(&mut header, path, bytes)
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// As [`Self::file`].
    pub fn directory(&mut self, path: &str, mode: u32, uid: u32) -> io::Result<()> {
        let mut header = self.header(EntryType::Directory, mode, uid);
        self.tar.append_data(&mut header, path, io::empty())
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// As [`Self::file`].
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let mut header = self.header(EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, path, target)
    }

    /// The whole file.
    ///
    /// # Errors
    /// When it cannot be completed.
    pub fn into_bytes(self) -> io::Result<Vec<u8>> {
        self.tar.into_inner()
    }

    /// A header whose group is the user's number and whose time is fixed.
    fn header(&self, kind: EntryType, mode: u32, uid: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid.into());
        header.set_gid(uid.into());
        header.set_mtime(self.seconds);
        header.set_size(0);
        header
    }
}

/// Compresses with gzip, without a time or a name in the header.
///
/// # Errors
/// Never in practice: the output is memory.
pub fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).operating_system(NO_SYSTEM).write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}
