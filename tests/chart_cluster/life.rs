//! Install, upgrade, uninstall, install again: nothing is lost, and what is under way goes on.

use anyhow::{Context as _, Result, ensure};
use computer_operator::resources::crds;
use serde_json::{Value, json};

use crate::world::{FULL, RELEASE, SYSTEM, World, eventually, refused};

/// Computers whose deletion is under way during the upgrade.
const COMPUTERS: usize = 10;

/// The hook upgrades what an earlier version left: here a definition without a field that this one has.
pub fn install(world: &World) -> Result<()> {
    world.namespace(SYSTEM)?;
    let (_, yaml) = crds::files()?.into_iter().find(|(name, _)| name == "computers.yaml").context("computers.yaml")?;
    let mut old: Value = serde_yaml_ng::from_str(&yaml)?;
    let spec = &mut old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    spec["properties"].as_object_mut().context("properties")?.remove("autoInstallDeps").context("the field")?;
    world.input(&["apply", "--server-side", "-f", "-"], &old.to_string())?;
    let said = world.chart("install", &["--set", "admission.finalizer=Off"])?;
    ensure!(said.contains("is installed in machines-ops"), "{said}");
    let field = "{.spec.versions[0].schema.openAPIV3Schema.properties.spec.properties.autoInstallDeps.type}";
    let upgraded = world.kubectl(&["get", "crd", "computers.computer-operator.dev", "-o", &format!("jsonpath={field}")])?;
    ensure!(upgraded == "boolean", "the definition was not upgraded: {upgraded:?}");
    let said = world.helm.run(&["test", RELEASE, "-n", SYSTEM, "--logs"])?;
    ensure!(said.contains("computers are served") && said.matches(": ready").count() == 3, "{said}");
    // Everything of the hooks is gone but the test's pod, which has no rights any more.
    let left = world.kubectl(&["get", "clusterroles,clusterrolebindings", "-o", "name"])?;
    ensure!(!left.contains(&format!("{FULL}-crds")), "the hook's rights to definitions are left: {left}");
    the_store_is_kept(world)?;
    // Without the mutating policy the operator puts the finalizer on itself; with it, it is there from the first moment.
    world.namespace("team")?;
    world.create("team", "before", &json!({"provider": "BYOM"}))?;
    world.active("team", "before")?;
    world.chart("upgrade", &[])?;
    eventually("the finalizer is there from the first moment", || {
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

pub fn second(world: &World) -> Result<()> {
    world.namespace("elsewhere")?;
    let chart = xtask::chart::folder().display().to_string();
    let second = world.helm.run(&["install", "another", &chart, "-n", "elsewhere"]);
    refused("a second installation", second, "a cluster can have only one")
}

/// The operator is replaced in the middle; the guard says what is left meanwhile.
pub fn upgrade(world: &World) -> Result<()> {
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
    refused("helm uninstall with deletions under way", world.helm.run(&["uninstall", RELEASE, "-n", SYSTEM]), "computers are left")?;
    // Helm has marked the release before it asked; the message says how it comes back.
    world.helm.run(&["rollback", RELEASE, "2", "-n", SYSTEM])?;
    world.chart("upgrade", &["--set", "controller.podAnnotations.revision=two"])?;
    ensure!(pods(world)? != before, "the operator was not replaced");
    ensure!(tokens.iter().map(|t| world.key_lives(t)).collect::<Result<Vec<_>>>()?.iter().all(|lives| !lives), "S2: a key lives");
    uids.iter().try_for_each(|uid| world.finished(uid))?;
    world.helm.run(&["test", RELEASE, "-n", SYSTEM]).map(drop)
}

/// A removed operator strands nothing but time.
pub fn uninstall(world: &World) -> Result<()> {
    let uid = world.computer("team", "late")?;
    let token = world.token("team", "late")?;
    let uninstall = |more: &[&str]| world.helm.run(&[&["uninstall", RELEASE, "-n", SYSTEM, "--wait"], more].concat());
    refused("helm uninstall with a computer left", uninstall(&[]), "team/late")?;
    ensure!(world.key_lives(&token)?, "the refused uninstallation changed something");
    uninstall(&["--no-hooks"])?;
    world.kubectl(&["delete", "computer", "late", "-n", "team", "--wait=false"])?;
    ensure!(!world.key_lives(&token)?, "S2: a key lives because no operator runs");
    let left = world.kubectl(&["get", &format!("pvc/{FULL}-store"), "-n", SYSTEM, "-o", "name"])?;
    let served = world.kubectl(&["get", "crds", "-o", "name"])?;
    ensure!(!left.is_empty() && served.matches("computer-operator.dev").count() == crds::all().len(), "{left} {served}");
    world.chart("install", &[])?;
    world.finished(&uid)?;
    world.kubectl(&["delete", "computers", "--all", "-A", "--timeout=120s"])?;
    let said = uninstall(&[])?;
    ensure!(said.contains("uninstalled"), "{said}");
    let roles =
        world.kubectl(&["get", "clusterroles,clusterrolebindings,validatingadmissionpolicies,mutatingadmissionpolicies", "-o", "name"])?;
    ensure!(!roles.contains("computer-operator"), "something of it is left: {roles}");
    world.kubectl(&["get", "computerrecord", &uid, "-n", SYSTEM]).map(drop)
}
