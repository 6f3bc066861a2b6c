//! The man pages, from the same definitions as the help texts: one page for each command. They must not contain anything of this machine.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

use crate::args::Args;

/// Writes `kubectl-computer.1` and a page for every command into a folder.
///
/// # Errors
/// When a file cannot be written.
pub fn write(folder: &Path) -> Result<()> {
    // kubectl's name of the plugin would be a file name with a blank.
    let command = Args::command().bin_name("kubectl-computer");
    clap_mangen::generate_to(command, folder).with_context(|| format!("write man pages to {}", folder.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    /// The file names of a command and all commands below it.
    fn names(command: &clap::Command, parent: &str, all: &mut BTreeSet<String>) {
        let name = if parent.is_empty() { command.get_name().to_owned() } else { format!("{parent}-{}", command.get_name()) };
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            names(inner, &name, all);
        }
        all.insert(format!("{name}.1"));
    }

    #[test]
    fn every_command_has_a_page_and_two_writings_are_equal() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let read = |folder: &tempfile::TempDir| {
            let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
            let mut pages: Vec<(String, String)> =
                files.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap())).collect();
            pages.sort();
            pages
        };
        for folder in &folders {
            write(folder.path()).unwrap();
        }
        let pages = read(&folders[0]);
        assert_eq!(pages, read(&folders[1]));
        let mut wanted = BTreeSet::new();
        names(&Args::command(), "", &mut wanted);
        assert_eq!(pages.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>(), wanted);
        assert!(wanted.contains("kubectl-computer-why.1") && wanted.contains("kubectl-computer-archives-export.1"), "{wanted:?}");
        assert!(!wanted.contains("kubectl-computer-man.1"));
        let (_, why) = pages.iter().find(|(name, _)| name == "kubectl-computer-why.1").unwrap();
        assert!(why.contains("Name or UID of the computer") && why.contains("as\\-group"), "{why}");
    }
}
