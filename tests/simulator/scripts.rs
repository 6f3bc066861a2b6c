//! The request scripts for [`crate::conformance`]: every request that the operator makes, and every refusal that it relies on.

use axum::http::Method;
use serde_json::{Value, json};

use crate::conformance::{Step, step};

const COMPUTERS: &str = "/apis/computer-operator.dev/v1alpha1/namespaces/scripts/computers";
const RECORDS: &str = "/apis/computer-operator.dev/v1alpha1/namespaces/scripts/computerrecords";
const CLASSES: &str = "/apis/computer-operator.dev/v1alpha1/computerclasses";
const CORE: &str = "/api/v1/namespaces/scripts";
const FINALIZER: &str = "computer-operator.dev/deletion";

pub fn all() -> Vec<(&'static str, Vec<Step>)> {
    vec![
        (
            "a namespace",
            vec![post("/api/v1/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "scripts"}}))],
        ),
        ("the life of a computer", life()),
        ("another computer with the same name", again()),
        ("finalizers", finalizers()),
        ("statuses and versions", statuses()),
        ("records", records()),
        ("classes", classes()),
        ("secrets", secrets()),
        ("claims", claims()),
        ("volumes", volumes()),
        ("pods", pods()),
        ("a namespace that is being deleted", terminating()),
    ]
}

fn get(path: &str) -> Step {
    step(Method::GET, path, Value::Null)
}
fn post(path: &str, body: Value) -> Step {
    step(Method::POST, path, body)
}
fn put(path: &str, body: Value) -> Step {
    step(Method::PUT, path, body)
}
fn patch(path: &str, body: Value) -> Step {
    step(Method::PATCH, path, body)
}
fn delete(path: &str, body: Value) -> Step {
    step(Method::DELETE, path, body)
}
fn with_uid(uid: &str) -> Value {
    json!({"preconditions": {"uid": uid}})
}

#[allow(clippy::needless_pass_by_value)]
fn computer(name: &str, more: Value) -> Value {
    let mut metadata = json!({"name": name});
    for (key, value) in more.as_object().into_iter().flatten() {
        metadata[key] = value.clone();
    }
    json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": metadata, "spec": {"className": "standard"}})
}

fn at(base: &str, name: &str) -> String {
    format!("{base}/{name}")
}

fn life() -> Vec<Step> {
    let path = at(COMPUTERS, "a");
    vec![
        get(&path),
        delete(&path, json!({})),
        post(&format!("{COMPUTERS}?dryRun=All"), computer("a", json!({}))),
        get(&path),
        post(COMPUTERS, computer("a", json!({"labels": {"l": "1"}}))).keep("a"),
        post(COMPUTERS, computer("a", json!({}))),
        get(&path),
        patch(&path, json!({"spec": {"suspended": true}})),
        patch(&path, json!({"spec": {"suspended": true}})),
        delete(&path, with_uid("00000000-0000-0000-0000-000000000000")),
        delete(&path, json!({"preconditions": {"uid": "$uid:a", "resourceVersion": "1"}})),
        delete(&path, json!({"dryRun": ["All"]})),
        get(&path),
        delete(&path, with_uid("$uid:a")),
        get(&path),
    ]
}

fn again() -> Vec<Step> {
    let path = at(COMPUTERS, "b");
    vec![
        post(COMPUTERS, computer("b", json!({}))).keep("first"),
        delete(&path, json!({})),
        post(COMPUTERS, computer("b", json!({}))).keep("second"),
        delete(&path, with_uid("$uid:first")),
        patch(
            &path,
            json!([{"op": "test", "path": "/metadata/uid", "value": "$uid:first"}, {"op": "add", "path": "/metadata/labels", "value": {"x": "y"}}]),
        ),
        put(&path, {
            let mut body = computer("b", json!({"uid": "$uid:first"}));
            body["metadata"]["resourceVersion"] = json!("$rv:second");
            body
        }),
        get(&path),
        delete(&path, with_uid("$uid:second")),
    ]
}

fn finalizers() -> Vec<Step> {
    let path = at(COMPUTERS, "f");
    let add = |first: bool| {
        if first {
            json!({"op": "add", "path": "/metadata/finalizers", "value": [FINALIZER]})
        } else {
            json!({"op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER})
        }
    };
    let fence = |name: &str| {
        [
            json!({"op": "test", "path": "/metadata/uid", "value": format!("$uid:{name}")}),
            json!({"op": "test", "path": "/metadata/resourceVersion", "value": format!("$rv:{name}")}),
        ]
    };
    let fenced = |name: &str, operation: Value| json!([fence(name)[0], fence(name)[1], operation]);
    vec![
        post(COMPUTERS, computer("f", json!({}))).keep("f"),
        patch(&path, fenced("f", add(true))).keep("held"),
        patch(&path, fenced("f", add(false))),
        delete(&path, with_uid("$uid:f")).keep("dying"),
        delete(&path, with_uid("$uid:f")),
        post(COMPUTERS, computer("f", json!({}))),
        patch(&path, json!([{"op": "add", "path": "/metadata/finalizers/-", "value": "theirs.example/late"}])),
        patch(&path, json!({"spec": {"displayName": "late"}})).keep("changed"),
        patch(&path, fenced("dying", json!({"op": "remove", "path": "/metadata/finalizers/0"}))),
        patch(&path, fenced("changed", json!({"op": "remove", "path": "/metadata/finalizers/0"}))),
        get(&path),
        patch(&path, fenced("changed", json!({"op": "remove", "path": "/metadata/finalizers/0"}))),
    ]
}

fn statuses() -> Vec<Step> {
    let path = at(COMPUTERS, "s");
    let status = format!("{path}/status");
    let write = |uid: &str, phase: &str| json!([{"op": "test", "path": "/metadata/uid", "value": uid}, {"op": "add", "path": "/status", "value": {"phase": phase}}]);
    vec![
        post(COMPUTERS, computer("s", json!({}))).keep("s"),
        patch(&status, write("$uid:s", "Provisioning")).keep("one"),
        patch(&status, write("$uid:s", "Provisioning")),
        patch(&status, write("wrong", "Active")),
        patch(&path, json!([{"op": "add", "path": "/status", "value": {"phase": "Active"}}])),
        patch(&path, json!([{"op": "test", "path": "/metadata/nothing", "value": 1}])),
        put(&path, {
            let mut stale = computer("s", json!({}));
            stale["metadata"]["resourceVersion"] = json!("$rv:s");
            stale
        }),
        get(&path),
        delete(&path, json!({})),
    ]
}

fn records() -> Vec<Step> {
    let record = |version: Option<&str>, credential: &str| {
        let mut record = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerRecord", "metadata": {"name": "r"},
            "spec": {"namespace": "t", "computer": "c", "state": {"credential": credential}}});
        if let Some(version) = version {
            record["metadata"]["resourceVersion"] = json!(version);
        }
        record
    };
    let path = at(RECORDS, "r");
    vec![
        post(RECORDS, record(None, "Pending")).keep("one"),
        post(RECORDS, record(None, "Pending")),
        put(&path, record(Some("$rv:one"), "Live")).keep("two"),
        put(&path, record(Some("$rv:one"), "Revoked")),
        put(&path, record(Some("$rv:two"), "Live")),
        put(&at(RECORDS, "none"), {
            let mut other = record(None, "Live");
            other["metadata"]["name"] = json!("none");
            other
        }),
        delete(&path, with_uid("$uid:two")),
    ]
}

fn classes() -> Vec<Step> {
    let class = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerClass", "metadata": {"name": "k"},
        "spec": {"podTemplate": {"spec": {"containers": []}}}});
    vec![post(CLASSES, class.clone()).keep("k"), post(CLASSES, class), delete(&at(CLASSES, "k"), json!({})), get(&at(CLASSES, "k"))]
}

fn secrets() -> Vec<Step> {
    let base = format!("{CORE}/secrets");
    let path = at(&base, "k");
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "k", "labels": {"l": "1"}}, "immutable": true, "stringData": {"token": "t"}});
    vec![
        delete(&path, json!({"dryRun": ["All"]})),
        post(&base, secret.clone()).keep("k"),
        post(&base, secret),
        delete(&path, json!({"dryRun": ["All"]})),
        delete(&path, with_uid("00000000-0000-0000-0000-000000000000")),
        delete(&path, with_uid("$uid:k")),
        delete(&path, with_uid("$uid:k")),
    ]
}

fn claims() -> Vec<Step> {
    let base = format!("{CORE}/persistentvolumeclaims");
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}});
    vec![
        get(&at(&base, "c")),
        post(&base, claim.clone()).keep("c"),
        post(&base, claim),
        delete(&at(&base, "c"), with_uid("00000000-0000-0000-0000-000000000000")),
        delete(&at(&base, "c"), with_uid("$uid:c")),
    ]
}

fn volumes() -> Vec<Step> {
    let base = "/api/v1/persistentvolumes";
    let path = at(base, "scripts-v");
    let reference =
        |uid: &str| json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "nowhere", "name": "n", "uid": uid});
    let one = "11111111-1111-1111-1111-111111111111";
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "scripts-v"}, "spec": {"capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/nowhere"}, "claimRef": reference(one)}});
    let moved = |from: &str, to: &str| {
        json!([{"op": "test", "path": "/metadata/uid", "value": "$uid:v"}, {"op": "test", "path": "/spec/claimRef/uid", "value": from},
        {"op": "replace", "path": "/spec/claimRef", "value": reference(to)}])
    };
    vec![
        post(base, volume).keep("v"),
        patch(&path, moved("22222222-2222-2222-2222-222222222222", one)),
        patch(
            &path,
            json!([{"op": "test", "path": "/metadata/uid", "value": "wrong"}, {"op": "add", "path": "/spec/persistentVolumeReclaimPolicy", "value": "Delete"}]),
        ),
        delete(&path, with_uid("00000000-0000-0000-0000-000000000000")),
    ]
}

fn pods() -> Vec<Step> {
    let base = format!("{CORE}/pods");
    let pod = |name: &str, node: bool| {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "finalizers": ["computer-operator.dev/stopped"]},
            "spec": {"terminationGracePeriodSeconds": 10, "containers": [{"name": "c", "image": "i"}]}});
        if node {
            pod["spec"]["nodeName"] = json!("nowhere");
        }
        pod
    };
    let off = json!([{"op": "test", "path": "/metadata/finalizers/0", "value": "computer-operator.dev/stopped"}, {"op": "remove", "path": "/metadata/finalizers/0"}]);
    vec![
        post(&base, pod("placed", true)).keep("placed"),
        delete(&at(&base, "placed"), with_uid("$uid:placed")),
        delete(&at(&base, "placed"), with_uid("$uid:placed")),
        delete(&at(&base, "placed"), json!({"gracePeriodSeconds": 0})),
        patch(&at(&base, "placed"), off.clone()),
        get(&at(&base, "placed")),
        post(&base, pod("unplaced", false)).keep("unplaced"),
        delete(&at(&base, "unplaced"), with_uid("$uid:unplaced")),
        patch(&at(&base, "unplaced"), off.clone()),
        patch(&at(&base, "unplaced"), off),
    ]
}

fn terminating() -> Vec<Step> {
    let computers = "/apis/computer-operator.dev/v1alpha1/namespaces/going/computers";
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "going"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late"}});
    vec![
        post(computers, computer("early", json!({}))),
        post("/api/v1/namespaces", namespace).keep("going"),
        post(computers, computer("held", json!({"finalizers": [FINALIZER]}))).keep("held"),
        delete("/api/v1/namespaces/going", json!({})),
        post(computers, computer("late", json!({}))),
        post("/api/v1/namespaces/going/secrets", secret),
        patch(&at(computers, "held"), json!({"spec": {"suspended": true}})).keep("still"),
    ]
}
