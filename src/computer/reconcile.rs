//! Reconciles one computer: observe, then plan and apply in turn until the plan waits, then publish the status and an event. A failed
//! reconcile is retried after a backoff; an event ends the backoff early only if something that a plan reads has changed. It must never
//! conclude from a cache that an object is gone, and it must never send a request after the process has been asked to stop.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::api::{Api, DeleteParams, Preconditions};

use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, field};

use super::action::{Action, Effect};
use super::apply::{Applier, Error};
use super::failed_request::{self, Accepted};
use super::memory::Memory;
use super::observe::{follow_record, observe};
use super::plan::plan;
use super::report::{Next, Plan, Report};
use super::view::View;
use super::waiting::{self, Basis};
use super::{overrides, view_digest};
use crate::guards::{self, Guard};
use crate::resources::conditions::types;
use crate::resources::steps::CurrentStep;
use crate::resources::{ComputerRecord, Phase, StepStatus};
use crate::runtime::backoff::Backoff;
use crate::runtime::caches::Caches;
use crate::runtime::client::{ErrorClass, call, classify};
use crate::runtime::settings::Settings;
use crate::runtime::time_and_random::Sources;
use crate::session::Marker;

mod confirm;
mod publish;

use confirm::creates_record;
use publish::Published;

/// Maximum pause before a refused request is retried: no event shows that an admin has granted the right or raised the quota.
const REFUSED: Duration = Duration::from_secs(60);

/// Dependencies of a reconcile.
pub struct Reconciler {
    /// API client, for statuses and expiry.
    pub client: Client,
    /// Read caches.
    pub caches: Caches,
    /// Operator settings.
    pub settings: Settings,
    /// Performs actions.
    pub applier: Applier,
    /// Marks Sessions.
    pub marker: Marker,
    /// Time of day and randomness.
    pub sources: Sources,
    /// Cancelled when the process stops: a reconcile makes no further request then.
    pub stop: CancellationToken,
    /// What this process remembers of each computer.
    pub memory: Memory,
}

impl Reconciler {
    /// Reconciles once. Returns when to reconcile again without an event. Every log line of a reconcile names the computer and, once it is known, the step.
    pub async fn run(&self, uid: &str) -> Option<Duration> {
        let Some(view) = observe(&self.caches, &self.settings, uid, &self.sources) else {
            self.memory.forget(uid);
            return None;
        };
        let span = span(&view);
        Box::pin(self.pass(uid, view)).instrument(span).await
    }

    async fn pass(&self, uid: &str, mut view: View) -> Option<Duration> {
        view.created = self.memory.latest.created(uid);
        view.forget_recorded();
        if view.only_expiry_left() {
            self.memory.forget(uid);
            return self.expire(&view).await;
        }
        self.memory.latest.freshen(&mut view);
        view.forget_recorded();
        view.key_check_in = Some(self.memory.keys.left(uid));
        view.failures = self.memory.backoff.count(uid);
        // The cache is stale, so what is known of the computer is still needed.
        if view.only_expiry_left() {
            return self.expire(&view).await;
        }
        if let Some(left) = self.memory.waiting.left(&view) {
            return self.publish_held(&view, left).await;
        }
        let _timer = self.memory.metrics.time();
        let seen = view_digest::digest(&view);
        if let Some(left) = self.paused(uid, view_digest::with_record(seen, &view)) {
            return self.publish_held(&view, Some(left)).await;
        }
        self.memory.waiting.begin(uid);
        let start = view.clone();
        let (plan, error) = self.drive(&mut view).await;
        if self.stop.is_cancelled() {
            // The next leader continues from the record.
            return None;
        }
        // No event shows the end of a check of the archive, and each pass asks for it.
        let waits = error.is_none() && !plan.report.checking && !self.memory.turns.exceeded(uid);
        let acknowledged = overrides::acknowledge(&self.client, &view).await;
        let (after, published) = self.conclude(&view, plan, error, seen).await;
        if waits && acknowledged {
            self.wait(start, &view, published, after);
        }
        // Its time does not end the wait: that write needs no reconcile.
        self.publish_held(&view, after).await
    }

    /// Remembers what a reconcile that waits was based on, and what the caches will show of its own writes.
    fn wait(&self, mut start: View, view: &View, published: Published, after: Option<Duration>) {
        let basis = match published {
            Published::UpToDate | Published::Held => Basis::until(after),
            Published::Written(version) => Basis::until(after).with_version(version),
            Published::Later | Published::Failed(_) => return,
        };
        if view.has_found_more_than(&start) {
            return;
        }
        start.record.clone_from(&view.record);
        let basis = basis.with(&start).with_version(waiting::version(view));
        // The same once this process knows that children are being deleted.
        self.memory.latest.shown_as(&mut start);
        self.memory.waiting.note(&view.uid, basis.with(&start));
    }

    /// Remembers, shows and counts the result. Returns when to reconcile again without an event, and what became of the status.
    async fn conclude(&self, view: &View, mut plan: Plan, error: Option<Error>, seen: u64) -> (Option<Duration>, Published) {
        let uid = view.uid.as_str();
        if let Some(step) = plan.report.current {
            Span::current().record("step", step.id());
        }
        self.memory.latest.note_passed(view, &plan.report);
        self.memory.keys.note(view);
        self.applier.archives().waits().note(uid, failed_request::left(view, &plan, error.as_ref()));
        if let Some(error) = &error {
            failed_request::explain(&mut plan.report, error, self.memory.backoff.count(uid));
        }
        self.memory.metrics.observe(uid, &plan, error.as_ref().map(Error::class), view.record.as_ref(), blocked_for(view));
        if error.is_none() && quiet(view, &plan.report) {
            return (after(&plan.next), Published::UpToDate);
        }
        let published = if stays_blocked(view, &plan.report) {
            self.memory.held_status.forget(uid);
            Published::UpToDate
        } else {
            self.publish(view, &plan.report).await
        };
        self.memory.events.of_record(view, &plan.report).await;
        let next = self.next_run(uid, &plan, error, view_digest::with_record(seen, view));
        ([next, self.publish_again(uid, &published)].into_iter().flatten().min(), published)
    }

    /// The rest of the backoff after a failure. The retry of a failed status write ends it early, because the status says what the
    /// deletion waits for (L2).
    fn paused(&self, uid: &str, seen: u64) -> Option<Duration> {
        let left = self.memory.backoff.left(uid, seen)?;
        if self.memory.unwritten.count(uid) == 0 {
            return Some(left);
        }
        self.memory.unwritten.left(uid, 0).map(|owed| owed.min(left))
    }

    /// The archive store has finished what a reconcile of this computer was waiting for. No watch shows that, so it ends the wait and the
    /// backoff.
    pub fn store_answered(&self, uid: &str) {
        self.memory.waiting.wake(uid);
        self.memory.backoff.wake(uid);
    }

    /// Plans and applies in turn. Ends with the plan that waits, or with the failure that stopped it.
    async fn drive(&self, view: &mut View) -> (Plan, Option<Error>) {
        if let Err(error) = self.confirm(view).await {
            return (nothing_learned(view), Some(error));
        }
        let (turn, mut accepted, mut reread) = (self.memory.turns.begin(&view.uid), Accepted::default(), false);
        let (spare, mut sure) = (self.may_spare_the_read(view), view.deleting());
        let mut made = 0;
        while !turn.over(made) && !self.stop.is_cancelled() {
            made += 1;
            view.now = self.sources.now();
            follow_record(&self.caches, view);
            if let Some(recorded) = super::deletion::counts_wait(view) {
                view.waited = self.applier.archives().waits().waited(&view.uid, recorded);
            }
            self.look_at_archive(view);
            let current = plan(view);
            view.remember(&current.report);
            sure |= view.record.is_some();
            if !(sure || spare && creates_record(&current.next)) {
                if let Err(error) = self.find_record(view).await {
                    return (nothing_learned(view), Some(error));
                }
                sure = true;
                continue;
            }
            let Next::Do(action) = &current.next else {
                self.memory.turns.reset(&view.uid);
                return (current, None);
            };
            if action.acquires_child() && !reread && guards::on(Guard::LiveRecord) {
                if let Err(error) = self.reread_record(view).await {
                    return (current, Some(error));
                }
                reread = true;
                continue;
            }
            match self.request(view, action.clone(), &mut accepted).await {
                Ok(of_record) => reread = of_record || (reread && !guards::on(Guard::OneLook)),
                Err(error) if !sure => return (nothing_learned(view), Some(error)),
                Err(error) => return (current, Some(error)),
            }
        }
        self.memory.turns.ran_out(&view.uid);
        let last = if sure { plan(view) } else { nothing_learned(view) };
        let report = Report { unfinished: true, ..last.report };
        (Plan { next: Next::Wait(Duration::from_secs(1)), report }, None)
    }

    /// What this process knows of the archive, for the status.
    fn look_at_archive(&self, view: &mut View) {
        let archives = self.applier.archives();
        let archiving = super::deletion::archiving(view);
        view.upload = archiving.then(|| archives.uploads().look(&view.uid)).flatten();
        view.read_back = archiving.then(|| archives.read_back(&view.uid)).flatten();
    }

    /// One request, and what its answer means. Whether the answer was the record.
    async fn request(&self, view: &mut View, action: Action, accepted: &mut Accepted) -> Result<bool, Error> {
        if let Some(undone) = accepted.undone(&action).filter(|_| guards::on(Guard::UndoneWrite)) {
            return Err(undone);
        }
        if self.memory.contested.is(&view.uid, &action) && guards::on(Guard::UndoneWrite) {
            return Err(Error::undone(failed_request::name(&action)));
        }
        tracing::debug!(action = failed_request::name(&action), "next request");
        let effect = self.applier.apply(action.clone(), view).await?;
        self.memory.contested.note(&view.uid, &action);
        let undone = matches!(&effect, Effect::Record(saved) if view.record.as_ref().is_some_and(|r| r.spec == saved.spec));
        accepted.note(action);
        let of_record = matches!(effect, Effect::Record(_) | Effect::Overtaken(_));
        let (archived_before, created) = (archived(view).is_some(), matches!(effect, Effect::Created(..)));
        view.absorb(effect);
        if created {
            self.memory.latest.note_created(view);
        }
        if of_record {
            self.memory.latest.note(view);
        }
        if !archived_before && let Some(deleted_at) = archived(view) {
            self.marker.mark(view.namespace.clone(), view.uid.clone(), deleted_at);
        }
        if undone && guards::on(Guard::UndoneWrite) {
            return Err(Error::undone("save the ComputerRecord"));
        }
        Ok(of_record)
    }

    fn next_run(&self, uid: &str, plan: &Plan, error: Option<Error>, seen: u64) -> Option<Duration> {
        let Some(error) = error else {
            // A running archive check is no progress: each retry of a refused request begins with one (L6).
            if !plan.report.checking {
                self.memory.backoff.reset(uid);
            }
            return after(&plan.next);
        };
        let lost_race = failed_request::lost_race(&error, self.memory.backoff.count(uid));
        // With the guard off, any event ends the pause.
        let seen = if guards::on(Guard::QuietBackoff) { seen } else { seen.wrapping_add(1) };
        let longest = if error.refused() { REFUSED } else { Backoff::LONGEST };
        let after = self.memory.backoff.failed_up_to(longest, uid, seen, error.retry_after());
        if lost_race {
            tracing::debug!(%error, ?after, "conflict, requeued");
        } else {
            tracing::warn!(%error, class = ?error.class(), ?after, "request failed, requeued");
        }
        Some(after)
    }

    /// A released record is kept for its time, then deleted; the receipt in the store stays.
    async fn expire(&self, view: &View) -> Option<Duration> {
        let record = view.record.as_ref()?;
        let current = super::deletion::expires_in(record, view.now)?;
        if !current.is_zero() {
            return Some(current);
        }
        let preconditions = Preconditions { uid: record.metadata.uid.clone(), resource_version: None };
        let api: Api<ComputerRecord> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        match call(api.delete(&view.uid, &DeleteParams::default().preconditions(preconditions))).await {
            Ok(_) => None,
            // Another leader has deleted it.
            Err(error) if classify(&error) == ErrorClass::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, "cannot delete an expired record, requeued");
                Some(Duration::from_secs(300))
            }
        }
    }
}

/// The plan of a reconcile that has learned nothing: the steps that this process remembers as finished stay so.
fn nothing_learned(view: &View) -> Plan {
    let report = Report { passed: view.passed.clone(), times: view.times.clone(), ..failed_request::known(view) };
    Plan { next: Next::Settled, report }
}

/// The fields of every log line of a reconcile. The step is recorded once it is known.
fn span(view: &View) -> Span {
    let (namespace, name, uid) = (view.namespace.as_str(), view.name.as_str(), view.uid.as_str());
    tracing::info_span!("reconcile", kind = "Computer", namespace, name, uid, step = field::Empty)
}

/// Whether a reconcile that only waits for an archive check has nothing to publish: the status shows the step already, and whether it is
/// blocked. Otherwise each check would change the status to running and its end back to blocked, and each write would queue the next
/// reconcile (L6). A slow check that makes progress is shown: [`Written`](super::status::Written) bounds how often.
fn quiet(view: &View, report: &Report) -> bool {
    let Some(status) = view.computer.as_ref().and_then(|c| c.status.as_ref()) else { return false };
    let blocked = status.deletion_steps.iter().any(|step| step.status == StepStatus::Blocked);
    report.checking
        && view.read_back.is_none()
        && status.step.as_deref() == report.current.map(CurrentStep::id)
        && (blocked || report.blocker.is_none())
        && guards::on(Guard::QuietCheck)
}

/// Whether a reconcile that did not reach its end must leave the status as it is: that shows the step as blocked, and whether it still is will
/// be known at the end of the next one. Otherwise the condition would be removed for a moment, and the alert would begin again. A creation that
/// is blocked shows the phase `Error`.
fn stays_blocked(view: &View, report: &Report) -> bool {
    let Some(status) = view.computer.as_ref().and_then(|c| c.status.as_ref()) else { return false };
    let shown = status.conditions.iter().any(|c| c.type_ == types::BLOCKED && c.status == "True");
    report.unfinished
        && report.blocker.is_none()
        && shown
        && (report.phase == status.phase || (report.phase, status.phase) == (Some(Phase::Provisioning), Some(Phase::Error)))
        && status.step.as_deref() == report.current.map(CurrentStep::id)
}

/// How long the condition has said that the deletion is blocked. Zero after a hand-off: there is no Computer.
fn blocked_for(view: &View) -> Duration {
    let conditions = view.computer.as_ref().and_then(|c| c.status.as_ref()).map(|status| status.conditions.as_slice());
    let blocked = conditions.unwrap_or_default().iter().find(|c| c.type_ == types::BLOCKED);
    let age = blocked.map(|c| view.now.duration_since(c.last_transition_time.0));
    age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default()
}

/// When to reconcile again without an event.
fn after(next: &Next) -> Option<Duration> {
    match next {
        Next::Wait(after) => Some(*after),
        Next::Do(_) | Next::Settled => None,
        Next::Finished(after) => *after,
    }
}

/// When the computer was deleted, if the record names a verified archive.
fn archived(view: &View) -> Option<Time> {
    let deletion = view.record.as_ref()?.spec.state.deletion.as_ref()?;
    deletion.archive.as_ref().map(|_| deletion.deleted_at.clone())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
