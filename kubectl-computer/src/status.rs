//! `status`: everything about one computer, in sections. Pure, apart from the reads.

use std::fmt::Write as _;

use anyhow::Result;
use computer_operator_api::conditions::types;
use computer_operator_api::{Computer, Provider, Session, Step};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use kube::api::ListParams;

use crate::cluster::{Answer, Cluster, when};
use crate::observe::Observed;
use crate::power::read;
use crate::screen;
use crate::text::{count, labelled, span, spelled, table};
use crate::why;

/// Most sessions that are listed.
const SESSIONS: usize = 10;
/// Most events that are listed.
const EVENTS: usize = 8;

/// The text.
pub fn text(observed: &Observed, computer: &Computer, sessions: &Answer<Vec<Session>>) -> String {
    let why = why::explain(observed);
    let mut text = format!("{}\n{}\n", why.subject, why.headline);
    section(&mut text, "Machine", &machine(computer, observed.now));
    section(&mut text, "Key", &key(computer));
    if computer.spec.provider == Provider::Managed {
        section(&mut text, "Home", &home(observed, computer));
    }
    text.push_str(&sessions_text(sessions));
    let status = computer.status.clone().unwrap_or_default();
    if status.deletion_steps.is_empty() {
        steps(&mut text, "Creation", &status.provisioning_steps, observed.now);
    } else {
        steps(&mut text, "Deletion", &status.deletion_steps, observed.now);
    }
    conditions(&mut text, computer, observed.now);
    events(&mut text, &observed.events, observed.now);
    text
}

fn section(text: &mut String, title: &str, lines: &[(&str, String)]) {
    let _ = writeln!(text, "\n{title}");
    let width = lines.iter().filter(|(_, line)| !line.is_empty()).map(|(label, _)| label.len() + 2).max().unwrap_or(0);
    for (label, line) in lines.iter().filter(|(_, line)| !line.is_empty()) {
        text.push_str(&labelled(&format!("  {label}"), width, line));
    }
}

fn ago(now: Timestamp, time: &Time) -> String {
    span(now.as_second() - time.0.as_second())
}

fn machine(computer: &Computer, now: Timestamp) -> Vec<(&'static str, String)> {
    let (spec, status) = (&computer.spec, computer.status.clone().unwrap_or_default());
    let pod = status.children.as_ref().and_then(|children| children.pods.last());
    let created = computer.metadata.creation_timestamp.as_ref();
    let expires = status.expires_at.as_ref().map(|at| at.0.as_second() - now.as_second());
    let protected = if spec.deletion_protection { ", but is protected from deletion" } else { "" };
    vec![
        ("display name", spec.display_name.clone().unwrap_or_default()),
        ("provider", if spec.provider == Provider::BYOM { "BYOM: you run the machine".to_owned() } else { String::new() }),
        ("class", status.class_name.clone().or_else(|| spec.class_name.clone()).unwrap_or_default()),
        ("pod", pod.map(|pod| pod.name.clone()).unwrap_or_default()),
        ("node", status.node_name.clone().unwrap_or_default()),
        ("suspended", if spec.suspended { "yes, as spec.suspended declares".to_owned() } else { String::new() }),
        ("age", created.map(|time| ago(now, time)).unwrap_or_default()),
        ("expires", expires.map(|left| format!("in {}{protected}", span(left))).unwrap_or_default()),
        (
            "protected",
            if spec.deletion_protection && expires.is_none() { "yes, spec.deletionProtection".to_owned() } else { String::new() },
        ),
        ("repositories", spec.repositories.join(", ")),
    ]
}

/// Only names: no Secret is ever read.
fn key(computer: &Computer) -> Vec<(&'static str, String)> {
    let status = computer.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|c| c.type_ == types::READY);
    let state = if computer.metadata.deletion_timestamp.is_some() {
        "revoked: the computer is being deleted"
    } else if ready.is_some_and(|c| c.reason == "KeyLost" || c.reason == "KeyReplacement") {
        "does not authenticate, see the condition Ready"
    } else if status.credential_secret_name.is_some() {
        "issued"
    } else {
        "not issued yet"
    };
    let overlap = computer.spec.key.overlap_seconds;
    let mounted = status.children.as_ref().and_then(|children| children.pods.last()).and_then(|pod| pod.key_secret.clone());
    vec![
        ("state", state.to_owned()),
        ("Secret", status.credential_secret_name.map(|name| format!("{name}, key token")).unwrap_or_default()),
        ("may", status.key_allows.as_ref().map(|words| words.join(", ")).unwrap_or_default()),
        ("machine", mounted.map(|name| format!("has Secret {name} as files")).unwrap_or_default()),
        ("rotation", computer.spec.key.rotation.clone().unwrap_or_default()),
        ("overlap", if overlap > 0 { format!("{overlap} s after a rotation") } else { String::new() }),
    ]
}

fn home(observed: &Observed, computer: &Computer) -> Vec<(&'static str, String)> {
    let children = computer.status.as_ref().and_then(|status| status.children.clone()).unwrap_or_default();
    let size = computer.spec.storage.as_ref().map(|storage| storage.size.0.clone());
    let class = observed.class.as_found();
    let archive = class.map(|class| {
        let policy = class.spec.archive.policy.as_str();
        format!("{policy}: {} (as the class says now)", class.spec.session_paths.join(", "))
    });
    vec![
        ("claim", children.claim_name.unwrap_or_default()),
        ("volume", children.volume.as_ref().map(|volume| volume.name.clone()).unwrap_or_default()),
        (
            "reclaim policy",
            children.volume.map(|v| format!("{}, applied at the end of a deletion", v.original_reclaim_policy)).unwrap_or_default(),
        ),
        ("size", size.or_else(|| class.map(|class| class.spec.storage.size.0.clone())).unwrap_or_default()),
        ("archive", archive.unwrap_or_else(|| "not known: you may not read the class".to_owned())),
    ]
}

fn sessions_text(sessions: &Answer<Vec<Session>>) -> String {
    let list = match sessions {
        Answer::Found(list) => list,
        Answer::Absent => return String::new(),
        Answer::Denied(right) => return format!("\nSessions\n  not known: you have no right to {right}\n"),
    };
    let mut text = format!("\nSessions: {}\n", list.len());
    let phase = |session: &Session| session.status.as_ref().and_then(|s| s.phase).map(spelled).unwrap_or_default();
    let row = |session: &Session| vec![format!("  {}", session.name_any()), phase(session), session.spec.title.clone().unwrap_or_default()];
    text.push_str(&table(&list.iter().take(SESSIONS).map(row).collect::<Vec<_>>()));
    if list.len() > SESSIONS {
        let more = i64::try_from(list.len() - SESSIONS).unwrap_or(i64::MAX);
        let _ = writeln!(text, "  and {}: kubectl get sessions", count(more, "other"));
    }
    text
}

fn steps(text: &mut String, title: &str, steps: &[Step], now: Timestamp) {
    if steps.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{title}");
    let lasted = |step: &Step| {
        let end = step.completed_at.as_ref().map_or(now, |time| time.0);
        step.started_at.as_ref().map(|begin| span(end.as_second() - begin.0.as_second())).unwrap_or_default()
    };
    let row = |step: &Step| {
        vec![
            format!("  {}", step.id),
            step.status.as_str().to_owned(),
            lasted(step),
            step.error.clone().unwrap_or_else(|| step.name.clone()),
        ]
    };
    text.push_str(&table(&steps.iter().map(row).collect::<Vec<_>>()));
}

fn conditions(text: &mut String, computer: &Computer, now: Timestamp) {
    let list = computer.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    if list.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nConditions");
    let width = list.iter().map(|c| c.type_.len() + c.status.len() + 3).max().unwrap_or(0);
    for condition in &list {
        let label = format!("  {} {}", condition.type_, condition.status);
        text.push_str(&labelled(
            &label,
            width,
            &format!("{} for {}: {}", condition.reason, ago(now, &condition.last_transition_time), condition.message),
        ));
    }
}

fn events(text: &mut String, events: &[Event], now: Timestamp) {
    if events.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nEvents, the last {}", events.len().min(EVENTS));
    for event in events.iter().skip(events.len().saturating_sub(EVENTS)) {
        let age = when(event).map(|time| ago(now, &Time(time))).unwrap_or_default();
        let what = format!("{}: {}", event.reason.clone().unwrap_or_default(), event.message.clone().unwrap_or_default());
        text.push_str(&labelled(&format!("  {age:<8}{}", event.type_.clone().unwrap_or_default()), 17, &what));
    }
}

/// The sessions of exactly this computer.
///
/// # Errors
/// When the API server does not answer.
pub async fn sessions(cluster: &Cluster, computer: &Computer) -> Result<Answer<Vec<Session>>> {
    let all = cluster.list::<Session>(computer.namespace().as_deref(), ListParams::default()).await?;
    Ok(match all {
        Answer::Found(list) => {
            let uid = computer.uid().unwrap_or_default();
            Answer::Found(
                list.into_iter().filter(|session| session.spec.computer_uid == uid && session.spec.deleted_at.is_none()).collect(),
            )
        }
        other => other,
    })
}

/// The command.
///
/// # Errors
/// When there is no such computer.
pub async fn run(cluster: &Cluster, name: &str) -> Result<()> {
    let computer = read(cluster, name).await?;
    let sessions = sessions(cluster, &computer).await?;
    let observed = cluster.observe(name).await?;
    screen::out(&text(&observed, &computer, &sessions));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::test_objects::{UID, observed};

    #[test]
    fn a_title_cannot_write_a_line_or_an_escape_sequence() {
        let object = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Session", "metadata": {"name": "s"},
            "spec": {"computerName": "box", "computerUID": UID, "title": "x\u{1b}[2J\nConditions"}});
        let object = serde_json::from_value(object).unwrap();
        let session: Session = crate::cluster::typed(object).unwrap();
        let observed = observed(Some(json!({"spec": {"displayName": "n"}})), None);
        let text = text(&observed, observed.computer.as_found().unwrap(), &Answer::Found(vec![session]));
        assert!(text.contains(r"x\u{1b}[2J\nConditions") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn every_section_is_there() {
        let status = json!({"phase": "Active", "expiresAt": "2026-01-01T02:00:00Z", "nodeName": "n1", "className": "agents", "credentialSecretName": "computer-key-1", "keyAllows": ["get", "sessions"],
            "children": {"claimName": "home-1", "pods": [{"name": "machine-1", "keySecret": "computer-key-1"}], "volume": {"name": "pv-1", "uid": "v", "originalReclaimPolicy": "Delete"}},
            "provisioningSteps": [{"id": "start-pod", "name": "Start the pod", "status": "Completed"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": "m", "lastTransitionTime": "2026-01-01T00:30:00Z"}]});
        let observed = observed(Some(json!({"status": status})), None);
        let text = text(&observed, observed.computer.as_found().unwrap(), &Answer::Denied("list sessions".to_owned()));
        for part in [
            "Machine\n",
            "Key\n",
            "Home\n",
            "Sessions\n",
            "Creation\n",
            "Conditions\n",
            "machine-1",
            "computer-key-1, key token",
            "get, sessions",
            "has Secret computer-key-1 as files",
            "pv-1",
            "in 60m",
            "list sessions",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
