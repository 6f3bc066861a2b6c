//! Reads one file of a home into a tar while a tenant may change the file. It must never yield more or fewer bytes than the tar header
//! says, so the tar stays valid.

use std::fs::File;
use std::io::Read;

use super::unreadable::Unreadable;

/// Yields exactly the number of bytes in the header, whatever happens to the file meanwhile.
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
            // Not caused by the tenant: this archive must not be written.
            Err(error) => return Err(error),
        };
        self.left -= given as u64;
        Ok(given)
    }
}

impl Exact {
    /// A file with this many bytes in its header.
    pub fn new(inner: File, left: u64, unreadable: Unreadable) -> Self {
        Self { inner, left, changed: false, unreadable, broken: None }
    }

    /// The error of a damaged disk for which the file was cut, because an admin gave it up.
    pub fn broken(&mut self) -> Option<std::io::Error> {
        self.broken.take()
    }

    /// Whether it ended before that.
    pub fn cut(&self) -> bool {
        self.changed
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
            assert_eq!(exact.cut(), real < promised);
        }
    }

    /// S1: a temporary failure of a disk or a server must not produce an archive without the files of the home.
    #[test]
    fn a_bad_sector_ends_the_attempt_unless_an_admin_gave_the_file_up() {
        // Reading an unmapped address is an input/output error.
        let sector = |unreadable| Exact::new(File::open("/proc/self/mem").unwrap(), 10, unreadable);
        assert_eq!(sector(Unreadable::Record).read(&mut [0; 8]).unwrap_err().raw_os_error(), Some(5));
        let (mut exact, mut bytes) = (sector(Unreadable::GiveUp), Vec::new());
        exact.read_to_end(&mut bytes).unwrap();
        assert!(bytes == [0; 10] && exact.broken().is_some(), "the tar is corrupt, or the failure is not reported");
    }
}
