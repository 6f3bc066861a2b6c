//! Tests of how many manifests are in memory at the same time.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};

use super::*;

/// A store that takes a moment for each object, and counts parallel reads.
#[derive(Debug, Default)]
struct Counting {
    inner: InMemory,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl std::fmt::Display for Counting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("counting")
    }
}

#[async_trait]
impl ObjectStore for Counting {
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
        tokio::time::sleep(Duration::from_secs(2)).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        self.inner.get_opts(location, options).await
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

/// Six parallel checks once took 413 MiB, because each kept its manifest, twice, while it waited for a slot.
#[tokio::test(start_paused = true)]
async fn one_manifest_is_in_memory_however_many_checks_wait() {
    let counting = Arc::new(Counting::default());
    let store = Arc::new(Store::new(Arc::<Counting>::clone(&counting)));
    let uids: Vec<String> = (0..6).map(|n| format!("u{n}")).collect();
    for uid in &uids {
        let manifest = serde_json::json!({"version": 1, "computer": {"namespace": "t", "name": "c", "uid": uid}, "createdAt": 1,
            "sessionPaths": [], "sessions": [], "problems": [], "problemCount": 0});
        store.put_once(&manifest_key(uid), serde_json::to_vec(&manifest).unwrap()).await.unwrap();
    }
    let (sender, mut checked) = mpsc::channel(16);
    let verifier = Verifier::new(store, sender);
    for uid in &uids {
        assert_eq!(verifier.check(uid, &Origin::default()), Verification::Running);
    }
    verifier.check("nobody", &Origin::default());
    // Whether an archive exists does not need a slot.
    assert_eq!(checked.recv().await.as_deref(), Some("nobody"));
    assert_eq!(verifier.check("nobody", &Origin::default()), Verification::Missing);
    let asked = verifier.with_archive("u0", async |_, archive| Ok(archive.computer().uid.clone()));
    assert_eq!(asked.await.unwrap(), "u0");
    for _ in &uids {
        checked.recv().await.unwrap();
    }
    assert!(uids.iter().all(|uid| matches!(verifier.check(uid, &Origin::default()), Verification::Valid(_))));
    assert_eq!(counting.most.load(Ordering::SeqCst), 1, "L3: manifests are read at the same time");
}
