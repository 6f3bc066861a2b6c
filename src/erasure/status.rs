//! The status of an `ArchiveErasure`: pure. A message says what blocks the erasure, what was removed so far, and what to do. It is written only when it
//! changes (L6).

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::archive::StoreError;
use crate::archive::holds::Stop;
use crate::archive::removal::Progress;
use crate::resources::conditions::{self, types};
use crate::resources::reasons::Reason;
use crate::resources::{ArchiveErasure, ArchiveErasureStatus};

/// The state of an erasure: the reason of its conditions, and what users read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The reason. [`Reason::Erased`] and [`Reason::NothingToErase`]: it is complete. [`Reason::Removed`]: it is complete if nothing is found later.
    pub reason: Reason,
    /// The message.
    pub message: String,
}

impl State {
    /// A state with its remedy.
    pub fn blocked(reason: Reason, why: &str) -> Self {
        Self { reason, message: format!("{why}. To do: {}", reason.remedy().trim_end_matches('.')) }
    }

    /// Whether nothing is left to do.
    pub fn is_complete(&self) -> bool {
        matches!(self.reason, Reason::Erased | Reason::NothingToErase)
    }

    /// The state after a removal has ended.
    pub fn of(done: &Result<(), Stop>, progress: &Progress) -> Self {
        let stop = match done {
            Ok(()) => return Self::complete(progress),
            Err(stop) => stop,
        };
        let reason = match stop {
            // The object is gone, and so is its status.
            Stop::Withdrawn(_) => Reason::Erasing,
            Stop::NotReleased(_) => Reason::NotReleased,
            Stop::ApiServer(_) => Reason::ApiServerUnavailable,
            Stop::Held(_) => Reason::ArchiveHeld,
            Stop::HoldsUnknown(_) => Reason::HoldsUnknown,
            Stop::NoReceipt(_) => Reason::NoReceipt,
            Stop::Mismatch(_) => Reason::ErasureMismatch,
            Stop::Unreadable(_) | Stop::Store(StoreError::Config(_) | StoreError::Corrupt(_)) => Reason::ArchiveUnreadable,
            Stop::Store(StoreError::NotFound(_) | StoreError::Unavailable(_)) => Reason::StoreUnavailable,
        };
        let so_far = match (&progress.tombstone, progress.removed) {
            // What an earlier pass has removed is not known here.
            (None, _) if !progress.untouched => "nothing is removed now".to_owned(),
            (None, _) | (_, Some((0, _))) => "nothing was removed".to_owned(),
            (Some(_), Some((objects, _))) => format!("{objects} objects were removed before, so the archive is not complete any more"),
            (Some(_), None) => "some objects may have been removed before".to_owned(),
        };
        Self::blocked(reason, &format!("{stop}; {so_far}"))
    }

    /// The state of an erasure that removes.
    pub fn erasing() -> Self {
        Self { reason: Reason::Erasing, message: "the archive is being erased".to_owned() }
    }

    /// Whether something prevents it.
    pub fn is_blocked(&self) -> bool {
        !self.is_complete() && !matches!(self.reason, Reason::Erasing | Reason::Removed)
    }

    fn complete(progress: &Progress) -> Self {
        if let Some(at) = progress.again {
            let found =
                if progress.tombstone.is_some() { "the archive was removed" } else { "the archive store has no archive of this computer" };
            let at = at.strftime("%Y-%m-%dT%H:%M:%SZ");
            let message = format!(
                "{found}. The archive store is checked again at {at}, because a request that was sent before may still be running. \
                 The erasure is complete when nothing is found then"
            );
            return Self { reason: Reason::Removed, message };
        }
        if progress.tombstone.is_none() {
            return Self {
                reason: Reason::NothingToErase,
                message: "the archive store has nothing of this computer except its receipt".to_owned(),
            };
        }
        let kept = match progress.kept {
            0 => String::new(),
            kept => format!("; {kept} objects stay because a later archive of this UID names them"),
        };
        Self { reason: Reason::Erased, message: format!("the archive was erased; the receipt stays{kept}") }
    }
}

/// The status of an erasure in this state.
pub fn compute(erasure: &ArchiveErasure, state: &State, progress: &Progress, now: Timestamp) -> ArchiveErasureStatus {
    let mut status = erasure.status.clone().unwrap_or_default();
    let generation = erasure.metadata.generation;
    status.observed_generation = generation;
    if let Some(tombstone) = &progress.tombstone {
        status.tombstone_key = Some(tombstone.key());
        status.decided_at = Some(Time(whole(tombstone.written_at)));
    }
    if let Some((objects, bytes)) = progress.removed {
        status.removed_objects = i64::try_from(objects).ok();
        status.removed_bytes = i64::try_from(bytes).ok();
    } else if state.reason == Reason::NothingToErase {
        (status.removed_objects, status.removed_bytes) = (Some(0), Some(0));
    }
    let (now, complete, State { reason, message }) = (Time(whole(now)), state.is_complete(), state);
    let all = &mut status.conditions;
    conditions::set(all, types::COMPLETE, complete, *reason, message, generation, &now);
    conditions::set(all, types::BLOCKED, state.is_blocked(), *reason, message, generation, &now);
    conditions::set_stalled(all, complete, *reason, message, generation, &now);
    status
}

/// Without fractions of a second, which the API server removes.
fn whole(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
