//! `computer-operator install-check`, run by `helm test`: checks that every kind is served and that every replica is ready.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, ListParams};
use tokio::time::{Instant, sleep};

use crate::runtime::client::{self, call};

/// Arguments of `install-check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Namespace of the operator
    #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "computer-operator-system")]
    namespace: String,
    /// Name of the Service with the metrics ports of all replicas
    #[arg(long)]
    metrics_service: String,
    /// Number of replicas that must be ready
    #[arg(long)]
    replicas: usize,
}

/// Time limit of the whole check.
const LIMIT: Duration = Duration::from_secs(90);
const REQUEST: Duration = Duration::from_secs(5);

/// Runs `install-check`.
///
/// # Errors
/// Names the first kind that is not served or the first replica that is not ready.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let client = client::connect().await.context("cannot connect to the Kubernetes API: set KUBECONFIG or run inside a cluster")?;
    for (kind, plural) in super::kinds() {
        super::list(&client, &kind, &plural, 1)
            .await
            .with_context(|| format!("cannot list {plural}: if the kind is not installed, run `computer-operator crds apply`"))?;
        println!("{plural} are served");
    }
    let deadline = Instant::now() + LIMIT;
    loop {
        match replicas(&client, &args).await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => sleep(Duration::from_secs(1)).await,
        }
    }
}

async fn replicas(client: &Client, args: &Args) -> anyhow::Result<()> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &args.namespace);
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={}", args.metrics_service));
    let slices = call(slices.list(&of_service)).await.context("listing EndpointSlices")?;
    let addresses = addresses(&slices.items);
    ensure!(
        addresses.len() >= args.replicas,
        "only {} of {} replicas have an address: check the pods with kubectl get pods -n {}",
        addresses.len(),
        args.replicas,
        args.namespace
    );
    let http = reqwest::Client::builder().timeout(REQUEST).no_proxy().build()?;
    for address in addresses {
        let url = url(&address, 8080);
        let answer = http.get(&url).send().await.with_context(|| format!("{url} does not respond"))?;
        if !answer.status().is_success() {
            bail!("{url} is not ready ({}): check the log of that pod (kubectl get pods -o wide -n {})", answer.status(), args.namespace);
        }
        println!("{url}: ready");
    }
    Ok(())
}

/// Addresses of the pods that are not terminating.
fn addresses(slices: &[EndpointSlice]) -> Vec<String> {
    let active = slices.iter().flat_map(|s| &s.endpoints).filter(|e| e.conditions.as_ref().and_then(|c| c.terminating) != Some(true));
    let mut all: Vec<String> = active.filter_map(|e| e.addresses.first().cloned()).collect();
    all.sort();
    all.dedup();
    all
}

fn url(address: &str, port: u16) -> String {
    match address.parse() {
        Ok(IpAddr::V6(v6)) => format!("http://[{v6}]:{port}/readyz"),
        _ => format!("http://{address}:{port}/readyz"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_pod_is_checked_once_unless_it_is_terminating() {
        let slice = |address: &str, terminating: bool| -> EndpointSlice {
            serde_json::from_value(
                json!({"addressType": "IPv4", "endpoints": [{"addresses": [address], "conditions": {"terminating": terminating}}]}),
            )
            .unwrap()
        };
        let all = [slice("192.0.2.2", false), slice("192.0.2.1", false), slice("192.0.2.2", false), slice("192.0.2.3", true)];
        assert_eq!(addresses(&all), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(url("2001:db8::1", 8080), "http://[2001:db8::1]:8080/readyz");
    }
}
