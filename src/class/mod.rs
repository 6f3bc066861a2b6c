//! The `ComputerClass` controller: is the pod that a class asks for one that the API server would take? A server-side dry run in
//! the operator's namespace says so, and its own message stands in the `Accepted` condition. The archive pod that its computers will need is
//! tried in the same way. Writes only what changed.

mod archive;

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::{PredicateConfig, WatchStreamExt, predicates, reflector, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::archive::pack;
use crate::computer::machine_pod;
use crate::resources::conditions::{self, types};
use crate::resources::{ArchivePolicy, ComputerClass, ComputerClassStatus, ComputerSpec};
use crate::runtime::backoff::WatchBackoff;
use crate::runtime::caches::{ADMINS_PAGE, understood, watched};
use crate::runtime::client::{CallError, ErrorClass, call, classify};
use crate::runtime::settings::Settings;
use crate::runtime::time_and_random::Sources;

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
        let patch = crate::runtime::patch::patch(&[
            json!({"op": "test", "path": "/metadata/uid", "value": class.metadata.uid}),
            json!({"op": "add", "path": "/status", "value": status}),
        ]);
        let api: Api<ComputerClass> = Api::all(shared.client.clone());
        call(api.patch_status(&class.name_any(), &PatchParams::default(), &Patch::<()>::Json(patch))).await?;
    }
    // Pod Security labels, quotas and policies of the namespace change without an event of the class.
    Ok(Action::requeue(if verdict.reason == CHECK_REFUSED { Duration::from_secs(60) } else { Duration::from_secs(600) }))
}

/// Whether a class can be used.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    accepted: bool,
    reason: &'static str,
    message: String,
}

fn refused(reason: &'static str, message: impl Into<String>) -> Verdict {
    Verdict { accepted: false, reason, message: message.into() }
}

fn accepted() -> Verdict {
    Verdict { accepted: true, reason: "Accepted", message: "the class can be used".to_owned() }
}

/// The reason of a class that was refused for something that is not the class's fault, maybe.
const CHECK_REFUSED: &str = "CheckRefused";

/// An unknown outcome is an error and is tried again; only an answer is a verdict.
async fn check(class: &ComputerClass, shared: &Shared) -> Result<Verdict, CallError> {
    let archived = class.spec.archive.policy != ArchivePolicy::None;
    if class.spec.session_paths.is_empty() && archived {
        return Ok(refused(
            "NoSessionPaths",
            "spec.sessionPaths is empty: name at least one folder, '.' for the whole home, or set archive.policy: None",
        ));
    }
    if let Some(why) = class.spec.session_paths.iter().find_map(|path| pack::check_path(path).err()) {
        return Ok(refused("InvalidSessionPath", format!("spec.sessionPaths: {why}")));
    }
    let machine = match machine_pod::desired(class, &ComputerSpec::default(), "dry-run") {
        Ok(pod) => pod,
        Err(why) => return Ok(refused("InvalidPodTemplate", why)),
    };
    let namespace = &shared.settings.namespace;
    let verdict = match try_out(shared, machine.clone()).await? {
        Answer::Taken => accepted(),
        Answer::Invalid(message) => return Ok(refused("InvalidPodTemplate", message)),
        // Allowed where the tenant's namespace allows it; the operator's own is restricted.
        Answer::PodSecurity(message) => {
            Verdict { reason: "NotRestricted", message: format!("usable only in namespaces that allow it: {message}"), ..accepted() }
        }
        Answer::Forbidden(error) => return unless_accepted(class, namespace, error),
    };
    if !archived {
        return Ok(verdict);
    }
    let snapshot = archive::snapshot(class, &machine);
    let user = snapshot.run_as_user.unwrap_or_default();
    match try_out(shared, archive::archive_pod(&shared.settings, snapshot)).await? {
        Answer::Taken => Ok(verdict),
        Answer::Invalid(message) | Answer::PodSecurity(message) => Ok(refused(
            "ArchiveNotPossible",
            format!(
                "computers of this class could never be deleted: their archive pods run as the user of the machine (runAsUser {user}), and namespace {namespace} refuses such pods. Set securityContext.runAsUser in spec.podTemplate to a user that it allows (not 0 where Pod Security is restricted), or let an admin of {namespace} allow such pods there, or set archive.policy: None. It says: {message}"
            ),
        )),
        Answer::Forbidden(error) => unless_accepted(class, namespace, error),
    }
}

/// What a dry run came to.
enum Answer {
    /// The API server would take the pod, or refuses it for something that other namespaces do not have.
    Taken,
    Invalid(String),
    PodSecurity(String),
    Forbidden(CallError),
}

async fn try_out(shared: &Shared, mut probe: Pod) -> Result<Answer, CallError> {
    probe.metadata.generate_name = Some("class-dry-run-".to_owned());
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &shared.settings.namespace);
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let Err(error) = call(api.create(&params, &probe)).await else { return Ok(Answer::Taken) };
    match (classify(&error), error.to_string()) {
        (ErrorClass::Invalid, message) => Ok(Answer::Invalid(message)),
        (ErrorClass::Forbidden, message) if message.contains("violates PodSecurity") => Ok(Answer::PodSecurity(message)),
        // The account that a template names lives in the tenants' namespaces. A quota is asked last: everything else was in order.
        (ErrorClass::Forbidden, message) if message.contains("serviceaccount") || message.contains("quota") => Ok(Answer::Taken),
        (ErrorClass::Forbidden, _) => Ok(Answer::Forbidden(error)),
        _ => Err(error),
    }
}

/// The API server does not let the operator find out. A class that was accepted before stays so; another one says why it cannot be used.
fn unless_accepted(class: &ComputerClass, namespace: &str, error: CallError) -> Result<Verdict, CallError> {
    let conditions = class.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let of_this = |c: &&Condition| c.type_ == types::ACCEPTED && c.observed_generation == class.metadata.generation;
    if conditions.iter().find(of_this).is_some_and(|c| c.status == "True") {
        return Err(error);
    }
    Ok(refused(
        CHECK_REFUSED,
        format!(
            "the class cannot be checked: the API server refuses the trial of its pods in namespace {namespace}. Let the operator create them there; it is tried again every minute. It says: {error}"
        ),
    ))
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
#[allow(clippy::unwrap_used)]
mod tests;
