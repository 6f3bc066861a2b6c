//! The programs, where their source is, and how they are asked for their version. It must never name a version: the modules do.

use serde::{Deserialize, Serialize};

/// A program that can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tool {
    /// The API server's database.
    Etcd,
    /// The API server.
    Apiserver,
    /// The built-in controllers.
    ControllerManager,
    /// The scheduler.
    Scheduler,
    /// The command-line client.
    Kubectl,
    /// The node agent.
    Kubelet,
    /// Routes Services on a node.
    KubeProxy,
    /// Installs the chart.
    Helm,
    /// Simulates nodes.
    Kwok,
    /// Provisions volumes as folders of a node.
    LocalPath,
    /// An S3 server.
    VersityGw,
    /// Checks and evaluates the rules of Prometheus.
    Promtool,
    /// A backup program that archives are compared with.
    Kopia,
    /// Another one.
    Restic,
    /// Copies archives between stores.
    Rclone,
    /// A CSI driver whose volumes are attached to nodes.
    CsiDriver,
    /// Creates and deletes the volumes of a CSI driver.
    CsiProvisioner,
    /// Attaches them to nodes and detaches them.
    CsiAttacher,
    /// Expands and modifies them.
    CsiResizer,
}

/// The source of one program.
pub(super) struct Source {
    pub name: &'static str,
    /// Folder of its Go module, below this package.
    pub module: &'static str,
    pub package: &'static str,
}

impl Tool {
    pub(super) const fn source(self) -> Source {
        let (name, module, package) = match self {
            Self::Etcd => ("etcd", "kubernetes", "go.etcd.io/etcd/server/v3"),
            Self::Apiserver => ("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
            Self::ControllerManager => ("kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            Self::Scheduler => ("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
            Self::Kubectl => ("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
            Self::Kubelet => ("kubelet", "kubernetes", "k8s.io/kubernetes/cmd/kubelet"),
            Self::KubeProxy => ("kube-proxy", "kubernetes", "k8s.io/kubernetes/cmd/kube-proxy"),
            Self::Helm => ("helm", "kubernetes", "helm.sh/helm/v4/cmd/helm"),
            Self::Kwok => ("kwok", "kubernetes", "sigs.k8s.io/kwok/cmd/kwok"),
            Self::LocalPath => ("local-path-provisioner", "local-path", "github.com/rancher/local-path-provisioner"),
            Self::VersityGw => ("versitygw", "s3", "github.com/versity/versitygw/cmd/versitygw"),
            Self::Promtool => ("promtool", "prometheus", "github.com/prometheus/prometheus/cmd/promtool"),
            Self::Kopia => ("kopia", "kopia", "github.com/kopia/kopia"),
            Self::Restic => ("restic", "restic", "github.com/restic/restic/cmd/restic"),
            // The module's own program, with a part of rclone.
            Self::Rclone => ("rclone", "rclone", "computer-operator.dev/xtask/rclone"),
            // The same.
            Self::CsiDriver => ("csi-driver", "csi", "computer-operator.dev/xtask/csi"),
            Self::CsiProvisioner => ("csi-provisioner", "csi", "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"),
            Self::CsiAttacher => ("csi-attacher", "csi", "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher"),
            Self::CsiResizer => ("csi-resizer", "csi", "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"),
        };
        Source { name, module, package }
    }

    /// Build tags. Without service discovery, `promtool` needs no cloud's library, and without its pages, kopia is smaller.
    pub(super) const fn tags(self) -> &'static str {
        match self {
            Self::Promtool => "remove_all_sd",
            Self::Kopia => "nohtmlui",
            _ => "",
        }
    }

    /// The arguments with which a program of this machine reports its version. None: it is always built, because the bytes that it writes are
    /// compared, or because it does not report the version of its module.
    pub(super) const fn question(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Etcd | Self::Apiserver | Self::ControllerManager | Self::Scheduler | Self::Kubelet | Self::KubeProxy | Self::Kwok => {
                Some(&["--version"])
            }
            Self::Kubectl => Some(&["version", "--client"]),
            Self::Helm => Some(&["version", "--short"]),
            Self::LocalPath
            | Self::VersityGw
            | Self::Promtool
            | Self::Kopia
            | Self::Restic
            | Self::Rclone
            | Self::CsiDriver
            | Self::CsiProvisioner
            | Self::CsiAttacher
            | Self::CsiResizer => None,
        }
    }

    /// The name of its build in the recorded durations.
    pub(super) fn record(self) -> String {
        format!("build {}", self.name())
    }

    /// The program's usual name.
    pub const fn name(self) -> &'static str {
        self.source().name
    }
}
