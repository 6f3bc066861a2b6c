//! Builds the archive pod: the operator's image, the home mounted read-only, and the user that the machine ran as. It must never get the
//! credentials of the store. `archive.rs` creates and watches it. Whether it has ended is decided here, by the container that archives: a
//! sidecar that an admission plugin has added may run without end.
//!
//! The pod must run where the volume is, which may be on one node only. People delete computers when that node is cordoned or short of
//! memory, so the pod tolerates what the machine tolerated, and in addition these taints:
//! - `node.kubernetes.io/unschedulable`: the admin wants no new workload there. The archive pod ends by itself, and until it has run, the node
//!   cannot be emptied.
//! - `node.kubernetes.io/memory-pressure`: the kubelet admits pods that request memory.
//!
//! It tolerates no other taint of a node's condition. Under disk or PID pressure the kubelet rejects every pod that is not critical, so each
//! attempt would fail; a pod that is pending starts when the pressure ends. On a node that is not ready, unreachable or without a network
//! the pod would hang, although the volume may be attachable to a healthy node. Taints of admins and autoscalers count as well: the condition
//! shows the scheduler's message, which names them.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, Pod, Toleration};
use serde_json::{Value, json};

use super::{custody, skipped_by};
use crate::archive::Unreadable;
use crate::archive::pod_program::MAX_BYTES;
use crate::computer::children::labels;
use crate::computer::machine_pod::literal;
use crate::computer::view::{ClassState, View};
use crate::resources::{ComputerRecord, IMAGE_ANNOTATION, MAX_BYTES_ANNOTATION, SkippableStep, UNREADABLE_ANNOTATION};
use crate::runtime::ingest_url;
use crate::runtime::settings::ArchivePod;

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
    annotation.is_some_and(|annotation| *annotation != instructions(view, record)) || may_store_more(view, record, pod)
}

/// Most bytes that the archive of a computer may have: what the class said when the computer was created, or what it says now, if that is more.
/// An admin who raises the bound expects that the deletion that it blocks continues, and one who lowers it does not expect that it blocks
/// computers that exist. A bound can give nothing up, so a class may decide here after the computer was created.
pub(super) fn most_bytes(view: &View, record: &ComputerRecord) -> u64 {
    let default = Some(view.settings.archive_max_bytes).filter(|most| *most > 0).unwrap_or(u64::MAX);
    let created = record.spec.snapshot.archive.most_bytes().unwrap_or(default);
    match &view.class {
        ClassState::Found(class) => created.max(class.spec.archive.most_bytes().unwrap_or(default)),
        ClassState::Missing | ClassState::Ambiguous(_) => created,
    }
}

/// Whether the bound was raised since a pod was created.
pub(super) fn may_store_more(view: &View, record: &ComputerRecord, pod: &Pod) -> bool {
    let annotation = pod.metadata.annotations.as_ref().and_then(|a| a.get(MAX_BYTES_ANNOTATION));
    annotation.and_then(|most| most.parse::<u64>().ok()).is_some_and(|most| most < most_bytes(view, record))
}

fn environment(view: &View, record: &ComputerRecord) -> Vec<Value> {
    let (unreadable, left_out_by) = unreadable(view, record);
    let variables = [
        ("INGEST_CA", view.settings.ingest_ca.clone()),
        ("COMPUTER_UID", view.uid.clone()),
        ("COMPUTER_NAMESPACE", record.spec.namespace.clone()),
        ("COMPUTER_NAMESPACE_UID", record.spec.namespace_uid.clone().unwrap_or_default()),
        ("COMPUTER_NAME", record.spec.computer.clone()),
        ("CUSTODY_CLAIM", custody::claim_uid(view).unwrap_or_default()),
        ("SESSION_PATHS", json!(record.spec.snapshot.session_paths).to_string()),
        ("UNREADABLE", unreadable.to_string()),
        ("LEFT_OUT_BY", left_out_by),
        (MAX_BYTES, most_bytes(view, record).to_string()),
    ]
    .map(|(name, value)| json!({"name": name, "value": literal(&value)}));
    // The only value that the kubelet expands: it may name the variable of the ingest endpoint's Service.
    let url = json!({"name": "INGEST_URL", "value": view.settings.ingest_url});
    [url].into_iter().chain(variables).collect()
}

/// Taints that the pod tolerates whatever the machine tolerated.
const TOLERATED: [&str; 2] = ["node.kubernetes.io/unschedulable", "node.kubernetes.io/memory-pressure"];

fn tolerations(of_machine: &[Toleration]) -> Vec<Toleration> {
    let (exists, no_schedule) = (Some("Exists".to_owned()), Some("NoSchedule".to_owned()));
    let own = TOLERATED.map(|key| Toleration {
        key: Some(key.to_owned()),
        operator: exists.clone(),
        effect: no_schedule.clone(),
        ..Toleration::default()
    });
    of_machine.iter().cloned().chain(own.into_iter().filter(|t| !of_machine.contains(t))).collect()
}

/// The archive pod of this computer with this name.
pub fn archive_pod(view: &View, record: &ComputerRecord, name: &str) -> Pod {
    let snapshot = &record.spec.snapshot;
    let settings = &view.settings;
    let user = snapshot.run_as_user.unwrap_or(1000);
    let group = snapshot.run_as_group.or(snapshot.fs_group).unwrap_or(user);
    // The ingest endpoint reads the bound here: the pod itself is not trusted.
    let most = most_bytes(view, record).to_string();
    let annotations =
        json!({IMAGE_ANNOTATION: settings.image, UNREADABLE_ANNOTATION: instructions(view, record), MAX_BYTES_ANNOTATION: most});
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
            // The variables with the addresses of Services.
            "enableServiceLinks": ingest_url::variable(&settings.ingest_url).is_some(),
            "terminationGracePeriodSeconds": 5,
            "tolerations": tolerations(&snapshot.tolerations),
            "securityContext": security,
            "containers": [container(view, record)],
            "volumes": volumes(view),
        },
    });
    // The literal above is a valid Pod: a test builds it. The API server would refuse an empty pod, and that would be reported.
    let mut pod: Pod = serde_json::from_value(pod).unwrap_or_default();
    place(&mut pod, &settings.archive_pod);
    pod
}

/// What the admin decides.
fn place(pod: &mut Pod, admin: &ArchivePod) {
    let Some(spec) = &mut pod.spec else { return };
    spec.priority_class_name = Some(admin.priority_class_name.clone()).filter(|name| !name.is_empty());
    spec.node_selector = Some(admin.node_selector.clone()).filter(|labels| !labels.is_empty());
    for container in &mut spec.containers {
        container.resources = Some(admin.resources.clone());
        container.image_pull_policy = Some(admin.image_pull_policy.clone());
    }
}

/// Name of the container that archives.
const CONTAINER: &str = "archive";

fn state(pod: &Pod) -> Option<&ContainerState> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == CONTAINER)?.state.as_ref()
}

/// The pod of the latest attempt, as far as this reconcile knows of one.
pub(super) fn latest<'a>(view: &'a View, record: &ComputerRecord) -> Option<&'a Pod> {
    view.pod(&view.settings.namespace, &view.archive_pod_name(super::attempts(record))).flatten()
}

/// How the container that archives has ended.
pub(super) fn terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    state(pod)?.terminated.as_ref()
}

/// Whether the archive pod does nothing more. An evicted pod may have no container status.
pub(super) fn ended(pod: &Pod) -> bool {
    terminated(pod).is_some() || matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether the archive pod works. Its phase alone does not say so: with a sidecar that cannot start it is `Pending`.
pub(super) fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    !ended(pod) && (phase == Some("Running") || state(pod).is_some_and(|state| state.running.is_some()))
}

fn container(view: &View, record: &ComputerRecord) -> Value {
    json!({
        "name": CONTAINER,
        "image": view.settings.image,
        "args": ["archive"],
        "env": environment(view, record),
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "home", "mountPath": "/home-volume", "readOnly": true},
            {"name": "token", "mountPath": "/var/run/secrets/ingest", "readOnly": true},
        ],
    })
}

/// The home from the custody claim, and a token that only the ingest endpoint accepts.
fn volumes(view: &View) -> Value {
    json!([
        {"name": "home", "persistentVolumeClaim": {"claimName": view.custody_claim_name(), "readOnly": true}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"audience": "computer-operator.dev/ingest", "path": "token", "expirationSeconds": 3600}}]}},
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The home may be on the cordoned node only, and that node is emptied by deleting its computers.
    #[test]
    fn the_archive_pod_runs_on_a_cordoned_node_and_where_the_machine_ran() {
        let machine = Toleration { key: Some("gpu".to_owned()), operator: Some("Exists".to_owned()), ..Toleration::default() };
        let all = tolerations(std::slice::from_ref(&machine));
        assert_eq!(all[0], machine);
        let effect = |key: &str| all.iter().find(|t| t.key.as_deref() == Some(key)).and_then(|t| t.effect.as_deref());
        assert_eq!(effect("node.kubernetes.io/unschedulable"), Some("NoSchedule"));
        assert_eq!(effect("node.kubernetes.io/memory-pressure"), Some("NoSchedule"));
        // The kubelet rejects the pod there, or it hangs there.
        for key in ["disk-pressure", "pid-pressure", "not-ready", "unreachable", "network-unavailable"] {
            assert!(all.iter().all(|t| t.key.as_deref() != Some(&format!("node.kubernetes.io/{key}"))), "{key}");
        }
        assert_eq!(tolerations(&all), all, "none twice");
    }

    #[test]
    fn an_admin_decides_about_resources_priority_and_nodes() {
        let mut view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}}));
        let record: ComputerRecord =
            serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": {"namespace": "t", "computer": "c"}})).expect("a record");
        let spec = |view: &View| serde_json::to_value(archive_pod(view, &record, "a").spec).expect("a spec");
        let usual = spec(&view);
        assert_eq!(
            usual["containers"][0]["resources"],
            json!({"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}})
        );
        assert_eq!((&usual["priorityClassName"], &usual["nodeSelector"]), (&Value::Null, &Value::Null));
        let admin = json!({"resources": {"limits": {"cpu": "2", "memory": "512Mi"}}, "priorityClassName": "high", "nodeSelector": {"pool": "storage"},
            "imagePullPolicy": "Always"});
        view.settings.archive_pod = serde_json::from_value(admin.clone()).expect("settings");
        let decided = spec(&view);
        let container = &decided["containers"][0];
        assert_eq!((&container["resources"], &container["imagePullPolicy"]), (&admin["resources"], &admin["imagePullPolicy"]));
        assert_eq!((&decided["priorityClassName"], &decided["nodeSelector"]), (&admin["priorityClassName"], &admin["nodeSelector"]));
    }

    /// The sidecar of a service mesh, before the container that archives, and still running after it.
    #[test]
    fn a_sidecar_does_not_decide_whether_the_archive_pod_has_ended() {
        let pod = |phase: &str, sidecar: Value, archive: Value| -> Pod {
            let status = |name: &str, state: Value| json!({"name": name, "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": state});
            let statuses = json!([status("sidecar", sidecar), status(CONTAINER, archive)]);
            serde_json::from_value(json!({"metadata": {}, "status": {"phase": phase, "containerStatuses": statuses}})).expect("a pod")
        };
        let (running, waiting) = (json!({"running": {}}), json!({"waiting": {"reason": "ImagePullBackOff"}}));
        let exit = |code: i32| json!({"terminated": {"exitCode": code}});
        let failed = pod("Running", running.clone(), exit(3));
        assert_eq!((ended(&failed), runs(&failed), terminated(&failed).map(|t| t.exit_code)), (true, false, Some(3)));
        let crashed = pod("Running", exit(1), running.clone());
        assert_eq!((ended(&crashed), runs(&crashed)), (false, true));
        let without_sidecar = pod("Pending", waiting.clone(), running);
        assert_eq!((ended(&without_sidecar), runs(&without_sidecar)), (false, true));
        let starting = pod("Pending", waiting.clone(), waiting);
        assert_eq!((ended(&starting), runs(&starting)), (false, false));
    }

    /// The Service may have been deleted and created again since the operator started.
    #[test]
    fn the_kubelet_fills_in_the_address_of_the_ingest_endpoint_and_nothing_else() {
        let mut view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}}));
        let record: ComputerRecord =
            serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": {"namespace": "t", "computer": "$(HOSTNAME)"}}))
                .expect("a record");
        for (url, links) in [("https://$(OP_INGEST_SERVICE_HOST):8443", true), ("https://192.0.2.7:8443", false)] {
            view.settings.ingest_url = url.to_owned();
            let spec = archive_pod(&view, &record, "a").spec.expect("a spec");
            assert_eq!(spec.enable_service_links, Some(links), "{url}");
            let value = |name: &str| spec.containers[0].env.iter().flatten().find(|e| e.name == name).and_then(|e| e.value.clone());
            assert_eq!(value("INGEST_URL").as_deref(), Some(url));
            assert_eq!(value("COMPUTER_NAME").as_deref(), Some("$$(HOSTNAME)"));
        }
    }
}
