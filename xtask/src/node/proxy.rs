//! kube-proxy: Service addresses for pods and for processes inside. All nodes share one network, so one kube-proxy serves them.

use std::fs;
use std::process::{Child, Command};

use anyhow::Result;
use serde_json::json;

use super::{NAMES, Nodes, POD_RANGE, daemon};

pub(super) fn start(nodes: &Nodes) -> Result<Child> {
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": { "kubeconfig": nodes.proxy_kubeconfig },
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": NAMES[0],
        // The conntrack limits belong to the machine, not to the namespace: do not change them.
        "conntrack": { "maxPerCore": 0, "min": 0 },
        // Otherwise two pods on one bridge would answer each other without address translation.
        "nftables": { "masqueradeAll": true },
        "oomScoreAdj": 0,
    });
    let path = nodes.dir.join("kube-proxy.json");
    fs::write(&path, serde_json::to_vec_pretty(&configuration)?)?;
    let mut command = Command::new(&nodes.programs.kube_proxy);
    command.arg("--config").arg(&path);
    daemon(&nodes.dir, "kube-proxy", &mut command)
}
