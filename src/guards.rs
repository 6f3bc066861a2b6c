//! The guards: every check that a promise depends on, by name. The simulator switches one off at a time and proves that its own checks
//! notice (`docs/guards.md`). In a release every guard is a constant; nothing here may be switched off there.

/// One list for the enum and for [`Guard::ALL`].
macro_rules! guards {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// A guard.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Guard {
            $($(#[$doc])+ $name,)+
        }

        impl Guard {
            /// All of them.
            pub const ALL: [Self; [$(stringify!($name)),+].len()] = [$(Self::$name),+];
        }
    };
}

guards! {
    /// Every delete names the UID that it is meant for.
    DeletePrecondition,
    /// A patch of a Computer's finalizers tests its UID and its resourceVersion.
    FinalizerFence,
    /// A status is written only to the UID that it was computed for.
    StatusFence,
    /// A record is replaced only in the version that was read.
    RecordVersion,
    /// An object that is missing from a cache is read live.
    LiveAbsence,
    /// The record is read live before an object is created and before a volume is marked.
    LiveRecord,
    /// A live read of the record is valid for the next request only.
    OneLook,
    /// A plan never uses a record older than one this process has already seen.
    LatestRecord,
    /// Only a 404 with the API server's reason `NotFound` proves absence.
    TypedNotFound,
    /// Under a recorded name, only the object with the recorded UID is owned.
    RecordedUid,
    /// A pod has stopped when its kubelet has reported that every container terminated.
    WritersStopped,
    /// A pod that disappeared without that report is waited for.
    VanishedPod,
    /// The claim is gone before the archive pod reads the volume.
    ClaimGone,
    /// A bound volume is set to `Retain` before anything else happens to it.
    RetainFirst,
    /// A volume that is bound but not recorded is set to `Retain` before its claim is deleted.
    SecureFirst,
    /// The key authenticates only once the home volume is set to `Retain`.
    LiveLast,
    /// The key is revoked before anything is archived.
    RevokeFirst,
    /// The key's Secret is gone before the finalizer is removed.
    SecretGone,
    /// The key of a Computer that is being deleted does not authenticate.
    DyingComputer,
    /// A key in a namespace that is being deleted does not authenticate.
    DyingNamespace,
    /// An archive is read back completely before anything is destroyed.
    ReadBack,
    /// An object in the store is never overwritten.
    CreateOnly,
    /// Bytes whose digest does not match their name never become visible in the store.
    ObjectDigest,
    /// An archive pod can write to the archive of its own computer only.
    IngestUid,
    /// An archive counts for the deletion that made it, not for a later one of the same UID.
    OwnArchive,
    /// `BestEffort` counts only time in which a running operator saw no work on the archive.
    CountedWait,
    /// An override applies only to the computer that it names.
    OverrideTarget,
    /// The archive pod and the custody claim are gone before the finalizer is removed.
    CustodyGone,
    /// A volume that is to be deleted is gone before the finalizer is removed.
    VolumeGone,
    /// The receipt is stored before the finalizer is removed.
    ReceiptFirst,
    /// An archive check is not reported as progress.
    QuietCheck,
    /// A volume is still `Retain` when its claim is deleted.
    StillRetained,
    /// The volume is reserved for the archive as soon as its claim is gone.
    Reserved,
    /// A computer whose time to live has expired is deleted only in the version that was read.
    SeenVersion,
    /// The deadline of a step counts from the start of that step.
    StepBeginning,
    /// A revoked credential stays revoked.
    Tombstone,
    /// The status write of a failed reconcile does not shorten its backoff.
    QuietBackoff,
    /// A write that succeeds and changes nothing counts as a failure.
    UndoneWrite,
}

/// Whether a guard is on: always.
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

    /// Whether a guard is on for this thread.
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
