//! One kubelet per node, with its own folders, ports, certificates and cgroup. It must never share a cgroup with another kubelet.

use std::fs;
use std::process::{Child, Command};

use anyhow::Result;
use serde_json::{Value, json};

use super::{KubeletIdentity, Node, Nodes, daemon};

pub(super) fn start(node: &Node, nodes: &Nodes, identity: &KubeletIdentity) -> Result<Child> {
    for folder in ["kubelet", "kubelet-certificates", "pod-logs", "volume-plugins"] {
        fs::create_dir_all(node.dir.join(folder))?;
    }
    let path = node.dir.join("kubelet.json");
    fs::write(&path, serde_json::to_vec_pretty(&configuration(node, nodes, identity))?)?;
    let mut command = Command::new(&nodes.programs.kubelet);
    command.arg("--config").arg(&path).arg("--kubeconfig").arg(&identity.kubeconfig);
    command.arg("--root-dir").arg(node.dir.join("kubelet"));
    command.arg("--cert-dir").arg(node.dir.join("kubelet-certificates"));
    command.arg(format!("--node-ip={}", node.ip())).arg(format!("--hostname-override={}", node.name()));
    daemon(&nodes.dir, &format!("{}-kubelet", node.name()), &mut command)
}

fn configuration(node: &Node, nodes: &Nodes, identity: &KubeletIdentity) -> Value {
    let offset = u16::from(node.index) * 100;
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": node.cgroup,
        "failSwapOn": false,
        "containerRuntimeEndpoint": format!("unix://{}", node.containerd_socket().display()),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": nodes.client_ca },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": identity.certificate,
        "tlsPrivateKeyFile": identity.key,
        "port": 10250 + offset,
        "healthzPort": 10248 + offset,
        // A developer's disk is often nearly full, and evicted pods would break tests that are about something else.
        "evictionHard": {
            "memory.available": "1%", "nodefs.available": "200Mi", "nodefs.inodesFree": "1%", "imagefs.available": "200Mi",
        },
        // There is no registry to pull an image from again.
        "imageGCHighThresholdPercent": 100,
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "podLogsDir": node.dir.join("pod-logs"),
        "volumePluginDir": node.dir.join("volume-plugins"),
        // Lowering it needs CAP_SYS_RESOURCE.
        "oomScoreAdj": 0,
    })
}
