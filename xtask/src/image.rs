//! Packs container images without a Docker daemon, a registry or a network.
//!
//! Each image is one tar file that is both an OCI layout and a `docker load` archive, so that `ctr images import`, `podman load` and
//! `docker load` all accept it. The same input gives the same bytes. It must never pack any file of the machine that is not named here.

mod archive;
mod layer;
pub mod oci;
mod shared;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

pub use archive::{Image, Parts, architecture, platform};
pub use layer::{Layer, gzip};
pub use shared::{PROGRAM as SHARED_PROGRAM, build as build_shared};

/// The operator: one static binary, the machine's CA certificates, nothing else; runs as [`OPERATOR_UID`].
pub const OPERATOR: &str = "computer-operator.dev/operator:dev";
/// A small machine image: busybox, a user `computer` (1000) with a home, and a main process that exits at once on SIGTERM.
pub const MACHINE: &str = "computer-operator.dev/machine:dev";
/// The image of the process that keeps a pod's namespaces.
pub const PAUSE: &str = "computer-operator.dev/pause:dev";

/// The user that the operator's image runs as; the same as in the `Containerfile`.
pub const OPERATOR_UID: u32 = 65532;
const MACHINE_UID: u32 = 1000;

const PAUSE_SOURCE: &str = include_str!("../images/pause.c");
/// The program of the machine's image, from Debian's busybox-static.
pub const BUSYBOX: &str = "/usr/bin/busybox";
/// The certificates that are packed into the operator's image.
pub const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const MACHINE_PATH: &str = "PATH=/bin:/sbin:/usr/bin:/usr/sbin";
/// `wait` returns when the signal arrives; a plain `sleep` would delay the shell's trap until its end.
const MACHINE_MAIN: &str = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done";

/// Packs the pause image into `folder`. Needs gcc and a static libc; takes a fraction of a second.
///
/// # Errors
/// When the C compiler is missing or fails.
pub fn pause(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let (source, binary) = (folder.join("pause.c"), folder.join("pause"));
    fs::write(&source, PAUSE_SOURCE)?;
    let mut compile = Command::new("gcc");
    compile.args(["-static", "-Os", "-s", "-Wall", "-o"]).arg(&binary).arg(&source);
    let output = compile.output().context("run gcc (Debian packages gcc and libc6-dev)")?;
    ensure!(output.status.success(), "gcc: {}", String::from_utf8_lossy(&output.stderr));
    let mut layer = Layer::new();
    layer.file("pause", &fs::read(&binary)?, 0o755, 0)?;
    let image = Image {
        reference: PAUSE.into(),
        entrypoint: vec!["/pause".into()],
        user: format!("{OPERATOR_UID}:{OPERATOR_UID}"),
        ..Image::default()
    };
    image.write(layer, &folder.join("pause.tar"))
}

/// Packs the demo machine's image into `folder`. Needs Debian's busybox-static.
///
/// # Errors
/// When busybox is missing or is not static.
pub fn machine(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    machine_as(MACHINE, &folder.join("machine.tar"))
}

/// As [`machine`], with this name and in this file.
///
/// # Errors
/// As [`machine`].
pub fn machine_as(reference: &str, archive: &Path) -> Result<PathBuf> {
    let list = Command::new(BUSYBOX).arg("--list").output().context("run busybox (Debian package busybox-static)")?;
    let mut layer = Layer::new();
    for directory in ["bin", "etc", "home", "proc", "sys", "dev"] {
        layer.directory(directory, 0o755, 0)?;
    }
    layer.directory("tmp", 0o1777, 0)?;
    layer.directory("home/computer", 0o700, MACHINE_UID)?;
    layer.file("bin/busybox", &static_binary(Path::new(BUSYBOX))?, 0o755, 0)?;
    for applet in String::from_utf8(list.stdout)?.lines().filter(|name| *name != "busybox") {
        layer.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    let passwd = format!("root:x:0:0::/:/bin/sh\ncomputer:x:{MACHINE_UID}:{MACHINE_UID}::/home/computer:/bin/sh\n");
    layer.file("etc/passwd", passwd.as_bytes(), 0o644, 0)?;
    layer.file("etc/group", format!("root:x:0:\ncomputer:x:{MACHINE_UID}:\n").as_bytes(), 0o644, 0)?;
    let image = Image {
        reference: reference.into(),
        entrypoint: ["/bin/sh", "-c", MACHINE_MAIN].map(Into::into).to_vec(),
        user: format!("{MACHINE_UID}:{MACHINE_UID}"),
        environment: vec![MACHINE_PATH.into(), "HOME=/home/computer".into()],
        // Not a folder that could be mistaken for the home, which the class mounts elsewhere.
        directory: "/".into(),
        annotations: mark(reference, MACHINE),
        ..Image::default()
    };
    image.write(layer, archive)
}

/// Builds the operator (profile `image`, static) and packs it into `folder`. The first build takes minutes; later ones are incremental.
///
/// # Errors
/// When the build fails.
pub fn operator(workspace: &Path, folder: &Path) -> Result<PathBuf> {
    let binary = build_operator(workspace)?;
    pack_operator(&binary, folder)
}

/// Packs a static operator binary that exists already into `folder`.
///
/// # Errors
/// When it is missing or is not static.
pub fn pack_operator(binary: &Path, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    operator_as(OPERATOR, binary, &folder.join("operator.tar"))
}

/// As [`pack_operator`], with this name and in this file.
///
/// # Errors
/// As [`pack_operator`].
pub fn operator_as(reference: &str, binary: &Path, archive: &Path) -> Result<PathBuf> {
    let image = Image { annotations: mark(reference, OPERATOR), ..operator_image(reference) };
    image.write(operator_layer(binary, 0)?, archive)
}

/// An image with another name than the usual one is another image, also for a runtime that knows images by their configuration: removing it
/// leaves the usual one.
fn mark(reference: &str, usual: &str) -> oci::Annotations {
    let other = (reference != usual).then(|| ("computer-operator.dev/reference".to_owned(), reference.to_owned()));
    other.into_iter().collect()
}

/// How the operator's image runs.
pub fn operator_image(reference: &str) -> Image {
    Image {
        reference: reference.to_owned(),
        entrypoint: vec!["/computer-operator".into()],
        command: vec!["run".into()],
        user: format!("{OPERATOR_UID}:{OPERATOR_UID}"),
        environment: vec!["PATH=/".into()],
        directory: "/".into(),
        ..Image::default()
    }
}

/// The file system of the operator's image, with the machine's certificates if there are any. `seconds`: the time of every file.
///
/// # Errors
/// When the binary is missing or is not static.
pub fn operator_layer(binary: &Path, seconds: u64) -> Result<Layer> {
    let mut layer = Layer::at(seconds);
    layer.file("computer-operator", &static_binary(binary)?, 0o755, 0)?;
    layer.directory("tmp", 0o1777, 0)?;
    if let Ok(certificates) = fs::read(CERTIFICATES) {
        for directory in ["etc", "etc/ssl", "etc/ssl/certs"] {
            layer.directory(directory, 0o755, 0)?;
        }
        layer.file(CERTIFICATES.trim_start_matches('/'), &certificates, 0o644, 0)?;
    }
    Ok(layer)
}

/// Compiles the operator as a static binary and returns its path.
///
/// The target is named although it is the host's: only then do the flags not apply to build scripts and procedural macros, which cannot
/// be static.
///
/// # Errors
/// When it does not compile.
pub fn build_operator(workspace: &Path) -> Result<PathBuf> {
    let target = host_target()?;
    let folder = workspace.join("target/image");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let status = Command::new(cargo)
        .current_dir(workspace)
        .args(["build", "--package", "computer-operator", "--bin", "computer-operator"])
        .args(["--profile", "image", "--target", &target, "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "building the operator's image failed: {status}");
    Ok(folder.join(target).join("image/computer-operator"))
}

/// The target of programs for this machine.
///
/// # Errors
/// When rustc does not say it.
pub fn host_target() -> Result<String> {
    let version = Command::new("rustc").arg("-vV").output().context("run rustc")?;
    let version = String::from_utf8(version.stdout)?;
    version.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned).context("rustc names no host")
}

/// Reads a program and checks that it needs no library: it must not name an interpreter (ELF `PT_INTERP`).
///
/// # Errors
/// When it cannot be read or is not static.
pub fn static_binary(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    ensure!(!names_interpreter(&bytes)?, "{} is not static: it would not start in an empty image", path.display());
    Ok(bytes)
}

/// Whether a 64-bit little-endian ELF file has a `PT_INTERP` program header.
fn names_interpreter(elf: &[u8]) -> Result<bool> {
    let number = |from: usize, bytes: usize| -> Result<usize> {
        let slice = elf.get(from..from + bytes).context("truncated ELF file")?;
        Ok(slice.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit ELF file");
    let (start, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    for index in 0..count {
        if number(start + index * size, 4)? == 3 {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_libraries_is_refused() {
        let this_test = std::env::current_exe().unwrap();
        let error = static_binary(&this_test).unwrap_err().to_string();
        assert!(error.contains("is not static"), "{error}");
    }

    #[test]
    fn an_image_with_another_name_is_another_image() {
        let parts = |reference: &str| {
            let image = Image { annotations: mark(reference, OPERATOR), ..operator_image(reference) };
            image.parts(Layer::new(), false).unwrap().config.bytes
        };
        assert_ne!(parts(OPERATOR), parts("computer-operator.dev/operator:demo-1"));
        assert_eq!(mark(OPERATOR, OPERATOR), oci::Annotations::new());
    }

    #[test]
    fn a_file_that_is_not_elf_is_refused() {
        assert!(names_interpreter(b"#!/bin/sh\n").is_err());
        assert!(names_interpreter(b"\x7fELF\x02\x01").is_err());
    }
}
