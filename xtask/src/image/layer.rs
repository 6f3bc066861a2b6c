//! One file system layer: a tar with fixed times and owners, so that the same files give the same digest.

use std::io;

use tar::{Builder, EntryType, Header};

/// A layer being filled. Paths are relative to the image's root, without a leading slash.
pub struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub fn file(&mut self, path: &str, bytes: &[u8], mode: u32, uid: u32) -> io::Result<()> {
        let mut header = header(EntryType::Regular, mode, uid);
        header.set_size(bytes.len() as u64);
        self.0.append_data(&mut header, path, bytes)
    }

    pub fn directory(&mut self, path: &str, mode: u32, uid: u32) -> io::Result<()> {
        self.0.append_data(&mut header(EntryType::Directory, mode, uid), path, io::empty())
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.0.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)
    }

    pub fn into_bytes(self) -> io::Result<Vec<u8>> {
        self.0.into_inner()
    }
}

/// A header whose group is the user's number and whose time is the epoch.
fn header(kind: EntryType, mode: u32, uid: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(uid.into());
    header.set_gid(uid.into());
    header.set_mtime(0);
    header.set_size(0);
    header
}
