//! Extension: what an archive contains, as one JSON document. It may list any number of sessions, so it is written line by line while the index is read.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::Stream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Opened, open};
use crate::archive::manifest::{Problem, ProblemKind};
use crate::archive::opened::{Entries, Listed};
use crate::archive::{Archive, Entry, Store, StoreError};
use crate::credentials::ComputerId;
use crate::http::Shared;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Id;
use crate::runtime::server::connections::Seat;

/// What an archive contains. Names come from the machine: show them only with control characters escaped.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveDocument {
    /// The id of the computer.
    pub computer_id: String,
    /// Its namespace.
    pub namespace: String,
    /// UID of that namespace. Missing for archives of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_uid: Option<String>,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// When it was packed, in Unix milliseconds.
    pub created_at: i64,
    /// SHA-256 of the manifest, which the receipt names.
    pub manifest_digest: String,
    /// The folders that were archived, relative to the home. None, or `.`: the whole home.
    pub session_paths: Vec<String>,
    /// Number of sessions.
    pub session_count: u64,
    /// Number of files in them.
    pub files: u64,
    /// Bytes of these files, including holes.
    pub bytes: u64,
    /// Bytes of the export.
    pub stored_bytes: u64,
    /// SHA-256 of the export. Missing for archives of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_digest: Option<String>,
    /// Bytes of the tar in it.
    pub tar_bytes: u64,
    /// Number of files that lost content; `problems` names them.
    pub lost: u64,
    /// Who decided that files may be left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out_by: Option<String>,
    /// The sessions.
    #[serde(default)]
    pub sessions: Vec<ArchivedSession>,
    /// What was not archived completely.
    #[serde(default)]
    pub problems: Vec<ArchiveProblem>,
}

/// A session in an archive.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchivedSession {
    /// Its id: the path of its files up to the first dot. Bytes that are not UTF-8 are shown as U+FFFD.
    pub id: String,
    /// The exact bytes of the id, base64, when they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_bytes: Option<String>,
    /// Files in it.
    pub files: u64,
    /// Their bytes, including holes.
    pub bytes: u64,
    /// Newest modification, in Unix milliseconds.
    pub last_modified: i64,
    /// Bytes of its export.
    pub stored_bytes: u64,
    /// SHA-256 of the tar in its export.
    pub tar_digest: String,
    /// Bytes of that tar.
    pub tar_bytes: u64,
}

/// A file that was not archived completely.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveProblem {
    /// Its path, relative to the home.
    pub path: String,
    /// The exact bytes of the path, base64, when they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    /// What: `unreadable` and `changed` lost content; a `symlink` leads out of the archive; `special` is a FIFO, socket or device.
    pub kind: String,
    /// Details.
    pub detail: String,
}

/// Show the archive
///
/// What the archive of a deleted computer contains: its sessions with sizes and digests, and what was not archived.
#[utoipa::path(
    get, path = "/api/v0/computers/{computerId}/archive", operation_id = "getComputerArchive", tag = "Computers",
    params(("computerId" = String, Path, description = "Computer ID")),
    responses(
        (status = 200, description = "Extension: what the archive contains", body = ArchiveDocument),
        (status = 404, description = "There is no verified archive, or the caller may not read it", body = ErrorBody),
        (status = 409, description = "The archive has the format of version 1", body = ErrorBody),
        (status = 500, description = "The request failed, or the archive is damaged", body = ErrorBody),
        (status = 501, description = "The API is not connected to the archives", body = ErrorBody),
    )
)]
pub async fn get_archive(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    seat: Option<Extension<Arc<Seat>>>,
    Id(id): Id,
) -> Result<Response, ApiError> {
    let (opened, place) = open(&shared, &caller, seat, &id).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "private, no-store"),
    ];
    let body: Body = place.send(written(&id, opened));
    Ok((headers, body).into_response())
}

fn head(id: &ComputerId, opened: &Opened) -> ArchiveDocument {
    let manifest = opened.manifest.clone();
    ArchiveDocument {
        computer_id: id.encode(),
        namespace: manifest.computer.namespace,
        namespace_uid: manifest.computer.namespace_uid,
        name: manifest.computer.name,
        uid: manifest.computer.uid,
        created_at: manifest.created_at.saturating_mul(1000),
        manifest_digest: opened.digest.clone(),
        session_paths: manifest.session_paths,
        session_count: manifest.sessions,
        files: manifest.files,
        bytes: manifest.bytes,
        stored_bytes: manifest.stored_bytes,
        stored_digest: Some(manifest.stored_digest).filter(|digest| !digest.is_empty()),
        tar_bytes: manifest.tar_bytes,
        lost: manifest.lost_count,
        left_out_by: Some(manifest.left_out_by).filter(|by| !by.is_empty()),
        sessions: Vec::new(),
        problems: Vec::new(),
    }
}

fn session(entry: Entry) -> ArchivedSession {
    let Entry { id, id_bytes, files, bytes, last_modified, digest, tar_bytes, offset: _, size } = entry;
    ArchivedSession {
        id,
        id_bytes,
        files,
        bytes,
        last_modified: last_modified.saturating_mul(1000),
        stored_bytes: size,
        tar_digest: digest,
        tar_bytes,
    }
}

fn problem(problem: Problem) -> ArchiveProblem {
    let Problem { path, path_bytes, kind, detail } = problem;
    let kind = match kind {
        ProblemKind::Unreadable => "unreadable",
        ProblemKind::Symlink => "symlink",
        ProblemKind::Special => "special",
        ProblemKind::Changed => "changed",
    };
    ArchiveProblem { path, path_bytes, kind: kind.to_owned(), detail }
}

/// A document that is being written.
struct Writing {
    next: Next,
    archive: Archive,
    store: Store,
}

/// What is written next.
enum Next {
    Head(String),
    /// The sessions, and whether none is written yet.
    Sessions(Entries, bool),
    /// The same of the problems.
    Problems(Listed<Problem>, bool),
    End,
}

/// Bytes after which what is written is sent.
const PART: usize = 16 * 1024;

/// The document in parts.
fn written(id: &ComputerId, opened: Opened) -> impl Stream<Item = Result<Bytes, StoreError>> + Send + use<> {
    let mut head = serde_json::to_value(head(id, &opened)).unwrap_or_default();
    if let Some(fields) = head.as_object_mut() {
        fields.shift_remove("sessions");
        fields.shift_remove("problems");
    }
    let (archive, store) = (Archive::New(Box::new(opened.manifest)), opened.store);
    let writing = Writing { next: Next::Head(head.to_string()), archive, store };
    futures::stream::try_unfold(writing, |mut writing| async move {
        let part = writing.part().await;
        let part = part.inspect_err(|error| tracing::error!(%error, "listing an archive failed, and the response is cut off"))?;
        Ok((!part.is_empty()).then(|| (Bytes::from(part), writing)))
    })
}

impl Writing {
    /// The next part; empty at the end.
    async fn part(&mut self) -> Result<String, StoreError> {
        let mut text = String::new();
        while text.len() < PART {
            self.next = match std::mem::replace(&mut self.next, Next::End) {
                Next::Head(head) => {
                    text.push_str(head.strip_suffix('}').unwrap_or(&head));
                    text.push_str(",\"sessions\":[");
                    Next::Sessions(self.archive.entries(&self.store), true)
                }
                Next::Sessions(mut entries, first) => self.sessions(&mut text, entries.next().await?, (entries, first)),
                Next::Problems(mut problems, first) => {
                    if let Some(found) = problems.next().await? {
                        line(&mut text, first, &problem(found));
                        Next::Problems(problems, false)
                    } else {
                        text.push_str("]}\n");
                        Next::End
                    }
                }
                Next::End => break,
            };
        }
        Ok(text)
    }

    /// Writes an entry, and returns what is next.
    fn sessions(&self, text: &mut String, entry: Option<Entry>, (entries, first): (Entries, bool)) -> Next {
        match entry {
            // Others are folders and links outside of sessions.
            Some(entry) if entry.files == 0 => Next::Sessions(entries, first),
            Some(entry) => {
                line(text, first, &session(entry));
                Next::Sessions(entries, false)
            }
            None => {
                text.push_str("],\"problems\":[");
                Next::Problems(self.archive.problems(&self.store), true)
            }
        }
    }
}

fn line(text: &mut String, first: bool, item: &impl Serialize) {
    text.push_str(if first { "\n" } else { ",\n" });
    text.push_str(&serde_json::to_string(item).unwrap_or_default());
}
