//! Reads the object of a session, file by file, in bounded memory. The object comes from a pod that reads files of tenants and must never
//! be trusted: a zstd frame may declare a window of gigabytes, and a tar entry may have an endless name.

use std::cell::Cell;
use std::io::{BufReader, Error, Read, Result};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

/// Largest window of a frame: 2 to the power of this many bytes. The archive pod uses at most 21 (level 3).
const WINDOW_LOG: u32 = 23;
/// Maximum number of bytes before a file's content: the headers and the name of one entry.
const HEADERS: u64 = 1 << 20;

/// One file of an object.
pub type Entry<'a, R> = tar::Entry<'a, Bounded<zstd::Decoder<'static, BufReader<R>>>>;

/// Passes every file of an object to `see`, until `see` stops. The part of a file that `see` does not read is skipped.
///
/// # Errors
/// When it is not a valid object, when it is damaged, or when `see` fails.
pub fn each_entry<R: Read, E: From<Error>>(
    object: R,
    mut see: impl FnMut(&mut Entry<'_, R>) -> std::result::Result<bool, E>,
) -> std::result::Result<(), E> {
    let mut decoder = zstd::Decoder::new(object)?;
    decoder.window_log_max(WINDOW_LOG)?;
    let left = Rc::new(Cell::new(HEADERS));
    let mut archive = tar::Archive::new(Bounded { inner: decoder, left: Rc::clone(&left) });
    for entry in archive.entries()? {
        let mut entry = entry?;
        left.set(u64::MAX);
        if !see(&mut entry)? {
            break;
        }
        std::io::copy(&mut entry, &mut std::io::sink())?;
        left.set(HEADERS);
    }
    Ok(())
}

/// Reads an object with `read`, then to its end, and checks that its bytes have the digest in its name: zstd alone does not always
/// detect a flipped bit.
///
/// # Errors
/// When `read` fails, or the object is damaged. In that case the output of `read` must not be trusted.
pub fn checked<R: Read, T, E: From<Error>>(
    object: R,
    digest: &str,
    read: impl FnOnce(&mut Digesting<R>) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let mut digesting = Digesting { inner: object, hash: Sha256::new() };
    let answer = read(&mut digesting)?;
    std::io::copy(&mut digesting, &mut std::io::sink())?;
    let found = hex::encode(digesting.hash.finalize());
    if found != digest {
        return Err(Error::other(format!("its bytes have sha256 {found}, not {digest}: do not trust what was read from it")).into());
    }
    Ok(answer)
}

/// Hashes what is read.
pub struct Digesting<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

/// Yields at most this many bytes.
pub struct Bounded<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(Error::other(format!("an entry has more than {HEADERS} bytes before its content")));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        self.left.set(left - read as u64);
        Ok(read)
    }
}
