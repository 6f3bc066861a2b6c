//! A real control plane starts, is found by name, and is removed without a trace, whatever is killed. Needs Go, not root.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xtask::cluster::{Cluster, Options, Profile, Status, status};

async fn client(cluster: &Cluster) -> Client {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let config = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Command lines of the running processes that name `dir`, except this test's own.
fn processes(dir: &Path) -> Vec<String> {
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines =
        entries.filter(|entry| entry.file_name() != own.as_str()).filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).into_owned()).filter(|line| line.contains(dir.to_str().unwrap())).collect()
}

fn options(dir: &Path, bound: bool) -> Options {
    Options { dir: Some(dir.to_owned()), bound, audit_log: Some(dir.with_extension("audit")), ..Options::default() }
}

#[tokio::test]
async fn a_bound_cluster_ends_with_its_owner() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("cluster");
    let cluster = Cluster::up_with("test", Profile::ControlPlane, options(&dir, true)).await.unwrap();
    let namespaces = Api::<Namespace>::all(client(&cluster).await);
    assert!(namespaces.get("default").await.is_ok());
    assert!(std::fs::read_to_string(dir.with_extension("audit")).unwrap().contains("/api/v1/namespaces/default"));
    drop(cluster);
    // The process that removes the folder names it too, and exits a moment later.
    until("folder and processes are gone", || !dir.exists() && processes(&dir).is_empty()).await;
}

#[tokio::test]
async fn a_killed_cluster_is_started_again_and_removed_completely() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("cluster");
    let up = || Cluster::up_with("test", Profile::ControlPlane, options(&dir, false));
    let first = up().await.unwrap();
    let again = up().await.unwrap();
    assert_eq!(first.kubeconfig(), again.kubeconfig());
    let Err(other) = Cluster::up_with("test", Profile::Kwok { nodes: 1 }, options(&dir, false)).await else {
        panic!("a request for another profile reused the running cluster")
    };
    assert!(other.to_string().contains("stop it first"), "{other}");

    let supervisor = std::fs::read_to_string(dir.join("running")).unwrap().parse().unwrap();
    kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
    until("everything is dead", || processes(&dir).is_empty()).await;
    assert!(matches!(status("test", Some(&dir)).unwrap(), Status::Stopped { .. }));

    let again = up().await.unwrap();
    assert!(matches!(status("test", Some(&dir)).unwrap(), Status::Ready { .. }));
    again.down().await.unwrap();
    assert!(!dir.exists());
    assert_eq!(processes(&dir), Vec::<String>::new());
}
