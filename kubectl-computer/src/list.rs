//! `list`: what every computer is doing, and for how long; what needs a person comes first.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use computer_operator_api::conditions::types;
use computer_operator_api::{Computer, ComputerStatus, Phase};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::args::Output;
use crate::cluster::{Answer, Cluster};
use crate::progress::reported;
use crate::screen;
use crate::text::{count, quoted, span, table};
use crate::why::REACTS;

/// In place of a reason: the operator does not report on the computer.
const SILENT: &str = "(no report)";

/// One computer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    namespace: String,
    name: String,
    uid: String,
    status: &'static str,
    step: String,
    /// Why it is blocked or not ready.
    reason: String,
    /// Seconds in this state.
    lasts: i64,
    class: String,
    age: i64,
    pod: String,
    node: String,
    expires: Option<i64>,
    rank: Rank,
}

/// The order in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Blocked,
    Deleting,
    Starting,
    Settled,
}

impl Line {
    /// Of a Computer.
    pub fn of(computer: &Computer, now: Timestamp) -> Self {
        let status = computer.status.clone().unwrap_or_default();
        let ago = |time: Option<Timestamp>| time.map_or(0, |time| now.as_second().saturating_sub(time.as_second()).max(0));
        let created = computer.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let deleted = computer.metadata.deletion_timestamp.as_ref().map(|time| time.0);
        let current = deleted.is_none() || reported(computer);
        let blocked = condition(&status, types::BLOCKED).filter(|c| c.status == "True" && current);
        let ready = condition(&status, types::READY);
        let unready = ready.filter(|c| c.status != "True" && deleted.is_none());
        let error = unready.filter(|_| status.phase == Some(Phase::Error));
        let silent = if deleted.is_some() { !reported(computer) } else { ready.is_none() } && ago(deleted.or(created)) > REACTS;
        let rank = match (blocked.or(error), deleted, unready.is_some() || ready.is_none()) {
            (Some(_), ..) => Rank::Blocked,
            _ if silent => Rank::Blocked,
            (None, Some(_), _) => Rank::Deleting,
            (None, None, true) => Rank::Starting,
            (None, None, false) => Rank::Settled,
        };
        let since = blocked.or(error).map(|c| c.last_transition_time.0).or(deleted).or(ready.map(|c| c.last_transition_time.0)).or(created);
        let expires = status.expires_at.as_ref().map(|at| at.0.as_second() - now.as_second());
        Self {
            namespace: computer.namespace().unwrap_or_default(),
            name: computer.name_any(),
            uid: computer.uid().unwrap_or_default(),
            status: if deleted.is_some() { "Deleting" } else { word(status.phase) },
            step: status.step.clone().filter(|_| current).unwrap_or_default(),
            reason: if silent { SILENT.to_owned() } else { blocked.or(unready).map(|c| c.reason.clone()).unwrap_or_default() },
            lasts: ago(since),
            class: status.class_name.clone().or_else(|| computer.spec.class_name.clone()).unwrap_or_default(),
            age: ago(created),
            pod: status.children.as_ref().and_then(|c| c.pods.last()).map(|pod| pod.name.clone()).unwrap_or_default(),
            node: status.node_name.clone().unwrap_or_default(),
            expires,
            rank,
        }
    }

    fn json(&self) -> Value {
        json!({
            "namespace": self.namespace, "name": self.name, "uid": self.uid, "status": self.status, "step": self.step, "reason": self.reason,
            "blocked": self.rank == Rank::Blocked, "seconds": self.lasts, "className": self.class, "ageSeconds": self.age,
            "pod": self.pod, "node": self.node, "expiresInSeconds": self.expires,
        })
    }
}

fn condition<'a>(status: &'a ComputerStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

fn word(phase: Option<Phase>) -> &'static str {
    match phase {
        Some(Phase::Provisioning) | None => "Provisioning",
        Some(Phase::Active) => "Active",
        Some(Phase::Suspended) => "Suspended",
        Some(Phase::Error) => "Error",
        Some(Phase::Deleting) => "Deleting",
    }
}

/// Blocked ones first, the longest first; then by state and name.
pub fn sorted(mut lines: Vec<Line>) -> Vec<Line> {
    let longest = |line: &Line| if line.rank == Rank::Settled { 0 } else { -line.lasts };
    lines.sort_by(|a, b| (a.rank, longest(a), &a.namespace, &a.name).cmp(&(b.rank, longest(b), &b.namespace, &b.name)));
    lines
}

/// The table, and a last line with what to do next.
pub fn text(lines: &[Line], namespaces: bool, wide: bool) -> String {
    let mut header = vec!["NAME", "STATUS", "STEP", "REASON", "FOR", "CLASS", "AGE"];
    if namespaces {
        header.insert(0, "NAMESPACE");
    }
    if wide {
        header.extend(["POD", "NODE", "EXPIRES", "UID"]);
    }
    let mut rows = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for line in lines {
        let status = if line.rank == Rank::Blocked { format!("{} !", line.status) } else { line.status.to_owned() };
        let mut row =
            vec![line.name.clone(), status, line.step.clone(), line.reason.clone(), span(line.lasts), line.class.clone(), span(line.age)];
        if namespaces {
            row.insert(0, line.namespace.clone());
        }
        if wide {
            row.extend([line.pod.clone(), line.node.clone(), line.expires.map(span).unwrap_or_default(), line.uid.clone()]);
        }
        rows.push(row);
    }
    let mut text = table(&rows);
    let blocked = lines.iter().filter(|line| line.rank == Rank::Blocked).count();
    if let Some(first) = lines.iter().find(|line| line.rank == Rank::Blocked) {
        let many = count(i64::try_from(blocked).unwrap_or(i64::MAX), "computer");
        let _ = writeln!(
            text,
            "\n{many} blocked or in error. The first: kubectl computer why {} -n {}",
            quoted(&first.name),
            quoted(&first.namespace)
        );
    }
    text
}

/// The command.
///
/// # Errors
/// When the caller may not list computers.
pub async fn run(cluster: &Cluster, all: bool, blocked: bool, output: Output) -> Result<()> {
    let namespace = (!all).then_some(cluster.namespace.as_str());
    let found = match cluster.list::<Computer>(namespace, ListParams::default()).await? {
        Answer::Found(found) => found,
        Answer::Absent => Vec::new(),
        Answer::Denied(right) => bail!("you have no right to {right}{}", if all { ": use -n NAMESPACE instead of -A" } else { "" }),
    };
    let now = Timestamp::now();
    let all_lines = sorted(found.iter().map(|computer| Line::of(computer, now)).collect());
    let lines: Vec<Line> = all_lines.into_iter().filter(|line| !blocked || line.rank == Rank::Blocked).collect();
    if output == Output::Json {
        let list: Vec<Value> = lines.iter().map(Line::json).collect();
        screen::out(&serde_json::to_string_pretty(&list)?);
    } else if lines.is_empty() {
        let place = namespace.map_or("any namespace".to_owned(), |namespace| format!("namespace {namespace}"));
        screen::note(&format!("No {}computers in {place}.", if blocked { "blocked " } else { "" }));
    } else {
        screen::out(&text(&lines, all, output == Output::Wide));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_objects::{now, observed};

    fn line(name: &str, fields: &Value) -> Line {
        let mut fields = fields.clone();
        fields["metadata"]["name"] = json!(name);
        Line::of(observed(Some(fields), None).computer.as_found().unwrap(), now())
    }

    fn condition(type_: &str, status: &str, reason: &str, minutes: u32) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": "", "lastTransitionTime": format!("2026-01-01T00:{:02}:00Z", 60 - minutes)})
    }

    fn some() -> Vec<Line> {
        let active = json!({"status": {"phase": "Active", "conditions": [condition("Ready", "True", "Ready", 50)]}});
        let deleting =
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:55:00Z"}, "status": {"phase": "Deleting", "step": "stop-pods"}});
        let mut blocked = deleting.clone();
        blocked["status"]["conditions"] = json!([condition("Blocked", "True", "PodHeld", 3)]);
        let mut longer = deleting.clone();
        longer["status"]["conditions"] = json!([condition("Blocked", "True", "StoreUnavailable", 4)]);
        let error = json!({"status": {"phase": "Error", "conditions": [condition("Ready", "False", "ClassNotFound", 2)]}});
        vec![
            line("z-active", &active),
            line("a-active", &active),
            line("silent", &json!({})),
            line("new", &json!({"metadata": {"creationTimestamp": "2026-01-01T00:59:30Z"}})),
            line("deleting", &deleting),
            line("error", &error),
            line("blocked", &blocked),
            line("longer", &longer),
        ]
    }

    #[test]
    fn what_needs_a_person_comes_first_and_the_longest_wait_before_all() {
        let names: Vec<String> = sorted(some()).into_iter().map(|line| line.name).collect();
        assert_eq!(names, ["silent", "longer", "blocked", "error", "deleting", "new", "a-active", "z-active"]);
    }

    #[test]
    fn the_table_says_what_each_does_and_for_how_long() {
        let text = text(&sorted(some()), true, false);
        let first = text.lines().nth(2).unwrap();
        assert!(text.lines().nth(1).unwrap().contains("(no report)"), "{text}");
        assert!(
            first.contains("team-a") && first.contains("StoreUnavailable") && first.contains("stop-pods") && first.contains("4m"),
            "{text}"
        );
        assert!(text.ends_with("4 computers blocked or in error. The first: kubectl computer why silent -n team-a\n"), "{text}");
    }
}
