//! Reads each `DeletionOverride` of a computer live and writes its status. It must never decide what an override skips: the deletion plan
//! does (S11), see `View::skipped`.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::apply::Error;
use super::view::View;
use crate::resources::DeletionOverride;
use crate::resources::conditions::{self, types};
use crate::resources::reasons::Reason;
use crate::runtime::client::{ErrorClass, call, classify};
use crate::runtime::patch;

/// The overrides of a view that still exist, as the API server returns them. The cache may still hold one that an admin has deleted (S11).
///
/// # Errors
/// When one cannot be read: then nothing may be decided.
pub async fn read_live(client: &Client, view: &View) -> Result<Vec<DeletionOverride>, Error> {
    let api: Api<DeletionOverride> = Api::all(client.clone());
    let mut existing = Vec::new();
    for cached in &view.overrides {
        match call(api.get(&cached.name_any())).await {
            Ok(live) if live.metadata.uid == cached.metadata.uid && live.metadata.deletion_timestamp.is_none() => existing.push(live),
            Ok(_) => {}
            Err(error) if classify(&error) == ErrorClass::NotFound => {}
            Err(source) => return Err(Error::call(format!("reading DeletionOverride {}", cached.name_any()), source)),
        }
    }
    Ok(existing)
}

/// Writes the condition `Accepted` where it is missing or outdated. Best effort: a failure is logged and the deletion continues. Returns whether all
/// of them are written.
pub async fn acknowledge(client: &Client, view: &View) -> bool {
    let mut written = true;
    for found in &view.overrides {
        let Some(patch) = patch(found, view) else { continue };
        let api: Api<DeletionOverride> = Api::all(client.clone());
        let params = PatchParams::default();
        let Err(error) = call(api.patch_status(&found.name_any(), &params, &Patch::<()>::Json(patch))).await else { continue };
        written = false;
        match classify(&error) {
            // The cache is stale: the status is already written, or the next reconcile writes it to the newer version.
            ErrorClass::Invalid | ErrorClass::Conflict | ErrorClass::NotFound => {
                tracing::debug!(name = found.name_any(), %error, "the status of the override was not written: the object has changed");
            }
            _ => tracing::warn!(name = found.name_any(), %error, "the status of the override was not written; it is retried"),
        }
    }
    written
}

/// What the override does, and what no override ever does (S5).
const IN_FORCE: &str = "the named steps are skipped, and the receipt records it. An override never removes finalizers of other controllers: if the \
    deletion is Blocked with PodHeld or ClaimHeld, wait for those controllers or remove the finalizers";

fn patch(found: &DeletionOverride, view: &View) -> Option<json_patch::Patch> {
    let mut status = found.status.clone().unwrap_or_default();
    let same_name = found.spec.computer.namespace == view.namespace && found.spec.computer.name == view.name;
    let (accepted, reason, message) = match (same_name, view.deleting()) {
        (false, _) => (false, Reason::NameMismatch, "the UID belongs to a computer of another name or namespace: nothing is skipped"),
        (true, true) => (true, Reason::InForce, IN_FORCE),
        (true, false) => (true, Reason::NotDeleting, "the computer is not being deleted; the override takes effect when it is"),
    };
    conditions::set(&mut status.conditions, types::ACCEPTED, accepted, reason, message, found.metadata.generation, &Time(now(view.now)));
    if found.status.as_ref() == Some(&status) {
        return None;
    }
    Some(json_patch::Patch(vec![
        patch::same_uid(&found.metadata),
        // Fenced by the version that was read: with a stale cache, every reconcile would write the same status again (L6).
        patch::same_version(&found.metadata),
        patch::add(["status"], json!(status)),
    ]))
}

fn now(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_an_override_says_what_it_does_and_what_no_override_does() {
        let condition = |deleting: bool, name: &str| {
            let deleted = deleting.then_some("2026-01-01T00:00:00Z");
            let view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u", "deletionTimestamp": deleted}, "spec": {}}));
            let target = json!({"namespace": "t", "name": name, "uid": "u"});
            let found = json!({"metadata": {"name": "o", "uid": "o"}, "spec": {"computer": target, "skip": ["stop-pods"], "reason": "the node is lost"}});
            serde_json::to_value(patch(&serde_json::from_value(found).unwrap(), &view).unwrap()).unwrap()[2]["value"]["conditions"][0]
                .clone()
        };
        let in_force = condition(true, "c");
        assert_eq!((&in_force["status"], &in_force["reason"]), (&json!("True"), &json!("InForce")));
        let message = in_force["message"].as_str().unwrap();
        assert!(message.contains("An override never removes finalizers of other controllers") && message.contains("PodHeld"), "{message}");
        assert_eq!(condition(false, "c")["reason"], "NotDeleting");
        assert_eq!((&condition(true, "other")["status"], &condition(true, "other")["reason"]), (&json!("False"), &json!("NameMismatch")));
    }

    /// S11: the cache still holds an override that an admin has deleted or replaced.
    #[tokio::test]
    async fn a_deleted_override_does_not_count_and_an_unknown_answer_is_an_error() {
        let of = |name: &str, uid: &str| json!({"metadata": {"name": name, "uid": uid}, "spec": {"computer": {"namespace": "t", "name": "c", "uid": "u"}, "skip": ["stop-pods"], "reason": "r"}});
        let mut view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}}));
        let server = move |request: axum::http::Request<kube::client::Body>| {
            let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let mut going = of("going", "3");
            going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            let (code, body) = match name.as_str() {
                "exists" => (200, of("exists", "1")),
                "another" => (200, of("another", "new")),
                "going" => (200, going),
                "gone" => (404, json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": ""})),
                _ => (503, json!({"kind": "Status", "status": "Failure", "code": 503, "reason": "ServiceUnavailable", "message": ""})),
            };
            let body = kube::client::Body::from(body.to_string().into_bytes());
            std::future::ready(Ok::<_, std::convert::Infallible>(axum::http::Response::builder().status(code).body(body).unwrap()))
        };
        let client = Client::new(tower::service_fn(server), "default");
        let cached = |name: &str, uid: &str| serde_json::from_value(of(name, uid)).unwrap();
        view.overrides = vec![cached("exists", "1"), cached("another", "old"), cached("going", "3"), cached("gone", "4")];
        let names: Vec<String> = read_live(&client, &view).await.unwrap().iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, ["exists"]);
        view.overrides.push(cached("unknown", "5"));
        assert!(read_live(&client, &view).await.is_err());
    }

    /// A reconcile that waits must not wait until the next event for a status that was not written.
    #[tokio::test]
    async fn a_status_that_was_not_written_is_reported_so_that_it_is_retried() {
        let metadata = json!({"name": "c", "namespace": "t", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        let mut view = View::of(json!({"metadata": metadata, "spec": {}}));
        let target = json!({"namespace": "t", "name": "c", "uid": "u"});
        let found = json!({"metadata": {"name": "o", "uid": "o"}, "spec": {"computer": target, "skip": ["stop-pods"], "reason": "r"}});
        view.overrides = vec![serde_json::from_value(found.clone()).unwrap()];
        for (code, written) in [(200, true), (409, false), (503, false)] {
            let failure = json!({"kind": "Status", "status": "Failure", "code": code, "reason": "", "message": ""});
            let body = if code == 200 { found.clone() } else { failure };
            let server = move |_: axum::http::Request<kube::client::Body>| {
                let body = kube::client::Body::from(body.to_string().into_bytes());
                std::future::ready(Ok::<_, std::convert::Infallible>(axum::http::Response::builder().status(code).body(body).unwrap()))
            };
            let client = Client::new(tower::service_fn(server), "default");
            assert_eq!(acknowledge(&client, &view).await, written, "{code}");
        }
    }
}
