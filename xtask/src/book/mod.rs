//! The book in `docs/book`: its generated pages, its links, and the program that builds it.
//!
//! `pages` writes the reference from code, chart and CRDs; `metrics` reads the registrations in the source; `links` resolves includes, links
//! and anchors; `build` runs mdBook. Everything but `build` is pure text and needs no program, so the tests always run.

pub mod build;
pub mod links;
pub mod metrics;
pub mod pages;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The folder with the chapters.
pub fn source(workspace: &Path) -> PathBuf {
    workspace.join("docs/book/src")
}

/// Every generated page, with its path in [`source`].
///
/// # Errors
/// When a source of a page cannot be read or parsed.
pub fn generated(workspace: &Path) -> Result<Vec<(&'static str, String)>> {
    let read = |name: &str| std::fs::read_to_string(workspace.join(name)).with_context(|| format!("reading {name}"));
    let values = read("charts/computer-operator/values.yaml")?;
    let definitions = computer_operator::resources::crds::files()?;
    Ok(vec![
        ("reasons.md", pages::reasons(&read("docs/book/notes-on-reasons.md")?)?),
        ("reference/alerts.md", pages::alerts(&read("charts/computer-operator/templates/alerts.yaml")?, &values)?),
        ("reference/commands.md", pages::commands()),
        ("reference/events.md", pages::events()),
        ("reference/kinds.md", pages::kinds(&definitions)?),
        ("reference/metrics.md", pages::metrics(&metrics::registered(&sources(&workspace.join("src"))?)?)),
        ("reference/values.md", pages::values(&values)?),
    ])
}

/// The text of every Rust file below a folder.
///
/// # Errors
/// When a file cannot be read.
pub fn sources(folder: &Path) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            all.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push(std::fs::read_to_string(&path)?);
        }
    }
    Ok(all)
}
