//! One containerd per node, with its own root, state and socket. Images come from archives, never from a registry.

use std::ffi::OsString;
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
    let socket = format!("/run/{node}/containerd.sock");
    let mut arguments: Vec<OsString> = ["--address", &socket, "--namespace", "k8s.io", "images", "import"].map(Into::into).to_vec();
    arguments.push(archive.into());
    arguments
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
