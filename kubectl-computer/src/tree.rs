//! `tree`: what belongs to a computer. What the status names is shown also when the caller may not read it, with the missing right.

use anyhow::Result;
use computer_operator_api::{Children, Computer, ComputerRecord, Session};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;

use crate::cluster::{Answer, Cluster};
use crate::power::read;
use crate::screen;
use crate::status::sessions;
use crate::text::spelled;

/// A node of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node(String, Vec<Node>);

fn draw(node: &Node, before: &str, text: &mut String) {
    for (i, child) in node.1.iter().enumerate() {
        let last = i + 1 == node.1.len();
        text.extend([before, if last { "└── " } else { "├── " }, &child.0, "\n"]);
        draw(child, &format!("{before}{}", if last { "    " } else { "│   " }), text);
    }
}

/// What was read besides the Computer.
struct Parts {
    pods: Vec<(String, Answer<Pod>)>,
    claim: Answer<PersistentVolumeClaim>,
    sessions: Answer<Vec<Session>>,
    record: Answer<ComputerRecord>,
}

fn said<T>(answer: &Answer<T>, state: impl Fn(&T) -> String) -> String {
    match answer {
        Answer::Found(found) => state(found),
        Answer::Absent => "does not exist".to_owned(),
        Answer::Denied(right) => format!("not readable: {right}"),
    }
}

fn tree(computer: &Computer, children: &Children, parts: &Parts) -> Node {
    let pod_state = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
    let claim_state = |claim: &PersistentVolumeClaim| claim.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
    let mut nodes = Vec::new();
    for (name, pod) in &parts.pods {
        nodes.push(Node(format!("Pod {name}: {}", said(pod, pod_state)), Vec::new()));
    }
    let volume = children.volume.iter();
    let volume: Vec<Node> = volume
        .map(|v| Node(format!("PersistentVolume {} (reclaim policy at the end: {})", v.name, v.original_reclaim_policy), Vec::new()))
        .collect();
    match &children.claim_name {
        Some(name) => nodes.push(Node(format!("PersistentVolumeClaim {name}: {}", said(&parts.claim, claim_state)), volume)),
        None => nodes.extend(volume),
    }
    nodes.extend(children.secret_name.iter().map(|name| Node(format!("Secret {name} (the key; it is never read here)"), Vec::new())));
    match &parts.sessions {
        Answer::Found(list) => nodes.extend(list.iter().map(|session| {
            let title = session.spec.title.as_ref().map_or_else(String::new, |title| format!(": {title}"));
            Node(format!("Session {}{title}", session.name_any()), Vec::new())
        })),
        other => nodes.push(Node(format!("Sessions: {}", said(other, |_| String::new())), Vec::new())),
    }
    let uid = computer.uid().unwrap_or_default();
    let record_state =
        |record: &ComputerRecord| format!("{}, key {}", spelled(record.spec.state.phase), spelled(record.spec.state.credential));
    nodes.push(Node(format!("ComputerRecord {uid}: {}", said(&parts.record, record_state)), Vec::new()));
    Node(format!("Computer {}/{} ({uid})", computer.namespace().unwrap_or_default(), computer.name_any()), nodes)
}

/// The command.
///
/// # Errors
/// When there is no such computer.
pub async fn run(cluster: &Cluster, name: &str) -> Result<()> {
    let computer = read(cluster, name).await?;
    let namespace = computer.namespace().unwrap_or_default();
    let children = computer.status.as_ref().and_then(|status| status.children.clone()).unwrap_or_default();
    let mut pods = Vec::new();
    for pod in &children.pods {
        pods.push((pod.name.clone(), cluster.get::<Pod>(Some(&namespace), &pod.name).await?));
    }
    let claim = match &children.claim_name {
        Some(name) => cluster.get(Some(&namespace), name).await?,
        None => Answer::Absent,
    };
    let record = cluster.record(&computer.uid().unwrap_or_default()).await?;
    let parts = Parts { pods, claim, sessions: sessions(cluster, &computer).await?, record };
    let root = tree(&computer, &children, &parts);
    let mut text = format!("{}\n", root.0);
    draw(&root, "", &mut text);
    screen::out(&text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::test_objects::observed;

    #[test]
    fn every_part_has_its_place() {
        let children = json!({"claimName": "home-1", "secretName": "computer-key-1", "pods": [{"name": "machine-1"}],
            "volume": {"name": "pv-1", "uid": "v", "originalReclaimPolicy": "Delete"}});
        let computer = observed(Some(json!({"status": {"children": children}})), None).computer.found().unwrap();
        let children = computer.status.as_ref().unwrap().children.clone().unwrap();
        let pods = vec![("machine-1".to_owned(), Answer::Absent)];
        let parts = Parts { pods, claim: Answer::Denied("get claims".into()), sessions: Answer::Found(Vec::new()), record: Answer::Absent };
        let mut text = String::new();
        draw(&tree(&computer, &children, &parts), "", &mut text);
        assert!(text.starts_with("├── Pod machine-1: does not exist\n├── PersistentVolumeClaim home-1: not readable: get claims\n│   └── PersistentVolume pv-1"), "{text}");
        assert!(text.contains("└── ComputerRecord"), "{text}");
    }
}
