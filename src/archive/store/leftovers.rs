//! Listing and deleting of leftovers and of erased archives. These are the only deletions in a store besides those of its check (S7). Keys of objects are
//! built here, and the key of a manifest is checked, so that nothing here can delete a receipt, a tombstone or anything of another computer. Nothing is
//! deleted while writes are refused, because a store that overwrites objects may have lost the manifest that references them.

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
use crate::archive::{later_manifest_key, manifest_key, tombstone};

/// Leftover objects and partial files that this process has removed.
pub static LEFTOVERS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Objects of erased archives that this process has removed, with their manifests.
pub static ERASED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Why objects are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::archive) enum Purpose {
    /// They are leftovers.
    Leftovers,
    /// They belong to an archive that is erased.
    Erasure,
}

impl Purpose {
    fn counter(self) -> &'static Counter {
        match self {
            Self::Leftovers => &LEFTOVERS,
            Self::Erasure => &ERASED,
        }
    }

    /// What to do if the store denies it.
    fn remedy(self) -> &'static str {
        match self {
            Self::Leftovers => "grant s3:DeleteObject (docs/store.md) or set archive.collectLeftovers=false",
            Self::Erasure => "grant s3:DeleteObject (docs/store.md). A bucket with Object Lock keeps it until its retention has ended",
        }
    }
}

/// Bytes that the time for one page of a listing is computed from.
const LISTING: u64 = 64 << 20;

/// An object in a listing.
#[derive(Clone, Debug)]
pub(in crate::archive) struct Listed {
    /// Its key.
    pub key: String,
    /// When it was stored, Unix seconds.
    pub stored: i64,
    /// Its size.
    pub bytes: u64,
}

impl Store {
    /// Everything under a UID, in no order.
    pub(in crate::archive) fn list_archive(&self, uid: &str) -> BoxStream<'_, Result<Listed, StoreError>> {
        self.listed(&format!("archives/{uid}"))
    }

    /// The keys of the tombstones of a UID, in no order.
    pub(in crate::archive) fn list_tombstones(&self, uid: &str) -> BoxStream<'_, Result<String, StoreError>> {
        self.listed(tombstone::folder(uid).trim_end_matches('/')).map(|listed| Ok(listed?.key)).boxed()
    }

    fn listed(&self, folder: &str) -> BoxStream<'_, Result<Listed, StoreError>> {
        let listed = self.inner.list(Some(&Path::from(folder)));
        futures::stream::unfold(listed, move |mut listed| async move {
            let next = self.limited(self.write_limit(LISTING), "a listing", listed.next()).await;
            let found = match next {
                Ok(None) => return None,
                Ok(Some(Ok(object))) => {
                    Ok(Listed { key: object.location.to_string(), stored: object.last_modified.timestamp(), bytes: object.size })
                }
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
    pub(in crate::archive) async fn delete_object(&self, uid: &str, object: &Object, purpose: Purpose) -> Result<(), StoreError> {
        self.delete(&object.key(uid), purpose).await
    }

    /// Deletes a manifest of an archive that is erased.
    ///
    /// # Errors
    /// When it was not deleted, or the key is not that of a manifest of this UID.
    pub(in crate::archive) async fn delete_manifest(&self, uid: &str, key: &str) -> Result<(), StoreError> {
        if !is_manifest(uid, key) {
            return Err(StoreError::Config(format!("{key} is not the key of a manifest of {uid}")));
        }
        self.delete(key, Purpose::Erasure).await
    }

    async fn delete(&self, key: &str, purpose: Purpose) -> Result<(), StoreError> {
        self.may_remove()?;
        let path = path(key)?;
        let deleted = self.inner.delete(&path);
        match self.limited(self.write_limit(0), key, deleted).await? {
            Ok(()) => {
                purpose.counter().inc();
                Ok(())
            }
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => {
                let (why, remedy) = (failed(key, &error), purpose.remedy());
                Err(StoreError::Unavailable(format!("cannot delete {key}: {why}. If the store denies it, {remedy}")))
            }
        }
    }

    /// Removes the empty folders of an archive from a local store, and makes sure that what was deleted stays deleted after a power failure. Buckets
    /// have no folders.
    ///
    /// # Errors
    /// When the folders cannot be synchronized in time.
    pub(in crate::archive) async fn settle_removal(&self, uid: &str) -> Result<(), StoreError> {
        let Place::Folder { path, .. } = &self.place else { return Ok(()) };
        self.still_there()?;
        let archives = path.join("archives");
        let own = archives.join(uid);
        let work = tokio::task::spawn_blocking(move || {
            for folder in [own.join("chunks"), own.join("objects"), own] {
                match fs::File::open(&folder) {
                    Ok(open) => open.sync_all()?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
                // It fails if the folder is not empty, which is right.
                let _ = fs::remove_dir(&folder);
            }
            fs::File::open(&archives)?.sync_all()
        });
        let done = self.limited(self.write_limit(LISTING), "a folder", work).await?;
        let done = done.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        done.map_err(|error| StoreError::Unavailable(Failure::of(&error).report()))
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
        let tombstones = tombstone::folder(uid).trim_end_matches('/').to_owned();
        let folders = ["receipts".to_owned(), tombstones, format!("{archive}/chunks"), format!("{archive}/objects"), archive];
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

/// Whether this is the key of a manifest of a UID.
pub(in crate::archive) fn is_manifest(uid: &str, key: &str) -> bool {
    let claim = key.strip_prefix(&format!("archives/{uid}/manifest-")).and_then(|rest| rest.strip_suffix(".json"));
    key == manifest_key(uid) || claim.is_some_and(|claim| !claim.contains('/') && key == later_manifest_key(uid, claim))
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
