//! Headers of the tar in an archive, in the GNU format: the name of a file, its metadata, and where its holes are. GNU tar and bsdtar read
//! all of it. It must never have an entry of another type than those of [`Kind`]. Writing is here, reading in `tar_scan`.

use std::io::{Result, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

/// Bytes of a block: whatever is in a tar begins at a multiple of them.
pub const BLOCK: usize = 512;
/// The end of a tar: two blocks of zeros.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// Name of the entry that has the long name of the next one.
const LONG: &str = "././@LongLink";
/// Bytes of a name in a header.
const NAME: usize = 100;
/// Parts of a sparse file in its header, and in each block after it.
const FIRST: usize = 4;
const NEXT: usize = 21;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of a file before it.
    HardLink(PathBuf),
    /// A symbolic link.
    Link(PathBuf),
    /// A folder.
    Folder,
}

/// A part of a file that is not a hole: where it begins, and its bytes.
pub type Extent = (u64, u64);

/// Zeros up to the next block after this many bytes.
pub fn padding(bytes: u64) -> &'static [u8] {
    let over = usize::try_from(bytes % BLOCK as u64).unwrap_or(0);
    &END[..if over == 0 { 0 } else { BLOCK - over }]
}

/// Writes the header of an entry, and whatever comes before the content. `extents` are those of a file with holes, the last of which ends
/// at the end of the file; none for a file without holes.
///
/// # Errors
/// When the tar cannot be written.
pub fn write(out: &mut impl Write, path: &Path, kind: &Kind, metadata: &std::fs::Metadata, extents: &[Extent]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    let mut name = path.as_os_str().as_bytes().to_vec();
    match kind {
        Kind::File if extents.is_empty() => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(metadata.len());
        }
        Kind::File => {
            header.set_entry_type(EntryType::GNUSparse);
            header.set_size(extents.iter().map(|(_, bytes)| bytes).sum());
        }
        Kind::HardLink(_) => header.set_entry_type(EntryType::Link),
        Kind::Link(_) => header.set_entry_type(EntryType::Symlink),
        Kind::Folder => {
            header.set_entry_type(EntryType::Directory);
            name.push(b'/');
        }
    }
    if let Kind::HardLink(target) | Kind::Link(target) = kind {
        let target = target.as_os_str().as_bytes();
        long(out, EntryType::GNULongLink, target)?;
        header.as_old_mut().linkname[..target.len().min(NAME)].copy_from_slice(&target[..target.len().min(NAME)]);
    }
    long(out, EntryType::GNULongName, &name)?;
    header.as_old_mut().name[..name.len().min(NAME)].copy_from_slice(&name[..name.len().min(NAME)]);
    let (first, rest) = extents.split_at(extents.len().min(FIRST));
    if let Some(gnu) = header.as_gnu_mut().filter(|_| !extents.is_empty()) {
        gnu.set_real_size(metadata.len());
        gnu.isextended = [u8::from(!rest.is_empty())];
        set(&mut gnu.sparse, first);
    }
    header.set_cksum();
    out.write_all(header.as_bytes())?;
    let blocks = rest.len().div_ceil(NEXT);
    for (n, extents) in rest.chunks(NEXT).enumerate() {
        let mut block = GnuExtSparseHeader::new();
        set(&mut block.sparse, extents);
        block.isextended = [u8::from(n + 1 < blocks)];
        out.write_all(block.as_bytes())?;
    }
    Ok(())
}

fn set(fields: &mut [GnuSparseHeader], extents: &[Extent]) {
    for (field, (offset, bytes)) in fields.iter_mut().zip(extents) {
        field.set_offset(*offset);
        field.set_length(*bytes);
    }
}

/// A name that does not fit in a header, in an entry of its own.
fn long(out: &mut impl Write, kind: EntryType, name: &[u8]) -> Result<()> {
    if name.len() <= NAME {
        return Ok(());
    }
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..LONG.len()].copy_from_slice(LONG.as_bytes());
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(name.len() as u64 + 1);
    header.set_entry_type(kind);
    header.set_cksum();
    out.write_all(header.as_bytes())?;
    out.write_all(name)?;
    out.write_all(b"\0")?;
    out.write_all(padding(name.len() as u64 + 1))
}
