//! `computer-operator install-check`, run by `helm test`: checks that every kind is served, that every replica is ready, and that each replica of
//! the operator can use the archive store.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, ListParams};
use reqwest::StatusCode;
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
        println!("{}", replica(&http, &url(&address, 8080), &args.namespace).await?);
    }
    Ok(())
}

/// A replica is ready, and passed the last check of everything that it depends on. Returns what to print.
async fn replica(http: &reqwest::Client, url: &str, namespace: &str) -> anyhow::Result<String> {
    let store = http.get(format!("{url}/store")).send().await.with_context(|| format!("{url} does not respond"))?;
    let status = store.status();
    let text = store.text().await.with_context(|| format!("{url} does not respond"))?;
    if status == StatusCode::SERVICE_UNAVAILABLE {
        bail!("{url}: {text}");
    }
    let answer = http.get(url).send().await.with_context(|| format!("{url} does not respond"))?;
    if !answer.status().is_success() {
        bail!("{url} is not ready ({}): check the log of that pod (kubectl get pods -o wide -n {namespace})", answer.status());
    }
    // Only replicas of the operator have a store.
    Ok(if status.is_success() { format!("{url}: ready; {text}") } else { format!("{url}: ready") })
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

    /// A replica that answers `/readyz` and `/readyz/store` like this.
    async fn answers(ready: u16, store: (u16, &'static str)) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap());
        let code = |code| axum::http::StatusCode::from_u16(code).unwrap();
        let router = axum::Router::new()
            .route("/readyz", axum::routing::get(move || async move { code(ready) }))
            .route("/readyz/store", axum::routing::get(move || async move { (code(store.0), store.1) }));
        let served = tokio::spawn(async move { axum::serve(listener, router).await });
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let result = replica(&http, &url, "ops").await;
        served.abort();
        result.unwrap_or_else(|error| format!("{error:#}")).replace(&url, "URL")
    }

    /// `helm test` passed with a wrong bucket, a wrong key and a missing right.
    #[tokio::test]
    async fn a_replica_whose_store_cannot_be_used_fails_the_check_with_the_reason() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        assert_eq!(
            answers(200, (200, "the archive store passed its check 3 s ago")).await,
            "URL: ready; the archive store passed its check 3 s ago"
        );
        assert_eq!(answers(200, (404, "")).await, "URL: ready", "a replica of the HTTP API");
        assert_eq!(answers(200, (503, "the archive store has no such bucket")).await, "URL: the archive store has no such bucket");
        assert_eq!(answers(503, (503, "the archive store is being checked")).await, "URL: the archive store is being checked");
        assert!(answers(503, (404, "")).await.contains("kubectl get pods -o wide -n ops"));
    }

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
