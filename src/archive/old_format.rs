//! Archives of version 1: one object for each session, a `tar.zst` of regular files, and all sessions in the manifest. They are read and
//! never written. An archive pod of that version is refused by the ingest endpoint, and the next attempt writes version 2.

use serde::{Deserialize, Serialize};

use super::manifest::{Invalid, ManifestComputer, Problem, is_digest};

/// Largest manifest that is read, bytes.
const MAX_READ: usize = 64 * 1024 * 1024;
/// Most problems that are listed.
const MAX_PROBLEMS: usize = 10_000;
/// Largest window of a frame: 2 to the power of this many bytes. Archive pods used at most 21.
pub const WINDOW_LOG: u32 = 23;

/// Key of a session's object in the store.
pub fn object_key(uid: &str, digest: &str) -> String {
    format!("archives/{uid}/objects/{digest}.tar.zst")
}

/// An archive's table of contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OldManifest {
    /// Schema version: 1.
    pub version: u32,
    /// Whose archive it is.
    pub computer: ManifestComputer,
    /// When it was packed, Unix seconds.
    pub created_at: i64,
    /// The folders that were searched, relative to the home.
    pub session_paths: Vec<String>,
    /// The sessions, sorted by id.
    pub sessions: Vec<OldSession>,
    /// The first files that were not archived completely.
    pub problems: Vec<Problem>,
    /// Their total number.
    pub problem_count: u64,
    /// How many of them lost content, listed or not.
    #[serde(default)]
    pub lost_count: u64,
    /// Why unreadable files were left out.
    #[serde(default)]
    pub left_out_by: String,
    /// UID of the claim that was used to read the volume. Empty: written by an earlier version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub custody_claim: String,
}

/// One session: one object in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OldSession {
    /// Path of its files up to the first dot, relative to the home.
    pub id: String,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// SHA-256 of the object, hexadecimal; also its name.
    pub digest: String,
    /// Bytes of the object.
    pub size: u64,
    /// Newest modification, Unix seconds.
    pub last_modified: i64,
}

impl OldManifest {
    /// Parses and checks.
    ///
    /// # Errors
    /// When it is not a manifest of this version, or breaks a bound.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() > MAX_READ {
            return Err(Invalid(format!("larger than {MAX_READ} bytes")));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| Invalid(e.to_string()))?;
        if manifest.version != 1 {
            return Err(Invalid(format!("version {} is not 1", manifest.version)));
        }
        let counted = manifest.problem_count >= manifest.problems.len() as u64 && manifest.lost_count <= manifest.problem_count;
        if manifest.problems.len() > MAX_PROBLEMS || !counted {
            return Err(Invalid("its problems are counted wrongly".to_owned()));
        }
        match manifest.sessions.iter().find(|s| !is_digest(&s.digest)) {
            Some(session) => Err(Invalid(format!("session {:?} has no SHA-256 as its digest", session.id))),
            None => Ok(manifest),
        }
    }

    /// How many problems lost content: a symlink or a FIFO has none.
    pub fn lost(&self) -> u64 {
        self.lost_count.max(self.problems.iter().filter(|p| p.kind.lost()).count() as u64)
    }
}
