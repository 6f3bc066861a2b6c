//! The kinds that the simulated API server serves, and the behaviour of their storage that the operator can observe.

use std::sync::LazyLock;

use computer_operator::resources::crds;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use serde_json::{Value, json};

/// A kind, by the plural of its resource.
pub type Kind = &'static str;

/// The properties of a kind.
#[derive(Debug)]
pub struct Meta {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: Kind,
    pub kind: &'static str,
    pub namespaced: bool,
    /// Its status is written through a subresource.
    pub status: bool,
    /// A DELETE that removes it at once answers with the object instead of a Status.
    pub returns_object: bool,
}

const OURS: &str = "computer-operator.dev";

const fn core(plural: Kind, kind: &'static str, namespaced: bool, status: bool, returns_object: bool) -> Meta {
    Meta { group: "", version: "v1", plural, kind, namespaced, status, returns_object }
}

const fn ours(plural: Kind, kind: &'static str, namespaced: bool, status: bool) -> Meta {
    Meta { group: OURS, version: "v1alpha1", plural, kind, namespaced, status, returns_object: false }
}

const fn other(group: &'static str, plural: Kind, kind: &'static str, namespaced: bool) -> Meta {
    Meta { group, version: "v1", plural, kind, namespaced, status: false, returns_object: false }
}

static KINDS: [Meta; 20] = [
    core("namespaces", "Namespace", false, true, true),
    core("nodes", "Node", false, true, false),
    core("pods", "Pod", true, true, true),
    core("persistentvolumeclaims", "PersistentVolumeClaim", true, true, true),
    core("persistentvolumes", "PersistentVolume", false, true, true),
    core("secrets", "Secret", true, false, false),
    core("serviceaccounts", "ServiceAccount", true, false, false),
    other("events.k8s.io", "events", "Event", true),
    other("storage.k8s.io", "volumeattachments", "VolumeAttachment", false),
    other("coordination.k8s.io", "leases", "Lease", true),
    other("authentication.k8s.io", "tokenreviews", "TokenReview", false),
    ours("computers", "Computer", true, true),
    ours("computerclasses", "ComputerClass", false, true),
    ours("computerrecords", "ComputerRecord", true, false),
    ours("sessions", "Session", true, true),
    ours("deletionoverrides", "DeletionOverride", false, true),
    ours("apikeys", "ApiKey", true, true),
    ours("apikeyrecords", "ApiKeyRecord", true, false),
    ours("archiveholds", "ArchiveHold", false, false),
    ours("archiveerasures", "ArchiveErasure", false, true),
];

impl Meta {
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    pub fn is_ours(&self) -> bool {
        self.group == OURS
    }

    /// `Pod`, or `Computer.computer-operator.dev`, as other messages say it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// `pods`, or `computers.computer-operator.dev`, as messages say it.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// All kinds.
pub fn all() -> impl Iterator<Item = &'static Meta> {
    KINDS.iter()
}

/// A kind that must exist.
pub fn meta(kind: Kind) -> &'static Meta {
    KINDS.iter().find(|m| m.plural == kind).unwrap_or_else(|| panic!("no kind {kind}"))
}

/// The kind of a group and a plural.
pub fn find(group: &str, plural: &str) -> Option<&'static Meta> {
    KINDS.iter().find(|m| m.group == group && m.plural == plural)
}

static SCHEMAS: LazyLock<Vec<(String, JSONSchemaProps)>> = LazyLock::new(|| {
    let schema = |crd: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition| {
        let version = crd.spec.versions.into_iter().next()?;
        Some((crd.spec.names.plural, version.schema?.open_api_v3_schema?))
    };
    crds::all().into_iter().filter_map(schema).collect()
});

/// Fills in what the schema of a custom resource has defaults for, as the API server does.
pub fn fill_defaults(kind: Kind, object: &mut Value) {
    if let Some((_, schema)) = SCHEMAS.iter().find(|(plural, _)| plural == kind) {
        defaults(schema, object);
    }
}

fn defaults(schema: &JSONSchemaProps, value: &mut Value) {
    for (name, property) in schema.properties.iter().flatten() {
        let Some(map) = value.as_object_mut() else { return };
        // A null where none is allowed is dropped before the defaults are filled in.
        if map.get(name).is_some_and(Value::is_null) && property.nullable != Some(true) {
            map.remove(name);
        }
        if !map.contains_key(name)
            && let Some(default) = &property.default
        {
            map.insert(name.clone(), json!(default));
        }
        if let Some(inner) = map.get_mut(name) {
            defaults(property, inner);
        }
    }
}
