//! Listing and deleting of what no manifest names. These are the only deletions in a store besides those of its check (S7): the key is built
//! here, so that it can never be that of a manifest or a receipt.

use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;

use super::{Store, StoreError, failed, path};
use crate::archive::leftovers::Object;

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
