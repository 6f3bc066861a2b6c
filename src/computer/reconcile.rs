//! One pass over one computer: observe, then plan and apply in turn until the plan waits, then the status and an event. A pass that failed
//! is repeated after a backoff, and an event ends that early only if something has changed that a plan looks at.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};

use tokio_util::sync::CancellationToken;

use super::action::{Action, Effect};
use super::apply::{Applier, Error};
use super::budget::Turns;
use super::events::Events;
use super::failed::{self, Accepted};
use super::memory::Latest;
use super::metrics::Metrics;
use super::observe::observe;
use super::plan::plan;
use super::report::{Next, Plan, Report};
use super::status::{self, Written};
use super::view::View;
use super::{overrides, view_digest};
use crate::guards::{self, Guard};
use crate::resources::steps::CurrentStep;
use crate::resources::{Computer, ComputerRecord, StepStatus};
use crate::runtime::backoff::Backoff;
use crate::runtime::caches::Caches;
use crate::runtime::client::{CallError, ErrorClass, call, classify};
use crate::runtime::settings::Settings;
use crate::runtime::time_and_random::Sources;
use crate::session::Marker;

/// Longest pause before a status that could not be written is tried again.
const UNWRITTEN: Duration = Duration::from_secs(60);

/// Longest pause before a refused request is retried: no event shows that an admin has granted the right or raised the quota.
const REFUSED: Duration = Duration::from_secs(60);

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
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Publishes events, best effort.
    pub events: Events,
    /// Marks Sessions.
    pub marker: Marker,
    /// Time of day and randomness.
    pub sources: Sources,
    /// Cancelled when the process is to end: a pass makes no further request then.
    pub stop: CancellationToken,
    /// What is remembered of each computer.
    pub memory: Memory,
}

/// What this process remembers of each computer between two passes. All of it goes with [`Reconciler::forget`].
pub struct Memory {
    /// Backoff of failed passes.
    backoff: Backoff,
    /// Backoff of statuses that could not be written: those must not hold up the passes themselves.
    unwritten: Backoff,
    /// Records that the cache is behind, and finished steps.
    latest: Latest,
    /// Statuses of the last seconds.
    written: Written,
    /// Passes that did not end within their turn.
    turns: Turns,
}

impl Memory {
    /// Empty; the jitter of its backoff comes from the sources.
    pub fn new(sources: &Sources) -> Self {
        let seed = || u64::from_le_bytes(sources.bytes());
        Self {
            backoff: Backoff::with_seed(seed()),
            unwritten: Backoff::with_seed(seed()),
            latest: Latest::default(),
            written: Written::default(),
            turns: Turns::default(),
        }
    }

    /// Names every field, so that one that is added cannot be left out.
    fn forget(&self, uid: &str) {
        let Self { backoff, unwritten, latest, written, turns } = self;
        backoff.reset(uid);
        unwritten.reset(uid);
        latest.forget(uid);
        written.forget(uid);
        turns.reset(uid);
    }
}

/// What became of a status.
enum Told {
    /// It says what it should, or there is nobody to tell.
    Yes,
    /// It was written a moment ago: not yet again.
    Later,
    /// It could not be written.
    Failed(CallError),
}

impl Reconciler {
    /// One pass. The result is when to look again without an event.
    pub async fn run(&self, uid: &str) -> Option<Duration> {
        let _timer = self.metrics.time_pass();
        let Some(mut view) = observe(&self.caches, &self.settings, uid, &self.sources) else {
            self.forget(uid);
            return None;
        };
        self.memory.latest.freshen(&mut view);
        if view.only_expiry_left() {
            self.forget(uid);
            return self.expire(&view).await;
        }
        let seen = view_digest::digest(&view);
        if let Some(left) = self.paused(uid, view_digest::with_record(seen, &view)) {
            return Some(left);
        }
        let (plan, error) = self.drive(&mut view).await;
        if self.stop.is_cancelled() {
            // The next leader goes on from what is stored.
            return None;
        }
        self.conclude(&view, plan, error, seen).await
    }

    /// Remembers, shows and counts the result. Returns when to reconcile again without an event.
    async fn conclude(&self, view: &View, mut plan: Plan, error: Option<Error>, seen: u64) -> Option<Duration> {
        let uid = view.uid.as_str();
        self.memory.latest.note_passed(view, &plan.report);
        self.applier.archives().waits().note(uid, failed::left(view, &plan, error.as_ref()));
        if let Some(error) = &error {
            failed::explain(&mut plan.report, error, self.memory.backoff.count(uid));
        }
        overrides::acknowledge(&self.client, view).await;
        self.metrics.observe_pass(uid, &plan, error.as_ref().map(Error::class), view.record.as_ref());
        if error.is_none() && quiet(view, &plan.report) {
            return after(&plan.next);
        }
        let told = self.publish(view, &plan.report).await;
        self.events.of_record(view, &plan.report).await;
        let next = self.next_run(uid, &plan, error, view_digest::with_record(seen, view));
        [next, self.retell(uid, told)].into_iter().flatten().min()
    }

    /// What is left of the pause after a failure. A status that could not be written ends it when it may be tried again: it tells what
    /// the deletion waits for (L2).
    fn paused(&self, uid: &str, seen: u64) -> Option<Duration> {
        let left = self.memory.backoff.left(uid, seen)?;
        if self.memory.unwritten.count(uid) == 0 {
            return Some(left);
        }
        self.memory.unwritten.left(uid, 0).map(|owed| owed.min(left))
    }

    /// The archive store has finished what a pass of this computer was waiting for. No cache shows that, so it ends a pause.
    pub fn store_answered(&self, uid: &str) {
        self.memory.backoff.wake(uid);
    }

    /// Nothing is known of this computer any more, or nothing is left to do for it.
    fn forget(&self, uid: &str) {
        self.memory.forget(uid);
        self.events.forget(uid);
        self.metrics.forget(uid);
    }

    /// Plans and applies in turn. Ends with the plan that waits, or with the failure that stopped it.
    async fn drive(&self, view: &mut View) -> (Plan, Option<Error>) {
        if let Err(error) = self.confirm(view).await {
            return (Plan { next: Next::Settled, report: failed::known(view) }, Some(error));
        }
        let (turn, mut accepted, mut looked) = (self.memory.turns.begin(&view.uid), Accepted::default(), false);
        let mut made = 0;
        while !turn.over(made) && !self.stop.is_cancelled() {
            made += 1;
            view.now = self.sources.now();
            if let Some(recorded) = super::deletion::counts_wait(view) {
                view.waited = self.applier.archives().waits().waited(&view.uid, recorded);
            }
            let current = plan(view);
            view.remember(&current.report);
            let Next::Do(action) = &current.next else {
                self.memory.turns.reset(&view.uid);
                return (current, None);
            };
            if action.acquires_child() && !looked && guards::on(Guard::LiveRecord) {
                if let Err(error) = self.look_again(view).await {
                    return (current, Some(error));
                }
                looked = true;
                continue;
            }
            match self.request(view, action.clone(), &mut accepted).await {
                Ok(of_record) => looked = of_record || (looked && !guards::on(Guard::OneLook)),
                Err(error) => return (current, Some(error)),
            }
        }
        self.memory.turns.ran_out(&view.uid);
        (Plan { next: Next::Wait(Duration::from_secs(1)), report: plan(view).report }, None)
    }

    /// One request, and what its answer means. Whether the answer was the record.
    async fn request(&self, view: &mut View, action: Action, accepted: &mut Accepted) -> Result<bool, Error> {
        if let Some(undone) = accepted.undone(&action).filter(|_| guards::on(Guard::UndoneWrite)) {
            return Err(undone);
        }
        tracing::debug!(uid = %view.uid, action = failed::name(&action), "next request");
        let effect = self.applier.apply(action.clone(), view).await?;
        let undone = matches!(&effect, Effect::Record(saved) if view.record.as_ref().is_some_and(|r| r.spec == saved.spec));
        accepted.note(action);
        let of_record = matches!(effect, Effect::Record(_) | Effect::Overtaken(_));
        let archived_before = archived(view).is_some();
        view.absorb(effect);
        if of_record {
            self.memory.latest.note(view);
        }
        if !archived_before && let Some(deleted_at) = archived(view) {
            self.marker.mark(view.namespace.clone(), view.uid.clone(), deleted_at);
        }
        if undone && guards::on(Guard::UndoneWrite) {
            return Err(Error::Undone("save the ComputerRecord".to_owned()));
        }
        Ok(of_record)
    }

    /// Reads the record live before a request that [acquires a child](Action::acquires_child). A cached record, or one that was read before other
    /// requests, may be stale: another leader may have finished the deletion since.
    async fn look_again(&self, view: &mut View) -> Result<(), Error> {
        let version = |r: &ComputerRecord| r.metadata.resource_version.clone();
        match self.applier.find_record(&view.uid).await? {
            Some(found) if view.record.as_ref().map(version) != Some(version(&found)) => view.absorb(Effect::Overtaken(Box::new(found))),
            Some(_) => {}
            None => view.record = None,
        }
        self.memory.latest.note(view);
        Ok(())
    }

    /// What a cache does not hold is not gone: a missing Computer or record is looked for live before it means anything. And an override
    /// destroys what nothing brings back: that it still stands is looked up, too.
    async fn confirm(&self, view: &mut View) -> Result<(), Error> {
        if !view.overrides.is_empty() {
            view.overrides = overrides::read_live(&self.client, view).await?;
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

    /// Writes the status if it does not say what it should.
    async fn publish(&self, view: &View, report: &Report) -> Told {
        let Some(computer) = view.computer.as_ref().filter(|_| report.phase.is_some()) else { return Told::Yes };
        // A released Computer is gone, or about to be: there is no status to write, unless a foreign finalizer holds it.
        if computer.metadata.deletion_timestamp.is_some() && computer.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
            self.events.of_release(view, computer, report).await;
            return Told::Yes;
        }
        let new = status::compute(view, computer, report);
        let Some(patch) = status::patch(computer, &new) else { return Told::Yes };
        if self.memory.written.lately(&view.uid, &new) {
            return Told::Later;
        }
        let api: Api<Computer> = Api::namespaced(self.client.clone(), &view.namespace);
        match call(api.patch_status(&view.name, &PatchParams::default(), &Patch::<()>::Json(patch))).await {
            Ok(_) => {
                self.memory.written.note(&view.uid, &new);
                self.events.of_steps(view, computer, report).await;
                Told::Yes
            }
            Err(error) if classify(&error) == ErrorClass::NotFound => Told::Yes,
            Err(error) => Told::Failed(error),
        }
    }

    /// When to write the status again.
    fn retell(&self, uid: &str, told: Told) -> Option<Duration> {
        match told {
            Told::Yes => {
                self.memory.unwritten.reset(uid);
                None
            }
            Told::Later => Some(Written::PAUSE),
            Told::Failed(error) => {
                let (class, before) = (classify(&error), self.memory.unwritten.count(uid));
                let after = self.memory.unwritten.failed(uid, 0, error.retry_after()).min(UNWRITTEN);
                // Once, this only says that the cache was behind: another Computer of that name, or one that is gone.
                if matches!(class, ErrorClass::Conflict | ErrorClass::Invalid) && before == 0 {
                    tracing::debug!(uid, %error, ?after, "the status was not written; it is tried again");
                } else {
                    tracing::warn!(uid, %error, ?class, ?after, "the status was not written; it is tried again");
                }
                Some(after)
            }
        }
    }

    fn next_run(&self, uid: &str, plan: &Plan, error: Option<Error>, seen: u64) -> Option<Duration> {
        let Some(error) = error else {
            // A running archive check is no progress: each retry of a refused request begins with one (L6).
            if !plan.report.checking {
                self.memory.backoff.reset(uid);
            }
            return after(&plan.next);
        };
        let lost_race = failed::lost_race(&error, self.memory.backoff.count(uid));
        // With the guard off, any event ends the pause.
        let seen = if guards::on(Guard::QuietBackoff) { seen } else { seen.wrapping_add(1) };
        let longest = if error.refused() { REFUSED } else { Backoff::LONGEST };
        let after = self.memory.backoff.failed_up_to(longest, uid, seen, error.retry_after());
        if lost_race {
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
    report.checking
        && status.step.as_deref() == report.current.map(CurrentStep::id)
        && (blocked || report.blocker.is_none())
        && guards::on(Guard::QuietCheck)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
