//! OCI image layouts in a folder: `oci-layout`, `index.json`, and blobs that are named by their digests.
//!
//! [`verify`] follows every descriptor from `index.json`, so what it accepts can be copied to a registry without a surprise.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::image::oci::{self, Annotations, Blob, sha256};

/// Writes a layout. `entry`: the descriptor that gets the tag.
///
/// # Errors
/// When a file cannot be written.
pub fn write(folder: &Path, mut entry: Value, tag: &str, blobs: &[&Blob]) -> Result<()> {
    fs::create_dir_all(folder.join("blobs/sha256"))?;
    for blob in blobs {
        fs::write(folder.join(blob.path()), &blob.bytes)?;
    }
    entry["annotations"][oci::REF_NAME] = tag.into();
    let index = oci::index(&[entry], &Annotations::new());
    fs::write(folder.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(folder.join("oci-layout"), oci::LAYOUT)?;
    Ok(())
}

/// Checks a layout: each descriptor has the digest and the size of its blob, each layer of an image is what its configuration says, and
/// there are no other blobs. Returns the digests in `index.json`.
///
/// # Errors
/// Names the first blob or document that is wrong.
pub fn verify(folder: &Path) -> Result<Vec<String>> {
    let read = |name: &str| fs::read(folder.join(name)).with_context(|| format!("read {name} of {}", folder.display()));
    let layout: Value = serde_json::from_slice(&read("oci-layout")?).context("oci-layout")?;
    ensure!(layout["imageLayoutVersion"] == "1.0.0", "oci-layout has another version: {layout}");
    let index: Value = serde_json::from_slice(&read("index.json")?).context("index.json")?;
    let mut walk = Walk { folder: folder.to_owned(), reached: BTreeSet::new() };
    let entries = list(&index, "manifests")?;
    ensure!(!entries.is_empty(), "index.json lists nothing");
    for entry in entries {
        walk.descriptor(entry)?;
    }
    for file in fs::read_dir(folder.join("blobs/sha256"))? {
        let name = file?.file_name().to_string_lossy().into_owned();
        ensure!(walk.reached.contains(&name), "no document refers to the blob {name}");
    }
    Ok(entries.iter().filter_map(|entry| entry["digest"].as_str()).map(str::to_owned).collect())
}

fn list<'a>(document: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    document[key].as_array().with_context(|| format!("a document has no {key}"))
}

/// The blobs that have been reached.
struct Walk {
    folder: PathBuf,
    reached: BTreeSet<String>,
}

impl Walk {
    /// Checks a descriptor and everything below it. Its content.
    fn descriptor(&mut self, descriptor: &Value) -> Result<Vec<u8>> {
        let digest = descriptor["digest"].as_str().context("a descriptor without a digest")?;
        let name = digest.strip_prefix("sha256:").filter(|name| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()));
        let name = name.with_context(|| format!("not a sha256 digest: {digest}"))?;
        let bytes = fs::read(self.folder.join("blobs/sha256").join(name)).with_context(|| format!("read the blob {digest}"))?;
        ensure!(descriptor["size"].as_u64() == Some(bytes.len() as u64), "{digest} has {} bytes, not {}", bytes.len(), descriptor["size"]);
        ensure!(sha256(&bytes) == name, "the content of {digest} has the digest sha256:{}", sha256(&bytes));
        self.reached.insert(name.to_owned());
        match descriptor["mediaType"].as_str().context("a descriptor without a media type")? {
            oci::INDEX => {
                for entry in list(&document(&bytes, oci::INDEX)?, "manifests")? {
                    ensure!(entry["platform"]["os"].is_string(), "an image of {digest} has no platform");
                    self.descriptor(entry)?;
                }
            }
            oci::MANIFEST => self.manifest(&document(&bytes, oci::MANIFEST)?)?,
            _ => {}
        }
        Ok(bytes)
    }

    fn manifest(&mut self, manifest: &Value) -> Result<()> {
        let config = self.descriptor(&manifest["config"])?;
        let layers = list(manifest, "layers")?;
        let contents: Vec<Vec<u8>> = layers.iter().map(|layer| self.descriptor(layer)).collect::<Result<_>>()?;
        if manifest["config"]["mediaType"] != oci::CONFIG {
            return Ok(());
        }
        let config: Value = serde_json::from_slice(&config)?;
        let ids = list(&config["rootfs"], "diff_ids")?;
        ensure!(ids.len() == layers.len(), "the configuration has {} layers, the manifest {}", ids.len(), layers.len());
        for ((layer, bytes), id) in layers.iter().zip(contents).zip(ids) {
            let tar = match layer["mediaType"].as_str() {
                Some(oci::LAYER) => bytes,
                Some(oci::LAYER_GZIP) => {
                    let mut tar = Vec::new();
                    flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut tar)?;
                    tar
                }
                other => bail!("a layer with the media type {other:?}"),
            };
            ensure!(*id == format!("sha256:{}", sha256(&tar)), "the layer {} is not {id} of the configuration", layer["digest"]);
        }
        Ok(())
    }
}

fn document(bytes: &[u8], media_type: &str) -> Result<Value> {
    let document: Value = serde_json::from_slice(bytes)?;
    ensure!(document["mediaType"] == media_type && document["schemaVersion"] == 2, "not a {media_type}: {document}");
    Ok(document)
}
