//! A store in memory whose client dies at a request.

use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result,
};

/// How the request ends that the client dies at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// It has no effect.
    Before,
    /// It takes effect, and nobody learns of it.
    After,
}

/// The store.
#[derive(Debug)]
pub struct CrashingStore {
    pub inner: InMemory,
    /// Requests until the crash; below 0: it has happened.
    left: AtomicIsize,
    effect: AtomicBool,
}

impl Default for CrashingStore {
    fn default() -> Self {
        Self { inner: InMemory::new(), left: AtomicIsize::new(isize::MAX), effect: AtomicBool::new(false) }
    }
}

impl std::fmt::Display for CrashingStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("crashing store")
    }
}

fn dead<T>() -> Result<T> {
    Err(Error::Generic { store: "test", source: "the client is dead".into() })
}

impl CrashingStore {
    /// The client dies at the n-th request from now on, counted from 0.
    pub fn die_at(&self, n: usize, crash: Crash) {
        self.effect.store(crash == Crash::After, Ordering::SeqCst);
        self.left.store(isize::try_from(n).unwrap(), Ordering::SeqCst);
    }

    /// Another client. Returns whether the last one was alive.
    pub fn revive(&self) -> bool {
        self.left.swap(isize::MAX, Ordering::SeqCst) >= 0
    }

    /// Whether this request takes effect, and whether its client learns of it.
    fn next(&self) -> (bool, bool) {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        (left > 0 || (left == 0 && self.effect.load(Ordering::SeqCst)), left > 0)
    }
}

#[async_trait]
impl ObjectStore for CrashingStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let (takes_effect, alive) = self.next();
        if !takes_effect {
            return dead();
        }
        let done = self.inner.put_opts(location, payload, options).await;
        if alive { done } else { dead() }
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if self.next().1 { self.inner.get_opts(location, options).await } else { dead() }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (takes_effect, alive) = self.next();
        if !takes_effect {
            return locations.map(|_| dead()).boxed();
        }
        let done = self.inner.delete_stream(locations);
        if alive { done } else { done.map(|_| dead()).boxed() }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.next().1 { self.inner.list(prefix) } else { futures::stream::iter([dead()]).boxed() }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        if self.next().1 { self.inner.list_with_delimiter(prefix).await } else { dead() }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
