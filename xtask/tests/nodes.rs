//! Real nodes: pods, volumes, Services and programs started inside work, and nothing is left afterwards.
//!
//! Ignored by default: they need root, namespaces, cgroups and about half a minute
//! (`cargo test --package xtask --test nodes -- --include-ignored`).
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::cluster::{self, Cluster, Options, Profile};
use xtask::{image, isolation, node};

const LIMIT: Duration = Duration::from_secs(60);

/// Waits until the condition is true.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> String {
    let mut command = Command::new(cluster.kubectl().unwrap());
    command.arg("--kubeconfig").arg(cluster.kubeconfig()).args(arguments).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn apply(cluster: &Cluster, object: &Value) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), object.to_string()).unwrap();
    kubectl(cluster, &["apply", "-f", file.path().to_str().unwrap()]);
}

fn claim() -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "home" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "10Mi" } } },
    })
}

fn pod(node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "box" },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "main", "image": image::MACHINE, "imagePullPolicy": "IfNotPresent",
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
                "volumeMounts": [{ "name": "home", "mountPath": "/home/computer" }],
            }],
            "volumes": [{ "name": "home", "persistentVolumeClaim": { "claimName": "home" } }],
        },
    })
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

/// Cgroups whose name contains `part`, in any hierarchy.
fn cgroups_named(part: &str) -> usize {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    let below = hierarchies.filter_map(|hierarchy| fs::read_dir(hierarchy.path()).ok()).flatten().flatten();
    below.filter(|cgroup| cgroup.file_name().to_string_lossy().contains(part)).count()
}

/// The machine's own mounts and interfaces, which a cluster must not change.
fn machine() -> (usize, usize) {
    let lines = |path: &str| fs::read_to_string(path).unwrap().lines().count();
    (lines("/proc/self/mounts"), lines("/proc/net/dev"))
}

/// A port of the first node is open for pods exactly while its program, started inside, runs.
fn programs_inside_are_accessible_and_really_killed(cluster: &Cluster, dir: &Path) {
    let address = isolation::node_ip().to_string();
    let open = || {
        let line = format!("nc -w 2 {address} 7777 </dev/null && echo open || echo closed");
        kubectl(cluster, &["exec", "box", "--", "sh", "-c", &line]).trim() == "open"
    };
    let mut command = Command::new("/usr/bin/busybox");
    command.args(["nc", "-ll", "-p", "7777", "-e", "/usr/bin/true"]).stdin(Stdio::null());
    let mut child = isolation::spawn_inside(dir, command).unwrap();
    until("the port to open", &open);
    child.kill().unwrap();
    child.wait().unwrap();
    until("the port to close", || !open());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real node: root, namespaces, cgroups, packages"]
async fn two_nodes_run_pods_and_leave_nothing() {
    assert_eq!(node::obstacle(), None);
    let before = machine();
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("cluster");
    let _end = End(&dir);
    let options = Options { dir: Some(dir.clone()), bound: true, ..Options::default() };
    let cluster = Cluster::up_with("two-nodes", Profile::Node { count: 2 }, options).await.unwrap();
    for name in node::NAMES {
        apply(&cluster, &claim());
        apply(&cluster, &pod(name));
        kubectl(&cluster, &["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"]);
        let volumes = dir.join(name).join("volumes");
        assert!(!is_empty(&volumes), "the volume is on {name}");
        let said = kubectl(&cluster, &["exec", "box", "--", "sh", "-c", "echo hello > ~/file; cat ~/file; id -u"]);
        assert_eq!(said, "hello\n1000\n");
        let reach = "nc -w 3 $KUBERNETES_SERVICE_HOST 443 </dev/null && echo reached";
        assert_eq!(kubectl(&cluster, &["exec", "box", "--", "sh", "-c", reach]), "reached\n");
        programs_inside_are_accessible_and_really_killed(&cluster, &dir);
        kubectl(&cluster, &["delete", "pod/box", "pvc/home"]);
        until("the volume's folder to go", || is_empty(&volumes));
    }
    assert_eq!(machine(), before);
    assert_ne!(cgroups_named("two-nodes"), 0);
    let mut inside = isolation::spawn_inside(&dir, sleep()).unwrap();
    cluster.down().await.unwrap();
    assert!(!inside.wait().unwrap().success(), "programs started inside must die with the cluster");
    assert!(!dir.exists());
    assert_eq!(cgroups_named("two-nodes"), 0);
    assert_eq!(machine(), before);
}

/// Stops the cluster before its folder is removed, whatever happens: without its record, its cgroups could not be found.
struct End<'a>(&'a Path);

impl Drop for End<'_> {
    fn drop(&mut self) {
        cluster::down("two-nodes", Some(self.0)).ok();
    }
}

fn sleep() -> Command {
    let mut command = Command::new("/usr/bin/sleep");
    command.arg("600");
    command
}
