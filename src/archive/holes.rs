//! Finds the holes of a file. They are never read: a hole of terabytes costs nothing.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::tar_header::Extent;

/// Most parts of a file: a tenant decides how many holes it has, and the reader of the tar has to keep them in memory.
const MOST: usize = 60_000;
/// Files of this size are read with their holes: that costs nothing, and does not depend on what the file system says.
const SMALL: u64 = 1 << 20;
/// Files up to this size are read with their holes if the file system contradicts itself.
const CHECKED: u64 = 1 << 30;
/// Blocks that a file system may count besides the content of a file.
const BESIDES: u64 = 64 << 10;
/// Zeros that may be stored because a file has too many holes, beyond as many bytes as it has content.
const ZEROS: u64 = 1 << 30;

/// The parts of a file that are not holes, the last of which ends at the end of the file. `None`: it has no holes, or its file system does
/// not tell.
///
/// # Errors
/// When the device fails, or the file has more holes than an archive can keep.
pub fn extents(file: &File, metadata: &Metadata) -> io::Result<Option<Vec<Extent>>> {
    parts(metadata.len(), metadata.blocks().saturating_mul(512), MOST, |from| seek(file, from))
}

/// The parts, at most `most` of them, of a file of `size` bytes for which the file system has allocated `allocated`.
fn parts(size: u64, allocated: u64, most: usize, mut seek: impl FnMut(SeekFrom) -> Result<u64, Errno>) -> io::Result<Option<Vec<Extent>>> {
    if size <= SMALL || allocated >= size {
        return Ok(None);
    }
    let (mut extents, mut at, mut data): (Vec<Extent>, u64, u64) = (Vec::new(), 0, 0);
    while at < size {
        let begin = match seek(SeekFrom::Data(at)) {
            Ok(begin) if begin < size => begin,
            // Only a hole is left.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let end = seek(SeekFrom::Hole(begin))?.min(size);
        // Some file systems answer every question with its own offset: the file is read as it is.
        if begin < at || end <= begin {
            return Ok(None);
        }
        extents.push((begin, end - begin));
        (at, data) = (end, data + (end - begin));
        if extents.len() >= 2 * most {
            join(&mut extents, most);
        }
    }
    // Some file systems report a hole where there is content that is not on the disk yet.
    if data + data / 64 + BESIDES < allocated && size <= CHECKED {
        return Ok(None);
    }
    join(&mut extents, most);
    if extents.iter().map(|(_, bytes)| bytes).sum::<u64>() > data.saturating_mul(2).saturating_add(ZEROS) {
        return Err(io::Error::other(format!("it has more than {most} holes")));
    }
    if extents.as_slice() == [(0, size)] {
        return Ok(None);
    }
    if extents.last().is_none_or(|(begin, bytes)| begin + bytes < size) {
        // GNU tar gives the file its size with an empty part at its end.
        extents.push((size, 0));
    }
    Ok(Some(extents))
}

/// Joins the parts with the smallest holes between them, until at most `most` are left.
fn join(extents: &mut Vec<Extent>, most: usize) {
    let surplus = extents.len().saturating_sub(most);
    if surplus == 0 {
        return;
    }
    let mut gaps: Vec<u64> = extents.windows(2).map(|pair| pair[1].0 - (pair[0].0 + pair[0].1)).collect();
    let largest = *gaps.select_nth_unstable(surplus - 1).1;
    let mut equal = surplus - gaps.iter().filter(|gap| **gap < largest).count();
    extents.dedup_by(|next, last| {
        let gap = next.0 - (last.0 + last.1);
        let joined = gap < largest || (gap == largest && equal > 0);
        if joined {
            equal -= usize::from(gap == largest);
            last.1 = next.0 + next.1 - last.0;
        }
        joined
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn extents_of(size: u64, data: &[(u64, &[u8])]) -> Option<Vec<Extent>> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in data {
            file.write_all_at(bytes, *at).unwrap();
        }
        extents(&file, &file.metadata().unwrap()).unwrap()
    }

    #[test]
    fn only_data_is_a_part() {
        const MIB: u64 = 1 << 20;
        assert_eq!(extents_of(0, &[]), None);
        assert_eq!(extents_of(10, &[(0, b"0123456789")]), None);
        assert_eq!(extents_of(1 << 42, &[]), Some(vec![(1 << 42, 0)]), "a hole of 4 TiB");
        let found = extents_of(9 * MIB, &[(MIB, &[1; 8192]), (5 * MIB, &[2; 4096])]);
        assert_eq!(found, Some(vec![(MIB, 8192), (5 * MIB, 4096), (9 * MIB, 0)]));
        let found = extents_of(4 * MIB, &[(3 * MIB, &vec![1; 1 << 20])]);
        assert_eq!(found, Some(vec![(3 * MIB, MIB)]));
    }

    /// A file system that answers from a list of parts.
    fn of(size: u64, allocated: u64, most: usize, data: &[Extent]) -> io::Result<Option<Vec<Extent>>> {
        parts(size, allocated, most, |from| match from {
            SeekFrom::Data(at) => {
                let part = data.iter().find(|(begin, bytes)| begin + bytes > at);
                part.map(|(begin, _)| at.max(*begin)).ok_or(Errno::NXIO)
            }
            SeekFrom::Hole(at) => {
                Ok(data.iter().find(|(begin, bytes)| *begin <= at && at < begin + bytes).map_or(at, |(begin, bytes)| begin + bytes))
            }
            _ => Err(Errno::INVAL),
        })
    }

    /// Each hole takes room in the header, and a tenant decides how many there are.
    #[test]
    fn the_smallest_holes_of_a_file_with_very_many_are_stored_as_zeros() {
        let parts: Vec<Extent> = (0..300).map(|n| (n * 8192 + if n > 150 { 1 << 30 } else { 0 }, 4096)).collect();
        let size = 2 << 30;
        let found = of(size, 300 * 4096, 100, &parts).unwrap().unwrap();
        assert!(found.len() <= 101, "{}", found.len());
        assert!(found.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        assert!(parts.iter().all(|part| found.iter().any(|(begin, bytes)| *begin <= part.0 && part.0 + part.1 <= begin + bytes)));
        let stored: u64 = found.iter().map(|(_, bytes)| bytes).sum();
        assert!(stored <= 300 * 8192, "large holes stay holes: {stored}");
    }

    /// L8: parts of 4 KiB at equal distances of 1 GiB were once joined to terabytes of zeros.
    #[test]
    fn a_file_whose_many_holes_are_all_large_is_listed_and_not_filled_with_zeros() {
        let parts: Vec<Extent> = (0..300).map(|n| (n << 30, 4096)).collect();
        assert_eq!(of(300 << 30, 300 * 4096, 1000, &parts).unwrap().unwrap().len(), 301);
        let error = of(300 << 30, 300 * 4096, 100, &parts).unwrap_err();
        assert!(error.to_string().contains("holes") && crate::archive::Unreadable::Block.names(&error), "{error}");
    }

    /// Seen with FUSE file systems (hanwen/go-fuse#417) and with ZFS (openzfs/zfs#11900): the search for holes never ended, or content was
    /// reported as a hole.
    #[test]
    fn a_file_system_that_contradicts_itself_is_not_believed() {
        let read = |allocated, answer: fn(SeekFrom) -> Result<u64, Errno>| parts(100 << 20, allocated, 100, answer).unwrap();
        let itself = |from| match from {
            SeekFrom::Data(at) | SeekFrom::Hole(at) => Ok(at),
            _ => Err(Errno::INVAL),
        };
        assert_eq!(read(0, itself), None);
        assert_eq!(read(0, |_| Ok(0)), None);
        assert_eq!(read(50 << 20, |_| Err(Errno::NXIO)), None, "half of the file is allocated");
        assert_eq!(read(0, |_| Err(Errno::NXIO)), Some(vec![(100 << 20, 0)]));
    }
}
