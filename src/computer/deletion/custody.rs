//! The volume's custody (DESIGN.md 4.5): its `claimRef` is pointed at a claim in the operator's namespace, where the archive pod
//! reads it. Works the same in a terminating namespace, where nothing can be created.
//!
//! Only a volume whose `claimRef.uid` is the recorded claim's is ever taken (S5).
//!
//! The order decides how long the binding takes. The volume controller looks at a claim when the claim changes. A claim that is created
//! while its volume still names another one is refused (`FailedBinding`), and is looked at again at the controller's next resync only, up
//! to 15 s later. So the volume is first reserved for the claim by namespace and name, without a UID. The controller answers with phase
//! `Available`, which proves that it has seen the reservation. Then the claim is created and bound at once. Creating the claim first and
//! touching it after the patch would bind as fast, but needs one write more and the right to change claims.
//!
//! While the reservation has no UID, any claim of that name in the operator's namespace would be bound. The fence holds all the same:
//! - Only the operator and cluster admins may create claims in that namespace. The policy `names` reserves the name for the operator
//!   besides; without policies RBAC stays, as it always was: whoever could create that claim first was given the volume in any order.
//! - The reservation itself is fenced by the volume's UID, by the UID of the claim that held it, and by our marks and `Retain`. A leader
//!   with an old view cannot reserve a volume whose policy has been put back.
//! - A volume without a UID in its `claimRef` is never reclaimed, whatever its policy says. `delete-volumes` puts a UID in again.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use super::{Context, State};
use crate::archive::{Origin, Unreadable};
use crate::computer::action::{Action, Object, Subject};
use crate::computer::home_volume::{self, claim_ref_patch, held_by_home};
use crate::computer::machine_pod::literal;
use crate::computer::view::View;
use crate::guards::{self, Guard};
use crate::resources::persistent_volume;
use crate::resources::{
    COMPONENT_LABEL, ComputerRecord, IMAGE_ANNOTATION, MANAGED_BY_LABEL, MANAGER, SkippableStep, UID_LABEL, UNREADABLE_ANNOTATION,
};
use crate::runtime::patch::patch;

/// Takes the volume into custody. `None`: it is, or at least nothing is left for us to do.
pub(super) fn take(context: &Context<'_>) -> Option<State> {
    let (view, record) = (context.view, context.record);
    let recorded = record.spec.state.children.volume.as_ref()?;
    let Some(found) = view.volume(&recorded.name) else { return Some(State::act(Action::Read(Subject::volume(&recorded.name)))) };
    let Some(pv) = found.filter(|pv| pv.metadata.uid.as_deref() == Some(&recorded.uid)) else { return Some(lost(&recorded.name)) };
    if !(held_by_home(record, pv) || refers_to_custody(view, pv)) {
        return Some(taken_by_another(&recorded.name, pv));
    }
    // The custody claim may be deleted by mistake: then, too, nothing but the policy keeps the home.
    if let Some(state) = super::stop::retain(context, &recorded.name, pv).filter(|_| guards::on(Guard::StillRetained)) {
        return Some(state);
    }
    let name = view.custody_claim_name();
    let subject = Subject::claim(&view.settings.namespace, &name);
    let Some(claim) = view.claim(&view.settings.namespace, &name) else { return Some(State::act(Action::Read(subject))) };
    let holder = persistent_volume::claim_ref_uid(pv);
    let patch = |patch| Some(State::act(Action::Patch { subject: Subject::volume(&recorded.name), patch }));
    let Some(claim) = claim else {
        let available = pv.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available");
        return match holder {
            Some(_) => patch(reserve_patch(pv, view)),
            None if !available => {
                Some(unbound(context, &recorded.name, "has not taken in yet that the volume is reserved for the archive"))
            }
            None => Some(State::act(Action::Create(Object::Claim(Box::new(custody_claim(view, pv)))))),
        };
    };
    if claim.metadata.deletion_timestamp.is_some() {
        return Some(State::blocked(
            "CustodyClaimDeleted",
            format!("{} is being deleted by somebody; it is made again when it is gone", subject.describe()),
            5,
        ));
    }
    let custody_uid = claim.metadata.uid.as_deref()?;
    if holder.is_none() || holder == Some(custody_uid) {
        // A pod on a claim that is not bound yet would sit out the scheduler's backoff.
        let bound = holder.is_some() && claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        return (!bound).then(|| unbound(context, &recorded.name, "has not bound the volume to the archive's claim yet"));
    }
    // A claim of before a disturbance: it waits for the controller's resync.
    patch(claim_ref_patch(pv, &view.settings.namespace, &name, custody_uid))
}

fn lost(name: &str) -> State {
    State::blocked(
        "VolumeLost",
        format!("volume {name} does not exist any more: nothing can be archived. Create a DeletionOverride that skips archive-sessions"),
        60,
    )
}

fn taken_by_another(name: &str, pv: &PersistentVolume) -> State {
    let holder = persistent_volume::claim_ref_uid(pv).unwrap_or("none");
    State::blocked(
        "VolumeTaken",
        format!(
            "volume {name} now belongs to another claim (UID {holder}): it is left alone. Create a DeletionOverride that skips archive-sessions and delete-volumes"
        ),
        60,
    )
}

/// Seconds that the volume controller may take before that is shown.
const BIND_SECONDS: i64 = 60;

/// A wait for the volume controller, which is shown when it takes long.
fn unbound(context: &Context<'_>, volume: &str, what: &str) -> State {
    if !context.overdue("archive-sessions", BIND_SECONDS) {
        return State::wait(15);
    }
    let (namespace, claim) = (&context.view.settings.namespace, context.view.custody_claim_name());
    State::blocked(
        "CustodyNotBound",
        format!(
            "kube-controller-manager {what} (PersistentVolume {volume}, PersistentVolumeClaim {namespace}/{claim}). Check that it is running, and \
             see `kubectl describe pv {volume}` and `kubectl describe pvc -n {namespace} {claim}`"
        ),
        15,
    )
}

/// Whether the volume stands in our custody, as far as this pass has seen, and the record says so.
pub(super) fn taken(view: &View, record: &ComputerRecord) -> bool {
    let Some(volume) = &record.spec.state.children.volume else { return true };
    let holder = view.volume(&volume.name).flatten().and_then(persistent_volume::claim_ref_uid);
    holder.is_some() && holder == claim_uid(view).as_deref()
}

/// UID of the custody claim that this pass has seen.
pub(super) fn claim_uid(view: &View) -> Option<String> {
    view.claim(&view.settings.namespace, &view.custody_claim_name()).flatten()?.metadata.uid.clone()
}

/// What an archive must say to be that of this deletion. The custody claim is made by this deletion, after everything that writes has
/// stopped: an archive that was read through it holds all that was written.
pub fn origin(view: &View) -> Origin {
    let deletion = view.record.as_ref().and_then(|r| r.spec.state.deletion.as_ref());
    let recorded = || Some(deletion?.custody.as_ref()?.claim_uid.clone()).filter(|uid| !uid.is_empty());
    Origin { custody_claim: claim_uid(view).or_else(recorded), deleted_at: deletion.map_or(i64::MAX, |d| d.deleted_at.0.as_second()) }
}

/// Whether the volume's `claimRef` names our custody claim, of whatever UID.
pub(super) fn refers_to_custody(view: &View, pv: &PersistentVolume) -> bool {
    let reference = pv.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    reference
        .is_some_and(|r| r.namespace.as_deref() == Some(&view.settings.namespace) && r.name.as_deref() == Some(&view.custody_claim_name()))
}

/// Reserves a volume for the custody claim that is still to be created: its claimRef has no UID yet. Fenced by our mark and `Retain`, too:
/// a volume whose policy was put back is on its way out, and a leader with an old view must not hold it.
fn reserve_patch(pv: &PersistentVolume, view: &View) -> json_patch::Patch {
    let (namespace, name) = (&view.settings.namespace, view.custody_claim_name());
    let reference = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name});
    let mut operations = home_volume::fence(pv);
    operations.extend([
        json!({"op": "test", "path": format!("/metadata/labels/{}", UID_LABEL.replace('/', "~1")), "value": view.uid}),
        json!({"op": "test", "path": "/spec/persistentVolumeReclaimPolicy", "value": "Retain"}),
        json!({"op": "replace", "path": "/spec/claimRef", "value": reference}),
    ]);
    patch(&operations)
}

fn labels(view: &View, component: &str) -> BTreeMap<String, String> {
    [(MANAGED_BY_LABEL, MANAGER), (UID_LABEL, view.uid.as_str()), (COMPONENT_LABEL, component)]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into()
}

fn custody_claim(view: &View, pv: &PersistentVolume) -> PersistentVolumeClaim {
    let spec = pv.spec.clone().unwrap_or_default();
    let mut claim = PersistentVolumeClaim::default();
    claim.metadata.name = Some(view.custody_claim_name());
    claim.metadata.namespace = Some(view.settings.namespace.clone());
    claim.metadata.labels = Some(labels(view, "archive"));
    claim.spec = Some(k8s_openapi::api::core::v1::PersistentVolumeClaimSpec {
        access_modes: spec.access_modes,
        // An empty name, not an absent one: the default class must not be filled in.
        storage_class_name: Some(spec.storage_class_name.unwrap_or_default()),
        volume_mode: spec.volume_mode,
        volume_name: pv.metadata.name.clone(),
        resources: Some(k8s_openapi::api::core::v1::VolumeResourceRequirements { requests: spec.capacity, limits: None }),
        ..Default::default()
    });
    claim
}

/// What is to be done with what cannot be read, and by whose decision. The pod writes that into the manifest: once it runs, an override
/// that is withdrawn was in force all the same, and is named (S11).
fn unreadable(view: &View, record: &ComputerRecord) -> (Unreadable, String) {
    match (view.skipped(SkippableStep::UnreadableFiles), record.spec.snapshot.archive.blocks_unreadable()) {
        (Some(by), _) => (Unreadable::GiveUp, super::receipt::skipped_by(by)),
        (None, true) => (Unreadable::Block, String::new()),
        (None, false) => (Unreadable::Record, "by the class: unreadableFiles Record, or BestEffort".to_owned()),
    }
}

/// What a pod is told, short enough for the caches to keep: an override by its UID, so that one that takes another's place counts (S11).
fn told(view: &View, record: &ComputerRecord) -> String {
    let by = view.skipped(SkippableStep::UnreadableFiles).and_then(|o| o.metadata.uid.as_deref());
    format!("{} {}", unreadable(view, record).0, by.unwrap_or_default()).trim_end().to_owned()
}

/// Whether a pod was told something else than what counts now.
pub(super) fn told_otherwise(view: &View, record: &ComputerRecord, pod: &Pod) -> bool {
    let annotation = pod.metadata.annotations.as_ref().and_then(|a| a.get(UNREADABLE_ANNOTATION));
    annotation.is_some_and(|annotation| *annotation != told(view, record))
}

/// What the archive pod is told.
fn environment(view: &View, record: &ComputerRecord) -> Vec<Value> {
    let (unreadable, left_out_by) = unreadable(view, record);
    [
        ("INGEST_URL", view.settings.ingest_url.clone()),
        ("INGEST_CA", view.settings.ingest_ca.clone()),
        ("COMPUTER_UID", view.uid.clone()),
        ("COMPUTER_NAMESPACE", record.spec.namespace.clone()),
        ("COMPUTER_NAME", record.spec.computer.clone()),
        ("CUSTODY_CLAIM", claim_uid(view).unwrap_or_default()),
        ("SESSION_PATHS", json!(record.spec.snapshot.session_paths).to_string()),
        ("UNREADABLE", unreadable.to_string()),
        ("LEFT_OUT_BY", left_out_by),
    ]
    .map(|(name, value)| json!({"name": name, "value": literal(&value)}))
    .into()
}

/// The archive pod: our own image, no store credentials, the home read-only, as the user that the machine ran as.
pub fn archive_pod(view: &View, record: &ComputerRecord, name: &str) -> Pod {
    let snapshot = &record.spec.snapshot;
    let settings = &view.settings;
    let user = snapshot.run_as_user.unwrap_or(1000);
    let group = snapshot.run_as_group.or(snapshot.fs_group).unwrap_or(user);
    let annotations = json!({IMAGE_ANNOTATION: settings.image, UNREADABLE_ANNOTATION: told(view, record)});
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
    // The literal above is a valid Pod: a test builds it. An empty pod would be refused by the API server and shown.
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

/// The home from the custody claim, a spool, and a token that only the ingest endpoint takes.
fn volumes(view: &View) -> Value {
    json!([
        {"name": "home", "persistentVolumeClaim": {"claimName": view.custody_claim_name(), "readOnly": true}},
        {"name": "spool", "emptyDir": {}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"audience": "computer-operator.dev/ingest", "path": "token", "expirationSeconds": 3600}}]}},
    ])
}
