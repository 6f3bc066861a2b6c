//! The guards: every check that a promise leans on, by name, so that the simulator can switch one off and see that its own checks
//! notice (`docs/guards.md`). In a release all of them are constants: there is nothing to switch.

/// A guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Guard {
    /// Every delete names the UID that it is meant for.
    DeletePrecondition,
    /// A patch of a Computer's finalizers tests UID and resourceVersion.
    FinalizerFence,
    /// A status goes only to the UID that it was computed for.
    StatusFence,
    /// A record is only replaced in the version that was read.
    RecordVersion,
    /// What a cache does not hold is looked for live.
    LiveAbsence,
    /// Nothing is made on the word of a record that a cache holds.
    LiveRecord,
    /// A look at the record is good for the very next request only.
    OneLook,
    /// A plan is not made on an older record than this process has seen.
    LatestRecord,
    /// Only the API server's own word is an absence, not any 404.
    TypedNotFound,
    /// Under a recorded name only the recorded UID is ours.
    RecordedUid,
    /// A pod has stopped when its kubelet says so.
    WritersStopped,
    /// A pod that vanished without that word is waited for.
    VanishedPod,
    /// The claim is gone before the archive reads.
    ClaimGone,
    /// A bound volume is set to `Retain` before anything else happens to it.
    RetainFirst,
    /// A volume that was bound but not recorded is secured before its claim goes.
    SecureFirst,
    /// The key goes live only when the home is protected.
    LiveLast,
    /// The key is revoked before anything is archived.
    RevokeFirst,
    /// The key's Secret is gone before the release.
    SecretGone,
    /// A Computer that is being deleted authenticates nobody.
    DyingComputer,
    /// Neither does a namespace that is being deleted.
    DyingNamespace,
    /// An archive is read back, whole, before anything is destroyed.
    ReadBack,
    /// What is in the store is never overwritten.
    CreateOnly,
    /// Bytes that do not have the digest of their name never become visible.
    ObjectDigest,
    /// An archive pod writes for its own computer only.
    IngestUid,
    /// An archive counts for the deletion that made it, not for a later one of the same UID.
    OwnArchive,
    /// `BestEffort` counts the time in which a running operator saw that nothing worked on the archive.
    CountedWait,
    /// An override counts for the computer that it names.
    OverrideTarget,
    /// The archive pod and the custody claim are gone before the release.
    CustodyGone,
    /// A volume that is to go is gone before the release.
    VolumeGone,
    /// The receipt is stored before the release.
    ReceiptFirst,
    /// A deletion that has begun goes on, whatever a cache shows.
    NoWayBack,
    /// A look at the archive is not told as a step that goes on.
    QuietCheck,
    /// A volume is still `Retain` when its claim is deleted.
    StillRetained,
    /// A computer that lives is deleted only in the version that was seen.
    SeenVersion,
    /// The deadline of a step counts from its own beginning.
    StepBeginning,
    /// A revoked credential stays revoked.
    Tombstone,
    /// A failed pass is not repeated before its pause is over just because its own status was written.
    QuietBackoff,
    /// A write that succeeds and changes nothing counts as a failure.
    UndoneWrite,
}

impl Guard {
    /// All of them.
    pub const ALL: [Self; 38] = [
        Self::DeletePrecondition,
        Self::FinalizerFence,
        Self::StatusFence,
        Self::RecordVersion,
        Self::LiveAbsence,
        Self::LiveRecord,
        Self::OneLook,
        Self::LatestRecord,
        Self::TypedNotFound,
        Self::RecordedUid,
        Self::WritersStopped,
        Self::VanishedPod,
        Self::ClaimGone,
        Self::RetainFirst,
        Self::SecureFirst,
        Self::LiveLast,
        Self::RevokeFirst,
        Self::SecretGone,
        Self::DyingComputer,
        Self::DyingNamespace,
        Self::ReadBack,
        Self::CreateOnly,
        Self::ObjectDigest,
        Self::IngestUid,
        Self::OwnArchive,
        Self::CountedWait,
        Self::OverrideTarget,
        Self::CustodyGone,
        Self::VolumeGone,
        Self::ReceiptFirst,
        Self::NoWayBack,
        Self::QuietCheck,
        Self::StillRetained,
        Self::SeenVersion,
        Self::StepBeginning,
        Self::Tombstone,
        Self::QuietBackoff,
        Self::UndoneWrite,
    ];
}

/// Whether a guard stands: always.
#[cfg(not(feature = "guards-off"))]
#[inline]
pub const fn on(_: Guard) -> bool {
    true
}

#[cfg(all(feature = "guards-off", not(debug_assertions)))]
compile_error!("guards-off is for the simulator; nothing that is released may have it");

#[cfg(feature = "guards-off")]
mod switch {
    use std::cell::Cell;

    use super::Guard;

    thread_local! {
        /// One bit for each guard.
        static OFF: Cell<u64> = const { Cell::new(0) };
    }

    const fn bit(guard: Guard) -> u64 {
        1 << guard as u64
    }

    /// Whether a guard stands on this thread.
    pub fn on(guard: Guard) -> bool {
        OFF.get() & bit(guard) == 0
    }

    /// Runs `work` without these guards, on this thread only.
    pub fn without<T>(guards: &[Guard], work: impl FnOnce() -> T) -> T {
        OFF.set(guards.iter().fold(0, |off, g| off | bit(*g)));
        let result = work();
        OFF.set(0);
        result
    }
}

#[cfg(feature = "guards-off")]
pub use switch::{on, without};
