//! Finds the holes of a file. They are never read: a hole of terabytes costs nothing.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::tar_header::Extent;

/// Most parts of a file: a tenant decides how many holes it has, and the reader of the tar has to keep them in memory.
const MOST: usize = 60_000;
/// Files up to this size are read with their holes, so that nothing depends on what the file system says.
const SMALL: u64 = 1 << 20;
/// Files up to this size are read with their holes if the file system contradicts itself.
const CHECKED: u64 = 1 << 30;
/// Blocks that a file system may count besides the content of a file.
const BESIDES: u64 = 64 << 10;
/// Holes of all files of an archive that may be read as zeros, beyond twice what the files take on their disk: a tenant makes holes for free (L1).
pub const ZEROS: u64 = 16 << 30;
/// Bytes that are read at both ends of a hole.
const PROBE: usize = 4096;

/// The parts of a file that are not holes, the last of which ends at the end of the file. `None`: it has no holes, or its file system does
/// not tell. `zeros` is what is left of [`ZEROS`]; `progress` grows with each answer.
///
/// # Errors
/// When the device fails, or the file has more holes than an archive can keep.
pub fn extents(file: &File, metadata: &Metadata, zeros: &mut u64, progress: &AtomicU64) -> io::Result<Option<Vec<Extent>>> {
    let allocated = metadata.blocks().saturating_mul(512);
    let Some(extents) = parts(metadata.len(), allocated, MOST, zeros, |from| counted(progress, || seek(file, from)))? else {
        return Ok(None);
    };
    let mut at = 0;
    for (begin, bytes) in &extents {
        if !counted(progress, || is_empty(file, at, *begin))? {
            return Ok(None);
        }
        at = begin + bytes;
    }
    Ok(Some(extents))
}

/// Counts a question that was answered: a file may have millions of holes, and a slow device still answers.
fn counted<T>(progress: &AtomicU64, ask: impl FnOnce() -> T) -> T {
    let answer = ask();
    progress.fetch_add(1, Ordering::Relaxed);
    answer
}

/// Whether a hole has no content at its ends. Some file systems report a hole where there is content that is not on the disk yet.
fn is_empty(file: &File, from: u64, to: u64) -> io::Result<bool> {
    let mut buffer = [0; PROBE];
    for at in [from, to.saturating_sub(PROBE as u64).max(from)] {
        let length = usize::try_from(to - at).unwrap_or(PROBE).min(PROBE);
        let read = file.read_at(&mut buffer[..length], at)?;
        if buffer[..read].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes so many zeros for a file from what is left, if there are as many.
fn take(left: &mut u64, zeros: u64, of_file: u64) -> bool {
    let taken = left.checked_sub(zeros.saturating_sub(of_file.saturating_mul(2)));
    *left = taken.unwrap_or(*left);
    taken.is_some()
}

/// The parts, at most `most` of them, of a file of `size` bytes for which the file system has allocated `allocated`.
fn parts(
    size: u64,
    allocated: u64,
    most: usize,
    zeros: &mut u64,
    mut seek: impl FnMut(SeekFrom) -> Result<u64, Errno>,
) -> io::Result<Option<Vec<Extent>>> {
    if allocated >= size || (size <= SMALL && take(zeros, size - allocated, allocated)) {
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
    // The file system contradicts itself.
    if data + data / 64 + BESIDES < allocated && size <= CHECKED && take(zeros, size - allocated, allocated) {
        return Ok(None);
    }
    join(&mut extents, most);
    let joined = extents.iter().map(|(_, bytes)| bytes).sum::<u64>().saturating_sub(data);
    if joined > 0 && !take(zeros, joined, data) {
        return Err(io::Error::other(format!("it has more than {most} holes, and they are too large to be archived as zeros")));
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
    use super::*;

    fn extents_of(size: u64, data: &[(u64, &[u8])]) -> Option<Vec<Extent>> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in data {
            file.write_all_at(bytes, *at).unwrap();
        }
        extents(&file, &file.metadata().unwrap(), &mut 0, &AtomicU64::new(0)).unwrap()
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
        parts(size, allocated, most, &mut { ZEROS }, |from| match from {
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
        let read =
            |allocated, answer: fn(SeekFrom) -> Result<u64, Errno>| parts(100 << 20, allocated, 100, &mut { ZEROS }, answer).unwrap();
        let itself = |from| match from {
            SeekFrom::Data(at) | SeekFrom::Hole(at) => Ok(at),
            _ => Err(Errno::INVAL),
        };
        assert_eq!(read(0, itself), None);
        assert_eq!(read(0, |_| Ok(0)), None);
        assert_eq!(read(50 << 20, |_| Err(Errno::NXIO)), None, "half of the file is allocated");
        assert_eq!(read(0, |_| Err(Errno::NXIO)), Some(vec![(100 << 20, 0)]));
    }

    /// L1: 72 KiB of preallocated blocks were once 1 GiB to read, and a home of 10 GB was 140 TiB.
    #[test]
    fn holes_that_are_read_as_zeros_are_bounded_in_an_archive() {
        let mut zeros = ZEROS;
        let mut read = |size, allocated| parts(size, allocated, 100, &mut zeros, |_| Err(Errno::NXIO)).unwrap().map_or(size, |_| 0);
        let total: u64 = (0..2000).map(|n| if n % 2 == 0 { read(1 << 30, 72 << 10) } else { read(1 << 20, 0) }).sum();
        assert!(total <= 17 << 30, "{total}");
        // What takes its place on the disk is always read.
        assert_eq!(read(1 << 30, 1 << 29), 1 << 30);
    }

    /// S1: ZFS and network file systems report neither blocks nor data for content that is not on their disk yet.
    #[test]
    fn a_hole_with_content_at_its_ends_is_none() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 21).unwrap();
        assert!(is_empty(&file, 0, 1 << 21).unwrap() && is_empty(&file, 7, 7).unwrap());
        for at in [100, (1 << 21) - 3] {
            file.write_all_at(b"x", at).unwrap();
            assert!(!is_empty(&file, 0, 1 << 21).unwrap(), "{at}");
            file.write_all_at(&[0], at).unwrap();
        }
    }
}
