//! The kinds on a real API server: every definition is accepted and served, validation rules reject requests with helpful messages, `kubectl explain`
//! has a text for every field, and the printer columns are as documented. Needs Go, not root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use computer_operator::resources::{Computer, ComputerClass, crds};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{JSONSchemaProps, JSONSchemaPropsOrArray};
use serde_json::{Value, json};
use xtask::cluster::{Cluster, Options, Profile};

#[path = "api_server/classes.rs"]
mod classes;
#[path = "api_server/examples.rs"]
mod examples;

const UID: &str = "0b4f9f3e-5d1c-4a53-8a0e-3a9c0f8f6f11";

struct Server {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    _cluster: Cluster,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts a control plane for this test with the operator's kinds installed.
    async fn up() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { dir: Some(folder.path().join("cluster")), bound: true, ..Options::default() };
        let cluster = Cluster::up_with("kinds", Profile::ControlPlane, options).await.expect("a control plane");
        let server =
            Self { kubectl: cluster.kubectl().unwrap(), kubeconfig: cluster.kubeconfig().to_owned(), _cluster: cluster, _folder: folder };
        let all = crds::files().unwrap().into_iter().map(|(_, yaml)| yaml).collect::<Vec<_>>().join("\n---\n");
        server.kubectl(&["apply", "-f", "-"], &all).expect("every CRD is accepted");
        server.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"], "").expect("established");
        for crd in crds::all() {
            let deadline = Instant::now() + Duration::from_secs(30);
            // Established does not mean that the kind is served.
            while let Err(error) = server.kubectl(&["get", &crd.spec.names.plural, "-A"], "") {
                assert!(Instant::now() < deadline, "{} is not served: {error}", crd.spec.names.plural);
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        server
    }

    fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(&self.kubectl);
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn create(&self, kind: &str, name: &str, spec: &Value) -> Result<String, String> {
        let object = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        self.kubectl(&["create", "-f", "-"], &object.to_string())
    }

    fn change(&self, plural: &str, name: &str, spec: &Value) -> Result<String, String> {
        self.kubectl(&["patch", plural, name, "--type=merge", "-p", &json!({"spec": spec}).to_string()], "")
    }
}

/// Requires a rejection with this message.
fn rejected(what: &str, result: Result<String, String>, message: &str) {
    let error = result.expect_err(&format!("{what}: accepted"));
    assert!(error.contains(message), "{what}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kinds_on_a_real_api_server() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let server = Server::up().await;
    computers_are_validated(&server);
    classes_are_validated(&server);
    overrides_are_validated(&server);
    holds_and_erasures_are_validated(&server);
    sessions_and_keys_are_validated(&server);
    a_revoked_credential_stays_revoked(&server);
    printer_columns_are_as_documented(&server);
    kubectl_explains_every_field(&server);
    every_accepted_object_can_be_deserialized(&server).await;
    examples::every_example_is_accepted(&server);
    classes::the_path_of_a_key_is_validated(&server);
    classes::a_class_is_checked_where_its_archive_pods_run(&server).await;
}

/// The operator can deserialize everything that the API server accepts: a single unreadable object would hide all others of its kind (L3).
async fn every_accepted_object_can_be_deserialized(server: &Server) {
    let template = json!({"spec": {}});
    for (kind, spec) in [
        ("Computer", json!({"className": null, "displayName": null, "remoteUser": null, "timeToLiveSeconds": null, "storage": null})),
        ("Computer", json!({"storage": {"size": 7}, "repositories": null, "suspended": null, "provider": null})),
        ("Computer", json!(null)),
        ("ComputerClass", json!({"podTemplate": template, "storage": {"size": 7}, "limits": {"maxStorage": 9}})),
        (
            "ComputerClass",
            json!({"podTemplate": template, "storage": {"size": null, "storageClassName": null}, "limits": {"maxStorage": null}}),
        ),
        ("ComputerClass", json!({"podTemplate": template, "storage": null, "limits": null, "deadlines": null, "archive": null})),
        ("ComputerClass", json!({"podTemplate": template, "archive": {"policy": null}, "deadlines": {"stopPodsSeconds": null}})),
        ("ComputerClass", json!({"podTemplate": template, "key": null})),
        ("ComputerClass", json!({"podTemplate": template, "key": {"mountPath": null, "allow": null}})),
        ("ComputerClass", json!({"podTemplate": null})),
    ] {
        let name = format!("odd-{}", hex::encode(&<sha2::Sha256 as sha2::Digest>::digest(spec.to_string())[..8]));
        // A rejection is fine, too: then the object does not exist.
        let _ = server.create(kind, &name, &spec);
    }
    let (file, options) = (kube::config::Kubeconfig::read_from(&server.kubeconfig).unwrap(), kube::config::KubeConfigOptions::default());
    let client = kube::Client::try_from(kube::Config::from_custom_kubeconfig(file, &options).await.unwrap()).unwrap();
    let all = kube::api::ListParams::default();
    let computers = kube::Api::<Computer>::all(client.clone()).list(&all).await.expect("computers can be listed");
    assert!(computers.items.iter().any(|c| c.spec.storage.as_ref().is_some_and(|s| s.size.0 == "7")), "a size may be a number");
    kube::Api::<ComputerClass>::all(client).list(&all).await.expect("classes can be listed");
}

/// S8: a revoked credential stays revoked, regardless of the client and the kind of the write.
fn a_revoked_credential_stays_revoked(server: &Server) {
    let record = |credential: &str| json!({"namespace": "default", "computer": "box", "state": {"credential": credential}});
    server.create("ComputerRecord", UID, &record("Pending")).expect("a record");
    for next in ["Live", "Revoked"] {
        server.change("computerrecord", UID, &record(next)).expect(next);
    }
    let more = json!({"state": {"ending": {"cause": "TimeToLiveExpired", "at": "2026-01-01T00:00:00.000000Z"}, "keyHash": "0"}});
    server.change("computerrecord", UID, &more).expect("other fields may change");
    for again in [record("Live"), record("Pending"), json!({"state": null}), json!({"state": {"credential": null}})] {
        rejected(&again.to_string(), server.change("computerrecord", UID, &again), "a revoked credential stays revoked");
    }
}

fn computers_are_validated(server: &Server) {
    server.create("Computer", "box", &json!({"className": "standard", "storage": {"size": "10Gi"}})).expect("a typical computer");
    let provider = server.kubectl(&["get", "computer", "box", "-o", "jsonpath={.spec.provider} {.spec.suspended}"], "").unwrap();
    assert_eq!(provider, "Managed false", "the API server applies the defaults");
    server.change("computer", "box", &json!({"suspended": true, "displayName": "A box"})).expect("mutable fields");
    server.create("Computer", "mine", &json!({"provider": "BYOM"})).expect("a BYOM machine");
    server.create("Computer", "plain", &json!({})).expect("everything has a default");

    let (class, storage) = ("className cannot be changed: delete this Computer", "storage cannot be changed: delete this Computer");
    for (change, message) in [
        (json!({"className": "other"}), class),
        (json!({"className": null}), class),
        (json!({"storage": {"size": "20Gi"}}), storage),
        (json!({"storage": null}), storage),
        (json!({"provider": "BYOM"}), "provider cannot be changed"),
    ] {
        rejected(&change.to_string(), server.change("computer", "box", &change), message);
    }
    rejected("a class later", server.change("computer", "plain", &json!({"className": "late"})), class);
    rejected("storage later", server.change("computer", "plain", &json!({"storage": {"size": "1Gi"}})), storage);

    rejected(
        "a suspended BYOM machine",
        server.change("computer", "mine", &json!({"suspended": true})),
        "suspended is not supported with provider BYOM",
    );
    an_object_stored_before_a_rule_can_be_updated(server);
    let byom = "className and storage are not supported with provider BYOM";
    for (spec, message) in [
        (json!({"provider": "BYOM", "className": "standard"}), byom),
        (json!({"provider": "BYOM", "storage": {"size": "1Gi"}}), byom),
        (json!({"provider": "BYOM", "suspended": true}), "suspended is not supported with provider BYOM"),
        (json!({"provider": "Other"}), "Unsupported value"),
        (json!({"storage": {"size": "much"}}), "must be a quantity above zero"),
        (json!({"storage": {"size": "-1Gi"}}), "must be a quantity above zero"),
        (json!({"storage": {"size": 0}}), "must be a quantity above zero"),
        (json!({"timeToLiveSeconds": 59}), "should be greater than or equal to 60"),
        (json!({"displayName": ""}), "should be at least 1 chars long"),
        (json!({"displayName": "x".repeat(64)}), "may not be more than 63"),
        (json!({"repositories": ["two words"]}), "should match"),
        (json!({"repositories": vec!["r"; 21]}), "must have at most 20 items"),
        (json!({"unknown": 1}), "unknown field"),
    ] {
        rejected(&spec.to_string(), server.create("Computer", "refused", &spec), message);
    }
}

/// A computer that an older version accepted although it violates a new rule can be updated and deleted: its finalizer can be removed, and its spec can
/// be fixed.
fn an_object_stored_before_a_rule_can_be_updated(server: &Server) {
    let rules = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations";
    let crd = || server.kubectl(&["get", "crd", "computers.computer-operator.dev", "-o", "json"], "").unwrap();
    let now: Value = serde_json::from_str(&crd()).unwrap();
    let all = now.pointer(rules).unwrap().as_array().unwrap();
    let older: Vec<&Value> = all.iter().filter(|r| !r["rule"].as_str().unwrap().contains("suspended")).collect();
    let set = |rules_now: &Value| {
        let patch = json!([{"op": "replace", "path": rules, "value": rules_now}]).to_string();
        server.kubectl(&["patch", "crd", "computers.computer-operator.dev", "--type=json", "-p", &patch], "").unwrap()
    };
    let old = |name: &str| server.create("Computer", name, &json!({"provider": "BYOM", "suspended": true}));
    set(&json!(older));
    until("the older rules are in effect", || old("old").is_ok());
    set(&json!(all));
    until("the rule is in effect again", || {
        let accepted = old("probe").is_ok();
        server.kubectl(&["delete", "computer", "probe", "--ignore-not-found"], "").unwrap();
        !accepted
    });
    let finalizers = |list: &str| {
        server.kubectl(&["patch", "computer", "old", "--type=merge", "-p", &format!(r#"{{"metadata":{{"finalizers":{list}}}}}"#)], "")
    };
    finalizers(r#"["computer-operator.dev/deletion"]"#).expect("a finalizer can be added");
    finalizers("[]").expect("a finalizer can be removed");
    let status = r#"{"status":{"phase":"Active"}}"#;
    server.kubectl(&["patch", "computer", "old", "--subresource=status", "--type=merge", "-p", status], "").expect("a status");
    server.change("computer", "old", &json!({"suspended": false})).expect("the spec can be fixed");
}

/// Waits for a condition.
fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "timed out after a minute: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn classes_are_validated(server: &Server) {
    let class = |more: Value| {
        let mut spec = json!({"podTemplate": {"spec": {"containers": [{"name": "c", "image": "i", "anything": {"goes": "here"}}]}}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    };
    server.create("ComputerClass", "standard", &class(json!({}))).expect("a typical class");
    server.create("ComputerClass", "whole-home", &class(json!({"sessionPaths": ["."]}))).expect("a class that archives the whole home");
    let found = server
        .kubectl(
            &["get", "computerclass", "standard", "-o", "jsonpath={.spec.archive.policy} {.spec.storage.size} {.spec.sessionPaths}"],
            "",
        )
        .unwrap();
    assert_eq!(found, r#"Required 10Gi [".factory/sessions",".claude/projects",".codex/sessions"]"#, "the safe policy is the default");
    let kept = server.kubectl(&["get", "computerclass", "standard", "-o", "jsonpath={.spec.podTemplate.spec.containers[0].anything}"], "");
    assert_eq!(kept.unwrap(), r#"{"goes":"here"}"#, "the template is not pruned");

    let outside = "a session path must be relative to the home and must not contain the parts '.' or '..'; '.' alone is the whole home";
    for (spec, message) in [
        (json!({"description": "no template"}), "spec.podTemplate: Required value"),
        (class(json!({"sessionPaths": ["../other"]})), outside),
        (class(json!({"sessionPaths": ["a/../../b"]})), outside),
        (class(json!({"sessionPaths": ["./"]})), outside),
        (class(json!({"sessionPaths": [".claude", "./a"]})), outside),
        (class(json!({"sessionPaths": ["/etc"]})), "should match"),
        (class(json!({"archive": {"policy": "Sometimes"}})), "Unsupported value"),
        (class(json!({"deadlines": {"stopPodsSeconds": 0}})), "should be greater than or equal to 1"),
        (class(json!({"storage": {"size": "much"}})), "must be a quantity above zero"),
        (class(json!({"storage": {"mountPath": "home"}})), "should match"),
        (class(json!({"limits": {"maxStorage": "much"}})), "must be a quantity above zero"),
    ] {
        rejected(&spec.to_string(), server.create("ComputerClass", "refused", &spec), message);
    }
}

fn overrides_are_validated(server: &Server) {
    let spec =
        |skip: Value, reason: &str| json!({"computer": {"namespace": "n", "name": "box", "uid": UID}, "skip": skip, "reason": reason});
    let reason = "the disk is lost";
    server.create("DeletionOverride", "one", &spec(json!(["archive-sessions"]), reason)).expect("a typical override");
    rejected(
        "a changed override",
        server.change("deletionoverride", "one", &json!({"skip": ["stop-pods"]})),
        "a DeletionOverride cannot be changed: create another one",
    );
    for (spec, message) in [
        (spec(json!(["revoke-credentials"]), reason), "Unsupported value"),
        (spec(json!([]), reason), "should have at least 1 items"),
        (spec(json!(["stop-pods", "stop-pods"]), reason), "Duplicate value"),
        (spec(json!(["stop-pods"]), "because"), "should be at least 10 chars long"),
        (
            json!({"computer": {"namespace": "n", "name": "box"}, "skip": ["stop-pods"], "reason": reason}),
            "spec.computer.uid: Required value",
        ),
    ] {
        rejected(&spec.to_string(), server.create("DeletionOverride", "refused", &spec), message);
    }
}

fn holds_and_erasures_are_validated(server: &Server) {
    let reason = "because of case 7";
    let hold = |mut what: Value| {
        (what["matter"], what["reason"]) = (json!("case 7"), json!(reason));
        what
    };
    server.create("ArchiveHold", "one", &hold(json!({"computerUID": UID}))).expect("a hold of a computer");
    server.create("ArchiveHold", "all", &hold(json!({"namespaceUID": UID}))).expect("a hold of a namespace");
    let changed = "an ArchiveHold cannot be changed: create another one";
    rejected("a changed hold", server.change("archivehold", "one", &json!({"matter": "another"})), changed);
    for what in [json!({}), json!({"computerUID": UID, "namespaceUID": UID})] {
        let spec = hold(what);
        rejected(&spec.to_string(), server.create("ArchiveHold", "refused", &spec), "name either a computerUID or a namespaceUID");
    }
    let short = json!({"computerUID": "u", "matter": "m", "reason": reason});
    rejected("a short UID", server.create("ArchiveHold", "refused", &short), "should be at least 36 chars long");
    let erasure = |reason: &str| json!({"computer": {"namespace": "n", "name": "box", "uid": UID}, "requestedBy": "ann", "reason": reason});
    server.create("ArchiveErasure", "one", &erasure(reason)).expect("an erasure");
    let changed = "an ArchiveErasure cannot be changed: create another one";
    rejected("a changed erasure", server.change("archiveerasure", "one", &json!({"requestedBy": "bob"})), changed);
    rejected("no reason", server.create("ArchiveErasure", "refused", &erasure("because")), "should be at least 10 chars long");
}

fn sessions_and_keys_are_validated(server: &Server) {
    server
        .create("Session", "s", &json!({"computerName": "box", "computerUID": UID, "path": ".codex/sessions/a.jsonl"}))
        .expect("a session");
    rejected("another computer", server.change("sessions", "s", &json!({"computerName": "other"})), "computerName cannot be changed");
    rejected("another UID", server.change("sessions", "s", &json!({"computerUID": "other"})), "computerUID cannot be changed");
    server.create("ApiKey", "k", &json!({"serviceAccountName": "caller"})).expect("a key");
    rejected(
        "another account",
        server.change("apikeys", "k", &json!({"serviceAccountName": "root"})),
        "serviceAccountName cannot be changed",
    );
}

fn printer_columns_are_as_documented(server: &Server) {
    let header = |arguments: &[&str]| {
        let text = server.kubectl(arguments, "").unwrap();
        text.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(header(&["get", "computers"]), "NAME READY STATUS STEP REASON CLASS AGE");
    assert_eq!(header(&["get", "comp", "-o", "wide"]), "NAME READY STATUS STEP REASON CLASS AGE PROVIDER POD NODE EXPIRES");
    // kubectl prints the object's own namespace in a column NAMESPACE.
    assert_eq!(header(&["get", "computerrecords", "-A"]), "NAMESPACE NAME COMPUTER NAMESPACE COMPUTER PHASE KEY SESSIONS LEFT OUT AGE");
    let row = |arguments: &[&str]| {
        let text = server.kubectl(arguments, "").unwrap();
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    server.create("Computer", "blocked", &json!({})).unwrap();
    let condition = |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status = json!({"status": {
        "phase": "Deleting", "step": "archive-sessions", "className": "standard", "nodeName": "n1", "expiresAt": "2026-01-01T00:10:00Z",
        "conditions": [condition("Ready", "False", "Deleting"), condition("Blocked", "True", "StoreUnavailable")],
        "children": {"pods": [{"name": "machine-1"}, {"name": "machine-2"}]},
    }});
    server.kubectl(&["patch", "computer", "blocked", "--subresource=status", "--type=merge", "-p", &status.to_string()], "").unwrap();
    let shown = row(&["get", "comp", "blocked", "-o", "wide", "--no-headers"]);
    assert_eq!(shown[..6], ["blocked", "False", "Deleting", "archive-sessions", "StoreUnavailable", "standard"].map(str::to_owned));
    assert_eq!(shown[7..], ["Managed", "machine-2", "n1", "2026-01-01T00:10:00Z"].map(str::to_owned));
    // A short name of one kind hides no other kind.
    let resources = server.kubectl(&["api-resources", "--no-headers"], "").unwrap();
    let named: Vec<&str> =
        resources.lines().filter(|line| line.split_whitespace().any(|word| word.split(',').any(|w| w == "comp"))).collect();
    assert!(named.len() == 1 && named[0].starts_with("computers "), "{named:?}");
    assert_eq!(header(&["get", "computerclasses"]), "NAME ACCEPTED ARCHIVE DESCRIPTION AGE");
    assert_eq!(header(&["get", "deletionoverrides"]), "NAME NAMESPACE COMPUTER SKIP ACCEPTED REASON AGE");
    assert_eq!(header(&["get", "archiveholds"]), "NAME COMPUTER UID NAMESPACE UID MATTER REASON AGE");
    assert_eq!(header(&["get", "archiveerasures"]), "NAME NAMESPACE COMPUTER COMPLETE STATE OBJECTS BYTES REQUESTED BY AGE");
    assert_eq!(header(&["get", "sessions"]), "NAME COMPUTER TITLE STATUS AGE");
    assert_eq!(header(&["get", "apikeys"]), "NAME SERVICEACCOUNT READY EXPIRES AGE");
}

/// `kubectl explain` of an object shows the descriptions of all its fields.
fn kubectl_explains_every_field(server: &Server) {
    for crd in crds::all() {
        let schema = crd.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()).expect("a schema");
        let mut paths = vec![crd.spec.names.plural.clone()];
        objects(&crd.spec.names.plural, schema, &mut paths);
        for path in paths {
            let text = server.kubectl(&["explain", &path], "").unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(!text.contains("Auto-generated"), "{path} has no description of the kind:\n{text}");
            assert!(!text.contains("<no description>") && !text.contains("<empty>"), "{path} has a field without a description:\n{text}");
        }
    }
}

/// The paths of all objects below a schema.
fn objects(path: &str, schema: &JSONSchemaProps, found: &mut Vec<String>) {
    for (name, field) in schema.properties.iter().flatten() {
        let inner = match &field.items {
            Some(JSONSchemaPropsOrArray::Schema(items)) => items,
            _ => field,
        };
        if inner.properties.is_some() {
            found.push(format!("{path}.{name}"));
            objects(&format!("{path}.{name}"), inner, found);
        }
    }
}
