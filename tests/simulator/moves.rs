//! The adversary's moves: what tenants and admins do at the worst moment. Each is within the rights of a tenant or an admin.

use std::time::Duration;

use computer_operator::archive::manifest::ManifestComputer;
use computer_operator::archive::{chunk_key, manifest_key};
use computer_operator::resources::{DELETION_FINALIZER, MANAGED_BY_LABEL, MANAGER, UID_LABEL};
use futures::FutureExt;
use object_store::path::Path;
use object_store::{ObjectStore, PutMode, PutOptions};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::actors::archive::packed;
use crate::api::kinds::{self, Kind};
use crate::api::value::{at, deleting, finalizers, has_finalizer, label, name, namespace, text, uid};
use crate::api::verbs::{DeleteOptions, Part};
use crate::api::{Actor, State};
pub use crate::move_kinds::Move;
use crate::world::World;

/// The tenant's namespace, and the name of the computer.
pub const TEAM: &str = "team";
pub const BOX: &str = "box";
/// The operator's namespace.
pub const SYSTEM: &str = "computer-operator-system";

pub fn perform(world: &World, what: Move) {
    world.note(format!("        ** {what:?}"));
    match what {
        Move::Recreate => recreate(world),
        Move::Impersonate => impersonate(world),
        Move::LoseObject => world.with(|s| s.observer.lossy = true),
        Move::StoreOut => {
            // A store that is down permanently stays down.
            let policy = |s: &mut State| s.all("computerclasses").next().is_some_and(|c| c["spec"]["archive"]["policy"] == "BestEffort");
            let minutes = if world.with(policy) { 8 } else { 13 };
            let until = Instant::now() + Duration::from_secs(minutes * 60);
            let mut faults = world.faults();
            faults.store_down = faults.store_down.max(Some(until));
        }
        Move::OldArchive => old_archive(world),
        Move::ClockAhead => {
            world.clock_ahead(3600);
            world.with(|s| s.observer.clock_ahead = Some(Instant::now()));
        }
        Move::SlowArchive => world.with(|s| s.observer.slow_pods = true),
        Move::UndoWrites => world.with(|s| s.undone_until = Some(Instant::now() + Duration::from_secs(600))),
        Move::EndMachines => world.with(|s| s.kubelet.ends_at_once = true),
        Move::LoseNode => world.with(lose_node),
        // A pod that vanishes before its node is on record cannot be waited for: docs/reliability.md names that limit.
        Move::VanishOnLostNode => world.with(|s| {
            let placed = |r: &std::sync::Arc<Value>| {
                let pods = at(r, "/spec/state/children/pods").and_then(Value::as_array);
                pods.is_none_or(|pods| pods.iter().all(|pod| pod["uid"].is_null() || pod["node"].is_string()))
            };
            if s.all("computerrecords").all(placed) {
                lose_node(s);
            }
            strip_and_force(s);
        }),
        Move::HoldAndReset => {
            world.with(plant);
            let later = world.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(60)).await;
                later.with(|s| reset_policy(s, false));
                later.notify();
            });
        }
        Move::HoldAll => hold_all(world),
        other => world.with(|s| simple(s, other)),
    }
    world.notify();
}

fn simple(state: &mut State, what: Move) {
    match what {
        Move::Delete => delete(state, None),
        Move::DeleteForeground => delete(state, Some("Foreground")),
        Move::DeleteOrphan => delete(state, Some("Orphan")),
        Move::StripFinalizer => strip(state, "computers"),
        Move::StripAndForce => strip_and_force(state),
        Move::ForcePods => force(state),
        Move::DeleteClaims => all(state, "persistentvolumeclaims", None),
        Move::DeleteSecrets => all(state, "secrets", None),
        Move::DeleteNamespace => drop(state.delete(Actor::Tenant, "namespaces", "", TEAM, &DeleteOptions::default())),
        Move::Plant => plant(state),
        Move::Replace => {
            delete(state, None);
            strip(state, "computers");
            let _ = create_computer(state, Actor::Tenant, TEAM, BOX, &json!({}));
        }
        Move::DeleteClass => drop(state.delete(Actor::Admin, "computerclasses", "", "standard", &DeleteOptions::default())),
        Move::Suspend => suspend(state, true),
        Move::Resume => suspend(state, false),
        Move::WreckCustody => wreck(state),
        Move::ResetPolicy => reset_policy(state, false),
        Move::StripVolumes => reset_policy(state, true),
        Move::Prolong => {
            let ttl = json!({"spec": {"timeToLiveSeconds": 900}});
            let _ = state.merge_patch(Actor::Tenant, ("computers", TEAM, BOX), &ttl, Part::Main);
        }
        Move::RotateKey => {
            // A value that was not used before.
            let key = json!({"spec": {"key": {"rotation": format!("{}", state.observer.writes)}}});
            let _ = state.merge_patch(Actor::Tenant, ("computers", TEAM, BOX), &key, Part::Main);
        }
        Move::DeleteOverHttp => delete_over_http(state),
        Move::Recreate
        | Move::LoseNode
        | Move::VanishOnLostNode
        | Move::HoldAndReset
        | Move::Impersonate
        | Move::LoseObject
        | Move::StoreOut
        | Move::OldArchive
        | Move::ClockAhead
        | Move::SlowArchive
        | Move::UndoWrites
        | Move::EndMachines
        | Move::HoldAll => {}
    }
}

/// Deletes the computer and tries to create another one of its name until that succeeds.
fn recreate(world: &World) {
    world.with(|s| {
        s.observer.wanted += 1;
        delete(s, None);
    });
    let again = world.clone();
    tokio::spawn(async move {
        let create = |s: &mut State| {
            let _ = s.create(Actor::Tenant, "namespaces", "", json!({"metadata": {"name": TEAM}}), false);
            create_computer(s, Actor::Tenant, TEAM, BOX, &json!({})).is_err()
        };
        while again.with(create) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        again.with(|s| s.observer.wanted -= 1);
        again.notify();
    });
}

fn lose_node(state: &mut State) {
    state.kubelet.lost_until = Some(Instant::now() + Duration::from_secs(400));
}

fn strip_and_force(state: &mut State) {
    delete(state, None);
    strip(state, "pods");
    force(state);
    strip(state, "computers");
    all(state, "persistentvolumeclaims", None);
    all(state, "secrets", None);
}

fn delete_over_http(state: &mut State) {
    let of = state.get("computers", TEAM, BOX).map(|c| uid(c).to_owned());
    delete(state, None);
    if let Some(of) = of {
        let revoked = json!({"spec": {"state": {"credential": "Revoked"}}});
        let _ = state.merge_patch(Actor::Admin, ("computerrecords", SYSTEM, &of), &revoked, Part::Main);
    }
}

pub fn create_computer(state: &mut State, actor: Actor, within: &str, called: &str, spec: &Value) -> Result<String, u16> {
    let object = json!({"metadata": {"name": called}, "spec": spec});
    state.create(actor, "computers", within, object, false).map(|v| uid(&v).to_owned()).map_err(|f| f.code)
}

pub fn delete(state: &mut State, propagation: Option<&str>) {
    let options = DeleteOptions { propagation: propagation.map(str::to_owned), ..DeleteOptions::default() };
    let _ = state.delete(Actor::Tenant, "computers", TEAM, BOX, &options);
}

fn in_team(state: &State, kind: Kind) -> Vec<Value> {
    state.all(kind).filter(|v| namespace(v) == TEAM).map(|v| (**v).clone()).collect()
}

/// Removes all finalizers that a tenant may remove.
fn strip(state: &mut State, kind: Kind) {
    for mut object in in_team(state, kind).into_iter().filter(|v| !finalizers(v).is_empty()) {
        object["metadata"]["finalizers"] = json!([]);
        let called = name(&object).to_owned();
        let _ = state.update(Actor::Tenant, kind, TEAM, &called, object, Part::Main);
    }
}

fn all(state: &mut State, kind: Kind, grace: Option<i64>) {
    for object in in_team(state, kind) {
        let _ = state.delete(Actor::Tenant, kind, TEAM, name(&object), &DeleteOptions { grace, ..DeleteOptions::default() });
    }
}

fn force(state: &mut State) {
    all(state, "pods", Some(0));
}

fn suspend(state: &mut State, suspended: bool) {
    let _ = state.merge_patch(Actor::Tenant, ("computers", TEAM, BOX), &json!({"spec": {"suspended": suspended}}), Part::Main);
}

/// The archive of an empty home, from another deletion of the same UID. An in-memory store answers at once.
fn old_archive(world: &World) {
    let Some(of) = world.with(|s| s.get("computers", TEAM, BOX).map(|c| uid(c).to_owned())) else { return };
    let home = packed(0);
    let computer = ManifestComputer { namespace: TEAM.to_owned(), namespace_uid: None, name: BOX.to_owned(), uid: of.clone() };
    let manifest = home.manifest_of(computer, 0, "of-another-deletion".to_owned());
    let chunks = home.blobs.iter().map(|blob| (chunk_key(&of, &blob.chunk.digest), blob.bytes.clone()));
    for (key, content) in chunks.chain([(manifest_key(&of), manifest)]) {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let _ = world.objects().put_opts(&Path::from(key), content.into(), options).now_or_never();
    }
}

/// Objects that claim to belong to the computer, under other names, and a pod that mounts its home.
fn plant(state: &mut State) {
    let Some(computer) = state.get("computers", TEAM, BOX).cloned() else { return };
    let owner = json!([{"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "name": BOX, "uid": uid(&computer), "controller": true}]);
    let labels = json!({UID_LABEL: uid(&computer), MANAGED_BY_LABEL: MANAGER});
    let home = in_team(state, "persistentvolumeclaims").first().map(|c| name(c).to_owned());
    for (kind, body) in [
        ("secrets", json!({"stringData": {"theirs": "stays"}})),
        ("persistentvolumeclaims", json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})),
        ("pods", json!({"spec": {"containers": [{"name": "c", "image": "i"}]}})),
    ] {
        let mut object = body;
        object["metadata"] =
            json!({"name": format!("planted-{kind}"), "labels": labels, "ownerReferences": owner, "annotations": {"planted": "yes"}});
        let _ = state.create(Actor::Tenant, kind, TEAM, object, false);
    }
    if let Some(home) = home {
        let volumes = json!([{"name": "home", "persistentVolumeClaim": {"claimName": home}}]);
        let pod = json!({"metadata": {"name": "planted-on-the-home", "annotations": {"planted": "yes"}},
            "spec": {"containers": [{"name": "c", "image": "i"}], "volumes": volumes}});
        let _ = state.create(Actor::Tenant, "pods", TEAM, pod, false);
    }
}

/// Creates pods and Secrets at once, and the claim as soon as its name is free.
fn impersonate(world: &World) {
    let claims = world.with(|s| {
        let claims = in_team(s, "persistentvolumeclaims");
        for kind in ["pods", "secrets", "persistentvolumeclaims"] {
            let ours = in_team(s, kind);
            strip(s, kind);
            all(s, kind, Some(0));
            for object in ours.iter().filter(|_| kind != "persistentvolumeclaims") {
                let _ = s.create(Actor::Tenant, kind, TEAM, imitation(object), false);
            }
        }
        claims
    });
    let world = world.clone();
    tokio::spawn(async move {
        for claim in claims.iter().cycle().take(300) {
            let _ = world.with(|s| s.create(Actor::Tenant, "persistentvolumeclaims", TEAM, imitation(claim), false));
            world.notify();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
}

fn imitation(object: &Value) -> Value {
    let mut metadata = json!({"name": name(object), "annotations": {"planted": "yes"}});
    for field in ["labels", "ownerReferences"] {
        metadata[field] = object["metadata"][field].clone();
    }
    let mut spec = object["spec"].clone();
    for field in ["nodeName", "volumeName"] {
        spec.as_object_mut().map(|s| s.remove(field));
    }
    let mut copy = json!({"metadata": metadata, "spec": spec, "data": object["data"]});
    copy.as_object_mut().expect("an object").retain(|_, v| !v.is_null());
    copy
}

/// A foreign pod uses the home until its owner, after a while, deletes the planted objects.
pub fn uproot(state: &mut State) {
    for kind in ["pods", "secrets", "persistentvolumeclaims"] {
        for object in in_team(state, kind).into_iter().filter(|v| v["metadata"]["annotations"]["planted"] == "yes") {
            let _ = state.delete(Actor::Tenant, kind, TEAM, name(&object), &DeleteOptions::default());
        }
    }
}

/// The finalizer of the controller in [`Move::HoldAll`].
const HOLD: &str = "example.com/hold";

const HELD: [Kind; 5] = ["computers", "secrets", "pods", "persistentvolumeclaims", "persistentvolumes"];

/// Where the objects are of which this is true.
fn places(state: &State, wanted: impl Fn(&Value) -> bool) -> Vec<(Kind, String, String)> {
    let all = HELD.into_iter().flat_map(|kind| state.all(kind).map(move |v| (kind, v)));
    all.filter(|(_, v)| wanted(v)).map(|(kind, v)| (kind, namespace(v).to_owned(), name(v).to_owned())).collect()
}

fn hold_all(world: &World) {
    world.with(|s| {
        s.observer.wanted += 1;
        let ours = |v: &Value| !deleting(v) && (label(v, UID_LABEL).is_some() || name(v) == BOX);
        for (kind, within, called) in places(s, ours) {
            s.change(kind, &within, &called, |v| {
                let list = finalizers(v).into_iter().chain([HOLD.to_owned()]).collect::<Vec<_>>();
                v["metadata"]["finalizers"] = json!(list);
            });
        }
    });
    let later = world.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(600)).await;
        later.with(|s| {
            s.observer.wanted -= 1;
            for (kind, within, called) in places(s, |v| has_finalizer(v, HOLD)) {
                s.change(kind, &within, &called, |v| {
                    v["metadata"]["finalizers"] = json!(finalizers(v).into_iter().filter(|f| f != HOLD).collect::<Vec<_>>());
                });
            }
        });
        later.notify();
    });
}

fn reset_policy(state: &mut State, strip: bool) {
    let recorded: Vec<_> =
        state.all("computerrecords").filter_map(|r| text(r, "/spec/state/children/volume/uid").map(str::to_owned)).collect();
    let known = |volume: &Value| label(volume, UID_LABEL).is_some() || recorded.iter().any(|of| of == uid(volume));
    let volumes: Vec<_> = state.all("persistentvolumes").map(|v| (name(v).to_owned(), uid(v).to_owned(), known(v))).collect();
    let mut patch = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
    if strip {
        patch["metadata"] = json!({"labels": null});
    }
    for (called, of, known) in volumes {
        // A policy that changes before the operator has seen the volume is the volume's own.
        if let Some(disk) = state.disks.get_mut(&of).filter(|_| !known) {
            disk.retained = false;
        }
        let _ = state.merge_patch(Actor::Admin, ("persistentvolumes", "", &called), &patch, Part::Main);
    }
}

fn wreck(state: &mut State) {
    for kind in ["pods", "persistentvolumeclaims"] {
        let ours: Vec<Value> = state.all(kind).filter(|v| namespace(v) == SYSTEM).map(|v| (**v).clone()).collect();
        for object in ours {
            let _ = state.delete(Actor::Admin, kind, SYSTEM, name(&object), &DeleteOptions::default());
        }
    }
}

/// The objects that every simulation begins with.
pub fn furnish(state: &mut State, class: &Value) {
    for space in [SYSTEM, TEAM, "kube-system"] {
        let _ = state.create(Actor::Admin, "namespaces", "", json!({"metadata": {"name": space}}), false);
    }
    let node = json!({"metadata": {"name": "node-1"}});
    let _ = state.create(Actor::Kubernetes, "nodes", "", node, false);
    crate::actors::kubelet::node_status(state, true);
    let class = json!({"metadata": {"name": "standard", "annotations": {"computer-operator.dev/is-default-class": "true"}}, "spec": class});
    let _ = state.create(Actor::Admin, "computerclasses", "", class, false);
    debug_assert!(kinds::all().count() > 10);
}

/// Whether a client other than the operator may have removed the finalizer.
pub fn holds(object: &Value) -> bool {
    crate::api::value::has_finalizer(object, DELETION_FINALIZER)
}
