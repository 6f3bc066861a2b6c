//! The figures of all measurements, kept as JSON in `docs/performance`, and `docs/performance.md`, which is rendered from them. A measurement replaces its
//! own figures and keeps those of the others.
//!
//! It must never publish a figure that was not measured: a part without a file says so.

mod document;
pub mod goal;
pub mod real_node;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::http::Deletes;
use super::lifecycle::Lifecycle;
use super::scale::Scale;
use crate::tools;
use real_node::{Deletions, Life};

/// Environment variable: the folder that the scenarios of `tests/real_cluster` write their figures to, for example `docs/performance`.
pub const FOLDER: &str = "COMPUTER_OPERATOR_FIGURES";

/// Figures of one measurement, in a file of their own.
pub trait Figures: Serialize + DeserializeOwned {
    /// Name of the file, without its ending.
    const FILE: &'static str;
}

/// Figures with where and when they were measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recorded<T> {
    /// The day.
    pub date: String,
    /// The machine.
    pub machine: String,
    /// The version of Kubernetes.
    pub kubernetes: String,
    /// The build of the operator.
    pub build: String,
    /// What was measured.
    pub figures: T,
}

impl<T: Figures> Recorded<T> {
    /// Figures of this machine and this day.
    pub fn now(build: &str, figures: T) -> Self {
        let date = jiff::Timestamp::now().to_string();
        Self {
            date: date.split('T').next().unwrap_or_default().to_owned(),
            machine: super::machine(),
            kubernetes: tools::kubernetes_version().unwrap_or_default(),
            build: build.to_owned(),
            figures,
        }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let path = file::<T>(folder);
        std::fs::write(&path, serde_json::to_string(self)? + "\n").with_context(|| format!("write {}", path.display()))
    }

    /// `None` if there is no file.
    fn read(folder: &Path) -> Result<Option<Self>> {
        let path = file::<T>(folder);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{}: measure it again", path.display())).map(Some)
    }

    /// Where and when, as a sentence of the document.
    pub fn origin(&self, command: &str) -> String {
        let Self { date, machine, kubernetes, build, .. } = self;
        format!("Measured by `{command}` on {date}: {machine}; Kubernetes {kubernetes}; build {build} of the operator.")
    }
}

fn file<T: Figures>(folder: &Path) -> PathBuf {
    folder.join(format!("{}.json", T::FILE))
}

/// All figures that there are.
#[derive(Clone, Debug, Default)]
pub struct All {
    /// `cargo xtask bench lifecycle`.
    pub lifecycle: Option<Recorded<Lifecycle>>,
    /// `cargo xtask bench scale`.
    pub scale: Option<Recorded<Scale>>,
    /// `cargo xtask bench http`.
    pub http: Option<Recorded<Deletes>>,
    /// Deletions on a real node.
    pub deletions: Option<Recorded<Deletions>>,
    /// Requests for a life with an archive on a real node.
    pub life: Option<Recorded<Life>>,
}

impl All {
    fn read(folder: &Path) -> Result<Self> {
        Ok(Self {
            lifecycle: Recorded::read(folder)?,
            scale: Recorded::read(folder)?,
            http: Recorded::read(folder)?,
            deletions: Recorded::read(folder)?,
            life: Recorded::read(folder)?,
        })
    }

    /// The document.
    pub fn document(&self) -> String {
        document::document(self)
    }
}

fn folder(workspace: &Path) -> PathBuf {
    workspace.join("docs/performance")
}

/// Keeps figures for the document, and writes it.
///
/// # Errors
/// When a file cannot be written, or one of the others cannot be read.
pub fn publish<T: Figures>(workspace: &Path, figures: &Recorded<T>) -> Result<()> {
    figures.write(&folder(workspace))?;
    match rendered(workspace)? {
        Some(text) => Ok(std::fs::write(workspace.join("docs/performance.md"), text)?),
        None => Ok(()),
    }
}

/// The document from the figures that are kept; `None` if there are none.
///
/// # Errors
/// When a file cannot be read.
pub fn rendered(workspace: &Path) -> Result<Option<String>> {
    let all = All::read(&folder(workspace))?;
    Ok((all.lifecycle.is_some() || all.scale.is_some()).then(|| all.document()))
}

/// Keeps figures of a test, if the variable [`FOLDER`] names a folder.
///
/// # Errors
/// When the file cannot be written.
pub fn keep<T: Figures>(build: &str, figures: T) -> Result<()> {
    match std::env::var_os(FOLDER).filter(|folder| !folder.is_empty()) {
        Some(folder) => Recorded::now(build, figures).write(Path::new(&folder)),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{lifecycle, scale};
    use super::*;

    #[test]
    fn a_measurement_keeps_the_figures_of_the_others() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(rendered(folder.path()).unwrap(), None);
        std::fs::create_dir(folder.path().join("docs")).unwrap();
        let document = || std::fs::read_to_string(folder.path().join("docs/performance.md")).unwrap();
        publish(folder.path(), &Recorded::now("release", lifecycle::sample())).unwrap();
        let before = document();
        assert!(before.contains("| default | managed | 5.0 (5.0, 5.0) |"), "{before}");
        publish(folder.path(), &Recorded::now("release", scale::sample(10_000))).unwrap();
        let after = document();
        assert!(after.contains("| default | managed | 5.0 (5.0, 5.0) |") && after.contains("10,000 `BYOM` computers"), "{after}");
        // What is kept says everything that was measured.
        publish(folder.path(), &Recorded::<Lifecycle>::read(&super::folder(folder.path())).unwrap().unwrap()).unwrap();
        assert_eq!(document(), after);
    }

    #[test]
    fn figures_that_cannot_be_read_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(super::folder(folder.path())).unwrap();
        std::fs::write(super::folder(folder.path()).join("scale.json"), "{}").unwrap();
        assert!(format!("{:#}", rendered(folder.path()).unwrap_err()).contains("scale.json: measure it again"));
    }

    #[test]
    fn the_document_is_what_the_figures_say() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        if let Some(text) = rendered(workspace).unwrap() {
            let published = std::fs::read_to_string(workspace.join("docs/performance.md")).unwrap();
            assert!(published == text, "docs/performance.md is not current: run `cargo xtask generate`");
        }
    }
}
