//! How far the packing of a home is, and of how much. The archive pod counts the home in the background, and reports both with its requests, so
//! that the status of the computer shows them. It must never delay or fail the packing, and nothing must be decided by what it reports.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use axum::http::HeaderName;
use rustix::fs::{Mode, OFlags};

use super::folder_names::Kind;
use super::unreadable::Unreadable;
use super::walk::{self, Found, Walk, open};

/// Header of a request of an archive pod: what is archived when its object is stored.
pub const HEADER: HeaderName = HeaderName::from_static("computer-operator-archived");
/// Memory for names: packing has its own.
const NAMES: usize = 8 * 1024 * 1024;

/// Part of a home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Sessions.
    pub sessions: u64,
    /// Bytes on the disk: holes do not count.
    pub bytes: u64,
}

/// What of a home is archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoFar {
    /// This much.
    pub done: Amount,
    /// Of about this much. `None`: it is not counted yet.
    pub total: Option<Amount>,
}

impl SoFar {
    /// For the status.
    pub fn text(&self) -> String {
        let Amount { sessions, bytes } = self.done;
        // Links and files that change are counted only roughly.
        match self.total.filter(|total| total.sessions >= sessions && total.bytes >= bytes) {
            Some(total) => format!("archived {} of about {}, {sessions} of {} sessions", size(bytes), size(total.bytes), total.sessions),
            None => format!("archived {}, {sessions} sessions", size(bytes)),
        }
    }

    /// As the value of the header.
    pub fn value(&self) -> String {
        let total = self.total.map(|total| format!(" {} {}", total.sessions, total.bytes)).unwrap_or_default();
        format!("{} {}{total}", self.done.sessions, self.done.bytes)
    }
}

impl FromStr for SoFar {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let numbers: Vec<u64> = text.split(' ').take(5).map(|n| n.parse().map_err(|_| ())).collect::<Result<_, _>>()?;
        let amount = |sessions, bytes| Amount { sessions, bytes };
        match numbers[..] {
            [sessions, bytes] => Ok(Self { done: amount(sessions, bytes), total: None }),
            [sessions, bytes, all, of] => Ok(Self { done: amount(sessions, bytes), total: Some(amount(all, of)) }),
            _ => Err(()),
        }
    }
}

/// A size with one decimal.
pub fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1_000_000_000 => (1_000_000, "MB"),
        1_000_000_000..1_000_000_000_000 => (1_000_000_000, "GB"),
        _ => (1_000_000_000_000, "TB"),
    };
    let tenths = bytes / (unit / 10);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// Counts what is packed, and what there is.
#[derive(Debug, Default)]
pub struct Tally {
    /// Sessions that are packed.
    pub sessions: AtomicU64,
    /// Bytes of files that are packed.
    pub bytes: AtomicU64,
    total: OnceLock<Amount>,
    ended: AtomicBool,
}

impl Tally {
    /// What is packed now.
    pub fn packed(&self) -> Amount {
        Amount { sessions: self.sessions.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    /// What there is, if it is counted.
    pub fn total(&self) -> Option<Amount> {
        self.total.get().copied()
    }

    /// Everything is packed: nobody waits for the count.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Counts a home in a thread that nobody waits for: a read of the volume may never return.
    pub fn count_in_background(self: &Arc<Self>, home: &Path, session_paths: &[String]) {
        let (tally, home, roots) = (Arc::clone(self), home.to_owned(), walk::roots(session_paths));
        let counting = move || {
            // Packing comes first. On Linux the priority is that of this thread.
            let _ = rustix::process::setpriority_process(None, 19);
            match count(&home, roots, &tally.ended) {
                Ok(Some(total)) => drop(tally.total.set(total)),
                Ok(None) => {}
                Err(error) => println!("cannot count the files of the home, so the progress has no total; packing continues: {error}"),
            }
        };
        if let Err(error) = std::thread::Builder::new().name("count".to_owned()).spawn(counting) {
            println!("cannot count the files of the home, so the progress has no total; packing continues: {error}");
        }
    }
}

/// Counts sessions and bytes without reading a file. `None`: it was ended.
fn count(home: &Path, roots: Vec<PathBuf>, ended: &AtomicBool) -> std::io::Result<Option<Amount>> {
    let home = Rc::new(rustix::fs::open(home, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
    let mut walk = Walk::new(Rc::clone(&home), roots, Unreadable::GiveUp).with_memory(NAMES);
    let (mut total, mut last) = (Amount::default(), None);
    while let Some(found) = walk.find_next()? {
        if ended.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Found::Item { session, path, kind: Kind::File } = found else { continue };
        if session != last || session.is_none() {
            total.sessions += 1;
            last = session;
        }
        // What cannot be opened is not archived, either.
        let file = open(&home, &path, OFlags::PATH).and_then(|fd| std::fs::File::from(fd).metadata());
        total.bytes = total.bytes.saturating_add(file.map_or(0, |file| share(&file)));
    }
    Ok(Some(total))
}

/// What a name of a file adds: its bytes on the disk, shared by all names of the file.
fn share(file: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    file.len().min(file.blocks().saturating_mul(512)) / file.nlink().max(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::archive::test_archives::home;

    fn counted(home: &Path, session_paths: &[&str]) -> Option<Amount> {
        let paths: Vec<String> = session_paths.iter().map(|path| (*path).to_owned()).collect();
        count(home, walk::roots(&paths), &AtomicBool::new(false)).unwrap()
    }

    #[test]
    fn sessions_and_bytes_are_counted_as_they_are_archived_and_holes_are_not() {
        let home = home(&[("s/a.jsonl", &[1; 9000]), ("s/a/more.json", &[2; 5000]), ("s/b.jsonl", b"x"), ("other/c", b"no session path")]);
        std::fs::hard_link(home.path().join("s/a/more.json"), home.path().join("s/a/again.json")).unwrap();
        std::fs::File::create(home.path().join("s/hole.bin")).unwrap().set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink("nowhere", home.path().join("s/link")).unwrap();
        let total = counted(home.path(), &["s", "missing"]).unwrap();
        assert_eq!(total, Amount { sessions: 3, bytes: 14_001 });
        let packed = crate::archive::test_archives::packed(home.path(), &["s"], Unreadable::Block, crate::archive::test_archives::SMALL);
        assert_eq!((packed.manifest.sessions, packed.tally.packed()), (3, total));
        assert_eq!(count(home.path(), walk::roots(&[]), &AtomicBool::new(true)).unwrap(), None, "nobody waits for it any more");
    }

    #[test]
    fn what_is_reported_is_read_and_nothing_else() {
        let done = Amount { sessions: 12, bytes: 1_234_000_000 };
        let mut so_far = SoFar { done, total: None };
        assert_eq!((so_far.text().as_str(), so_far.value().parse()), ("archived 1.2 GB, 12 sessions", Ok(so_far)));
        so_far.total = Some(Amount { sessions: 40, bytes: 3_400_000_000 });
        assert_eq!(so_far.text(), "archived 1.2 GB of about 3.4 GB, 12 of 40 sessions");
        assert_eq!(so_far.value().parse(), Ok(so_far));
        so_far.total = Some(Amount { sessions: 11, bytes: u64::MAX });
        assert_eq!(so_far.text(), "archived 1.2 GB, 12 sessions", "the count was wrong");
        for bad in ["", "1", "1 2 3", "1 2 3 4 5", "1 -2", "a b", "1  2", "99999999999999999999 1"] {
            assert_eq!(bad.parse::<SoFar>(), Err(()), "{bad}");
        }
        assert_eq!([size(0), size(999_999_999), size(5_500_000_000_000)], ["0.0 MB", "999.9 MB", "5.5 TB"]);
    }
}
