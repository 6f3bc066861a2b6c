//! The manifest of an archive: its sessions, object by object, and the files that could not be archived. It comes from a pod that reads
//! files of tenants, so it must never be trusted: it is parsed with bounds.

use serde::{Deserialize, Serialize};

/// Schema version written and read.
pub const VERSION: u32 = 1;
/// Largest manifest that is accepted, bytes.
pub const MAX_BYTES: usize = 32 * 1024 * 1024;
/// Largest manifest that is read: manifests that an earlier version accepted stay readable.
const MAX_READ: usize = 64 * 1024 * 1024;
/// Maximum number of problems that are listed; more are only counted.
pub const MAX_PROBLEMS: usize = 10_000;
/// Bytes that the listed problems may take as JSON: a tenant determines their number and length.
pub const MAX_PROBLEM_BYTES: usize = 4 * 1024 * 1024;
/// Approximate bytes that the sessions may take as JSON. Together they stay below [`MAX_BYTES`].
pub const MAX_SESSION_BYTES: usize = 24 * 1024 * 1024;

/// Id of the session that contains a whole home, if the home has too many sessions to list.
pub const WHOLE_HOME: &str = ".";

/// An archive's table of contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// Schema version.
    pub version: u32,
    /// Whose archive it is.
    pub computer: ManifestComputer,
    /// When it was packed, Unix seconds.
    pub created_at: i64,
    /// The folders that were searched, relative to the home.
    pub session_paths: Vec<String>,
    /// The sessions, sorted by id.
    pub sessions: Vec<SessionEntry>,
    /// The first [`MAX_PROBLEMS`] files that were not archived completely.
    pub problems: Vec<Problem>,
    /// Their total number.
    pub problem_count: u64,
    /// How many of them lost content, listed or not.
    #[serde(default)]
    pub lost_count: u64,
    /// Why unreadable files were left out (the class, or an override), as given to the archive pod when it was created. Empty: none may be
    /// left out.
    #[serde(default)]
    pub left_out_by: String,
    /// UID of the claim in the operator's namespace that was used to read the volume. Each deletion creates its own claim, so the UID
    /// distinguishes the archives of two deletions. Empty: written by an earlier version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub custody_claim: String,
}

/// Whose archive it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManifestComputer {
    /// Namespace of the computer.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// One session: one object in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionEntry {
    /// Path of its files up to the first dot, relative to the home; bytes that are not UTF-8 are shown as U+FFFD.
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

/// A file that was not archived completely.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Problem {
    /// Path relative to the home.
    pub path: String,
    /// The exact bytes of the path, base64, when they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    /// What.
    pub kind: ProblemKind,
    /// Details: the error, or a symlink's target (never followed).
    pub detail: String,
}

/// Kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProblemKind {
    /// Could not be opened or read.
    Unreadable,
    /// A symbolic link: recorded, never followed.
    Symlink,
    /// A FIFO, socket or device: never opened.
    Special,
    /// Its size changed while it was read; it is cut or padded with zeros to its original size.
    Changed,
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
#[error("manifest: {0}")]
pub struct Invalid(String);

impl Manifest {
    /// Parses and checks.
    ///
    /// # Errors
    /// When it is not a manifest of this version, or breaks a bound.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() > MAX_READ {
            return Err(Invalid(format!("larger than {MAX_READ} bytes")));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| Invalid(e.to_string()))?;
        if manifest.version != VERSION {
            return Err(Invalid(format!("version {} is not {VERSION}", manifest.version)));
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

    /// The session that a file belongs to.
    pub fn session_of_path(&self, path: &str) -> Option<&SessionEntry> {
        ids_of_path(path).find_map(|id| self.sessions.iter().find(|s| s.id == id))
    }

    /// Bytes in the store.
    pub fn stored_bytes(&self) -> u64 {
        self.sessions.iter().map(|s| s.size).fold(0, u64::saturating_add)
    }

    /// How many problems lost content: a symlink or a FIFO has none.
    pub fn lost(&self) -> u64 {
        self.lost_count.max(self.problems.iter().filter(|p| p.kind.lost()).count() as u64)
    }
}

/// The ids of the sessions that may contain a file; the first one that exists contains it. They are the path itself, its prefixes up to a
/// dot or a slash from the longest to the shortest, and the session for everything else.
pub fn ids_of_path(path: &str) -> impl Iterator<Item = &str> {
    let beginnings = path.rmatch_indices(['.', '/']).map(|(end, _)| &path[..end]);
    std::iter::once(path).chain(beginnings).chain([WHOLE_HOME])
}

impl ProblemKind {
    /// Whether content is missing in the archive.
    pub fn lost(self) -> bool {
        matches!(self, Self::Unreadable | Self::Changed)
    }
}

/// Whether a text is a SHA-256 in lower-case hexadecimal.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
#[allow(clippy::expect_used)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn empty(uid: &str) -> Manifest {
        Manifest {
            version: VERSION,
            computer: ManifestComputer { namespace: "t".into(), name: "c".into(), uid: uid.into() },
            created_at: 1,
            session_paths: Vec::new(),
            sessions: Vec::new(),
            problems: Vec::new(),
            problem_count: 0,
            lost_count: 0,
            left_out_by: String::new(),
            custody_claim: String::new(),
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_and_never_panics(bytes: Vec<u8>, text in "\\PC*") {
            prop_assert!(Manifest::parse(&bytes).is_err());
            prop_assert!(Manifest::parse(text.as_bytes()).is_err());
        }

        #[test]
        fn only_a_digest_names_an_object(name in "[a-f0-9./]{0,70}") {
            let mut manifest = empty("u");
            manifest.sessions.push(SessionEntry { id: "s".into(), files: 1, bytes: 1, digest: name.clone(), size: 1, last_modified: 0 });
            let parsed = Manifest::parse(&serde_json::to_vec(&manifest).expect("json"));
            prop_assert_eq!(parsed.is_ok(), is_digest(&name));
        }
    }

    #[test]
    fn a_path_belongs_to_the_session_of_its_stem() {
        let mut manifest = empty("u");
        let entry = |id: &str| SessionEntry { id: id.into(), files: 1, bytes: 1, digest: "0".repeat(64), size: 1, last_modified: 0 };
        manifest.sessions = vec![entry("a/one"), entry("a/one-two")];
        assert_eq!(manifest.session_of_path("a/one-two.jsonl").map(|s| s.id.as_str()), Some("a/one-two"));
        assert_eq!(manifest.session_of_path("a/one/sub/x").map(|s| s.id.as_str()), Some("a/one"));
        assert!(manifest.session_of_path("a/on").is_none());
    }
}
