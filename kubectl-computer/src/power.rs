//! `suspend` and `resume`: change `spec.suspended` of exactly the computer that was read.

use anyhow::{Result, bail};
use computer_operator_api::Computer;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::args::Waiting;
use crate::cluster::{Answer, Cluster, explained, typed};
use crate::create::until_ready;
use crate::outcome::Outcome;
use crate::screen;
use crate::text::quoted;
use crate::wait::Wait;

/// The Computer of this name in the caller's namespace.
///
/// # Errors
/// When there is none, or the caller may not read it.
pub async fn read(cluster: &Cluster, name: &str) -> Result<Computer> {
    let namespace = &cluster.namespace;
    match cluster.get::<Computer>(Some(namespace), name).await? {
        Answer::Found(computer) => Ok(computer),
        Answer::Denied(right) => bail!("you have no right to {right}"),
        Answer::Absent => {
            bail!(
                "there is no Computer {name} in namespace {namespace}: `kubectl computer why {} -n {}` says whether it was deleted",
                quoted(name),
                quoted(namespace)
            )
        }
    }
}

/// Sets `spec.suspended`. A computer that was re-created under the name is not changed.
///
/// # Errors
/// When the API server refuses it.
pub async fn set(cluster: &Cluster, computer: &Computer, suspended: bool) -> Result<Computer> {
    if computer.metadata.deletion_timestamp.is_some() {
        bail!("Computer {} is being deleted: it can be neither suspended nor resumed", computer.name_any());
    }
    let patch = json!({"metadata": {"uid": computer.uid()}, "spec": {"suspended": suspended}});
    let api = cluster.api::<Computer>(computer.namespace().as_deref());
    typed(api.patch(&computer.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map_err(explained)?)
}

/// The command `suspend`.
///
/// # Errors
/// When the API server refuses it.
pub async fn suspend(cluster: &Cluster, name: &str) -> Result<()> {
    let computer = read(cluster, name).await?;
    set(cluster, &computer, true).await?;
    screen::out(&format!("computer/{name} is suspended: its machine is being stopped; its home and its key are kept"));
    Ok(())
}

/// The command `resume`.
///
/// # Errors
/// When the API server refuses it, or the wait fails.
pub async fn resume(cluster: &Cluster, name: &str, waiting: &Waiting) -> Result<Outcome> {
    let computer = read(cluster, name).await?;
    let resumed = set(cluster, &computer, false).await?;
    if waiting.wait {
        return until_ready(cluster, &resumed, Wait::new(waiting)).await;
    }
    screen::out(&format!("computer/{name} is resumed: its machine is being started"));
    Ok(Outcome::Done)
}
