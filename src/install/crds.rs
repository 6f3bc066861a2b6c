//! `computer-operator crds` prints the definitions. `crds apply` installs and upgrades them with server-side apply, waits until each is served, and
//! only then applies the default class.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use tokio::time::{Instant, sleep};

use crate::resources::{ComputerClass, MANAGER, crds};
use crate::runtime::client::{self, call};

/// Time limit for a definition to be served.
const SERVED: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(500);

/// Arguments of `crds`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Install or upgrade the definitions in the cluster, and wait until they are served.
    Apply {
        /// File with a ComputerClass to apply afterwards
        #[arg(long)]
        class: Option<PathBuf>,
    },
}

/// Runs `crds`.
///
/// # Errors
/// When a definition or the class is rejected, or a definition is not served in time.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Some(Command::Apply { class }) = args.command else {
        crds::files()?.into_iter().for_each(|(_, yaml)| println!("---\n{yaml}"));
        return Ok(());
    };
    let class = class.map(|path| read(&path)).transpose()?;
    let client = client::connect().await.context("cannot connect to the Kubernetes API: set KUBECONFIG or run inside a cluster")?;
    for crd in crds::all() {
        apply(&client, &crd).await?;
    }
    for (kind, plural) in super::kinds() {
        served(&client, &kind, &plural).await?;
    }
    if let Some(class) = class {
        let (name, params) = (class.name_any(), PatchParams::apply("computer-operator-chart").force());
        let api: Api<ComputerClass> = Api::all(client);
        call(api.patch(&name, &params, &Patch::Apply(&class))).await.with_context(|| format!("cannot apply ComputerClass {name}"))?;
        println!("computerclass/{name} applied");
    }
    Ok(())
}

fn read(path: &std::path::Path) -> anyhow::Result<ComputerClass> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_yaml_ng::from_str(&text).with_context(|| format!("{} is not a valid ComputerClass", path.display()))
}

async fn apply(client: &Client, crd: &CustomResourceDefinition) -> anyhow::Result<()> {
    let (name, params) = (crd.name_any(), PatchParams::apply(MANAGER).force());
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    call(api.patch(&name, &params, &Patch::Apply(crd))).await.with_context(|| format!("cannot apply CustomResourceDefinition {name}"))?;
    println!("customresourcedefinition/{name} applied");
    Ok(())
}

/// Waits until a kind is served. The condition `Established` is not enough: only a successful list proves it.
async fn served(client: &Client, kind: &str, plural: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + SERVED;
    loop {
        match super::list(client, kind, plural, 1).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("{plural} are not served after {} s", SERVED.as_secs()));
            }
            Err(_) => sleep(POLL).await,
        }
    }
}
