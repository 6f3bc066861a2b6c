//! Which manifest of a computer is the newest. The manifests say so themselves: the times of objects are those of a copy, if the store was copied.

use object_store::{ObjectMeta, ObjectStore as _};

use super::leftovers::is_manifest;
use super::{Store, StoreError, failed, path};
use crate::archive::{Archive, manifest_key};

impl Store {
    /// Key of the manifest of a computer that was made last. There are several only where the UID was deleted more than once: see
    /// [`super::super::later_manifest_key`].
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn newest_manifest(&self, uid: &str) -> Result<String, StoreError> {
        let folder = path(&format!("archives/{uid}"))?;
        let listed = self
            .limited(self.write_limit(64 << 20), "archives", self.inner.list_with_delimiter(Some(&folder)))
            .await?
            .map_err(|e| failed("archives", &e))?;
        let first = manifest_key(uid);
        let later = |object: &ObjectMeta| object.location.as_ref() != first && is_manifest(uid, object.location.as_ref());
        let mut later: Vec<_> = listed.objects.into_iter().filter(later).collect();
        match later.len() {
            0 => Ok(first),
            1 => Ok(later.remove(0).location.to_string()),
            _ => self.newest_of(later).await,
        }
    }

    async fn newest_of(&self, later: Vec<ObjectMeta>) -> Result<String, StoreError> {
        let mut all = Vec::new();
        for object in later {
            let key = object.location.to_string();
            // One that cannot be read counts as the newest, so that an older archive is never taken for it.
            let made = Archive::parse(&self.get(&key).await?).map_or(i64::MAX, |archive| archive.created_at());
            all.push((made, object.last_modified, key));
        }
        Ok(all.into_iter().max().map(|(_, _, key)| key).unwrap_or_default())
    }
}
