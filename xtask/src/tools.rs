//! The programs of a cluster, built from Go modules (`kubernetes`, `local-path`, `s3` and others in this folder) once and kept in
//! the cache folder by the hash of the module's `go.mod` and `go.sum`.
//!
//! It must never run such a program from the `PATH` instead: the module determines the versions. Only `go` comes from the `PATH`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::process;

/// A program that can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tool {
    /// The API server's database.
    Etcd,
    /// The API server.
    Apiserver,
    /// The built-in controllers.
    ControllerManager,
    /// The scheduler.
    Scheduler,
    /// The command-line client.
    Kubectl,
    /// The node agent.
    Kubelet,
    /// Routes Services on a node.
    KubeProxy,
    /// Installs the chart.
    Helm,
    /// Simulates nodes.
    Kwok,
    /// Provisions volumes as folders of a node.
    LocalPath,
    /// An S3 server.
    VersityGw,
    /// Checks and evaluates the rules of Prometheus.
    Promtool,
    /// A backup program that archives are compared with.
    Kopia,
    /// Another one.
    Restic,
    /// Copies archives between stores.
    Rclone,
}

/// The source of one program.
struct Source {
    name: &'static str,
    /// Folder of its Go module, below this package.
    module: &'static str,
    package: &'static str,
    /// Seconds that a build took on two cores with an empty cache.
    seconds: u64,
}

impl Tool {
    const fn source(self) -> Source {
        let (name, module, package, seconds) = match self {
            Self::Etcd => ("etcd", "kubernetes", "go.etcd.io/etcd/server/v3", 81),
            Self::Apiserver => ("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", 447),
            Self::ControllerManager => ("kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager", 166),
            Self::Scheduler => ("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler", 17),
            Self::Kubectl => ("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl", 45),
            Self::Kubelet => ("kubelet", "kubernetes", "k8s.io/kubernetes/cmd/kubelet", 52),
            Self::KubeProxy => ("kube-proxy", "kubernetes", "k8s.io/kubernetes/cmd/kube-proxy", 27),
            Self::Helm => ("helm", "kubernetes", "helm.sh/helm/v4/cmd/helm", 41),
            Self::Kwok => ("kwok", "kubernetes", "sigs.k8s.io/kwok/cmd/kwok", 21),
            Self::LocalPath => ("local-path-provisioner", "local-path", "github.com/rancher/local-path-provisioner", 105),
            Self::VersityGw => ("versitygw", "s3", "github.com/versity/versitygw/cmd/versitygw", 45),
            Self::Promtool => ("promtool", "prometheus", "github.com/prometheus/prometheus/cmd/promtool", 150),
            Self::Kopia => ("kopia", "kopia", "github.com/kopia/kopia", 150),
            Self::Restic => ("restic", "restic", "github.com/restic/restic/cmd/restic", 120),
            // The module's own program, with a part of rclone.
            Self::Rclone => ("rclone", "rclone", "computer-operator.dev/xtask/rclone", 60),
        };
        Source { name, module, package, seconds }
    }

    /// Build tags. Without service discovery, `promtool` needs no cloud's library, and without its pages, kopia is smaller.
    const fn tags(self) -> &'static str {
        match self {
            Self::Promtool => "remove_all_sd",
            Self::Kopia => "nohtmlui",
            _ => "",
        }
    }

    /// The program's usual name.
    pub const fn name(self) -> &'static str {
        self.source().name
    }
}

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

/// Builds the programs that are not in the cache, one after the other, and reports progress on standard error.
///
/// # Errors
/// When Go is missing or a build fails: the message says what to do.
pub fn ensure(wanted: &[Tool]) -> Result<Bins> {
    let mut bins = Bins::default();
    let mut missing = Vec::new();
    for tool in wanted {
        let module = module_folder(tool.source().module);
        let folder = cache_folder()?.join("bin").join(module_hash(&read(&module.join("go.mod"))?, &read(&module.join("go.sum"))?));
        let path = folder.join(tool.name());
        if !path.exists() && !bins.0.contains_key(tool) {
            missing.push(*tool);
        }
        bins.0.insert(*tool, path);
    }
    if !missing.is_empty() {
        check_go(&missing)?;
    }
    for (index, tool) in missing.iter().enumerate() {
        build(*tool, bins.path(*tool), index + 1, &missing)?;
    }
    Ok(bins)
}

/// Name and version of the module that a module folder builds its first program from.
pub fn module_version(module: &str) -> Option<String> {
    let text = read(&module_folder(module).join("go.mod")).ok()?;
    let tool = text.lines().find_map(|line| line.strip_prefix("tool "))?;
    text.lines().find_map(|line| {
        let (name, version) = line.strip_prefix('\t')?.trim_end_matches(" // indirect").split_once(' ')?;
        tool.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
        Some(format!("{} {version}", name.rsplit('/').next()?))
    })
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
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    eprintln!("{}", progress(number, all.len(), source.name, about(source.seconds, cores)));
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
    eprintln!("      {} done in {} s", source.name, start.elapsed().as_secs());
    Ok(())
}

/// The absolute path of `go`: the program that starts it does not search the `PATH`.
fn which_go() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("go")).find(|candidate| candidate.is_file()).context("go is not on the PATH")
}

/// The version of Kubernetes that clusters run.
pub fn kubernetes_version() -> Option<String> {
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

/// The expected duration of a build here, from its duration on two cores.
fn about(seconds: u64, cores: usize) -> Duration {
    Duration::from_secs(seconds * 2 / u64::try_from(cores.max(1)).unwrap_or(1).max(1))
}

fn progress(number: usize, count: usize, name: &str, about: Duration) -> String {
    let seconds = about.as_secs();
    let time = if seconds < 60 { format!("{} s", seconds.div_ceil(10).max(1) * 10) } else { format!("{} min", (seconds + 30) / 60) };
    format!("[{number}/{count}] {name}, about {time} the first time")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_which_and_how_long() {
        let text = |seconds, cores| progress(3, 9, "kubelet", about(seconds, cores));
        assert_eq!(text(166, 2), "[3/9] kubelet, about 3 min the first time");
        assert_eq!(text(166, 8), "[3/9] kubelet, about 50 s the first time");
        assert_eq!(text(17, 1), "[3/9] kubelet, about 40 s the first time");
        assert_eq!(text(0, 64), "[3/9] kubelet, about 10 s the first time");
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
        for tool in [Tool::Etcd, Tool::Kwok, Tool::LocalPath, Tool::VersityGw, Tool::Kopia, Tool::Restic, Tool::Rclone] {
            let module_file = read(&module_folder(tool.source().module).join("go.mod")).unwrap();
            assert!(module_file.contains(tool.source().package), "{tool:?}");
        }
    }
}
