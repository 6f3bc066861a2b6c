//! `cargo xtask release`: everything that a version consists of, in one folder, with digests and a signature.
//!
//! One file for each part: `image`, `chart`, `plugin`, `programs`, `sbom`. They return bytes or write below a temporary folder, which gets its final
//! name only after [`verify`] has checked it. The command must never leave a part of a release under that name, never publish anything, and
//! never write a private key. All times are those of the commit, so the same source and the same tools give the same bytes.

mod chart;
mod image;
mod layout;
mod linked;
pub mod pack;
mod plugin;
mod programs;
mod sbom;
mod signature;
mod source;
mod sums;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod verify;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod whole_tests;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use self::signature::Key;
use crate::book;
use crate::image::{CERTIFICATES, architecture, host_target, oci::sha256, static_binary};

pub use self::chart::{Chart, pack as pack_chart};
pub use self::source::Source;

/// The operator's program.
const OPERATOR: &str = "computer-operator";
/// The public key in a release.
const PUBLIC_KEY: &str = "release-key.pub.pem";
/// What was built from what.
const RELEASE: &str = "release.json";
/// The folder with the image.
const IMAGE: &str = "image";
/// The folder with the chart as an OCI artifact.
const CHART: &str = "chart";
/// The manifest for krew.
const KREW: &str = "krew-computer.yaml";

/// The command's arguments.
#[derive(Debug, Args)]
pub struct Options {
    /// The private key that signs, in PEM: Ed25519. To make a key pair: `(umask 077; openssl genpkey -algorithm ed25519 -out release-key.pem)`.
    #[arg(long, value_name = "FILE", required_unless_present = "verify")]
    key: Option<PathBuf>,
    /// The folder to write. It must not exist.
    #[arg(long, value_name = "FOLDER", required_unless_present = "verify")]
    out: Option<PathBuf>,
    /// Release a tree with changes that are not committed. The release says so.
    #[arg(long)]
    allow_dirty: bool,
    /// Where the files will be downloaded; krew's manifest names it. The default is a placeholder.
    #[arg(long, value_name = "URL", default_value = plugin::PLACEHOLDER)]
    download_url: String,
    /// Build nothing: check a release in this folder.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["key", "out", "allow_dirty"], requires = "public_key")]
    verify: Option<PathBuf>,
    /// The public key that must have signed it, from a place that you trust.
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
}

/// Builds a release, or checks one. Returns its folder.
///
/// # Errors
/// When the tree has changes, a part cannot be built, or the result does not verify.
pub fn run(workspace: &Path, options: &Options) -> Result<PathBuf> {
    if let (Some(folder), Some(key)) = (&options.verify, &options.public_key) {
        let key = fs::read_to_string(key).with_context(|| format!("read {}", key.display()))?;
        verify::release(folder, &key)?;
        return Ok(folder.clone());
    }
    let (Some(key), Some(out)) = (&options.key, &options.out) else { anyhow::bail!("--key and --out are required") };
    let inside = key.canonicalize().is_ok_and(|path| path.starts_with(workspace));
    ensure!(!inside, "{} is in the repository, where a commit could publish it: keep the key elsewhere", key.display());
    let key = Key::read(key)?;
    let source = Source::of(workspace, options.allow_dirty)?;
    atomically(out, |folder| {
        build(workspace, &source, &options.download_url, folder)?;
        ensure!(Source::of(workspace, options.allow_dirty)? == source, "the source has changed while it was built");
        sign(folder, &key)?;
        verify::release(folder, &key.public_pem())
    })?;
    Ok(out.clone())
}

/// Fills a temporary folder beside `out`, and renames it when everything has succeeded.
fn atomically(out: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    ensure!(!out.exists(), "{} exists already", out.display());
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let temporary = tempfile::Builder::new().prefix(".release-").tempdir_in(parent)?;
    fill(temporary.path())?;
    fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755))?;
    fs::rename(temporary.path(), out).with_context(|| format!("rename to {}", out.display()))?;
    // Its name is gone, so nothing is left to remove.
    drop(temporary.keep());
    Ok(())
}

/// Writes every part except the sums and the signature.
fn build(workspace: &Path, source: &Source, download_url: &str, folder: &Path) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).with_context(|| format!("write {name}"));
    let target = host_target()?;
    let packed = chart::package(workspace, source)?;
    write(&packed.file, &packed.bytes)?;
    let chart = packed.write_artifact(source, &folder.join(CHART))?;
    let book = pack::folder(&book::build::run(workspace)?, "book/")?;
    write(&format!("{OPERATOR}-book-{}.tar.gz", source.version), &pack::archive(book, source.seconds)?)?;

    let operator = programs::build(workspace, OPERATOR, &target, source)?;
    let plugin = programs::build(workspace, plugin::PROGRAM, &target, source)?;
    for (package, path) in [(OPERATOR, &operator), (plugin::PROGRAM, &plugin)] {
        let binary = static_binary(path)?;
        let document = sbom::document(&linked::resolve(workspace, package, &target)?, &binary, &target, source)?;
        write(&sbom_file(package, source), &serde_json::to_vec_pretty(&document)?)?;
    }
    let image = image::write(&operator, source, &folder.join(IMAGE))?;
    let name = folder.join(operator_file(source));
    fs::copy(&operator, &name)?;
    fs::set_permissions(&name, fs::Permissions::from_mode(0o755))?;

    let (file, archive) = plugin::package(fs::read(&plugin)?, fs::read(workspace.join("LICENSE"))?, source)?;
    write(&file, &archive)?;
    write(KREW, plugin::manifest(&file, &archive, download_url, source)?.as_bytes())?;
    write(&format!("{}-man-{}.tar.gz", plugin::PROGRAM, source.version), &manual(&plugin, source)?)?;
    let facts = facts(source, &target, &image, &chart)?;
    write(RELEASE, format!("{}\n", serde_json::to_string_pretty(&facts)?).as_bytes())
}

fn sbom_file(package: &str, source: &Source) -> String {
    format!("{package}-{}-linux-{}.cdx.json", source.version, architecture())
}

fn operator_file(source: &Source) -> String {
    format!("{OPERATOR}-{}-linux-{}", source.version, architecture())
}

/// The man pages that the plugin writes about itself.
fn manual(plugin: &Path, source: &Source) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let output = Command::new(plugin).arg("man").arg(folder.path()).output().context("run the plugin")?;
    ensure!(output.status.success(), "the man pages: {}", String::from_utf8_lossy(&output.stderr).trim());
    pack::archive(pack::folder(folder.path(), "man1/")?, source.seconds)
}

/// What a reviewer needs to build the same bytes.
fn facts(source: &Source, target: &str, image: &str, chart: &str) -> Result<Value> {
    let compiler = Command::new("rustc").arg("--version").output().context("run rustc")?;
    Ok(json!({
        "version": source.version,
        "commit": source.commit,
        "time": source.time()?,
        "sourceDateEpoch": source.seconds,
        "image": image,
        "chart": chart,
        "platforms": [format!("linux/{}", architecture())],
        "builtWith": {
            "target": target,
            "rustc": String::from_utf8(compiler.stdout)?.trim(),
            programs::CARGO_AUDITABLE.name: programs::CARGO_AUDITABLE.version,
            "certificates": format!("sha256:{}", sha256(&fs::read(CERTIFICATES)?)),
        },
    }))
}

/// Writes the public key, the digests of all files, and the signature over them.
fn sign(folder: &Path, key: &Key) -> Result<()> {
    fs::write(folder.join(PUBLIC_KEY), key.public_pem())?;
    let sums = sums::of(folder)?;
    fs::write(folder.join(sums::SIGNATURE), key.sign(sums.as_bytes())?)?;
    fs::write(folder.join(sums::SUMS), sums)?;
    Ok(())
}
