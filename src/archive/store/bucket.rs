//! Opens a bucket: the client of S3, credentials and certificate authorities. Both are read from files as often as they are needed, so a rotated key
//! or certificate needs no restart. No text may contain a key.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::aws::{AmazonS3Builder, AwsCredential};
use object_store::client::CredentialProvider;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};

use super::unusable;
use crate::archive::StoreError;
use crate::archive::transport::{Idle, IdleConnector};

/// Parameters of the URL that are ours and not those of `object_store`.
const CA_FILE: &str = "ca_file";
const CREDENTIALS_FOLDER: &str = "credentials_folder";

/// Opens the bucket of a URL `s3://bucket/prefix?endpoint=…&ca_file=…&credentials_folder=…`. Without `credentials_folder` the credentials are those
/// of `AWS_*` or of the pod's cloud identity.
///
/// # Errors
/// When the URL or the file of certificate authorities cannot be used.
pub(super) fn open(url: &str, idle: Idle) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let config = |e: &dyn std::fmt::Display| unusable(url, e);
    let Some(rest) = url.strip_prefix("s3://") else {
        return Err(config(&"use file:///path or s3://bucket/prefix"));
    };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    // A few immediate retries; the callers retry later with backoff.
    let retry = RetryConfig { max_retries: 3, retry_timeout: Duration::from_secs(600), ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
    let mut ca_file = None;
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match key {
            CA_FILE => ca_file = Some(PathBuf::from(value)),
            CREDENTIALS_FOLDER => builder = builder.with_credentials(Arc::new(Mounted(value.into()))),
            _ => builder = builder.with_config(key.parse().map_err(|e: object_store::Error| config(&e))?, value),
        }
    }
    let s3 = builder.with_http_connector(IdleConnector { idle, ca_file }).build().map_err(|e| config(&e))?;
    Ok(Arc::new(PrefixStore::new(s3, prefix)))
}

/// The credentials in a mounted Secret.
#[derive(Debug)]
struct Mounted(PathBuf);

impl Mounted {
    fn read(&self) -> Result<AwsCredential, String> {
        // The kubelet replaces this link when the Secret has changed: all files must be those of one version.
        let folder = std::fs::canonicalize(self.0.join("..data")).unwrap_or_else(|_| self.0.clone());
        let value =
            |name: &str| read_value(&folder.join(name)).map_err(|e| format!("the Secret with the credentials has no usable {name}: {e}"));
        let token = folder.join("AWS_SESSION_TOKEN").exists().then(|| value("AWS_SESSION_TOKEN")).transpose()?;
        Ok(AwsCredential { key_id: value("AWS_ACCESS_KEY_ID")?, secret_key: value("AWS_SECRET_ACCESS_KEY")?, token })
    }
}

fn read_value(path: &Path) -> std::io::Result<String> {
    // An editor's newline at the end is not part of a key.
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

#[async_trait]
impl CredentialProvider for Mounted {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.read().map(Arc::new).map_err(|why| object_store::Error::Generic { store: "S3", source: why.into() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A Secret is mounted as a link to a folder that is replaced as a whole.
    #[test]
    fn a_rotated_secret_is_read_whole() {
        let mount = tempfile::tempdir().unwrap();
        let version = |name: &str, id: &str, key: &str| {
            let folder = mount.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("AWS_ACCESS_KEY_ID"), id).unwrap();
            std::fs::write(folder.join("AWS_SECRET_ACCESS_KEY"), key).unwrap();
            let link = mount.path().join("..next");
            std::os::unix::fs::symlink(&folder, &link).unwrap();
            std::fs::rename(link, mount.path().join("..data")).unwrap();
        };
        let read = || Mounted(mount.path().to_owned()).read().map(|c| (c.key_id, c.secret_key, c.token));
        version("..1", "one", "first\n");
        assert_eq!(read().unwrap(), ("one".to_owned(), "first".to_owned(), None));
        version("..2", "two", "second");
        assert_eq!(read().unwrap(), ("two".to_owned(), "second".to_owned(), None));
        std::fs::write(mount.path().join("..2/AWS_SESSION_TOKEN"), "token").unwrap();
        assert_eq!(read().unwrap().2.as_deref(), Some("token"));
        std::fs::remove_file(mount.path().join("..2/AWS_ACCESS_KEY_ID")).unwrap();
        let why = read().unwrap_err();
        assert!(why.contains("AWS_ACCESS_KEY_ID") && !why.contains("second"), "{why}");
    }
}
