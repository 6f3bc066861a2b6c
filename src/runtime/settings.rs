//! The settings that plans need to build objects: a few values of [`super::config`], which holds the flags, and the certificate authority of the ingest
//! endpoint. It must not contain what only the process needs.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use serde::Deserialize;
use serde_json::json;

/// What an admin decides about archive pods: the chart's value `archive.pod`, and its pull policy.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ArchivePod {
    /// Requests and limits. The program needs at most 204 MiB (docs/memory.md).
    pub resources: ResourceRequirements,
    /// Name of the `PriorityClass`. Empty: the cluster's default.
    pub priority_class_name: String,
    /// Labels of the nodes that it may run on. It must run where the volume is. If the node of a home does not have these labels, its deletion is blocked.
    pub node_selector: BTreeMap<String, String>,
    /// When the kubelet pulls the image.
    pub image_pull_policy: String,
}

impl Default for ArchivePod {
    fn default() -> Self {
        let resources = json!({"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}});
        Self {
            resources: serde_json::from_value(resources).unwrap_or_default(),
            priority_class_name: String::new(),
            node_selector: BTreeMap::new(),
            image_pull_policy: "IfNotPresent".to_owned(),
        }
    }
}

/// Settings of the operator that plans need.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Namespace of the operator, which contains records, custody claims and archive pods.
    pub namespace: String,
    /// Image of the archive pod, which is the operator's own image.
    pub image: String,
    /// ServiceAccount of the archive pod.
    pub archive_service_account: String,
    /// What an admin decides about archive pods.
    pub archive_pod: ArchivePod,
    /// Most bytes of an archive whose class names no bound. Zero: any number.
    pub archive_max_bytes: u64,
    /// Address of the ingest endpoint.
    pub ingest_url: String,
    /// Certificate authority of the ingest endpoint in PEM.
    pub ingest_ca: String,
    /// URL of the HTTP API for machines; empty if there is none.
    pub api_url: String,
}
