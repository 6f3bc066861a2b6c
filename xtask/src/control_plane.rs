//! etcd, API server, controller manager and scheduler, as children of the supervisor that calls [`start`].
//!
//! It works the same on the machine itself (loopback, free ports, no root) and inside a cluster's namespaces. etcd listens on loopback only
//! and does not sync to disk: these clusters must be used for tests only.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::node;
use crate::pki::Pki;
use crate::process::{Children, tied};
use crate::tools::{Bins, Tool};

/// Addresses of Services: a documentation range, which is not routed.
pub const SERVICE_RANGE: &str = "203.0.113.0/24";

/// How long the API server may take to be ready, or an object of its controllers to appear.
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// The ports of one control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// etcd, for clients.
    pub etcd: u16,
    /// etcd, for its peers.
    pub etcd_peer: u16,
    /// The API server.
    pub apiserver: u16,
    /// The port of kwok's server, if there is one.
    pub kwok: u16,
}

impl Ports {
    /// The usual ports, for a separate network namespace.
    pub const USUAL: Self = Self { etcd: 2379, etcd_peer: 2380, apiserver: 6443, kwok: 10247 };

    /// Ports of loopback that are free at this moment.
    ///
    /// # Errors
    /// When none can be found.
    pub fn free() -> Result<Self> {
        // Below the range of ports for outgoing connections, so that none of them takes a port between choosing it and using it.
        let candidates = std::iter::repeat_with(|| rand::rng().random_range(20_000..32_000));
        let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        let [etcd, etcd_peer, apiserver, kwok] = pick(candidates.take(10_000), free).context("no free ports on loopback")?;
        Ok(Self { etcd, etcd_peer, apiserver, kwok })
    }
}

/// The first `N` different candidates that are free.
fn pick<const N: usize>(candidates: impl Iterator<Item = u16>, is_free: impl Fn(u16) -> bool) -> Option<[u16; N]> {
    let mut seen = BTreeSet::new();
    let picked: Vec<u16> = candidates.filter(|port| seen.insert(*port) && is_free(*port)).take(N).collect();
    picked.try_into().ok()
}

/// Where a control plane listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The ports, on loopback.
    pub ports: Ports,
    /// The API server's address for pods and kubelets; none where there are no real nodes.
    pub node_ip: Option<IpAddr>,
}

impl Addresses {
    /// The API server, for a process in the same network.
    pub fn server_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.apiserver)
    }
}

/// Everything [`start`] needs beside programs and certificates.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// The cluster's folder, absolute; `logs` exists already.
    pub dir: &'a Path,
    /// Every program holds a shared lock on this file while it runs.
    pub lock: &'a Path,
    /// Where to listen.
    pub addresses: Addresses,
    /// The audit log, one line for each request (level `Metadata`), if any.
    pub audit_log: Option<&'a Path>,
    /// Further arguments of the controller manager.
    pub controller_manager: &'a [String],
}

impl Settings<'_> {
    fn kubeconfig(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.kubeconfig"))
    }

    /// Credentials of `system:masters` for processes in the same network as the control plane.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.kubeconfig("admin")
    }
}

/// Starts a control plane and returns when the API server is ready and the default service account exists (about 10 s).
/// `progress` gets the condition that is waited for. The programs die with the calling thread.
///
/// # Errors
/// When a program ends or does not answer in time; the message names its log.
pub fn start(settings: &Settings<'_>, bins: &Bins, pki: &Pki, progress: &dyn Fn(&str)) -> Result<Children> {
    let url = settings.addresses.server_url();
    for (name, user, groups) in [
        ("admin", "admin", &["system:masters"][..]),
        ("controller-manager", "system:kube-controller-manager", &[]),
        ("scheduler", "system:kube-scheduler", &[]),
    ] {
        pki.client_kubeconfig(user, groups, &url, &settings.kubeconfig(name))?;
    }
    let mut children = Children::default();
    let logs = settings.dir.join("logs");
    let run = |children: &mut Children, tool: Tool, arguments: Vec<String>| {
        let mut command = tied(bins.path(tool), Some(settings.lock))?;
        command.args(arguments);
        children.start(&logs, tool.name(), command)
    };
    progress("etcd and the API server");
    run(&mut children, Tool::Etcd, etcd(settings))?;
    run(&mut children, Tool::Apiserver, apiserver(settings, pki)?)?;
    let kubectl = bins.path(Tool::Kubectl);
    let admin = settings.admin_kubeconfig();
    children.wait_until("the API server to be ready", READY_DEADLINE, || answers(kubectl, &admin, &["get", "--raw=/readyz"]))?;
    progress("controller manager and scheduler");
    run(&mut children, Tool::ControllerManager, controller_manager(settings, pki))?;
    run(&mut children, Tool::Scheduler, scheduler(settings))?;
    children.wait_until("the default service account", READY_DEADLINE, || {
        answers(kubectl, &admin, &["get", "serviceaccount", "default", "--namespace=default"])
    })?;
    Ok(children)
}

/// Whether a kubectl command succeeds.
pub(crate) fn answers(kubectl: &Path, kubeconfig: &Path, arguments: &[&str]) -> bool {
    Command::new(kubectl)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .arg("--request-timeout=5s")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success())
}

fn etcd(settings: &Settings<'_>) -> Vec<String> {
    let client = format!("http://127.0.0.1:{}", settings.addresses.ports.etcd);
    let peer = format!("http://127.0.0.1:{}", settings.addresses.ports.etcd_peer);
    vec![
        format!("--data-dir={}", settings.dir.join("etcd").display()),
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
    ]
}

fn apiserver(settings: &Settings<'_>, pki: &Pki) -> Result<Vec<String>> {
    let ports = settings.addresses.ports;
    let (serving, accounts) = (pki.apiserver(), pki.service_accounts());
    let ca = pki.ca();
    let ca = ca.display();
    let mut arguments = vec![
        format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd),
        format!("--secure-port={}", ports.apiserver),
        format!("--client-ca-file={ca}"),
        format!("--tls-cert-file={}", serving.certificate.display()),
        format!("--tls-private-key-file={}", serving.key.display()),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", accounts.certificate.display()),
        format!("--service-account-signing-key-file={}", accounts.key.display()),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
    ];
    if let Some(ip) = settings.addresses.node_ip {
        let kubelet = pki.apiserver_to_kubelet();
        arguments.extend([
            "--bind-address=0.0.0.0".into(),
            format!("--advertise-address={ip}"),
            format!("--kubelet-client-certificate={}", kubelet.certificate.display()),
            format!("--kubelet-client-key={}", kubelet.key.display()),
            format!("--kubelet-certificate-authority={ca}"),
            "--kubelet-preferred-address-types=InternalIP".into(),
        ]);
    } else {
        // No pod uses the Service `kubernetes`, and loopback may not be one of its endpoints.
        arguments.extend([
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            "--endpoint-reconciler-type=none".into(),
        ]);
    }
    if let Some(log) = settings.audit_log {
        arguments.extend(audit(settings.dir, log)?);
    }
    Ok(arguments)
}

/// One line for each answered request.
fn audit(dir: &Path, log: &Path) -> Result<[String; 3]> {
    let policy = dir.join("audit-policy.json");
    let rules = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{ "level": "Metadata" }],
    });
    fs::write(&policy, serde_json::to_vec_pretty(&rules)?)?;
    Ok([
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", log.display()),
        // Tests count the lines: never rotate the file.
        "--audit-log-maxsize=100000".into(),
    ])
}

fn controller_manager(settings: &Settings<'_>, pki: &Pki) -> Vec<String> {
    let ca = pki.ca();
    let mut arguments = vec![
        format!("--kubeconfig={}", settings.kubeconfig("controller-manager").display()),
        "--use-service-account-credentials=true".into(),
        format!("--root-ca-file={}", ca.display()),
        format!("--service-account-private-key-file={}", pki.service_accounts().key.display()),
        format!("--cluster-signing-cert-file={}", ca.display()),
        format!("--cluster-signing-key-file={}", pki.ca_key().display()),
        "--leader-elect=false".into(),
        "--secure-port=0".into(),
    ];
    if settings.addresses.node_ip.is_some() {
        arguments.extend([
            "--allocate-node-cidrs=true".into(),
            format!("--cluster-cidr={}", node::POD_RANGE),
            format!("--node-cidr-mask-size={}", node::POD_PREFIX),
        ]);
    }
    arguments.extend_from_slice(settings.controller_manager);
    arguments
}

fn scheduler(settings: &Settings<'_>) -> Vec<String> {
    vec![format!("--kubeconfig={}", settings.kubeconfig("scheduler").display()), "--leader-elect=false".into(), "--secure-port=0".into()]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_different_and_free() {
        let candidates = [1, 1, 2, 3, 2, 4, 5];
        assert_eq!(pick(candidates.into_iter(), |port| port != 3), Some([1, 2, 4]));
        assert_eq!(pick::<5>(candidates.into_iter(), |port| port != 3), None);
    }

    #[test]
    fn free_ports_can_be_used() {
        let ports = Ports::free().unwrap();
        TcpListener::bind((Ipv4Addr::LOCALHOST, ports.etcd)).unwrap();
    }
}
