//! The object store: a folder or S3. Manifests and receipts are create-only, data is content-addressed (S7). Only a request without progress
//! ends, whatever its size. An unknown outcome must never count as success, and only the store's own answer proves absence.

use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use parking_lot::Mutex;

use super::resumable_read::Reading;
use super::store_failure::{self, Failure};
use super::transport::Idle;
use crate::guards::{self, Guard};

mod bucket;
pub mod leftovers;
mod newest;
mod others;
mod space;

pub use space::Space;

/// Longest time for a small answer, and for the first part of a large one.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The slowest disk that is waited for, bytes a second: a write to a folder gives no sign of progress.
const SLOWEST: u64 = 64 * 1024;

/// Why a request to the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL cannot be used.
    #[error("{0}")]
    Config(String),
    /// There is no such object: the store itself says so.
    #[error("{0} is not in the store")]
    NotFound(String),
    /// Bytes that do not match their name or the manifest.
    #[error("damaged: {0}")]
    Corrupt(String),
    /// No answer, or a temporary failure. The same failure has the same text each time.
    #[error("{0}")]
    Unavailable(String),
}

/// The result of a create-only put.
#[derive(Debug, PartialEq, Eq)]
pub enum ReceiptPut {
    /// The object did not exist and was created.
    Created,
    /// The object existed with the same bytes.
    SameAlready,
    /// The object exists with other bytes, which are not changed.
    Other(Vec<u8>),
}

/// The type of a store, which determines which answers prove absence.
#[derive(Clone, Debug)]
enum Place {
    /// A folder, with its device and inode number when it was opened.
    Folder { path: PathBuf, device: u64, number: u64 },
    /// A bucket, over a transport that ends requests without progress.
    Bucket,
    /// Behind the ingest endpoint, whose answers have a limit of their own.
    Endpoint,
    /// In memory: for tests.
    Memory,
}

/// A store of archives.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    place: Place,
    idle: Idle,
    /// Why nothing may be written now: see [`Store::refuse_writes`].
    refused: Arc<Mutex<Option<String>>>,
    /// See [`Store::shared_with`].
    others: others::Others,
}

impl Store {
    /// Opens `file:///path` or `s3://bucket/prefix?endpoint=…&region=…&allow_http=true&ca_file=…&credentials_folder=…`. Without that folder the
    /// credentials come from `AWS_*` or the pod's cloud identity. A local folder is made if it does not exist.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        if let Some(path) = url.strip_prefix("file://") {
            std::fs::create_dir_all(path).map_err(|e| unusable(url, &e))?;
        }
        Self::open_with(url, Idle::default())
    }

    /// Opens an existing store: a missing folder is an error and is not created.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn open_existing(url: &str) -> Result<Self, StoreError> {
        Self::open_with(url, Idle::default())
    }

    /// Opens an existing store with other limits.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn open_with(url: &str, idle: Idle) -> Result<Self, StoreError> {
        let config = |e: &dyn std::fmt::Display| unusable(url, e);
        if let Some(path) = url.strip_prefix("file://") {
            let found = std::fs::metadata(path).map_err(|e| config(&e))?;
            let local = LocalFileSystem::new_with_prefix(path).map_err(|e| config(&e))?.with_fsync(true);
            let place = Place::Folder { path: path.into(), device: found.dev(), number: found.ino() };
            return Ok(Self::at(Arc::new(local), place, idle));
        }
        Ok(Self::at(bucket::open(url, idle)?, Place::Bucket, idle))
    }

    /// Wraps any object store.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self::at(inner, Place::Memory, Idle::default())
    }

    /// Wraps the ingest endpoint: it may take any time to answer, as long as it gives a sign of life.
    pub fn behind_endpoint(inner: Arc<dyn ObjectStore>) -> Self {
        Self::at(inner, Place::Endpoint, Idle::default())
    }

    fn at(inner: Arc<dyn ObjectStore>, place: Place, idle: Idle) -> Self {
        Self { inner, place, idle, refused: Arc::default(), others: others::Others::default() }
    }

    /// Refuses every write with this reason, until it is called with `None`. S7 rests on a store that does not overwrite, so nothing is
    /// written to a store that does, or that was not checked yet.
    pub fn refuse_writes(&self, why: Option<String>) {
        *self.refused.lock() = why;
    }

    /// Why nothing may be written now, if that is so.
    pub fn refusal(&self) -> Option<String> {
        self.refused.lock().clone()
    }

    /// The space of a store in a folder. `None`: the store is a bucket, which has no size.
    ///
    /// # Errors
    /// When the folder is not the one that was opened, or the system does not answer in time or does not report its space.
    pub async fn space(&self) -> Result<Option<Space>, StoreError> {
        let Place::Folder { path, .. } = &self.place else { return Ok(None) };
        // A volume that hangs must block neither this task nor the others of its thread.
        let (store, path) = (self.clone(), path.clone());
        let look = tokio::task::spawn_blocking(move || store.still_there().and_then(|()| Space::of(&path)));
        let found = self.limited(Some(TIMEOUT), "its volume", look).await?;
        found.map_err(|e| StoreError::Unavailable(e.to_string()))?.map(Some)
    }

    /// A whole small object.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] only when the store itself says so.
    pub async fn get(&self, key: &str) -> Result<Vec<u8>, StoreError> {
        let (size, mut stream) = self.sized_stream(key).await?;
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(64 << 20));
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        Ok(bytes)
    }

    /// An object of this size.
    ///
    /// # Errors
    /// As [`Store::get`]. [`StoreError::Corrupt`] when it has another size: nothing of it is read.
    pub async fn get_sized(&self, key: &str, size: u64) -> Result<Vec<u8>, StoreError> {
        let (found, mut stream) = self.sized_stream(key).await?;
        if found != size {
            return Err(StoreError::Corrupt(format!("{key} has {found} bytes, not {size}")));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        Ok(bytes)
    }

    /// An object as a stream. A read that breaks is resumed at its offset, as long as it makes progress.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn stream(&self, key: &str) -> Result<BoxStream<'static, std::io::Result<Bytes>>, StoreError> {
        let (_, stream) = self.sized_stream(key).await?;
        Ok(stream.map(|chunk| chunk.map_err(std::io::Error::other)).boxed())
    }

    async fn sized_stream(&self, key: &str) -> Result<(u64, BoxStream<'static, Result<Bytes, StoreError>>), StoreError> {
        let (path, limit) = (path(key)?, (!matches!(self.place, Place::Endpoint)).then_some(TIMEOUT));
        match self.limited(limit, key, self.inner.get(&path)).await? {
            Ok(found) => Ok((found.meta.size, Reading::new(Arc::clone(&self.inner), path, found, self.idle.silence).into_stream())),
            Err(error) => Err(self.absent(key, &error)),
        }
    }

    /// Size of an object.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn size(&self, key: &str) -> Result<u64, StoreError> {
        let path = path(key)?;
        match self.limited(Some(TIMEOUT), key, self.inner.head(&path)).await? {
            Ok(meta) => Ok(meta.size),
            // The answer to a HEAD has no body, so it does not say whether the object or its bucket is missing.
            Err(object_store::Error::NotFound { .. }) if matches!(self.place, Place::Bucket) => {
                let options = GetOptions::default();
                match self.limited(Some(TIMEOUT), key, self.inner.get_opts(&path, options)).await? {
                    Ok(found) => Ok(found.meta.size),
                    Err(error) => Err(self.absent(key, &error)),
                }
            }
            Err(error) => Err(self.absent(key, &error)),
        }
    }

    /// Creates an object. An existing object is not changed, and is compared.
    ///
    /// # Errors
    /// When the outcome is not known. Never [`StoreError::NotFound`].
    pub async fn put_once(&self, key: &str, bytes: impl Into<Bytes>) -> Result<ReceiptPut, StoreError> {
        let bytes = bytes.into();
        if self.create(key, bytes.clone()).await? {
            return Ok(ReceiptPut::Created);
        }
        match self.get(key).await {
            Ok(existing) => Ok(if existing == bytes { ReceiptPut::SameAlready } else { ReceiptPut::Other(existing) }),
            Err(StoreError::NotFound(_)) => Err(StoreError::Unavailable(format!(
                "{key} was refused because it exists, but it cannot be found: another write may be in progress"
            ))),
            Err(error) => Err(error),
        }
    }

    /// Creates an object. Returns whether it did not exist. An existing object is not changed.
    ///
    /// # Errors
    /// When the outcome is not known. Never [`StoreError::NotFound`].
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<bool, StoreError> {
        match self.refusal() {
            Some(why) => Err(StoreError::Unavailable(why)),
            None => self.create_unrefused(key, bytes).await,
        }
    }

    /// As [`Store::create`], for the check of the store, which decides whether writes are refused.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub(super) async fn create_unrefused(&self, key: &str, bytes: Bytes) -> Result<bool, StoreError> {
        // Without this look, a store whose volume is not mounted would write into the empty folder.
        if self.space().await?.is_some_and(|space| space::is_data(key) && !space.has_room_for(bytes.len() as u64)) {
            store_failure::count(store_failure::FULL);
            return Err(StoreError::Unavailable(
                "the archive store is full except for the reserve of receipts and manifests: free space on its volume, or enlarge it"
                    .to_owned(),
            ));
        }
        let mode = if guards::on(Guard::CreateOnly) { PutMode::Create } else { PutMode::Overwrite };
        let options = PutOptions { mode, ..PutOptions::default() };
        let (path, size) = (path(key)?, bytes.len() as u64);
        let put = self.inner.put_opts(&path, PutPayload::from(bytes), options);
        match self.limited(self.write_limit(size), key, put).await? {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(failed(key, &error)),
        }
    }

    /// UIDs with an archive or an incomplete archive.
    ///
    /// # Errors
    /// When the store does not answer. Never [`StoreError::NotFound`]: a store without archives lists none.
    pub async fn uids(&self) -> Result<Vec<String>, StoreError> {
        let prefix = Path::from("archives");
        let listing = self.inner.list_with_delimiter(Some(&prefix));
        let listed = self.limited(self.write_limit(64 << 20), "archives", listing).await?.map_err(|e| failed("archives", &e))?;
        if listed.common_prefixes.is_empty() {
            self.still_there()?;
        }
        Ok(listed.common_prefixes.iter().filter_map(|p| p.filename().map(str::to_owned)).collect())
    }

    /// Asks for the first object whose key begins with `prefix`, and returns whether there is one.
    ///
    /// # Errors
    /// When the store does not answer. Never [`StoreError::NotFound`].
    pub(super) async fn has_any(&self, prefix: &str) -> Result<bool, StoreError> {
        let prefix = Path::from(prefix);
        let mut listed = self.inner.list(Some(&prefix));
        let first = self.limited(Some(TIMEOUT), "a listing", listed.next()).await?;
        first.transpose().map(|first| first.is_some()).map_err(|e| failed("a listing", &e))
    }

    /// Deletes an object of a check. Besides these, only what no manifest names is ever deleted (S7): see `leftovers`.
    ///
    /// # Errors
    /// When it was not deleted: the right to delete is not required.
    pub(super) async fn delete_check(&self, key: &str) -> Result<(), StoreError> {
        let path = path(key)?;
        if !key.starts_with(super::store_check::FOLDER) {
            return Err(StoreError::Config(format!("{key} is not an object of a check")));
        }
        self.limited(Some(TIMEOUT), key, self.inner.delete(&path)).await?.map_err(|e| failed(key, &e))
    }

    /// A bucket's transport ends requests without progress. A folder does not report progress, so its time limit depends on the size.
    fn write_limit(&self, bytes: u64) -> Option<Duration> {
        (!matches!(self.place, Place::Bucket)).then(|| TIMEOUT + Duration::from_secs(bytes / SLOWEST))
    }

    async fn limited<T>(&self, limit: Option<Duration>, key: &str, request: impl Future<Output = T>) -> Result<T, StoreError> {
        let Some(limit) = limit else { return Ok(request.await) };
        let late = |_| {
            store_failure::count(store_failure::NO_ANSWER);
            StoreError::Unavailable(format!("the archive store does not answer about {key}: check that it runs"))
        };
        tokio::time::timeout(limit, request).await.map_err(late)
    }

    /// The meaning of a failed read: only the store's own answer proves absence.
    fn absent(&self, key: &str, error: &object_store::Error) -> StoreError {
        if !matches!(error, object_store::Error::NotFound { .. }) {
            return failed(key, error);
        }
        match &self.place {
            Place::Bucket if !Failure::of(error).says_no_such_key() => failed(key, error),
            _ => self.still_there().err().unwrap_or_else(|| StoreError::NotFound(key.to_owned())),
        }
    }

    /// Whether a folder is the one that was opened: an unmounted volume leaves an empty folder.
    fn still_there(&self) -> Result<(), StoreError> {
        let Place::Folder { path, device, number } = &self.place else { return Ok(()) };
        let shown = path.display();
        let gone = |why: &str| {
            store_failure::count(store_failure::FOLDER_MISSING);
            Err(StoreError::Unavailable(format!("the folder {shown} of the archive store {why}: check its volume")))
        };
        match std::fs::metadata(path) {
            Ok(found) if (found.dev(), found.ino()) == (*device, *number) => Ok(()),
            Ok(_) => gone("is not the one that was opened"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => gone("is gone"),
            Err(error) => Err(StoreError::Unavailable(Failure::of(&error).report())),
        }
    }
}

fn unusable(url: &str, error: &dyn std::fmt::Display) -> StoreError {
    // The query may contain keys.
    let shown = url.split_once('?').map_or(url, |(place, _)| place);
    StoreError::Config(format!("archive store {shown}: {error}"))
}

fn path(key: &str) -> Result<Path, StoreError> {
    Path::parse(key).map_err(|e| StoreError::Config(e.to_string()))
}

/// A failure as a stable text; the log has the original.
pub(super) fn failed(key: &str, error: &object_store::Error) -> StoreError {
    tracing::debug!(key, %error, "the archive store failed");
    StoreError::Unavailable(Failure::of(error).report())
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests;
