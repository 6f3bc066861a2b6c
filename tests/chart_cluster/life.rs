//! Install, upgrade, uninstall, install again: nothing is lost, and running deletions continue.

use anyhow::{Context as _, Result, ensure};
use computer_operator::resources::crds;
use serde_json::{Value, json};

use crate::world::{FULL, RELEASE, SYSTEM, World, eventually, refused};

/// Number of computers that are being deleted during the upgrade.
const COMPUTERS: usize = 10;

/// The hook upgrades the definitions of an earlier version, here one that lacks a field.
pub fn install_upgrades_an_older_definition(world: &World) -> Result<()> {
    world.namespace(SYSTEM)?;
    let (_, yaml) = crds::files()?.into_iter().find(|(name, _)| name == "computers.yaml").context("computers.yaml")?;
    let mut old: Value = serde_yaml_ng::from_str(&yaml)?;
    let spec = &mut old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    spec["properties"].as_object_mut().context("properties")?.remove("autoInstallDeps").context("the field")?;
    world.input(&["apply", "--server-side", "-f", "-"], &old.to_string())?;
    let output = world.chart("install", &["--set", "admission.finalizer=Off"])?;
    ensure!(output.contains("is installed in machines-ops"), "{output}");
    let field = "{.spec.versions[0].schema.openAPIV3Schema.properties.spec.properties.autoInstallDeps.type}";
    let upgraded = world.kubectl(&["get", "crd", "computers.computer-operator.dev", "-o", &format!("jsonpath={field}")])?;
    ensure!(upgraded == "boolean", "the definition was not upgraded: {upgraded:?}");
    let output = world.helm.run(&["test", RELEASE, "-n", SYSTEM, "--logs"])?;
    ensure!(output.contains("computers are served") && output.matches(": ready").count() == 3, "{output}");
    // All objects of the hooks are gone except the pod of the test, which has no permissions any more.
    let left = world.kubectl(&["get", "clusterroles,clusterrolebindings", "-o", "name"])?;
    ensure!(!left.contains(&format!("{FULL}-crds")), "the hook's permissions on definitions still exist: {left}");
    the_store_is_kept(world)?;
    // Without the mutating policy the operator adds the finalizer; with the policy it is present from the creation.
    world.namespace("team")?;
    world.create("team", "before", &json!({"provider": "BYOM"}))?;
    world.active("team", "before")?;
    world.chart("upgrade", &[])?;
    eventually("the finalizer is present from the creation", || {
        let probe = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": "probe", "namespace": "team"}, "spec": {"provider": "BYOM"}});
        let made = world.input(&["create", "--dry-run=server", "-o", "jsonpath={.metadata.finalizers}", "-f", "-"], &probe.to_string())?;
        ensure!(made.contains("computer-operator.dev/deletion"), "{made}");
        Ok(())
    })
}

fn the_store_is_kept(world: &World) -> Result<()> {
    let claim = world.get(&["pvc", &format!("{FULL}-store"), "-n", SYSTEM])?;
    ensure!(claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep", "{claim}");
    let volume = claim["spec"]["volumeName"].as_str().context("a volume")?;
    eventually("the store's volume is Retain", || {
        let policy = world.kubectl(&["get", "pv", volume, "-o", "jsonpath={.spec.persistentVolumeReclaimPolicy}"])?;
        ensure!(policy == "Retain", "it is {policy}");
        Ok(())
    })
}

pub fn a_second_installation_is_rejected(world: &World) -> Result<()> {
    world.namespace("elsewhere")?;
    let chart = xtask::chart::folder().display().to_string();
    let second = world.helm.run(&["install", "another", &chart, "-n", "elsewhere"]);
    refused("a second installation", second, "a cluster can have only one")
}

/// The operator is replaced during the deletions, and the uninstall guard lists them.
pub fn deletions_survive_an_upgrade(world: &World) -> Result<()> {
    let names: Vec<String> = (0..COMPUTERS).map(|i| format!("box-{i}")).collect();
    world.namespace("many")?;
    names.iter().try_for_each(|name| world.create("many", name, &json!({})))?;
    let mut uids = Vec::new();
    for name in &names {
        world.active("many", name)?;
        let uid = world.uid("many", name)?;
        let pod = world.kubectl(&["get", "pod", "-n", "many", "-l", &format!("computer-operator.dev/computer-uid={uid}"), "-o", "name"])?;
        world.kubectl(&[
            "exec",
            "-n",
            "many",
            pod.trim(),
            "--",
            "sh",
            "-ec",
            "mkdir -p $HOME/.codex/sessions && echo work > $HOME/.codex/sessions/one.jsonl",
        ])?;
        uids.push(uid);
    }
    let tokens = names.iter().map(|name| world.token("many", name)).collect::<Result<Vec<_>>>()?;
    let pods = |world: &World| {
        world.kubectl(&[
            "get",
            "pods",
            "-n",
            SYSTEM,
            "-l",
            "app.kubernetes.io/component=controller",
            "-o",
            "jsonpath={.items[*].metadata.uid}",
        ])
    };
    let before = pods(world)?;
    world.kubectl(&["delete", "computers", "--all", "-n", "many", "--wait=false"])?;
    refused("helm uninstall during deletions", world.helm.run(&["uninstall", RELEASE, "-n", SYSTEM]), "Computers remain")?;
    // Helm marks the release before it runs the hook; the message says how to restore it.
    world.helm.run(&["rollback", RELEASE, "2", "-n", SYSTEM])?;
    world.chart("upgrade", &["--set", "controller.podAnnotations.revision=two"])?;
    ensure!(pods(world)? != before, "the operator was not replaced");
    ensure!(
        tokens.iter().map(|t| world.key_is_valid(t)).collect::<Result<Vec<_>>>()?.iter().all(|valid| !valid),
        "S2: a key is still valid"
    );
    uids.iter().try_for_each(|uid| world.finished(uid))?;
    world.helm.run(&["test", RELEASE, "-n", SYSTEM]).map(drop)
}

/// Uninstalling delays deletions but loses nothing.
pub fn uninstalling_loses_nothing(world: &World) -> Result<()> {
    let uid = world.computer("team", "late")?;
    let token = world.token("team", "late")?;
    let uninstall = |more: &[&str]| world.helm.run(&[&["uninstall", RELEASE, "-n", SYSTEM, "--wait"], more].concat());
    refused("helm uninstall with a computer left", uninstall(&[]), "team/late")?;
    ensure!(world.key_is_valid(&token)?, "the rejected uninstall changed something");
    uninstall(&["--no-hooks"])?;
    world.kubectl(&["delete", "computer", "late", "-n", "team", "--wait=false"])?;
    ensure!(!world.key_is_valid(&token)?, "S2: a key is still valid because no operator runs");
    let left = world.kubectl(&["get", &format!("pvc/{FULL}-store"), "-n", SYSTEM, "-o", "name"])?;
    let served = world.kubectl(&["get", "crds", "-o", "name"])?;
    ensure!(!left.is_empty() && served.matches("computer-operator.dev").count() == crds::all().len(), "{left} {served}");
    world.chart("install", &[])?;
    world.finished(&uid)?;
    world.kubectl(&["delete", "computers", "--all", "-A", "--timeout=120s"])?;
    let output = uninstall(&[])?;
    ensure!(output.contains("uninstalled"), "{output}");
    let roles =
        world.kubectl(&["get", "clusterroles,clusterrolebindings,validatingadmissionpolicies,mutatingadmissionpolicies", "-o", "name"])?;
    ensure!(!roles.contains("computer-operator"), "the uninstall left objects: {roles}");
    world.kubectl(&["get", "computerrecord", &uid, "-n", SYSTEM]).map(drop)
}
