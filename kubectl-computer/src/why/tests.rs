//! The text of `why` for the situations that users and admins meet.

use computer_operator_api::reasons::Reason;
use serde_json::{Value, json};

use super::*;
use crate::test_objects::{UID, observed};

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:22:00Z"})
}

/// A deletion at a step that has been blocked for 38 minutes.
fn stuck(step: &str, reason: &str, message: &str) -> Value {
    json!({
        "metadata": {"deletionTimestamp": "2026-01-01T00:19:00Z", "finalizers": [DELETION_FINALIZER]},
        "status": {
            "phase": "Deleting", "step": step, "nodeName": "n3",
            "conditions": [condition("Blocked", "True", reason, message), condition("Deleting", "True", reason, message)],
            "children": {"claimName": "home-1", "secretName": "computer-key-1", "pods": [{"name": "machine-1", "uid": "p", "node": "n3"}],
                "volume": {"name": "pv-31", "uid": "v", "originalReclaimPolicy": "Delete"}},
            "deletionSteps": [{"id": "revoke-credentials", "name": "Revoke the key", "status": "Completed"}, {"id": step, "name": "x", "status": "Blocked", "startedAt": "2026-01-01T00:20:00Z"}],
        },
    })
}

fn why(computer: Value) -> (Verdict, String) {
    shown(&observed(Some(computer), None))
}

fn shown(observed: &Observed) -> (Verdict, String) {
    let why = explain(observed);
    (why.verdict, why.text())
}

fn contains(text: &str, parts: &[&str]) {
    // Paragraphs are wrapped.
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        assert!(flat.contains(part), "{part:?} is missing in\n{text}");
    }
}

#[test]
fn the_store_does_not_answer() {
    let (verdict, text) = why(stuck("archive-sessions", "StoreUnavailable", "the archive store is not available: 503 SlowDown"));
    assert_eq!(verdict, Verdict::Blocked);
    contains(
        &text,
        &[
            "Computer team-a/box (0b4f1c1e",
            "BLOCKED for 38m: StoreUnavailable, in step 3 of 5, archive-sessions (Archive the sessions). Its deletion began 41m ago.",
            "503 SlowDown",
            &Reason::StoreUnavailable.meaning(),
            &Reason::StoreUnavailable.remedy(),
            "the key no longer authenticates; the sessions are not archived yet; the home volume pv-31 is kept until they are.",
            "# for a cluster admin: what is wrong with the store; if the release has another name, use that helm test computer-operator -n operator --logs",
            "kubectl create secret generic archive-store -n operator --from-literal=AWS_ACCESS_KEY_ID=ID",
        ],
    );
    assert!(!text.contains("override"), "the sessions are archived once the store works\n{text}");
    let (_, text) = why(stuck("write-receipt", "StoreUnavailable", "503"));
    contains(&text, &["ONLY if there is no other way", "kubectl computer override box -n team-a --skip write-receipt --reason"]);
}

#[test]
fn the_disk_of_the_home_is_lost_with_its_node() {
    let (_, text) = why(stuck("archive-sessions", "ArchivePodUnschedulable", "0/3 nodes are available"));
    contains(
        &text,
        &[
            "ONLY if the node and its disk are lost",
            "It gives up ALL sessions of this computer.",
            "kubectl computer override box -n team-a --skip archive-sessions,delete-volumes --reason",
        ],
    );
}

#[test]
fn a_node_is_lost() {
    let (_, text) = why(stuck("stop-pods", "NodeUnreachable", "node n3 is not ready"));
    contains(
        &text,
        &[
            "kubectl get pod/machine-1 -n team-a -o yaml",
            "kubectl get node n3",
            "ONLY if the node is permanently lost kubectl delete node n3",
            "--skip stop-pods",
        ],
    );
}

#[test]
fn a_finalizer_of_another_controller_holds_a_pod() {
    let (_, text) = why(stuck("stop-pods", "PodHeld", "finalizers of other controllers: example.com/x"));
    contains(&text, &["kubectl get pod/machine-1 -n team-a -o jsonpath='{.metadata.finalizers}'", &Reason::PodHeld.remedy()]);
    assert!(!text.contains("override"), "no override removes finalizers\n{text}");
}

#[test]
fn files_cannot_be_read() {
    let (_, text) = why(stuck("archive-sessions", "UnreadableFiles", "2 files cannot be read"));
    contains(&text, &["--skip unreadable-files", "kubectl logs -n operator -l computer-operator.dev/computer-uid=0b4f1c1e"]);
}

#[test]
fn the_volume_is_not_deleted() {
    let (_, text) = why(stuck("delete-volumes", "VolumeNotDeleted", "PersistentVolume pv-31 is released"));
    contains(&text, &["kubectl describe pv/pv-31", "--skip delete-volumes"]);
}

#[test]
fn a_secret_is_held_and_is_never_printed() {
    let (_, text) = why(stuck("revoke-credentials", "SecretHeld", "m"));
    contains(&text, &["kubectl get secret/computer-key-1 -n team-a -o jsonpath='{.metadata.finalizers}'"]);
    assert!(!text.contains("-o yaml") && !text.contains("override"), "{text}");
}

#[test]
fn a_deletion_that_makes_progress_is_fine() {
    let mut computer = stuck("archive-sessions", "InProgress", "at step archive-sessions");
    let message = "at step archive-sessions: archived 1.2 GB of about 3.4 GB, 12 of 40 sessions";
    computer["status"]["conditions"] = json!([condition("Deleting", "True", "InProgress", message)]);
    let (verdict, text) = why(computer);
    assert_eq!(verdict, Verdict::Working);
    contains(&text, &["Progress archived 1.2 GB of about 3.4 GB, 12 of 40 sessions"]);
    contains(
        &text,
        &[
            "Nothing is wrong. Its deletion began 41m ago: step 3 of 5, archive-sessions (Archive the sessions), has been running for 40m.",
            "is reported as blocked only when it has taken longer than 60m",
            "kubectl get computer/box -n team-a -w",
        ],
    );
}

#[test]
fn a_deletion_that_nobody_reports_about_is_not_fine() {
    let mut computer = stuck("stop-pods", "InProgress", "");
    computer["status"]["conditions"] = json!([condition("Deleting", "True", "InProgress", "")]);
    let (verdict, text) = why(computer);
    assert_eq!(verdict, Verdict::Blocked, "40 minutes, and the deadline is 10");
    contains(
        &text,
        &["OVERDUE. Its deletion began 41m ago: step 2 of 5", "kubectl logs -n operator -l app.kubernetes.io/component=controller"],
    );
}

#[test]
fn the_operator_does_not_react() {
    let finalizers = |list: Value| json!({"metadata": {"deletionTimestamp": "2026-01-01T00:50:00Z", "finalizers": list}});
    let (verdict, text) = why(finalizers(json!([DELETION_FINALIZER])));
    assert_eq!(verdict, Verdict::Blocked);
    contains(
        &text,
        &[
            "it was deleted 10m ago, and the operator has reported nothing",
            "kubectl logs -n operator -l app.kubernetes.io/component=controller",
        ],
    );
    let (_, text) = why(finalizers(json!(["example.com/x"])));
    contains(&text, &["only finalizers of other controllers keep it", "example.com/x"]);
}

#[test]
fn what_blocked_a_computer_that_lived_does_not_block_its_deletion() {
    let mut computer = stuck("start-pod", "CrashLoop", "m");
    computer["status"]["phase"] = json!("Error");
    computer["status"]["deletionSteps"] = json!([]);
    let (_, text) = why(computer);
    contains(&text, &["it was deleted 41m ago, and the operator has reported nothing"]);
    assert!(!text.contains("CrashLoop"), "{text}");
}

#[test]
fn the_class_is_not_found() {
    let ready = condition("Ready", "False", "ClassNotFound", "there is no ComputerClass x");
    let (verdict, text) = why(json!({"status": {"phase": "Error", "step": "create-record", "conditions": [ready]}}));
    assert_eq!(verdict, Verdict::Blocked);
    contains(&text, &["NOT READY for 38m: ClassNotFound, in step 1 of 6", "there is no ComputerClass x", "kubectl get computerclasses"]);
    assert!(!text.contains("override"), "{text}");
}

#[test]
fn a_pod_cannot_be_scheduled() {
    let conditions = [
        condition("Ready", "False", "Provisioning", "at step start-pod"),
        condition("Blocked", "True", "PodUnschedulable", "0/3 nodes are available"),
    ];
    let children = json!({"pods": [{"name": "machine-1"}]});
    let (_, text) = why(json!({"status": {"phase": "Error", "step": "start-pod", "conditions": conditions, "children": children}}));
    contains(&text, &["PodUnschedulable", "0/3 nodes are available", "kubectl describe pod/machine-1 -n team-a"]);
}

#[test]
fn a_key_is_being_replaced() {
    let ready = condition("Ready", "False", "KeyReplacement", "a new key is issued");
    let (verdict, text) = why(json!({"status": {"phase": "Provisioning", "conditions": [ready]}}));
    assert_eq!(verdict, Verdict::Working);
    contains(&text, &["Not ready for 38m: KeyReplacement", "-o jsonpath='{.status.credentialSecretName}'"]);
}

#[test]
fn a_suspended_and_a_ready_computer_are_fine() {
    let suspended =
        json!({"spec": {"suspended": true}, "status": {"phase": "Suspended", "conditions": [condition("Ready", "True", "Suspended", "")]}});
    let (verdict, text) = why(suspended);
    assert_eq!(verdict, Verdict::Fine);
    contains(&text, &["It is suspended, as its spec declares, for 38m.", "kubectl computer resume box -n team-a"]);
    let ready = json!({"status": {"phase": "Active", "expiresAt": "2026-01-01T02:00:00Z", "conditions": [condition("Ready", "True", "Ready", "")]}});
    let (verdict, text) = why(ready);
    assert_eq!(verdict, Verdict::Fine);
    contains(&text, &["It is ready, for 38m.", "its time to live expires in 60m"]);
}

#[test]
fn a_reason_of_another_version_is_shown_as_it_is() {
    let (verdict, text) = why(stuck("new-step", "NewReason", "something new"));
    assert_eq!(verdict, Verdict::Blocked);
    contains(&text, &["NewReason, in step new-step", "something new", "a reason of another version"]);
}

#[test]
fn a_computer_that_is_gone_and_complete_has_a_receipt() {
    let outcome = json!({"result": "Verified", "detail": "done", "at": "2026-01-01T00:10:00.000000Z"});
    let deletion = json!({"deletedAt": "2026-01-01T00:00:00Z", "cause": "ComputerDeleted", "steps": {"archive-sessions": outcome},
        "archive": {"manifestDigest": "m1", "sessions": 12, "bytes": 4096, "problems": 2}, "receipt": {"digest": "d1", "storeKey": "r/1", "at": "2026-01-01T00:20:00.000000Z"}});
    let (verdict, text) = shown(&observed(None, Some(json!({"phase": "Released", "deletion": deletion}))));
    assert_eq!(verdict, Verdict::Deleted);
    contains(
        &text,
        &[
            "Deleted 40m ago, on 2026-01-01T00:20:00Z: the deletion is complete.",
            "sha256:d1",
            "12 sessions, 4.0 KiB, WITHOUT 2 files",
            &format!("kubectl computer receipt {UID}"),
        ],
    );
}

fn handed_off() -> Observed {
    let outcome = json!({"result": "Verified", "detail": "done", "at": "2026-01-01T00:10:00.000000Z"});
    let deletion = json!({"deletedAt": "2026-01-01T00:00:00Z", "cause": "NamespaceTerminating", "handedOff": true,
        "steps": {"revoke-credentials": outcome, "stop-pods": outcome}, "started": {"archive-sessions": "2026-01-01T00:50:00.000000Z"}});
    observed(None, Some(json!({"phase": "Deleting", "deletion": deletion})))
}

#[test]
fn a_deletion_after_a_hand_off_is_explained_by_the_events_of_its_record() {
    let (verdict, text) = shown(&handed_off());
    assert_eq!(verdict, Verdict::Working);
    contains(
        &text,
        &[
            "Its deletion began 60m ago: step 3 of 5, archive-sessions (Archive the sessions), has been running for 10m.",
            "The namespace was released",
        ],
    );
    let mut blocked = handed_off();
    let event = |reason: &str, message: &str, minute: u32| {
        let time = format!("2026-01-01T00:{minute}:00Z");
        let event =
            json!({"metadata": {}, "involvedObject": {}, "type": "Warning", "reason": reason, "message": message, "lastTimestamp": time});
        serde_json::from_value::<k8s_openapi::api::core::v1::Event>(event).unwrap()
    };
    let (files, store) = (event("UnreadableFiles", "2 files", 52), event("StoreUnavailable", "archive-sessions: 503", 55));
    blocked.record_events = vec![event("PodHeld", "of an earlier step", 45), files, store];
    let (verdict, text) = shown(&blocked);
    assert_eq!(verdict, Verdict::Blocked);
    contains(
        &text,
        &[
            "BLOCKED: StoreUnavailable",
            "reported 5m ago",
            "archive-sessions: 503",
            "Or still UnreadableFiles, reported 8m ago: 2 files",
            &format!("kubectl computer override {UID} --skip unreadable-files"),
        ],
    );
    assert!(!text.contains("PodHeld"), "{text}");
}

#[test]
fn a_tenant_without_rights_learns_whom_to_ask() {
    let mut observed = observed(None, None);
    observed.record = Answer::Denied("get computerrecords.computer-operator.dev in namespace operator".to_owned());
    let (verdict, text) = shown(&observed);
    assert_eq!(verdict, Verdict::Unknown);
    contains(
        &text,
        &[
            "the right to get computerrecords.computer-operator.dev in namespace operator",
            "a cluster admin",
            "kubectl computer why box -n team-a",
            "--clusterrole=computer-operator-receipts",
        ],
    );
    observed.computer = Answer::Denied("get computers in namespace team-a".to_owned());
    contains(&shown(&observed).1, &["You may not read this Computer.", "the right to get computers in namespace team-a"]);
}

#[test]
fn a_uid_cannot_be_found_without_the_right_to_list() {
    let mut observed = observed(None, None);
    observed.asked = UID.to_owned();
    observed.computer = Answer::Denied("list computers".to_owned());
    observed.record = Answer::Denied("get computerrecords".to_owned());
    contains(
        &shown(&observed).1,
        &["no Computer can be found by its UID", "use its name and its namespace", &format!("kubectl computer why {UID}")],
    );
    let mut auditor = handed_off();
    auditor.computer = Answer::Denied("list computers".to_owned());
    contains(&shown(&auditor).1, &["this is its record", "step 3 of 5"]);
}

#[test]
fn a_user_who_may_not_override_learns_whom_to_ask() {
    let mut observed = observed(Some(stuck("archive-sessions", "ArchiveDamaged", "m")), None);
    observed.may_override = Some(false);
    contains(&shown(&observed).1, &["ask a cluster admin: you may not create deletionoverrides", "archives verify 0b4f1c1e"]);
}

#[test]
fn nothing_is_known_of_a_computer_that_never_existed() {
    let (verdict, text) = shown(&observed(None, None));
    assert_eq!(verdict, Verdict::Unknown);
    contains(&text, &["There is no such Computer, and no record of one.", "30 days", "kubectl computer list -A"]);
}

#[test]
fn an_attempt_that_is_retried_does_not_suggest_to_give_the_sessions_up() {
    for reason in ["ArchiveFailed", "ArchivePodWaiting", "ArchiveOverdue", "CustodyNotBound", "StoreUnavailable"] {
        let (_, text) = why(stuck("archive-sessions", reason, "m"));
        assert!(!text.contains("kubectl computer override"), "{text}");
    }
}

#[test]
fn a_hostile_name_in_a_command_stays_one_argument() {
    let mut computer = stuck("stop-pods", "PodHeld", "m");
    computer["status"]["children"]["pods"][0]["name"] = json!("x; rm -rf ~");
    contains(&why(computer).1, &["kubectl get pod/'x; rm -rf ~' -n team-a"]);
}

/// Every reason leads to a text with a meaning, a remedy and, unless nothing can be done, a command.
#[test]
fn every_reason_has_an_answer() {
    for reason in Reason::ALL {
        let (_, text) = why(stuck("archive-sessions", reason.as_str(), "m"));
        contains(&text, &[&reason.meaning(), &reason.remedy()]);
        assert!(text.is_ascii(), "{text}");
    }
}
