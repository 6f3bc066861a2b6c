//! A store in memory for tests: it counts what is read, takes a moment for each object, and fails when a test says so.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
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
    /// How often an object was looked for without reading it, and how long that takes.
    pub looks: AtomicUsize,
    pub look_delay: Mutex<Duration>,
    /// Decides which of these fail.
    pub look_fails: Mutex<Option<Box<Fails>>>,
    /// What a create-only request does.
    pub create: Create,
    /// Whether every write fails.
    pub down: AtomicBool,
    /// How many writes still fail, from the second one on.
    pub fail_puts: AtomicUsize,
    /// Whether every deletion is refused.
    pub keeps: AtomicBool,
    /// An object that appears when a folder is listed, and how many times that is done before.
    pub appears: Mutex<Option<(usize, String, Vec<u8>)>>,
    /// Whether a write was asked for.
    pub written: AtomicBool,
}

/// What a create-only request does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Create {
    /// One of several wins, and an existing object stays.
    #[default]
    Once,
    /// The condition is ignored.
    Overwrites,
    /// The condition is checked before the object is written, so that several of several win.
    Races,
    /// The first of several wins, and the content of the last one is stored.
    KeepsTheLast,
    /// Each one is refused.
    Refused,
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
        let throttled = self.written.swap(true, Ordering::SeqCst)
            && self.fail_puts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if throttled || self.down.load(Ordering::SeqCst) {
            return Err(Error::Generic { store: "test", source: "503 Slow Down".into() });
        }
        let overwrite = PutOptions { mode: PutMode::Overwrite, ..options.clone() };
        if options.mode != PutMode::Create {
            return self.inner.put_opts(location, payload, options).await;
        }
        match self.create {
            Create::Once => self.inner.put_opts(location, payload, options).await,
            Create::Overwrites => self.inner.put_opts(location, payload, overwrite).await,
            Create::Races => {
                if self.inner.head(location).await.is_ok() {
                    return self.inner.put_opts(location, payload, options).await;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                self.inner.put_opts(location, payload, overwrite).await
            }
            Create::KeepsTheLast => {
                let first = self.inner.put_opts(location, payload.clone(), options).await;
                self.inner.put_opts(location, payload, overwrite).await?;
                first
            }
            Create::Refused => Err(Error::AlreadyExists { path: location.to_string(), source: "412".into() }),
        }
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            self.looks.fetch_add(1, Ordering::SeqCst);
            let delay = *self.look_delay.lock().unwrap();
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if self.look_fails.lock().unwrap().as_mut().is_some_and(|fails| fails(location.as_ref())) {
                return Err(Error::Generic { store: "test", source: "503 Slow Down".into() });
            }
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
        if self.keeps.load(Ordering::SeqCst) {
            return locations.map(|_| Err(Error::Generic { store: "test", source: "403 Forbidden".into() })).boxed();
        }
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let now = self.appears.lock().unwrap().take_if(|(before, ..)| {
            let now = *before == 0;
            *before = before.saturating_sub(1);
            now
        });
        if let Some((_, key, bytes)) = now {
            self.inner.put(&key.as_str().into(), bytes.into()).await?;
        }
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
