//! Writes the status of a reconcile, and decides when a write that failed is repeated. It must never write what the status shows already (L6).

use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};

use super::Reconciler;
use crate::computer::report::Report;
use crate::computer::status::{self, Written};
use crate::computer::view::View;
use crate::resources::Computer;
use crate::runtime::client::{CallError, ErrorClass, call, classify};

/// Maximum pause before a failed status write is retried.
const UNWRITTEN: Duration = Duration::from_secs(60);

/// The result of publishing a status.
pub(super) enum Published {
    /// It is up to date, or there is no Computer.
    UpToDate,
    /// It was written: the version of the Computer after that.
    Written(Option<String>),
    /// The same status was written a moment ago and is not repeated yet.
    Later,
    /// The write failed.
    Failed(CallError),
}

impl Reconciler {
    /// Writes the status if it is not up to date.
    pub(super) async fn publish(&self, view: &View, report: &Report) -> Published {
        let Some(computer) = view.computer.as_ref().filter(|_| report.phase.is_some()) else { return Published::UpToDate };
        // A released Computer is gone, or about to be: there is no status to write, unless a foreign finalizer holds it.
        if computer.metadata.deletion_timestamp.is_some() && computer.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
            self.memory.events.of_release(view, computer, report).await;
            return Published::UpToDate;
        }
        let new = status::compute(view, computer, report);
        let Some(patch) = status::patch(computer, &new) else { return Published::UpToDate };
        if self.memory.written.lately(&view.uid, &new) {
            return Published::Later;
        }
        let api: Api<Computer> = Api::namespaced(self.client.clone(), &view.namespace);
        match call(api.patch_status(&view.name, &PatchParams::default(), &Patch::<()>::Json(patch))).await {
            Ok(written) => {
                self.memory.written.note(&view.uid, &new);
                self.memory.events.of_steps(view, computer, report).await;
                Published::Written(written.metadata.resource_version)
            }
            Err(error) if classify(&error) == ErrorClass::NotFound => Published::UpToDate,
            Err(error) => Published::Failed(error),
        }
    }

    /// When to write the status again.
    pub(super) fn retry_publish(&self, uid: &str, published: &Published) -> Option<Duration> {
        match published {
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
