//! The programs of a cluster, built from Go modules (`kubernetes`, `local-path`, `s3` and others in this package) once and kept in
//! the cache folder by the hash of the module's `go.mod` and `go.sum`, and of its own source if it has any. A program of a cluster that the machine already has in the minor version
//! of the module is used instead of building it ([`machine`]).
//!
//! It must never use a program in another minor version: the module determines the versions.

pub mod machine;
mod tool;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::durations::Durations;
use crate::process;
use machine::{Found, Question, Version};
pub use tool::Tool;

/// Where the programs are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bins(BTreeMap<Tool, PathBuf>);

impl Bins {
    /// Path of a program that [`ensure()`] has built. For another program, its bare name: starting it then reports the name.
    pub fn path(&self, tool: Tool) -> &Path {
        self.0.get(&tool).map_or(Path::new(tool.name()), PathBuf::as_path)
    }
}

/// The cache folder: `$XDG_CACHE_HOME/computer-operator`, or below `~/.cache`.
///
/// # Errors
/// When neither variable is set.
pub fn cache_folder() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("computer-operator"))
}

/// Finds the programs in the cache or on this machine, builds the others, one after the other, and reports progress on standard error.
///
/// # Errors
/// When Go is missing or a build fails: the message says what to do.
pub fn ensure(wanted: &[Tool]) -> Result<Bins> {
    let mut bins = Bins::default();
    let mut absent = Vec::new();
    for tool in wanted {
        let (path, built) = match existing(*tool)? {
            Some(path) => (path, true),
            None => (cached(*tool)?, false),
        };
        if !built && !bins.0.contains_key(tool) {
            absent.push(*tool);
        }
        bins.0.insert(*tool, path);
    }
    if !absent.is_empty() {
        check_go(&absent)?;
    }
    for (index, tool) in absent.iter().enumerate() {
        build(*tool, bins.path(*tool), index + 1, &absent)?;
    }
    Ok(bins)
}

/// Those of these programs that [`ensure()`] would build, as they are called in the recorded durations. Builds nothing.
///
/// # Errors
/// When a module cannot be read.
pub fn to_build(wanted: &[Tool]) -> Result<Vec<String>> {
    let mut absent = Vec::new();
    for tool in wanted {
        if existing(*tool)?.is_none() && !absent.contains(&tool.record()) {
            absent.push(tool.record());
        }
    }
    Ok(absent)
}

/// Where the program is, or will be, in the cache folder.
fn cached(tool: Tool) -> Result<PathBuf> {
    let module = module_folder(tool.source().module);
    let hash = module_hash(&read(&module.join("go.mod"))?, &(read(&module.join("go.sum"))? + &own_source(&module)?));
    Ok(cache_folder()?.join("bin").join(hash).join(tool.name()))
}

/// The module's own source files, in the order of their names. Most modules have none.
fn own_source(module: &Path) -> Result<String> {
    let entries = fs::read_dir(module).with_context(|| format!("read {}", module.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|end| end == "go"));
    files.sort();
    files.iter().map(|path| read(path)).collect()
}

/// The program that was built here earlier, or the machine's own in the right version.
fn existing(tool: Tool) -> Result<Option<PathBuf>> {
    let path = cached(tool)?;
    if path.exists() {
        return Ok(Some(path));
    }
    Ok(of_machine(tool)?.map(|found| found.path))
}

/// The machine's own program, if it has the right version. Each is asked once, and each message is shown once.
fn of_machine(tool: Tool) -> Result<Option<Found>> {
    static ASKED: Mutex<BTreeMap<Tool, Option<Found>>> = Mutex::new(BTreeMap::new());
    let Some(arguments) = tool.question() else { return Ok(None) };
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = asked.get(&tool) {
        return Ok(known.clone());
    }
    let source = tool.source();
    let module = read(&module_folder(source.module).join("go.mod"))?;
    let wanted = required(&module, source.package).with_context(|| format!("no version of {}", source.package))?;
    let found = machine::search(Question { name: source.name, arguments, wanted: &wanted }, &machine::folders());
    for refused in &found.refused {
        eprintln!("{refused}");
    }
    if let Some(used) = &found.used {
        eprintln!("{used}");
    }
    asked.insert(tool, found.used.clone());
    Ok(found.used)
}

/// The module that contains a package, and its version.
fn module_of<'a>(go_mod: &'a str, package: &str) -> Option<(&'a str, &'a str)> {
    go_mod.lines().find_map(|line| {
        let (name, version) = line.strip_prefix('\t')?.trim_end_matches(" // indirect").split_once(' ')?;
        package.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with('/')).map(|_| (name, version))
    })
}

/// The version of a package's module.
fn required(go_mod: &str, package: &str) -> Option<Version> {
    module_of(go_mod, package).and_then(|(_, version)| Version::find(version))
}

/// Name and version of the module that a module folder builds its first program from.
pub fn module_version(module: &str) -> Option<String> {
    let text = read(&module_folder(module).join("go.mod")).ok()?;
    let tool = text.lines().find_map(|line| line.strip_prefix("tool "))?;
    let (name, version) = module_of(&text, tool)?;
    Some(format!("{} {version}", name.rsplit('/').next()?))
}

fn module_folder(module: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(module)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// Names the folder of a module's programs: 16 hexadecimal digits.
fn module_hash(go_mod: &str, go_sum: &str) -> String {
    let digest = Sha256::new().chain_update(go_mod).chain_update(go_sum).finalize();
    hex::encode(&digest[..8])
}

fn check_go(missing: &[Tool]) -> Result<()> {
    let names: Vec<_> = missing.iter().map(|tool| tool.name()).collect();
    match Command::new("go").arg("version").stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => bail!("`go version` failed: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "Go is missing; it builds {}. Install Go 1.26 or newer from https://go.dev/dl/ and put it on the PATH \
             (Go 1.21 or newer, as in `apt-get install golang-go`, fetches the right version itself)",
            names.join(", ")
        ),
        Err(error) => Err(error).context("run go"),
    }
}

fn build(tool: Tool, path: &Path, number: usize, all: &[Tool]) -> Result<()> {
    let source = tool.source();
    let folder = path.parent().context("no folder")?;
    fs::create_dir_all(folder)?;
    // Another command may be building the same program: wait for it, then use its result.
    let lock = File::open(folder)?;
    lock.lock()?;
    if path.exists() {
        return Ok(());
    }
    let mut durations = Durations::open();
    eprintln!("{}", progress(number, all, &durations));
    let start = Instant::now();
    let partial = folder.join(format!(".{}.partial", source.name));
    let module = module_folder(source.module);
    // The leftovers of a killed build are here, not in the machine's folder for temporary files.
    let temporary = folder.join(".tmp");
    fs::remove_dir_all(&temporary).ok();
    fs::create_dir(&temporary)?;
    let compiler = which_go()?;
    let mut command = process::tied(&compiler, None)?;
    command
        .current_dir(&module)
        .args(["build", "-trimpath", "-buildvcs=false", "-tags", tool.tags(), "-ldflags"])
        .arg(link_flags(&read(&module.join("go.mod"))?))
        .arg("-o")
        .args([partial.as_os_str(), source.package.as_ref()])
        // Overrides the user's settings that could change the build.
        .env("GOFLAGS", "")
        .env("GOWORK", "off")
        .env("GOTMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let output = command.output().context("run go build")?;
    ensure!(output.status.success(), "building {} failed: {}", source.name, String::from_utf8_lossy(&output.stderr).trim());
    fs::rename(&partial, path)?;
    fs::remove_dir_all(&temporary)?;
    durations.record(&tool.record(), start.elapsed());
    eprintln!("      {} done in {} s", source.name, start.elapsed().as_secs());
    Ok(())
}

/// The absolute path of `go`: the program that starts it does not search the `PATH`.
fn which_go() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("go")).find(|candidate| candidate.is_file()).context("go is not on the PATH")
}

/// The version of Kubernetes that clusters run: that of the module, or of the machine's own API server where that one is used.
pub fn kubernetes_version() -> Option<String> {
    if !cached(Tool::Apiserver).ok()?.exists()
        && let Ok(Some(found)) = of_machine(Tool::Apiserver)
    {
        return Some(format!("v{}", found.version));
    }
    let text = read(&module_folder("kubernetes").join("go.mod")).ok()?;
    version_of_kubernetes(&text).map(str::to_owned)
}

fn version_of_kubernetes(go_mod: &str) -> Option<&str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("k8s.io/kubernetes")).then(|| words.next()).flatten()
    })
}

/// Without these flags the programs report version 0.0.0, and clients use that.
fn link_flags(go_mod: &str) -> String {
    let mut flags = String::from("-s -w");
    if let Some(version) = version_of_kubernetes(go_mod) {
        let mut numbers = version.trim_start_matches('v').split('.');
        let package = "k8s.io/component-base/version";
        for (name, value) in [("gitVersion", Some(version)), ("gitMajor", numbers.next()), ("gitMinor", numbers.next())] {
            flags = format!("{flags} -X {package}.{name}={}", value.unwrap_or_default());
        }
    }
    flags
}

/// Which program is built, and how long the rest took in earlier runs.
fn progress(number: usize, all: &[Tool], durations: &Durations) -> String {
    let left: Vec<String> = all[number - 1..].iter().map(|tool| tool.record()).collect();
    let remaining = durations.estimate(left.iter().map(String::as_str));
    format!("[{number}/{}] build {} from source; remaining time of all: {remaining}", all.len(), all[number - 1].name())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_which_and_how_long_the_rest_took_here() {
        let folder = tempfile::tempdir().unwrap();
        let mut durations = Durations::at(&folder.path().join("durations.json"));
        let all = [Tool::Etcd, Tool::Kubelet, Tool::Helm];
        durations.record(&Tool::Helm.record(), std::time::Duration::from_secs(41));
        let unknown =
            "[2/3] build kubelet from source; remaining time of all: unknown (no run on this machine has recorded: build kubelet)";
        assert_eq!(progress(2, &all, &durations), unknown);
        let known = "[3/3] build helm from source; remaining time of all: 41 s (from the last run on this machine)";
        assert_eq!(progress(3, &all, &durations), known);
    }

    #[test]
    fn the_wanted_version_of_every_program_is_in_its_module() {
        for tool in [Tool::Etcd, Tool::Apiserver, Tool::Kubectl, Tool::Kubelet, Tool::Helm, Tool::Kwok] {
            let source = tool.source();
            let module = read(&module_folder(source.module).join("go.mod")).unwrap();
            assert!(required(&module, source.package).is_some(), "{tool:?}");
        }
        let module = read(&module_folder("kubernetes").join("go.mod")).unwrap();
        let kubernetes = Version::find(version_of_kubernetes(&module).unwrap());
        assert_eq!(required(&module, Tool::Kubectl.source().package), kubernetes);
    }

    #[test]
    fn another_version_or_sum_is_another_folder() {
        let hash = module_hash("module a", "b");
        assert_eq!(hash.len(), 16);
        assert_eq!(hash, module_hash("module a", "b"));
        assert_ne!(hash, module_hash("module a", "c"));
        assert_ne!(hash, module_hash("module b", "b"));
    }

    #[test]
    fn a_changed_program_of_our_own_is_built_again() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(own_source(folder.path()).unwrap(), "");
        for (name, text) in [("main.go", "b"), ("go.mod", "c"), ("driver.go", "a")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        assert_eq!(own_source(folder.path()).unwrap(), "ab");
    }

    #[test]
    fn the_version_comes_from_the_module() {
        let module_file = "require (\n\tk8s.io/kubernetes v1.37.2 // indirect\n)\n";
        let flags = link_flags(module_file);
        assert!(flags.contains("gitVersion=v1.37.2 "), "{flags}");
        assert!(flags.ends_with("gitMinor=37"), "{flags}");
        assert_eq!(link_flags("module x"), "-s -w");
    }

    #[test]
    fn a_module_has_a_version() {
        assert!(module_version("s3").unwrap().starts_with("versitygw v"));
        assert!(module_version("restic").unwrap().starts_with("restic v"));
        assert!(module_version("kopia").unwrap().starts_with("kopia v"));
        assert!(kubernetes_version().unwrap().starts_with("v1."));
    }

    #[test]
    fn the_modules_have_every_program() {
        let backups = [Tool::VersityGw, Tool::Kopia, Tool::Restic, Tool::Rclone];
        let volumes = [Tool::LocalPath, Tool::CsiDriver, Tool::CsiProvisioner, Tool::CsiAttacher, Tool::CsiResizer];
        for tool in [Tool::Etcd, Tool::Kwok].into_iter().chain(backups).chain(volumes) {
            let module_file = read(&module_folder(tool.source().module).join("go.mod")).unwrap();
            assert!(module_file.contains(tool.source().package), "{tool:?}");
        }
    }
}
