//! Policies of others: quotas and limits of namespaces, and an admission policy that adds a sidecar to pods.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::world::{SYSTEM, World, eventually};

/// Its `ResourceQuota` is too small for the class.
const TIGHT: &str = "tight";
/// Its `LimitRange` does not allow the class.
const LIMITED: &str = "limited";
/// Its pods get a sidecar.
const MESH: &str = "mesh";

fn custom_object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn create(world: &World, object: &Value) -> Result<()> {
    world.input(&["create", "-f", "-"], &object.to_string()).map(drop)
}

fn says(world: &World, namespace: &str, parts: &[&str]) -> Result<()> {
    eventually(&format!("the computer in {namespace} says what forbids it"), || {
        let ready = world.condition(&["computer", "large", "-n", namespace], "Ready")?;
        let message = ready["message"].as_str().unwrap_or_default();
        ensure!(ready["status"] == "False" && parts.iter().all(|part| message.contains(part)), "not all of {parts:?}: {ready}");
        println!("    {message}");
        Ok(())
    })
}

/// A quota of the operator's namespace says nothing about classes. One of the computer's namespace does: the computer names it and what to change,
/// and continues by itself.
pub fn quotas_decide_only_in_their_namespace(world: &World) -> Result<()> {
    let quota = |namespace: &str, memory: &str| {
        world.kubectl(&["create", "quota", "memory", "-n", namespace, &format!("--hard=requests.memory={memory}")])
    };
    quota(SYSTEM, "512Mi")?;
    let container = json!({"name": "machine", "image": xtask::image::MACHINE, "resources": {"requests": {"memory": "1Gi"}}});
    let spec = json!({"storage": {"size": "1Gi"}, "podTemplate": {"spec": {"containers": [container]}}});
    create(world, &custom_object("ComputerClass", "large", &spec))?;
    eventually("the class is accepted", || {
        let accepted = world.condition(&["computerclass", "large"], "Accepted")?;
        ensure!(accepted["status"] == "True", "{accepted}");
        Ok(())
    })?;
    [TIGHT, LIMITED].iter().try_for_each(|namespace| world.namespace(namespace))?;
    quota(TIGHT, "512Mi")?;
    let limits = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "default", "namespace": LIMITED},
        "spec": {"limits": [{"type": "Container", "max": {"memory": "512Mi"}}]}});
    create(world, &limits)?;
    [TIGHT, LIMITED].iter().try_for_each(|namespace| world.create(namespace, "large", &json!({"className": "large"})))?;
    says(world, TIGHT, &["exceeded quota: memory", "Raise this ResourceQuota"])?;
    says(world, LIMITED, &["512Mi", "LimitRange"])?;
    let raised = json!({"spec": {"hard": {"requests.memory": "2Gi"}}}).to_string();
    world.kubectl(&["patch", "quota", "memory", "-n", TIGHT, "--type=merge", "-p", &raised])?;
    world.kubectl(&["delete", "limitrange", "default", "-n", LIMITED])?;
    for namespace in [TIGHT, LIMITED] {
        world.active(namespace, "large")?;
        world.kubectl(&["delete", "computer", "large", "-n", namespace, "--wait=false"])?;
    }
    for namespace in [TIGHT, LIMITED] {
        world.kubectl(&["wait", "--for=delete", "computer/large", "-n", namespace, "--timeout=120s"])?;
    }
    world.kubectl(&["delete", "quota", "memory", "-n", SYSTEM])?;
    world.kubectl(&["delete", "computerclass", "large"]).map(drop)
}

/// As the sidecar of a service mesh: before the container of the machine, with a user of its own, and never ending by itself. In the operator's
/// namespace, archive pods get it as well.
fn sidecars() -> [Value; 2] {
    let expression = format!(
        r#"[JSONPatch{{op: "add", path: "/spec/containers/0", value: Object.spec.containers{{
            name: "sidecar", image: "{}", imagePullPolicy: "IfNotPresent",
            securityContext: Object.spec.containers.securityContext{{
                runAsUser: 1337, runAsGroup: 1337, runAsNonRoot: true, allowPrivilegeEscalation: false,
                capabilities: Object.spec.containers.securityContext.capabilities{{drop: ["ALL"]}}}}}}}}]"#,
        xtask::image::MACHINE
    );
    let pods = format!(
        "request.namespace == '{MESH}' || (request.namespace == '{SYSTEM}' && \
         object.metadata.?labels[?'computer-operator.dev/component'].orValue('') == 'archive')"
    );
    let object = |kind: &str, spec: &Value| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "mesh"}, "spec": spec});
    let policy = json!({
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
        "matchConditions": [{"name": "pods", "expression": pods}],
        "failurePolicy": "Fail", "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
    });
    [object("MutatingAdmissionPolicy", &policy), object("MutatingAdmissionPolicyBinding", &json!({"policyName": "mesh"}))]
}

/// Waits until the API server applies the policy.
fn inject(world: &World) -> Result<()> {
    world.kubectl(&["create", "namespace", MESH])?;
    sidecars().iter().try_for_each(|object| create(world, object))?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": MESH},
        "spec": {"containers": [{"name": "probe", "image": xtask::image::MACHINE}]}});
    eventually("pods get a sidecar", || {
        let arguments = ["create", "--dry-run=server", "-o", "jsonpath={.spec.containers[*].name}", "-f", "-"];
        let names = world.input(&arguments, &pod.to_string())?;
        ensure!(names == "sidecar probe", "{names}");
        Ok(())
    })
}

/// One home that only the machine's user can read, and one with a file that nobody can read.
pub fn a_sidecar_hides_neither_the_user_nor_the_end(world: &World) -> Result<()> {
    inject(world)?;
    let names = ["private", "locked"];
    names.iter().try_for_each(|name| world.create(MESH, name, &json!({})))?;
    names.iter().try_for_each(|name| world.active(MESH, name))?;
    let script = "umask 077; mkdir -p $HOME/.codex/sessions; echo work > $HOME/.codex/sessions/one.jsonl";
    names.iter().try_for_each(|name| world.script(MESH, name, script).map(drop))?;
    world.script(
        MESH,
        "locked",
        "mkdir $HOME/.codex/sessions/two; touch $HOME/.codex/sessions/two/key; chmod 0 $HOME/.codex/sessions/two/key",
    )?;
    let uids = names.iter().map(|name| world.uid(MESH, name)).collect::<Result<Vec<_>>>()?;
    names.iter().try_for_each(|name| world.kubectl(&["delete", "computer", name, "-n", MESH, "--wait=false"]).map(drop))?;
    world.finished(&uids[0])?;
    eventually("the file that cannot be read is reported", || {
        let blocked = world.condition(&["computer", "locked", "-n", MESH], "Blocked")?;
        let message = blocked["message"].as_str().unwrap_or_default();
        ensure!(blocked["reason"] == "UnreadableFiles" && message.contains("two/key"), "{blocked}");
        println!("    {message}");
        Ok(())
    })?;
    let computer = json!({"namespace": MESH, "name": "locked", "uid": uids[1]});
    let decision = json!({"computer": computer, "skip": ["unreadable-files"], "reason": "nobody needs this key"});
    create(world, &custom_object("DeletionOverride", "locked", &decision))?;
    world.kubectl(&["wait", "--for=delete", "computer/locked", "-n", MESH, "--timeout=120s"])?;
    let record = world.get(&["computerrecord", &uids[1], "-n", SYSTEM])?;
    ensure!(record["spec"]["state"]["deletion"]["archive"]["problems"] == 1, "{}", record["spec"]["state"]["deletion"]);
    world.kubectl(&["delete", "mutatingadmissionpolicybinding,mutatingadmissionpolicy", "mesh"]).map(drop)
}
