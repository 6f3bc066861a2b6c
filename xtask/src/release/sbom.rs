//! The software bill of materials of a program: `CycloneDX` 1.5 in JSON, with exactly what is linked.
//!
//! It writes the document itself: `cargo-cyclonedx` resolves the features of the whole workspace at once and so lists packages that a program
//! does not contain, and the crate `cyclonedx-bom` needs a license that `deny.toml` does not list.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::linked::{Id, Linked, Package};
use super::source::Source;
use crate::image::oci::sha256;

/// The document for a program with this content.
///
/// # Errors
/// When the time of the commit is out of range.
pub fn document(linked: &Linked, binary: &[u8], target: &str, source: &Source) -> Result<Value> {
    let digest = sha256(binary);
    let mut root = component(&linked.root, &linked.packages[&linked.root], "application");
    root["hashes"] = json!([{ "alg": "SHA-256", "content": digest }]);
    let others = linked.packages.iter().filter(|(id, _)| **id != linked.root);
    let components: Vec<Value> = others.map(|(id, package)| component(id, package, "library")).collect();
    let dependencies: Vec<Value> = linked
        .packages
        .iter()
        .map(|(id, package)| json!({ "ref": reference(id), "dependsOn": package.dependencies.iter().map(reference).collect::<Vec<_>>() }))
        .collect();
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": serial(&[&source.commit, &linked.root.0, &digest]),
        "version": 1,
        "metadata": {
            "timestamp": source.time()?,
            "lifecycles": [{ "phase": "build" }],
            "tools": { "components": [{ "type": "application", "name": "cargo xtask release", "version": source.version }] },
            "component": root,
            "properties": [{ "name": "cargo:target", "value": target }, { "name": "vcs:commit", "value": source.commit }],
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

fn component(id: &Id, package: &Package, kind: &str) -> Value {
    let (name, version) = id;
    let mut component = json!({ "type": kind, "bom-ref": reference(id), "name": name, "version": version, "scope": "required" });
    // The members of the workspace are not in the registry, so no package URL names them.
    if !package.local {
        component["purl"] = json!(format!("pkg:cargo/{name}@{version}"));
        component["hashes"] = json!([{ "alg": "SHA-256", "content": package.checksum }]);
    }
    if !package.license.is_empty() {
        component["licenses"] = json!([{ "expression": package.license }]);
    }
    if !package.repository.is_empty() {
        component["externalReferences"] = json!([{ "type": "vcs", "url": package.repository }]);
    }
    component
}

fn reference((name, version): &Id) -> String {
    format!("cargo:{name}@{version}")
}

/// A UUID of version 8 (RFC 9562) from these texts: the same release has the same serial number.
fn serial(parts: &[&str]) -> String {
    let digest = sha256(parts.join("\n").as_bytes());
    let variant = match &digest[16..17] {
        digit @ ("8" | "9" | "a" | "b") => digit,
        _ => "8",
    };
    format!("urn:uuid:{}-{}-8{}-{variant}{}-{}", &digest[..8], &digest[8..12], &digest[13..16], &digest[17..20], &digest[20..32])
}

/// Checks a document, and that it belongs to a program. Returns what it lists, without the program itself.
///
/// # Errors
/// Says what is wrong.
pub fn verify(text: &[u8], binary: &[u8]) -> Result<BTreeSet<Id>> {
    let document: Value = serde_json::from_slice(text).context("the SBOM is not JSON")?;
    ensure!(document["bomFormat"] == "CycloneDX" && document["specVersion"] == "1.5", "not CycloneDX 1.5");
    let serial = document["serialNumber"].as_str().unwrap_or_default();
    ensure!(serial.strip_prefix("urn:uuid:").is_some_and(|uuid| uuid.len() == 36), "the serial number is {serial}");
    let root = &document["metadata"]["component"];
    ensure!(root["hashes"][0]["content"] == sha256(binary), "the SBOM describes another program");
    let components = document["components"].as_array().context("the SBOM has no components")?;
    let text = |value: &Value, key: &str| value[key].as_str().map(str::to_owned).with_context(|| format!("a component has no {key}"));
    let (mut ids, mut references) = (BTreeSet::new(), BTreeSet::from([text(root, "bom-ref")?]));
    for component in components {
        ensure!(component["licenses"].is_array(), "{} has no license", component["name"]);
        ensure!(references.insert(text(component, "bom-ref")?), "{} is listed twice", component["bom-ref"]);
        ids.insert((text(component, "name")?, text(component, "version")?));
    }
    for edge in document["dependencies"].as_array().context("the SBOM has no dependencies")? {
        let on = edge["dependsOn"].as_array().into_iter().flatten();
        for reference in on.chain([&edge["ref"]]).map(|value| value.as_str().unwrap_or_default()) {
            ensure!(references.contains(reference), "no component is {reference:?}");
        }
    }
    Ok(ids)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::super::linked;
    use super::*;
    use crate::image::host_target;

    fn real(package: &str) -> Linked {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        linked::resolve(workspace, package, &host_target().unwrap()).unwrap()
    }

    fn bytes(document: &Value) -> Vec<u8> {
        serde_json::to_vec(document).unwrap()
    }

    #[test]
    fn the_document_lists_what_is_linked_and_nothing_that_only_builds_or_tests() {
        let source = super::super::tests::source();
        for (package, has, has_not) in [
            ("computer-operator", ["serde", "kube-client", "object_store"], "indicatif"),
            ("kubectl-computer", ["serde", "kube-client", "indicatif"], "object_store"),
        ] {
            let linked = real(package);
            let document = document(&linked, b"program", "x86_64-unknown-linux-gnu", &source).unwrap();
            let ids = verify(&bytes(&document), b"program").unwrap();
            let names: BTreeSet<&str> = ids.iter().map(|(name, _)| name.as_str()).collect();
            assert!(has.iter().all(|name| names.contains(name)), "{package}: {names:?}");
            // A development dependency, a procedural macro, a build dependency, a test tool of the workspace, and the other program's.
            for other in ["proptest", "serde_derive", "cc", "xtask", has_not] {
                assert!(!names.contains(other), "{package} lists {other}");
            }
            assert_eq!(document["metadata"]["component"]["name"], package);
            assert_eq!(document["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
        }
    }

    #[test]
    fn two_documents_of_one_program_are_equal_and_another_program_is_refused() {
        let (source, linked) = (super::super::tests::source(), real("kubectl-computer"));
        let make = |binary: &[u8]| bytes(&document(&linked, binary, "t", &source).unwrap());
        assert_eq!(make(b"program"), make(b"program"));
        let error = verify(&make(b"program"), b"Program").unwrap_err().to_string();
        assert_eq!(error, "the SBOM describes another program");
        let mut changed: Value = serde_json::from_slice(&make(b"program")).unwrap();
        changed["components"].as_array_mut().unwrap().remove(0);
        assert!(verify(&bytes(&changed), b"program").unwrap_err().to_string().starts_with("no component is"));
        assert!(verify(b"{}", b"program").is_err() && verify(b"x", b"program").is_err());
    }

    #[test]
    fn a_serial_number_is_a_uuid_of_version_8() {
        let number = serial(&["a", "b"]);
        let groups: Vec<&str> = number.strip_prefix("urn:uuid:").unwrap().split('-').collect();
        assert_eq!(groups.iter().map(|group| group.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert!(groups[2].starts_with('8') && groups[3].starts_with(['8', '9', 'a', 'b']), "{number}");
        assert_ne!(number, serial(&["a", "c"]));
    }
}
