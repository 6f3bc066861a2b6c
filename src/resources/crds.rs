//! The CustomResourceDefinitions as they are committed in `crds/`.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use super::{ApiKey, ApiKeyRecord, Computer, ComputerClass, ComputerRecord, DeletionOverride, Session};

/// Every CRD, in the order in which they are installed.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        ComputerClass::crd(),
        ComputerRecord::crd(),
        Computer::crd(),
        Session::crd(),
        ApiKeyRecord::crd(),
        ApiKey::crd(),
        DeletionOverride::crd(),
    ]
}

/// File name and YAML of every CRD.
///
/// # Errors
/// When a CRD cannot be written as YAML, which would be a bug in its type.
pub fn files() -> Result<Vec<(String, String)>, serde_yaml_ng::Error> {
    all()
        .into_iter()
        .map(|crd| {
            let yaml = serde_yaml_ng::to_string(&crd)?;
            let header = "# Generated from src/resources by `cargo xtask generate`. Do not edit.\n";
            Ok((format!("{}.yaml", crd.spec.names.plural), format!("{header}{yaml}")))
        })
        .collect()
}
