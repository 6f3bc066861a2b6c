//! One containerd per node, with its own root, state and socket. Images come from archives, never from a registry.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context as _, Result, ensure};

use super::{Node, daemon, network, wait_until};
use crate::image;

const CTR: &str = "/usr/bin/ctr";

/// Writes the configuration and starts it. `dir` is the cluster's folder.
pub(super) fn start(node: &Node, dir: &Path) -> Result<Child> {
    let cni = network::write_cni(node)?;
    let temporary = node.dir.join("tmp");
    fs::create_dir_all(&temporary)?;
    let path = node.dir.join("containerd.toml");
    fs::write(&path, configuration(node, &cni))?;
    let mut command = Command::new("/usr/bin/containerd");
    command.arg("--config").arg(&path).env("TMPDIR", temporary);
    daemon(dir, &format!("{}-containerd", node.name()), &mut command)
}

/// Waits until it answers.
pub(super) fn wait(node: &Node, child: &mut Child) -> Result<()> {
    let name = format!("{}-containerd", node.name());
    wait_until("containerd to answer", &mut [(&name, child)], || {
        Command::new(CTR).arg("--address").arg(node.containerd_socket()).arg("version").output().is_ok_and(|o| o.status.success())
    })
}

pub(super) fn import(node: &Node, archive: &Path) -> Result<()> {
    let output = Command::new(CTR).args(import_arguments(node.name(), archive)).output().context("run ctr")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "import {} into {}: {}", archive.display(), node.name(), errors.trim());
    Ok(())
}

pub(super) fn import_arguments(node: &str, archive: &Path) -> Vec<OsString> {
    image_arguments(node, "import", archive.as_os_str())
}

/// The arguments of `ctr` for a node's images.
pub(super) fn image_arguments(node: &str, verb: &str, what: &OsStr) -> Vec<OsString> {
    let socket = format!("/run/{node}/containerd.sock");
    let mut arguments: Vec<OsString> = ["--address", &socket, "--namespace", "k8s.io", "images", verb].map(Into::into).to_vec();
    arguments.push(what.into());
    arguments
}

/// The digest of an image in the table of `ctr images list`: name, type, digest.
pub(super) fn digest(table: &str, reference: &str) -> Option<String> {
    let line = table.lines().find(|line| line.split_whitespace().next() == Some(reference))?;
    line.split_whitespace().nth(2).filter(|digest| digest.starts_with("sha256:")).map(str::to_owned)
}

/// The names in such a table.
pub(super) fn names(table: &str) -> impl Iterator<Item = &str> {
    table.lines().skip(1).filter_map(|line| line.split_whitespace().next())
}

/// `restrict_oom_score_adj`: without `CAP_SYS_RESOURCE` (containers, many virtual machines) runc may not lower the score,
/// and fails with "can't get final child's PID from pipe: EOF". The `opt` plugin would otherwise create /opt/containerd.
fn configuration(node: &Node, cni: &Path) -> String {
    let (dir, socket, pause) = (node.dir.display(), node.containerd_socket(), image::PAUSE);
    let (socket, cni, state) = (socket.display(), cni.display(), format!("/run/{}/containerd", node.name()));
    format!(
        r#"version = 2
root = "{dir}/containerd"
state = "{state}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{cni}"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_with_all_its_names() {
        let table = "REF            TYPE                                       DIGEST     SIZE    PLATFORMS   LABELS \n\
                     a.dev/a:demo   application/vnd.oci.image.manifest.v1+json sha256:11  1.9 MiB linux/amd64 -      \n\
                     sha256:22      application/vnd.oci.image.manifest.v1+json sha256:11  1.9 MiB linux/amd64 -      \n";
        assert_eq!(digest(table, "a.dev/a:demo").as_deref(), Some("sha256:11"));
        assert_eq!(digest(table, "a.dev/a"), None);
        assert_eq!(names(table).collect::<Vec<_>>(), ["a.dev/a:demo", "sha256:22"]);
    }
}
