//! The chart as a file that Helm reads, and as the OCI artifact that `helm push` would write.
//!
//! It packs the files itself, because `helm package` writes the current time into the file. `tests/chart` renders the result with Helm.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::layout;
use super::pack::{self, Entry};
use super::source::{self, Source};
use crate::image::oci::{Annotations, Blob};

/// Helm's media type of the content of `Chart.yaml`, as JSON.
const CONFIG: &str = "application/vnd.cncf.helm.config.v1+json";
/// Helm's media type of the packed chart.
const CONTENT: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
/// The chart's folder in the workspace.
const FOLDER: &str = "charts/computer-operator";

/// A packed chart.
#[derive(Debug)]
pub struct Chart {
    /// The file name that Helm expects.
    pub file: String,
    /// The packed files.
    pub bytes: Vec<u8>,
    /// The content of `Chart.yaml`.
    metadata: Value,
}

/// Packs the chart of the workspace: the files that git knows.
///
/// # Errors
/// When a file cannot be read, or the chart has another version than the program.
pub fn package(workspace: &Path, source: &Source) -> Result<Chart> {
    let mut entries = Vec::new();
    for name in source::files(workspace, FOLDER)? {
        let path = name.strip_prefix(FOLDER).context("a file outside of the chart")?.trim_start_matches('/');
        entries.push(Entry::new(path, fs::read(workspace.join(&name)).with_context(|| format!("read {name}"))?));
    }
    pack(entries, source)
}

/// Packs the files of a chart. Their paths begin in the chart's folder.
///
/// # Errors
/// When there is no `Chart.yaml`, or it has another version than the program.
pub fn pack(entries: Vec<Entry>, source: &Source) -> Result<Chart> {
    let file = entries.iter().find(|entry| entry.path == "Chart.yaml").context("the chart has no Chart.yaml")?;
    let metadata: Value = serde_yaml_ng::from_slice(&file.bytes).context("parse Chart.yaml")?;
    for key in ["version", "appVersion"] {
        ensure!(metadata[key] == source.version.as_str(), "Chart.yaml has {key} {}, the program {}", metadata[key], source.version);
    }
    let name = metadata["name"].as_str().context("Chart.yaml has no name")?.to_owned();
    let inside = |entry: Entry| Entry { path: format!("{name}/{}", entry.path), ..entry };
    let bytes = pack::archive(entries.into_iter().map(inside).collect(), source.seconds)?;
    Ok(Chart { file: format!("{name}-{}.tgz", source.version), bytes, metadata })
}

impl Chart {
    /// Writes the layout of the OCI artifact. Returns the digest of the manifest.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_artifact(&self, source: &Source, folder: &Path) -> Result<String> {
        let config = Blob::json(CONFIG, &self.metadata)?;
        let content = Blob { media_type: CONTENT, bytes: self.bytes.clone() };
        let text = |key: &str| self.metadata[key].as_str().unwrap_or_default().to_owned();
        let annotations: Annotations = [
            ("created", source.time()?),
            ("description", text("description")),
            ("licenses", env!("CARGO_PKG_LICENSE").to_owned()),
            ("revision", source.commit.clone()),
            ("title", text("name")),
            ("version", source.version.clone()),
        ]
        .into_iter()
        .map(|(key, value)| (format!("org.opencontainers.image.{key}"), value))
        .collect();
        let manifest = Blob::manifest(&config, &[&content], &annotations)?;
        layout::write(folder, manifest.descriptor(), &source.version, &[&manifest, &config, &content])?;
        Ok(manifest.digest())
    }
}
