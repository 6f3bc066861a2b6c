//! All RBAC rules in one list, from which `cargo xtask generate` generates the chart's roles, and with which the tests run. The code uses every permission.
//! There must be no wildcard, and no `get` or `list` of tenants' Secrets (DESIGN.md 4.8).

use serde_json::{Value, json};

use crate::resources::{GROUP, crds};

/// One rule: API group, resources, verbs.
type Rule = (&'static str, &'static [&'static str], &'static [&'static str]);

/// Permissions of the operator in the whole cluster.
const CLUSTER: &[Rule] = &[
    ("computer-operator.dev", &["computerclasses"], &["list", "watch"]),
    ("computer-operator.dev", &["deletionoverrides"], &["get", "list", "watch"]),
    ("computer-operator.dev", &["archiveerasures"], &["get", "list", "watch"]),
    // Read live before an archive is destroyed; the watch shows when to ask again.
    ("computer-operator.dev", &["archiveholds"], &["list", "watch"]),
    // `release` is a custom verb: the admission policy requires it for removing the deletion finalizer.
    ("computer-operator.dev", &["computers"], &["get", "list", "watch", "patch", "delete", "release"]),
    ("computer-operator.dev", &["apikeys"], &["get", "list", "watch", "patch"]),
    (
        "computer-operator.dev",
        &[
            "computers/status",
            "computerclasses/status",
            "deletionoverrides/status",
            "sessions/status",
            "apikeys/status",
            "archiveerasures/status",
        ],
        &["patch"],
    ),
    ("computer-operator.dev", &["sessions"], &["list"]),
    ("", &["pods", "persistentvolumeclaims"], &["get", "list", "watch", "create", "delete"]),
    ("", &["pods"], &["patch"]),
    // Created and deleted by name, never read: a dry-run DELETE shows whether a Secret exists.
    ("", &["secrets"], &["create", "delete"]),
    ("", &["persistentvolumes"], &["get", "list", "watch", "patch"]),
    ("", &["namespaces", "serviceaccounts"], &["get", "list", "watch"]),
    ("", &["nodes"], &["get"]),
    ("storage.k8s.io", &["volumeattachments"], &["list"]),
    ("events.k8s.io", &["events"], &["create", "patch"]),
    ("authentication.k8s.io", &["tokenreviews"], &["create"]),
];

/// Permissions of the operator in its own namespace.
const OWN: &[Rule] = &[
    ("computer-operator.dev", &["computerrecords", "apikeyrecords"], &["get", "list", "watch", "create", "update", "delete"]),
    ("coordination.k8s.io", &["leases"], &["get", "create", "update"]),
];

/// Permissions of the HTTP API in the whole cluster. It uses them only after a `SubjectAccessReview` of the caller.
const API_CLUSTER: &[Rule] = &[
    ("computer-operator.dev", &["computers"], &["get", "list", "watch", "create", "patch", "delete"]),
    ("computer-operator.dev", &["sessions"], &["get", "list", "create", "patch"]),
    ("computer-operator.dev", &["apikeys"], &["get"]),
    ("computer-operator.dev", &["apikeys/status", "sessions/status"], &["patch"]),
    ("", &["pods", "namespaces", "serviceaccounts"], &["get"]),
    ("metrics.k8s.io", &["pods"], &["get"]),
    ("authentication.k8s.io", &["tokenreviews"], &["create"]),
    ("authorization.k8s.io", &["subjectaccessreviews"], &["create"]),
];

/// Permissions of the HTTP API in the operator's namespace.
const API_OWN: &[Rule] = &[
    ("computer-operator.dev", &["computerrecords"], &["get", "list", "patch"]),
    ("computer-operator.dev", &["apikeyrecords"], &["get"]),
    // The address of the ingest endpoint, where archives are read.
    ("", &["services"], &["get"]),
];

/// Additional permissions of the hook that applies the CRDs: it also applies the default class.
const CRDS_HOOK: &[Rule] = &[("computer-operator.dev", &["computerclasses"], &["create", "patch"])];

/// Additional permissions of `helm test` in the operator's namespace: to find the pods that it checks.
const TEST: &[Rule] = &[("discovery.k8s.io", &["endpointslices"], &["list"])];

/// Permissions of viewers of a namespace. They cannot see the records.
const TENANT_VIEW: &[Rule] = &[("computer-operator.dev", &["computers", "sessions", "apikeys"], &["get", "list", "watch"])];

/// Permissions of editors of a namespace. A tenant may not write a status, release a finalizer or create an override.
const TENANT_EDIT: &[Rule] = &[("computer-operator.dev", &["computers", "sessions", "apikeys"], &["create", "update", "patch", "delete"])];

/// Additional permissions of admins of a namespace.
const TENANT_ADMIN: &[Rule] = &[
    ("computer-operator.dev", &["computers", "sessions", "apikeys"], &["deletecollection"]),
    // A virtual subresource: the HTTP API asks for it before it sends the archive of a deleted computer. Sessions may contain secrets, so viewers
    // and editors do not have it.
    ("computer-operator.dev", &["computers/archive"], &["get"]),
];

/// To list the classes.
const CLASSES: &[Rule] = &[("computer-operator.dev", &["computerclasses"], &["get", "list", "watch"])];

/// To use the classes: checked when a Computer names one (`admission/classes.yaml`). A role of an admin may list them by name.
const USE_CLASSES: &[Rule] = &[("computer-operator.dev", &["computerclasses"], &["use"])];

/// To override stuck deletions (S11). It is not aggregated to any role.
const OVERRIDE: &[Rule] = &[("computer-operator.dev", &["deletionoverrides"], &["get", "list", "watch", "create", "delete"])];

/// To hold archives: nothing that a hold names is destroyed. It is not aggregated to any role.
const HOLD: &[Rule] = &[("computer-operator.dev", &["archiveholds"], &["get", "list", "watch", "create", "delete"])];

/// To erase archives of deleted computers (S7). It is not aggregated to any role.
const ERASE: &[Rule] = &[("computer-operator.dev", &["archiveerasures"], &["get", "list", "watch", "create", "delete"])];

/// To read receipts; bind it in the operator's namespace.
const RECEIPTS: &[Rule] = &[("computer-operator.dev", &["computerrecords"], &["get", "list", "watch"])];

/// The Secret with the ingest certificate in the operator's namespace, which is the only Secret that the operator reads.
const INGEST_SECRET: &str = crate::archive::ingest::tls::SECRET;

/// The rules of all roles of the chart, by their names in the chart.
pub fn roles() -> Value {
    json!({
        "controller": {"cluster": rules(CLUSTER), "own": own_rules()},
        "api": {"cluster": rules(API_CLUSTER), "own": rules(API_OWN)},
        "hooks": {"crds": crds_rules(), "look": look_rules(), "test": rules(TEST)},
        "people": {
            "view": rules(TENANT_VIEW), "edit": rules(TENANT_EDIT), "admin": rules(TENANT_ADMIN),
            "classes": rules(CLASSES), "use-classes": rules(USE_CLASSES), "override": rules(OVERRIDE), "receipts": rules(RECEIPTS),
            "hold": rules(HOLD), "erase": rules(ERASE),
        },
    })
}

/// The chart's `files/rbac.yaml`.
///
/// # Errors
/// When it cannot be written as YAML, which would be a bug.
pub fn chart_file() -> Result<String, serde_yaml_ng::Error> {
    let yaml = serde_yaml_ng::to_string(&roles())?;
    Ok(format!("# Generated from src/install/rbac.rs by `cargo xtask generate`. Do not edit.\n{yaml}"))
}

fn rules(list: &[Rule]) -> Vec<Value> {
    list.iter().map(|(group, resources, verbs)| json!({"apiGroups": [group], "resources": resources, "verbs": verbs})).collect()
}

fn own_rules() -> Vec<Value> {
    let mut all = rules(OWN);
    all.push(json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": [INGEST_SECRET], "verbs": ["get"]}));
    all
}

/// Permissions of the uninstall guard, of `helm test`, and of the hook that waits until the kinds are served: to list every kind.
fn look_rules() -> Vec<Value> {
    let kinds: Vec<String> = crds::all().into_iter().map(|crd| crd.spec.names.plural).collect();
    vec![json!({"apiGroups": [GROUP], "resources": kinds, "verbs": ["list"]})]
}

/// Permissions on exactly the operator's definitions, by name. A server-side apply is also authorized as a `create` with the name.
fn crds_rules() -> Vec<Value> {
    let names: Vec<String> = crds::all().iter().map(|crd| format!("{}.{GROUP}", crd.spec.names.plural)).collect();
    let mut all = [rules(CRDS_HOOK), look_rules()].concat();
    all.push(json!({
        "apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"], "resourceNames": names, "verbs": ["get", "create", "patch"],
    }));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(rules: &Value, group: &str, resource: &str, verb: &str) -> bool {
        let has = |list: &Value, word: &str| list.as_array().unwrap().iter().any(|w| w == word);
        rules.as_array().unwrap().iter().any(|r| {
            r.get("resourceNames").is_none() && has(&r["apiGroups"], group) && has(&r["resources"], resource) && has(&r["verbs"], verb)
        })
    }

    #[test]
    fn no_rule_has_a_wildcard_or_reads_secrets() {
        let people = [TENANT_VIEW, TENANT_EDIT, TENANT_ADMIN, CLASSES, USE_CLASSES, OVERRIDE, RECEIPTS, HOLD, ERASE].concat();
        for (group, resources, verbs) in [CLUSTER, OWN, API_CLUSTER, API_OWN, CRDS_HOOK, TEST, &people].concat() {
            assert!(group != "*" && !resources.contains(&"*") && !verbs.contains(&"*"));
            if resources.contains(&"secrets") {
                assert!(!["get", "list", "watch", "update", "patch"].iter().any(|v| verbs.contains(v)));
            }
        }
    }

    #[test]
    fn the_operator_has_no_dangerous_permissions() {
        let cluster = &roles()["controller"]["cluster"];
        for (group, resource, verb) in [
            ("", "serviceaccounts", "create"),
            ("", "serviceaccounts/token", "create"),
            ("", "pods/exec", "create"),
            ("", "namespaces", "delete"),
            ("", "persistentvolumes", "delete"),
            ("", "persistentvolumes", "create"),
            ("computer-operator.dev", "deletionoverrides", "create"),
            ("computer-operator.dev", "archiveerasures", "create"),
            ("computer-operator.dev", "archiveholds", "create"),
            ("computer-operator.dev", "archiveholds", "delete"),
            ("computer-operator.dev", "archiveholds", "patch"),
            ("computer-operator.dev", "computers", "create"),
            ("computer-operator.dev", "computerrecords", "get"),
            ("computer-operator.dev", "apikeyrecords", "get"),
            ("computer-operator.dev", "apikeys", "create"),
            ("computer-operator.dev", "apikeys", "delete"),
            ("", "serviceaccounts", "impersonate"),
            ("rbac.authorization.k8s.io", "clusterroles", "escalate"),
        ] {
            assert!(!allowed(cluster, group, resource, verb), "{verb} {resource}");
        }
    }

    /// Lists every request that the code makes. A missing permission would otherwise be noticed only on a real cluster.
    #[test]
    fn every_request_of_the_code_is_allowed() {
        let (cluster, own) = (&roles()["controller"]["cluster"], &roles()["controller"]["own"]);
        let ours = "computer-operator.dev";
        for (group, resource, verbs) in [
            (ours, "computers", "get list watch patch delete release"),
            (ours, "computers/status", "patch"),
            (ours, "apikeys", "get list watch patch"),
            (ours, "apikeys/status", "patch"),
            (ours, "computerclasses", "list watch"),
            (ours, "computerclasses/status", "patch"),
            (ours, "deletionoverrides", "get list watch"),
            (ours, "deletionoverrides/status", "patch"),
            (ours, "archiveerasures", "get list watch"),
            (ours, "archiveerasures/status", "patch"),
            (ours, "archiveholds", "list watch"),
            (ours, "sessions", "list"),
            (ours, "sessions/status", "patch"),
            ("", "pods", "get list watch create patch delete"),
            ("", "persistentvolumeclaims", "get list watch create delete"),
            ("", "persistentvolumes", "get list watch patch"),
            ("", "secrets", "create delete"),
            ("", "namespaces", "get list watch"),
            ("", "serviceaccounts", "get list watch"),
            ("", "nodes", "get"),
            ("storage.k8s.io", "volumeattachments", "list"),
            ("events.k8s.io", "events", "create patch"),
            ("authentication.k8s.io", "tokenreviews", "create"),
        ] {
            verbs.split(' ').for_each(|verb| assert!(allowed(cluster, group, resource, verb), "{verb} {resource}"));
        }
        for (group, resource, verbs) in [
            (ours, "computerrecords", "get list watch create update delete"),
            (ours, "apikeyrecords", "get list watch create update delete"),
            ("coordination.k8s.io", "leases", "get create update"),
        ] {
            verbs.split(' ').for_each(|verb| assert!(allowed(own, group, resource, verb), "{verb} {resource}"));
        }
        let secret = own.as_array().unwrap().iter().find(|r| r["resources"] == json!(["secrets"])).unwrap();
        assert_eq!((&secret["resourceNames"], &secret["verbs"]), (&json!([crate::archive::ingest::tls::SECRET]), &json!(["get"])));
    }

    /// A tenant must not have permissions that could break a promise.
    #[test]
    fn no_tenant_may_release_override_or_write_a_status() {
        for role in ["view", "edit", "admin"] {
            let rules = &roles()["people"][role];
            assert_eq!(allowed(rules, GROUP, "computers/archive", "get"), role == "admin", "{role}");
            for (resource, verb) in [
                ("computers", "release"),
                ("computers/status", "patch"),
                ("computers/status", "update"),
                ("sessions/status", "patch"),
                ("apikeys/status", "patch"),
                ("computerrecords", "get"),
                ("computerrecords", "patch"),
                ("computerclasses", "patch"),
                ("computerclasses", "use"),
                ("deletionoverrides", "create"),
                ("archiveholds", "create"),
                ("archiveholds", "delete"),
                ("archiveerasures", "create"),
                ("archiveerasures/status", "patch"),
            ] {
                assert!(!allowed(rules, GROUP, resource, verb), "{role}: {verb} {resource}");
            }
        }
    }
}
