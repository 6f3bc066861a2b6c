//! Finds the holes of a file. They are never read: a hole of terabytes costs nothing.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::tar_header::Extent;

/// Most parts of a file: a tenant decides how many holes it has. Of a file with more, small holes are stored as zeros.
const MOST: usize = 8192;

/// The parts of a file that are not holes, the last of which ends at the end of the file. `None`: it has no holes, or its file system does
/// not tell.
///
/// # Errors
/// When the device fails.
pub fn extents(file: &File, metadata: &Metadata) -> io::Result<Option<Vec<Extent>>> {
    let size = metadata.len();
    if metadata.blocks().saturating_mul(512) >= size {
        return Ok(None);
    }
    let (mut extents, mut at, mut gap): (Vec<Extent>, u64, u64) = (Vec::new(), 0, 4096);
    while at < size {
        let begin = match seek(file, SeekFrom::Data(at)) {
            Ok(begin) if begin < size => begin,
            // Only a hole is left.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(begin))?.min(size);
        extents.push((begin, end - begin));
        at = end;
        while extents.len() > MOST {
            gap *= 2;
            join(&mut extents, gap);
        }
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

/// Joins parts with a small hole between them.
fn join(extents: &mut Vec<Extent>, gap: u64) {
    extents.dedup_by(|next, last| {
        let near = next.0 - (last.0 + last.1) <= gap;
        if near {
            last.1 = next.0 + next.1 - last.0;
        }
        near
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

    /// Each hole takes room in the header, and a tenant decides how many there are.
    #[test]
    fn small_holes_of_a_file_with_very_many_are_stored_as_zeros() {
        let file = tempfile::tempfile().unwrap();
        let parts = MOST as u64 * 3;
        for n in 0..parts {
            file.write_all_at(&[1; 4096], n * 8192 + if n > parts / 2 { 1 << 30 } else { 0 }).unwrap();
        }
        file.set_len(parts * 8192 + (2 << 30)).unwrap();
        let found = extents(&file, &file.metadata().unwrap()).unwrap().unwrap();
        assert!(found.len() <= MOST + 1, "{}", found.len());
        assert!(found.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        let stored: u64 = found.iter().map(|(_, bytes)| bytes).sum();
        assert!(stored <= parts * 8192 + (1 << 22), "large holes stay holes: {stored}");
    }
}
