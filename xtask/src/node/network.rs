//! The network inside a cluster's namespaces: loopback, one bridge per node, and the pods' bridges through CNI.
//!
//! It must never change the machine's own network. A new network namespace has only a loopback interface that is down, which is checked
//! first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{NAMES, Node};
use crate::isolation::NODE_IPS;

/// Sets up interfaces, routes and forwarding for `count` nodes, before the control plane, which needs the first node's address.
///
/// # Errors
/// When this is not a fresh network namespace, or a command fails.
pub fn set_up(count: usize) -> Result<()> {
    ensure!(interfaces()?.iter().all(|name| name == "lo"), "not a fresh network namespace: refusing to change it");
    ip(&["link", "set", "lo", "up"])?;
    for (name, address) in NAMES.iter().zip(NODE_IPS).take(count.max(1)) {
        ip(&["link", "add", name, "type", "bridge"])?;
        ip(&["address", "add", &format!("{address}/32"), "dev", name])?;
        ip(&["link", "set", name, "up"])?;
    }
    // This route leads nowhere. Without any route, packets are rejected before kube-proxy's rules can rewrite them.
    ip(&["route", "add", "default", "dev", NAMES[0]])?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("turn forwarding on")
}

/// Writes a node's CNI configuration, with its own bridge and addresses.
pub(super) fn write_cni(node: &Node) -> Result<PathBuf> {
    let folder = node.dir.join("cni");
    fs::create_dir_all(&folder)?;
    let configuration = json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": format!("pods{}", node.index + 1),
                "isGateway": true,
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": node.dir.join("addresses"),
                    "ranges": [[{ "subnet": node.pod_subnet() }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    fs::write(folder.join("10-pods.conflist"), serde_json::to_vec_pretty(&configuration)?)?;
    Ok(folder)
}

/// Names of the interfaces in this process's network namespace (/sys would show those of the namespace that mounted it).
fn interfaces() -> Result<Vec<String>> {
    let table = fs::read_to_string(Path::new("/proc/net/dev"))?;
    Ok(table.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("run ip (Debian package iproute2)")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), errors.trim());
    Ok(())
}
