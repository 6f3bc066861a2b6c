//! Blobs and documents of the OCI image specification: descriptors, manifests and indexes. Pure: bytes and JSON only.
//!
//! It must never add a time or a name of its own: the same input gives the same digests.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of the configuration of a container image.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of an uncompressed layer.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of a layer that is compressed with gzip.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The annotation with the tag of an entry of `index.json`.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The file `oci-layout`.
pub const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Annotations, sorted.
pub type Annotations = BTreeMap<String, String>;

/// Content that is named by its digest.
#[derive(Clone, Debug)]
pub struct Blob {
    /// What it is.
    pub media_type: &'static str,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Blob {
    /// A JSON document.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn json(media_type: &'static str, document: &Value) -> Result<Self> {
        Ok(Self { media_type, bytes: serde_json::to_vec(document)? })
    }

    /// The manifest of one image or artifact. `annotations` may be empty.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn manifest(config: &Self, layers: &[&Self], annotations: &Annotations) -> Result<Self> {
        let layers: Vec<Value> = layers.iter().map(|layer| layer.descriptor()).collect();
        let document = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": layers,
        });
        Self::json(MANIFEST, &annotated(document, annotations))
    }

    /// `sha256:` and the digest of the content.
    pub fn digest(&self) -> String {
        format!("sha256:{}", sha256(&self.bytes))
    }

    /// Its path in a layout.
    pub fn path(&self) -> String {
        format!("blobs/sha256/{}", sha256(&self.bytes))
    }

    /// How other documents refer to it.
    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len() })
    }
}

/// An index of manifests, or of indexes.
pub fn index(entries: &[Value], annotations: &Annotations) -> Value {
    annotated(json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }), annotations)
}

/// A document or a descriptor with annotations. Without any, the key is left out.
pub fn annotated(mut document: Value, annotations: &Annotations) -> Value {
    if !annotations.is_empty() {
        document["annotations"] = json!(annotations);
    }
    document
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
