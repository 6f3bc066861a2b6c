//! The names in one folder, in order, in bounded memory. A folder may have millions of names of 255 bytes: if they do not fit, the folder is
//! scanned again for the names after the last one. Nothing is written to a disk.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, statat};

/// Memory of a name besides its bytes.
const BESIDE: usize = 64;

/// What a name is. Names of one stem are sorted by it: files first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// A FIFO, socket or device.
    Special,
    /// A folder.
    Folder,
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    bytes: Box<[u8]>,
    stem: usize,
    /// What it is.
    pub kind: Kind,
}

impl Name {
    /// A name. The stem of a folder is its whole name; others end before the first dot that is not their first byte.
    pub fn new(bytes: &[u8], kind: Kind) -> Self {
        let dot = bytes.iter().skip(1).position(|b| *b == b'.').map_or(bytes.len(), |i| i + 1);
        Self { bytes: bytes.into(), stem: if kind == Kind::Folder { bytes.len() } else { dot }, kind }
    }

    /// The name.
    pub fn text(&self) -> &OsStr {
        OsStr::from_bytes(&self.bytes)
    }

    /// What files and a folder of one session have in common.
    pub fn stem(&self) -> &OsStr {
        OsStr::from_bytes(&self.bytes[..self.stem])
    }

    /// Memory that it takes.
    fn cost(&self) -> usize {
        self.bytes.len() + BESIDE
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let stems = self.bytes[..self.stem].cmp(&other.bytes[..other.stem]);
        stems.then_with(|| self.kind.cmp(&other.kind)).then_with(|| self.bytes.cmp(&other.bytes))
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The next names of a folder.
#[derive(Debug, Default)]
pub struct Names {
    /// In order.
    pub found: BTreeSet<Name>,
    /// The first one that did not fit. Whatever comes after it is found by the next scan.
    pub more: Option<Name>,
    cost: usize,
}

impl Names {
    /// The names after this one, as many as fit in this memory, and one at least. Each name that is read counts in `progress`.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn after(folder: OwnedFd, last: Option<&Name>, budget: usize, progress: &AtomicU64) -> io::Result<Self> {
        let mut found = Self::default();
        let mut folder = Dir::new(folder)?;
        while let Some(entry) = folder.read() {
            let entry = entry?;
            progress.fetch_add(1, Ordering::Relaxed);
            let bytes = entry.file_name().to_bytes();
            if bytes == b"." || bytes == b".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Some file systems do not say.
                FileType::Unknown => FileType::from_raw_mode(statat(folder.fd()?, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?.st_mode),
                known => known,
            };
            found.add(Name::new(bytes, kind_of(kind)), last, budget);
        }
        Ok(found)
    }

    fn add(&mut self, name: Name, last: Option<&Name>, budget: usize) {
        if last.is_some_and(|last| name <= *last) || self.more.as_ref().is_some_and(|more| name >= *more) {
            return;
        }
        self.cost += name.cost();
        self.found.insert(name);
        while self.cost > budget && self.found.len() > 1 {
            let dropped = self.found.pop_last();
            self.cost -= dropped.as_ref().map_or(0, Name::cost);
            self.more = dropped;
        }
    }

    /// Takes the first one.
    pub fn pop(&mut self) -> Option<Name> {
        let name = self.found.pop_first()?;
        self.cost -= name.cost();
        Some(name)
    }

    /// Memory that they take.
    pub fn cost(&self) -> usize {
        self.cost
    }

    /// Forgets the names after this one: they are found by another scan.
    pub fn forget(&mut self, last: Option<&Name>) {
        if let (Some(last), Some(_)) = (last, self.found.first()) {
            *self = Self { more: Some(last.clone()), ..Self::default() };
        }
    }
}

fn kind_of(kind: FileType) -> Kind {
    match kind {
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Link,
        FileType::Directory => Kind::Folder,
        _ => Kind::Special,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A flat folder of a million long names would take hundreds of megabytes.
    #[test]
    fn every_name_is_found_once_and_in_order_however_few_fit_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let wanted: Vec<String> = (0..300).map(|n| format!("{:03}.{}", n * 7 % 300, "x".repeat(n % 90))).collect();
        for name in &wanted {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        for budget in [1, 1000, 20_000, usize::MAX] {
            let (mut found, mut last) = (Vec::new(), None);
            loop {
                let mut names =
                    Names::after(std::fs::File::open(folder.path()).unwrap().into(), last.as_ref(), budget, &AtomicU64::new(0)).unwrap();
                assert!(names.cost() <= budget || names.found.len() == 1);
                while let Some(name) = names.pop() {
                    found.push(name.text().to_owned().into_string().unwrap());
                    last = Some(name);
                }
                assert_eq!(names.cost(), 0);
                if names.more.is_none() {
                    break;
                }
            }
            let mut sorted = wanted.clone();
            sorted.sort();
            assert_eq!(found, sorted, "{budget}");
        }
    }

    #[test]
    fn files_of_a_stem_come_before_its_folder() {
        let mut names = [("a.b", Kind::Folder), ("a", Kind::Folder), ("a-b", Kind::File), ("a.jsonl", Kind::File), ("a.x", Kind::Link)]
            .map(|(name, kind)| Name::new(name.as_bytes(), kind));
        names.sort();
        let order: Vec<_> = names.iter().map(|n| n.text().to_str().unwrap()).collect();
        assert_eq!(order, ["a.jsonl", "a.x", "a", "a-b", "a.b"]);
    }
}
