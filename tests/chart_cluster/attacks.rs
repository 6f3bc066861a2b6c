//! What a tenant with the `edit` role tries. Each is refused with a message, or harmless.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::world::{FULL, SYSTEM, World, eventually, refused};

const NONE: &str = r#"{"metadata":{"finalizers":null}}"#;

pub fn tenant(world: &World) -> Result<()> {
    world.kubectl(&["create", "rolebinding", "edit", "--clusterrole=edit", "--user=anna", "-n", "team"])?;
    let uid = world.computer("team", "box")?;
    let anna = |arguments: &[&str]| world.kubectl(&[arguments, &["--as=anna", "--as-group=system:authenticated"]].concat());
    let send = |object: &serde_json::Value| {
        world.input(&["create", "--as=anna", "--as-group=system:authenticated", "-f", "-"], &object.to_string())
    };
    let record = world.get(&["computerrecord", &uid, "-n", SYSTEM])?;
    let children = &record["spec"]["state"]["children"];
    let pod = children["pods"][0]["name"].as_str().context("a pod")?;
    let (claim, volume) = (children["claimName"].as_str().context("a claim")?, children["volume"]["name"].as_str().context("a volume")?);

    // Status, record, override, class: not a tenant's.
    refused(
        "status",
        anna(&["patch", "computer", "box", "-n", "team", "--subresource=status", "--type=merge", "-p", r#"{"status":{"phase":"Active"}}"#]),
        "resource \"computers/status\"",
    )?;
    refused(
        "a revoked key, restored",
        anna(&["patch", "computerrecord", &uid, "-n", SYSTEM, "--type=merge", "-p", r#"{"spec":{"state":{"credential":"Live"}}}"#]),
        "resource \"computerrecords\"",
    )?;
    let forged = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerRecord", "metadata": {"name": uid, "namespace": "team"}, "spec": {"namespace": "team", "computer": "box"}});
    refused("a forged record", send(&forged), "resource \"computerrecords\"")?;
    let force = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "DeletionOverride", "metadata": {"name": "force"},
        "spec": {"computer": {"namespace": "team", "name": "box", "uid": uid}, "skip": ["archive-sessions"], "reason": "because I want it"}});
    refused("a DeletionOverride", send(&force), "resource \"deletionoverrides\"")?;
    refused(
        "the class, pointed elsewhere",
        anna(&["patch", "computerclass", "standard", "--type=merge", "-p", r#"{"spec":{"archive":{"policy":"None"}}}"#]),
        "resource \"computerclasses\"",
    )?;
    refused(
        "another class",
        anna(&["patch", "computer", "box", "-n", "team", "--type=merge", "-p", r#"{"spec":{"className":"mine"}}"#]),
        "className cannot be changed",
    )?;

    // Labels, names, owner references.
    let labels = json!({"computer-operator.dev/computer-uid": uid, "computer-operator.dev/component": "key"});
    refused(
        "a planted object",
        send(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "planted", "namespace": "team", "labels": labels}})),
        "are the operator's: leave them out",
    )?;
    let owner = json!([{"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "name": "box", "uid": uid}]);
    send(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "adopted", "namespace": "team", "ownerReferences": owner}}))?;
    refused(
        "a pod without its label",
        anna(&["label", "pod", pod, "-n", "team", "computer-operator.dev/computer-uid-"]),
        "are the operator's",
    )?;

    // The claim and the volume.
    refused(
        "the volume",
        anna(&["patch", "pv", volume, "--type=merge", "-p", r#"{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}"#]),
        "resource \"persistentvolumes\"",
    )?;
    refused("pods in the operator's namespace", anna(&["get", "pods", "-n", SYSTEM]), "resource \"pods\"")?;
    refused(
        "the pod's finalizer",
        anna(&["patch", "pod", pod, "-n", "team", "--type=merge", "-p", NONE]),
        "the finalizer computer-operator.dev/stopped goes when",
    )?;
    anna(&["patch", "computer", "box", "-n", "team", "--type=merge", "-p", NONE])?;
    let finalizers = world.kubectl(&["get", "computer", "box", "-n", "team", "-o", "jsonpath={.metadata.finalizers}"])?;
    ensure!(finalizers.contains("computer-operator.dev/deletion"), "the finalizer is lost: {finalizers}");
    println!("    the finalizer, before: it is put back at once");

    // The end, by force, with everything stripped that can be stripped.
    anna(&["delete", "computer", "box", "-n", "team", "--wait=false", "--cascade=orphan"])?;
    refused(
        "the finalizer, during the deletion",
        anna(&["patch", "computer", "box", "-n", "team", "--type=merge", "-p", NONE]),
        "the operator takes it off",
    )?;
    anna(&["delete", "pod", pod, "-n", "team", "--force", "--grace-period=0", "--wait=false"]).ok();
    anna(&["patch", "pvc", claim, "-n", "team", "--type=merge", "-p", NONE]).ok();
    anna(&["delete", "pvc", claim, "-n", "team", "--wait=false"]).ok();
    let steal = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "steal", "namespace": "team"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local-path", "volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}}});
    send(&steal)?;
    world.finished(&uid)?;
    let stolen = world.kubectl(&["get", "pvc", "steal", "-n", "team", "-o", "jsonpath={.status.phase}"])?;
    ensure!(stolen != "Bound", "the home was stolen");
    println!("    a claim that names the volume in custody: {stolen}");
    anna(&["delete", "pvc", "steal", "-n", "team", "--wait=false"]).map(drop)
}

/// A pod of a tenant with the certificate, the address, a victim's UID and a token for the endpoint's audience: everything but an archive pod.
pub fn ingest(world: &World) -> Result<()> {
    let victim = world.computer("team", "victim")?;
    let ca = world.kubectl(&[
        "get",
        "secret",
        "computer-operator-ingest-tls",
        "-n",
        SYSTEM,
        "-o",
        "go-template={{index .data \"tls.crt\" | base64decode}}",
    ])?;
    let address = world.kubectl(&["get", "service", &format!("{FULL}-ingest"), "-n", SYSTEM, "-o", "jsonpath={.spec.clusterIP}"])?;
    let env = [
        ("INGEST_URL", format!("https://{address}:8443")),
        ("INGEST_CA", ca),
        ("COMPUTER_UID", victim.clone()),
        ("COMPUTER_NAMESPACE", "team".to_owned()),
        ("COMPUTER_NAME", "victim".to_owned()),
        ("SESSION_PATHS", "[]".to_owned()),
        ("UNREADABLE", "Record".to_owned()),
    ]
    .map(|(name, value)| json!({"name": name, "value": value}));
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "forger", "namespace": "team"},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "forger", "image": xtask::image::OPERATOR, "imagePullPolicy": "IfNotPresent", "args": ["archive"], "env": env,
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "home", "mountPath": "/home-volume"}, {"name": "home", "mountPath": "/spool"}, {"name": "token", "mountPath": "/var/run/secrets/ingest"}],
            }],
            "volumes": [
                {"name": "home", "emptyDir": {}},
                {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"audience": "computer-operator.dev/ingest", "path": "token", "expirationSeconds": 3600}}]}},
            ],
        },
    });
    world.input(&["create", "--as=anna", "--as-group=system:authenticated", "-f", "-"], &pod.to_string())?;
    let said = eventually("the forger has ended", || {
        let pod = world.get(&["pod", "forger", "-n", "team"])?;
        let end = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        ensure!(end.is_object(), "{}", pod["status"]);
        Ok(end.clone())
    })?;
    let message = said["message"].as_str().unwrap_or_default();
    ensure!(said["exitCode"] == 1 && message.contains("401") && message.contains("not the token of an archive pod"), "{said}");
    println!("    a forged archive: {message}");
    world.kubectl(&["delete", "pod", "forger", "-n", "team", "--wait=false"])?;
    world.kubectl(&["delete", "computer", "victim", "-n", "team", "--wait=false"])?;
    world.finished(&victim)
}

pub fn protection(world: &World) -> Result<()> {
    world.create("team", "kept", &json!({"provider": "BYOM", "deletionProtection": true}))?;
    world.active("team", "kept")?;
    let delete = |name: &str| {
        world.kubectl(&["delete", "computer", name, "-n", "team", "--as=anna", "--as-group=system:authenticated", "--timeout=60s"])
    };
    refused("a protected computer", delete("kept"), "deletion protection is on")?;
    world.kubectl(&["patch", "computer", "kept", "-n", "team", "--type=merge", "-p", r#"{"spec":{"deletionProtection":false}}"#])?;
    delete("kept")?;
    delete("before").map(drop)
}
