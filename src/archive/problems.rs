//! Files that could not be archived completely. All are listed in the index; here they are counted, and the first are kept for the user who
//! must decide. A loss must never be unreported (S1).

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use base64::Engine as _;

use super::manifest::{Problem, ProblemKind};
use crate::resources::conditions::truncate;

/// Longest path, bytes: longer ones cannot be opened.
const PATH: usize = 4096;
/// Longest detail that is listed, bytes.
const DETAIL: usize = 512;
/// Unreadable files that a message names.
const NAMED: usize = 3;

/// Counts of problems.
#[derive(Debug, Default)]
pub struct Problems {
    /// Those that lost content.
    pub lost: u64,
    /// Those among them that could not be read.
    pub unreadable: u64,
    /// The first files that could not be read.
    pub first_unreadable: Vec<String>,
}

impl Problems {
    /// Counts a problem. Returns its line for the index.
    pub fn add(&mut self, path: &Path, kind: ProblemKind, detail: impl std::fmt::Display) -> Problem {
        let bytes = path.as_os_str().as_bytes();
        let exact = std::str::from_utf8(bytes).is_err().then(|| base64::engine::general_purpose::STANDARD.encode(bytes));
        let path = truncate(&path.to_string_lossy(), PATH);
        self.lost += u64::from(kind.lost());
        if kind == ProblemKind::Unreadable {
            self.unreadable += 1;
            if self.first_unreadable.len() < NAMED {
                self.first_unreadable.push(path.clone());
            }
        }
        Problem { path, path_bytes: exact, kind, detail: truncate(&detail.to_string(), DETAIL) }
    }
}
