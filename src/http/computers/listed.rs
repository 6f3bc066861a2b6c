//! A Computer with only the fields that this API shows or compares. Tenants decide how large the others are (repositories, labels, annotations), so a list
//! must not deserialize them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use crate::http::page_limits::ListedMetadata;
use crate::resources::{Computer, ComputerSpec, ComputerStatus, Phase, Provider, Step};

/// The used fields of a Computer.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ListedComputer {
    metadata: ListedMetadata,
    spec: ListedSpec,
    status: Option<ListedStatus>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedSpec {
    #[serde(default)]
    provider: Provider,
    display_name: Option<String>,
    remote_user: Option<String>,
    host_id: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedStatus {
    phase: Option<Phase>,
    #[serde(default)]
    provisioning_steps: Vec<Step>,
}

impl From<ListedComputer> for Computer {
    fn from(listed: ListedComputer) -> Self {
        let ListedSpec { provider, display_name, remote_user, host_id } = listed.spec;
        let status = |ListedStatus { phase, provisioning_steps }| ComputerStatus { phase, provisioning_steps, ..ComputerStatus::default() };
        Self {
            metadata: ObjectMeta::from(listed.metadata),
            spec: ComputerSpec { provider, display_name, remote_user, host_id, ..ComputerSpec::default() },
            status: listed.status.map(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::computers::{tagged, wire};

    fn computer(name: &str) -> serde_json::Value {
        json!({
            "metadata": {"name": name, "namespace": "t", "uid": format!("uid of {name}"), "generation": 3, "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"a": "x".repeat(60_000)}, "annotations": {"a": "x".repeat(60_000)}, "finalizers": ["x".repeat(60_000)]},
            "spec": {"provider": "BYOM", "displayName": "shown", "remoteUser": "dev", "hostId": "h", "repositories": ["x".repeat(60_000)]},
            "status": {"phase": "Active", "provisioningSteps": [{"id": "i", "name": "n", "status": "Completed"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": "x".repeat(60_000), "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        })
    }

    #[test]
    fn a_listed_computer_is_small_and_is_shown_like_the_whole_one() {
        let whole: Computer = serde_json::from_value(computer("box")).unwrap();
        let listed = Computer::from(serde_json::from_value::<ListedComputer>(computer("box")).unwrap());
        assert_eq!(wire::wire(&listed, true), wire::wire(&whole, true));
        assert_eq!((tagged(&listed), wire::id(&listed)), (tagged(&whole), wire::id(&whole)));
        assert!(serde_json::to_string(&listed).unwrap().len() < 1000);
    }

    /// Found in a hostile review: each creation, rename and search by name kept the repositories of every computer of the namespace.
    #[tokio::test]
    async fn only_the_wanted_computers_are_kept() {
        let shared = crate::http::tests::shared_with(|_| {
            let items: Vec<_> = (0..50).map(|n| computer(&format!("c{n}"))).collect();
            (200, json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items[..2]}))
        });
        let found = shared.computers_that("t", |c| c.metadata.name.as_deref() == Some("c1")).await.unwrap();
        assert_eq!(found.iter().filter_map(|c| c.metadata.name.as_deref()).collect::<Vec<_>>(), ["c1"]);
        assert!(found.iter().all(|c| c.spec.repositories.is_empty() && c.metadata.labels.is_none()));
    }
}
