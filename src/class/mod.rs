//! The `ComputerClass` controller: checks with a server-side dry run in the operator's namespace whether the API server would accept the pod of a
//! class, and the archive pod that its computers will need. The result, with the API server's message, becomes the condition `Accepted`. It must
//! never create an object, and writes a status only when it changes.

mod archive;
mod dry_run;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::dry_run::Answer;
use crate::archive::walk;
use crate::computer::machine_pod;
use crate::resources::conditions::{self, types};
use crate::resources::reasons::Reason;
use crate::resources::{ArchivePolicy, ComputerClass, ComputerClassStatus, ComputerSpec};
use crate::runtime::caches::{Listener, touched};
use crate::runtime::client::{CallError, call};
use crate::runtime::patch;
use crate::runtime::queue::{self, Queue, Work};
use crate::runtime::settings::Settings;
use crate::runtime::time_and_random::Sources;

/// Time until a failed check is retried.
const RETRY: Duration = Duration::from_secs(30);
/// Number of classes that are checked concurrently.
const CONCURRENCY: usize = 4;

/// The controller, before it runs.
pub struct Controller {
    queue: Queue,
    work: Work,
}

struct Shared {
    client: Client,
    settings: Settings,
    sources: Sources,
}

impl Default for Controller {
    fn default() -> Self {
        let (queue, work) = queue::queue();
        Self { queue, work }
    }
}

impl Controller {
    /// Queues a class when its spec changes, by name. Status updates are ignored: a verdict may quote a message that differs on each
    /// attempt, which would make the controller check and write in a loop.
    pub fn listener(&self) -> Listener<ComputerClass> {
        let checked = RefCell::new(HashMap::new());
        let changed = move |event: &watcher::Event<ComputerClass>| {
            let Some(class) = touched(event) else { return Vec::new() };
            let (name, spec) = (class.name_any(), (class.metadata.uid.clone(), class.metadata.generation));
            if matches!(event, watcher::Event::Delete(_)) {
                checked.borrow_mut().remove(&name);
                return Vec::new();
            }
            let known = checked.borrow_mut().insert(name.clone(), spec.clone()) == Some(spec);
            // A relist queues every class: one that failed before its end has queued nothing.
            if known && matches!(event, watcher::Event::Apply(_)) { Vec::new() } else { vec![name] }
        };
        (self.queue.clone(), Box::new(changed))
    }

    /// Runs the controller until `stop` is cancelled.
    pub async fn run(self, client: Client, settings: Settings, sources: Sources, classes: Store<ComputerClass>, stop: CancellationToken) {
        let shared = Arc::new(Shared { client, settings, sources });
        let stopping = stop.clone();
        let check = move |name: String| {
            let (class, shared, stop) = (classes.get(&ObjectRef::new(&name)), Arc::clone(&shared), stopping.clone());
            async move {
                // Dry runs have no effect, and the next leader repeats them: a slow webhook must not delay the shutdown.
                let result = stop.run_until_cancelled(reconcile(class?, &shared)).await?;
                Some(result.unwrap_or_else(|error| {
                    tracing::warn!(name, %error, "cannot check a ComputerClass; retrying in {} s", RETRY.as_secs());
                    RETRY
                }))
            }
        };
        self.work.run(CONCURRENCY, stop, check).await;
    }
}

/// Checks one class. Returns when to check it again.
#[tracing::instrument(skip_all, fields(kind = "ComputerClass", name = class.name_any(), uid = class.metadata.uid))]
async fn reconcile(class: Arc<ComputerClass>, shared: &Shared) -> Result<Duration, CallError> {
    let (verdict, failed) = judge(&class, shared).await;
    if let Some(verdict) = &verdict {
        let status = status(&class, verdict, shared.sources.now());
        if class.status.as_ref() != Some(&status) {
            let patch = patch::status(&class.metadata, json!(status));
            let api: Api<ComputerClass> = Api::all(shared.client.clone());
            call(api.patch_status(&class.name_any(), &PatchParams::default(), &Patch::<()>::Json(patch))).await?;
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    // Pod Security labels, quotas and policies of the namespace can change without an event of the class.
    let refused = verdict.is_some_and(|v| v.reason == Reason::CheckRefused);
    Ok(Duration::from_secs(if refused { 60 } else { 600 }))
}

/// The verdict to show, and why the check must be repeated. A check that failed does not change a verdict on the same spec; without one, the
/// condition says why the class is not checked.
async fn judge(class: &ComputerClass, shared: &Shared) -> (Option<Verdict>, Option<CallError>) {
    match check(class, shared).await {
        Ok(verdict) => (Some(verdict), None),
        Err(error) if judged(class).is_some() => (None, Some(error)),
        Err(error) => {
            let message = format!("the check of the class failed and is retried every {} s: {error}", RETRY.as_secs());
            (Some(refused(Reason::CheckFailed, message)), Some(error))
        }
    }
}

/// Whether a class can be used.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    accepted: bool,
    reason: Reason,
    message: String,
}

fn refused(reason: Reason, message: impl Into<String>) -> Verdict {
    Verdict { accepted: false, reason, message: message.into() }
}

fn accepted() -> Verdict {
    Verdict { accepted: true, reason: Reason::Accepted, message: "computers can use this class".to_owned() }
}

/// Checks a class. Only a response is a verdict; an unknown outcome is an error and is retried.
async fn check(class: &ComputerClass, shared: &Shared) -> Result<Verdict, CallError> {
    let archived = class.spec.archive.policy != ArchivePolicy::None;
    if class.spec.session_paths.is_empty() && archived {
        return Ok(refused(
            Reason::NoSessionPaths,
            "spec.sessionPaths is empty. List at least one directory ('.' for the whole home), or set spec.archive.policy to None",
        ));
    }
    if let Some(why) = class.spec.session_paths.iter().find_map(|path| walk::check_path(path).err()) {
        return Ok(refused(Reason::InvalidSessionPath, format!("spec.sessionPaths is invalid: {why}")));
    }
    let machine = match machine_pod::desired(class, &ComputerSpec::default(), "dry-run").and_then(|pod| with_key(class, pod)) {
        Ok(pod) => pod,
        Err(why) => return Ok(refused(Reason::InvalidPodTemplate, why)),
    };
    let namespace = &shared.settings.namespace;
    let verdict = match dry_run::machine(&shared.client, namespace, machine.clone()).await? {
        // Machines do not run in this namespace: its limits do not apply to them.
        Answer::Accepted | Answer::Limited(_) => accepted(),
        Answer::Invalid(message) => {
            let message = format!("the API server rejects a pod made from spec.podTemplate. Fix the field that it names: {message}");
            return Ok(refused(Reason::InvalidPodTemplate, message));
        }
        // The tenant's namespace may allow it, although the operator's namespace is restricted.
        Answer::PodSecurity(message) => {
            let message = format!("the class is usable only in namespaces whose Pod Security level permits its pods: {message}");
            Verdict { reason: Reason::NotRestricted, message, ..accepted() }
        }
        Answer::Forbidden(error) => return unless_accepted(class, namespace, error),
    };
    if archived { check_archive(class, shared, &machine, verdict).await } else { Ok(verdict) }
}

/// The pod with its key, as each computer's pod will have it: the API server also checks the names and paths of that.
fn with_key(class: &ComputerClass, mut pod: Value) -> Result<Value, String> {
    if let Some(path) = class.spec.key.mount_path.as_deref() {
        machine_pod::KeyFiles { path, secret: "dry-run", id: "dry-run".to_owned(), url: "https://dry-run" }.add_to(&mut pod)?;
    }
    Ok(pod)
}

/// Checks the archive pod of a class whose machine pod has this verdict.
async fn check_archive(class: &ComputerClass, shared: &Shared, machine: &Value, verdict: Verdict) -> Result<Verdict, CallError> {
    let namespace = &shared.settings.namespace;
    let snapshot = match archive::snapshot(class, machine) {
        Ok(snapshot) => snapshot,
        Err(why) => return Ok(refused(Reason::InvalidPodTemplate, why)),
    };
    let user = snapshot.run_as_user.unwrap_or_default();
    match dry_run::archive(&shared.client, namespace, &archive::archive_pod(&shared.settings, snapshot)).await? {
        Answer::Accepted => Ok(verdict),
        Answer::Limited(message) => {
            let blocked = format!(
                "deletions of its computers are blocked until a LimitRange in namespace {namespace} allows their archive pods. Raise its maximum or exempt that namespace. The API server responded: {message}"
            );
            Ok(Verdict { message: format!("{}; {blocked}", verdict.message), ..verdict })
        }
        Answer::Invalid(message) | Answer::PodSecurity(message) => Ok(refused(
            Reason::ArchiveNotPossible,
            format!(
                "computers of this class could not be deleted: their archive pods run as the user of the machine (runAsUser {user}), and namespace {namespace} does not allow such pods. Set securityContext.runAsUser in spec.podTemplate to an allowed user (not 0 if Pod Security is restricted), allow such pods in namespace {namespace}, or set spec.archive.policy to None. The API server responded: {message}"
            ),
        )),
        Answer::Forbidden(error) => unless_accepted(class, namespace, error),
    }
}

/// The API server does not allow the dry run. A class that has been accepted stays accepted; otherwise the verdict says why it cannot be used.
fn unless_accepted(class: &ComputerClass, namespace: &str, error: CallError) -> Result<Verdict, CallError> {
    if judged(class) == Some(true) {
        return Err(error);
    }
    Ok(refused(
        Reason::CheckRefused,
        format!(
            "cannot check the class: the API server rejects a dry run of its pods in namespace {namespace}. Allow the operator to create pods there; the check is retried every minute. The API server responded: {error}"
        ),
    ))
}

/// The verdict on the current spec of a class, if there is one. A check that failed is none.
fn judged(class: &ComputerClass) -> Option<bool> {
    let conditions = class.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let of_this = |c: &&Condition| c.type_ == types::ACCEPTED && c.observed_generation == class.metadata.generation;
    let found = conditions.iter().find(of_this).filter(|c| c.reason != Reason::CheckFailed.as_str());
    found.map(|c| c.status == "True")
}

fn status(class: &ComputerClass, verdict: &Verdict, now: Timestamp) -> ComputerClassStatus {
    let mut status = class.status.clone().unwrap_or_default();
    status.observed_generation = class.metadata.generation;
    let (now, generation) = (Time(Timestamp::from_second(now.as_second()).unwrap_or(now)), class.metadata.generation);
    let Verdict { accepted, reason, message } = verdict;
    conditions::set(&mut status.conditions, types::ACCEPTED, *accepted, *reason, message, generation, &now);
    conditions::set_stalled(&mut status.conditions, *accepted, *reason, message, generation, &now);
    status
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
