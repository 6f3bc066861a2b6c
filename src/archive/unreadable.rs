//! What becomes of a file in a home that cannot be read. Decided by the class and by a `DeletionOverride`, told to the archive
//! pod in `UNREADABLE`. Must never make an archive without a file because of a failure that may pass or be mended (S1).

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::io::Errno;

/// Refused because of what the home holds: a right that is missing, a link, a path that went or is too long.
const OF_THE_HOME: [Errno; 6] = [Errno::ACCESS, Errno::LOOP, Errno::NOENT, Errno::NOTDIR, Errno::XDEV, Errno::NAMETOOLONG];
/// A medium or a file system that is damaged. It may be repaired: only an admin may give it up.
const OF_THE_DISK: [Errno; 5] = [Errno::IO, Errno::NODATA, Errno::UCLEAN, Errno::BADMSG, Errno::PERM];

/// What to do with a file that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Make no archive.
    Block,
    /// Name what the machine's user has no right to read in the manifest, and go on. A damaged disk makes no archive.
    Record,
    /// An admin has decided to keep what can be read: a damaged disk is named as well.
    GiveUp,
}

impl Unreadable {
    /// Whether a file that failed in this way becomes a problem in the manifest; every other failure ends the attempt.
    pub fn names(self, error: &io::Error) -> bool {
        // Without a number it is ours: a path that is no regular file any more, a loop that walkdir found.
        let Some(number) = error.raw_os_error() else { return true };
        let errno = Errno::from_raw_os_error(number);
        OF_THE_HOME.contains(&errno) || (self == Self::GiveUp && OF_THE_DISK.contains(&errno))
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
            .ok_or_else(|| format!("{text:?} is none of Block, Record and GiveUp"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_admin_gives_up_what_a_damaged_disk_holds_and_nobody_what_may_pass() {
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
