//! Responses of any size. One chunk of an archive and a piece of its index are in memory for each of them, so their number is bounded, and shared between
//! tenants like the memory of other large responses: a slow one gives way when another tenant needs its place, and can be resumed. There is no limit for
//! the whole time.
//!
//! A response that fails is cut off: it is shorter than its `Content-Length`, or its last chunk is missing. It must never look whole.

use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use futures::Stream;

use super::Opened;
use crate::archive::StoreError;
use crate::archive::index::Chunks;
use crate::http::Shared;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::response_body::Sending;
use crate::http::tenant_limits::{EXPORT, Room, Share};
use crate::runtime::server::connections::Seat;

/// Bytes that are given to the connection at once. They are copied: a slow client must not keep a whole chunk and the next one.
const PART: usize = 64 * 1024;

/// The place of one response; released when dropped.
pub(super) struct Place {
    room: Room,
    _share: Share,
}

impl Place {
    /// # Errors
    /// 429 if the tenant, or all tenants, have as many already, and all of them are read.
    pub fn take(shared: &Shared, caller: &Caller, seat: Option<Arc<Seat>>) -> Result<Self, ApiError> {
        let busy = || {
            let detail = "too many archives are being sent, for your namespace or in total: wait for one to end, or retry in some seconds";
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, detail)
        };
        let share = shared.exports.take(caller).ok_or_else(busy)?;
        let room = share.room(EXPORT, seat).ok_or_else(busy)?;
        // The store comes first: until it has answered, nothing can be read slowly.
        room.sent().waits();
        Ok(Self { room, _share: share })
    }

    /// A body that keeps the place until it has been sent.
    pub fn send(self, parts: impl Stream<Item = Result<Bytes, StoreError>> + Send + 'static) -> Body {
        let sent = self.room.sent();
        Body::new(Sending::new(Body::from_stream(parts), self, sent))
    }
}

/// The bytes of an archive in this range. Each is part of a chunk whose digest was verified.
pub(super) fn stored(opened: &Opened, range: Range<u64>) -> impl Stream<Item = Result<Bytes, StoreError>> + Send + use<> {
    let chunks = Chunks::new(&opened.store, &opened.manifest, range).one_at_a_time();
    futures::stream::try_unfold((chunks, Vec::new(), 0), |(mut chunks, mut chunk, mut at)| async move {
        while at == chunk.len() {
            // Before the next one is read.
            drop(std::mem::take(&mut chunk));
            let next = chunks
                .next()
                .await
                .inspect_err(|error| tracing::error!(%error, "sending an archive failed, and the response is cut off"))?;
            let Some((_, bytes)) = next else { return Ok(None) };
            (chunk, at) = (bytes, 0);
        }
        let end = chunk.len().min(at + PART);
        let part = Bytes::copy_from_slice(&chunk[at..end]);
        Ok(Some((part, (chunks, chunk, end))))
    })
}
