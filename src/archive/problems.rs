//! Files that could not be archived completely. A tenant determines their number and the length of their names: all are counted, and as
//! many are listed as fit in a manifest, those that lost content first. A loss must never be unreported (S1).

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use base64::Engine as _;

use super::manifest::{MAX_PROBLEM_BYTES, MAX_PROBLEMS, Problem, ProblemKind};
use crate::resources::conditions::truncate;

/// Longest path and longest detail that are listed, bytes.
const LONGEST: usize = 512;

/// Problems, bounded: the first are listed, all are counted.
#[derive(Debug, Default)]
pub struct Problems {
    /// As many as fit.
    pub listed: Vec<Problem>,
    /// All of them.
    pub count: u64,
    /// Those that lost content.
    pub lost: u64,
    /// Those among them that could not be read.
    pub unreadable: u64,
    bytes: usize,
    harmless: usize,
}

impl Problems {
    /// Counts a problem, and lists it if there is room.
    pub fn add(&mut self, path: &Path, kind: ProblemKind, detail: impl std::fmt::Display) {
        self.count += 1;
        self.lost += u64::from(kind.lost());
        self.unreadable += u64::from(kind == ProblemKind::Unreadable);
        let problem = problem(path, kind, &detail.to_string());
        let size = |p: &Problem| serde_json::to_string_pretty(p).map_or(usize::MAX, |text| text.len() + 64);
        let new = size(&problem);
        let room = |bytes: usize, listed: usize| listed < MAX_PROBLEMS && bytes.saturating_add(new) <= MAX_PROBLEM_BYTES;
        while kind.lost() && self.harmless > 0 && !room(self.bytes, self.listed.len()) {
            let Some(place) = self.listed.iter().rposition(|p| !p.kind.lost()) else { break };
            self.bytes -= size(&self.listed.swap_remove(place));
            self.harmless -= 1;
        }
        if room(self.bytes, self.listed.len()) {
            self.bytes += new;
            self.harmless += usize::from(!kind.lost());
            self.listed.push(problem);
        }
    }

    /// The first files that could not be read, for the user who must decide.
    pub fn first_unreadable(&self, most: usize) -> Vec<&str> {
        self.listed.iter().filter(|p| p.kind == ProblemKind::Unreadable).take(most).map(|p| p.path.as_str()).collect()
    }
}

fn problem(path: &Path, kind: ProblemKind, detail: &str) -> Problem {
    let bytes = path.as_os_str().as_bytes();
    let odd = std::str::from_utf8(bytes).is_err() && bytes.len() <= LONGEST;
    let exact = odd.then(|| base64::engine::general_purpose::STANDARD.encode(bytes));
    Problem { path: truncate(&path.to_string_lossy(), LONGEST), path_bytes: exact, kind, detail: truncate(detail, LONGEST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten thousand links once hid the one file that was lost: receipt, step and column said 0.
    #[test]
    fn lost_files_are_listed_before_harmless_ones_and_always_counted() {
        let mut problems = Problems::default();
        for n in 0..MAX_PROBLEMS + 5 {
            problems.add(Path::new(&format!("link-{n}")), ProblemKind::Symlink, "x");
        }
        problems.add(Path::new("locked"), ProblemKind::Unreadable, "x");
        assert_eq!((problems.lost, problems.listed.len(), problems.first_unreadable(3)), (1, MAX_PROBLEMS, vec!["locked"]));
    }

    /// Three thousand links of four thousand control characters once made a manifest of 72 MB, which was always refused.
    #[test]
    fn long_names_do_not_make_a_manifest_that_is_refused() {
        let mut problems = Problems::default();
        for n in 0..MAX_PROBLEMS {
            problems.add(Path::new(&format!("{n}{}", "\u{1}".repeat(4_000))), ProblemKind::Changed, "\u{1}".repeat(4_000));
        }
        assert!(serde_json::to_string_pretty(&problems.listed).is_ok_and(|text| text.len() <= MAX_PROBLEM_BYTES + MAX_PROBLEM_BYTES / 4));
        assert_eq!(problems.count, MAX_PROBLEMS as u64);
    }
}
