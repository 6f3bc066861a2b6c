//! Dynamic volumes: local-path-provisioner as a process. Volumes are folders below the cluster's folder; a helper pod on the volume's node
//! removes the folder when a claim with reclaim policy `Delete` is deleted.

use std::fs;
use std::process::{Child, Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Node, Nodes, daemon, kubectl};
use crate::image;

/// Name of the storage class, which is the cluster's default.
pub const CLASS: &str = "local-path";
const NAMESPACE: &str = "local-path-storage";
const CONFIG_MAP: &str = "local-path-config";
const SERVICE_ACCOUNT: &str = "local-path-provisioner";

pub(super) fn start(nodes: &Nodes, all: &[Node]) -> Result<Child> {
    let mut paths = Vec::new();
    for node in all {
        let folder = node.dir.join("volumes");
        fs::create_dir_all(&folder)?;
        paths.push(json!({ "node": node.name(), "paths": [folder] }));
    }
    let config = json!({ "nodePathMap": paths });
    let config_file = nodes.dir.join("local-path.json");
    fs::write(&config_file, serde_json::to_vec_pretty(&config)?)?;
    let objects_file = nodes.dir.join("storage.json");
    fs::write(&objects_file, serde_json::to_vec_pretty(&objects(&config)?)?)?;
    let output = kubectl(nodes).args(["apply", "-f"]).arg(&objects_file).output().context("run kubectl")?;
    ensure!(output.status.success(), "storage class: {}", String::from_utf8_lossy(&output.stderr).trim());
    let mut command = Command::new(&nodes.programs.local_path_provisioner);
    command.arg("start").arg("--config").arg(&config_file).arg("--kubeconfig").arg(&nodes.admin_kubeconfig);
    command.args(["--helper-image", image::MACHINE, "--configmap-name", CONFIG_MAP]);
    command.args(["--namespace", NAMESPACE, "--service-account-name", SERVICE_ACCOUNT]);
    daemon(&nodes.dir, "local-path-provisioner", &mut command)
}

/// The namespace, the class, and the provisioner's configuration.
fn objects(config: &Value) -> Result<Value> {
    Ok(json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } },
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": { "name": SERVICE_ACCOUNT, "namespace": NAMESPACE },
            },
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": { "name": CONFIG_MAP, "namespace": NAMESPACE },
                "data": {
                    "config.json": config.to_string(),
                    "helperPod.yaml": serde_json::to_string(&helper_pod())?,
                    "setup": "mkdir -m 0777 -p \"$VOL_DIR\"",
                    "teardown": "rm -rf \"$VOL_DIR\"",
                },
            },
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {
                    "name": CLASS,
                    "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
                },
                "provisioner": "rancher.io/local-path",
                "volumeBindingMode": "WaitForFirstConsumer",
                "reclaimPolicy": "Delete",
            },
        ],
    }))
}

/// The pod that creates and removes a volume's folder on its node, as root, whatever the image's user is.
fn helper_pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "helper-pod" },
        "spec": {
            "containers": [{
                "name": "helper-pod",
                "image": image::MACHINE,
                "imagePullPolicy": "IfNotPresent",
                "securityContext": { "runAsUser": 0, "runAsGroup": 0 },
            }],
        },
    })
}
