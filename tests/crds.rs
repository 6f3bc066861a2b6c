//! The committed CRDs match the types, and every field has a description for `kubectl explain`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use computer_operator::resources::crds;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;

#[test]
fn the_committed_files_are_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    let files = crds::files().expect("yaml");
    for (name, yaml) in &files {
        let committed = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert_eq!(&committed, yaml, "crds/{name} is out of date: run `cargo xtask generate`");
        assert!(yaml.len() < 64 * 1024, "crds/{name} has become too large");
    }
    assert_eq!(std::fs::read_dir(folder).expect("crds/").count(), files.len(), "crds/ contains a file that is not generated");
}

/// `kubectl explain KIND` begins with the description.
#[test]
fn every_kind_has_a_description() {
    for (name, yaml) in crds::files().expect("yaml") {
        assert!(!yaml.contains("Auto-generated"), "{name}");
    }
    for crd in crds::all() {
        let text = crd.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()?.description.clone());
        assert!(text.is_some_and(|t| t.len() > 20), "{}", crd.spec.names.kind);
    }
}

/// `kubectl delete all --all` must not delete computers: their deletion is final, and they cannot be recreated.
#[test]
fn no_kind_is_in_the_category_all() {
    for crd in crds::all() {
        let categories = crd.spec.names.categories.unwrap_or_default();
        assert!(!categories.contains(&"all".to_owned()), "{}", crd.spec.names.kind);
    }
}

#[test]
fn every_field_has_a_description_and_a_bound() {
    for crd in crds::all() {
        let schema = crd.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()).expect("a schema");
        for (part, bounded) in [("spec", !crd.spec.names.kind.ends_with("Record")), ("status", false)] {
            if let Some(found) = schema.properties.as_ref().and_then(|p| p.get(part)) {
                check(&format!("{}.{part}", crd.spec.names.kind), found, bounded);
            }
        }
    }
}

/// Every list and string that users write is bounded. Only the operator writes records.
fn check(path: &str, schema: &JSONSchemaProps, bounded: bool) {
    for (name, field) in schema.properties.iter().flatten() {
        let path = format!("{path}.{name}");
        // Kubernetes' own types have their own descriptions.
        let own = !path.contains("tolerations") && !path.contains("conditions");
        assert!(!own || field.description.as_deref().is_some_and(|d| d.len() > 3), "{path} has no description");
        let free =
            field.enum_.is_some() || field.format.is_some() || field.x_kubernetes_int_or_string == Some(true) || field.max_length.is_some();
        if bounded && field.type_.as_deref() == Some("string") {
            assert!(free, "{path} is an unbounded string");
        }
        if bounded && field.type_.as_deref() == Some("array") {
            assert!(field.max_items.is_some(), "{path} is an unbounded list");
        }
        check(&path, field, bounded);
    }
}
