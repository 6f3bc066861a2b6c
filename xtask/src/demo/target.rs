//! What a kubeconfig says about a given cluster: its context, its address, and the tool that made it. Pure; it must never connect.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use kube::config::Kubeconfig;

use super::loading::Loader;

/// The provider that minikube writes beside its context.
const MINIKUBE: &str = "minikube.sigs.k8s.io";

/// A given cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    pub context: String,
    /// Address of the API server.
    pub server: String,
    /// Whether minikube wrote the context.
    pub minikube: bool,
    /// The folder of a cluster of `cargo xtask cluster up`.
    pub folder: Option<PathBuf>,
}

impl Target {
    /// The context of a kubeconfig, by default its current one.
    pub fn of(file: &Path, config: &Kubeconfig, context: Option<&str>) -> Result<Self> {
        let name = context.or(config.current_context.as_deref()).filter(|name| !name.is_empty());
        let name = name.with_context(|| format!("{} has no current context: add --context NAME", file.display()))?;
        let found = config.contexts.iter().find(|known| known.name == name);
        let found = found.with_context(|| format!("{} has no context {name:?}", file.display()))?;
        let details = found.context.as_ref().with_context(|| format!("context {name} of {} is empty", file.display()))?;
        let cluster = config.clusters.iter().find(|cluster| cluster.name == details.cluster).and_then(|named| named.cluster.as_ref());
        let server = cluster.and_then(|cluster| cluster.server.clone()).unwrap_or_default();
        ensure!(!server.is_empty(), "context {name} of {} names no API server", file.display());
        let extensions = details.extensions.iter().flatten().chain(cluster.iter().flat_map(|cluster| cluster.extensions.iter().flatten()));
        let minikube = extensions.map(|named| &named.extension["provider"]).any(|provider| provider == MINIKUBE);
        // What `cluster up` writes beside its kubeconfig.
        let folder = file.parent().filter(|folder| folder.join("cluster.json").is_file()).map(Path::to_owned);
        Ok(Self { context: name.to_owned(), server, minikube, folder })
    }

    /// The cluster that a tool calls by this context's name, if the context is the tool's.
    pub fn cluster_of(&self, loader: Loader) -> Option<String> {
        let prefixed = |prefix| self.context.strip_prefix(prefix).filter(|name| !name.is_empty()).map(str::to_owned);
        match loader {
            Loader::Kind => prefixed("kind-"),
            Loader::K3d => prefixed("k3d-"),
            Loader::Minikube => (self.minikube || self.context == "minikube").then(|| self.context.clone()),
        }
    }

    /// Whether the cluster looks like one on this machine: a local tool made it, and its API server has a local address. Nothing is installed into
    /// any other without a confirmation.
    pub fn looks_local(&self) -> bool {
        // The address of minikube's API server is in a private network of this machine.
        if self.minikube {
            return true;
        }
        let by_tool = self.folder.is_some() || [Loader::Kind, Loader::K3d].into_iter().any(|loader| self.cluster_of(loader).is_some());
        by_tool && is_this_machine(&self.server)
    }
}

fn is_this_machine(server: &str) -> bool {
    let authority = server.split_once("://").map_or(server, |(_, rest)| rest).split('/').next().unwrap_or_default();
    // Without the port, and without the brackets of an IPv6 address.
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host == "0.0.0.0" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(context: &str, server: &str, provider: Option<&str>) -> Kubeconfig {
        let extensions = provider.map(|provider| json!([{"name": "context_info", "extension": {"provider": provider}}]));
        let config = json!({
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "contexts": [{"name": context, "context": {"cluster": "c", "user": "u", "extensions": extensions}}],
            "users": [{"name": "u", "user": {}}],
            "current-context": context,
        });
        serde_json::from_value(config).unwrap()
    }

    fn target(context: &str, server: &str, provider: Option<&str>) -> Target {
        Target::of(Path::new("/k/config"), &config(context, server, provider), None).unwrap()
    }

    #[test]
    fn only_a_cluster_of_a_local_tool_with_a_local_address_looks_local() {
        for (context, server, provider) in [
            ("kind-dev", "https://127.0.0.1:40001", None),
            ("k3d-dev", "https://0.0.0.0:40001", None),
            ("k3d-dev", "https://[::1]:40001", None),
            ("work", "https://192.168.49.2:8443", Some(MINIKUBE)),
        ] {
            assert!(target(context, server, provider).looks_local(), "{context} {server}");
        }
        for (context, server) in [
            ("kind-prod", "https://203.0.113.7:6443"),
            ("kind-prod", "https://127.0.0.1.example.com:6443"),
            ("prod", "https://127.0.0.1:6443"),
            ("minikube", "https://203.0.113.7:6443"),
            ("gke_team_prod", "https://203.0.113.7"),
        ] {
            assert!(!target(context, server, None).looks_local(), "{context} {server}");
        }
    }

    #[test]
    fn a_cluster_of_this_repository_is_known_by_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cluster.json"), "{}").unwrap();
        let config = config("computer-operator", "https://127.0.0.1:40001", None);
        let target = Target::of(&folder.path().join("kubeconfig"), &config, None).unwrap();
        assert_eq!(target.folder.as_deref(), Some(folder.path()));
        assert!(target.looks_local());
    }

    #[test]
    fn a_context_that_is_missing_is_an_error_that_names_it() {
        let config = config("kind-dev", "https://127.0.0.1:1", None);
        let error = |context| Target::of(Path::new("/k/config"), &config, Some(context)).unwrap_err().to_string();
        assert_eq!(error("other"), "/k/config has no context \"other\"");
        let none = Target::of(Path::new("/k/config"), &Kubeconfig::default(), None).unwrap_err().to_string();
        assert!(none.contains("no current context"), "{none}");
    }
}
