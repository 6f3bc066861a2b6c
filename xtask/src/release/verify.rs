//! Checks a release as a stranger would: digests, signature, layouts, and that the parts belong together. It reads only the folder and the key.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{CHART, IMAGE, KREW, OPERATOR, PUBLIC_KEY, RELEASE, layout, pack, plugin, programs, sbom, signature, sums};
use crate::image::oci::sha256;

/// Checks everything.
///
/// # Errors
/// Says which part is wrong.
pub fn release(folder: &Path, public_key: &str) -> Result<()> {
    signed(folder, public_key)?;
    let facts: Value = serde_json::from_slice(&read(folder, RELEASE)?).context(RELEASE)?;
    let fact = |key: &str| facts[key].as_str().with_context(|| format!("{RELEASE} has no {key}"));
    for (name, digest) in [(IMAGE, fact("image")?), (CHART, fact("chart")?)] {
        let found = layout::verify(&folder.join(name)).with_context(|| format!("the layout {name}"))?;
        ensure!(found == [digest], "{name} has the digests {found:?}, {RELEASE} {digest}");
    }
    let (version, platform) = (fact("version")?, facts["platforms"][0].as_str().unwrap_or_default().replace('/', "-"));
    let chart = pack::extract(&read(folder, &format!("{OPERATOR}-{version}.tgz"))?, &format!("{OPERATOR}/Chart.yaml"))?;
    let chart: Value = serde_yaml_ng::from_slice(&chart).context("Chart.yaml")?;
    ensure!(chart["version"] == version, "the chart has the version {}", chart["version"]);

    let archive = format!("{}-{version}-{platform}.tar.gz", plugin::PROGRAM);
    krew(&read(folder, KREW)?, &archive, &read(folder, &archive)?)?;
    let operator = read(folder, &format!("{OPERATOR}-{version}-{platform}"))?;
    let plugin = pack::extract(&read(folder, &archive)?, plugin::PROGRAM)?;
    for (name, binary) in [(OPERATOR, operator), (plugin::PROGRAM, plugin)] {
        let document = read(folder, &format!("{name}-{version}-{platform}.cdx.json"))?;
        program(&document, &binary).with_context(|| format!("the SBOM of {name}"))?;
    }
    Ok(())
}

/// The signature over the sums, the sums of all files, and that the key in the folder is the same one.
///
/// # Errors
/// As [`release`].
pub fn signed(folder: &Path, public_key: &str) -> Result<()> {
    let listed = read(folder, sums::SUMS)?;
    signature::verify(public_key, &listed, &read(folder, sums::SIGNATURE)?).context(sums::SIGNATURE)?;
    sums::verify(folder, std::str::from_utf8(&listed).context(sums::SUMS)?)?;
    ensure!(read(folder, PUBLIC_KEY)? == public_key.as_bytes(), "{PUBLIC_KEY} is another key than the one that was given");
    Ok(())
}

/// The manifest names the archive and its digest.
///
/// # Errors
/// As [`release`].
pub fn krew(manifest: &[u8], name: &str, archive: &[u8]) -> Result<()> {
    let manifest: Value = serde_yaml_ng::from_slice(manifest).context(KREW)?;
    let platform = &manifest["spec"]["platforms"][0];
    ensure!(platform["sha256"] == sha256(archive), "{KREW} has the digest {}, {name} has {}", platform["sha256"], sha256(archive));
    ensure!(platform["uri"].as_str().is_some_and(|uri| uri.ends_with(&format!("/{name}"))), "{KREW} does not name {name}");
    Ok(())
}

/// The document parses, describes this program, and lists nothing that the compiler did not embed. The embedded list may be longer: it also
/// has what only the build needs.
fn program(document: &[u8], binary: &[u8]) -> Result<()> {
    let listed = sbom::verify(document, binary)?;
    let embedded = programs::embedded(binary)?;
    let unknown: Vec<_> = listed.iter().filter(|id| !embedded.contains(id)).collect();
    ensure!(unknown.is_empty(), "the program does not contain {unknown:?}");
    Ok(())
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>> {
    fs::read(folder.join(name)).with_context(|| format!("read {name}"))
}
