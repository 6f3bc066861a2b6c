//! A store in memory for tests: it counts what is read, takes a moment for each object, and fails when a test says so.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result,
};

/// Whether the read of an object fails, by its key.
type Fails = dyn FnMut(&str) -> bool + Send;

/// A store that a test controls.
#[derive(Default)]
pub struct TestStore {
    pub inner: InMemory,
    /// Time that each read takes.
    pub delay: Duration,
    /// Keys that were read successfully, in order.
    pub read: Mutex<Vec<String>>,
    /// Most reads at the same time.
    pub most: AtomicUsize,
    /// Decides which reads fail.
    pub fails: Mutex<Option<Box<Fails>>>,
    pub now: AtomicUsize,
}

impl std::fmt::Debug for TestStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("test store")
    }
}

impl std::fmt::Display for TestStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("test store")
    }
}

impl TestStore {
    /// From now on, reads fail as this says.
    pub fn fail(&self, fails: impl FnMut(&str) -> bool + Send + 'static) {
        *self.fails.lock().unwrap() = Some(Box::new(fails));
    }

    /// How often an object was read successfully.
    pub fn reads(&self, key: &str) -> usize {
        self.read.lock().unwrap().iter().filter(|read| *read == key).count()
    }
}

#[async_trait]
impl ObjectStore for TestStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            return self.inner.get_opts(location, options).await;
        }
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(self.delay).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        if self.fails.lock().unwrap().as_mut().is_some_and(|fails| fails(location.as_ref())) {
            return Err(Error::Generic { store: "test", source: "503 Slow Down".into() });
        }
        let found = self.inner.get_opts(location, options).await?;
        self.read.lock().unwrap().push(location.to_string());
        Ok(found)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
