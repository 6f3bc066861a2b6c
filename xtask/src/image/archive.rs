//! How an image runs, its blobs, and the tar file around them: an OCI layout with the table that `docker load` reads.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::layer::Layer;
use super::oci::{self, Annotations, Blob};

/// How an image runs.
#[derive(Debug, Default)]
pub struct Image {
    /// Full name with tag.
    pub reference: String,
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
    /// When it was built, in the format of RFC 3339. Empty: unknown.
    pub created: String,
    /// What it is, for people and scanners: annotations of the manifest, and labels. May be empty.
    pub annotations: Annotations,
}

/// The blobs of an image with one layer.
#[derive(Debug)]
pub struct Parts {
    /// The file system.
    pub layer: Blob,
    /// How it runs.
    pub config: Blob,
    /// What belongs together.
    pub manifest: Blob,
}

impl Image {
    /// The blobs of the image with its only layer. `compress`: the layer is compressed with gzip, as registries store it.
    ///
    /// # Errors
    /// When the layer cannot be packed.
    pub fn parts(&self, layer: Layer, compress: bool) -> Result<Parts> {
        let tar = layer.into_bytes()?;
        let config = Blob::json(oci::CONFIG, &self.config(&oci::sha256(&tar)))?;
        let layer = if compress {
            Blob { media_type: oci::LAYER_GZIP, bytes: super::layer::gzip(&tar)? }
        } else {
            Blob { media_type: oci::LAYER, bytes: tar }
        };
        let manifest = Blob::manifest(&config, &[&layer], &self.annotations)?;
        Ok(Parts { layer, config, manifest })
    }

    /// Writes the image with its only layer to `path`, atomically.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, layer: Layer, path: &Path) -> Result<PathBuf> {
        let parts = self.parts(layer, false)?;
        let docker = json!([{
            "Config": parts.config.path(),
            "RepoTags": [self.reference],
            "Layers": [parts.layer.path()],
        }]);
        let mut tar = Layer::new();
        for directory in ["blobs", "blobs/sha256"] {
            tar.directory(directory, 0o755, 0)?;
        }
        tar.file("oci-layout", oci::LAYOUT.as_bytes(), 0o644, 0)?;
        tar.file("index.json", &serde_json::to_vec(&self.index(&parts.manifest)?)?, 0o644, 0)?;
        tar.file("manifest.json", &serde_json::to_vec(&docker)?, 0o644, 0)?;
        for blob in [&parts.manifest, &parts.config, &parts.layer] {
            tar.file(&blob.path(), &blob.bytes, 0o644, 0)?;
        }
        // Two commands may pack at the same time.
        let temporary = path.with_extension(format!("{}.new", std::process::id()));
        fs::write(&temporary, tar.into_bytes()?).with_context(|| format!("write {}", temporary.display()))?;
        fs::rename(&temporary, path)?;
        Ok(path.to_owned())
    }

    fn config(&self, layer_digest: &str) -> Value {
        let mut config = json!({
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
        });
        if !self.annotations.is_empty() {
            config["config"]["Labels"] = json!(self.annotations);
        }
        if !self.created.is_empty() {
            config["created"] = json!(self.created);
            config["history"][0]["created"] = json!(self.created);
        }
        config
    }

    fn index(&self, manifest: &Blob) -> Result<Value> {
        let tag = self.reference.rsplit_once(':').context("an image's name needs a tag")?.1;
        let mut entry = manifest.descriptor();
        entry["platform"] = platform();
        entry["annotations"] = json!({
            "io.containerd.image.name": self.reference,
            oci::REF_NAME: tag,
        });
        Ok(oci::index(&[entry], &Annotations::new()))
    }
}

/// The platform of images that are built here.
pub fn platform() -> Value {
    json!({ "architecture": architecture(), "os": "linux" })
}

/// The machine's architecture, in the spelling of container tools.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
