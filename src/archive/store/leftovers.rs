//! Listing and deleting of what no manifest names. These are the only deletions in a store besides those of its check (S7): the key is built
//! here, so that it can never be that of a manifest or a receipt.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path as FilePath;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;

use super::{Place, Store, StoreError, failed, path};
use crate::archive::leftovers::Object;
use crate::archive::store_failure::Failure;

/// A key, and when its object was stored, Unix seconds.
type Listed = Result<(String, i64), StoreError>;

impl Store {
    /// Everything under a UID, in no order.
    pub(in crate::archive) fn list_archive(&self, uid: &str) -> BoxStream<'_, Listed> {
        let listed = self.inner.list(Some(&Path::from(format!("archives/{uid}"))));
        futures::stream::unfold(listed, move |mut listed| async move {
            let next = self.limited(self.write_limit(64 << 20), "a listing", listed.next()).await;
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

    /// Counts partial files under a UID that were last written before this time (Unix seconds), and deletes them if `remove` is true. A local store writes
    /// `NAME#NUMBER` first and then links it into place; its listing omits these files. Buckets have none.
    ///
    /// # Errors
    /// When the folder cannot be read, or a file cannot be deleted.
    pub(in crate::archive) async fn unfinished(&self, uid: &str, before: i64, remove: bool) -> Result<u64, StoreError> {
        let Place::Folder { path, .. } = &self.place else { return Ok(0) };
        self.still_there()?;
        let (path, uid) = (path.clone(), uid.to_owned());
        let work = tokio::task::spawn_blocking(move || unfinished(&path, &uid, before, remove));
        let found = work.await.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        found.map_err(|error| StoreError::Unavailable(Failure::of(&error).report()))
    }

    /// Deletes an object of an archive. One that does not exist is deleted.
    ///
    /// # Errors
    /// When it was not deleted: the right to delete is not required, and a bucket may lock its objects.
    pub(in crate::archive) async fn delete_leftover(&self, uid: &str, object: &Object) -> Result<(), StoreError> {
        let key = object.key(uid);
        let path = path(&key)?;
        let deleted = self.inner.delete(&path);
        match self.limited(self.write_limit(0), &key, deleted).await? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(&key, &error)),
        }
    }
}

/// Implements [`Store::unfinished`] for a local store, whose folders are two levels deep.
fn unfinished(store: &FilePath, uid: &str, before: i64, remove: bool) -> io::Result<u64> {
    let archive = store.join("archives").join(uid);
    let receipt = format!("{uid}.json");
    let mut found = in_folder(&store.join("receipts"), |name| name == receipt, (before, remove))?;
    found += in_folder(&archive, |_| true, (before, remove))?;
    for entry in entries(&archive)? {
        if entry.file_type()?.is_dir() {
            found += in_folder(&entry.path(), |_| true, (before, remove))?;
        }
    }
    Ok(found)
}

/// The entries of a folder. None if it does not exist: the deletion had no archive.
fn entries(folder: &FilePath) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The unfinished writes in one folder, of objects with these names.
fn in_folder(folder: &FilePath, named: impl Fn(&str) -> bool, (before, remove): (i64, bool)) -> io::Result<u64> {
    let mut found = 0;
    for entry in entries(folder)? {
        let name = entry.file_name();
        let Some((object, number)) = name.to_str().and_then(|name| name.rsplit_once('#')) else { continue };
        let unfinished = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) && named(object);
        let of = entry.metadata()?;
        if unfinished && of.is_file() && of.mtime() < before {
            if remove {
                fs::remove_file(entry.path())?;
            }
            found += 1;
        }
    }
    Ok(found)
}
