//! The HTTP side of the API server as a `tower` service, for `kube::Client`.

use axum::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::{Value, json};

use super::failure::{Answer, Failure};
use super::kinds::{self, Kind};
use super::value::at;
use super::verbs::{DeleteOptions, Part};
use super::watch;
use crate::faults::{Side, Verdict};
use crate::world::{Caller, World};

pub type SimBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// The target of a request.
pub struct Target {
    pub kind: Kind,
    pub namespace: String,
    pub name: Option<String>,
    pub status: bool,
    query: Vec<(String, String)>,
}

impl Target {
    fn parse(uri: &axum::http::Uri) -> Option<Self> {
        let mut parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        let group = match *parts.first()? {
            "api" => {
                parts.drain(..2);
                ""
            }
            "apis" => {
                let group = parts.get(1)?.to_owned();
                parts.drain(..3);
                group
            }
            _ => return None,
        };
        let namespace = if parts.first() == Some(&"namespaces") && parts.len() > 2 {
            let namespace = parts[1].to_owned();
            parts.drain(..2);
            namespace
        } else {
            String::new()
        };
        let meta = kinds::find(group, parts.first()?)?;
        let pairs = uri.query().unwrap_or_default().split('&').filter_map(|p| p.split_once('='));
        let query = pairs.map(|(k, v)| (k.to_owned(), decode(v))).collect();
        let name = parts.get(1).map(|n| (*n).to_owned());
        Some(Self { kind: meta.plural, namespace, name, status: parts.get(2) == Some(&"status"), query })
    }

    fn query(&self, key: &str) -> &str {
        self.query.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v)
    }

    fn part(&self) -> Part {
        if self.status { Part::Status } else { Part::Main }
    }
}

/// The percent-decoding that selectors need.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex: Option<Vec<u8>> = (byte == b'%').then(|| rest.by_ref().take(2).collect());
        let value = hex.and_then(|h| u8::from_str_radix(std::str::from_utf8(&h).ok()?, 16).ok());
        bytes.push(value.unwrap_or(if byte == b'+' { b' ' } else { byte }));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Serves one request, with its faults.
pub async fn handle(world: World, caller: Caller, request: Request<Body>) -> Result<Response<SimBody>, std::io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let Some(target) = Target::parse(&parts.uri) else { return Ok(answer(404, &json!({"message": "404 page not found"}))) };
    if parts.method == Method::GET && target.name.is_none() {
        world.open(&caller, target.kind);
    }
    if parts.method == Method::GET && target.query("watch") == "true" {
        return open(&world, &caller, &target).await;
    }
    let dry = if target.query("dryRun").is_empty() { "" } else { " (dry run)" };
    let what = format!("{} {}{dry}", parts.method, parts.uri.path());
    let counted = target.name.is_some() || parts.method != Method::GET;
    let n = if counted && target.kind != "leases" { world.count(&caller) } else { None };
    world.latency(&caller).await;
    if !counted && world.faults().unreachable(&caller) {
        return Err(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "the simulation refuses the connection"));
    }
    if let Some(failed) = verdict(world.fire(&caller, n, Side::Before, &what).await) {
        return failed;
    }
    let result = world.with(|s| perform(s, &caller, &parts.method, &target, &parts.headers, &body));
    world.journal(&caller, n, &what, &result);
    world.notify();
    if let Some(failed) = verdict(world.fire(&caller, n, Side::After, &what).await) {
        return failed;
    }
    world.latency(&caller).await;
    world.dead_wait(&caller).await;
    Ok(match result {
        Ok(value) => answer(if parts.method == Method::POST { 201 } else { 200 }, &value),
        Err(failure) => answer(failure.code, &failure.body()),
    })
}

fn verdict(verdict: Verdict) -> Option<Result<Response<SimBody>, std::io::Error>> {
    match verdict {
        Verdict::Go => None,
        Verdict::Reset => Some(Err(std::io::Error::new(std::io::ErrorKind::ConnectionReset, "the simulation cuts the connection"))),
        Verdict::Answer(failure) => Some(Ok(answer(failure.code, &failure.body()))),
    }
}

async fn open(world: &World, caller: &Caller, target: &Target) -> Result<Response<SimBody>, std::io::Error> {
    world.latency(caller).await;
    world.dead_wait(caller).await;
    if world.faults().unreachable(caller) {
        return Err(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "the simulation refuses the connection"));
    }
    let request = watch::Request {
        kind: target.kind,
        namespace: target.namespace.clone(),
        selector: target.query("labelSelector").to_owned(),
        from: target.query("resourceVersion").parse().unwrap_or_else(|_| world.with(|s| s.rv())),
        seconds: target.query("timeoutSeconds").parse().unwrap_or(290),
    };
    let frames = watch::open(world, caller, request).map_ok(hyper::body::Frame::data);
    Ok(Response::new(BodyExt::boxed_unsync(StreamBody::new(frames))))
}

fn answer(code: u16, value: &Value) -> Response<SimBody> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn perform(
    state: &mut super::State,
    caller: &Caller,
    method: &Method,
    target: &Target,
    headers: &axum::http::HeaderMap,
    body: &[u8],
) -> Answer {
    let json = || serde_json::from_slice::<Value>(body).map_err(|e| Failure::bad_request(e.to_string()));
    let (kind, within) = (target.kind, target.namespace.as_str());
    let dry_run = !target.query("dryRun").is_empty();
    let Some(name) = target.name.as_deref() else {
        return match *method {
            Method::GET => Ok(state.list(kind, within, target.query("labelSelector"))),
            Method::POST if kind == "tokenreviews" => Ok(review(state, &json()?)),
            Method::POST => state.create(caller.actor, kind, within, json()?, dry_run),
            _ => Err(Failure::bad_request("no such verb on a collection".to_owned())),
        };
    };
    match *method {
        Method::GET => {
            let found = state.read(kind, within, name);
            if found.is_err() {
                state.observer.observed_absent(caller.actor, kind, within, name);
            }
            found
        }
        Method::PUT => state.update(caller.actor, kind, within, name, json()?, target.part()),
        Method::DELETE => state.delete(caller.actor, kind, within, name, &delete_options(&json().unwrap_or_default(), dry_run)),
        Method::PATCH => {
            let patch = json()?;
            match headers.get("content-type").and_then(|v| v.to_str().ok()) {
                Some("application/json-patch+json") => state.json_patch(caller.actor, (kind, within, name), &patch, target.part()),
                Some("application/merge-patch+json") => state.merge_patch(caller.actor, (kind, within, name), &patch, target.part()),
                other => Err(Failure::bad_request(format!("the simulation knows no patch of type {other:?}"))),
            }
        }
        _ => Err(Failure::bad_request("no such verb".to_owned())),
    }
}

fn delete_options(body: &Value, dry_run: bool) -> DeleteOptions {
    let text = |pointer: &str| at(body, pointer).and_then(Value::as_str).map(str::to_owned);
    DeleteOptions {
        dry_run: dry_run || body["dryRun"].as_array().is_some_and(|d| !d.is_empty()),
        uid: text("/preconditions/uid"),
        resource_version: text("/preconditions/resourceVersion"),
        grace: body["gracePeriodSeconds"].as_i64(),
        propagation: text("/propagationPolicy"),
    }
}

/// Tokens of pods are `pod/<namespace>/<name>/<uid>`, valid while the pod exists.
fn review(state: &super::State, body: &Value) -> Value {
    let mut review = body.clone();
    let token = at(body, "/spec/token").and_then(Value::as_str).unwrap_or_default();
    let parts: Vec<&str> = token.split('/').collect();
    let found = match parts.as_slice() {
        ["pod", namespace, name, uid] => state.get("pods", namespace, name).filter(|p| super::value::uid(p) == *uid),
        _ => None,
    };
    let Some(pod) = found else {
        review["status"] = json!({"authenticated": false});
        return review;
    };
    let account = at(pod, "/spec/serviceAccountName").and_then(Value::as_str).unwrap_or("default");
    let user = format!("system:serviceaccount:{}:{account}", super::value::namespace(pod));
    let extra = json!({"authentication.kubernetes.io/pod-name": [super::value::name(pod)], "authentication.kubernetes.io/pod-uid": [super::value::uid(pod)]});
    review["status"] = json!({"authenticated": true, "audiences": body["spec"]["audiences"], "user": {"username": user, "extra": extra}});
    review
}
