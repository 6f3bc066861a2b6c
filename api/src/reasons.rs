//! The reasons of conditions, and of the events about them: one closed list, each with what it means and what to do.
//!
//! A reason is published: alerts, scripts and people depend on its spelling, which never changes. `docs/reasons.md` is generated from
//! the comments here (`cargo xtask generate`).

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $reason:ident,)+) => {
        /// The reason of a condition.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $reason),+ }

        impl Reason {
            /// All reasons, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$reason),+];

            /// As it is published.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$reason => stringify!($reason)),+ }
            }

            /// The lines of its documentation.
            fn lines(self) -> &'static [&'static str] {
                match self { $(Self::$reason => &[$($doc),+]),+ }
            }
        }
    };
}

/// Where the remedy begins in the documentation of a reason.
const REMEDY: &str = "To do: ";

impl Reason {
    /// What it means.
    pub fn meaning(self) -> String {
        self.text().0
    }

    /// What to do about it.
    pub fn remedy(self) -> String {
        self.text().1
    }

    /// Whether nothing happens until a user changes the object, or what it refers to: the condition `Stalled`. A missing
    /// object that may still be applied, such as a class, is not `Stalled`, because `helm --wait`, Flux and others fail as soon as they see `Stalled`.
    pub const fn needs_a_change(self) -> bool {
        matches!(
            self,
            Self::ClassNotAccepted
                | Self::StorageTooLarge
                | Self::KeyLost
                | Self::HomeVolumeLost
                | Self::NoSessionPaths
                | Self::InvalidSessionPath
                | Self::InvalidPodTemplate
                | Self::ArchiveNotPossible
                | Self::Expired
                | Self::Revoked
                | Self::SecretMissing
                | Self::ServiceAccountDeleted
                | Self::ServiceAccountReplaced
                | Self::ErasureMismatch
                | Self::NoReceipt
        )
    }

    /// Where it is documented.
    pub fn anchor(self) -> String {
        format!("docs/reasons.md#{}", self.as_str().to_lowercase())
    }

    fn text(self) -> (String, String) {
        let lines: Vec<&str> = self.lines().iter().map(|line| line.trim()).collect();
        let text = lines.join(" ");
        let (meaning, remedy) = text.split_once(REMEDY).unwrap_or((&text, ""));
        (meaning.trim().to_owned(), remedy.trim().to_owned())
    }

    /// The page `docs/reasons.md`.
    pub fn document() -> String {
        let mut page =
            "# Reasons\n\nWhat the reasons of conditions, and of the events about them, mean, and what to do. An event of a deletion step has \
             another reason: the step and\nits state, for example `ArchiveSessionsBlocked`. Generated from `api/src/reasons.rs`: run \
             `cargo xtask generate`.\n"
                .to_owned();
        for reason in Self::ALL {
            let (meaning, remedy) = reason.text();
            page.extend(["\n## ", reason.as_str(), "\n\n", &meaning, "\n\n**What to do:** ", &remedy, "\n"]);
        }
        page
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

reasons! {
    /// The computer can be used.
    /// To do: nothing.
    Ready,
    /// The computer is being provisioned.
    /// To do: wait. The message names the step.
    Provisioning,
    /// The computer is suspended, as `spec.suspended` declares. No pod runs. Its home volume and its key are kept. `Ready` is `True`, so that
    /// `helm --wait`, Flux and others see that the declared state is reached.
    /// To do: nothing. Set `spec.suspended` to `false` to start it.
    Suspended,
    /// The computer is being deleted, and its key no longer authenticates.
    /// To do: wait. The condition `Deleting` names the step, and `Blocked` says what it waits for.
    Deleting,
    /// The deletion makes progress.
    /// To do: wait.
    InProgress,
    /// The class or the spec of the computer changed after its pod was created, or the pod mounts the Secret of a former key. A running pod is
    /// never changed.
    /// To do: suspend and resume the computer to apply the change.
    ClassChanged,

    /// The ComputerClass does not exist, or no class is the default.
    /// To do: create the class, name another one in `spec.className`, or annotate one as the default.
    ClassNotFound,
    /// More than one ComputerClass is annotated as the default.
    /// To do: name a class in `spec.className`, or remove the annotation from all classes but one.
    AmbiguousDefaultClass,
    /// The ComputerClass cannot be used.
    /// To do: see the condition `Accepted` of the class, and fix the class.
    ClassNotAccepted,
    /// The operator has not checked a new or changed ComputerClass yet, or could not check it. It repeats the check.
    /// To do: wait some seconds. If it stays so, see the condition `Accepted` of the class, or ask a cluster admin to see the operator's log.
    ClassNotChecked,
    /// `spec.storage.size` is larger than the class allows.
    /// To do: delete the Computer and create one with a smaller volume.
    StorageTooLarge,
    /// The record of the computer was lost and re-created. The hash of the key is lost, so the key never authenticates again.
    /// To do: delete the Computer, which archives its sessions, and create another one. A rotation does not help.
    KeyLost,
    /// The key of the computer is being replaced, because its Secret was deleted, another object has the Secret's name, or
    /// `spec.key.rotation` changed. The new key is in a new Secret, which has the same name if a machine mounts it. The old key no longer authenticates, apart from
    /// `spec.key.overlapSeconds` after a rotation.
    /// To do: wait, then read the Secret that `status.credentialSecretName` names.
    KeyReplacement,
    /// The pods of the computer terminate by themselves soon after they start. The operator waits longer before each new pod.
    /// To do: fix the command, image or resources in the ComputerClass. To retry at once, suspend and resume the computer.
    CrashLoop,
    /// The home volume no longer exists.
    /// To do: delete the Computer.
    HomeVolumeLost,
    /// Someone deleted the claim of the home volume. The volume is kept, and the claim is re-created when the pod has stopped.
    /// To do: delete the pod, or suspend and resume the computer.
    HomeClaimDeleted,
    /// The scheduler finds no node for the pod.
    /// To do: see the message, which is the scheduler's. Add nodes, or change the resources, tolerations or affinity in the ComputerClass.
    PodUnschedulable,
    /// A container of the pod cannot start, or the pod has not been ready for five minutes.
    /// To do: see the message and `kubectl describe pod`, for example an image that cannot be pulled or a volume that cannot be mounted. After a
    /// change of the ComputerClass, suspend and resume the computer.
    PodNotStarting,

    /// A finalizer of another controller blocks the deletion of the key's Secret.
    /// To do: wait for that controller, or remove the finalizer.
    SecretHeld,
    /// The pod is terminating, but its containers are still running after its deadline.
    /// To do: check the node. If it is permanently lost, delete its Node object; during a deletion, a DeletionOverride can skip `stop-pods`.
    PodStillRunning,
    /// The kubelet has not reported whether the containers of the pod have stopped.
    /// To do: check the node. If it is permanently lost, delete its Node object; during a deletion, a DeletionOverride can skip `stop-pods`.
    PodStateUnknown,
    /// A pod was deleted without its kubelet, and its node is not ready, so its containers may still write to the volume.
    /// To do: bring the node back. If it is permanently lost, delete its Node object; during a deletion, a DeletionOverride can skip
    /// `stop-pods`.
    NodeUnreachable,
    /// The pod has stopped, but finalizers of other controllers block its deletion.
    /// To do: wait for those controllers, or remove the finalizers. A DeletionOverride does not remove them.
    PodHeld,
    /// Other pods use the claim of the home volume.
    /// To do: delete the pods that the message names.
    ForeignPodHoldsClaim,
    /// The claim of the volume is terminating and does not go away.
    /// To do: if the message names finalizers, wait for their controllers or remove the finalizers. Otherwise check
    /// kube-controller-manager. A DeletionOverride does not remove finalizers.
    ClaimHeld,
    /// The home volume is still attached to a node, which may still write to it.
    /// To do: wait. If the node is permanently lost, delete its Node object, or create a DeletionOverride that skips `stop-pods`.
    VolumeAttached,
    /// The home volume has the labels of another computer, so the operator cannot protect it for this one.
    /// To do: if that computer is gone, remove the label and the annotation that the message names.
    VolumeMarked,
    /// The home volume has lost the annotation with its original reclaim policy before the policy was recorded.
    /// To do: find the admission webhook or tool that removes the annotation, then set it with the command in the message.
    VolumePolicyUnknown,
    /// Someone deleted the home volume, and only its claim keeps it. Deleting the claim would destroy the home before it is archived.
    /// To do: save the home by hand, then create a DeletionOverride that skips `archive-sessions`.
    VolumeBeingDeleted,

    /// The home volume no longer exists, so there is nothing to archive.
    /// To do: create a DeletionOverride that skips `archive-sessions`.
    VolumeLost,
    /// The home volume belongs to another claim, so the operator does not touch it.
    /// To do: find who changed the `claimRef` of the volume. If it was a mistake, restore it, and the deletion continues. Otherwise create a
    /// DeletionOverride that skips `archive-sessions` and `delete-volumes`, which gives the sessions up.
    VolumeTaken,
    /// Another client is deleting the claim through which the volume is archived.
    /// To do: wait. The operator re-creates it.
    CustodyClaimDeleted,
    /// kube-controller-manager has not bound the volume to the claim through which it is archived.
    /// To do: check that kube-controller-manager is running, and see the events of the volume and the claim.
    CustodyNotBound,
    /// The archive pod cannot start.
    /// To do: see the message, and `kubectl describe` of the pod in the operator's namespace.
    ArchivePodWaiting,
    /// The scheduler finds no node for the archive pod.
    /// To do: see the message, which is the scheduler's.
    ArchivePodUnschedulable,
    /// An attempt to archive the sessions failed. The operator retries.
    /// To do: see the message and the logs of the archive pod.
    ArchiveFailed,
    /// Archiving has exceeded its deadline and is still running.
    /// To do: see the logs of the archive pod. Raise `deadlines.archiveSessionsSeconds` in the class if the homes are that large.
    ArchiveOverdue,
    /// The user of the machine cannot read some files in the home, and the class says `unreadableFiles: Block`.
    /// To do: create a DeletionOverride that skips `unreadable-files`. It archives the rest and gives these files up.
    UnreadableFiles,
    /// The archive would have more bytes than `archive.maxBytes` allows. Nothing was destroyed, and no deadline gives the sessions up.
    /// To do: raise `archive.maxBytes` of the ComputerClass: this deletion continues within a minute. An upgrade resets the chart's own class,
    /// so also set `defaultClass.spec.archive.maxBytes`. If the class was deleted, create it again with a larger bound. Or create a
    /// DeletionOverride that skips `archive-sessions`, which gives the sessions up.
    ArchiveTooLarge,
    /// The archive in the store does not verify.
    /// To do: repair the store, or create a DeletionOverride that skips `archive-sessions`.
    ArchiveDamaged,
    /// The archive store does not answer, or refuses the request.
    /// To do: check the store and its credentials. The operator retries.
    StoreUnavailable,

    /// Finalizers of other controllers block the deletion of the archive pod.
    /// To do: wait for those controllers, or remove the finalizers.
    ArchivePodHeld,
    /// The volume is released, and its provisioner has not deleted it before the deadline.
    /// To do: check the provisioner, or create a DeletionOverride that skips `delete-volumes`.
    VolumeNotDeleted,
    /// The deletion is complete and its receipt is stored, but finalizers of other controllers keep the Computer.
    /// To do: wait for those controllers, or remove the finalizers.
    ComputerHeld,

    /// The operator's requests succeed, but a mutating webhook or policy removes the change.
    /// To do: exclude the operator from that webhook or policy.
    WriteUndone,
    /// Every write of the operator conflicts with another writer.
    /// To do: find the controller or webhook that changes the object, and exclude the object from it.
    Conflict,
    /// The API server refuses a request of the operator: a right is missing, or a quota or admission policy forbids it.
    /// To do: see the message. Install the chart's RBAC, raise the quota, or exempt the operator from the policy.
    Forbidden,
    /// The namespace is terminating, so nothing can be created in it.
    /// To do: wait.
    NamespaceTerminating,
    /// The API server refuses a request of the operator as invalid.
    /// To do: see the message. A webhook or a policy may have refused it.
    Refused,
    /// Something that a request needs does not exist.
    /// To do: see the message.
    NotFound,
    /// The API server does not answer, or answers with an error.
    /// To do: check the control plane. The operator retries.
    ApiServerUnavailable,

    /// The DeletionOverride is in effect for a deletion.
    /// To do: nothing.
    InForce,
    /// The computer of the DeletionOverride is not being deleted.
    /// To do: nothing. The override takes effect when the computer is deleted.
    NotDeleting,
    /// The UID in the DeletionOverride belongs to a computer of another name or namespace.
    /// To do: create another DeletionOverride with the name, namespace and UID of the same computer.
    NameMismatch,

    /// The ComputerClass can be used.
    /// To do: nothing.
    Accepted,
    /// The ComputerClass can be used only in namespaces whose Pod Security level permits its pods.
    /// To do: nothing, if those namespaces permit them. Otherwise change `spec.podTemplate`.
    NotRestricted,
    /// `spec.sessionPaths` of the class is empty, and sessions are to be archived.
    /// To do: name a folder, name `.` for the whole home, or set `archive.policy: None`.
    NoSessionPaths,
    /// A path in `spec.sessionPaths` of the class cannot be used.
    /// To do: name folders relative to the home, without `..`.
    InvalidSessionPath,
    /// `spec.podTemplate` of the class has a field that does not exist, or the API server refuses pods of the class as invalid.
    /// To do: see the message, which names the field, and fix `spec.podTemplate`.
    InvalidPodTemplate,
    /// The archive pods of the class would be refused, so its computers could not be deleted.
    /// To do: change the user in `spec.podTemplate`, permit such pods in the operator's namespace, or set `archive.policy: None`.
    ArchiveNotPossible,
    /// A request that the check of a new ComputerClass needs failed, so it is not known whether the class can be used.
    /// To do: see the message. The operator retries every 30 seconds.
    CheckFailed,
    /// The API server refuses the dry run of the class's pods.
    /// To do: let the operator create pods in its own namespace. The operator retries every minute.
    CheckRefused,

    /// The `ApiKey` has a token.
    /// To do: nothing. `status.secretName` names its Secret.
    Issued,
    /// The token of the `ApiKey` is being issued.
    /// To do: wait.
    Issuing,
    /// `spec.expiresAt` of the `ApiKey` is past.
    /// To do: set it to a later time or remove it, and change `spec.rotation` if the message says so.
    Expired,
    /// The token of the `ApiKey` was revoked.
    /// To do: change `spec.rotation` for another token.
    Revoked,
    /// The Secret of the `ApiKey` was deleted. The token still authenticates every client that has a copy of it.
    /// To do: change `spec.rotation` for another token, or delete the `ApiKey` to revoke it.
    SecretMissing,
    /// The ServiceAccount of the `ApiKey` does not exist.
    /// To do: create it.
    ServiceAccountNotFound,
    /// The ServiceAccount of the `ApiKey` was deleted, so its token was revoked.
    /// To do: see the message.
    ServiceAccountDeleted,
    /// The ServiceAccount of the `ApiKey` was deleted and created again, so its token was revoked.
    /// To do: see the message.
    ServiceAccountReplaced,

    /// The archives that the ArchiveErasure names are erased. The receipt stays, and the tombstone says who requested it.
    /// To do: nothing.
    Erased,
    /// The archive store has no data of the computer that the ArchiveErasure names, for example because it was erased before.
    /// To do: nothing.
    NothingToErase,
    /// The archives that the ArchiveErasure names are being erased.
    /// To do: wait.
    Erasing,
    /// The archives that the ArchiveErasure names are removed. The operator checks the archive store again a day after the decision, because
    /// a request that was sent before may still be running. The erasure is complete when nothing is found then.
    /// To do: wait, see the message for the time.
    Removed,
    /// An ArchiveHold names the archive, so the archive is not destroyed.
    /// To do: see the message, which names the hold. Delete it when its matter is closed: the erasure then continues.
    ArchiveHeld,
    /// The ArchiveHolds cannot be read, so the archive counts as held and is not destroyed.
    /// To do: see the message. Check that the API server answers, that the CustomResourceDefinition
    /// `archiveholds.computer-operator.dev` is installed, and that the operator may list it. The operator retries.
    HoldsUnknown,
    /// The computer that the ArchiveErasure names exists, or its deletion is not complete.
    /// To do: delete the computer, and wait until its deletion is complete. The erasure then continues.
    NotReleased,
    /// The deletion of the computer that the ArchiveErasure names has no receipt in the archive store, so nothing proves that it is complete.
    /// To do: check the UID and the archive store. If an override skipped the receipt, remove the objects by hand.
    NoReceipt,
    /// The UID in the ArchiveErasure belongs to a computer of another name or namespace.
    /// To do: create another ArchiveErasure with the name, namespace and UID of the same computer.
    ErasureMismatch,
    /// The archive store has objects of the computer that this version of the operator cannot read or does not know, so it does not erase them.
    /// To do: see the message, which names the object. Upgrade the operator, or repair or remove that object by hand.
    ArchiveUnreadable,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_says_what_it_means_and_what_to_do() {
        for reason in Reason::ALL {
            assert!(reason.meaning().ends_with('.') && reason.remedy().ends_with('.'), "{reason}: {:?}", reason.text());
            assert!(reason.anchor().ends_with(&reason.as_str().to_lowercase()));
        }
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reasons.md")).expect("docs/reasons.md");
        assert!(page == Reason::document(), "docs/reasons.md is not what api/src/reasons.rs generates: run `cargo xtask generate`");
    }
}
