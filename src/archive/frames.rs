//! The frames of a chunk. They come from a pod that must not be trusted: the size of a frame is checked before memory is taken for it.

use std::io::{Error, Result};

use zstd::bulk::Decompressor;
use zstd::zstd_safe::{find_frame_compressed_size, get_frame_content_size};

/// Splits off the first frame. Returns it, the bytes that it contains, and the rest.
fn first(bytes: &[u8], most: usize) -> Result<(&[u8], usize, &[u8])> {
    let size = find_frame_compressed_size(bytes).map_err(|_| Error::other("a frame is damaged or incomplete"))?;
    let content = get_frame_content_size(bytes).ok().flatten().and_then(|size| usize::try_from(size).ok());
    let content = content.ok_or_else(|| Error::other("a frame does not say how many bytes it contains"))?;
    if content > most || size == 0 || size > bytes.len() {
        return Err(Error::other(format!("a frame contains {content} bytes: more than {most} are never written")));
    }
    let (frame, rest) = bytes.split_at(size);
    Ok((frame, content, rest))
}

/// Passes each frame to `see`: its stored size, and its content.
///
/// # Errors
/// When a frame is damaged, or `see` fails.
pub fn each<E: From<Error>>(
    decompressor: &mut Decompressor<'static>,
    mut bytes: &[u8],
    most: usize,
    mut see: impl FnMut(u64, &[u8]) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    while !bytes.is_empty() {
        let (frame, content, rest) = first(bytes, most)?;
        let plain = decompressor.decompress(frame, content)?;
        if plain.len() != content {
            return Err(Error::other("a frame contains fewer bytes than it says").into());
        }
        see(frame.len() as u64, &plain)?;
        bytes = rest;
    }
    Ok(())
}

/// The content of a single frame.
///
/// # Errors
/// When it is damaged or not the only one.
pub fn only(bytes: &[u8], most: usize) -> Result<Vec<u8>> {
    let (frame, content, rest) = first(bytes, most)?;
    if !rest.is_empty() {
        return Err(Error::other("bytes after a frame"));
    }
    zstd::bulk::decompress(frame, content)
}
