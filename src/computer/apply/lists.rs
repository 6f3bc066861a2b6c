//! The three reads that need a list. They must read it in pages: the cluster may be large, but the operator's memory is limited.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::Api;
use serde::de::DeserializeOwned;

use super::{Applier, Error};
use crate::runtime::client::list;

/// Objects in one page of a list.
const PAGE: u32 = 250;

impl Applier {
    pub(super) async fn claim_users(&self, namespace: &str, claim: &str, what: &str) -> Result<Vec<String>, Error> {
        let mounts = |pod: &Pod| {
            let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
            volumes.filter_map(|v| v.persistent_volume_claim.as_ref()).any(|c| c.claim_name == claim)
        };
        names(&self.namespaced::<Pod>(namespace), what, |pod| mounts(&pod).then_some(pod.metadata.name?)).await
    }

    pub(super) async fn volumes_of_claim(&self, uid: &str, what: &str) -> Result<Vec<String>, Error> {
        let ours = |v: &PersistentVolume| crate::resources::persistent_volume::claim_ref_uid(v) == Some(uid);
        names(&Api::all(self.client.clone()), what, |v| ours(&v).then_some(v.metadata.name?)).await
    }

    pub(super) async fn attachments(&self, volume: &str, what: &str) -> Result<Vec<String>, Error> {
        let of_volume = |a: &VolumeAttachment| a.spec.source.persistent_volume_name.as_deref() == Some(volume);
        names(&Api::all(self.client.clone()), what, |a| of_volume(&a).then(|| described(&a))).await
    }
}

/// Characters of a driver's error that a condition shows.
const ERROR_LENGTH: usize = 300;

/// A VolumeAttachment as a message names it: its node, its name, and why the driver could not detach the volume.
fn described(attachment: &VolumeAttachment) -> String {
    let error = attachment.status.as_ref().and_then(|s| s.detach_error.as_ref()).and_then(|error| error.message.as_deref());
    let why: String = error.map_or_else(String::new, |error| format!(": {error}")).chars().take(ERROR_LENGTH).collect();
    format!("node {} (VolumeAttachment {}{why})", attachment.spec.node_name, attachment.metadata.name.as_deref().unwrap_or_default())
}

/// The names that `pick` returns for the objects of a list, page by page.
async fn names<K: Clone + DeserializeOwned + Debug>(
    api: &Api<K>,
    what: &str,
    pick: impl Fn(K) -> Option<String>,
) -> Result<Vec<String>, Error> {
    list(api, PAGE, pick).await.map_err(|source| Error::call(what, source))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn text(status: &Value) -> String {
        let attachment = json!({"metadata": {"name": "csi-1"}, "status": status,
            "spec": {"attacher": "d", "nodeName": "n1", "source": {"persistentVolumeName": "pv"}}});
        serde_json::from_value(attachment).map_or_else(|error| error.to_string(), |attachment| described(&attachment))
    }

    #[test]
    fn an_attachment_is_described_by_its_node_its_name_and_the_error_of_its_driver() {
        assert_eq!(text(&json!({"attached": true})), "node n1 (VolumeAttachment csi-1)");
        let failed = json!({"attached": true, "detachError": {"message": "busy"}});
        assert_eq!(text(&failed), "node n1 (VolumeAttachment csi-1: busy)");
        let long = json!({"attached": true, "detachError": {"message": "x".repeat(9000)}});
        assert_eq!(text(&long).len(), "node n1 (VolumeAttachment csi-1)".len() + ERROR_LENGTH);
    }
}
