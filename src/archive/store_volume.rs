//! Sets the volume of the local store to `Retain` at startup, so that the archives survive even the deletion of the namespace. It must
//! never stop the operator: a failed patch is only logged.

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::resources::persistent_volume::claim_ref_uid;
use crate::runtime::client::call;
use crate::runtime::patch;

/// Sets the volume of this claim to `Retain`. Returns whether that changed it.
///
/// # Errors
/// When the claim is not bound, or the API server refuses.
pub async fn retain(client: &Client, namespace: &str, claim: &str) -> anyhow::Result<bool> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let found = call(claims.get(claim)).await.with_context(|| format!("reading PersistentVolumeClaim {namespace}/{claim}"))?;
    let name = found.spec.and_then(|s| s.volume_name).with_context(|| format!("PersistentVolumeClaim {namespace}/{claim} is not bound"))?;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let volume = call(volumes.get(&name)).await.with_context(|| format!("reading PersistentVolume {name}"))?;
    let Some(patch) = retain_patch(&volume, found.metadata.uid.as_deref()) else { return Ok(false) };
    let params = PatchParams::default();
    call(volumes.patch(&name, &params, &Patch::<()>::Json(patch)))
        .await
        .with_context(|| format!("setting PersistentVolume {name} to Retain"))?;
    Ok(true)
}

/// The patch, with the volume's UID and its bound claim as preconditions. `None`: nothing to do, or the volume is bound to another claim.
fn retain_patch(volume: &PersistentVolume, claim_uid: Option<&str>) -> Option<json_patch::Patch> {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    if policy == Some("Retain") || claim_uid.is_none() || claim_ref_uid(volume) != claim_uid {
        return None;
    }
    Some(json_patch::Patch(vec![
        patch::same_uid(&volume.metadata),
        patch::test(["spec", "claimRef", "uid"], json!(claim_uid)),
        patch::add(["spec", "persistentVolumeReclaimPolicy"], json!("Retain")),
    ]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_volume_of_that_claim_and_only_once() {
        let volume = |policy: &str, claim: &str| -> PersistentVolume {
            serde_json::from_value(
                json!({"metadata": {"uid": "v"}, "spec": {"persistentVolumeReclaimPolicy": policy, "claimRef": {"uid": claim}}}),
            )
            .unwrap()
        };
        assert!(retain_patch(&volume("Delete", "ours"), Some("ours")).is_some());
        assert!(retain_patch(&volume("Retain", "ours"), Some("ours")).is_none());
        assert!(retain_patch(&volume("Delete", "theirs"), Some("ours")).is_none());
        assert!(retain_patch(&volume("Delete", "ours"), None).is_none());
    }
}
