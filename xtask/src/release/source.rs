//! What is released: the version, the commit and its time. Every time in a release is that of the commit.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The source of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The version of the workspace.
    pub version: String,
    /// The commit, with `-dirty` if the tree has other changes.
    pub commit: String,
    /// When it was committed, in seconds since the epoch: `SOURCE_DATE_EPOCH`.
    pub seconds: u64,
}

impl Source {
    /// The source in a workspace.
    ///
    /// # Errors
    /// When it is not a git repository, or has changes that are not committed and `allow_dirty` is false.
    pub fn of(workspace: &Path, allow_dirty: bool) -> Result<Self> {
        let changes = git(workspace, &["status", "--porcelain"])?;
        let list: Vec<&str> = changes.lines().take(10).collect();
        ensure!(
            changes.is_empty() || allow_dirty,
            "the tree has changes that are not committed, so no commit describes the release. Commit or remove them, or pass --allow-dirty:\n{}",
            list.join("\n")
        );
        let mark = if changes.is_empty() { "" } else { "-dirty" };
        let head = git(workspace, &["log", "-1", "--format=%H %ct"])?;
        let (commit, seconds) = head.trim().split_once(' ').context("git log names no commit")?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Self { version, commit: format!("{commit}{mark}"), seconds: seconds.parse().context("the time of the commit")? })
    }

    /// The time in the format of RFC 3339.
    ///
    /// # Errors
    /// When it is out of range.
    pub fn time(&self) -> Result<String> {
        Ok(jiff::Timestamp::from_second(self.seconds.try_into()?)?.to_string())
    }
}

/// The files of a folder that git knows or would add, relative to the workspace, sorted.
///
/// # Errors
/// When git fails.
pub fn files(workspace: &Path, folder: &str) -> Result<Vec<String>> {
    let list = git(workspace, &["ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", folder])?;
    let mut files: Vec<String> = list.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    files.sort();
    // A file that was removed and not committed is still in the index.
    files.retain(|name| workspace.join(name).is_file());
    Ok(files)
}

fn git(workspace: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").args(arguments).current_dir(workspace).output().context("run git")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {}", arguments.join(" "), errors.trim());
    String::from_utf8(output.stdout).context("git printed something that is not text")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    /// A repository with one file. None: git is not installed.
    fn repository() -> Option<tempfile::TempDir> {
        Command::new("git").arg("--version").output().ok()?;
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "1").unwrap();
        git(folder.path(), &["init", "--quiet"]).unwrap();
        git(folder.path(), &["add", "."]).unwrap();
        let commit = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "commit", "--quiet", "--message", "x"];
        git(folder.path(), &commit).unwrap();
        Some(folder)
    }

    #[test]
    fn a_changed_tree_is_refused_and_marked_when_it_is_allowed() {
        let Some(folder) = repository() else {
            eprintln!("git is not installed: not checked");
            return;
        };
        let clean = Source::of(folder.path(), false).unwrap();
        assert_eq!(clean.commit.len(), 40);
        assert!(clean.time().unwrap().ends_with('Z') && clean.seconds > 1_700_000_000);
        fs::write(folder.path().join("b"), "2").unwrap();
        let error = Source::of(folder.path(), false).unwrap_err().to_string();
        assert!(error.contains("not committed") && error.contains("?? b"), "{error}");
        let dirty = Source::of(folder.path(), true).unwrap();
        assert_eq!(dirty, Source { commit: format!("{}-dirty", clean.commit), ..clean });
        assert_eq!(files(folder.path(), ".").unwrap(), ["a", "b"]);
        fs::remove_file(folder.path().join("a")).unwrap();
        assert_eq!(files(folder.path(), ".").unwrap(), ["b"]);
    }
}
