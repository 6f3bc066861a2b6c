//! Builds the machine's pod from its class. Pure. Fields that the template omits are set as Pod Security `restricted` requires; fields that it
//! sets are kept. A template that cannot be parsed must be an error with the parser's message, never an incomplete pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec, PodTemplateSpec, SeccompProfile,
    SecurityContext, Volume, VolumeMount,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::children;
use super::view::View;
use crate::resources::{ComputerClass, ComputerSpec, POD_FINALIZER, Snapshot};

/// User and group of the machine if the template sets none.
const DEFAULT_USER: i64 = 1000;
/// Name of the volume that holds the home.
const HOME: &str = "computer-home";

/// The pod that a class describes, without name, labels and owner. It is used for the dry run and for the real pod.
///
/// # Errors
/// When the template is not a pod template, or has no container.
pub fn desired(class: &ComputerClass, computer: &ComputerSpec, claim: &str) -> Result<Pod, String> {
    let template: PodTemplateSpec = serde_json::from_value(class.spec.pod_template.clone()).map_err(|e| format!("podTemplate: {e}"))?;
    let mut spec = template.spec.ok_or("podTemplate.spec is missing")?;
    let first = spec.containers.first_mut().ok_or("podTemplate.spec.containers is empty")?;
    mount_home(first, &class.spec.storage.mount_path);
    set_environment(first, computer);
    spec.volumes.get_or_insert_default().push(Volume {
        name: HOME.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name: claim.to_owned(), read_only: None }),
        ..Volume::default()
    });
    restrict(&mut spec);
    let mut pod = Pod { spec: Some(spec), ..Pod::default() };
    if let Some(metadata) = template.metadata {
        pod.metadata.labels = metadata.labels;
        pod.metadata.annotations = metadata.annotations;
    }
    Ok(pod)
}

/// The pod of this computer with a name: adds labels, owner, and the finalizer that keeps the pod until its containers have stopped (DESIGN.md
/// 4.4).
pub fn of_computer(mut pod: Pod, view: &View, name: &str) -> Pod {
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.namespace = Some(view.namespace.clone());
    pod.metadata.finalizers = Some(vec![POD_FINALIZER.to_owned()]);
    pod.metadata.labels.get_or_insert_default().extend(children::labels(view, "machine"));
    pod.metadata.owner_references = children::owner(view);
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
    short(desired(class, computer, "").ok().and_then(|p| serde_json::to_vec(&p).ok()).unwrap_or_default())
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

/// What a deletion needs later: settings of the class, and the effective settings of this pod (DESIGN.md 4.1).
pub fn snapshot(class: &ComputerClass, computer: &ComputerSpec, pod: &Pod) -> Snapshot {
    let mut snapshot = Snapshot {
        session_paths: class.spec.session_paths.clone(),
        archive: class.spec.archive.clone(),
        deadlines: class.spec.deadlines.clone(),
        template_hash: Some(hash(class, computer)),
        ..Snapshot::default()
    };
    note_effective(&mut snapshot, pod);
    snapshot
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
    let first = spec.containers.first().and_then(|c| c.security_context.clone()).unwrap_or_default();
    snapshot.run_as_user = first.run_as_user.or(context.run_as_user);
    snapshot.run_as_group = first.run_as_group.or(context.run_as_group);
    snapshot.fs_group = context.fs_group;
    snapshot.se_linux_level = first.se_linux_options.or(context.se_linux_options).and_then(|o| o.level);
    snapshot.tolerations = spec.tolerations.unwrap_or_default();
    snapshot.grace_period_seconds = spec.termination_grace_period_seconds;
}

fn mount_home(container: &mut Container, path: &str) {
    container.volume_mounts.get_or_insert_default().push(VolumeMount {
        name: HOME.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    });
    env(container, "HOME", path);
}

fn set_environment(container: &mut Container, computer: &ComputerSpec) {
    if let Some(user) = &computer.remote_user {
        env(container, "REMOTE_USER", user);
    }
    if !computer.repositories.is_empty() {
        env(container, "REPOSITORIES", &computer.repositories.join(" "));
    }
    if computer.auto_install_deps {
        env(container, "AUTO_INSTALL_DEPS", "true");
    }
}

/// Escapes a value for a container's environment, so that the container gets exactly `text`. Kubernetes replaces `$(NAME)` with the value of
/// that variable: the text of a tenant could otherwise read the variables of the template, Secrets among them.
pub fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// Sets a variable unless the template sets it.
fn env(container: &mut Container, name: &str, value: &str) {
    let list = container.env.get_or_insert_default();
    if !list.iter().any(|e| e.name == name) {
        list.push(EnvVar { name: name.to_owned(), value: Some(literal(value)), value_from: None });
    }
}

fn restrict(spec: &mut PodSpec) {
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.automount_service_account_token.get_or_insert(false);
    spec.enable_service_links.get_or_insert(false);
    spec.termination_grace_period_seconds.get_or_insert(30);
    let context: &mut PodSecurityContext = spec.security_context.get_or_insert_default();
    let user = *context.run_as_user.get_or_insert(DEFAULT_USER);
    context.run_as_group.get_or_insert(user);
    context.fs_group.get_or_insert(user);
    // Otherwise the kubelet changes the owner of every file of a large home at each start.
    context.fs_group_change_policy.get_or_insert_with(|| "OnRootMismatch".to_owned());
    if user != 0 {
        context.run_as_non_root.get_or_insert(true);
    }
    context.seccomp_profile.get_or_insert_with(|| SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None });
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let security: &mut SecurityContext = container.security_context.get_or_insert_default();
        if security.privileged != Some(true) {
            security.allow_privilege_escalation.get_or_insert(false);
        }
        security.capabilities.get_or_insert_with(|| Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None });
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::needless_pass_by_value)]
mod tests {
    use super::*;
    use serde_json::json;

    fn class(template: serde_json::Value) -> ComputerClass {
        serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {"podTemplate": template}})).expect("a class")
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
        let snapshot = snapshot(&own, &ComputerSpec::default(), &pod);
        assert_eq!((snapshot.run_as_user, snapshot.fs_group), (Some(4242), Some(4242)));
        let spec = pod.spec.expect("a spec");
        assert_eq!((spec.service_account_name.as_deref(), spec.automount_service_account_token), (Some("sa"), Some(true)));
        assert_eq!(spec.containers[0].env.as_ref().expect("env").iter().filter(|e| e.name == "HOME").count(), 1);
    }

    #[test]
    fn the_error_about_an_invalid_template_says_what_is_wrong() {
        let computer = ComputerSpec::default();
        assert!(desired(&class(json!({})), &computer, "h").expect_err("refused").contains("podTemplate.spec is missing"));
        assert!(desired(&class(json!({"spec": {"containers": []}})), &computer, "h").expect_err("refused").contains("containers is empty"));
        assert!(desired(&class(json!({"spec": {"containers": "x"}})), &computer, "h").expect_err("refused").contains("podTemplate: "));
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
