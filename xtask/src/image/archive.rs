//! The tar file around a layer: configuration, manifest, OCI index, and the table that `docker load` reads.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::layer::Layer;

/// How an image runs.
#[derive(Debug, Default)]
pub struct Image {
    /// Full name with tag.
    pub reference: &'static str,
    /// The entrypoint.
    pub entrypoint: Vec<String>,
    /// Its default arguments.
    pub command: Vec<String>,
    /// Numeric `uid:gid`, as `runAsNonRoot` requires.
    pub user: String,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// The working directory.
    pub directory: String,
}

impl Image {
    /// Writes the image with its only layer to `path`, atomically.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, layer: Layer, path: &Path) -> Result<PathBuf> {
        let layer = layer.into_bytes()?;
        let layer_digest = sha256(&layer);
        let config = serde_json::to_vec(&self.config(&layer_digest))?;
        let config_digest = sha256(&config);
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config_digest, config.len()),
            "layers": [descriptor("layer.v1.tar", &layer_digest, layer.len())],
        }))?;
        let index = self.index(&sha256(&manifest), manifest.len())?;
        let docker = json!([{
            "Config": blob(&config_digest),
            "RepoTags": [self.reference],
            "Layers": [blob(&layer_digest)],
        }]);
        let mut tar = Layer::new();
        for directory in ["blobs", "blobs/sha256"] {
            tar.directory(directory, 0o755, 0)?;
        }
        tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644, 0)?;
        tar.file("index.json", &serde_json::to_vec(&index)?, 0o644, 0)?;
        tar.file("manifest.json", &serde_json::to_vec(&docker)?, 0o644, 0)?;
        tar.file(&blob(&sha256(&manifest)), &manifest, 0o644, 0)?;
        tar.file(&blob(&config_digest), &config, 0o644, 0)?;
        tar.file(&blob(&layer_digest), &layer, 0o644, 0)?;
        // Two commands may pack at the same time.
        let temporary = path.with_extension(format!("{}.new", std::process::id()));
        fs::write(&temporary, tar.into_bytes()?).with_context(|| format!("write {}", temporary.display()))?;
        fs::rename(&temporary, path)?;
        Ok(path.to_owned())
    }

    fn config(&self, layer_digest: &str) -> Value {
        json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "User": self.user,
                "Env": self.environment,
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "WorkingDir": self.directory,
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
            "history": [{ "created_by": "cargo xtask image" }],
        })
    }

    fn index(&self, manifest_digest: &str, size: usize) -> Result<Value> {
        let tag = self.reference.rsplit_once(':').context("an image's name needs a tag")?.1;
        let mut manifest = descriptor("manifest.v1+json", manifest_digest, size);
        manifest["platform"] = json!({ "architecture": architecture(), "os": "linux" });
        manifest["annotations"] = json!({
            "io.containerd.image.name": self.reference,
            "org.opencontainers.image.ref.name": tag,
        });
        Ok(json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [manifest],
        }))
    }
}

fn descriptor(kind: &str, digest: &str, size: usize) -> Value {
    json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": format!("sha256:{digest}"),
        "size": size,
    })
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The machine's architecture, in the spelling of container tools.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
