//! Compares the simulated API server with a real one: the same requests go to both, and every answer must agree in code, reason, message
//! and the fields that the operator reads. Needs Go, not root.

use std::collections::BTreeMap;

use axum::http::{Method, Request};
use computer_operator::resources::crds;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use xtask::cluster::{Cluster, Options, Profile};

use crate::api::Actor;
use crate::faults::Faults;
use crate::run;
use crate::world::{Caller, World};

/// One request. `$uid:x` and `$rv:x` in the body are replaced by those of the answer that was saved as `x`.
pub struct Step {
    pub method: Method,
    pub path: String,
    pub body: Value,
    pub keep: &'static str,
}

pub fn step(method: Method, path: &str, body: Value) -> Step {
    Step { method, path: path.to_owned(), body, keep: "" }
}

impl Step {
    pub fn keep(self, keep: &'static str) -> Self {
        Self { keep, ..self }
    }
}

/// Runs all scripts; returns whether all answers agree.
pub fn run_all() -> bool {
    let scripts = crate::scripts::all();
    let simulated: Vec<_> = run::in_simulated_time(async {
        let world = World::new(1, Faults::default());
        let client = world.client(&Caller::new(Actor::Tenant));
        let answers = answers(&client, &scripts).await;
        world.end();
        answers
    });
    let real = tokio::runtime::Runtime::new().expect("a runtime").block_on(real(&scripts)).expect("a real API server");
    let mut differ = 0;
    for ((name, what, simulated), (_, _, real)) in simulated.iter().zip(&real) {
        if simulated != real {
            differ += 1;
            println!("FAILED  {name}: {what}\n        real:      {real}\n        simulated: {simulated}");
        }
    }
    println!("{} of {} answers of {} scripts agree with the real API server", real.len() - differ, real.len(), scripts.len());
    differ == 0
}

async fn real(scripts: &[(&'static str, Vec<Step>)]) -> anyhow::Result<Vec<(&'static str, String, Value)>> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir()?;
    let options = Options { dir: Some(folder.path().join("cluster")), bound: true, ..Options::default() };
    let cluster = Cluster::up_with("conformance", Profile::ControlPlane, options).await?;
    let file = kube::config::Kubeconfig::read_from(cluster.kubeconfig())?;
    let config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let api: kube::Api<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> =
        kube::Api::all(client.clone());
    for crd in crds::all() {
        api.create(&kube::api::PostParams::default(), &crd).await?;
    }
    for plural in ["computers", "computerrecords", "computerclasses"] {
        let path = format!("/apis/computer-operator.dev/v1alpha1/{plural}");
        until(|| send(&client, Method::GET, &path, &Value::Null), |(code, _)| *code == 200).await?;
    }
    Ok(answers(&client, scripts).await)
}

/// Repeats the request until the answer is as expected, for at most half a minute.
async fn until<F: Future<Output = (u16, Value)>>(ask: impl Fn() -> F, fits: impl Fn(&(u16, Value)) -> bool) -> anyhow::Result<()> {
    for _ in 0..300 {
        if fits(&ask().await) {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    anyhow::bail!("the API server is not ready in time")
}

async fn send(client: &Client, method: Method, path: &str, body: &Value) -> (u16, Value) {
    let kind = match (&method, body) {
        (&Method::PATCH, Value::Array(_)) => "application/json-patch+json",
        (&Method::PATCH, _) => "application/merge-patch+json",
        _ => "application/json",
    };
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).header("content-type", kind).header("accept", "application/json");
    let answer = client.send(request.body(Body::from(bytes)).expect("a request")).await.expect("an answer");
    let code = answer.status().as_u16();
    let bytes = answer.into_body().collect_bytes().await.expect("a body");
    (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes).trim())))
}

async fn answers(client: &Client, scripts: &[(&'static str, Vec<Step>)]) -> Vec<(&'static str, String, Value)> {
    let mut all = Vec::new();
    for (name, steps) in scripts {
        let mut kept: BTreeMap<&str, Value> = BTreeMap::new();
        for step in steps {
            let mut body = step.body.clone();
            fill(&mut body, &kept);
            // Pods can be created only once the namespace has its ServiceAccount.
            let mut answer = send(client, step.method.clone(), &step.path, &body).await;
            for _ in 0..100 {
                if answer.0 != 403 || !answer.1["message"].as_str().is_some_and(|m| m.contains("serviceaccount")) {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                answer = send(client, step.method.clone(), &step.path, &body).await;
            }
            let seen = seen(&answer, &kept);
            if !step.keep.is_empty() {
                kept.insert(step.keep, answer.1);
            }
            all.push((*name, format!("{} {} {}", step.method, step.path, step.body), seen));
        }
    }
    all
}

fn fill(body: &mut Value, kept: &BTreeMap<&str, Value>) {
    match body {
        Value::String(text) => {
            if let Some((what, name)) = text.strip_prefix('$').and_then(|t| t.split_once(':')) {
                let field = if what == "uid" { "uid" } else { "resourceVersion" };
                *body = kept[name]["metadata"][field].clone();
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| fill(v, kept)),
        Value::Object(map) => map.values_mut().for_each(|v| fill(v, kept)),
        _ => {}
    }
}

/// A number in brackets is a resourceVersion, which differs between servers.
fn without_versions(message: &str) -> String {
    let number = |part: &str| part.split_once(')').is_some_and(|(n, _)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let mut parts = message.split('(');
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        all.push('(');
        all.push_str(if number(part) { &part[part.find(')').unwrap_or(0)..] } else { part });
    }
    all
}

/// The parts that must agree: everything except UIDs, versions, times, and defaults of built-in kinds that only the real server sets.
fn seen((code, value): &(u16, Value), kept: &BTreeMap<&str, Value>) -> Value {
    let mut text = value.to_string();
    for (name, object) in kept {
        for (field, what) in [("uid", "uid"), ("resourceVersion", "rv")] {
            if let Some(found) = object["metadata"][field].as_str().filter(|f| f.len() > 3) {
                text = text.replace(found, &format!("${what}:{name}"));
            }
        }
    }
    let mut value: Value = serde_json::from_str(&text).unwrap_or_default();
    if let Some(message) = value["message"].as_str() {
        value["message"] = json!(without_versions(message));
    }
    if value["kind"] == "Status" {
        let details = &value["details"];
        let causes: Vec<&Value> =
            details["causes"].as_array().into_iter().flatten().filter(|c| c["reason"] == "NamespaceTerminating").collect();
        return json!({"code": code, "status": value["status"], "reason": value["reason"], "message": value["message"],
            "name": details["name"], "kind": details["kind"], "uid": details["uid"], "causes": causes});
    }
    let metadata = &value["metadata"];
    let ours = value["apiVersion"].as_str().is_some_and(|v| v.starts_with("computer-operator.dev"));
    let mut seen = json!({"code": code, "kind": value["kind"], "deleting": metadata["deletionTimestamp"].is_string(), "uid": metadata["uid"].is_string()});
    for field in ["name", "namespace", "labels", "annotations", "finalizers", "ownerReferences", "deletionGracePeriodSeconds"] {
        seen[field] = metadata[field].clone();
    }
    if ours {
        seen["generation"] = metadata["generation"].clone();
        seen["spec"] = value["spec"].clone();
        seen["status"] = value["status"].clone();
    } else {
        seen["phase"] = value["status"]["phase"].clone();
        seen["data"] = value["data"].clone();
        seen["policy"] = value["spec"]["persistentVolumeReclaimPolicy"].clone();
        seen["claimRef"] = value["spec"]["claimRef"]["uid"].clone();
    }
    seen
}
