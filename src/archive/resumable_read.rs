//! Reads an object of any size at any bandwidth. A read that breaks is resumed at its offset. It must never end while it makes progress.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectStore};

use super::store::{StoreError, failed};

/// How often in a row a read may break without receiving a byte.
const BREAKS: u32 = 4;

/// A read of one version of an object.
pub struct Reading {
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// The version, if the store names it: a read is never resumed in another version.
    version: Option<String>,
    size: u64,
    offset: u64,
    body: Option<BoxStream<'static, object_store::Result<Bytes>>>,
    /// Breaks since the last byte.
    breaks: u32,
    silence: Duration,
}

impl Reading {
    /// Reads the response to a request for the whole object.
    pub fn new(store: Arc<dyn ObjectStore>, path: Path, found: GetResult, silence: Duration) -> Self {
        let (version, size) = (found.meta.e_tag.clone(), found.meta.size);
        Self { store, path, version, size, offset: 0, body: Some(found.into_stream()), breaks: 0, silence }
    }

    /// All of it, or an error at the end.
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes, StoreError>> {
        futures::stream::try_unfold(self, Self::next).boxed()
    }

    async fn next(mut self) -> Result<Option<(Bytes, Self)>, StoreError> {
        loop {
            let broken = match self.part().await {
                Ok(Some(bytes)) => {
                    self.offset += bytes.len() as u64;
                    self.breaks = 0;
                    return Ok(Some((bytes, self)));
                }
                Ok(None) if self.offset == self.size => return Ok(None),
                Ok(None) => StoreError::Unavailable(format!("the archive store closed the response for {} before its end", self.path)),
                Err(error) => error,
            };
            self.breaks += 1;
            if self.breaks > BREAKS || self.version.is_none() || self.offset >= self.size {
                return Err(broken);
            }
            tracing::debug!(path = %self.path, offset = self.offset, %broken, "a read from the archive store broke; resuming at the offset");
            self.body = None;
            tokio::time::sleep(Duration::from_millis(200) * 2_u32.pow(self.breaks)).await;
        }
    }

    /// The next bytes; `None` at the end. Time between two calls does not count.
    async fn part(&mut self) -> Result<Option<Bytes>, StoreError> {
        let silent = |_| StoreError::Unavailable("the archive store makes no progress: it sends nothing".to_owned());
        let failed = |error| failed(self.path.as_ref(), &error);
        if self.body.is_none() {
            let options = GetOptions {
                range: Some(GetRange::Bounded(self.offset..self.size)),
                if_match: self.version.clone(),
                ..GetOptions::default()
            };
            let request = self.store.get_opts(&self.path, options);
            let found = tokio::time::timeout(self.silence, request).await.map_err(silent)?.map_err(failed)?;
            self.body = Some(found.into_stream());
        }
        let Some(body) = &mut self.body else { return Ok(None) };
        let next = tokio::time::timeout(self.silence, body.next()).await.map_err(silent)?;
        next.transpose().map_err(failed)
    }
}
