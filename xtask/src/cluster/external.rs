//! An existing cluster, named by a kubeconfig and a context. It must never be started, stopped or configured.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::pki::write_private;

/// Writes credentials for `context` of `kubeconfig` (its current one by default) to `path`, after asking the cluster
/// for its version, which is returned.
pub(super) async fn copy(kubeconfig: &Path, context: Option<&str>, path: &Path) -> Result<String> {
    let mut config = Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    if let Some(context) = context {
        ensure!(config.contexts.iter().any(|known| known.name == context), "{} has no context {context:?}", kubeconfig.display());
        config.current_context = Some(context.to_owned());
    }
    // Reading it has made its paths absolute.
    write_private(path, &serde_json::to_string_pretty(&config)?)?;
    let options = KubeConfigOptions::default();
    let client = kube::Config::from_custom_kubeconfig(config, &options).await?;
    let version = kube::Client::try_from(client)?.apiserver_version().await.context("the cluster does not answer")?;
    Ok(version.git_version)
}
