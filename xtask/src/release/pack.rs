//! The tar.gz files of a release: sorted entries, and the time of the commit. The same files give the same bytes.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::image::{Layer, gzip};

/// A file of an archive.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its path in the archive.
    pub path: String,
    /// Its content.
    pub bytes: Vec<u8>,
    /// Whether it is a program.
    pub executable: bool,
}

impl Entry {
    /// A file that is not a program.
    pub fn new(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), bytes: bytes.into(), executable: false }
    }
}

/// Packs the files in the order of their paths.
///
/// # Errors
/// When a path is not valid in a tar file.
pub fn archive(mut entries: Vec<Entry>, seconds: u64) -> Result<Vec<u8>> {
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let mut tar = Layer::at(seconds);
    for Entry { path, bytes, executable } in &entries {
        tar.file(path, bytes, if *executable { 0o755 } else { 0o644 }, 0).with_context(|| format!("pack {path}"))?;
    }
    Ok(gzip(&tar.into_bytes()?)?)
}

/// Every file below a folder, with its path from there.
///
/// # Errors
/// When a file cannot be read, or a name is not text.
pub fn folder(folder: &Path, prefix: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).with_context(|| format!("the name of {}", path.display()))?;
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            entries.extend(self::folder(&path, &format!("{name}/"))?);
        } else {
            entries.push(Entry::new(name, fs::read(&path).with_context(|| format!("read {}", path.display()))?));
        }
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// The content of a file in an archive.
///
/// # Errors
/// When the archive cannot be read or has no such file.
pub fn extract(archive: &[u8], wanted: &str) -> Result<Vec<u8>> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    for entry in tar.entries()? {
        let mut entry = entry?;
        if entry.path()?.as_ref() == Path::new(wanted) {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes)?;
            return Ok(bytes);
        }
    }
    anyhow::bail!("the archive has no file {wanted}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn two_packings_of_the_same_files_are_equal_in_any_order() {
        let one = || vec![Entry::new("b/c", "2"), Entry { executable: true, ..Entry::new("a", "1") }];
        let packed = archive(one(), 1_700_000_000).unwrap();
        assert_eq!(packed, archive(one().into_iter().rev().collect(), 1_700_000_000).unwrap());
        assert_ne!(packed, archive(one(), 1_700_000_001).unwrap());
        assert_eq!(extract(&packed, "b/c").unwrap(), b"2");
        assert!(extract(&packed, "c").is_err());
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(packed.as_slice()));
        let headers: Vec<_> = tar.entries().unwrap().map(|entry| entry.unwrap().header().clone()).collect();
        let read = |header: &tar::Header| (header.mtime().unwrap(), header.mode().unwrap(), header.uid().unwrap());
        assert_eq!(headers.iter().map(read).collect::<Vec<_>>(), [(1_700_000_000, 0o755, 0), (1_700_000_000, 0o644, 0)]);
    }

    #[test]
    fn a_folder_is_read_with_the_paths_from_there() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("z")).unwrap();
        fs::write(root.path().join("z/a"), "1").unwrap();
        fs::write(root.path().join("b"), "2").unwrap();
        let paths: Vec<String> = folder(root.path(), "book/").unwrap().into_iter().map(|entry| entry.path).collect();
        assert_eq!(paths, ["book/b", "book/z/a"]);
    }
}
