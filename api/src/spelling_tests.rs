//! Every spelling that is stored or published, written out. A renamed variant must not change one, and what version b296e59 stored is
//! still read, and is written back as it was.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use self::record_of_b296e59::record_of_b296e59;
use super::reasons::Reason;
use super::steps::{CurrentStep, DeletionStep, ProvisionStep, Sequence, StepResult};
use super::*;

mod record_of_b296e59;

/// Each value has this spelling, and is read from it.
fn spelled<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(all: &[(T, &str)]) {
    for (value, spelling) in all {
        assert_eq!(serde_json::to_value(value).unwrap(), *spelling);
        assert_eq!(serde_json::from_value::<T>(json!(spelling)).unwrap(), *value);
    }
}

fn ids<S: Sequence>() -> Vec<(&'static str, &'static str)> {
    S::ALL.iter().map(|step| (step.id(), step.title())).collect()
}

#[test]
fn steps_keep_their_ids_titles_and_order() {
    let deletion = [
        ("revoke-credentials", "Revoke the key"),
        ("stop-pods", "Stop the pods"),
        ("archive-sessions", "Archive the sessions"),
        ("delete-volumes", "Delete the volume"),
        ("write-receipt", "Write the receipt"),
    ];
    assert_eq!(ids::<DeletionStep>(), deletion);
    let provision = [
        ("create-record", "Create the record"),
        ("issue-key", "Issue the key"),
        ("create-volume", "Create the home volume"),
        ("start-pod", "Start the pod"),
        ("protect-volume", "Protect the home volume"),
        ("activate-key", "Activate the key"),
    ];
    assert_eq!(ids::<ProvisionStep>(), provision);
    assert_eq!(CurrentStep::Release.id(), "release");
    for id in deletion.iter().chain(&provision).map(|(id, _)| *id).chain(["release"]) {
        assert_eq!(CurrentStep::from_id(id).map(CurrentStep::id), Some(id));
    }
    let skippable: Vec<_> = DeletionStep::ALL.iter().filter_map(|step| step.skippable().map(|s| json!(s))).collect();
    assert_eq!(json!(skippable), json!(["stop-pods", "archive-sessions", "delete-volumes", "write-receipt"]));
}

#[test]
fn event_reasons_keep_their_spelling() {
    for (step, name) in [
        (DeletionStep::RevokeCredentials, "RevokeCredentials"),
        (DeletionStep::StopPods, "StopPods"),
        (DeletionStep::ArchiveSessions, "ArchiveSessions"),
        (DeletionStep::DeleteVolumes, "DeleteVolumes"),
        (DeletionStep::WriteReceipt, "WriteReceipt"),
    ] {
        for status in ["Pending", "Running", "Blocked", "Completed", "NotApplicable", "Skipped"] {
            let read: StepStatus = serde_json::from_value(json!(status)).unwrap();
            assert_eq!(step.event_reason(read), format!("{name}{status}"));
        }
    }
}

#[test]
fn states_keep_their_spelling() {
    spelled(&[(StepResult::Verified, "Verified"), (StepResult::NotApplicable, "NotApplicable"), (StepResult::Skipped, "Skipped")]);
    spelled(&[(StepResult::Unknown("OfTomorrow".to_owned()), "OfTomorrow")]);
    spelled(&[
        (StepStatus::Pending, "Pending"),
        (StepStatus::Running, "Running"),
        (StepStatus::Blocked, "Blocked"),
        (StepStatus::Completed, "Completed"),
        (StepStatus::NotApplicable, "NotApplicable"),
        (StepStatus::Skipped, "Skipped"),
    ]);
    spelled(&[(ArchivePolicy::Required, "Required"), (ArchivePolicy::BestEffort, "BestEffort"), (ArchivePolicy::None, "None")]);
    spelled(&[(UnreadableFiles::Block, "Block"), (UnreadableFiles::Record, "Record")]);
    spelled(&[(OnNamespaceDeletion::Wait, "Wait"), (OnNamespaceDeletion::HandOff, "HandOff")]);
    spelled(&[(CredentialState::Pending, "Pending"), (CredentialState::Live, "Live"), (CredentialState::Revoked, "Revoked")]);
    spelled(&[(RecordPhase::Live, "Live"), (RecordPhase::Deleting, "Deleting"), (RecordPhase::Released, "Released")]);
    spelled(&[
        (Cause::ComputerDeleted, "ComputerDeleted"),
        (Cause::NamespaceTerminating, "NamespaceTerminating"),
        (Cause::TimeToLiveExpired, "TimeToLiveExpired"),
        (Cause::ComputerVanished, "ComputerVanished"),
        (Cause::Unknown("OfTomorrow".to_owned()), "OfTomorrow"),
    ]);
    spelled(&[(Provider::Managed, "Managed"), (Provider::BYOM, "BYOM")]);
    spelled(&[
        (Phase::Provisioning, "Provisioning"),
        (Phase::Active, "Active"),
        (Phase::Suspended, "Suspended"),
        (Phase::Error, "Error"),
        (Phase::Deleting, "Deleting"),
    ]);
    spelled(&[
        (SkippableStep::StopPods, "stop-pods"),
        (SkippableStep::ArchiveSessions, "archive-sessions"),
        (SkippableStep::UnreadableFiles, "unreadable-files"),
        (SkippableStep::DeleteVolumes, "delete-volumes"),
        (SkippableStep::WriteReceipt, "write-receipt"),
    ]);
    spelled(&[
        (SessionPhase::Idle, "Idle"),
        (SessionPhase::Pending, "Pending"),
        (SessionPhase::Running, "Running"),
        (SessionPhase::Archived, "Archived"),
        (SessionPhase::Ended, "Ended"),
    ]);
    let rights = [KeyRight::Get, KeyRight::Sessions, KeyRight::DeleteSessions, KeyRight::Patch, KeyRight::Delete];
    assert_eq!(rights.map(KeyRight::as_str), ["get", "sessions", "delete-sessions", "patch", "delete"]);
    let policies = [ArchivePolicy::Required, ArchivePolicy::BestEffort, ArchivePolicy::None];
    assert_eq!(policies.map(ArchivePolicy::as_str), ["Required", "BestEffort", "None"]);
}

#[test]
fn conditions_keep_their_spelling() {
    use super::conditions::types::{ACCEPTED, BLOCKED, COMPLETE, DELETING, DRIFTED, READY, STALLED};
    let all = [READY, DELETING, BLOCKED, DRIFTED, STALLED, ACCEPTED, COMPLETE];
    assert_eq!(all, ["Ready", "Deleting", "Blocked", "Drifted", "Stalled", "Accepted", "Complete"]);
}

#[test]
fn reasons_keep_their_spelling() {
    let all: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    let expected = "Ready Provisioning Suspended Deleting InProgress ClassChanged ClassNotFound AmbiguousDefaultClass ClassNotAccepted \
        ClassNotChecked StorageTooLarge KeyLost KeyReplacement CrashLoop HomeVolumeLost HomeClaimDeleted PodUnschedulable PodNotStarting SecretHeld \
        PodStillRunning PodStateUnknown NodeUnreachable PodHeld ForeignPodHoldsClaim ClaimHeld VolumeAttached VolumeMarked \
        VolumePolicyUnknown VolumeBeingDeleted VolumeLost VolumeTaken CustodyClaimDeleted CustodyNotBound ArchivePodWaiting ArchivePodUnschedulable \
        ArchiveFailed ArchiveOverdue UnreadableFiles ArchiveTooLarge ArchiveDamaged StoreUnavailable ArchivePodHeld VolumeNotDeleted ComputerHeld \
        WriteUndone Conflict Forbidden NamespaceTerminating Refused NotFound ApiServerUnavailable InForce NotDeleting NameMismatch \
        Accepted NotRestricted NoSessionPaths InvalidSessionPath InvalidPodTemplate ArchiveNotPossible CheckFailed CheckRefused Issued Issuing \
        Expired Revoked SecretMissing ServiceAccountNotFound ServiceAccountDeleted ServiceAccountReplaced Erased NothingToErase Erasing Removed \
        ArchiveHeld HoldsUnknown NotReleased NoReceipt ErasureMismatch ArchiveUnreadable";
    assert_eq!(all, expected.split_whitespace().collect::<Vec<_>>());
}

/// Tools treat `Stalled` as a failure: a reason is on this list only if nothing happens until a user changes something.
#[test]
fn the_reasons_that_need_a_change_are_known() {
    let all: Vec<&str> = Reason::ALL.iter().filter(|reason| reason.needs_a_change()).map(|reason| reason.as_str()).collect();
    let expected = "ClassNotAccepted StorageTooLarge KeyLost HomeVolumeLost NoSessionPaths InvalidSessionPath InvalidPodTemplate \
        ArchiveNotPossible Expired Revoked SecretMissing ServiceAccountDeleted ServiceAccountReplaced NoReceipt ErasureMismatch";
    assert_eq!(all, expected.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn a_record_of_b296e59_is_read() {
    let state: RecordState = serde_json::from_value(record_of_b296e59(3)).unwrap();
    let deletion = state.deletion.as_ref().unwrap();
    let result = |step| deletion.steps.get(step).map(|o| o.result.clone());
    assert_eq!(result(DeletionStep::ArchiveSessions), Some(StepResult::Verified));
    assert_eq!(result(DeletionStep::DeleteVolumes), None);
    assert!(deletion.started.get(DeletionStep::DeleteVolumes).is_some());
    assert_eq!(deletion.finished_at(DeletionStep::StopPods).map(|at| at.0.as_second()), Some(1_795_773_607));
    let again = serde_json::to_value(&state).unwrap();
    assert_eq!(again["deletion"]["steps"]["stop-pods"]["result"], "Verified");
    assert_eq!(again["deletion"]["archive"], record_of_b296e59(3)["deletion"]["archive"]);
}

#[test]
fn a_status_of_b296e59_is_read_and_written_back() {
    let step = |id: &str, name: &str, status: &str| json!({"id": id, "name": name, "status": status, "startedAt": "2026-11-27T10:00:00Z"});
    let condition = |type_: &str, reason: &str| json!({"type": type_, "status": "True", "reason": reason, "message": "m", "lastTransitionTime": "2026-11-27T10:00:00Z"});
    let status = json!({
        "observedGeneration": 1, "phase": "Deleting", "step": "stop-pods", "className": "default",
        "conditions": [condition("Deleting", "PodStillRunning"), condition("Blocked", "PodStillRunning")],
        "provisioningSteps": [step("create-record", "Create the record", "Completed"), step("protect-volume", "Protect the home volume", "Completed")],
        "deletionSteps": [step("revoke-credentials", "Revoke the key", "Completed"), step("stop-pods", "Stop the pods", "Blocked")],
        "deletedAt": "2026-11-27T10:00:00Z",
    });
    let read: ComputerStatus = serde_json::from_value(status.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), status);
    assert_eq!(CurrentStep::from_id(read.step.as_deref().unwrap()), Some(CurrentStep::Deletion(DeletionStep::StopPods)));
}

#[test]
fn a_receipt_on_record_of_b296e59_is_read() {
    let mut stored = record_of_b296e59(4);
    stored["phase"] = json!("Released");
    stored["deletion"]["receipt"] = json!({"storeKey": "computers/u/receipt.json", "digest": "d", "at": "2026-11-27T10:00:09Z"});
    let state: RecordState = serde_json::from_value(stored).unwrap();
    let deletion = state.deletion.unwrap();
    assert_eq!(deletion.finished_at(DeletionStep::WriteReceipt).map(|at| at.0.as_second()), Some(1_795_773_609));
    let receipt = deletion.receipt.unwrap();
    assert_eq!((receipt.store_key.as_deref(), receipt.digest.as_str()), (Some("computers/u/receipt.json"), "d"));
    assert!(receipt.unknown.is_empty());
}

/// A cause, a step or a result of a newer version must survive that an older one replaces the record.
#[test]
fn values_of_a_newer_version_are_kept() {
    let mut stored = record_of_b296e59(2);
    stored["deletion"]["steps"]["shred-disk"] = json!({"result": "Postponed", "detail": "", "at": "2026-11-27T10:00:09.000000Z"});
    stored["deletion"]["cause"] = json!("DiskFull");
    stored["ending"] = json!({"cause": "DiskFull", "at": "2026-11-27T10:00:09.000000Z"});
    stored["deletion"]["started"] = json!({"shred-disk": "2026-11-27T10:00:09.000000Z"});
    let read: RecordState = serde_json::from_value(stored.clone()).unwrap();
    let again = serde_json::to_value(&read).unwrap();
    assert_eq!(again["deletion"]["steps"]["shred-disk"], stored["deletion"]["steps"]["shred-disk"]);
    assert_eq!(again["deletion"]["started"], stored["deletion"]["started"]);
    assert_eq!((&again["deletion"]["cause"], &again["ending"]), (&stored["deletion"]["cause"], &stored["ending"]));
}
