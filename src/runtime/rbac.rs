//! What the operator may do: one list, from which the install manifests come and which the tests run with. Every right is
//! used by the code beside it; there is no wildcard and no `get` or `list` on tenants' Secrets (design 4.8).

use serde_json::{Value, json};

/// One rule: API group, resources, verbs.
type Rule = (&'static str, &'static [&'static str], &'static [&'static str]);

/// Rights in the whole cluster.
const CLUSTER: &[Rule] = &[
    ("computer-operator.dev", &["computers", "computerclasses", "deletionoverrides"], &["get", "list", "watch"]),
    ("computer-operator.dev", &["computers"], &["patch", "delete"]),
    ("computer-operator.dev", &["apikeys"], &["get", "list", "watch", "patch"]),
    (
        "computer-operator.dev",
        &["computers/status", "computerclasses/status", "deletionoverrides/status", "sessions/status", "apikeys/status"],
        &["patch"],
    ),
    ("computer-operator.dev", &["sessions"], &["list"]),
    ("", &["pods", "persistentvolumeclaims"], &["get", "list", "watch", "create", "delete"]),
    ("", &["pods"], &["patch"]),
    // Created and deleted by name, never read: `delete --dry-run` tells whether one is there.
    ("", &["secrets"], &["create", "delete"]),
    ("", &["persistentvolumes"], &["get", "list", "watch", "patch"]),
    ("", &["namespaces", "serviceaccounts"], &["get", "list", "watch"]),
    ("", &["nodes"], &["get"]),
    ("storage.k8s.io", &["volumeattachments"], &["list"]),
    ("events.k8s.io", &["events"], &["create", "patch"]),
    ("authentication.k8s.io", &["tokenreviews"], &["create"]),
];

/// Rights in the operator's own namespace.
const OWN: &[Rule] = &[
    ("computer-operator.dev", &["computerrecords", "apikeyrecords"], &["get", "list", "watch", "create", "update", "delete"]),
    ("coordination.k8s.io", &["leases"], &["get", "create", "update"]),
];

/// Rights of the HTTP API in the whole cluster. It acts with them only after the caller's own were reviewed.
const API_CLUSTER: &[Rule] = &[
    ("computer-operator.dev", &["computers"], &["get", "list", "watch", "create", "patch", "delete"]),
    ("computer-operator.dev", &["sessions"], &["get", "list", "create", "patch"]),
    ("computer-operator.dev", &["apikeys"], &["get"]),
    ("computer-operator.dev", &["apikeys/status"], &["patch"]),
    ("", &["pods", "namespaces", "serviceaccounts"], &["get"]),
    ("metrics.k8s.io", &["pods"], &["get"]),
    ("authentication.k8s.io", &["tokenreviews"], &["create"]),
    ("authorization.k8s.io", &["subjectaccessreviews"], &["create"]),
];

/// Rights of the HTTP API in the operator's own namespace.
const API_OWN: &[Rule] =
    &[("computer-operator.dev", &["computerrecords"], &["get", "patch"]), ("computer-operator.dev", &["apikeyrecords"], &["get"])];

/// The Secret of the ingest certificate, in the operator's own namespace: the only one that is ever read.
const INGEST_SECRET: &str = "computer-operator-ingest-tls";

/// How to install.
#[derive(Clone, Debug)]
pub struct Install {
    /// Namespace of the operator.
    pub namespace: String,
    /// Image of the operator and of its archive pods.
    pub image: String,
    /// Size of the claim that holds the embedded store.
    pub store_size: String,
    /// Also install the Deployment; otherwise the operator runs elsewhere with this ServiceAccount.
    pub deployment: bool,
}

/// Everything but the CRDs, in the order of creation.
pub fn manifests(install: &Install) -> Vec<Value> {
    let namespace = &install.namespace;
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {
            "pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/audit": "restricted", "pod-security.kubernetes.io/warn": "restricted",
        }}}),
        account(namespace, "computer-operator"),
        account(namespace, "computer-operator-archive"),
        account(namespace, "computer-operator-api"),
    ];
    for (name, cluster, own) in
        [("computer-operator", rules(CLUSTER), own_rules()), ("computer-operator-api", rules(API_CLUSTER), rules(API_OWN))]
    {
        all.extend([
            role(name, None, &cluster),
            binding(name, None, namespace),
            role(name, Some(namespace), &own),
            binding(name, Some(namespace), namespace),
        ]);
    }
    if install.deployment {
        all.extend([store_claim(install), service(namespace), deployment(install)]);
    }
    all
}

fn rules(list: &[Rule]) -> Vec<Value> {
    list.iter().map(|(group, resources, verbs)| json!({"apiGroups": [group], "resources": resources, "verbs": verbs})).collect()
}

fn own_rules() -> Vec<Value> {
    let mut all = rules(OWN);
    all.push(json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": [INGEST_SECRET], "verbs": ["get"]}));
    all
}

fn meta(namespace: Option<&str>, name: &str) -> Value {
    json!({"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/name": "computer-operator"}})
}

fn account(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(Some(namespace), name), "automountServiceAccountToken": false})
}

/// A Role in a namespace, or a `ClusterRole`.
fn role(name: &str, within: Option<&str>, rules: &[Value]) -> Value {
    let kind = if within.is_some() { "Role" } else { "ClusterRole" };
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": meta(within, name), "rules": rules})
}

/// Gives the role of this name to the `ServiceAccount` of this name.
fn binding(name: &str, within: Option<&str>, namespace: &str) -> Value {
    let (kind, role) = if within.is_some() { ("RoleBinding", "Role") } else { ("ClusterRoleBinding", "ClusterRole") };
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": meta(within, name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    })
}

fn store_claim(install: &Install) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta(Some(&install.namespace), "computer-operator-store"),
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": install.store_size}}},
    })
}

fn service(namespace: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": meta(Some(namespace), "computer-operator-ingest"),
        "spec": {"selector": {"app.kubernetes.io/name": "computer-operator"}, "ports": [{"name": "ingest", "port": 8443, "targetPort": "ingest"}]},
    })
}

/// One replica, `Recreate`: the embedded store is a volume that one pod mounts.
fn deployment(install: &Install) -> Value {
    let labels = json!({"app.kubernetes.io/name": "computer-operator"});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(Some(&install.namespace), "computer-operator"),
        "spec": {
            "replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod(install)},
        },
    })
}

fn pod(install: &Install) -> Value {
    json!({
        "serviceAccountName": "computer-operator", "automountServiceAccountToken": true,
        // What runs is finished and the lease released; see `lease::DRAIN`.
        "terminationGracePeriodSeconds": super::lease::DRAIN.as_secs() + 20,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "operator", "image": install.image, "imagePullPolicy": "IfNotPresent", "args": ["run"],
            "env": [
                {"name": "OPERATOR_NAMESPACE", "value": install.namespace},
                {"name": "OPERATOR_IMAGE", "value": install.image},
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                // By address, so that archive pods need no cluster DNS.
                {"name": "INGEST_URL", "value": "https://$(COMPUTER_OPERATOR_INGEST_SERVICE_HOST):8443"},
            ],
            "ports": [{"name": "ingest", "containerPort": 8443}, {"name": "metrics", "containerPort": 8080}],
            "livenessProbe": {"httpGet": {"path": "/livez", "port": "metrics"}},
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": "metrics"}},
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
            "volumeMounts": [{"name": "store", "mountPath": "/var/lib/computer-operator"}],
        }],
        "volumes": [{"name": "store", "persistentVolumeClaim": {"claimName": "computer-operator-store"}}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Value> {
        manifests(&Install { namespace: "op".into(), image: "img:1".into(), store_size: "1Gi".into(), deployment: true })
    }

    fn one(kind: &str, name: &str) -> Value {
        all().into_iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name).unwrap()
    }

    fn allowed(rules: &Value, group: &str, resource: &str, verb: &str) -> bool {
        let has = |list: &Value, word: &str| list.as_array().unwrap().iter().any(|w| w == word);
        rules.as_array().unwrap().iter().any(|r| {
            r.get("resourceNames").is_none() && has(&r["apiGroups"], group) && has(&r["resources"], resource) && has(&r["verbs"], verb)
        })
    }

    #[test]
    fn no_wildcard_and_no_reading_of_secrets() {
        for (group, resources, verbs) in CLUSTER.iter().chain(OWN) {
            assert!(*group != "*" && !resources.contains(&"*") && !verbs.contains(&"*"));
            if resources.contains(&"secrets") {
                assert!(!["get", "list", "watch", "update", "patch"].iter().any(|v| verbs.contains(v)));
            }
        }
    }

    #[test]
    fn what_must_never_be_ours_is_not() {
        let cluster = &one("ClusterRole", "computer-operator")["rules"];
        for (group, resource, verb) in [
            ("", "serviceaccounts", "create"),
            ("", "serviceaccounts/token", "create"),
            ("", "pods/exec", "create"),
            ("", "namespaces", "delete"),
            ("", "persistentvolumes", "delete"),
            ("", "persistentvolumes", "create"),
            ("computer-operator.dev", "deletionoverrides", "create"),
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

    /// Every request that the code makes. One that is added without its right fails on a real cluster only; here it is seen at once.
    #[test]
    fn every_request_of_the_code_is_allowed() {
        let (cluster, own) = (&one("ClusterRole", "computer-operator")["rules"], &one("Role", "computer-operator")["rules"]);
        let ours = "computer-operator.dev";
        for (group, resource, verbs) in [
            (ours, "computers", "get list watch patch delete"),
            (ours, "computers/status", "patch"),
            (ours, "apikeys", "get list watch patch"),
            (ours, "apikeys/status", "patch"),
            (ours, "computerclasses", "list watch"),
            (ours, "computerclasses/status", "patch"),
            (ours, "deletionoverrides", "list watch"),
            (ours, "deletionoverrides/status", "patch"),
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

    #[test]
    fn the_archive_account_has_no_right_and_no_token_but_the_one_it_is_given() {
        assert_eq!(one("ServiceAccount", "computer-operator-archive")["automountServiceAccountToken"], json!(false));
        for binding in all().iter().filter(|o| o["kind"].as_str().unwrap().ends_with("Binding")) {
            assert_eq!(binding["subjects"].as_array().unwrap().len(), 1);
            assert_ne!(binding["subjects"][0]["name"], "computer-operator-archive");
        }
    }

    #[test]
    fn the_namespace_is_first_and_restricted_and_the_pod_fits() {
        assert_eq!(all()[0]["kind"], "Namespace");
        assert_eq!(all()[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
        let deployment = one("Deployment", "computer-operator");
        assert_eq!((&deployment["spec"]["replicas"], &deployment["spec"]["strategy"]["type"]), (&json!(1), &json!("Recreate")));
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], json!(true));
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let context = &pod["containers"][0]["securityContext"];
        assert_eq!(
            (&context["allowPrivilegeEscalation"], &context["readOnlyRootFilesystem"], &context["capabilities"]["drop"]),
            (&json!(false), &json!(true), &json!(["ALL"]))
        );
    }
}
