//! The live reads of a reconcile that no plan asks for: what a cache does not have, and the record before a child is acquired. It must never take
//! absence from a cache.

use super::Reconciler;
use crate::computer::action::{Action, Effect, Subject};
use crate::computer::apply::Error;
use crate::computer::overrides;
use crate::computer::report::Next;
use crate::computer::view::View;
use crate::guards::{self, Guard};
use crate::resources::{Computer, ComputerRecord};

impl Reconciler {
    /// Reads the record live before a request that [acquires a child](Action::acquires_child). A cached record, or one that was read before other
    /// requests, may be stale: another leader may have finished the deletion since.
    pub(super) async fn reread_record(&self, view: &mut View) -> Result<(), Error> {
        let version = |r: &ComputerRecord| r.metadata.resource_version.clone();
        match self.applier.find_record(&view.uid).await? {
            Some(found) if view.record.as_ref().map(version) != Some(version(&found)) => view.absorb(Effect::Overtaken(Box::new(found))),
            Some(_) => {}
            None => view.record = None,
        }
        self.memory.latest.note(view);
        Ok(())
    }

    /// An object that is missing from a cache is not proved to be gone: a missing Computer or record is read live first. Overrides are read
    /// live as well, because what they destroy cannot be restored.
    pub(super) async fn confirm(&self, view: &mut View) -> Result<(), Error> {
        if !view.overrides.is_empty() {
            view.overrides = overrides::read_live(&self.client, view).await?;
        }
        if !guards::on(Guard::LiveAbsence) {
            return Ok(());
        }
        if view.computer.is_none() && !self.memory.latest.is_gone(&view.uid) {
            let effect = self.applier.apply(Action::ReadComputer, view).await?;
            view.absorb(effect);
            if view.computer.is_none() {
                self.memory.latest.note_gone(&view.uid);
            }
        }
        if view.record.is_none() && view.deleting() {
            self.find_record(view).await?;
        }
        Ok(())
    }

    /// Whether the record of a new computer may be created without a read before it: if it exists, the answer to the creation is the record. Not if
    /// something shows that there was one, nor after a failure. A creation that is refused does not say whether the record exists, because
    /// admission and quotas come first, and then nothing may be shown that only its absence implies.
    pub(super) fn may_spare_the_read(&self, view: &View) -> bool {
        let recorded = |computer: &Computer| computer.status.as_ref().is_some_and(|status| status.children.is_some());
        view.failures == 0 && !view.computer.as_ref().is_none_or(recorded) && !self.memory.latest.has_record(&view.uid)
    }

    /// Reads a record that the cache does not have.
    pub(super) async fn find_record(&self, view: &mut View) -> Result<(), Error> {
        if guards::on(Guard::LiveAbsence) {
            view.record = self.applier.find_record(&view.uid).await?;
            view.forget_recorded();
        }
        Ok(())
    }
}

/// Whether the next request of a plan without a record leads to the creation of one.
pub(super) fn creates_record(next: &Next) -> bool {
    let Next::Do(action) = next else { return false };
    matches!(action, Action::AddFinalizer | Action::ReadComputer | Action::CreateRecord(_) | Action::Read(Subject::Namespace { .. }))
}
