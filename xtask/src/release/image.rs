//! The operator's image as an OCI layout: an index with one manifest for each platform. Only the platform of this machine is built.
//!
//! What runs is decided in `crate::image`, also for the images of tests. This module adds what a registry shows: annotations and times.

use std::path::Path;

use anyhow::{Result, ensure};

use super::layout;
use super::source::Source;
use crate::image::oci::{self, Annotations, Blob};
use crate::image::{self, Image, Layer};

/// The name of the program in titles.
const TITLE: &str = "computer-operator";
const DESCRIPTION: &str = "Ends the life of a machine on Kubernetes: revoke, archive, tear down, prove it";

/// Writes the layout of the operator's image. Returns the digest of the index, which is the digest of the image in a registry.
///
/// # Errors
/// When the binary is not static, this machine has no certificates, or a file cannot be written.
pub fn write(binary: &Path, source: &Source, folder: &Path) -> Result<String> {
    ensure!(Path::new(image::CERTIFICATES).exists(), "{} is missing (Debian package ca-certificates)", image::CERTIFICATES);
    let image = image::operator_image(&format!("operator:{}", source.version));
    pack(image, image::operator_layer(binary, source.seconds)?, source, folder)
}

/// Writes the layout of an image with one layer. Returns the digest of the index.
///
/// # Errors
/// When a file cannot be written.
pub fn pack(image: Image, layer: Layer, source: &Source, folder: &Path) -> Result<String> {
    let annotations = annotations(source)?;
    let parts = Image { created: source.time()?, annotations: annotations.clone(), ..image }.parts(layer, true)?;
    let mut manifest = parts.manifest.descriptor();
    manifest["platform"] = image::platform();
    let index = Blob::json(oci::INDEX, &oci::index(&[manifest], &annotations))?;
    layout::write(folder, index.descriptor(), &source.version, &[&index, &parts.manifest, &parts.config, &parts.layer])?;
    Ok(index.digest())
}

fn annotations(source: &Source) -> Result<Annotations> {
    let all = [
        ("created", source.time()?),
        ("description", DESCRIPTION.to_owned()),
        ("licenses", env!("CARGO_PKG_LICENSE").to_owned()),
        ("revision", source.commit.clone()),
        ("title", TITLE.to_owned()),
        ("version", source.version.clone()),
    ];
    Ok(all.into_iter().map(|(key, value)| (format!("org.opencontainers.image.{key}"), value)).collect())
}
