//! `SHA256SUMS`: the digest of every file of a release, in the format of `sha256sum --check`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::pack;
use crate::image::oci::sha256;

/// The file with the digests.
pub const SUMS: &str = "SHA256SUMS";
/// The file with the signature over it.
pub const SIGNATURE: &str = "SHA256SUMS.sig";

/// The digests of every file below a folder, except of the sums and their signature.
///
/// # Errors
/// When a file cannot be read.
pub fn of(folder: &Path) -> Result<String> {
    let files = pack::folder(folder, "")?;
    let listed = files.iter().filter(|file| ![SUMS, SIGNATURE].contains(&file.path.as_str()));
    Ok(listed.fold(String::new(), |text, file| text + &sha256(&file.bytes) + "  " + &file.path + "\n"))
}

/// Compares the files of a folder with their digests: each must be there, and no other.
///
/// # Errors
/// Names the files that differ, are missing, or are not listed.
pub fn verify(folder: &Path, listed: &str) -> Result<()> {
    let (listed, found) = (parse(listed)?, of(folder)?);
    let found = parse(&found)?;
    let mut wrong = Vec::new();
    for (path, digest) in &listed {
        match found.get(path) {
            None => wrong.push(format!("{path} is missing")),
            Some(other) if other != digest => wrong.push(format!("{path} has another digest")),
            Some(_) => {}
        }
    }
    wrong.extend(found.keys().filter(|path| !listed.contains_key(*path)).map(|path| format!("{path} is not in {SUMS}")));
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

fn parse(sums: &str) -> Result<BTreeMap<&str, &str>> {
    let mut all = BTreeMap::new();
    for line in sums.lines() {
        let (digest, path) = line.split_once("  ").with_context(|| format!("not a line of {SUMS}: {line}"))?;
        if all.insert(path, digest).is_some() {
            bail!("{SUMS} lists {path} twice");
        }
    }
    ensure!(!all.is_empty(), "{SUMS} lists nothing");
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_changed_a_missing_and_an_additional_file_are_found() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("image")).unwrap();
        for (name, text) in [("a", "1"), ("image/b", "2"), (SUMS, "old"), (SIGNATURE, "old")] {
            fs::write(root.path().join(name), text).unwrap();
        }
        let sums = of(root.path()).unwrap();
        assert_eq!(sums.lines().map(|line| &line[66..]).collect::<Vec<_>>(), ["a", "image/b"]);
        verify(root.path(), &sums).unwrap();
        fs::write(root.path().join("image/b"), "3").unwrap();
        fs::write(root.path().join("c"), "").unwrap();
        fs::remove_file(root.path().join("a")).unwrap();
        let error = verify(root.path(), &sums).unwrap_err().to_string();
        assert_eq!(error, "a is missing; image/b has another digest; c is not in SHA256SUMS");
        assert!(verify(root.path(), "").is_err() && verify(root.path(), "x").is_err());
    }
}
