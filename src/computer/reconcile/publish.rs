//! Writes the status of a reconcile, holds one that only shows progress, and decides when a write that failed is repeated. It must never write
//! what the status shows already (L6).

use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};

use super::Reconciler;
use crate::computer::report::Report;
use crate::computer::status::{self, Written};
use crate::computer::view::View;
use crate::resources::{Computer, ComputerStatus};
use crate::runtime::client::{CallError, ErrorClass, call, classify};

/// Maximum pause before a failed status write is retried.
const UNWRITTEN: Duration = Duration::from_secs(60);

/// The result of publishing a status.
pub(super) enum Published {
    /// It is up to date, or there is no Computer.
    UpToDate,
    /// It was written: the version of the Computer after that.
    Written(Option<String>),
    /// It only shows progress, and is held.
    Held,
    /// The same status was written a moment ago and is not repeated yet.
    Later,
    /// The write failed.
    Failed(CallError),
}

impl Reconciler {
    /// Writes the status if it is not up to date, unless it can be held.
    pub(super) async fn publish(&self, view: &View, report: &Report) -> Published {
        let held = &self.memory.held_status;
        let Some((computer, new, patch)) = self.behind(view, report).await else {
            held.forget(&view.uid);
            return Published::UpToDate;
        };
        let lately = self.memory.written.lately(&view.uid, &new);
        // Not while a check runs or a reconcile was cut short: neither waits, so the write would cost another reconcile. Nor while a write that
        // failed is to be repeated: each new attempt would begin its backoff again (L6).
        let waits = !lately && !report.checking && !report.unfinished && self.memory.unwritten.count(&view.uid) == 0;
        let progress = status::is_progress(computer, &new);
        if waits && progress && held.hold(&view.uid, report, view.now) {
            return Published::Held;
        }
        if progress {
            held.note_written(&view.uid);
        } else {
            held.forget(&view.uid);
        }
        if lately {
            return Published::Later;
        }
        let api: Api<Computer> = Api::namespaced(self.client.clone(), &view.namespace);
        match call(api.patch_status(&view.name, &PatchParams::default(), &Patch::<()>::Json(patch))).await {
            Ok(written) => {
                self.memory.written.note(&view.uid, &new);
                self.memory.events.of_status(view, computer, report).await;
                Published::Written(written.metadata.resource_version)
            }
            Err(error) if classify(&error) == ErrorClass::NotFound => {
                // Released: the answer to the removal of the finalizer was lost.
                self.memory.events.of_release(view, computer, report).await;
                Published::UpToDate
            }
            Err(error) => Published::Failed(error),
        }
    }

    /// The status to write, and its patch. `None`: the Computer has it, or there is no Computer to show it.
    async fn behind<'a>(&self, view: &'a View, report: &Report) -> Option<(&'a Computer, ComputerStatus, json_patch::Patch)> {
        let computer = view.computer.as_ref().filter(|_| report.phase.is_some())?;
        // A released Computer is gone, or about to be: there is no status to write, unless a foreign finalizer holds it.
        if computer.metadata.deletion_timestamp.is_some() && computer.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
            self.memory.events.of_release(view, computer, report).await;
            return None;
        }
        let new = status::compute(view, computer, report);
        let patch = status::patch(computer, &new)?;
        Some((computer, new, patch))
    }

    /// Writes a held status once its time has come. That needs no reconcile: nothing that a plan reads has changed since. Returns when to
    /// reconcile, or to write it, without an event; `left` is the rest of the wait.
    pub(super) async fn publish_held(&self, view: &View, left: Option<Duration>) -> Option<Duration> {
        let (uid, memory) = (view.uid.as_str(), &self.memory);
        let Some((report, now)) = memory.held_status.due(uid) else {
            return [left, memory.held_status.left(uid)].into_iter().flatten().min();
        };
        if self.stop.is_cancelled() {
            return None;
        }
        let published = self.publish(&View { now, ..view.clone() }, &report).await;
        match &published {
            Published::Written(version) => memory.waiting.note_version(uid, version.clone()),
            Published::UpToDate | Published::Held => {}
            // A reconcile repeats the write.
            Published::Later | Published::Failed(_) => memory.waiting.wake(uid),
        }
        [left, self.publish_again(uid, &published)].into_iter().flatten().min()
    }

    /// When to write the status again.
    pub(super) fn publish_again(&self, uid: &str, published: &Published) -> Option<Duration> {
        match published {
            Published::Held => None,
            Published::UpToDate | Published::Written(_) => {
                self.memory.unwritten.reset(uid);
                None
            }
            Published::Later => Some(Written::PAUSE),
            Published::Failed(error) => {
                let (class, before) = (classify(error), self.memory.unwritten.count(uid));
                let after = self.memory.unwritten.failed_up_to(UNWRITTEN, uid, 0, error.retry_after());
                // The first time, the cache may be stale: the Computer is gone, or another one has its name.
                if matches!(class, ErrorClass::Conflict | ErrorClass::Invalid) && before == 0 {
                    tracing::debug!(%error, ?after, "cannot write the status, requeued");
                } else {
                    tracing::warn!(%error, ?class, ?after, "cannot write the status, requeued");
                }
                Some(after)
            }
        }
    }
}
