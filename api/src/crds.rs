//! Generates the CustomResourceDefinitions that are committed in `crds/`. They come from the types only; never edit the files by hand.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use super::{ApiKey, ApiKeyRecord, ArchiveErasure, ArchiveHold, Computer, ComputerClass, ComputerRecord, DeletionOverride, Session};

/// Every CRD, in the order in which they are installed.
pub fn all() -> Vec<CustomResourceDefinition> {
    let all = [
        ComputerClass::crd(),
        ComputerRecord::crd(),
        Computer::crd(),
        Session::crd(),
        ApiKeyRecord::crd(),
        ApiKey::crd(),
        DeletionOverride::crd(),
        ArchiveHold::crd(),
        ArchiveErasure::crd(),
    ];
    all.map(explained).into()
}

/// The description of a spec becomes that of its kind: `kubectl explain KIND` shows it first.
fn explained(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let schemas = crd.spec.versions.iter_mut().filter_map(|v| v.schema.as_mut()?.open_api_v3_schema.as_mut());
    for schema in schemas {
        let text = schema.properties.as_ref().and_then(|p| p.get("spec")?.description.clone());
        schema.description = text.or(schema.description.take());
    }
    crd
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
            let header = "# Generated from api/src by `cargo xtask generate`. Do not edit.\n";
            Ok((format!("{}.yaml", crd.spec.names.plural), format!("{header}{yaml}")))
        })
        .collect()
}
