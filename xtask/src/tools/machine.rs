//! Programs that the machine already has: in the folder that `KUBEBUILDER_ASSETS` names, then in the folders of the `PATH`.
//!
//! It must never return a program that did not itself report the minor version that the clusters need.

use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::isolation::MASKED;

/// How long a program may take to report its version.
const PATIENCE: Duration = Duration::from_secs(10);

/// A version as programs print it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Major and minor number.
    pub minor: (u32, u32),
    /// All of it, without the `v`.
    pub whole: String,
}

impl Version {
    /// The first version in a text: three numbers, with or without a `v` before them, or two with it.
    pub fn find(text: &str) -> Option<Self> {
        text.split(|c: char| !(c.is_ascii_alphanumeric() || ".+-".contains(c))).find_map(Self::parse)
    }

    fn parse(word: &str) -> Option<Self> {
        let whole = word.strip_prefix('v').unwrap_or(word);
        let mut numbers = whole.splitn(3, '.');
        let (major, minor) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        let fits = match numbers.next() {
            Some(patch) => patch.starts_with(|c: char| c.is_ascii_digit()),
            // As Helm that was built without flags reports it.
            None => whole.len() < word.len(),
        };
        fits.then(|| Self { minor: (major, minor), whole: whole.to_owned() })
    }

    /// An alpha, a beta or a release candidate.
    fn is_before_release(&self) -> bool {
        self.whole.split('+').next().is_some_and(|version| version.contains('-'))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.whole)
    }
}

/// A program to look for.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Its name.
    pub name: &'a str,
    /// The arguments with which it prints its version.
    pub arguments: &'a [&'a str],
    /// The version that the module builds.
    pub wanted: &'a Version,
}

/// A program to use.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its usual name.
    name: String,
    /// Where it is.
    pub path: PathBuf,
    /// The version that it reports.
    pub version: Version,
    /// What names its folder.
    origin: String,
}

impl fmt::Display for Found {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, path, version, origin } = self;
        write!(formatter, "{name} {version} of this machine is used: {} ({origin})", path.display())
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Search {
    /// The program to use.
    pub used: Option<Found>,
    /// A message for each program that is not used.
    pub refused: Vec<String>,
}

/// The folders to search, with what names them.
pub fn folders() -> Vec<(&'static str, PathBuf)> {
    let assets =
        std::env::var_os("KUBEBUILDER_ASSETS").filter(|value| !value.is_empty()).map(|folder| ("KUBEBUILDER_ASSETS", folder.into()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A relative folder would be another one for each program that is started.
    assets
        .into_iter()
        .chain(std::env::split_paths(&path).map(|folder| ("PATH", folder)))
        .filter(|(_, folder)| folder.is_absolute())
        .collect()
}

/// The first program in these folders that reports the wanted minor version.
pub fn search(question: Question<'_>, folders: &[(&str, PathBuf)]) -> Search {
    let mut search = Search::default();
    let mut asked = Vec::new();
    for (origin, folder) in folders {
        let path = folder.join(question.name);
        let Ok(real) = path.canonicalize() else { continue };
        if !is_program(&path) || asked.contains(&real) {
            continue;
        }
        match accept(question, &path, &real) {
            Ok(version) => {
                search.used = Some(Found { name: question.name.to_owned(), path, version, origin: (*origin).to_owned() });
                return search;
            }
            Err(reason) => search.refused.push(format!("{} ({origin}) is not used: {reason:#}", path.display())),
        }
        asked.push(real);
    }
    search
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// The version of a program that may be used, or why it may not.
fn accept(question: Question<'_>, path: &Path, real: &Path) -> Result<Version> {
    let Question { name, wanted, .. } = question;
    let own = real.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
    ensure!(own, "it is a link to another program, {}", real.display());
    ensure!(!MASKED.iter().any(|folder| real.starts_with(folder)), "a node cannot see {}", real.display());
    let version = Version::find(&ask(path, question.arguments)?).context("it does not report a version")?;
    let (major, minor) = wanted.minor;
    ensure!(version.minor == wanted.minor, "it is version {version}, and the clusters need {name} {major}.{minor}");
    ensure!(!version.is_before_release(), "it is version {version}, which is not a release");
    Ok(version)
}

/// What a program prints. One that does not end is killed.
fn ask(program: &Path, arguments: &[&str]) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("it cannot be started")?;
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("it did not report its version within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut text = String::new();
    // A few lines: less than a pipe holds.
    child.stdout.take().context("stdout")?.take(4096).read_to_string(&mut text)?;
    child.stderr.take().context("stderr")?.take(4096).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    fn program(folder: &Path, name: &str, output: &str) -> PathBuf {
        let path = folder.join(name);
        let partial = folder.join("partial");
        fs::write(&partial, format!("#!/bin/sh\necho '{output}'\n")).unwrap();
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(partial, &path).unwrap();
        path
    }

    fn find(folders: &[(&str, &Path)]) -> Search {
        let wanted = Version::find("v1.37.2").unwrap();
        let question = Question { name: "kubectl", arguments: &["version", "--client"], wanted: &wanted };
        search(question, &folders.iter().map(|(origin, folder)| (*origin, folder.to_path_buf())).collect::<Vec<_>>())
    }

    #[test]
    fn every_program_reports_its_version_in_its_own_way() {
        for (text, version) in [
            ("etcd Version: 3.7.1\nGit SHA: a1b2c3\nGo Version: go1.26.1\n", "3.7.1"),
            ("Kubernetes v1.37.2\n", "1.37.2"),
            ("Client Version: v1.37.2\nKustomize Version: v5.8.1\n", "1.37.2"),
            ("v4.1.0+g4f3f2d8", "4.1.0+g4f3f2d8"),
            ("v4.3", "4.3"),
            ("version.BuildInfo{Version:\"v3.14.0\", GoVersion:\"go1.22.1\"}", "3.14.0"),
            ("kwok version v0.8.0 go1.26.1 (linux/amd64)", "0.8.0"),
        ] {
            assert_eq!(Version::find(text).unwrap().whole, version, "{text}");
        }
        assert_eq!(Version::find("go1.26.1 (devel) 1.2"), None);
    }

    #[test]
    fn the_right_minor_version_is_used_and_the_message_says_from_where() {
        let folder = tempfile::tempdir().unwrap();
        let path = program(folder.path(), "kubectl", "Client Version: v1.37.9");
        let found = find(&[("KUBEBUILDER_ASSETS", folder.path())]);
        let used = found.used.unwrap();
        assert_eq!(used.path, path);
        assert_eq!(used.to_string(), format!("kubectl 1.37.9 of this machine is used: {} (KUBEBUILDER_ASSETS)", path.display()));
        assert!(found.refused.is_empty());
    }

    #[test]
    fn another_minor_version_is_refused_by_name_and_the_next_folder_is_searched() {
        let (old, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let refused = program(old.path(), "kubectl", "Client Version: v1.36.9");
        let used = program(right.path(), "kubectl", "Client Version: v1.37.0");
        let found = find(&[("KUBEBUILDER_ASSETS", old.path()), ("PATH", right.path())]);
        assert_eq!(found.used.unwrap().path, used);
        let message =
            format!("{} (KUBEBUILDER_ASSETS) is not used: it is version 1.36.9, and the clusters need kubectl 1.37", refused.display());
        assert_eq!(found.refused, [message]);
    }

    #[test]
    fn what_reports_no_released_version_of_its_own_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (output, reason) in [
            ("hello", "it does not report a version"),
            ("Client Version: v1.37.0-rc.1", "not a release"),
            ("Client Version: v2.37.2", "the clusters need kubectl 1.37"),
        ] {
            program(folder.path(), "kubectl", output);
            let found = find(&[("PATH", folder.path())]);
            assert!(found.used.is_none(), "{output}");
            assert!(found.refused[0].contains(reason), "{:?}", found.refused);
        }
        let other = program(folder.path(), "k3s", "Client Version: v1.37.2");
        fs::remove_file(folder.path().join("kubectl")).unwrap();
        std::os::unix::fs::symlink(&other, folder.path().join("kubectl")).unwrap();
        let found = find(&[("PATH", folder.path()), ("PATH", folder.path())]);
        assert!(found.used.is_none());
        assert_eq!(found.refused.len(), 1, "{:?}", found.refused);
        assert!(found.refused[0].contains("link to another program"), "{:?}", found.refused);
    }

    #[test]
    fn a_file_that_cannot_be_executed_is_not_a_program() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kubectl"), "Client Version: v1.37.2").unwrap();
        let found = find(&[("PATH", folder.path()), ("PATH", Path::new("/nowhere"))]);
        assert!(found.used.is_none() && found.refused.is_empty());
    }
}
