//! The space of a store in a folder. Its last part is a reserve that only manifests and receipts may use, so that a deletion without an archive
//! completes even when archives have filled the store.

use std::path::Path;

use crate::archive::store::StoreError;
use crate::archive::store_failure::Failure;

/// The reserve is this part of the filesystem.
const PART: u64 = 50;
/// Bounds of the reserve, in bytes. A receipt has a few KiB, a manifest at most 1 MiB.
const RESERVE: (u64, u64) = (1 << 20, 256 << 20);
/// Largest reserve of files.
const FILES: u64 = 1024;

/// The space of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size in bytes. 0: the filesystem does not report it.
    pub size: u64,
    /// Bytes that a process without privileges can still write.
    pub free: u64,
    /// Files that the filesystem can have, and can still create. Both are 0 where it has no such limit.
    files: (u64, u64),
}

impl Space {
    /// The space of the filesystem that contains a folder.
    ///
    /// # Errors
    /// When the system does not tell it.
    pub fn of(folder: &Path) -> Result<Self, StoreError> {
        let found =
            rustix::fs::statvfs(folder).map_err(|error| StoreError::Unavailable(Failure::of(&std::io::Error::from(error)).report()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Self { size: bytes(found.f_blocks), free: bytes(found.f_bavail), files: (found.f_files, found.f_favail) })
    }

    /// Whether data of this size leaves the reserve free.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        // Some filesystems in user space report no size.
        if self.size == 0 {
            return true;
        }
        let (files, free_files) = self.files;
        let reserve = (self.size / PART).clamp(RESERVE.0, RESERVE.1);
        let enough_files = files == 0 || free_files > (files / PART).min(FILES);
        enough_files && self.free >= bytes.saturating_add(reserve)
    }
}

/// Whether only the space that is not reserved may be used for this object.
pub(super) fn is_data(key: &str) -> bool {
    key.contains("/chunks/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_follows_the_size_of_the_filesystem_and_counts_files() {
        let space = |size, free| Space { size, free, files: (0, 0) };
        assert!(space(100 << 30, 300 << 20).has_room_for(8 << 20));
        assert!(!space(100 << 30, 260 << 20).has_room_for(8 << 20), "256 MiB are reserved");
        assert!(space(64 << 20, 10 << 20).has_room_for(8 << 20));
        assert!(!space(64 << 20, 9 << 20).has_room_for(8 << 20), "a fiftieth is reserved");
        assert!(!space(1 << 20, 1 << 20).has_room_for(1));
        assert!(space(0, 0).has_room_for(8 << 20), "a filesystem that reports no size");
        for (free, room) in [(1024, false), (1025, true)] {
            assert_eq!(Space { files: (1 << 20, free), ..space(100 << 30, 1 << 30) }.has_room_for(1), room, "{free} files");
        }
    }

    #[test]
    fn only_content_is_kept_out_of_the_reserve() {
        assert!(is_data(&crate::archive::chunk_key("u", "d")));
        for key in [crate::archive::manifest_key("u"), crate::archive::later_manifest_key("u", "c"), crate::archive::receipt_key("u")] {
            assert!(!is_data(&key), "{key}");
        }
    }
}
