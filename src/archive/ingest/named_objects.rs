//! Whether everything that a manifest names is in the store. A stored manifest is permanent, so one that names what does not exist must never be stored.

use std::collections::HashSet;

use axum::http::StatusCode;
use futures::{StreamExt as _, TryStreamExt as _};

use super::keep_alive::Outcome;
use crate::archive::copies;
use crate::archive::index::{Lines, Pieces};
use crate::archive::manifest::{Chunk, List, Manifest};
use crate::archive::store::{Store, StoreError};

/// Chunks of one manifest that are checked in parallel.
const LOOKS: usize = 64;
/// Chunks that were looked up last, and are not looked up again.
const RECENT: usize = 8192;

/// Refuses a manifest that names an object which does not exist. Many are checked in parallel, because the pod waits.
///
/// # Errors
/// When one is missing, or the store does not answer.
pub async fn all_there(store: &Store, uid: &str, manifest: &Manifest) -> Result<(), Outcome> {
    let there = |chunk: Chunk| async move {
        match copies::is_stored(store, uid, &chunk).await {
            Ok(true) => Ok(()),
            Ok(false) => Err((StatusCode::BAD_REQUEST, format!("chunk {:?} is not in the store with the stated size", chunk.digest))),
            Err(error) => Err(failed(&error)),
        }
    };
    let pieces = futures::stream::iter(manifest.pieces().cloned().map(there));
    pieces.buffer_unordered(LOOKS).try_collect::<()>().await?;
    for list in [&manifest.entries, &manifest.problems].into_iter().filter(|list| list.nested) {
        let pieces = Pieces::new(store, uid, list);
        let pieces = futures::stream::try_unfold(pieces, |mut pieces| async move { Ok(pieces.next().await?.map(|piece| (piece, pieces))) });
        pieces.map_err(|error: StoreError| failed(&error)).map_ok(there).try_buffer_unordered(LOOKS).try_collect::<()>().await?;
    }
    // What is named often is looked up once: the requests are bounded by what the pod has sent.
    let mut seen = HashSet::new();
    let pieces = manifest.chunks.pieces.iter().filter(|piece| seen.insert(&piece.digest)).cloned().collect();
    let chunks = Lines::<Chunk>::uncounted(store, uid, &List { pieces, ..List::default() });
    let chunks = futures::stream::try_unfold((chunks, HashSet::new()), |(mut lines, mut recent)| async move {
        while let Some(chunk) = lines.next().await? {
            if recent.len() > RECENT {
                recent.clear();
            }
            if recent.insert(chunk.digest.clone()) {
                return Ok(Some((chunk, (lines, recent))));
            }
        }
        Ok(None)
    });
    chunks.map_err(|error: StoreError| failed(&error)).map_ok(there).try_buffer_unordered(LOOKS).try_collect().await
}

/// The answer for an object that the store did not take.
pub fn failed(error: &StoreError) -> Outcome {
    let status = match error {
        StoreError::Corrupt(_) => StatusCode::BAD_REQUEST,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, error.to_string())
}
