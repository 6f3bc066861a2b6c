//! The objects of an archive by their digest. An object is never changed (S7). If one is damaged in the store while an archive pod still has
//! its bytes, another copy is stored beside it, and readers take the first copy that has the digest. Bytes without the digest must never be
//! returned, and an object that exists must never count as stored before it was read.

use bytes::Bytes;
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};

use super::chunk_key;
use super::manifest::{CHUNK, Chunk};
use super::store::{Store, StoreError};
use crate::runtime::blocking;

/// Copies of an object that a store may have.
pub(super) const COPIES: u32 = 3;

/// Key of a copy. The first one has the key of the format.
pub(super) fn copy_key(uid: &str, digest: &str, copy: u32) -> String {
    if copy == 0 { chunk_key(uid, digest) } else { format!("archives/{uid}/chunks/{digest}-{copy}.zst") }
}

/// The first copy with the right bytes.
///
/// # Errors
/// Without one: what is wrong with the first copy.
pub async fn read(store: &Store, uid: &str, chunk: &Chunk) -> Result<Vec<u8>, StoreError> {
    let mut first = None;
    for copy in 0..COPIES {
        match read_copy(store, uid, chunk, copy).await {
            Err(error @ (StoreError::Corrupt(_) | StoreError::NotFound(_))) => {
                // Copies are numbered without a gap. The first one may have been lost.
                let last = copy > 0 && matches!(error, StoreError::NotFound(_));
                first.get_or_insert(error);
                if last {
                    break;
                }
            }
            other => return other,
        }
    }
    Err(first.unwrap_or_else(|| StoreError::NotFound(chunk_key(uid, &chunk.digest))))
}

async fn read_copy(store: &Store, uid: &str, chunk: &Chunk, copy: u32) -> Result<Vec<u8>, StoreError> {
    let key = copy_key(uid, &chunk.digest, copy);
    let bytes = store.get_sized(&key, chunk.size).await?;
    let hashed = blocking::run(move || (hex::encode(Sha256::digest(&bytes)), bytes)).await;
    let (found, bytes) = hashed.map_err(|e| StoreError::Unavailable(e.to_string()))?;
    if found == chunk.digest { Ok(bytes) } else { Err(StoreError::Corrupt(format!("{key}: its bytes have sha256 {found}"))) }
}

/// The first copy that has this digest, whatever its size.
///
/// # Errors
/// As [`read`].
pub async fn with_digest(store: &Store, uid: &str, digest: &str) -> Result<Vec<u8>, StoreError> {
    let mut first = None;
    for copy in 0..COPIES {
        let key = copy_key(uid, digest, copy);
        let found = match store.size(&key).await {
            Ok(size) if size <= CHUNK as u64 => read_copy(store, uid, &Chunk { digest: digest.to_owned(), size }, copy).await,
            Ok(size) => Err(StoreError::Corrupt(format!("{key} has {size} bytes, more than a chunk"))),
            Err(error) => Err(error),
        };
        match found {
            Err(error @ (StoreError::Corrupt(_) | StoreError::NotFound(_))) => {
                let last = copy > 0 && matches!(error, StoreError::NotFound(_));
                first.get_or_insert(error);
                if last {
                    break;
                }
            }
            other => return other,
        }
    }
    Err(first.unwrap_or_else(|| StoreError::NotFound(chunk_key(uid, digest))))
}

/// Whether an object is in the store with its size.
///
/// # Errors
/// When the store does not answer.
pub async fn is_stored(store: &Store, uid: &str, chunk: &Chunk) -> Result<bool, StoreError> {
    if !chunk.is_valid() {
        return Ok(false);
    }
    for copy in 0..COPIES {
        match store.size(&copy_key(uid, &chunk.digest, copy)).await {
            Ok(size) if size == chunk.size => return Ok(true),
            Ok(_) => {}
            Err(StoreError::NotFound(_)) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Whether an object is in the store with the bytes of its digest. They are read, and not kept in memory.
///
/// # Errors
/// When the store does not answer.
pub async fn is_whole(store: &Store, uid: &str, digest: &str) -> Result<bool, StoreError> {
    for copy in 0..COPIES {
        match has_digest(store, &copy_key(uid, digest, copy), digest).await {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(StoreError::NotFound(_)) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

async fn has_digest(store: &Store, key: &str, digest: &str) -> Result<bool, StoreError> {
    let mut stream = store.stream(key).await?;
    let (mut hash, mut read) = (Sha256::new(), 0);
    while let Some(bytes) = stream.next().await.transpose().map_err(|e| StoreError::Unavailable(e.to_string()))? {
        read += bytes.len();
        if read > CHUNK {
            return Ok(false);
        }
        hash.update(&bytes);
    }
    Ok(hex::encode(hash.finalize()) == digest)
}

/// Stores an object, create-only, or another copy if the existing ones are damaged. Returns whether it was created.
///
/// # Errors
/// When the outcome is not known, or all copies are damaged.
pub async fn store(store: &Store, uid: &str, digest: &str, bytes: &Bytes) -> Result<bool, StoreError> {
    for copy in 0..COPIES {
        let key = copy_key(uid, digest, copy);
        // A server that refuses a large object while it is being sent closes the connection, so the store is asked first.
        let exists = match store.size(&key).await {
            Ok(_) => true,
            Err(StoreError::NotFound(_)) => false,
            Err(error) => return Err(error),
        };
        if !exists && store.create(&key, bytes.clone()).await? {
            return Ok(true);
        }
        match has_digest(store, &key, digest).await {
            Ok(true) => return Ok(false),
            Ok(false) => tracing::warn!(uid, digest, copy, "an object in the archive store is damaged; storing another copy"),
            Err(StoreError::NotFound(_)) => {
                let why = format!("{key} was refused because it exists, but it cannot be found: another write may be in progress");
                return Err(StoreError::Unavailable(why));
            }
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Corrupt(format!(
        "all {COPIES} copies of {} in the archive store have other bytes: remove them",
        chunk_key(uid, digest)
    )))
}
