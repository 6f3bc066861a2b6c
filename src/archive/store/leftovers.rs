//! Listing and deleting of leftovers. These are the only deletions in a store besides those of its check (S7): the key is built here, so that it
//! can never be that of a manifest or a receipt. Nothing is deleted while writes are refused, because a store that overwrites objects may have lost
//! the manifest that references them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path as FilePath;
use std::sync::LazyLock;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use prometheus_client::metrics::counter::Counter;

use super::{Place, Store, StoreError, failed, path};
use crate::archive::leftovers::Object;
use crate::archive::store_failure::Failure;

/// Leftover objects and partial files that this process has removed.
pub static LEFTOVERS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Bytes that the time for one page of a listing is computed from.
const LISTING: u64 = 64 << 20;

/// A key, and when its object was stored, Unix seconds.
type Listed = Result<(String, i64), StoreError>;

impl Store {
    /// Everything under a UID, in no order.
    pub(in crate::archive) fn list_archive(&self, uid: &str) -> BoxStream<'_, Listed> {
        let listed = self.inner.list(Some(&Path::from(format!("archives/{uid}"))));
        futures::stream::unfold(listed, move |mut listed| async move {
            let next = self.limited(self.write_limit(LISTING), "a listing", listed.next()).await;
            let found = match next {
                Ok(None) => return None,
                Ok(Some(Ok(object))) => Ok((object.location.to_string(), object.last_modified.timestamp())),
                Ok(Some(Err(error))) => Err(failed("a listing", &error)),
                Err(error) => Err(error),
            };
            Some((found, listed))
        })
        .boxed()
    }

    /// The keys of the manifests of a UID, sorted. One request, however many chunks there are.
    pub(in crate::archive) async fn list_manifests(&self, uid: &str) -> Result<Vec<String>, StoreError> {
        let folder = Path::from(format!("archives/{uid}"));
        let listed = self.limited(self.write_limit(LISTING), "a listing", self.inner.list_with_delimiter(Some(&folder))).await?;
        let objects = listed.map_err(|error| failed("a listing", &error))?.objects;
        let prefix = format!("archives/{uid}/manifest");
        let mut keys: Vec<String> = objects.into_iter().map(|object| object.location.to_string()).collect();
        keys.retain(|key| key.starts_with(&prefix));
        keys.sort();
        Ok(keys)
    }

    /// Deletes an object of an archive. One that does not exist is deleted.
    ///
    /// # Errors
    /// When it was not deleted: the right to delete is not required, and a bucket may lock its objects.
    pub(in crate::archive) async fn delete_leftover(&self, uid: &str, object: &Object) -> Result<(), StoreError> {
        self.may_remove()?;
        let key = object.key(uid);
        let path = path(&key)?;
        let deleted = self.inner.delete(&path);
        match self.limited(self.write_limit(0), &key, deleted).await? {
            Ok(()) => {
                LEFTOVERS.inc();
                Ok(())
            }
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => {
                let why = failed(&key, &error);
                Err(StoreError::Unavailable(format!(
                    "cannot delete {key}: {why}. If the store denies it, grant s3:DeleteObject (docs/store.md) or set archive.collectLeftovers=false"
                )))
            }
        }
    }

    fn may_remove(&self) -> Result<(), StoreError> {
        self.refusal().map_or(Ok(()), |why| Err(StoreError::Unavailable(why)))
    }

    /// Counts partial files of a UID that were last written before this time (Unix seconds), and deletes them if `remove` is true. A local store writes
    /// `KEY#NUMBER` first and then links it into place; its listing omits these files. Buckets have none. `known`: whether this is the key of an object
    /// that this version writes.
    ///
    /// # Errors
    /// When the folder cannot be read in time, or a file cannot be deleted.
    pub(in crate::archive) async fn partial_files(
        &self,
        uid: &str,
        known: impl Fn(&str) -> bool + Send + 'static,
        before: i64,
        remove: bool,
    ) -> Result<u64, StoreError> {
        let Place::Folder { path, .. } = &self.place else { return Ok(0) };
        self.still_there()?;
        if remove {
            self.may_remove()?;
        }
        let (store, archive) = (path.clone(), format!("archives/{uid}"));
        let folders = ["receipts".to_owned(), format!("{archive}/chunks"), format!("{archive}/objects"), archive];
        let work = tokio::task::spawn_blocking(move || {
            let mut found = 0;
            for folder in &folders {
                found += in_folder(&store, folder, &known, (before, remove))?;
            }
            Ok::<_, io::Error>(found)
        });
        let done = self.limited(self.write_limit(LISTING), "a listing", work).await?;
        let found = done.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        found.map_err(|error| StoreError::Unavailable(Failure::of(&error).report()))
    }
}

/// The partial files in one folder of a local store.
fn in_folder(store: &FilePath, folder: &str, known: &impl Fn(&str) -> bool, (before, remove): (i64, bool)) -> io::Result<u64> {
    let entries = match fs::read_dir(store.join(folder)) {
        Ok(entries) => entries,
        // The deletion had no archive.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut found = 0;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some((object, number)) = name.to_str().and_then(|name| name.rsplit_once('#')) else { continue };
        let partial = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) && known(&format!("{folder}/{object}"));
        if !partial {
            continue;
        }
        let metadata = entry.metadata()?;
        if metadata.is_file() && metadata.mtime() < before {
            if remove {
                fs::remove_file(entry.path())?;
                LEFTOVERS.inc();
            }
            found += 1;
        }
    }
    Ok(found)
}
