//! The manifest of an archive and the lines of its index (docs/archive-format.md). Both come from a pod that reads files of tenants, so they
//! must never be trusted: they are parsed with bounds.

use serde::{Deserialize, Serialize};

/// Schema version that is written.
pub const VERSION: u32 = 2;
/// Largest manifest that is accepted, bytes. Whatever grows with the archive is in its index.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Most bytes of a frame, decompressed.
pub const FRAME: usize = 2_000_000;
/// Most bytes of a piece of the index, as stored.
pub const PIECE: usize = FRAME + 64 * 1024;
/// Most bytes of a chunk, as stored.
pub const CHUNK: usize = 8 * 1024 * 1024;
/// Largest chunk that is small: one at the end of an archive, or a piece of its index.
pub const SMALL: usize = CHUNK / 8;
/// Most chunks of an archive. The operator asks the store about each of them when it gets the manifest.
const CHUNKS: u64 = 1 << 24;

/// Session path for a whole home.
pub const WHOLE_HOME: &str = ".";

/// What an archive is and where its index is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// Schema version.
    pub version: u32,
    /// Algorithm of every digest.
    pub digest_algorithm: DigestAlgorithm,
    /// How frames are compressed.
    pub compression: Compression,
    /// How chunks are encrypted.
    pub encryption: Encryption,
    /// Whose archive it is.
    pub computer: ManifestComputer,
    /// When it was packed, Unix seconds.
    pub created_at: i64,
    /// The folders that were searched, relative to the home.
    pub session_paths: Vec<String>,
    /// UID of the claim in the operator's namespace that was used to read the volume. Each deletion creates its own claim, so the UID
    /// distinguishes the archives of two deletions.
    pub custody_claim: String,
    /// Sessions.
    pub sessions: u64,
    /// Files in them.
    pub files: u64,
    /// Bytes of these files, including holes.
    pub bytes: u64,
    /// Bytes of the chunks in order, which are one compressed tar.
    pub stored_bytes: u64,
    /// Digest of the chunks in order, that is of the file that an export is. Empty in manifests of earlier versions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stored_digest: String,
    /// Bytes of that tar.
    pub tar_bytes: u64,
    /// How many of the problems lost content.
    pub lost_count: u64,
    /// Why unreadable files were left out (the class, or an override), as given to the archive pod when it was created. Empty: none may be
    /// left out.
    pub left_out_by: String,
    /// The chunks in order: lines of [`Chunk`].
    pub chunks: List,
    /// What lies where in the tar, in order: lines of [`Entry`].
    pub entries: List,
    /// Files that were not archived completely: lines of [`Problem`].
    pub problems: List,
}

/// Algorithms of digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DigestAlgorithm {
    /// SHA-256, in lower-case hexadecimal.
    #[serde(rename = "sha256")]
    Sha256,
}

/// Algorithms of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// Zstandard frames.
    #[serde(rename = "zstd")]
    Zstd,
}

/// Encryption of chunks: the field is reserved. An unknown value is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encryption {
    /// Not encrypted by the operator.
    #[serde(rename = "none")]
    None,
}

/// Whose archive it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManifestComputer {
    /// Namespace of the computer.
    pub namespace: String,
    /// UID of that namespace, which may have been created again under the same name. Missing in manifests of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_uid: Option<String>,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// A list of the index: JSON lines, in compressed pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct List {
    /// Lines.
    pub count: u64,
    /// The objects that contain them, each one frame of whole lines.
    pub pieces: Vec<Chunk>,
    /// There are so many of these objects that their list is in pieces itself: `pieces` contain lines of [`Chunk`], which name those with the
    /// lines.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nested: bool,
}

/// An object in the store: a chunk of the tar, or a piece of the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Chunk {
    /// Digest of its bytes; also its name.
    pub digest: String,
    /// Its bytes.
    pub size: u64,
}

impl Chunk {
    /// Whether it can be a chunk: only a digest names an object, and a reader has memory for it.
    pub fn is_valid(&self) -> bool {
        is_digest(&self.digest) && self.size > 0 && self.size <= CHUNK as u64
    }

    /// Whether it can be a piece of the index.
    pub fn is_piece(&self) -> bool {
        self.is_valid() && self.size <= PIECE as u64
    }
}

/// Whether each of these objects is named once.
pub fn distinct(objects: &[Chunk]) -> bool {
    let mut seen = std::collections::HashSet::new();
    objects.iter().all(|object| seen.insert(object.digest.as_str()))
}

/// A session, or a folder or a link that belongs to no session: whole frames, one after the other, that are entries of the tar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Entry {
    /// Path of its files up to the first dot, relative to the home; bytes that are not UTF-8 are shown as U+FFFD.
    pub id: String,
    /// The exact bytes of the id, base64, when they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_bytes: Option<String>,
    /// Files in it. Zero: a folder or a link that belongs to no session.
    pub files: u64,
    /// Their bytes, including holes.
    pub bytes: u64,
    /// Newest modification, Unix seconds.
    pub last_modified: i64,
    /// Digest of its part of the tar.
    pub digest: String,
    /// Bytes of its part of the tar.
    pub tar_bytes: u64,
    /// Where its frames begin in the chunks.
    pub offset: u64,
    /// Bytes of its frames.
    pub size: u64,
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
    /// Details: the error, or a symlink's target.
    pub detail: String,
}

/// Kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProblemKind {
    /// Could not be opened or read.
    Unreadable,
    /// A symbolic link to something that is not in the archive. The link itself is. In version 1, any symbolic link.
    Symlink,
    /// A FIFO, socket or device: never opened.
    Special,
    /// Its size changed while it was read; it is cut or padded with zeros to its original size.
    Changed,
}

impl ProblemKind {
    /// As it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Symlink => "symlink",
            Self::Special => "special",
            Self::Changed => "changed",
        }
    }
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
#[error("manifest: {0}")]
pub struct Invalid(pub String);

impl Manifest {
    /// A manifest of nothing.
    pub fn empty(computer: ManifestComputer, created_at: i64) -> Self {
        Self {
            version: VERSION,
            digest_algorithm: DigestAlgorithm::Sha256,
            compression: Compression::Zstd,
            encryption: Encryption::None,
            computer,
            created_at,
            session_paths: Vec::new(),
            custody_claim: String::new(),
            sessions: 0,
            files: 0,
            bytes: 0,
            stored_bytes: 0,
            stored_digest: String::new(),
            tar_bytes: 0,
            lost_count: 0,
            left_out_by: String::new(),
            chunks: List::default(),
            entries: List::default(),
            problems: List::default(),
        }
    }

    /// Parses and checks.
    ///
    /// # Errors
    /// When it is not a manifest of this version, or breaks a bound.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() > MAX_BYTES {
            return Err(Invalid(format!("larger than {MAX_BYTES} bytes")));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| Invalid(e.to_string()))?;
        if manifest.version != VERSION {
            return Err(Invalid(format!("version {} is not {VERSION}", manifest.version)));
        }
        if manifest.lost_count > manifest.problems.count || manifest.sessions > manifest.entries.count {
            return Err(Invalid("its counts contradict each other".to_owned()));
        }
        if let Some(piece) = manifest.pieces().find(|piece| !piece.is_piece()) {
            return Err(Invalid(format!("{:?} of {} bytes cannot be an object", piece.digest, piece.size)));
        }
        if [&manifest.entries, &manifest.problems].into_iter().any(|list| !distinct(&list.pieces)) {
            return Err(Invalid("it names a piece of its index twice".to_owned()));
        }
        if !manifest.stored_digest.is_empty() && !is_digest(&manifest.stored_digest) {
            return Err(Invalid(format!("{:?} is not the digest of its chunks", manifest.stored_digest)));
        }
        if manifest.chunks.nested || manifest.chunks.count > manifest.stored_bytes.min(CHUNKS) {
            return Err(Invalid(format!("{} chunks of {} bytes cannot be", manifest.chunks.count, manifest.stored_bytes)));
        }
        Ok(manifest)
    }

    /// All pieces of its index.
    pub fn pieces(&self) -> impl Iterator<Item = &Chunk> {
        [&self.chunks, &self.entries, &self.problems].into_iter().flat_map(|list| &list.pieces)
    }
}

/// The ids of the sessions that may contain a file; the first one that exists contains it. They are the path itself, the path up to the first
/// dot in the file's name, the folders above it from the innermost to the outermost, and for archives of version 1 the other prefixes up to a
/// dot, and the session for everything else.
pub fn ids_of_path(path: &str, old: bool) -> impl Iterator<Item = &str> {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    let stem = path[name..].char_indices().skip(1).find(|(_, c)| *c == '.').map(|(dot, _)| &path[..name + dot]);
    let beginnings = |end| path.rmatch_indices(end).map(|(end, _)| &path[..end]);
    // A path may have a thousand dots.
    let of_old = old.then(|| beginnings('.').chain([WHOLE_HOME])).into_iter().flatten();
    std::iter::once(path).chain(stem).chain(beginnings('/')).chain(of_old)
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
        Manifest::empty(ManifestComputer { namespace: "t".into(), namespace_uid: None, name: "c".into(), uid: uid.into() }, 1)
    }

    /// A renamed variant must not change what archives contain.
    #[test]
    fn problems_keep_their_spelling() {
        let kinds = [ProblemKind::Unreadable, ProblemKind::Symlink, ProblemKind::Special, ProblemKind::Changed];
        assert_eq!(serde_json::json!(kinds), serde_json::json!(["unreadable", "symlink", "special", "changed"]));
        assert_eq!(serde_json::json!(kinds), serde_json::json!(kinds.map(ProblemKind::as_str)));
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
            manifest.chunks.pieces.push(Chunk { digest: name.clone(), size: 1 });
            let parsed = Manifest::parse(&serde_json::to_vec(&manifest).expect("json"));
            prop_assert_eq!(parsed.is_ok(), is_digest(&name));
        }
    }

    /// A reader that does not know how an archive is encrypted or compressed must not try to read it.
    #[test]
    fn an_unknown_algorithm_or_field_is_refused() {
        let good = serde_json::to_value(empty("u")).expect("json");
        let parse = |value: &serde_json::Value| Manifest::parse(&serde_json::to_vec(value).expect("json"));
        assert!(parse(&good).is_ok());
        for (field, value) in [("encryption", "aes"), ("compression", "xz"), ("digestAlgorithm", "md5"), ("another", "x")] {
            let mut bad = good.clone();
            bad[field] = value.into();
            assert!(parse(&bad).is_err(), "{field}");
        }
    }
}
