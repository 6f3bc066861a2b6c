//! One file of a home on its way into a tar, next to a tenant who may change it: the tar stays whole whatever happens to the file.

use std::fs::File;
use std::io::Read;

use super::unreadable::Unreadable;

/// Gives exactly the bytes that the header promised, whatever happens to the file meanwhile, so that no tar is ever corrupt.
pub struct Exact {
    inner: File,
    left: u64,
    changed: bool,
    unreadable: Unreadable,
    broken: Option<std::io::Error>,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = if self.changed { Ok(0) } else { self.inner.read(&mut buffer[..most]) };
        let given = match read {
            Ok(0) => {
                self.changed = true;
                buffer[..most].fill(0);
                most
            }
            Ok(n) => n,
            Err(error) if self.unreadable == Unreadable::GiveUp && self.unreadable.names(&error) => {
                self.broken = Some(error);
                self.changed = true;
                buffer[..most].fill(0);
                most
            }
            // Not the tenant's doing: this archive must not be made.
            Err(error) => return Err(error),
        };
        self.left -= given as u64;
        Ok(given)
    }
}

impl Exact {
    /// A file whose header promised so many bytes.
    pub fn new(inner: File, left: u64, unreadable: Unreadable) -> Self {
        Self { inner, left, changed: false, unreadable, broken: None }
    }

    /// What made it be cut, although it was given up: a damaged disk.
    pub fn broken(&mut self) -> Option<std::io::Error> {
        self.broken.take()
    }

    /// Whether it was longer or shorter than promised.
    pub fn changed(mut self) -> bool {
        self.changed || self.inner.read(&mut [0; 1]).is_ok_and(|n| n > 0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_its_size_never_makes_a_corrupt_tar() {
        let folder = tempfile::tempdir().unwrap();
        for (real, promised) in [(3_u64, 8_u64), (8, 3)] {
            std::fs::write(folder.path().join("f"), vec![b'x'; usize::try_from(real).unwrap()]).unwrap();
            let mut exact = Exact::new(File::open(folder.path().join("f")).unwrap(), promised, Unreadable::Block);
            let mut bytes = Vec::new();
            exact.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, promised);
            assert!(exact.changed());
        }
    }

    /// S1: a disk or a server that fails for a moment must not turn a home into an archive without its files.
    #[test]
    fn a_bad_sector_ends_the_attempt_unless_an_admin_gave_the_file_up() {
        // Reading where no memory is mapped is an input/output error.
        let sector = |unreadable| Exact::new(File::open("/proc/self/mem").unwrap(), 10, unreadable);
        assert_eq!(sector(Unreadable::Record).read(&mut [0; 8]).unwrap_err().raw_os_error(), Some(5));
        let (mut exact, mut bytes) = (sector(Unreadable::GiveUp), Vec::new());
        exact.read_to_end(&mut bytes).unwrap();
        assert!(bytes == [0; 10] && exact.broken().is_some(), "the tar would be corrupt, or nobody told");
    }
}
