//! Keeps the volume of the local store at `Retain`, so that the archives survive even the deletion of the namespace. It must never stop the
//! operator: a failure is logged and reported as a metric.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::resources::persistent_volume::claim_ref_uid;
use crate::runtime::client::call;
use crate::runtime::patch;

/// How often the reclaim policy is checked: another tool can set it back.
const INTERVAL: Duration = Duration::from_secs(10 * 60);
/// How soon it is checked again after a failure.
const RETRY: Duration = Duration::from_secs(60);

/// Sets the volume of this claim to `Retain`, now and whenever it is not, until `stop` is cancelled. `report` learns whether it is.
pub async fn keep_retained(client: Client, namespace: String, claim: String, report: impl Fn(bool), stop: CancellationToken) {
    let forever = async {
        loop {
            let outcome = Box::pin(retain(&client, &namespace, &claim)).await;
            report(outcome.is_ok());
            match &outcome {
                Ok(true) => tracing::info!(claim, "set the reclaim policy of the store's volume to Retain"),
                Ok(false) => {}
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "cannot protect the store's volume: set the reclaim policy of the volume of pvc/{claim} -n {namespace} to Retain manually"
                ),
            }
            tokio::time::sleep(if outcome.is_ok() { INTERVAL } else { RETRY }).await;
        }
    };
    let _: Option<()> = stop.run_until_cancelled(forever).await;
}

/// Sets the volume of this claim to `Retain`. Returns whether that changed it.
///
/// # Errors
/// When the claim is not bound to the volume that it names, or the API server refuses or ignores the change.
async fn retain(client: &Client, namespace: &str, claim: &str) -> anyhow::Result<bool> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let found = call(claims.get(claim)).await.with_context(|| format!("reading PersistentVolumeClaim {namespace}/{claim}"))?;
    let name = found.spec.and_then(|s| s.volume_name).with_context(|| format!("PersistentVolumeClaim {namespace}/{claim} is not bound"))?;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let volume = call(volumes.get(&name)).await.with_context(|| format!("reading PersistentVolume {name}"))?;
    let uid = found.metadata.uid.as_deref().filter(|uid| claim_ref_uid(&volume) == Some(uid));
    let uid = uid.with_context(|| format!("PersistentVolume {name} is not bound to PersistentVolumeClaim {namespace}/{claim}"))?;
    if is_retained(&volume) {
        return Ok(false);
    }
    let patch = Patch::<()>::Json(retain_patch(&volume, uid));
    let changed = call(volumes.patch(&name, &PatchParams::default(), &patch))
        .await
        .with_context(|| format!("setting PersistentVolume {name} to Retain"))?;
    anyhow::ensure!(is_retained(&changed), "PersistentVolume {name} is not Retain after the change: a webhook may have undone it");
    Ok(true)
}

fn is_retained(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().is_some_and(|s| s.persistent_volume_reclaim_policy.as_deref() == Some("Retain"))
}

/// The patch, with the volume's UID and its bound claim as preconditions.
fn retain_patch(volume: &PersistentVolume, claim_uid: &str) -> json_patch::Patch {
    json_patch::Patch(vec![
        patch::same_uid(&volume.metadata),
        patch::test(["spec", "claimRef", "uid"], json!(claim_uid)),
        patch::add(["spec", "persistentVolumeReclaimPolicy"], json!("Retain")),
    ])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::http::{Method, Request, Response};
    use kube::client::Body;
    use serde_json::Value;

    use super::*;

    /// A cluster in which the store's claim has the UID `ours`, and its volume this policy and claim. `refuses`: it accepts no patch.
    fn cluster(policy: &'static str, bound_to: &'static str, refuses: bool) -> (Client, Arc<Mutex<Vec<Value>>>) {
        let patches: Arc<Mutex<Vec<Value>>> = Arc::default();
        let seen = Arc::clone(&patches);
        let service = tower::service_fn(move |request: Request<Body>| {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let seen = Arc::clone(&seen);
            async move {
                let mut policy = policy;
                if method == Method::PATCH && !refuses {
                    policy = "Retain";
                    let body = request.into_body().collect_bytes().await.unwrap();
                    seen.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                }
                let object = if path.contains("persistentvolumeclaims") {
                    json!({"metadata": {"uid": "ours"}, "spec": {"volumeName": "v"}})
                } else {
                    json!({"metadata": {"uid": "v"}, "spec": {"persistentVolumeReclaimPolicy": policy, "claimRef": {"uid": bound_to}}})
                };
                Ok::<_, std::convert::Infallible>(Response::new(Body::from(object.to_string().into_bytes())))
            }
        });
        (Client::new(service, "ns"), patches)
    }

    #[tokio::test]
    async fn only_the_volume_of_that_claim_is_changed_and_only_once() {
        let (client, patches) = cluster("Delete", "ours", false);
        assert!(retain(&client, "ns", "store").await.unwrap());
        let expected = json!([
            {"op": "test", "path": "/metadata/uid", "value": "v"},
            {"op": "test", "path": "/spec/claimRef/uid", "value": "ours"},
            {"op": "add", "path": "/spec/persistentVolumeReclaimPolicy", "value": "Retain"},
        ]);
        assert_eq!(*patches.lock().unwrap(), [expected]);
        let (client, patches) = cluster("Retain", "ours", false);
        assert!(!retain(&client, "ns", "store").await.unwrap());
        let (other, others) = cluster("Delete", "theirs", false);
        assert!(retain(&other, "ns", "store").await.unwrap_err().to_string().contains("is not bound to"));
        assert!(patches.lock().unwrap().is_empty() && others.lock().unwrap().is_empty());
    }

    /// A `GitOps` tool that sets the policy back was noticed only at the next start, and a failure only in the log.
    #[tokio::test(start_paused = true)]
    async fn the_policy_is_checked_again_and_a_failure_is_reported() {
        for (policy, refuses, expected) in [("Delete", false, true), ("Delete", true, false), ("Retain", true, true)] {
            let (client, _) = cluster(policy, "ours", refuses);
            let (reported, mut reports) = tokio::sync::mpsc::unbounded_channel();
            let stop = CancellationToken::new();
            let report = move |retained| reported.send(retained).unwrap_or_default();
            let task = tokio::spawn(keep_retained(client, "ns".to_owned(), "store".to_owned(), report, stop.clone()));
            for _ in 0..3 {
                assert_eq!(reports.recv().await, Some(expected), "{policy}, refused: {refuses}");
            }
            stop.cancel();
            task.await.unwrap();
        }
    }
}
