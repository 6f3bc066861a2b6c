//! Compares the bytes of an export with what is known about it, while they pass: what is verified need not be kept.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::expected::Expected;
use super::fault::Fault;

/// Bytes that pass, and their digest.
#[derive(Default)]
struct Tally {
    hash: Sha256,
    bytes: u64,
    most: u64,
}

impl Write for Tally {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.bytes += buffer.len() as u64;
        // A small file may decompress to anything.
        if self.bytes > self.most {
            return Err(io::Error::other("it contains more than the archive"));
        }
        self.hash.update(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is compared.
enum Of {
    /// The file.
    Stored(Tally),
    /// The tar in it: the digest of the file is not known.
    Tar(Box<zstd::stream::write::Decoder<'static, Tally>>),
}

/// A comparison that has begun.
pub struct Check {
    expected: Expected,
    passed: u64,
    of: Of,
}

impl Check {
    /// Begins with the first byte.
    ///
    /// # Errors
    /// When there is no memory for a decoder.
    pub fn new(expected: &Expected) -> Result<Self> {
        let of = if expected.stored.is_some() {
            Of::Stored(Tally { most: expected.length, ..Tally::default() })
        } else {
            let tally = Tally { most: expected.tar_bytes.unwrap_or(u64::MAX), ..Tally::default() };
            Of::Tar(Box::new(zstd::stream::write::Decoder::new(tally)?))
        };
        Ok(Self { expected: expected.clone(), passed: 0, of })
    }

    /// Bytes that have passed.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When they cannot belong to the export.
    pub fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.passed += bytes.len() as u64;
        ensure!(self.passed <= self.expected.length, "there are more bytes than the {} of the archive", self.expected.length);
        match &mut self.of {
            Of::Stored(tally) => tally.write_all(bytes)?,
            Of::Tar(decoder) => decoder.write_all(bytes).context("the archive is damaged")?,
        }
        Ok(())
    }

    /// Takes everything that a file has.
    ///
    /// # Errors
    /// When it cannot be read, or as [`Check::take`].
    pub fn read(&mut self, file: &mut impl Read) -> Result<(), Fault> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => self.take(&buffer[..read]).map_err(Fault::Wrong)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Lasting(anyhow::Error::new(error).context("it cannot be read"))),
            }
        }
    }

    /// What was verified, after the last byte.
    ///
    /// # Errors
    /// When it differs from the export, and how.
    pub fn finish(self) -> Result<String> {
        let Expected { length, stored, tar, tar_bytes, .. } = self.expected;
        ensure!(self.passed == length, "there are {} bytes, the archive has {length}", self.passed);
        let tally = match self.of {
            Of::Stored(tally) => tally,
            Of::Tar(mut decoder) => {
                decoder.flush().context("the archive is damaged")?;
                decoder.into_inner()
            }
        };
        let (bytes, found) = (tally.bytes, hex::encode(tally.hash.finalize()));
        if let Some(digest) = stored {
            ensure!(found == digest, "the sha256 is {found}, that of the archive {digest}");
            return Ok(format!("sha256:{found}"));
        }
        let right = tar_bytes.is_none_or(|expected| expected == bytes) && tar.as_ref().is_none_or(|digest| *digest == found);
        ensure!(right, "the tar in it has {bytes} bytes with sha256 {found}, which is not that of the archive");
        Ok(match (tar, tar_bytes) {
            (Some(_), _) => format!("the tar in it has sha256:{found}"),
            (None, Some(_)) => "its digest is not known, the tar in it has the right length".to_owned(),
            (None, None) => "neither its digest nor the length of the tar in it is known, it can be decompressed".to_owned(),
        })
    }
}

/// Compares a file, and says what was verified.
///
/// # Errors
/// When it cannot be read, or differs.
pub fn file(path: &Path, expected: &Expected) -> Result<String, Fault> {
    let opened = File::open(path).with_context(|| format!("{} cannot be read", path.display()));
    let mut check = Check::new(expected).map_err(Fault::Lasting)?;
    check.read(&mut opened.map_err(Fault::Lasting)?)?;
    check.finish().map_err(Fault::Wrong)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn checked(expected: &Expected, bytes: &[u8]) -> Result<String> {
        let mut check = Check::new(expected)?;
        bytes.chunks(1000).try_for_each(|part| check.take(part))?;
        check.finish()
    }

    #[test]
    fn what_is_shorter_longer_or_changed_is_not_whole() {
        let tar = b"a tar".repeat(10_000);
        let stored = zstd::encode_all(&tar[..], 3).unwrap();
        let digest = |bytes: &[u8]| Some(hex::encode(Sha256::digest(bytes)));
        let known = Expected { length: stored.len() as u64, ..Expected::default() };
        for expected in [
            Expected { stored: digest(&stored), ..known.clone() },
            Expected { tar: digest(&tar), tar_bytes: Some(tar.len() as u64), ..known.clone() },
            Expected { tar: digest(&tar), ..known.clone() },
        ] {
            checked(&expected, &stored).unwrap();
            let other = zstd::encode_all(&b"b tar".repeat(10_000)[..], 3).unwrap();
            assert_eq!(other.len(), stored.len(), "only the content differs");
            for wrong in [stored[..stored.len() - 1].to_vec(), [&stored[..], b"x"].concat(), other, Vec::new()] {
                assert!(checked(&expected, &wrong).is_err());
            }
        }
    }

    #[test]
    fn a_small_file_never_decompresses_without_end() {
        let stored = zstd::encode_all(&vec![0; 1 << 24][..], 3).unwrap();
        let expected = Expected { length: stored.len() as u64, tar_bytes: Some(1000), ..Expected::default() };
        assert!(format!("{:#}", checked(&expected, &stored).unwrap_err()).contains("more than the archive"));
    }
}
