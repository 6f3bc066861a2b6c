//! The admission policies restrict the operator's own account where RBAC cannot, and thereby limit the impact of a stolen token.

mod volumes;

use serde_json::{Value, json};

use crate::policies::refused;
use crate::server::Server;
use crate::statuses;

pub const OPERATOR: &str = "--as=system:serviceaccount:ops:co-computer-operator";
const API: &str = "--as=system:serviceaccount:ops:co-computer-operator-api";
/// The random part of a name that the operator generates.
const HEX: &str = "0123456789abcdef0123456789abcdef";
/// The UID of a computer whose home is in custody.
const CUSTODY: &str = "11111111-2222-3333-4444-555555555555";
pub const UID: &str = "computer-operator.dev/computer-uid";
const ORIGINAL: &str = "computer-operator.dev/original-reclaim-policy";

pub fn the_operator_is_restricted(server: &Server) {
    it_changes_only_its_own_children(server);
    it_creates_only_marked_children(server);
    it_creates_only_archive_pods_and_custody_claims_in_its_namespace(server);
    it_creates_and_deletes_only_secrets_of_keys(server);
    volumes::it_changes_only_volumes_of_homes(server);
    the_api_only_revokes_keys_in_records(server);
    the_api_only_reports_about_sessions(server);
    statuses::only_nodes_report_container_states(server);
}

/// The HTTP API can revoke a key but never restore one.
fn the_api_only_revokes_keys_in_records(server: &Server) {
    let children = json!({"secretName": "computer-key-a"});
    let record = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerRecord", "metadata": {"name": "r", "namespace": "ops"},
        "spec": {"namespace": "team", "computer": "box", "state": {"credential": "Live", "keyHash": "a", "children": children}}});
    server.kubectl(&["create", "-f", "-"], &record.to_string()).unwrap();
    let patch = |spec: Value| {
        server.kubectl(&["patch", "computerrecord", "r", "-n", "ops", API, "--type=merge", "-p", &json!({"spec": spec}).to_string()], "")
    };
    refused("another hash", patch(json!({"state": {"keyHash": "b"}})), "may only revoke the key of a record");
    let state = |more: Value| {
        let mut state = json!({"credential": "Revoked"});
        state.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"state": state})
    };
    for more in [
        json!({"keyHash": "b"}),
        json!({"children": {"secretName": "another"}}),
        json!({"phase": "Released"}),
        json!({"keyAllow": ["delete"]}),
        json!({"keyMounted": true}),
    ] {
        refused(&more.to_string(), patch(state(more.clone())), "not change its other fields");
    }
    for (field, other) in [("namespace", "other"), ("namespaceUid", "another")] {
        let mut changed = state(json!({}));
        changed[field] = json!(other);
        refused(field, patch(changed), "not change its other fields");
    }
    patch(state(json!({}))).expect("a tombstone");
    // The definition itself rejects this before any policy is evaluated.
    refused("a restored key", patch(json!({"state": {"credential": "Live"}})), "a revoked credential stays revoked");
}

/// Only the operator says that a session is archived, and where.
fn the_api_only_reports_about_sessions(server: &Server) {
    let session = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Session", "metadata": {"name": "r", "namespace": "ops"},
        "spec": {"computerName": "box", "computerUID": "u"}});
    server.kubectl(&["create", "-f", "-"], &session.to_string()).unwrap();
    // kubectl reads what it patches. The API does not, so its role does not permit it.
    let account = API.trim_start_matches("--as=system:serviceaccount:");
    let resource = "--resource=sessions.computer-operator.dev/status";
    server.kubectl(&["create", "role", "kubectl-reads", "-n", "ops", "--verb=get", resource], "").unwrap();
    let to = format!("--serviceaccount={account}");
    server.kubectl(&["create", "rolebinding", "kubectl-reads", "-n", "ops", "--role=kubectl-reads", &to], "").unwrap();
    let patch = |user: &[&str], status: &Value| {
        let patch = json!({"status": status}).to_string();
        server.kubectl(&[&["patch", "session", "r", "-n", "ops", "--subresource=status", "--type=merge", "-p", &patch], user].concat(), "")
    };
    let time = "2027-01-15T08:00:00Z";
    patch(&[API], &json!({"phase": "Running", "lastActivityTime": time})).expect("what a machine reports");
    for more in [
        json!({"phase": "Archived"}),
        json!({"phase": "Ended"}),
        json!({"archiveKey": "k"}),
        json!({"archiveDigest": "d"}),
        json!({"completedTime": time}),
    ] {
        refused(&more.to_string(), patch(&[API], &more), "may only write what a machine reports");
    }
    patch(&[], &json!({"phase": "Archived"})).unwrap();
    refused("a session that is archived", patch(&[API], &json!({"phase": "Idle"})), "may only write what a machine reports");
}

fn it_changes_only_its_own_children(server: &Server) {
    let meta = |name: &str, labels: Value| json!({"name": name, "namespace": "team", "labels": labels});
    let (foreign, ours) = (json!({}), json!({(UID): "u"}));
    let pod = |name: &str, labels: &Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta(name, labels.clone()), "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let claim = |name: &str, labels: &Value| json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta(name, labels.clone()), "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let all = [pod("theirs", &foreign), pod("ours", &ours), claim("theirs", &foreign), claim("ours", &ours)]
        .map(|o| o.to_string())
        .join("\n---\n");
    server.kubectl(&["create", "-f", "-"], &all).unwrap();
    let operator = |arguments: &[&str]| server.kubectl(&[arguments, &["-n", "team", OPERATOR]].concat(), "");
    for kind in ["pod", "pvc"] {
        refused(kind, operator(&["delete", kind, "theirs", "--wait=false"]), "only pods and claims that it created");
        operator(&["delete", kind, "ours", "--wait=false"]).unwrap();
    }
    // A label that was lost while no policy was installed must not block a deletion.
    let name = format!("machine-{HEX}");
    server.kubectl(&["create", "-f", "-"], &pod(&name, &foreign).to_string()).unwrap();
    operator(&["delete", "pod", &name, "--wait=false"]).expect("a name that only the operator generates");
    let pod = pod("running", &ours).to_string();
    server.kubectl(&["create", "-f", "-"], &pod).unwrap();
    refused("another image", operator(&["set", "image", "pod/running", "c=evil"]), "may change only the metadata of a pod");
    operator(&["patch", "pod", "running", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]).expect("its finalizer");
    refused("a pod's labels", operator(&["label", "pod", "theirs", "a=b"]), "only pods and claims that it created");
    refused("a claim", operator(&["label", "pvc", "theirs", "a=b"]), "resource \"persistentvolumeclaims\"");
    for arguments in [&["get", "secret", "planted"][..], &["get", "secrets"]] {
        refused("a tenant's Secret", operator(arguments), "resource \"secrets\"");
    }
    assert!(operator(&["auth", "can-i", "create", "pods", "--subresource=exec"]).is_err(), "a shell in a tenant's pod");
}

/// The operator can create only objects with its label and a generated name.
fn it_creates_only_marked_children(server: &Server) {
    let owner =
        json!([{"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "name": "box", "uid": "u", "controller": true}]);
    let create = |object: &Value, more: &[&str]| server.kubectl(&[&["create", "-f", "-", OPERATOR], more].concat(), &object.to_string());
    let machine = |namespace: &str, labels: Value, owners: &Value| {
        let mut pod = pod(namespace, &format!("machine-{HEX}"), "default");
        pod["metadata"]["labels"] = labels;
        pod["metadata"]["ownerReferences"] = owners.clone();
        pod
    };
    let (ours, none) = (json!({(UID): "u"}), json!({}));
    let message = "have its label and, in a tenant's namespace, are owned by that Computer";
    refused("no label", create(&machine("team", none.clone(), &owner), &[]), message);
    refused("no owner", create(&machine("team", ours.clone(), &json!([])), &[]), message);
    refused("another's owner", create(&machine("team", json!({(UID): "v"}), &owner), &[]), message);
    create(&machine("team", ours.clone(), &owner), &[]).expect("a machine");

    let named = |object: &Value, name: &str| {
        let mut object = object.clone();
        object["metadata"]["name"] = json!(name);
        object
    };
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": "team", "labels": ours, "ownerReferences": owner},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let generated = "with names that it generates";
    let archive = format!("archive-{CUSTODY}-1");
    for name in ["kube-proxy", "machine-1", &format!("machine-{HEX}0"), &archive] {
        refused(name, create(&named(&machine("team", ours.clone(), &owner), name), &[]), generated);
    }
    for name in ["data", "home-sweet-home", &format!("home-{CUSTODY}")] {
        refused(name, create(&named(&claim, name), &[]), generated);
    }
    create(&named(&claim, &format!("home-{HEX}")), &["--dry-run=server"]).expect("a home");
    for namespace in ["kube-system", "kube-public", "kube-node-lease"] {
        let mut claim = named(&claim, &format!("home-{HEX}"));
        claim["metadata"]["namespace"] = json!(namespace);
        for object in [machine(namespace, ours.clone(), &owner), claim] {
            refused(namespace, create(&object, &[]), "creates nothing in the namespaces of Kubernetes");
        }
    }
}

/// The operator's namespace contains its Secrets and the store, so archive pods there must use an account without permissions.
fn it_creates_only_archive_pods_and_custody_claims_in_its_namespace(server: &Server) {
    let create = |object: &Value, more: &[&str]| server.kubectl(&[&["create", "-f", "-", OPERATOR], more].concat(), &object.to_string());
    let archive = |name: &str, account: &str| {
        let mut pod = pod("ops", name, account);
        pod["metadata"]["labels"] = json!({(UID): CUSTODY});
        pod
    };
    let name = format!("archive-{CUSTODY}-1");
    let only = "only archive pods with their own ServiceAccount and claims of homes in custody";
    refused("the operator's own account", create(&archive(&name, "co-computer-operator"), &[]), only);
    refused("an account of the namespace", create(&archive(&name, "default"), &[]), only);
    refused("another name", create(&archive("archive-1", "co-computer-operator-archive"), &[]), only);
    refused("a machine", create(&archive(&format!("machine-{HEX}"), "co-computer-operator-archive"), &[]), only);
    let mut unmarked = archive(&name, "co-computer-operator-archive");
    unmarked["metadata"]["labels"] = json!({});
    refused("no label", create(&unmarked, &[]), "have its label");
    create(&archive(&name, "co-computer-operator-archive"), &[]).expect("an archive pod");
    let claim = |name: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "ops", "labels": {(UID): CUSTODY}},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
    };
    refused("a claim of another name", create(&claim("home-1"), &[]), only);
    create(&claim(&format!("home-{CUSTODY}")), &["--dry-run=server"]).expect("a custody claim");
    // A volume is reserved for its custody claim by name, so no one else may create that claim, not even an editor of this namespace.
    server.kubectl(&["create", "rolebinding", "anna", "--clusterrole=edit", "--user=anna", "-n", "ops"], "").unwrap();
    let mut planted = claim(&format!("home-{CUSTODY}"));
    planted["metadata"]["labels"] = json!({});
    let anna = server.kubectl(&["create", "-f", "-", "--dry-run=server", "--as=anna"], &planted.to_string());
    refused("an editor's custody claim", anna, "are reserved for the operator, which generates");
    // The dry run that checks a class; its ServiceAccount may not exist in this namespace.
    let check = |namespace: &str, prefix: &str| {
        let mut pod = pod(namespace, "", "default");
        pod["metadata"] = json!({"generateName": prefix, "namespace": namespace});
        pod
    };
    create(&check("ops", "class-dry-run-"), &["--dry-run=server"]).expect("the check of a class");
    refused("a class check that is not a dry run", create(&check("ops", "class-dry-run-"), &[]), only);
    refused("another dry run", create(&check("ops", "p-"), &["--dry-run=server"]), only);
    refused(
        "a dry run in a tenant's namespace",
        create(&check("team", "class-dry-run-"), &["--dry-run=server"]),
        "with names that it generates",
    );
}

/// A pod that Pod Security accepts in every namespace.
pub fn pod(namespace: &str, name: &str, account: &str) -> Value {
    let restricted = json!({"allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": {"serviceAccountName": account,
        "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i", "securityContext": restricted}]}})
}

const OWN_NAMES: &str = "only Secrets of keys";

fn owner(kind: &str, uid: &str) -> Value {
    json!([{"apiVersion": "computer-operator.dev/v1alpha1", "kind": kind, "name": "box", "uid": uid, "controller": true}])
}

/// The Secret of a computer's key, as the operator creates it.
fn secret(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "immutable": true, "stringData": {"token": "t"},
        "metadata": {"name": name, "namespace": namespace, "ownerReferences": owner("Computer", "u"),
            "labels": {(UID): "u", "app.kubernetes.io/managed-by": "computer-operator"}},
    })
}

fn create(server: &Server, secret: &Value) -> Result<String, String> {
    server.kubectl(&["create", "-f", "-", OPERATOR], &secret.to_string())
}

fn it_creates_and_deletes_only_secrets_of_keys(server: &Server) {
    let (key, api_key) = (format!("computer-key-{HEX}"), format!("api-key-{HEX}"));
    other_secrets_are_refused(server, &key);
    create(server, &secret("team", &key)).expect("a computer's key");
    let mut of_api_key = secret("team", &api_key);
    of_api_key["metadata"]["ownerReferences"] = owner("ApiKey", "k");
    of_api_key["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "computer-operator"});
    of_api_key["immutable"] = json!(false);
    refused("a caller's key that can be changed", create(server, &of_api_key), "that of an ApiKey must be immutable");
    of_api_key["immutable"] = json!(true);
    create(server, &of_api_key).expect("a caller's key");
    let mut mounted = secret("team", &key.replace('0', "1"));
    mounted["immutable"] = json!(false);
    create(server, &mounted).expect("a computer's key that its machine follows");
    let certificate = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "stringData": {"tls.crt": "", "tls.key": ""},
        "metadata": {"name": "computer-operator-ingest-tls", "namespace": "ops"}});
    create(server, &certificate).expect("its own certificate");
    it_deletes_only_secrets_of_keys(server, [&key, &api_key]);
}

fn other_secrets_are_refused(server: &Server, key: &str) {
    let create = |secret: &Value| create(server, secret);
    let with = |path: &str, value: Value| {
        let mut changed = secret("team", key);
        *changed.pointer_mut(path).unwrap() = value;
        changed
    };
    for (what, changed, message) in [
        ("another name", with("/metadata/name", json!("planned")), OWN_NAMES),
        ("a name of people", with("/metadata/name", json!("api-key-prod")), OWN_NAMES),
        ("the certificate elsewhere", with("/metadata/name", json!("computer-operator-ingest-tls")), OWN_NAMES),
        ("another type", with("/type", json!("example.com/other")), "only Secrets of type Opaque"),
        ("no labels", with("/metadata/labels", json!({})), "have its labels"),
        (
            "another computer's label",
            with("/metadata/labels", json!({(UID): "v", "app.kubernetes.io/managed-by": "computer-operator"})),
            "have its labels",
        ),
        ("no owner", with("/metadata/ownerReferences", json!([])), "are owned by the one Computer or ApiKey"),
        ("an owner of another kind", with("/metadata/ownerReferences", owner("ApiKey", "u")), "are owned by the one Computer or ApiKey"),
    ] {
        refused(what, create(&changed), message);
    }
    // The API server itself would write the token of any ServiceAccount of the namespace into it.
    let mut token = with("/type", json!("kubernetes.io/service-account-token"));
    token["metadata"]["annotations"] = json!({"kubernetes.io/service-account.name": "default"});
    refused("a ServiceAccount's token", create(&token), "only Secrets of type Opaque");
    token["metadata"]["name"] = json!("computer-operator-ingest-tls");
    token["metadata"]["namespace"] = json!("ops");
    refused("a token that the operator could read", create(&token), "only Secrets of type Opaque");
    for namespace in ["kube-system", "kube-public", "kube-node-lease"] {
        refused(namespace, create(&secret(namespace, key)), "creates nothing in the namespaces of Kubernetes");
    }
}

fn it_deletes_only_secrets_of_keys(server: &Server, [key, api_key]: [&str; 2]) {
    let delete = |namespace: &str, name: &str, more: &[&str]| {
        server.kubectl(&[&["delete", "secret", name, "-n", namespace, "--wait=false", OPERATOR], more].concat(), "")
    };
    let theirs =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "api-key-prod", "namespace": "team", "labels": {(UID): "u"}}});
    server.kubectl(&["create", "-f", "-"], &theirs.to_string()).unwrap();
    refused("a tenant's, whatever its labels", delete("team", "api-key-prod", &[]), OWN_NAMES);
    refused("a dry run", delete("team", "api-key-prod", &["--dry-run=server"]), OWN_NAMES);
    // Changes by a tenant, or an object put in its place, do not stop the deletion protocol from finding and deleting the Secret.
    for (name, kind) in [(key, "a/b"), (api_key, "Opaque")] {
        server.kubectl(&["delete", "secret", name, "-n", "team", "--ignore-not-found"], "").unwrap();
        let planted = json!({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": {"name": name, "namespace": "team"}});
        server.kubectl(&["create", "-f", "-"], &planted.to_string()).unwrap();
    }
    for name in [key, api_key] {
        delete("team", name, &["--dry-run=server"]).expect("a dry run finds it");
        delete("team", name, &[]).expect("the operator deletes it");
        let gone = delete("team", name, &["--dry-run=server"]).expect_err("it is gone");
        assert!(gone.contains("NotFound"), "absence must be reported as NotFound: {gone}");
    }
    delete("ops", "computer-operator-ingest-tls", &[]).expect("its own certificate");
}
