//! Which packages are linked into a program, from cargo's own resolution of it: normal dependencies for one target, with the features that
//! this program uses, without procedural macros and build scripts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Name and version.
pub type Id = (String, String);

/// A package that is linked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// Its license, as an SPDX expression. May be empty.
    pub license: String,
    /// Its repository. May be empty.
    pub repository: String,
    /// Whether it is a member of the workspace.
    pub local: bool,
    /// SHA-256 of the package's file in the registry. Empty for a member of the workspace.
    pub checksum: String,
    /// What it depends on.
    pub dependencies: BTreeSet<Id>,
}

/// A program and everything that is linked into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// The program's package.
    pub root: Id,
    /// All packages, the program's own too.
    pub packages: BTreeMap<Id, Package>,
}

/// Asks cargo.
///
/// # Errors
/// When cargo fails, or prints something else than expected.
pub fn resolve(workspace: &Path, package: &str, target: &str) -> Result<Linked> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["tree", "--locked", "--package", package, "--target", target, "--edges", "normal,no-proc-macro"])
        .args(["--prefix", "depth", "--format", "|{p}|{l}|{r}"])
        .current_dir(workspace)
        .output()
        .context("run cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr).trim());
    let lock = std::fs::read_to_string(workspace.join("Cargo.lock")).context("read Cargo.lock")?;
    parse(&String::from_utf8(output.stdout)?, &checksums(&lock))
}

/// Reads the lines `DEPTH|NAME vVERSION (PATH)|LICENSE|REPOSITORY`. The dependencies of a package follow its first line only.
fn parse(tree: &str, checksums: &BTreeMap<Id, String>) -> Result<Linked> {
    let (mut packages, mut above) = (BTreeMap::<Id, Package>::new(), Vec::<Id>::new());
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let columns: Vec<&str> = line.trim_end_matches(" (*)").split('|').collect();
        let [depth, package, license, repository] = columns[..] else { anyhow::bail!("cargo tree printed {line}") };
        let depth: usize = depth.parse().with_context(|| format!("cargo tree printed {line}"))?;
        let mut words = package.split_whitespace();
        let name = words.next().with_context(|| format!("cargo tree printed {line}"))?.to_owned();
        let version = words.next().and_then(|word| word.strip_prefix('v')).with_context(|| format!("cargo tree printed {line}"))?;
        let (id, local) = ((name, version.to_owned()), package.contains(" (/"));
        above.truncate(depth);
        ensure!(above.len() == depth, "cargo tree printed {line} below nothing");
        if let Some(parent) = above.last() {
            packages.entry(parent.clone()).or_default().dependencies.insert(id.clone());
        }
        let entry = packages.entry(id.clone()).or_default();
        // An older spelling of "or" that is not SPDX.
        entry.license = license.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ");
        repository.clone_into(&mut entry.repository);
        entry.local = local;
        entry.checksum = checksums.get(&id).cloned().unwrap_or_default();
        ensure!(local || !entry.checksum.is_empty(), "Cargo.lock has no checksum of {} {}", id.0, id.1);
        above.push(id);
    }
    let root = tree.lines().next().and_then(|line| packages.keys().find(|id| line.starts_with(&format!("0|{} v{} ", id.0, id.1))));
    Ok(Linked { root: root.context("cargo tree printed no program")?.clone(), packages })
}

/// The checksums in `Cargo.lock`. Its lines have one form, so this is less than a parser of TOML.
fn checksums(lock: &str) -> BTreeMap<Id, String> {
    let value = |block: &str, key: &str| {
        block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"')).map(str::to_owned)
    };
    lock.split("[[package]]")
        .filter_map(|block| Some(((value(block, "name")?, value(block, "version")?), value(block, "checksum")?)))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LOCK: &str = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"aa\"\n\n[[package]]\nname = \"b\"\n\
                        version = \"2.0.0\"\nchecksum = \"bb\"\n\n[[package]]\nname = \"app\"\nversion = \"0.1.0\"\n";

    #[test]
    fn the_tree_is_read_with_its_edges() {
        let tree = "0|app v0.1.0 (/work)|Apache-2.0|\n1|a v1.0.0|MIT / Apache-2.0|https://a\n2|b v2.0.0|MIT|\n1|b v2.0.0|MIT| (*)\n";
        let linked = parse(tree, &checksums(LOCK)).unwrap();
        let id = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(linked.root, id("app", "0.1.0"));
        assert_eq!(linked.packages[&linked.root].dependencies, [id("a", "1.0.0"), id("b", "2.0.0")].into());
        let a = Package {
            license: "MIT OR Apache-2.0".into(),
            repository: "https://a".into(),
            local: false,
            checksum: "aa".into(),
            dependencies: [id("b", "2.0.0")].into(),
        };
        assert_eq!(linked.packages[&id("a", "1.0.0")], a);
        assert_eq!(linked.packages[&id("b", "2.0.0")].checksum, "bb");
        assert!(parse("0|app v0.1.0 (/work)|x|\n1|c v1.0.0|x|\n", &checksums(LOCK)).is_err(), "c is not in Cargo.lock");
        assert!(parse("", &checksums(LOCK)).is_err() && parse("warning: x\n", &checksums(LOCK)).is_err());
    }
}
