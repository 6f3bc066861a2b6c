//! Extension: the archive as a file, or one session of it. The chunks in order are one `.tar.zst`, and so are the frames of a session, so nothing is
//! unpacked here and a client can resume anywhere.

use std::ops::Range;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use base64::Engine as _;

use super::range::{self, Asked};
use super::sending::{Place, stored};
use super::{Opened, open};
use crate::archive::{Archive, Entry, StoreError};
use crate::credentials::ComputerId;
use crate::http::Shared;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Id;
use crate::runtime::server::connections::Seat;

/// SHA-256 of the tar when it is decompressed (of a session only), and its bytes.
const TAR_DIGEST: HeaderName = HeaderName::from_static("computer-tar-sha256");
const TAR_BYTES: HeaderName = HeaderName::from_static("computer-tar-bytes");
/// RFC 9530: the digest of the whole file, also in the answer to a part of it.
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// A file to send: where it lies in the chunks of the archive, and what is known about it.
struct File {
    name: String,
    etag: String,
    within: Range<u64>,
    headers: Vec<(HeaderName, String)>,
}

/// Export the archive
///
/// All sessions as one `.tar.zst`. `Content-Length` is its size, `Repr-Digest` its SHA-256 (missing for archives of earlier versions), and
/// `Computer-Tar-Bytes` the size of the tar in it. `Range` with `If-Range` resumes it. A failed export is cut off before its `Content-Length`.
#[utoipa::path(
    get, path = "/api/v0/computers/{computerId}/archive/export", operation_id = "exportComputerArchive", tag = "Computers",
    params(("computerId" = String, Path, description = "Computer ID")),
    responses(
        (status = 200, description = "Extension: the archive", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, description = "Extension: a part of the archive", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 404, description = "There is no verified archive, or the caller may not read it", body = ErrorBody),
        (status = 409, description = "The archive has the format of version 1", body = ErrorBody),
        (status = 416, description = "The part does not exist", body = ErrorBody),
        (status = 500, description = "The request failed, or the archive is damaged", body = ErrorBody),
        (status = 501, description = "The API is not connected to the archives", body = ErrorBody),
    )
)]
pub async fn export_archive(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    seat: Option<Extension<Arc<Seat>>>,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (opened, place) = open(&shared, &caller, seat, &id).await?;
    let file = File {
        name: format!("{}-{}.tar.zst", id.name, id.uid),
        etag: format!("\"{}\"", opened.digest),
        within: 0..opened.manifest.stored_bytes,
        headers: [(TAR_BYTES, opened.manifest.tar_bytes.to_string())]
            .into_iter()
            .chain(repr_digest(&opened.manifest.stored_digest))
            .collect(),
    };
    answer(file, &headers, &opened, place)
}

/// Export one session
///
/// One session as a `.tar.zst`, by its id in the manifest, percent-encoded. `Computer-Tar-SHA256` and `Computer-Tar-Bytes` are those of the tar in it.
/// Otherwise like the export of the archive.
#[utoipa::path(
    get, path = "/api/v0/computers/{computerId}/archive/sessions/{sessionId}", operation_id = "exportArchivedSession", tag = "Computers",
    params(
        ("computerId" = String, Path, description = "Computer ID"),
        ("sessionId" = String, Path, description = "Id of the session in the manifest, percent-encoded"),
    ),
    responses(
        (status = 200, description = "Extension: the session", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, description = "Extension: a part of the session", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 404, description = "There is no such session in a verified archive, or the caller may not read it", body = ErrorBody),
        (status = 409, description = "The archive has the format of version 1, or several sessions have this id", body = ErrorBody),
        (status = 416, description = "The part does not exist", body = ErrorBody),
        (status = 500, description = "The request failed, or the archive is damaged", body = ErrorBody),
        (status = 501, description = "The API is not connected to the archives", body = ErrorBody),
    )
)]
pub async fn export_session(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    seat: Option<Extension<Arc<Seat>>>,
    path: Result<Path<(String, String)>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Path((computer, session)) = path.map_err(|_| super::hidden())?;
    let id = ComputerId::decode(&computer).ok_or_else(super::hidden)?;
    let (opened, place) = open(&shared, &caller, seat, &id).await?;
    let entry = find(&opened, &session).await?;
    let file = File {
        // Never the id of the session: its machine chose it, and it may contain anything.
        name: format!("{}-{}-{}.tar.zst", id.name, id.uid, &entry.digest[..16]),
        // A client knows both digests from the document, so that it can resume.
        etag: format!("\"{}-{}\"", entry.digest, opened.digest),
        within: entry.offset..entry.offset.saturating_add(entry.size),
        headers: vec![(TAR_DIGEST, entry.digest), (TAR_BYTES, entry.tar_bytes.to_string())],
    };
    answer(file, &headers, &opened, place)
}

/// The only session with this id. Names that are not UTF-8 can look the same.
async fn find(opened: &Opened, id: &str) -> Result<Entry, ApiError> {
    let failed = |error: StoreError| match error {
        StoreError::Unavailable(why) => super::unavailable(&why),
        _ => super::damaged(),
    };
    let archive = Archive::New(Box::new(opened.manifest.clone()));
    let (mut entries, mut found) = (archive.entries(&opened.store), None);
    while let Some(entry) = entries.next().await.map_err(failed)? {
        if entry.files > 0 && entry.id == id && found.replace(entry).is_some() {
            return Err(ApiError::conflict("several sessions have this id, because their names are not UTF-8: export the whole archive"));
        }
    }
    let entry = found.ok_or_else(super::hidden)?;
    if crate::archive::manifest::is_digest(&entry.digest) { Ok(entry) } else { Err(super::damaged()) }
}

/// The header for a digest in hexadecimal.
fn repr_digest(hex: &str) -> Option<(HeaderName, String)> {
    let digest = hex::decode(hex).ok().filter(|digest| !digest.is_empty())?;
    Some((REPR_DIGEST, format!("sha-256=:{}:", base64::engine::general_purpose::STANDARD.encode(digest))))
}

fn answer(file: File, asked: &HeaderMap, opened: &Opened, place: Place) -> Result<Response, ApiError> {
    let (from, length) = (file.within.start, file.within.end - file.within.start);
    let part = match range::asked(asked, &file.etag, length) {
        Asked::Nothing => {
            return Err(
                ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("the file has only {length} bytes")).with("length", length)
            );
        }
        Asked::Whole => None,
        Asked::Part(part) => Some(part),
    };
    let sent = part.clone().unwrap_or(0..length);
    let mut response = Response::new(Body::empty());
    let mut headers = vec![
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{}\"", file.name)),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::CACHE_CONTROL, "private, no-store, no-transform".to_owned()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, file.etag),
        (header::CONTENT_LENGTH, (sent.end - sent.start).to_string()),
    ];
    headers.extend(file.headers);
    if part.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        headers.push((header::CONTENT_RANGE, format!("bytes {}-{}/{length}", sent.start, sent.end - 1)));
    }
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_str(&value).map_err(|_| super::damaged())?);
    }
    let range = from.saturating_add(sent.start)..from.saturating_add(sent.end);
    *response.body_mut() = place.send(stored(opened, range));
    Ok(response)
}
