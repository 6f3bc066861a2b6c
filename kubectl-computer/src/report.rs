//! `report`: a support bundle about one computer, as a tar file. It must never contain a Secret, the value of an environment variable, or the
//! content of a session: what may identify a person or a credential is removed before anything is written.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cluster::{Answer, Cluster};
use crate::observe::Observed;
use crate::screen;
use crate::status;
use crate::why;

/// What replaces a value that was removed.
const REMOVED: &str = "(removed)";
/// Fields that are removed with everything below them, wherever they are. A command line or an annotation may contain a credential.
const FIELDS: &[&str] = &[
    "managedFields",
    "annotations",
    "settings",
    "args",
    "command",
    "keyHash",
    "hash",
    "repositories",
    "data",
    "stringData",
    "httpHeaders",
    "httpGet",
    "exec",
    "volumeAttributes",
];

/// The object without what a bundle must not contain.
pub fn redacted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let field = |(name, value): (String, Value)| {
                let value = match (name.as_str(), value) {
                    ("env", Value::Array(list)) => {
                        Value::Array(list.into_iter().map(|entry| json!({"name": entry["name"], "value": REMOVED})).collect())
                    }
                    (name, _) if FIELDS.contains(&name) => json!(REMOVED),
                    // It may be the end of the container's log.
                    ("terminated", mut ended) => {
                        if let Some(message) = ended.get_mut("message") {
                            *message = json!(REMOVED);
                        }
                        ended
                    }
                    (_, value) => redacted(value),
                };
                (name, value)
            };
            Value::Object(fields.into_iter().map(field).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(redacted).collect()),
        other => other,
    }
}

fn yaml(answer: &Answer<impl Serialize>) -> Result<String> {
    Ok(match answer {
        Answer::Found(object) => serde_yaml_ng::to_string(&redacted(serde_json::to_value(object)?))?,
        Answer::Absent => "# does not exist\n".to_owned(),
        Answer::Denied(right) => format!("# not readable: the right to {right} is missing\n"),
    })
}

/// The files of a bundle.
fn files(observed: &Observed, pods: &[(String, Answer<Pod>)]) -> Result<Vec<(String, String)>> {
    let mut files = vec![
        ("why.txt".to_owned(), why::explain(observed).text()),
        ("computer.yaml".to_owned(), yaml(&observed.computer)?),
        ("record.yaml".to_owned(), yaml(&observed.record)?),
        ("class.yaml".to_owned(), yaml(&observed.class)?),
        ("events.yaml".to_owned(), yaml(&Answer::Found(&observed.events))?),
        ("record-events.yaml".to_owned(), yaml(&Answer::Found(&observed.record_events))?),
    ];
    if let Some(computer) = observed.computer.as_found() {
        // The URL of a repository may contain a token.
        let mut computer = computer.clone();
        let repositories = &mut computer.spec.repositories;
        *repositories = repositories.iter().map(|_| REMOVED.to_owned()).collect();
        files.push(("status.txt".to_owned(), status::text(observed, &computer, &Answer::Absent)));
    }
    for (name, pod) in pods {
        files.push((format!("pod-{name}.yaml"), yaml(pod)?));
    }
    let about = json!({"time": observed.now.to_string(), "kubectlComputer": env!("CARGO_PKG_VERSION"), "asked": observed.asked});
    files.push(("about.yaml".to_owned(), serde_yaml_ng::to_string(&about)?));
    Ok(files)
}

fn packed(folder: &str, files: &[(String, String)], time: u64, to: impl std::io::Write) -> Result<()> {
    let mut archive = tar::Builder::new(to);
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(time);
        archive.append_data(&mut header, format!("{folder}/{name}"), text.as_bytes())?;
    }
    archive.into_inner()?;
    Ok(())
}

/// The command.
///
/// # Errors
/// When the file exists or cannot be written.
pub async fn run(cluster: &Cluster, asked: &str, file: Option<PathBuf>) -> Result<()> {
    let observed = cluster.observe(asked).await?;
    let mut pods = Vec::new();
    if let Some(computer) = observed.computer.as_found() {
        let children = computer.status.as_ref().and_then(|status| status.children.clone()).unwrap_or_default();
        for pod in children.pods {
            pods.push((pod.name.clone(), cluster.get(computer.namespace().as_deref(), &pod.name).await?));
        }
    }
    let folder = format!("computer-{}-report", observed.asked);
    let file = file.unwrap_or_else(|| PathBuf::from(format!("{folder}.tar")));
    let files = files(&observed, &pods)?;
    let out =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).with_context(|| format!("create {}", file.display()))?;
    packed(&folder, &files, u64::try_from(observed.now.as_second()).unwrap_or_default(), out)?;
    screen::out(&format!(
        "{} written: {} files, without Secrets, annotations, commands, values of environment variables and session content.\nRead it before you send it: names and messages are in it.",
        file.display(),
        files.len()
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_objects::observed;

    #[test]
    fn nothing_secret_is_in_a_bundle() {
        let pod = json!({"metadata": {"annotations": {"a": "hunter2"}, "managedFields": [{"x": "hunter2"}]}, "spec": {"containers": [{
            "name": "machine", "command": ["sh", "-c", "curl -H hunter2"], "args": ["hunter2"], "env": [{"name": "TOKEN", "value": "hunter2"}, {"name": "B", "valueFrom": {"x": "hunter2"}}]}]}});
        let text = redacted(pod).to_string();
        assert!(!text.contains("hunter2") && text.contains("TOKEN") && text.contains("machine"), "{text}");
        let class = json!({"spec": {"podTemplate": {"spec": {"initContainers": [{"env": [{"name": "K", "value": "hunter2"}]}]}}}});
        assert!(!redacted(class).to_string().contains("hunter2"));
        let record = json!({"spec": {"state": {"keyHash": "hunter2", "formerKey": {"hash": "hunter2"}}}});
        assert!(!redacted(record).to_string().contains("hunter2"));
    }

    #[test]
    fn no_file_of_a_bundle_has_the_token_of_a_repository() {
        let observed = observed(Some(json!({"spec": {"repositories": ["https://x-access-token:hunter2@example.com/a"]}})), Some(json!({})));
        let all = files(&observed, &[]).unwrap();
        assert!(all.iter().any(|(name, text)| name == "status.txt" && text.contains("repositories")), "{all:?}");
        assert!(all.iter().all(|(_, text)| !text.contains("hunter2")), "{all:?}");
        let pod = json!({"status": {"lastState": {"terminated": {"exitCode": 1, "message": "hunter2"}}}});
        let text = redacted(pod).to_string();
        assert!(text.contains("exitCode") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_bundle_is_a_folder_in_a_tar_file() {
        let observed = observed(Some(json!({})), Some(json!({})));
        let mut bytes = Vec::new();
        packed("f", &files(&observed, &[("p".to_owned(), Answer::Absent)]).unwrap(), 0, &mut bytes).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let names: Vec<String> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        for name in ["f/why.txt", "f/computer.yaml", "f/record.yaml", "f/class.yaml", "f/events.yaml", "f/pod-p.yaml", "f/status.txt"] {
            assert!(names.iter().any(|n| n == name), "{names:?}");
        }
    }
}
