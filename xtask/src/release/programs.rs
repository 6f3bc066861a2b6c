//! The released programs: static, optimized, with the list of their dependencies inside, as `cargo auditable` embeds it.
//!
//! Paths of this machine are replaced, so that another checkout gives the same bytes with the same compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::linked::Id;
use super::source::Source;
use crate::cargo_tools::CargoTool;

/// Embeds the dependencies.
pub const CARGO_AUDITABLE: CargoTool = CargoTool { name: "cargo-auditable", version: "0.7.7", arguments: &[], time: "about a minute" };

/// Most bytes of the embedded list.
const LIMIT: usize = 8 << 20;

/// Builds the program of a package. Returns its path.
///
/// # Errors
/// When it does not compile.
pub fn build(workspace: &Path, package: &str, target: &str, source: &Source) -> Result<PathBuf> {
    let program = CARGO_AUDITABLE.program()?;
    let folder = workspace.join("target/release-build");
    eprintln!("building {package} for {target}, some minutes the first time");
    let status = Command::new(program)
        .current_dir(workspace)
        .args(["auditable", "build", "--locked", "--release", "--package", package, "--bin", package, "--target", target, "--target-dir"])
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(workspace)?)
        .env_remove("RUSTFLAGS")
        .env("SOURCE_DATE_EPOCH", source.seconds.to_string())
        .status()
        .context("run cargo auditable")?;
    ensure!(status.success(), "building {package} failed: {status}");
    Ok(folder.join(target).join("release").join(package))
}

/// The compiler's flags, separated as `CARGO_ENCODED_RUSTFLAGS` wants it.
fn flags(workspace: &Path) -> Result<String> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    let map = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    Ok(["-Ctarget-feature=+crt-static".to_owned(), map(&home, "/cargo"), map(workspace, "/source")].join("\x1f"))
}

/// The list of dependencies in a program.
///
/// # Errors
/// When it has none.
pub fn embedded(binary: &[u8]) -> Result<Vec<Id>> {
    let list = auditable_info::audit_info_from_slice(binary, LIMIT).context("the program has no list of dependencies")?;
    Ok(list.packages.into_iter().map(|package| (package.name, package.version.to_string())).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_the_list_is_refused() {
        let this_test = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = embedded(&this_test).unwrap_err().to_string();
        assert_eq!(error, "the program has no list of dependencies");
    }

    #[test]
    fn the_flags_name_no_path_of_this_machine_on_the_right() {
        let flags = flags(Path::new("/home/me/checkout")).unwrap();
        assert!(flags.split('\x1f').any(|flag| flag == "--remap-path-prefix=/home/me/checkout=/source"), "{flags}");
        assert!(flags.starts_with("-Ctarget-feature=+crt-static\x1f"), "{flags}");
    }
}
