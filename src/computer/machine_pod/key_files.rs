//! The computer's key inside its machine: the files `token`, `id` and `url`, and two variables. Pure.
//!
//! The files are a projected volume: the Secret of the key, and two annotations of the pod. The kubelet updates them, which it does not do for a
//! `subPath`. It is no part of what [`super::desired`] builds and of no hash: a machine that runs gets it at its next start, and that is no drift.

use serde_json::{Value, json};

use super::json_fields::{Fields, list, objects};
use super::{FIRST, HOME, SPEC, env};
use crate::computer::view::View;
use crate::credentials::ComputerId;
use crate::resources::{ComputerClass, ID_ANNOTATION, URL_ANNOTATION};

/// Name of the volume.
const VOLUME: &str = "computer-key";
/// Read by owner and group. The kubelet makes the `fsGroup` the group, which every machine has.
const MODE: u32 = 0o440;

/// Where the machine gets its key.
pub struct KeyFiles<'a> {
    /// `key.mountPath` of the class.
    pub path: &'a str,
    /// The Secret of the key.
    pub secret: &'a str,
    /// Id of the computer.
    pub id: String,
    /// URL of the HTTP API; empty if there is none.
    pub url: &'a str,
}

impl<'a> KeyFiles<'a> {
    /// The files of the machine of this view, if its record says that it gets them.
    pub fn of(class: &'a ComputerClass, view: &'a View) -> Option<Self> {
        let state = &view.record.as_ref()?.spec.state;
        let path = class.spec.key.mount_path.as_deref().filter(|_| state.key_mounted)?;
        let id = ComputerId { namespace: view.namespace.clone(), name: view.name.clone(), uid: view.uid.clone() };
        Some(Self { path, secret: state.children.secret_name.as_deref()?, id: id.encode(), url: &view.settings.api_url })
    }

    /// Adds them to a pod.
    ///
    /// # Errors
    /// When a field of the pod has another type than in a pod.
    pub fn add_to(&self, pod: &mut Value) -> Result<(), String> {
        pod["metadata"]["annotations"][ID_ANNOTATION] = json!(self.id);
        let mut files = vec![annotation("id", ID_ANNOTATION)];
        if !self.url.is_empty() {
            pod["metadata"]["annotations"][URL_ANNOTATION] = json!(self.url);
            files.push(annotation("url", URL_ANNOTATION));
        }
        // Optional: the key may be replaced while the machine starts, and a machine must start without its key.
        let token = json!({"secret": {"name": self.secret, "optional": true, "items": [{"key": "token", "path": "token"}]}});
        let sources = json!([token, {"downwardAPI": {"items": files}}]);
        let spec = pod["spec"].as_object_mut().ok_or("podTemplate.spec must be an object")?;
        list(spec, "volumes", SPEC)?.push(json!({"name": VOLUME, "projected": {"defaultMode": MODE, "sources": sources}}));
        let first = objects(spec, "containers", SPEC)?.into_iter().next().ok_or("podTemplate.spec.containers is empty")?;
        list(first, "volumeMounts", FIRST)?.push(json!({"name": VOLUME, "mountPath": self.path, "readOnly": true}));
        env(first, "COMPUTER_ID", &self.id)?;
        if self.url.is_empty() { Ok(()) } else { env(first, "COMPUTER_API_URL", self.url) }
    }
}

fn annotation(file: &str, annotation: &str) -> Value {
    json!({"path": file, "fieldRef": {"fieldPath": format!("metadata.annotations['{annotation}']")}})
}

/// Requires that no volume of the first container is at the path of the key, below it or above it. The API server refuses only the same path.
///
/// # Errors
/// Which one is.
pub(super) fn check(class: &ComputerClass, container: &mut Fields) -> Result<(), String> {
    let Some(path) = class.spec.key.mount_path.as_deref() else { return Ok(()) };
    let inside =
        |one: &str, other: &str| format!("{}/", one.trim_end_matches('/')).starts_with(&format!("{}/", other.trim_end_matches('/')));
    for mount in objects(container, "volumeMounts", FIRST)? {
        let Some(at) = mount.get("mountPath").and_then(Value::as_str).filter(|at| inside(path, at) || inside(at, path)) else { continue };
        let what = if mount.get("name") == Some(&json!(HOME)) {
            "the home (spec.storage.mountPath)".to_owned()
        } else {
            format!("volume {} of {FIRST}", mount.get("name").and_then(Value::as_str).unwrap_or_default())
        };
        return Err(format!(
            "spec.key.mountPath {path} and {at}, where {what} is mounted, contain each other. Set key.mountPath to a folder of its own, for \
             example /run/computer"
        ));
    }
    Ok(())
}

/// The Secret whose token a pod mounts.
pub fn mounted_secret(pod: &k8s_openapi::api::core::v1::Pod) -> Option<String> {
    let volume = pod.spec.as_ref()?.volumes.as_ref()?.iter().find(|volume| volume.name == VOLUME)?;
    let sources = volume.projected.as_ref()?.sources.as_ref()?;
    sources.iter().find_map(|source| Some(source.secret.as_ref()?.name.clone()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::computer::machine_pod::{built_hash, desired, hash};
    use crate::resources::ComputerSpec;

    fn class(mounts: &Value, spec: &Value) -> ComputerClass {
        let mut all = json!({"podTemplate": {"spec": {"containers": [{"name": "a", "image": "i", "volumeMounts": mounts,
            "env": [{"name": "COMPUTER_API_URL", "value": "mine"}]}, {"name": "b", "image": "i"}]}}});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": all})).unwrap()
    }

    #[test]
    fn the_files_are_readable_by_the_group_only_and_are_never_a_sub_path() {
        let class = class(&json!([]), &json!({"key": {"mountPath": "/run/computer"}}));
        let mut pod = desired(&class, &ComputerSpec::default(), "home").unwrap();
        let before = (hash(&class, &ComputerSpec::default()), built_hash(&class, &ComputerSpec::default()));
        KeyFiles { path: "/run/computer", secret: "s", id: "me".to_owned(), url: "http://api" }.add_to(&mut pod).unwrap();
        let volume = &pod["spec"]["volumes"][1]["projected"];
        assert_eq!((&volume["defaultMode"], &volume["sources"][0]["secret"]["optional"]), (&json!(0o440), &json!(true)));
        let mount = &pod["spec"]["containers"][0]["volumeMounts"][1];
        assert_eq!(mount, &json!({"name": "computer-key", "mountPath": "/run/computer", "readOnly": true}));
        assert!(pod["spec"]["securityContext"]["fsGroup"].is_number() && pod["spec"]["containers"][1]["volumeMounts"].is_null());
        let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
        let of = |name: &str| env.iter().filter(|e| e["name"] == name).map(|e| e["value"].clone()).collect::<Vec<_>>();
        assert_eq!((of("COMPUTER_ID"), of("COMPUTER_API_URL")), (vec![json!("me")], vec![json!("mine")]), "the template's own value wins");
        assert_eq!(pod["metadata"]["annotations"][URL_ANNOTATION], "http://api");
        let pod: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(mounted_secret(&pod).as_deref(), Some("s"));
        let mut without = class.clone();
        without.spec.key = crate::resources::ClassKey::default();
        assert_eq!(before, (hash(&without, &ComputerSpec::default()), built_hash(&without, &ComputerSpec::default())), "no drift");
    }

    #[test]
    fn without_a_url_of_the_api_there_is_no_file_and_no_variable() {
        let class = class(&json!([]), &json!({}));
        let mut pod = desired(&class, &ComputerSpec::default(), "home").unwrap();
        KeyFiles { path: "/k", secret: "s", id: "me".to_owned(), url: "" }.add_to(&mut pod).unwrap();
        assert!(!pod.to_string().contains(URL_ANNOTATION) && pod.to_string().contains("COMPUTER_ID"), "{pod}");
    }

    #[test]
    fn a_path_that_collides_is_refused_and_says_with_what() {
        let at = |mounts: Value, key: &str| {
            let class = class(&mounts, &json!({"key": {"mountPath": key}, "storage": {"mountPath": "/home/user/"}}));
            desired(&class, &ComputerSpec::default(), "home").map(drop)
        };
        assert_eq!(at(json!([]), "/run/computer"), Ok(()));
        assert_eq!(at(json!([{"name": "v", "mountPath": "/run/computers"}]), "/run/computer"), Ok(()));
        for home in ["/home/user", "/home", "/home/user/key"] {
            assert!(at(json!([]), home).unwrap_err().contains("the home (spec.storage.mountPath)"), "{home}");
        }
        for other in ["/run", "/run/computer", "/run/computer/", "/run/computer/x"] {
            let error = at(json!([{"name": "v", "mountPath": other}]), "/run/computer").unwrap_err();
            assert!(error.contains("volume v") && error.contains(other), "{error}");
        }
    }
}
