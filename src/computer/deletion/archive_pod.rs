//! Builds the archive pod: the operator's image, the home mounted read-only, and the user that the machine ran as. It must never get the
//! credentials of the store. `archive.rs` creates and watches it.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{custody, skipped_by};
use crate::archive::Unreadable;
use crate::computer::children::labels;
use crate::computer::machine_pod::literal;
use crate::computer::view::View;
use crate::resources::{ComputerRecord, IMAGE_ANNOTATION, SkippableStep, UNREADABLE_ANNOTATION};

/// What to do with files that cannot be read, and by which decision. The pod writes both to the manifest. An override that is withdrawn
/// while the pod runs was in effect, so the manifest names it (S11).
fn unreadable(view: &View, record: &ComputerRecord) -> (Unreadable, String) {
    match (view.skipped(SkippableStep::UnreadableFiles), record.spec.snapshot.archive.blocks_unreadable()) {
        (Some(by), _) => (Unreadable::GiveUp, skipped_by(by)),
        (None, true) => (Unreadable::Block, String::new()),
        (None, false) => (Unreadable::Record, "by the class: unreadableFiles Record, or BestEffort".to_owned()),
    }
}

/// The instructions of a pod, short enough for the caches. An override is identified by its UID, so that its replacement counts as a change
/// (S11).
fn instructions(view: &View, record: &ComputerRecord) -> String {
    let by = view.skipped(SkippableStep::UnreadableFiles).and_then(|o| o.metadata.uid.as_deref());
    format!("{} {}", unreadable(view, record).0, by.unwrap_or_default()).trim_end().to_owned()
}

/// Whether a pod's instructions differ from those that apply now.
pub(super) fn has_other_instructions(view: &View, record: &ComputerRecord, pod: &Pod) -> bool {
    let annotation = pod.metadata.annotations.as_ref().and_then(|a| a.get(UNREADABLE_ANNOTATION));
    annotation.is_some_and(|annotation| *annotation != instructions(view, record))
}

fn environment(view: &View, record: &ComputerRecord) -> Vec<Value> {
    let (unreadable, left_out_by) = unreadable(view, record);
    [
        ("INGEST_URL", view.settings.ingest_url.clone()),
        ("INGEST_CA", view.settings.ingest_ca.clone()),
        ("COMPUTER_UID", view.uid.clone()),
        ("COMPUTER_NAMESPACE", record.spec.namespace.clone()),
        ("COMPUTER_NAME", record.spec.computer.clone()),
        ("CUSTODY_CLAIM", custody::claim_uid(view).unwrap_or_default()),
        ("SESSION_PATHS", json!(record.spec.snapshot.session_paths).to_string()),
        ("UNREADABLE", unreadable.to_string()),
        ("LEFT_OUT_BY", left_out_by),
    ]
    .map(|(name, value)| json!({"name": name, "value": literal(&value)}))
    .into()
}

/// The archive pod of this computer with this name.
pub fn archive_pod(view: &View, record: &ComputerRecord, name: &str) -> Pod {
    let snapshot = &record.spec.snapshot;
    let settings = &view.settings;
    let user = snapshot.run_as_user.unwrap_or(1000);
    let group = snapshot.run_as_group.or(snapshot.fs_group).unwrap_or(user);
    let annotations = json!({IMAGE_ANNOTATION: settings.image, UNREADABLE_ANNOTATION: instructions(view, record)});
    let mut security = json!({
        "runAsNonRoot": user != 0, "runAsUser": user, "runAsGroup": group,
        "supplementalGroups": snapshot.fs_group.into_iter().collect::<Vec<_>>(),
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if let Some(level) = &snapshot.se_linux_level {
        security["seLinuxOptions"] = json!({"level": level});
    }
    let pod = json!({
        "metadata": {"name": name, "namespace": settings.namespace, "labels": labels(view, "archive"), "annotations": annotations},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": settings.archive_service_account,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 5,
            "tolerations": snapshot.tolerations,
            "securityContext": security,
            "containers": [container(view, record)],
            "volumes": volumes(view),
        },
    });
    // The literal above is a valid Pod: a test builds it. The API server would refuse an empty pod, and that would be reported.
    serde_json::from_value(pod).unwrap_or_default()
}

fn container(view: &View, record: &ComputerRecord) -> Value {
    json!({
        "name": "archive",
        "image": view.settings.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["archive"],
        "env": environment(view, record),
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "home", "mountPath": "/home-volume", "readOnly": true},
            {"name": "spool", "mountPath": "/spool"},
            {"name": "token", "mountPath": "/var/run/secrets/ingest", "readOnly": true},
        ],
    })
}

/// The home from the custody claim, a spool, and a token that only the ingest endpoint accepts.
fn volumes(view: &View) -> Value {
    json!([
        {"name": "home", "persistentVolumeClaim": {"claimName": view.custody_claim_name(), "readOnly": true}},
        {"name": "spool", "emptyDir": {}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"audience": "computer-operator.dev/ingest", "path": "token", "expirationSeconds": 3600}}]}},
    ])
}
