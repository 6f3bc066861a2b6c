//! The archive store of one replica. All replicas share one in-memory store, each request may fail, and no object may ever be
//! overwritten (S7).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use computer_operator::archive::manifest::Chunk;
use computer_operator::archive::{Manifest, chunk_key};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use sha2::{Digest as _, Sha256};

use crate::faults::{Side, Verdict};
use crate::world::{Caller, World};

#[derive(Clone)]
pub struct Shelf {
    world: World,
    caller: Caller,
    inner: Arc<InMemory>,
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shelf")
    }
}

impl fmt::Display for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shelf")
    }
}

/// The object stored under a key. An in-memory store answers at once.
pub fn peek(store: &InMemory, key: &str) -> Option<Bytes> {
    let read = async { store.get(&Path::from(key)).await.ok()?.bytes().await.ok() };
    read.now_or_never().flatten()
}

/// The digests of the chunks in the last complete archive of a computer: all objects exist and match their names.
pub fn archive(store: &InMemory, computer: &str) -> Option<Vec<String>> {
    let folder = Path::from(format!("archives/{computer}"));
    let listed = store.list_with_delimiter(Some(&folder)).now_or_never()?.ok()?;
    let last = listed.objects.iter().max_by_key(|o| o.last_modified)?;
    let manifest = Manifest::parse(&peek(store, last.location.as_ref())?).ok().filter(|m| m.computer.uid == computer)?;
    let whole = |chunk: &Chunk| {
        let object = peek(store, &chunk_key(computer, &chunk.digest))?;
        (hex::encode(Sha256::digest(&object)) == chunk.digest).then_some(object)
    };
    manifest.pieces().try_for_each(|piece| whole(piece).map(drop))?;
    let mut chunks = Vec::new();
    for piece in &manifest.chunks.pieces {
        let lines = zstd::decode_all(&whole(piece)?[..]).ok()?;
        for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let chunk: Chunk = serde_json::from_slice(line).ok()?;
            whole(&chunk)?;
            chunks.push(chunk.digest);
        }
    }
    Some(chunks)
}

/// A failure as a real store reports it: no two texts are equal, because they contain the duration and the id of the request.
#[derive(Debug)]
struct ReportedError {
    text: String,
    cause: Option<Box<ReportedError>>,
}

impl fmt::Display for ReportedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ReportedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

fn broken(why: &str) -> Error {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    let n = REQUESTS.fetch_add(1, Ordering::Relaxed);
    let cause = format!(
        "Server returned non-2xx status code: 503 Service Unavailable: <Error><Code>InternalError</Code><Message>{why}</Message><RequestId>{n:016X}</RequestId></Error>"
    );
    let text = format!("Error performing PUT http://store/key in {n}.{n}ms - {cause}");
    Error::Generic {
        store: "simulation",
        source: Box::new(ReportedError { text, cause: Some(Box::new(ReportedError { text: cause, cause: None })) }),
    }
}

impl Shelf {
    pub fn new(world: &World, caller: &Caller) -> Self {
        Self { world: world.clone(), caller: caller.clone(), inner: world.objects() }
    }

    async fn disturbed<T>(&self, what: &str, request: impl Future<Output = Result<T>>) -> Result<T> {
        let n = self.world.count(&self.caller);
        self.world.latency(&self.caller).await;
        let slow = self.world.faults().mix.store;
        if slow > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(self.world.random(slow))).await;
        }
        let down = self.world.faults().store_down;
        if down.is_some_and(|until| tokio::time::Instant::now() < until) {
            return Err(broken(&format!("the store is down, request {}", n.unwrap_or_default())));
        }
        Self::check(self.world.fire(&self.caller, n, Side::Before, what).await)?;
        let result = request.await;
        self.world.note(format!("{:>4} {:?} {what}: {}", n.unwrap_or(0), self.caller.actor, if result.is_ok() { "ok" } else { "no" }));
        Self::check(self.world.fire(&self.caller, n, Side::After, what).await)?;
        result
    }

    fn check(verdict: Verdict) -> Result<()> {
        match verdict {
            Verdict::Go => Ok(()),
            Verdict::Reset => Err(broken("connection reset")),
            Verdict::Answer(failure) => Err(broken(&failure.message)),
        }
    }

    /// A store that loses objects that it has accepted.
    async fn lose(&self, location: &Path) {
        let key = location.to_string();
        if !self.world.with(|s| s.observer.lossy) || !key.ends_with("/manifest.json") {
            return;
        }
        let prefix = key.replace("manifest.json", "chunks");
        let mut objects = self.inner.list(Some(&Path::from(prefix)));
        while let Some(Ok(object)) = objects.next().await {
            let _ = self.inner.delete(&object.location).await;
        }
    }

    /// S7, and S2's "nothing is archived before".
    fn stored(&self, location: &Path, before: Option<&Bytes>) {
        let key = location.to_string();
        let after = peek(&self.inner, &key);
        self.world.with(|s| {
            let mut observer = std::mem::take(&mut s.observer);
            observer.stored(s, &key, before, after.as_ref());
            s.observer = observer;
        });
    }
}

#[async_trait]
impl ObjectStore for Shelf {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let put = async {
            let before = peek(&self.inner, location.as_ref());
            let result = self.inner.put_opts(location, payload, options).await;
            self.stored(location, before.as_ref());
            self.lose(location).await;
            result
        };
        self.disturbed(&format!("STORE put {location}"), put).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let begin = self.inner.put_multipart_opts(location, options);
        let inner = self.disturbed(&format!("STORE begin {location}"), begin).await?;
        Ok(Box::new(Upload { shelf: self.clone(), location: location.clone(), inner }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.disturbed(&format!("STORE get {location}"), self.inner.get_opts(location, options)).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.world.with(|s| s.observer.violation("S7: something was deleted from the store".to_owned()));
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

#[derive(Debug)]
struct Upload {
    shelf: Shelf,
    location: Path,
    inner: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let own = self.shelf.clone();
        let finish = async {
            let before = peek(&own.inner, self.location.as_ref());
            let result = self.inner.complete().await;
            own.stored(&self.location, before.as_ref());
            result
        };
        own.disturbed(&format!("STORE finish {}", self.location), finish).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
