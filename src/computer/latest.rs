//! The newest record of a computer that this process has seen, for as long as its cache is behind it. A plan on an older record than
//! we have written ourselves would do again what is done, say so in the status, and be woken by that very write (L6). It saves work
//! only: whether a write counts is decided by its resourceVersion at the API server.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::view::View;
use crate::guards::{self, Guard};
use crate::resources::ComputerRecord;

/// By UID; empty as soon as the caches have caught up.
#[derive(Debug, Default)]
pub struct Latest(Mutex<HashMap<String, ComputerRecord>>);

impl Latest {
    fn all(&self) -> MutexGuard<'_, HashMap<String, ComputerRecord>> {
        // A record is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a live answer has shown.
    pub fn note(&self, view: &View) {
        match &view.record {
            Some(record) if guards::on(Guard::LatestRecord) => drop(self.all().insert(view.uid.clone(), record.clone())),
            _ => self.forget(&view.uid),
        }
    }

    /// Puts the newer one in place of the cache's; forgets it when the cache is as new.
    pub fn freshen(&self, view: &mut View) {
        let mut all = self.all();
        let Some(known) = all.get(&view.uid) else { return };
        if view.record.as_ref().is_some_and(|cached| version(cached) >= version(known)) {
            all.remove(&view.uid);
        } else if view.record.is_some() {
            view.record = Some(known.clone());
        }
    }

    /// The computer is gone.
    pub fn forget(&self, uid: &str) {
        self.all().remove(uid);
    }
}

/// Versions of one object grow; one that is no number is as new as can be, so that the cache is believed.
fn version(record: &ComputerRecord) -> u64 {
    record.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(u64::MAX)
}
