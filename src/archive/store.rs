//! The object store: a folder or S3. Manifests and receipts are create-only, data is content-addressed (S7). Every call has a
//! timeout; what is unknown is an error.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart};
use sha2::{Digest, Sha256};

use crate::guards::{self, Guard};

/// Longest time for one small request to the store.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Longest pause in a stream of bytes.
const IDLE: Duration = Duration::from_secs(60);
/// Size of an upload's parts, and so of its buffer.
const PART: usize = 8 * 1024 * 1024;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL cannot be used.
    #[error("{0}")]
    Config(String),
    /// There is no such object: a live answer.
    #[error("{0} is not in the store")]
    NotFound(String),
    /// Bytes that are not what their name or the manifest says.
    #[error("damaged: {0}")]
    Corrupt(String),
    /// No answer, or a failure that may pass.
    #[error("{0}")]
    Unavailable(String),
}

/// What a create-only put met.
#[derive(Debug, PartialEq, Eq)]
pub enum ReceiptPut {
    /// It was not there.
    Created,
    /// The same bytes were there.
    SameAlready,
    /// Other bytes are there; they stay.
    Other(Vec<u8>),
}

/// A store of archives.
#[derive(Debug)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
}

impl Store {
    /// Opens `file:///path` or `s3://bucket/prefix?endpoint=…&region=…&allow_http=true` (credentials from `AWS_*`).
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        let config = |e: &dyn std::fmt::Display| StoreError::Config(format!("archive store {url}: {e}"));
        if let Some(path) = url.strip_prefix("file://") {
            std::fs::create_dir_all(path).map_err(|e| config(&e))?;
            let local = LocalFileSystem::new_with_prefix(path).map_err(|e| config(&e))?.with_fsync(true);
            return Ok(Self { inner: Arc::new(local) });
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return Err(config(&"use file:///path or s3://bucket/prefix"));
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let mut builder = object_store::aws::AmazonS3Builder::from_env().with_bucket_name(bucket);
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let key = key.parse().map_err(|e: object_store::Error| config(&e))?;
            builder = builder.with_config(key, value);
        }
        let s3 = builder.build().map_err(|e| config(&e))?;
        Ok(Self { inner: Arc::new(PrefixStore::new(s3, prefix)) })
    }

    /// Around any object store.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner }
    }

    /// A whole small object.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] only for a live answer.
    pub async fn get(&self, key: &str) -> Result<Vec<u8>, StoreError> {
        let path = path(key)?;
        let read = async { self.inner.get(&path).await?.bytes().await };
        // Not `to_vec`: nobody else holds these bytes, so they need not be copied.
        Ok(Vec::from(limited(key, read).await?))
    }

    /// An object as a stream.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn stream(&self, key: &str) -> Result<BoxStream<'static, std::io::Result<Bytes>>, StoreError> {
        let path = path(key)?;
        let found = limited(key, self.inner.get(&path)).await?;
        Ok(found.into_stream().map_err(std::io::Error::other).boxed())
    }

    /// Size of an object.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn size(&self, key: &str) -> Result<u64, StoreError> {
        Ok(limited(key, self.inner.head(&path(key)?)).await?.size)
    }

    /// Creates an object; what is there already stays as it is.
    ///
    /// # Errors
    /// When the outcome is not known.
    pub async fn put_once(&self, key: &str, bytes: impl Into<Bytes>) -> Result<ReceiptPut, StoreError> {
        let bytes = bytes.into();
        let mode = if guards::on(Guard::CreateOnly) { PutMode::Create } else { PutMode::Overwrite };
        let options = PutOptions { mode, ..PutOptions::default() };
        let path = path(key)?;
        let put = self.inner.put_opts(&path, PutPayload::from(bytes.clone()), options);
        match tokio::time::timeout(TIMEOUT, put).await {
            Ok(Ok(_)) => Ok(ReceiptPut::Created),
            Ok(Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })) => {
                let existing = self.get(key).await?;
                Ok(if existing == bytes { ReceiptPut::SameAlready } else { ReceiptPut::Other(existing) })
            }
            Ok(Err(error)) => Err(failed(key, error)),
            Err(_) => Err(timed_out(key)),
        }
    }

    /// Stores a content-addressed object from a stream, in bounded memory. Bytes that do not have this digest never become visible.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the digest is another one.
    pub async fn put_addressed<S>(&self, key: &str, digest: &str, mut body: S) -> Result<u64, StoreError>
    where
        S: futures::Stream<Item = Result<Bytes, std::io::Error>> + Unpin,
    {
        let path = path(key)?;
        let upload = limited(key, self.inner.put_multipart(&path)).await?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, PART);
        match receive(key, digest, &mut body, &mut writer).await {
            Ok(size) => {
                tokio::time::timeout(IDLE * 5, writer.finish()).await.map_err(|_| timed_out(key))?.map_err(|e| failed(key, e))?;
                Ok(size)
            }
            Err(error) => {
                if let Err(abort) = writer.abort().await {
                    tracing::warn!(key, %abort, "an upload was not aborted");
                }
                Err(error)
            }
        }
    }

    /// Key of the manifest of a computer that was stored last. There are several only where the UID was deleted more than once: see
    /// [`super::later_manifest_key`].
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn newest_manifest(&self, uid: &str) -> Result<String, StoreError> {
        let folder = path(&format!("archives/{uid}"))?;
        let listed = limited("archives", self.inner.list_with_delimiter(Some(&folder))).await?;
        let later = |name: &str| name.strip_prefix("manifest-").is_some_and(|rest| rest.strip_suffix(".json").is_some());
        let newest = listed.objects.iter().filter(|o| o.location.filename().is_some_and(later)).max_by_key(|o| o.last_modified);
        Ok(newest.map_or_else(|| super::manifest_key(uid), |o| o.location.to_string()))
    }

    /// UIDs that have an archive or the beginning of one.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn uids(&self) -> Result<Vec<String>, StoreError> {
        let prefix = Path::from("archives");
        let listed = limited("archives", self.inner.list_with_delimiter(Some(&prefix))).await?;
        Ok(listed.common_prefixes.iter().filter_map(|p| p.filename().map(str::to_owned)).collect())
    }
}

async fn receive<S>(key: &str, digest: &str, body: &mut S, writer: &mut WriteMultipart) -> Result<u64, StoreError>
where
    S: futures::Stream<Item = Result<Bytes, std::io::Error>> + Unpin,
{
    let (mut hash, mut size) = (Sha256::new(), 0_u64);
    while let Some(chunk) = tokio::time::timeout(IDLE, body.next()).await.map_err(|_| timed_out(key))? {
        let chunk = chunk.map_err(|e| StoreError::Unavailable(format!("the upload broke off: {e}")))?;
        hash.update(&chunk);
        size += chunk.len() as u64;
        writer.wait_for_capacity(2).await.map_err(|e| failed(key, e))?;
        writer.put(chunk);
    }
    let found = hex::encode(hash.finalize());
    if found != digest && guards::on(Guard::ObjectDigest) {
        return Err(StoreError::Corrupt(format!("the bytes have sha256 {found}, not {digest}")));
    }
    Ok(size)
}

fn path(key: &str) -> Result<Path, StoreError> {
    Path::parse(key).map_err(|e| StoreError::Config(e.to_string()))
}

async fn limited<T>(key: &str, request: impl Future<Output = object_store::Result<T>>) -> Result<T, StoreError> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(answer) => answer.map_err(|e| failed(key, e)),
        Err(_) => Err(timed_out(key)),
    }
}

fn failed(key: &str, error: object_store::Error) -> StoreError {
    match error {
        object_store::Error::NotFound { .. } => StoreError::NotFound(key.to_owned()),
        other => StoreError::Unavailable(other.to_string()),
    }
}

fn timed_out(key: &str) -> StoreError {
    StoreError::Unavailable(format!("no answer about {key} in time"))
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&format!("file://{}", folder.path().display())).expect("a store");
        (folder, store)
    }

    fn body(bytes: &'static [u8]) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Unpin {
        futures::stream::iter(bytes.chunks(3).map(|c| Ok(Bytes::from_static(c))))
    }

    #[tokio::test]
    async fn what_is_there_is_never_overwritten() {
        let (_folder, store) = store();
        assert_eq!(store.put_once("receipts/a.json", b"one".to_vec()).await.expect("put"), ReceiptPut::Created);
        assert_eq!(store.put_once("receipts/a.json", b"one".to_vec()).await.expect("put"), ReceiptPut::SameAlready);
        assert_eq!(store.put_once("receipts/a.json", b"two".to_vec()).await.expect("put"), ReceiptPut::Other(b"one".to_vec()));
        assert_eq!(store.get("receipts/a.json").await.expect("get"), b"one");
    }

    #[tokio::test]
    async fn bytes_of_another_digest_never_become_visible() {
        let (_folder, store) = store();
        let digest = hex::encode(Sha256::digest(b"hello world"));
        let key = super::super::object_key("u", &digest);
        assert!(matches!(store.put_addressed(&key, &digest, body(b"hello mars!")).await, Err(StoreError::Corrupt(_))));
        assert!(matches!(store.size(&key).await, Err(StoreError::NotFound(_))));
        assert_eq!(store.put_addressed(&key, &digest, body(b"hello world")).await.expect("put"), 11);
        assert_eq!(store.size(&key).await.expect("head"), 11);
        assert_eq!(store.uids().await.expect("list"), ["u"]);
    }

    #[test]
    fn a_url_that_cannot_be_used_says_what_can() {
        let error = Store::open("ftp://x").expect_err("refused").to_string();
        assert!(error.contains("file:///path or s3://"), "{error}");
    }
}
