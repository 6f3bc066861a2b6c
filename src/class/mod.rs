//! The `ComputerClass` controller: is the pod that a class asks for one that the API server would take? A server-side dry run in
//! the operator's namespace says so, and its own message stands in the `Accepted` condition. Writes only what changed.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::{PredicateConfig, WatchStreamExt, predicates, reflector, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::computer::pod;
use crate::computer::view::Settings;
use crate::resources::conditions::{self, types};
use crate::resources::{ArchivePolicy, ComputerClass, ComputerClassStatus, ComputerSpec};
use crate::runtime::backoff::WatchBackoff;
use crate::runtime::caches::{ADMINS_PAGE, understood, watched};
use crate::runtime::client::{CallError, ErrorClass, call, classify};
use crate::runtime::sources::Sources;

struct Shared {
    client: Client,
    settings: Settings,
    sources: Sources,
}

/// Runs until `stop`.
pub async fn run(client: Client, settings: Settings, sources: Sources, stop: CancellationToken) {
    let (reader, writer) = reflector::store();
    let all = Api::<DeserializeGuard<ComputerClass>>::all(client.clone());
    let understood = watcher(all, watched(ADMINS_PAGE)).backoff(WatchBackoff::new(&sources)).map_ok(understood);
    let classes = understood.reflect(writer).applied_objects();
    // Not for a status that was written here: a verdict may quote a text that differs each time, and would be written and checked for ever.
    let classes = classes.predicate_filter(predicates::generation, PredicateConfig::default());
    let shared = Arc::new(Shared { client, settings, sources });
    Controller::for_stream(classes, reader)
        .with_config(kube::runtime::controller::Config::default().concurrency(4))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, |_, _, _| Action::requeue(Duration::from_secs(30)), shared)
        .for_each(|result| {
            if let Err(error) = result {
                tracing::warn!(%error, "a class was not checked; it is tried again");
            }
            futures::future::ready(())
        })
        .await;
}

async fn reconcile(class: Arc<ComputerClass>, shared: Arc<Shared>) -> Result<Action, CallError> {
    let verdict = check(&class, &shared).await?;
    let status = status(&class, &verdict, shared.sources.now());
    if class.status.as_ref() != Some(&status) {
        let patch = crate::computer::volume::patch(&[
            json!({"op": "test", "path": "/metadata/uid", "value": class.metadata.uid}),
            json!({"op": "add", "path": "/status", "value": status}),
        ]);
        let api: Api<ComputerClass> = Api::all(shared.client.clone());
        call(api.patch_status(&class.name_any(), &PatchParams::default(), &Patch::<()>::Json(patch))).await?;
    }
    Ok(Action::await_change())
}

/// Whether a class can be used.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    accepted: bool,
    reason: &'static str,
    message: String,
}

/// An unknown outcome is an error and is tried again; only an answer is a verdict.
async fn check(class: &ComputerClass, shared: &Shared) -> Result<Verdict, CallError> {
    let refused = |reason, message| Verdict { accepted: false, reason, message };
    if class.spec.session_paths.is_empty() && class.spec.archive.policy != ArchivePolicy::None {
        return Ok(refused(
            "NoSessionPaths",
            "spec.sessionPaths is empty: name at least one folder, or set archive.policy: None".to_owned(),
        ));
    }
    let mut probe = match pod::desired(class, &ComputerSpec::default(), "dry-run") {
        Ok(pod) => pod,
        Err(why) => return Ok(refused("InvalidPodTemplate", why)),
    };
    probe.metadata.generate_name = Some("class-dry-run-".to_owned());
    let accepted = Verdict { accepted: true, reason: "Accepted", message: "the class can be used".to_owned() };
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &shared.settings.namespace);
    let params = PostParams { dry_run: true, ..PostParams::default() };
    match call(api.create(&params, &probe)).await {
        Ok(_) => Ok(accepted),
        Err(error) => match (classify(&error), error.to_string()) {
            (ErrorClass::Invalid, message) => Ok(refused("InvalidPodTemplate", message)),
            // Allowed where the tenant's namespace allows it; the operator's own is restricted.
            (ErrorClass::Forbidden, message) if message.contains("violates PodSecurity") => {
                Ok(Verdict { reason: "NotRestricted", message: format!("usable only in namespaces that allow it: {message}"), ..accepted })
            }
            // The account that a template names lives in the tenants' namespaces.
            (ErrorClass::Forbidden, message) if message.contains("serviceaccount") => Ok(accepted),
            _ => Err(error),
        },
    }
}

fn status(class: &ComputerClass, verdict: &Verdict, now: Timestamp) -> ComputerClassStatus {
    let mut status = class.status.clone().unwrap_or_default();
    status.observed_generation = class.metadata.generation;
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    conditions::set(
        &mut status.conditions,
        types::ACCEPTED,
        verdict.accepted,
        verdict.reason,
        &verdict.message,
        class.metadata.generation,
        &now,
    );
    status
}

#[cfg(test)]
mod tests {
    use axum::http::{Request, Response};
    use kube::client::Body;

    use super::*;

    #[tokio::test]
    async fn a_class_that_wants_no_archive_needs_no_session_paths() {
        let service = tower::service_fn(|request: Request<Body>| async move {
            let pod = request.into_body().collect_bytes().await?;
            Ok::<_, kube::Error>(Response::new(Body::from(pod.to_vec())))
        });
        let shared = Shared {
            sources: Sources::default(),
            client: Client::new(service, "op"),
            settings: Settings { namespace: "op".into(), ..Settings::default() },
        };
        for (policy, reason) in [("Required", "NoSessionPaths"), ("None", "Accepted")] {
            let class: ComputerClass = serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {
                "podTemplate": {"spec": {"containers": [{"name": "a", "image": "i"}]}}, "sessionPaths": [], "archive": {"policy": policy},
            }}))
            .unwrap();
            assert_eq!(check(&class, &shared).await.unwrap().reason, reason);
        }
    }

    /// B6: without its own time limit a load balancer closes a quiet watch, and nobody notices before the next change.
    #[tokio::test]
    async fn classes_are_watched_with_the_time_limit_of_all_watches() {
        let (asked, mut queries) = tokio::sync::mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: Request<Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let watch = query.contains("watch=true");
            let _ = asked.send(query);
            async move {
                if watch {
                    std::future::pending::<()>().await;
                }
                let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": []});
                Ok::<_, kube::Error>(Response::new(Body::from(list.to_string().into_bytes())))
            }
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(Client::new(service, "op"), Settings::default(), Sources::default(), stop.clone()));
        let watch = async {
            loop {
                let query = queries.recv().await.unwrap();
                if query.contains("watch=true") {
                    return query;
                }
            }
        };
        let query = tokio::time::timeout(Duration::from_secs(10), watch).await.unwrap();
        assert!(query.contains("timeoutSeconds=200"), "{query}");
        stop.cancel();
        task.abort();
    }
}
