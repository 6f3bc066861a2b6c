//! One pass over one computer: observe, then plan and apply in turn until the plan waits, then the status and an event.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};

use super::action::{Action, Effect};
use super::apply::{Applier, Error};
use super::events::Events;
use super::latest::Latest;
use super::observe::observe;
use super::overrides;
use super::plan::{Blocker, Next, Plan, Report, plan};
use super::status::{self, Written};
use super::view::{Settings, View};
use crate::guards::{self, Guard};
use crate::resources::{Computer, ComputerRecord, StepStatus};
use crate::runtime::backoff::Backoff;
use crate::runtime::caches::Caches;
use crate::runtime::client::{ErrorClass, call};
use crate::runtime::metrics::Metrics;
use crate::runtime::sources::Sources;
use crate::session::Marker;

/// Requests that one pass may make before it lets others run; a life needs fewer than this.
const MAX_REQUESTS: usize = 60;

/// Everything a pass needs.
pub struct Reconciler {
    /// API client, for statuses and expiry.
    pub client: Client,
    /// Read caches.
    pub caches: Caches,
    /// Operator settings.
    pub settings: Settings,
    /// Performs actions.
    pub applier: Applier,
    /// Per-UID backoff of failures.
    pub backoff: Backoff,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Publishes events, best effort.
    pub events: Events,
    /// Marks Sessions.
    pub marker: Marker,
    /// Time of day and randomness.
    pub sources: Sources,
    /// Records that the cache is behind.
    pub latest: Latest,
    /// Statuses of the last seconds.
    pub written: Written,
}

impl Reconciler {
    /// One pass. The result is when to look again without an event.
    pub async fn run(&self, uid: &str) -> Option<Duration> {
        let _timer = self.metrics.time_pass();
        let Some(mut view) = observe(&self.caches, &self.settings, uid, &self.sources) else {
            self.backoff.reset(uid);
            self.latest.forget(uid);
            return None;
        };
        self.latest.freshen(&mut view);
        if view.settled() {
            self.backoff.reset(uid);
            self.latest.forget(uid);
            return self.expire(&view).await;
        }
        let (mut plan, error) = self.drive(&mut view).await;
        self.latest.note_passed(&view, &plan.report);
        if let Some(error) = &error {
            explain(&mut plan.report, error);
        }
        overrides::acknowledge(&self.client, &view).await;
        if error.is_none() && quiet(&view, &plan.report) {
            return after(&plan.next);
        }
        let told = self.publish(&view, &plan.report).await;
        self.events.of_record(&view, &plan.report).await;
        self.metrics.observe_pass(uid, &plan, error.as_ref().map(Error::class), view.record.as_ref());
        let next = self.next_run(uid, &plan, error);
        if told { next } else { Some(next.map_or(Written::PAUSE, |n| n.min(Written::PAUSE))) }
    }

    /// Plans and applies in turn. Ends with the plan that waits, or with the failure that stopped it.
    async fn drive(&self, view: &mut View) -> (Plan, Option<Error>) {
        if let Err(error) = self.confirm(view).await {
            return (Plan { next: Next::Settled, report: Report::default() }, Some(error));
        }
        let mut looked = false;
        for _ in 0..MAX_REQUESTS {
            view.now = self.sources.now();
            let current = plan(view);
            view.remember(&current.report);
            let Next::Do(action) = &current.next else { return (current, None) };
            if matches!(action, Action::Create(_)) && !looked && guards::on(Guard::LiveRecord) {
                if let Err(error) = self.look_again(view).await {
                    return (current, Some(error));
                }
                looked = true;
                continue;
            }
            tracing::debug!(uid = %view.uid, action = name(action), "next request");
            match self.applier.apply(action.clone(), view).await {
                Ok(effect) => {
                    let of_record = matches!(effect, Effect::Record(_) | Effect::Overtaken(_));
                    looked = of_record || (looked && !guards::on(Guard::OneLook));
                    let archived_before = archived(view).is_some();
                    view.absorb(effect);
                    if of_record {
                        self.latest.note(view);
                    }
                    if !archived_before && let Some(deleted_at) = archived(view) {
                        self.marker.mark(view.namespace.clone(), view.uid.clone(), deleted_at);
                    }
                }
                Err(error) => return (current, Some(error)),
            }
        }
        (Plan { next: Next::Wait(Duration::from_secs(1)), report: plan(view).report }, None)
    }

    /// Nothing is made on the word of an old record, be it a cache that lags or a look that other requests came after: it would make
    /// again what this replica or another one has made and taken away meanwhile, and leave the last of it behind (S6).
    async fn look_again(&self, view: &mut View) -> Result<(), Error> {
        let version = |r: &ComputerRecord| r.metadata.resource_version.clone();
        match self.applier.find_record(&view.uid).await? {
            Some(found) if view.record.as_ref().map(version) != Some(version(&found)) => view.absorb(Effect::Overtaken(Box::new(found))),
            Some(_) => {}
            None => view.record = None,
        }
        self.latest.note(view);
        Ok(())
    }

    /// What a cache does not hold is not gone: a missing Computer or record is looked for live before it means anything. And an override
    /// destroys what nothing brings back: that it still stands is looked up, too.
    async fn confirm(&self, view: &mut View) -> Result<(), Error> {
        if !view.overrides.is_empty() {
            view.overrides = overrides::standing(&self.client, view).await?;
        }
        if !guards::on(Guard::LiveAbsence) {
            return Ok(());
        }
        if view.computer.is_none() {
            let effect = self.applier.apply(Action::ReadComputer, view).await?;
            view.absorb(effect);
        }
        if view.record.is_none() {
            view.record = self.applier.find_record(&view.uid).await?;
        }
        Ok(())
    }

    /// Whether the status says what it should, as far as this pass can do anything about it.
    async fn publish(&self, view: &View, report: &Report) -> bool {
        // A released Computer is gone, or about to be: there is nobody to tell, unless somebody else holds it.
        let released = |c: &&Computer| c.metadata.deletion_timestamp.is_some() && c.metadata.finalizers.as_ref().is_none_or(Vec::is_empty);
        let Some(computer) = view.computer.as_ref().filter(|c| report.phase.is_some() && !released(c)) else { return true };
        let new = status::compute(view, computer, report);
        let Some(patch) = status::patch(computer, &new) else { return true };
        if self.written.lately(&view.uid, &new) {
            return false;
        }
        let api: Api<Computer> = Api::namespaced(self.client.clone(), &view.namespace);
        match call(api.patch_status(&view.name, &PatchParams::default(), &Patch::<()>::Json(patch))).await {
            Ok(_) => {
                self.written.note(&view.uid, &new);
                self.events.of_steps(view, computer, report).await;
            }
            // Gone, or another UID: there is nobody to tell.
            Err(error) => tracing::debug!(uid = %view.uid, %error, "the status was not written"),
        }
        true
    }

    fn next_run(&self, uid: &str, plan: &Plan, error: Option<Error>) -> Option<Duration> {
        let Some(error) = error else {
            self.backoff.reset(uid);
            return after(&plan.next);
        };
        let after = self.backoff.next(uid);
        // A lost race is not a failure: somebody else was faster, and the watch will tell what they did.
        if error.class() == ErrorClass::Conflict {
            tracing::debug!(uid, %error, ?after, "planned again");
        } else {
            tracing::warn!(uid, %error, class = ?error.class(), ?after, "a request failed; it is tried again");
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
            Err(error) => {
                tracing::warn!(uid = %view.uid, %error, "an expired record was not deleted; it is tried again");
                Some(Duration::from_secs(300))
            }
        }
    }
}

/// Whether a pass that only waits for a look at the archive has nothing to tell: users are shown the step already, and that it is
/// blocked if that is so. Otherwise each look would be told as a step that goes on, and its end as one that is blocked: the status would
/// go to and fro, each time waking the next pass (L6).
fn quiet(view: &View, report: &Report) -> bool {
    let Some(status) = view.computer.as_ref().and_then(|c| c.status.as_ref()) else { return false };
    let blocked = status.deletion_steps.iter().any(|step| step.status == StepStatus::Blocked);
    report.checking && status.step == report.current && (blocked || report.blocker.is_none()) && guards::on(Guard::QuietCheck)
}

/// When to look again without an event.
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

/// A failed request as users see it: what was tried, why it failed, that it is tried again.
fn explain(report: &mut Report, error: &Error) {
    let reason = match error.class() {
        ErrorClass::Conflict => return,
        ErrorClass::Forbidden | ErrorClass::Unauthorized => "Forbidden",
        ErrorClass::NamespaceTerminating => "NamespaceTerminating",
        ErrorClass::Invalid => "Refused",
        ErrorClass::NotFound => "NotFound",
        ErrorClass::Transient | ErrorClass::Timeout if matches!(error, Error::Store(_)) => "StoreUnavailable",
        ErrorClass::Transient | ErrorClass::Timeout => "ApiServerUnavailable",
    };
    let message = format!("{error}. It is tried again");
    let running = report
        .deletion
        .iter_mut()
        .chain(report.provisioning.iter_mut())
        .find(|s| matches!(s.status, StepStatus::Running | StepStatus::Blocked));
    if let Some(step) = running {
        step.status = StepStatus::Blocked;
        step.error = Some(message.clone());
    }
    if report.deletion.is_empty() && report.phase.is_some() {
        report.ready = Some((false, reason, message.clone()));
    }
    report.blocker = Some(Blocker { reason, message });
}

fn name(action: &Action) -> String {
    match action {
        Action::Read(subject) => format!("read {}", subject.describe()),
        Action::Delete { subject, .. } => format!("delete {}", subject.describe()),
        Action::Remove { subject, .. } => format!("remove {}", subject.describe()),
        Action::Patch { subject, .. } => format!("patch {}", subject.describe()),
        Action::ReadComputer => "read the Computer".to_owned(),
        Action::AddFinalizer => "add the finalizer".to_owned(),
        Action::DeleteComputer => "delete the Computer".to_owned(),
        Action::ReleaseFinalizer => "release the Computer".to_owned(),
        Action::CreateRecord(_) => "create the record".to_owned(),
        Action::SaveRecord(_) => "save the record".to_owned(),
        Action::Create(_) => "create a child".to_owned(),
        Action::CheckArchive => "check the archive".to_owned(),
        Action::PutReceipt(_) => "put the receipt".to_owned(),
    }
}
