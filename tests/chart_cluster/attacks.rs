//! Attacks of a tenant with the role `edit`. Each is rejected with a message or has no effect.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::world::{FULL, SYSTEM, World, eventually, refused};

/// A computer and what a tenant knows about it.
struct Target {
    uid: String,
    pod: String,
    claim: String,
    volume: String,
}

const ANNA: [&str; 2] = ["--as=anna", "--as-group=system:authenticated"];

fn anna(world: &World, arguments: &[&str]) -> Result<String> {
    world.kubectl(&[arguments, &ANNA].concat())
}

fn patch(world: &World, object: &[&str], patch: &Value) -> Result<String> {
    anna(world, &[&["patch"], object, &["--type=merge", "-p", &patch.to_string()]].concat())
}

fn send(world: &World, object: &Value) -> Result<String> {
    world.input(&[&["create", "-f", "-"], &ANNA[..]].concat(), &object.to_string())
}

fn custom_object(kind: &str, name: &str, namespace: Option<&str>, spec: &Value) -> Value {
    json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

pub fn a_tenant_with_the_edit_role_is_restricted(world: &World) -> Result<()> {
    world.kubectl(&["create", "rolebinding", "edit", "--clusterrole=edit", "--user=anna", "-n", "team"])?;
    let uid = world.computer("team", "box")?;
    let record = world.get(&["computerrecord", &uid, "-n", SYSTEM])?;
    let text = |pointer: &str| Ok::<_, anyhow::Error>(record.pointer(pointer).and_then(Value::as_str).context("on record")?.to_owned());
    let target = Target {
        pod: text("/spec/state/children/pods/0/name")?,
        claim: text("/spec/state/children/claimName")?,
        volume: text("/spec/state/children/volume/name")?,
        uid,
    };
    a_tenant_cannot_write_the_operators_objects(world, &target)?;
    a_tenant_cannot_forge_or_remove_labels(world, &target)?;
    a_tenant_cannot_remove_finalizers(world, &target)?;
    a_forced_deletion_still_archives_the_session(world, &target)
}

/// Status, record, override, class, volume, the operator's namespace.
fn a_tenant_cannot_write_the_operators_objects(world: &World, target: &Target) -> Result<()> {
    let (uid, computer) = (&target.uid, ["computer", "box", "-n", "team"]);
    let status = patch(world, &[&computer[..], &["--subresource=status"]].concat(), &json!({"status": {"phase": "Active"}}));
    refused("status", status, "resource \"computers/status\"")?;
    let restored = patch(world, &["computerrecord", uid, "-n", SYSTEM], &json!({"spec": {"state": {"credential": "Live"}}}));
    refused("a restored key", restored, "resource \"computerrecords\"")?;
    let forged = custom_object("ComputerRecord", uid, Some("team"), &json!({"namespace": "team", "computer": "box"}));
    refused("a forged record", send(world, &forged), "resource \"computerrecords\"")?;
    let skip =
        json!({"computer": {"namespace": "team", "name": "box", "uid": uid}, "skip": ["archive-sessions"], "reason": "because I want it"});
    refused("a DeletionOverride", send(world, &custom_object("DeletionOverride", "force", None, &skip)), "resource \"deletionoverrides\"")?;
    let elsewhere = patch(world, &["computerclass", "standard"], &json!({"spec": {"archive": {"policy": "None"}}}));
    refused("a changed class", elsewhere, "resource \"computerclasses\"")?;
    refused("another class", patch(world, &computer, &json!({"spec": {"className": "mine"}})), "className cannot be changed")?;
    let volume = patch(world, &["pv", &target.volume], &json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}));
    refused("the volume", volume, "resource \"persistentvolumes\"")?;
    refused("pods in the operator's namespace", anna(world, &["get", "pods", "-n", SYSTEM]), "resource \"pods\"")
}

/// Labels and owner references.
fn a_tenant_cannot_forge_or_remove_labels(world: &World, target: &Target) -> Result<()> {
    let secret = |name: &str, meta: &Value| {
        let mut secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta});
        secret["metadata"]["name"] = json!(name);
        secret["metadata"]["namespace"] = json!("team");
        secret
    };
    let labels = json!({"computer-operator.dev/computer-uid": target.uid, "computer-operator.dev/component": "key"});
    refused(
        "a planted object",
        send(world, &secret("planted", &json!({"labels": labels}))),
        "are reserved for the operator: do not set them on your own objects",
    )?;
    let owner = json!([{"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "name": "box", "uid": target.uid}]);
    send(world, &secret("adopted", &json!({"ownerReferences": owner})))?;
    let bare = anna(world, &["label", "pod", &target.pod, "-n", "team", "computer-operator.dev/computer-uid-"]);
    refused("a pod without its label", bare, "are reserved for the operator")
}

/// Before the deletion.
fn a_tenant_cannot_remove_finalizers(world: &World, target: &Target) -> Result<()> {
    let none = json!({"metadata": {"finalizers": null}});
    let stripped = patch(world, &["pod", &target.pod, "-n", "team"], &none);
    refused("the pod's finalizer", stripped, "the operator removes the finalizer computer-operator.dev/stopped when")?;
    patch(world, &["computer", "box", "-n", "team"], &none)?;
    let finalizers = world.kubectl(&["get", "computer", "box", "-n", "team", "-o", "jsonpath={.metadata.finalizers}"])?;
    ensure!(finalizers.contains("computer-operator.dev/deletion"), "the finalizer is lost: {finalizers}");
    println!("    the finalizer, before the deletion: added again at once");
    Ok(())
}

/// The tenant deletes the computer, removes every finalizer that can be removed and claims the volume. The session is archived nevertheless.
fn a_forced_deletion_still_archives_the_session(world: &World, target: &Target) -> Result<()> {
    let none = json!({"metadata": {"finalizers": null}});
    anna(world, &["delete", "computer", "box", "-n", "team", "--wait=false", "--cascade=orphan"])?;
    let stripped = patch(world, &["computer", "box", "-n", "team"], &none);
    refused("the finalizer, during the deletion", stripped, "the operator removes the finalizer")?;
    // Some of these objects may already be gone.
    anna(world, &["delete", "pod", &target.pod, "-n", "team", "--force", "--grace-period=0", "--wait=false"]).ok();
    patch(world, &["pvc", &target.claim, "-n", "team"], &none).ok();
    anna(world, &["delete", "pvc", &target.claim, "-n", "team", "--wait=false"]).ok();
    let steal = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "steal", "namespace": "team"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local-path", "volumeName": target.volume, "resources": {"requests": {"storage": "1Gi"}}}});
    send(world, &steal)?;
    world.finished(&target.uid)?;
    let stolen = world.kubectl(&["get", "pvc", "steal", "-n", "team", "-o", "jsonpath={.status.phase}"])?;
    ensure!(stolen != "Bound", "the home was stolen");
    println!("    a claim that names the volume in custody: {stolen}");
    anna(world, &["delete", "pvc", "steal", "-n", "team", "--wait=false"]).map(drop)
}

/// A tenant's pod has the certificate, the address, a victim's UID and a token for the endpoint's audience, but it is not an archive pod.
pub fn the_ingest_endpoint_rejects_a_tenants_pod(world: &World) -> Result<()> {
    let victim = world.computer("team", "victim")?;
    send(world, &forger(world, &victim)?)?;
    let terminated = eventually("the forger has terminated", || {
        let pod = world.get(&["pod", "forger", "-n", "team"])?;
        let end = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        ensure!(end.is_object(), "{}", pod["status"]);
        Ok(end.clone())
    })?;
    let message = terminated["message"].as_str().unwrap_or_default();
    ensure!(terminated["exitCode"] == 1 && message.contains("401") && message.contains("not the token of an archive pod"), "{terminated}");
    println!("    a forged archive: {message}");
    world.kubectl(&["delete", "pod", "forger", "-n", "team", "--wait=false"])?;
    world.kubectl(&["delete", "computer", "victim", "-n", "team", "--wait=false"])?;
    world.finished(&victim)
}

fn forger(world: &World, victim: &str) -> Result<Value> {
    let template = "go-template={{index .data \"tls.crt\" | base64decode}}";
    let ca = world.kubectl(&["get", "secret", "computer-operator-ingest-tls", "-n", SYSTEM, "-o", template])?;
    let address = world.kubectl(&["get", "service", &format!("{FULL}-ingest"), "-n", SYSTEM, "-o", "jsonpath={.spec.clusterIP}"])?;
    let url = format!("https://{address}:8443");
    let env = [
        ("INGEST_URL", url.as_str()),
        ("INGEST_CA", &ca),
        ("COMPUTER_UID", victim),
        ("COMPUTER_NAMESPACE", "team"),
        ("COMPUTER_NAME", "victim"),
        ("SESSION_PATHS", "[]"),
        ("UNREADABLE", "Record"),
    ]
    .map(|(name, value)| json!({"name": name, "value": value}));
    let token = json!({"serviceAccountToken": {"audience": "computer-operator.dev/ingest", "path": "token", "expirationSeconds": 3600}});
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "forger", "namespace": "team"},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "forger", "image": xtask::image::OPERATOR, "imagePullPolicy": "IfNotPresent", "args": ["archive"], "env": env,
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [mount("home", "/home-volume"), mount("home", "/spool"), mount("token", "/var/run/secrets/ingest")],
            }],
            "volumes": [{"name": "home", "emptyDir": {}}, {"name": "token", "projected": {"sources": [token]}}],
        },
    }))
}

pub fn a_protected_computer_cannot_be_deleted(world: &World) -> Result<()> {
    world.create("team", "kept", &json!({"provider": "BYOM", "deletionProtection": true}))?;
    world.active("team", "kept")?;
    let delete = |name: &str| anna(world, &["delete", "computer", name, "-n", "team", "--timeout=60s"]);
    refused("a protected computer", delete("kept"), "spec.deletionProtection is true")?;
    world.kubectl(&["patch", "computer", "kept", "-n", "team", "--type=merge", "-p", r#"{"spec":{"deletionProtection":false}}"#])?;
    delete("kept")?;
    delete("before").map(drop)
}
