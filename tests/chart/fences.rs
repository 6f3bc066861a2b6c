//! What the operator's own account may not do, although RBAC cannot say it: whoever gets hold of its token gets no more.

use serde_json::{Value, json};

use crate::policies::refused;
use crate::server::{Server, eventually};

const OPERATOR: &str = "--as=system:serviceaccount:ops:co-computer-operator";
const API: &str = "--as=system:serviceaccount:ops:co-computer-operator-api";
/// What the operator draws for a name.
const HEX: &str = "0123456789abcdef0123456789abcdef";
/// The UID of a computer whose home is in custody.
const CUSTODY: &str = "11111111-2222-3333-4444-555555555555";
const UID: &str = "computer-operator.dev/computer-uid";
const ORIGINAL: &str = "computer-operator.dev/original-reclaim-policy";

pub fn hold(server: &Server) {
    children(server);
    made(server);
    made_at_home(server);
    secrets(server);
    volumes(server);
    records(server);
    statuses(server);
}

/// A status takes labels and finalizers along, and a machine's status says whether its containers have stopped: `edit` cannot write it, but
/// a role with all resources of the core can.
fn statuses(server: &Server) {
    for user in ["dora", "kubelet"] {
        server.kubectl(&["create", "role", user, "--verb=*", "--resource=*", "-n", "team"], "").unwrap();
        server.kubectl(&["create", "rolebinding", user, &format!("--role={user}"), &format!("--user={user}"), "-n", "team"], "").unwrap();
    }
    let mut machine = pod("team", "held", "default");
    machine["metadata"]["labels"] = json!({(UID): "u"});
    machine["metadata"]["finalizers"] = json!(["computer-operator.dev/stopped"]);
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "held", "namespace": "team", "labels": {(UID): "u"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let free = pod("team", "free", "default");
    server.kubectl(&["create", "-f", "-"], &[machine, claim, free].map(|o| o.to_string()).join("\n---\n")).unwrap();
    let patch = |user: &str, kind: &str, name: &str, door: &str, patch: Value| {
        let as_user = format!("--as={user}");
        let group = if user == "kubelet" { "--as-group=system:nodes" } else { "--as-group=system:authenticated" };
        let door = format!("--subresource={door}");
        server.kubectl(&["patch", kind, name, "-n", "team", &as_user, group, &door, "--type=merge", "-p", &patch.to_string()], "")
    };
    let (label, finalizer) = (json!({"metadata": {"labels": {(UID): null}}}), json!({"metadata": {"finalizers": null}}));
    refused("a label through a pod's status", patch("dora", "pod", "held", "status", label.clone()), "are the operator's");
    refused("a label through a claim's status", patch("dora", "pvc", "held", "status", label.clone()), "are the operator's");
    refused(
        "a finalizer through the status",
        patch("dora", "pod", "held", "status", finalizer.clone()),
        "when every container has stopped",
    );
    let stopped =
        json!({"state": {"terminated": {"exitCode": 0}}, "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0});
    for (what, status) in [
        ("a phase", json!({"phase": "Failed"})),
        ("containers", json!({"containerStatuses": [stopped]})),
        ("init containers", json!({"initContainerStatuses": [stopped]})),
        ("ephemeral containers", json!({"ephemeralContainerStatuses": [stopped]})),
    ] {
        refused(what, patch("dora", "pod", "held", "status", json!({"status": status})), "reported by its kubelet");
        patch("kubelet", "pod", "held", "status", json!({"status": status})).expect("the kubelet's word");
        patch("dora", "pod", "free", "status", json!({"status": status})).expect("a pod of their own");
    }
    let gate = json!({"status": {"conditions": [{"type": "example.com/gate", "status": "True"}]}});
    patch("dora", "pod", "held", "status", gate).expect("a readiness gate");
    patch("dora", "pvc", "held", "status", json!({"status": {"phase": "Lost"}})).expect("a claim's own status");
    // The other doors of a pod do not lead to its metadata.
    for (door, change) in [
        ("ephemeralcontainers", json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i"}]}})),
        ("resize", json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1m"}}}]}})),
    ] {
        for meta in [&label, &finalizer] {
            let mut change = change.clone();
            change["metadata"] = meta["metadata"].clone();
            let _ = patch("dora", "pod", "held", door, change);
        }
    }
    let left = server.kubectl(&["get", "pod", "held", "-n", "team", "-o", "json"], "").unwrap();
    let left: Value = serde_json::from_str(&left).unwrap();
    assert_eq!(
        (&left["metadata"]["labels"][UID], &left["metadata"]["finalizers"]),
        (&json!("u"), &json!(["computer-operator.dev/stopped"]))
    );
    server.kubectl(&["patch", "pod", "held", "-n", "team", OPERATOR, "--type=merge", "-p", &finalizer.to_string()], "").expect("its own");
}

/// The HTTP API may end a key's life, never begin one.
fn records(server: &Server) {
    let children = json!({"secretName": "computer-key-a"});
    let record = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerRecord", "metadata": {"name": "r", "namespace": "ops"},
        "spec": {"namespace": "team", "computer": "box", "state": {"credential": "Live", "keyHash": "a", "children": children}}});
    server.kubectl(&["create", "-f", "-"], &record.to_string()).unwrap();
    let patch = |spec: Value| {
        server.kubectl(&["patch", "computerrecord", "r", "-n", "ops", API, "--type=merge", "-p", &json!({"spec": spec}).to_string()], "")
    };
    refused("another hash", patch(json!({"state": {"keyHash": "b"}})), "revokes keys and");
    let state = |more: Value| {
        let mut state = json!({"credential": "Revoked"});
        state.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"state": state})
    };
    for more in [json!({"keyHash": "b"}), json!({"children": {"secretName": "another"}}), json!({"phase": "Released"})] {
        refused(&more.to_string(), patch(state(more.clone())), "changes nothing else of a record");
    }
    let mut elsewhere = state(json!({}));
    elsewhere["namespace"] = json!("other");
    refused("another computer's", patch(elsewhere), "changes nothing else of a record");
    patch(state(json!({}))).expect("a tombstone");
    // The definition itself refuses this, before any policy is asked.
    refused("back to life", patch(json!({"state": {"credential": "Live"}})), "a revoked credential stays revoked");
}

fn children(server: &Server) {
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
        refused(kind, operator(&["delete", kind, "theirs", "--wait=false"]), "only pods and claims that it made");
        operator(&["delete", kind, "ours", "--wait=false"]).unwrap();
    }
    // A label that was lost while no policy stood there must not hold a deletion up.
    let name = format!("machine-{HEX}");
    server.kubectl(&["create", "-f", "-"], &pod(&name, &foreign).to_string()).unwrap();
    operator(&["delete", "pod", &name, "--wait=false"]).expect("a name that only the operator draws");
    let pod = pod("running", &ours).to_string();
    server.kubectl(&["create", "-f", "-"], &pod).unwrap();
    refused("another image", operator(&["set", "image", "pod/running", "c=evil"]), "changes nothing of what they run");
    operator(&["patch", "pod", "running", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]).expect("its finalizer");
    refused("a pod's labels", operator(&["label", "pod", "theirs", "a=b"]), "only pods and claims that it made");
    refused("a claim", operator(&["label", "pvc", "theirs", "a=b"]), "resource \"persistentvolumeclaims\"");
    for arguments in [&["get", "secret", "planted"][..], &["get", "secrets"]] {
        refused("a tenant's Secret", operator(arguments), "resource \"secrets\"");
    }
    assert!(operator(&["auth", "can-i", "create", "pods", "--subresource=exec"]).is_err(), "a shell in a tenant's pod");
}

/// What the operator makes is marked as its own, and has a name that it draws itself.
fn made(server: &Server) {
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
    let message = "carry its label, and in a tenant's namespace belong to that Computer";
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
    let drawn = "under names that it draws itself";
    let archive = format!("archive-{CUSTODY}-1");
    for name in ["kube-proxy", "machine-1", &format!("machine-{HEX}0"), &archive] {
        refused(name, create(&named(&machine("team", ours.clone(), &owner), name), &[]), drawn);
    }
    for name in ["data", "home-sweet-home", &format!("home-{CUSTODY}")] {
        refused(name, create(&named(&claim, name), &[]), drawn);
    }
    create(&named(&claim, &format!("home-{HEX}")), &["--dry-run=server"]).expect("a home");
    for namespace in ["kube-system", "kube-public", "kube-node-lease"] {
        let mut claim = named(&claim, &format!("home-{HEX}"));
        claim["metadata"]["namespace"] = json!(namespace);
        for object in [machine(namespace, ours.clone(), &owner), claim] {
            refused(namespace, create(&object, &[]), "makes nothing in the namespaces of Kubernetes itself");
        }
    }
}

/// In the operator's own namespace there are its secrets, and the store: archive pods have an account without rights.
fn made_at_home(server: &Server) {
    let create = |object: &Value, more: &[&str]| server.kubectl(&[&["create", "-f", "-", OPERATOR], more].concat(), &object.to_string());
    let archive = |name: &str, account: &str| {
        let mut pod = pod("ops", name, account);
        pod["metadata"]["labels"] = json!({(UID): CUSTODY});
        pod
    };
    let name = format!("archive-{CUSTODY}-1");
    let drawn = "archive pods with their own account and claims of homes in custody only";
    refused("the operator's own account", create(&archive(&name, "co-computer-operator"), &[]), drawn);
    refused("an account of the namespace", create(&archive(&name, "default"), &[]), drawn);
    refused("another name", create(&archive("archive-1", "co-computer-operator-archive"), &[]), drawn);
    refused("a machine", create(&archive(&format!("machine-{HEX}"), "co-computer-operator-archive"), &[]), drawn);
    let mut unmarked = archive(&name, "co-computer-operator-archive");
    unmarked["metadata"]["labels"] = json!({});
    refused("no label", create(&unmarked, &[]), "carry its label");
    create(&archive(&name, "co-computer-operator-archive"), &[]).expect("an archive pod");
    let claim = |name: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "ops", "labels": {(UID): CUSTODY}},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
    };
    refused("a claim of another name", create(&claim("home-1"), &[]), drawn);
    create(&claim(&format!("home-{CUSTODY}")), &["--dry-run=server"]).expect("a claim of custody");
    // A home is reserved for its custody claim by name, so nobody else makes that claim, be he an editor here.
    server.kubectl(&["create", "rolebinding", "anna", "--clusterrole=edit", "--user=anna", "-n", "ops"], "").unwrap();
    let mut planted = claim(&format!("home-{CUSTODY}"));
    planted["metadata"]["labels"] = json!({});
    let anna = server.kubectl(&["create", "-f", "-", "--dry-run=server", "--as=anna"], &planted.to_string());
    refused("an editor's custody claim", anna, "names that the operator draws");
    // The check of a class, whose account lives elsewhere or nowhere.
    let check = |namespace: &str, prefix: &str| {
        let mut pod = pod(namespace, "", "default");
        pod["metadata"] = json!({"generateName": prefix, "namespace": namespace});
        pod
    };
    create(&check("ops", "class-dry-run-"), &["--dry-run=server"]).expect("the check of a class");
    refused("one that is no dry run", create(&check("ops", "class-dry-run-"), &[]), drawn);
    refused("another dry run", create(&check("ops", "p-"), &["--dry-run=server"]), drawn);
    refused("a dry run in a tenant's", create(&check("team", "class-dry-run-"), &["--dry-run=server"]), "under names that it draws itself");
}

/// A pod as Pod Security takes it everywhere.
fn pod(namespace: &str, name: &str, account: &str) -> Value {
    let restricted = json!({"allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": {"serviceAccountName": account,
        "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i", "securityContext": restricted}]}})
}

/// Whoever has the operator's token makes no Secret but that of a key, and deletes no tenant's.
fn secrets(server: &Server) {
    let owner = |kind: &str, uid: &str| json!([{"apiVersion": "computer-operator.dev/v1alpha1", "kind": kind, "name": "box", "uid": uid, "controller": true}]);
    let secret = |namespace: &str, name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "immutable": true, "stringData": {"token": "t"},
            "metadata": {"name": name, "namespace": namespace, "ownerReferences": owner("Computer", "u"),
                "labels": {(UID): "u", "app.kubernetes.io/managed-by": "computer-operator"}},
        })
    };
    let create = |secret: &Value| server.kubectl(&["create", "-f", "-", OPERATOR], &secret.to_string());
    let (key, api_key) = (format!("computer-key-{HEX}"), format!("api-key-{HEX}"));
    let with = |path: &str, value: Value| {
        let mut changed = secret("team", &key);
        *changed.pointer_mut(path).unwrap() = value;
        changed
    };
    let own_names = "Secrets of keys only";
    for (what, changed, message) in [
        ("another name", with("/metadata/name", json!("planned")), own_names),
        ("a name of people", with("/metadata/name", json!("api-key-prod")), own_names),
        ("the certificate elsewhere", with("/metadata/name", json!("computer-operator-ingest-tls")), own_names),
        ("another type", with("/type", json!("example.com/other")), "of type Opaque only"),
        ("one that can be changed", with("/immutable", json!(false)), "nobody can change"),
        ("no labels", with("/metadata/labels", json!({})), "with its labels"),
        (
            "another computer's label",
            with("/metadata/labels", json!({(UID): "v", "app.kubernetes.io/managed-by": "computer-operator"})),
            "with its labels",
        ),
        ("no owner", with("/metadata/ownerReferences", json!([])), "owned by the one Computer or ApiKey"),
        ("an owner of another kind", with("/metadata/ownerReferences", owner("ApiKey", "u")), "owned by the one Computer or ApiKey"),
    ] {
        refused(what, create(&changed), message);
    }
    // The API server itself would write the token of any account of the namespace into it.
    let mut token = with("/type", json!("kubernetes.io/service-account-token"));
    token["metadata"]["annotations"] = json!({"kubernetes.io/service-account.name": "default"});
    refused("a ServiceAccount's token", create(&token), "of type Opaque only");
    token["metadata"]["name"] = json!("computer-operator-ingest-tls");
    token["metadata"]["namespace"] = json!("ops");
    refused("one that it could read", create(&token), "of type Opaque only");
    for namespace in ["kube-system", "kube-public", "kube-node-lease"] {
        refused(namespace, create(&secret(namespace, &key)), "makes nothing in the namespaces of Kubernetes itself");
    }
    create(&secret("team", &key)).expect("a computer's key");
    let mut of_api_key = secret("team", &api_key);
    of_api_key["metadata"]["ownerReferences"] = owner("ApiKey", "k");
    of_api_key["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "computer-operator"});
    create(&of_api_key).expect("a caller's key");
    let certificate = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "stringData": {"tls.crt": "", "tls.key": ""},
        "metadata": {"name": "computer-operator-ingest-tls", "namespace": "ops"}});
    create(&certificate).expect("its own certificate");
    let delete = |namespace: &str, name: &str, more: &[&str]| {
        server.kubectl(&[&["delete", "secret", name, "-n", namespace, "--wait=false", OPERATOR], more].concat(), "")
    };
    let theirs =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "api-key-prod", "namespace": "team", "labels": {(UID): "u"}}});
    server.kubectl(&["create", "-f", "-"], &theirs.to_string()).unwrap();
    refused("a tenant's, whatever its labels", delete("team", "api-key-prod", &[]), own_names);
    refused("asking for it", delete("team", "api-key-prod", &["--dry-run=server"]), own_names);
    // What a tenant made of it, or put in its place, does not keep a deletion from looking and deleting.
    for (name, kind) in [(&key, "a/b"), (&api_key, "Opaque")] {
        server.kubectl(&["delete", "secret", name, "-n", "team", "--ignore-not-found"], "").unwrap();
        let planted = json!({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": {"name": name, "namespace": "team"}});
        server.kubectl(&["create", "-f", "-"], &planted.to_string()).unwrap();
    }
    for name in [&key, &api_key] {
        delete("team", name, &["--dry-run=server"]).expect("looking for it");
        delete("team", name, &[]).expect("deleting it");
        let gone = delete("team", name, &["--dry-run=server"]).expect_err("it is gone");
        assert!(gone.contains("NotFound"), "absence is told, not refused: {gone}");
    }
    delete("ops", "computer-operator-ingest-tls", &[]).expect("its own certificate");
}

/// A volume that is bound to a claim of this name.
fn volume(server: &Server, name: &str, namespace: &str, claim: &str) {
    let spec = json!({
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}, "persistentVolumeReclaimPolicy": "Delete",
        "csi": {"driver": "disk.example", "volumeHandle": name}, "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": namespace, "name": claim},
    });
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim, "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": name, "resources": {"requests": {"storage": "1Gi"}}}});
    server.kubectl(&["create", "-f", "-"], &volume.to_string()).unwrap();
    // The store's claim is the chart's.
    server.kubectl(&["create", "-f", "-"], &claim.to_string()).ok();
    eventually("the volume is bound", || {
        let uid = server.kubectl(&["get", "pv", name, "-o", "jsonpath={.spec.claimRef.uid}"], "")?;
        if uid.is_empty() { Err("not yet".into()) } else { Ok(()) }
    });
}

fn volumes(server: &Server) {
    let (home, custody) = (format!("home-{HEX}"), format!("home-{CUSTODY}"));
    volume(server, "home", "team", &home);
    // What a tenant may call a claim of its own.
    let longer = format!("home-{HEX}0");
    let theirs = [("theirs", "home-sweet-home"), ("longer", longer.as_str()), ("custody", custody.as_str())];
    for (name, claim) in theirs {
        volume(server, name, "team", claim);
    }
    volume(server, "data", "team", "data");
    volume(server, "store", "ops", "co-computer-operator-store");
    let loose = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "loose"},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "csi": {"driver": "disk.example", "volumeHandle": "l"}}});
    server.kubectl(&["create", "-f", "-"], &loose.to_string()).unwrap();
    let patch = |name: &str, patch: Value| server.kubectl(&["patch", "pv", name, OPERATOR, "--type=merge", "-p", &patch.to_string()], "");
    let marked = |policy: &str, original: &str| json!({"metadata": {"labels": {(UID): CUSTODY}, "annotations": {(ORIGINAL): original}}, "spec": {"persistentVolumeReclaimPolicy": policy}});
    let claim = |namespace: &str, name: &str| json!({"spec": {"claimRef": {"namespace": namespace, "name": name, "uid": "other", "resourceVersion": null}}});
    refused("no mark", patch("home", json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})), "comes into the operator's care with");
    refused("another policy noted", patch("home", marked("Retain", "Retain")), "comes into the operator's care with");
    refused("not in care yet", patch("home", claim("ops", &custody)), "in its care at claims of its own namespace");
    patch("home", marked("Retain", "Delete")).expect("from birth");
    for (what, change, message) in [
        ("to another namespace", claim("default", &home), "at claims of its own namespace only"),
        ("to a claim that is no home", claim("ops", "co-computer-operator-store"), "at claims of its own namespace only"),
        ("to a claim with the beginning of a home", claim("ops", "home-server"), "at claims of its own namespace only"),
        ("to a claim of the tenant's", claim("team", "home-server"), "at claims of its own namespace only"),
        ("to a name of custody elsewhere", claim("team", &custody), "at claims of its own namespace only"),
        ("no claim", json!({"spec": {"claimRef": null}}), "bound volumes only"),
        ("a policy that it never had", json!({"spec": {"persistentVolumeReclaimPolicy": "Recycle"}}), "back to what they were"),
        ("another label", json!({"metadata": {"labels": {"a": "b"}}}), "its own labels only"),
        ("another computer's", json!({"metadata": {"labels": {(UID): "v"}}}), "its own labels only"),
        ("another annotation", json!({"metadata": {"annotations": {"a": "b"}}}), "its own annotation only"),
        ("a rewritten policy", json!({"metadata": {"annotations": {(ORIGINAL): "Retain"}}}), "its own annotation only"),
        ("mount options", json!({"spec": {"mountOptions": ["suid"]}}), "nothing else of a volume"),
        ("a finalizer", json!({"metadata": {"finalizers": null}}), "nothing else of a volume"),
        ("its size", json!({"spec": {"capacity": {"storage": "20Gi"}}}), "nothing else of a volume"),
    ] {
        refused(what, patch("home", change), message);
    }
    // Reserved for its custody claim, which does not exist yet; and put back, should that never be made.
    let by_name = |namespace: &str, name: &str| json!({"spec": {"claimRef": {"namespace": namespace, "name": name, "uid": null, "resourceVersion": null}}});
    let other = "home-22222222-2222-3333-4444-555555555555";
    for (namespace, name) in
        [("team", home.as_str()), ("team", custody.as_str()), ("default", custody.as_str()), ("ops", other), ("ops", &home)]
    {
        refused(name, patch("home", by_name(namespace, name)), "bound volumes only");
    }
    patch("home", by_name("ops", &custody)).expect("reserved for custody");
    patch("home", json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})).expect("a volume that is reserved is kept");
    patch("home", claim("ops", &custody)).expect("custody");
    patch("home", json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}})).expect("the original policy");
    // An override keeps the volume: our marks go, all of them.
    patch("home", json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})).expect("kept");
    patch("home", json!({"metadata": {"labels": {(UID): null}, "annotations": {(ORIGINAL): null}}})).expect("without our marks");
    for (name, claim) in theirs {
        refused(claim, patch(name, marked("Retain", "Delete")), "volumes of homes only");
    }
    refused("not a home", patch("data", marked("Retain", "Delete")), "volumes of homes only");
    refused("not bound", patch("loose", marked("Retain", "Retain")), "bound volumes only");
    refused("a store with a mark", patch("store", marked("Retain", "Delete")), "volumes of homes only");
    patch("store", json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})).expect("the store's own volume");
    refused("deleted", server.kubectl(&["delete", "pv", "loose", OPERATOR, "--wait=false"], ""), "resource \"persistentvolumes\"");
}
