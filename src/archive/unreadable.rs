//! How to handle a file in a home that cannot be read. The class and a `DeletionOverride` decide; the archive pod gets the decision in
//! `UNREADABLE`. It must never omit a file because of a failure that is temporary or can be repaired (S1).

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::io::Errno;

/// Errors caused by the content of the home: a missing permission, a link, a path that disappeared or is too long.
const OF_THE_HOME: [Errno; 6] = [Errno::ACCESS, Errno::LOOP, Errno::NOENT, Errno::NOTDIR, Errno::XDEV, Errno::NAMETOOLONG];
/// Errors of a damaged disk or file system. It may be repaired, so only an admin may give up such a file.
const OF_THE_DISK: [Errno; 5] = [Errno::IO, Errno::NODATA, Errno::UCLEAN, Errno::BADMSG, Errno::PERM];

/// Whether an error indicates a damaged disk or file system.
pub fn damaged(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| OF_THE_DISK.contains(&Errno::from_raw_os_error(number)))
}

/// What to do with a file that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Do not write an archive.
    Block,
    /// List files that the machine's user may not read in the manifest, and continue. With a damaged disk, no archive is written.
    Record,
    /// An admin has decided to archive the readable files: files on a damaged disk are listed as well.
    GiveUp,
}

impl Unreadable {
    /// Whether a file with this error is listed as a problem in the manifest. Every other error ends the attempt.
    pub fn names(self, error: &io::Error) -> bool {
        // An error without a number comes from this program: a path that is no longer a regular file, a loop that walkdir found.
        let Some(number) = error.raw_os_error() else { return true };
        OF_THE_HOME.contains(&Errno::from_raw_os_error(number)) || (self == Self::GiveUp && damaged(error))
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Block => "Block",
            Self::Record => "Record",
            Self::GiveUp => "GiveUp",
        })
    }
}

impl FromStr for Unreadable {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Block, Self::Record, Self::GiveUp]
            .into_iter()
            .find(|u| u.to_string() == text)
            .ok_or_else(|| format!("{text:?} must be Block, Record or GiveUp"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_admin_gives_up_files_on_a_damaged_disk_and_temporary_failures_are_never_given_up() {
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for by in [Unreadable::Block, Unreadable::Record, Unreadable::GiveUp] {
            assert!(by.names(&error(Errno::ACCESS)));
            assert_eq!(by.names(&error(Errno::IO)), by == Unreadable::GiveUp);
            for passing in [Errno::NOMEM, Errno::MFILE, Errno::TIMEDOUT, Errno::STALE, Errno::NOSPC, Errno::NOSYS] {
                assert!(!by.names(&error(passing)), "{by} {passing}");
            }
            assert_eq!(by.to_string().parse(), Ok(by));
        }
    }
}
