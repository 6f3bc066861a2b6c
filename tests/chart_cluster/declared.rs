//! Tools that declare objects and wait for them, such as Helm, and tools that remove objects in bulk.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::world::{FULL, SYSTEM, World, eventually, refused};

const NAMESPACE: &str = "declared";

/// UIDs of the operator's pods.
fn operators(world: &World) -> Result<String> {
    let selector = "app.kubernetes.io/component=controller";
    world.kubectl(&["get", "pods", "-n", SYSTEM, "-l", selector, "-o", "jsonpath={.items[*].metadata.uid}"])
}

/// As Argo CD's `Replace`, `helm upgrade --force-replace` and a restore of the namespace do. Another Service takes the old address, so the new
/// one differs.
pub fn a_service_that_is_created_again_needs_no_restart(world: &World) -> Result<()> {
    world.namespace(NAMESPACE)?;
    let uid = world.computer(NAMESPACE, "box")?;
    let (service, before) = (format!("{FULL}-ingest"), operators(world)?);
    let address = || world.kubectl(&["get", "service", &service, "-n", SYSTEM, "-o", "jsonpath={.spec.clusterIP}"]);
    let old = address()?;
    world.kubectl(&["delete", "service", &service, "-n", SYSTEM])?;
    world.kubectl(&["create", "service", "clusterip", "former-address", "-n", NAMESPACE, "--tcp=8443", &format!("--clusterip={old}")])?;
    world.chart("upgrade", &["--reuse-values"])?;
    ensure!(address()? != old && operators(world)? == before, "the Service has its old address, or the operator was restarted");
    world.kubectl(&["delete", "computer", "box", "-n", NAMESPACE, "--timeout=120s"])?;
    world.finished(&uid)?;
    ensure!(operators(world)? == before, "the operator was restarted");
    world.kubectl(&["delete", "service", "former-address", "-n", NAMESPACE]).map(drop)
}

/// `helm --wait` uses kstatus, as Flux does: a computer that is suspended as declared is ready, and one that should run is ready when it runs.
pub fn helm_waits_for_what_is_declared(world: &World) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let template = "apiVersion: computer-operator.dev/v1alpha1\nkind: Computer\nmetadata: {name: quiet}\nspec:\n  suspended: {{ .Values.suspended }}\n  \
                    displayName: {{ .Values.title }}\n";
    fs::write(folder.path().join("Chart.yaml"), "apiVersion: v2\nname: quiet\nversion: 0.1.0\n")?;
    fs::write(folder.path().join("values.yaml"), "suspended: true\ntitle: first\n")?;
    fs::create_dir(folder.path().join("templates"))?;
    fs::write(folder.path().join("templates/computer.yaml"), template)?;
    let chart = folder.path().display().to_string();
    let wait = ["-n", NAMESPACE, "--wait", "--timeout", "90s"];
    let phase = || world.kubectl(&["get", "computer", "quiet", "-n", NAMESPACE, "-o", "jsonpath={.status.phase}"]);
    for (verb, set, expected) in [
        ("install", "title=first", "Suspended"),
        ("upgrade", "title=second", "Suspended"),
        ("upgrade", "suspended=false", "Active"),
        ("upgrade", "suspended=true", "Suspended"),
    ] {
        world.helm.run(&[&[verb, "quiet", &chart, "--set", set], &wait[..]].concat())?;
        let phase = phase()?;
        // A new object has no status yet, which kstatus takes for ready.
        ensure!(phase == expected || verb == "install", "helm {verb} --set {set} --wait returned while the computer is {phase:?}");
    }
    let ready = world.condition(&["computer", "quiet", "-n", NAMESPACE], "Ready")?;
    ensure!(ready["status"] == "True" && ready["reason"] == "Suspended", "{ready}");
    helm_does_not_take_a_rejected_class_for_ready(world)
}

/// kstatus takes an object without the condition `Ready` for current, unless it is `Stalled`.
fn helm_does_not_take_a_rejected_class_for_ready(world: &World) -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("Chart.yaml"), "apiVersion: v2\nname: classes\nversion: 0.1.0\n")?;
    fs::create_dir(folder.path().join("templates"))?;
    let class = json!({
        "apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerClass", "metadata": {"name": "nothing-archived"},
        "spec": {"podTemplate": {"spec": {"containers": [{"name": "main", "image": "machine"}]}}, "sessionPaths": []},
    });
    fs::write(folder.path().join("templates/class.yaml"), class.to_string())?;
    let chart = folder.path().display().to_string();
    // A new object has no status for a moment, which kstatus takes for current: the upgrade sees the verdict.
    let _ = world.helm.run(&["install", "classes", &chart, "-n", NAMESPACE]);
    eventually("the class is stalled", || {
        let stalled = world.condition(&["computerclass", "nothing-archived"], "Stalled")?;
        ensure!(stalled["reason"] == "NoSessionPaths", "{stalled}");
        Ok(())
    })?;
    let upgrade = world.helm.run(&["upgrade", "classes", &chart, "-n", NAMESPACE, "--wait", "--timeout", "60s"]);
    refused("a class that is not accepted", upgrade, "nothing-archived")?;
    world.helm.run(&["uninstall", "classes", "-n", NAMESPACE]).map(drop)
}

/// Users of `kubectl delete all` know that it leaves what cannot be replaced, such as claims. It ends machines, which start again.
pub fn deleting_all_does_not_delete_computers(world: &World) -> Result<()> {
    world.create(NAMESPACE, "kept", &json!({}))?;
    world.active(NAMESPACE, "kept")?;
    world.kubectl(&["create", "service", "clusterip", "workload", "-n", NAMESPACE, "--tcp=80"])?;
    let output = world.kubectl(&["delete", "all", "--all", "-n", NAMESPACE, "--timeout=120s"])?;
    ensure!(output.contains("service \"workload\" deleted") && output.contains("pod \"machine-"), "{output}");
    for name in ["kept", "quiet"] {
        let computer = world.get(&["computer", name, "-n", NAMESPACE])?;
        ensure!(computer["metadata"]["deletionTimestamp"].is_null(), "`kubectl delete all --all` deletes {name}");
    }
    world.active(NAMESPACE, "kept")?;
    world.kubectl(&["delete", "computer", "kept", "-n", NAMESPACE, "--wait=false"])?;
    world.helm.run(&["uninstall", "quiet", "-n", NAMESPACE, "--wait", "--timeout", "120s"]).map(drop)
}
