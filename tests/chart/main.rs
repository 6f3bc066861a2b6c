//! The chart without a node: generated files match the code, every value renders what it promises, contradictory values are rejected, and a
//! real API server accepts every object. Needs Go, not root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binding;
mod drift;
mod fences;
mod package;
mod policies;
mod prometheus;
mod render;
mod schema;
mod server;
mod statuses;
mod upgrades;

use serde_json::Value;
use xtask::chart::Helm;

/// Arguments that make `helm template` render for a cluster of 1.36 or newer.
const SERVED: [&str; 2] = ["--api-versions", "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy"];

/// The objects that the chart renders with these values, including hooks.
fn render(release: &str, namespace: &str, set: &[&str]) -> Vec<Value> {
    objects(&helm().template(release, namespace, &[&SERVED, &flags(set)[..]].concat()).unwrap())
}

fn helm() -> Helm {
    Helm::new(None).unwrap()
}

fn flags<'a>(set: &[&'a str]) -> Vec<&'a str> {
    set.iter().flat_map(|value| ["--set", value]).collect()
}

/// The documents of a YAML stream.
fn objects(yaml: &str) -> Vec<Value> {
    use serde::Deserialize as _;
    let all = serde_yaml_ng::Deserializer::from_str(yaml).map(|document| Value::deserialize(document).unwrap());
    all.filter(|value| !value.is_null()).collect()
}

/// `Kind/name`.
fn id(object: &Value) -> String {
    format!("{}/{}", object["kind"].as_str().unwrap_or_default(), object["metadata"]["name"].as_str().unwrap_or_default())
}

fn one<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = all.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind}/{name} in {:?}", all.iter().map(id).collect::<Vec<_>>()))
}

/// Every pod spec among these objects: of Deployments, Jobs and pods.
fn pods(all: &[Value]) -> Vec<(String, &Value)> {
    let spec = |o: &'_ Value| match o["kind"].as_str() {
        Some("Deployment" | "Job") => Some("/spec/template/spec"),
        Some("Pod") => Some("/spec"),
        _ => None,
    };
    all.iter().filter_map(|o| Some((id(o), o.pointer(spec(o)?)?))).collect()
}
