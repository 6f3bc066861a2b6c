//! Identifies a state of the source, committed or not: results of a soak belong to exactly one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// 16 hexadecimal digits that differ when any file under `sources` differs, by name or content.
///
/// # Errors
/// When a file cannot be read.
pub fn of(workspace: &Path, sources: &[&str]) -> Result<String> {
    let mut files = Vec::new();
    for source in sources {
        collect(&workspace.join(source), &mut files)?;
    }
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let name = file.strip_prefix(workspace).unwrap_or(&file);
        digest.update(format!("{}\0{}\0", name.display(), content.len()));
        digest.update(content);
    }
    Ok(hex::encode(&digest.finalize()[..8]))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SOURCES: [&str; 5] = ["Cargo.toml", "Cargo.lock", "api", "src", "tests/simulator"];

    #[test]
    fn another_content_or_name_is_another_source() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for name in ["Cargo.toml", "Cargo.lock", "api/src/lib.rs", "src/lib.rs", "tests/simulator/main.rs", "tests/chart/main.rs"] {
            write(name, "one");
        }
        let first = of(folder.path(), &SOURCES).unwrap();
        assert_eq!(first, of(folder.path(), &SOURCES).unwrap());
        write("tests/chart/main.rs", "two");
        assert_eq!(first, of(folder.path(), &SOURCES).unwrap(), "not part of the simulator");
        write("src/lib.rs", "two");
        let second = of(folder.path(), &SOURCES).unwrap();
        assert_ne!(first, second);
        write("src/more.rs", "");
        assert_ne!(second, of(folder.path(), &SOURCES).unwrap());
    }
}
