//! Least privilege, proved by the API server's audit log: after the whole suite the operator has used every right it has, and forbidden
//! requests were refused. An unused right fails the suite, so that it is removed from the list.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use computer_operator::install::rbac;
use serde_json::{Value, json};

use crate::Scenario;
use crate::harness::{Bench, LONG, SYSTEM, eventually};

const ACCOUNT: &str = "system:serviceaccount:computer-operator-system:computer-operator";

/// Rights that these tests cannot use, each with a reason.
const ELSEWHERE: &[(&str, &str)] = &[
    // Checked by an admission policy, never requested: removing a finalizer is a patch.
    ("computer-operator.dev/computers", "release"),
    // Receipts and revoked records expire after days.
    ("computer-operator.dev/computerrecords", "delete"),
    ("computer-operator.dev/apikeyrecords", "delete"),
    // A repeated event within six minutes, for example of a key that is rotated twice.
    ("events.k8s.io/events", "patch"),
    // The volumes of these nodes are folders, which are never attached: tests/csi.
    ("storage.k8s.io/volumeattachments", "list"),
    // Live reads after a lost race, which may not happen here: tests/api_keys.
    ("computer-operator.dev/apikeys", "get"),
    ("computer-operator.dev/apikeyrecords", "get"),
];

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![
        what_the_operator_may_not_do,
        a_session_names_its_archived_copy,
        an_api_key_is_issued_and_revoked,
        the_key_of_a_computer_is_rotated
    ]
}

/// Requests with the operator's identity, as an attacker with its token would send them.
async fn what_the_operator_may_not_do(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("probe").await?;
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "theirs"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "theirs"}, "spec": crate::tenants::foreign_spec()});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "theirs"}, "stringData": {"a": "b"}});
    bench.kubectl(&["create", "-n", &namespace, "-f", "-"], &[claim, pod, secret].map(|o| o.to_string()).join("\n---\n")).await?;
    let identity = format!("--as={ACCOUNT}");
    for (arguments, message) in [
        (&["get", "secret", "theirs"][..], "cannot get resource \"secrets\""),
        (&["get", "secrets"], "cannot list resource \"secrets\""),
        (&["delete", "pod", "theirs", "--wait=false"], "only pods and claims that it created"),
        (&["label", "pod", "theirs", "a=b"], "only pods and claims that it created"),
        (&["delete", "pvc", "theirs", "--wait=false"], "only pods and claims that it created"),
        (&["label", "pvc", "theirs", "a=b"], "cannot patch resource \"persistentvolumeclaims\""),
        (&["create", "token", "default"], "cannot create resource \"serviceaccounts/token\""),
        (&["create", "configmap", "x"], "cannot create resource \"configmaps\""),
    ] {
        let all = [arguments, &["-n", &namespace, &identity]].concat();
        let error = match bench.kubectl(&all, "").await {
            Ok(said) => anyhow::bail!("{arguments:?} was allowed: {said}"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(error.contains(message), "{arguments:?}: {error}");
    }
    bench.kubectl(&["delete", "namespace", &namespace, "--wait=false"], "").await.map(drop)
}

async fn a_session_names_its_archived_copy(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("session").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let spec = json!({"computerName": "box", "computerUID": uid, "path": ".codex/sessions/2026/11/three.jsonl"});
    let session = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Session", "metadata": {"name": "three"}, "spec": spec});
    bench.kubectl(&["create", "-n", &namespace, "-f", "-"], &session.to_string()).await?;
    bench.delete(&namespace, "box", "background").await?;
    bench.archived(&uid, 3).await?;
    eventually("the Session is Archived", LONG, || async {
        let phase = bench.kubectl(&["get", "session", "three", "-n", &namespace, "-o", "jsonpath={.status.phase}"], "").await?;
        Ok((phase == "Archived").then_some(()))
    })
    .await
}

async fn an_api_key_is_issued_and_revoked(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("key").await?;
    bench.kubectl(&["create", "serviceaccount", "caller", "-n", &namespace], "").await?;
    let key = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": "key"}, "spec": {"serviceAccountName": "caller"}});
    bench.kubectl(&["create", "-n", &namespace, "-f", "-"], &key.to_string()).await?;
    let another = async |before: String| {
        eventually("a token is issued", LONG, || async {
            let name = bench.kubectl(&["get", "apikey", "key", "-n", &namespace, "-o", "jsonpath={.status.secretName}"], "").await?;
            Ok((!name.is_empty() && name != before).then_some(name))
        })
        .await
    };
    let first = another(String::new()).await?;
    bench.kubectl(&["patch", "apikey", "key", "-n", &namespace, "--type=merge", "-p", r#"{"spec":{"rotation":"2"}}"#], "").await?;
    another(first).await?;
    bench.kubectl(&["delete", "apikey", "key", "-n", &namespace, "--timeout=60s"], "").await.map(drop)
}

/// A leaked key is dead when the API server has accepted the rotation (S2); an overlap is the only way for two keys to be valid.
async fn the_key_of_a_computer_is_rotated(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("rotate").await?;
    let uid = bench.ready(&namespace, "box", json!({"provider": "BYOM"})).await?;
    let first = bench.token_of(&uid)?;
    ensure!(bench.authenticates(&first).await?, "the key of a ready computer");
    let rotate = async |key: Value| {
        let patch = json!({"spec": {"key": key}}).to_string();
        bench.kubectl(&["patch", "computer", "box", "-n", &namespace, "--type=merge", "-p", &patch], "").await
    };
    let another = async |before: &str| {
        eventually("another key", LONG, || async {
            // The Secret that the status names may just have been deleted.
            let token = bench.token(&namespace, "box").await.unwrap_or_default();
            Ok((!token.is_empty() && token != before).then_some(token))
        })
        .await
    };
    rotate(json!({"rotation": "2"})).await?;
    ensure!(!bench.authenticates(&first).await?, "S2: the old key is valid after its rotation");
    let second = another(&first).await?;
    ensure!(bench.authenticates(&second).await? && !bench.authenticates(&first).await?, "only the new key is valid");
    rotate(json!({"rotation": "3", "overlapSeconds": 600})).await?;
    let third = another(&second).await?;
    ensure!(bench.authenticates(&third).await? && bench.authenticates(&second).await?, "both are valid in the overlap");
    rotate(json!({"overlapSeconds": 0})).await?;
    ensure!(!bench.authenticates(&second).await?, "S2: the overlap was taken back");
    eventually("the old Secrets are gone", LONG, || async {
        let label = format!("computer-operator.dev/computer-uid={uid}");
        let names = bench.kubectl(&["get", "secrets", "-n", &namespace, "-l", &label, "-o", "name"], "").await?;
        Ok((names.lines().count() == 1).then_some(()))
    })
    .await?;
    bench.kubectl(&["wait", "computer/box", "-n", &namespace, "--for=condition=Ready", "--timeout=60s"], "").await?;
    bench.delete(&namespace, "box", "background").await?;
    bench.clean(&uid).await.map(drop)
}

/// Rights that the operator never used, as `group/resource verb`.
pub fn unused(audit_log: &Path) -> Result<Vec<String>> {
    let used = used(&std::fs::read_to_string(audit_log).context("the audit log")?);
    let roles = rbac::roles();
    let mut unused = Vec::new();
    for (role, own) in [("cluster", false), ("own", true)] {
        for (resource, verb) in rights(&roles["controller"][role]) {
            let elsewhere = ELSEWHERE.contains(&(resource.as_str(), verb.as_str()));
            if !elsewhere && !used.contains(&(resource.clone(), verb.clone(), own)) {
                unused.push(format!("{resource} {verb}"));
            }
        }
    }
    Ok(unused)
}

/// Every resource and verb of a list of rules.
fn rights(rules: &Value) -> Vec<(String, String)> {
    let texts = |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
    let mut all = Vec::new();
    for rule in rules.as_array().into_iter().flatten() {
        for resource in texts(&rule["resources"]) {
            let group = rule["apiGroups"][0].as_str().unwrap_or_default();
            all.extend(texts(&rule["verbs"]).into_iter().map(|verb| (format!("{group}/{resource}"), verb)));
        }
    }
    all
}

/// The operator's allowed requests: resource, verb, and whether it was in its own namespace. A use of `own` also counts for the cluster.
fn used(log: &str) -> BTreeSet<(String, String, bool)> {
    let mut all = BTreeSet::new();
    for event in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let allowed = event["annotations"]["authorization.k8s.io/decision"] == "allow";
        // The requests of the scenario above come from an admin who impersonates the operator.
        if event["user"]["username"] != ACCOUNT || !allowed {
            continue;
        }
        let object = &event["objectRef"];
        let text = |key: &str| object[key].as_str().unwrap_or_default();
        let resource = match text("subresource") {
            "" => text("resource").to_owned(),
            subresource => format!("{}/{subresource}", text("resource")),
        };
        let (resource, verb) = (format!("{}/{resource}", text("apiGroup")), event["verb"].as_str().unwrap_or_default().to_owned());
        all.insert((resource.clone(), verb.clone(), text("namespace") == SYSTEM));
        all.insert((resource, verb, false));
    }
    all
}
