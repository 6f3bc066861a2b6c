//! The files that a node needs from the machine's distribution, and the Debian packages that contain them.
//!
//! It must never start a service of the machine: packages are installed with service starts disabled.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// A file that a node needs and the Debian package that contains it.
const NEEDED: [(&str, &str); 10] = [
    ("/usr/bin/containerd", "containerd"),
    ("/usr/bin/ctr", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/sbin/conntrack", "conntrack"),
    ("/usr/bin/busybox", "busybox-static"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev"),
];

/// The packages that are missing, each once.
pub fn missing() -> Vec<&'static str> {
    let mut missing: Vec<_> = NEEDED
        .iter()
        // The library's folder contains the architecture's name: only that folder is searched.
        .filter(|(file, _)| std::env::consts::ARCH == "x86_64" || !file.contains("x86_64"))
        .filter(|(file, _)| !Path::new(file).exists())
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    missing
}

/// Whether [`ensure_installed`] may and can install here.
pub fn can_install() -> bool {
    nix::unistd::geteuid().is_root() && Path::new("/usr/bin/apt-get").exists()
}

/// Installs missing packages where that is possible: on Debian or a derivative, as root.
///
/// # Errors
/// Names the packages when they cannot be installed.
pub fn ensure_installed(progress: &dyn Fn(&str)) -> Result<()> {
    let packages = missing();
    install(&packages, progress)?;
    let still = missing();
    ensure!(still.is_empty(), "apt-get succeeded, but files of these packages are missing: {}", still.join(" "));
    Ok(())
}

/// Installs packages where that is possible. An empty list does nothing.
///
/// # Errors
/// Names the packages when they cannot be installed.
pub fn install(packages: &[&str], progress: &dyn Fn(&str)) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    if !can_install() {
        bail!("these packages are missing (Debian names): {names}. Install them as root: apt-get install {names}");
    }
    progress(&format!("installing Debian packages: {names}"));
    apt(&["update", "-q"])?;
    let mut arguments = vec!["install", "-y", "-q", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

fn apt(arguments: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Otherwise installing containerd would start the machine's own containerd.
        .env("SYSTEMD_OFFLINE", "1")
        .stdin(Stdio::null())
        .output()
        .context("run apt-get")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "apt-get {} failed: {}", arguments.join(" "), errors.trim());
    Ok(())
}
