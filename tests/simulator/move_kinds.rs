//! What the adversary can do: see `moves`, which does it.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Move {
    /// `kubectl delete computer`, with each of the three propagation policies.
    Delete,
    DeleteForeground,
    DeleteOrphan,
    /// An editor removes the finalizer, during a deletion or not.
    StripFinalizer,
    /// Everything at once: all finalizers of the computer and its pods are removed, and all are force-deleted.
    StripAndForce,
    /// `kubectl delete pod --force`.
    ForcePods,
    /// The claim or the key's Secret is deleted by hand.
    DeleteClaims,
    DeleteSecrets,
    /// The key is rotated. The life `LostKey` makes this move.
    RotateKey,
    /// `kubectl delete namespace`.
    DeleteNamespace,
    /// Objects that imitate the operator's: its labels, its owner reference, a pod that mounts the home claim.
    Plant,
    /// Deletes the computer and retries to create another one with the same name until it exists.
    Recreate,
    /// Removes the finalizer, deletes the computer and creates another one with the same name, all at one instant.
    Replace,
    /// The class is changed or deleted.
    DeleteClass,
    /// The node stops responding for a while; its containers continue to run.
    LoseNode,
    /// Suspends the machine and resumes it.
    Suspend,
    Resume,
    /// The custody claim and the archive pod are deleted by an admin's mistake.
    WreckCustody,
    /// The tenant deletes the operator's objects and creates others under the same names.
    Impersonate,
    /// The store loses an object as soon as the manifest is stored.
    LoseObject,
    /// An admin's `GitOps` tool resets the reclaim policy of all volumes.
    ResetPolicy,
    /// The same with one patch that also removes all labels of the volumes.
    StripVolumes,
    /// A pod of the tenant holds the home's claim, and a minute later the reclaim policy of all volumes is reset.
    HoldAndReset,
    /// The node stops responding, and everything is force-deleted while it does: its kubelet kills nothing before it is back.
    VanishOnLostNode,
    /// Extends the time to live by 15 minutes.
    Prolong,
    /// DELETE over HTTP: the Computer is deleted, then its record is revoked.
    DeleteOverHttp,
    /// The store does not answer for 13 minutes, or for 8 if `BestEffort` gives up after 10.
    StoreOut,
    /// etcd was restored from a backup: the store has the archive of a deletion that the cluster no longer knows.
    OldArchive,
    /// The operators' clock is an hour ahead from now on.
    ClockAhead,
    /// The homes are large: archive pods take longer than any deadline.
    SlowArchive,
    /// For ten minutes a mutating webhook removes the finalizer from Computers and the marks from volumes when the operator writes them.
    UndoWrites,
    /// From now on every machine ends as soon as it runs.
    EndMachines,
    /// For ten minutes another controller keeps a finalizer on the Computer and all its objects.
    HoldAll,
}

impl Move {
    /// The moves that last longer than a few seconds: the stage `lasting` makes them.
    pub const LASTING: [Self; 3] = [Self::UndoWrites, Self::EndMachines, Self::HoldAll];
    pub const ALL: [Self; 29] = [
        Self::Delete,
        Self::DeleteForeground,
        Self::DeleteOrphan,
        Self::StripFinalizer,
        Self::StripAndForce,
        Self::ForcePods,
        Self::DeleteClaims,
        Self::DeleteSecrets,
        Self::DeleteNamespace,
        Self::Plant,
        Self::Recreate,
        Self::Replace,
        Self::DeleteClass,
        Self::LoseNode,
        Self::Suspend,
        Self::Resume,
        Self::WreckCustody,
        Self::Impersonate,
        Self::LoseObject,
        Self::ResetPolicy,
        Self::StripVolumes,
        Self::Prolong,
        Self::DeleteOverHttp,
        Self::StoreOut,
        Self::OldArchive,
        Self::ClockAhead,
        Self::SlowArchive,
        Self::HoldAndReset,
        Self::VanishOnLostNode,
    ];
}
