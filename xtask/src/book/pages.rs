//! The generated pages: text in, Markdown out. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args as _, Command};
use computer_operator::resources::reasons::Reason;
use computer_operator::resources::steps::{DeletionStep, Sequence as _, StepStatus};
use computer_operator::{archive, credentials, http, install, runtime};
use serde_yaml_ng::Value;

use super::metrics::Metric;
use crate::chart::readme;

/// The notes on reasons: `## Reason`, and the text below it.
///
/// # Errors
/// When a note is for something that is not a reason, or a reason has two.
pub fn notes(text: &str) -> Result<BTreeMap<&str, &str>> {
    let mut notes = BTreeMap::new();
    for section in text.split("\n## ").skip(1) {
        let (name, body) = section.split_once('\n').unwrap_or((section, ""));
        ensure!(Reason::ALL.iter().any(|reason| reason.as_str() == name), "{name} is not a reason");
        ensure!(notes.insert(name, body.trim()).is_none(), "{name} has two notes");
    }
    Ok(notes)
}

/// A section for every reason: meaning, what to do, and the note.
///
/// # Errors
/// When the notes are not valid.
pub fn reasons(text: &str) -> Result<String> {
    let notes = notes(text)?;
    let mut page = String::from(
        "# Every reason\n\nThe reasons of conditions, and of the events about them. An event of a deletion step has another reason: the step and \
         its state, for\nexample `ArchiveSessionsBlocked`: see [Events](reference/events.md). [Stuck?](stuck.md) explains how to find the reason, and what `NS`, `NAME`, `UID` and \
         `SYSTEM` are in the commands.\n",
    );
    for reason in Reason::ALL {
        write!(page, "\n## {reason}\n\n{}\n\n**What to do:** {}\n", reason.meaning(), reason.remedy())?;
        if let Some(note) = notes.get(reason.as_str()) {
            write!(page, "\n{note}\n")?;
        }
    }
    Ok(page)
}

/// A table of the events.
pub fn events() -> String {
    let mut page = String::from(
        "# Events\n\n`kubectl describe computer NAME` shows the events of an hour. Each is published once in a while, not each time it is true. An event \
         is best\neffort: a namespace that is being deleted refuses new ones, and nothing waits for one. Conditions and the receipt are the record.\n\n\
         | object | type | reason | when |\n|---|---|---|---|\n",
    );
    let lives = [
        (Reason::Ready, "The computer has become ready"),
        (Reason::Suspended, "The machine has stopped on request"),
        (Reason::KeyReplacement, "A new key has replaced the last one; the note names its Secret"),
    ];
    for (reason, when) in lives {
        let _ = writeln!(page, "| Computer | Normal | [`{reason}`]({}) | {when} |", section(reason));
    }
    for step in DeletionStep::ALL {
        for (status, when) in step_ends() {
            let type_ = if status == StepStatus::Blocked { "Warning" } else { "Normal" };
            let _ = writeln!(page, "| Computer | {type_} | `{}` | {}: {when} |", step.event_reason(status), step.title());
        }
    }
    page.push_str(
        "| Computer | Warning | a [reason](../reasons.md) of the condition `Blocked` | Something blocks its creation or its release |\n\
         | ComputerRecord | Warning | a [reason](../reasons.md) of the condition `Blocked` | Something blocks a deletion whose Computer is gone |\n\
         | ApiKey | Normal, Warning | a [reason](../reasons.md) of the condition `Ready` | Its reason has changed |\n",
    );
    page
}

/// The states of a deletion step that cause an event.
fn step_ends() -> [(StepStatus, &'static str); 3] {
    [
        (StepStatus::Blocked, "something must change first; the note says what"),
        (StepStatus::Completed, "finished"),
        (StepStatus::Skipped, "skipped by the policy of its class or by a DeletionOverride"),
    ]
}

/// The section of a reason.
fn section(reason: Reason) -> String {
    format!("../reasons.md#{}", reason.as_str().to_lowercase())
}

/// A table of the metrics.
pub fn metrics(all: &[Metric]) -> String {
    let mut page = String::from(
        "# Metrics\n\n`/metrics` on port 8080 of the operator and of the HTTP API. [Metrics and alerts](../metrics.md) explains how to use them.\n\
         A family without a sample is not exposed yet: a gauge by reason appears with the first deletion that is blocked.\n\n\
         | metric | type | labels | what it is |\n|---|---|---|---|\n",
    );
    for Metric { name, kind, labels, help } in all {
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(page, "| `{name}` | {kind} | {} | {} |", labels.join(", "), cell(help));
    }
    page
}

/// A table of the alerts.
///
/// # Errors
/// When the template has another form.
pub fn alerts(template: &str, values: &str) -> Result<String> {
    let values = readme::rows(values)?;
    let mut page = String::from(
        "# Alerts\n\nThe PrometheusRule of the chart (`metrics.prometheusRule.enabled`). Each alert has a runbook. Some exist only with what they \
         watch: the\nHTTP API, or a store in a volume.\n\n| alert | severity | fires after | what it says |\n|---|---|---|---|\n",
    );
    for rule in template.split("- alert: ").skip(1) {
        let name = rule.lines().next().context("a name")?;
        let field = |key: &str| rule.lines().find_map(|line| line.trim().strip_prefix(key)).map(str::trim);
        let severity = field("labels: {severity:").with_context(|| format!("{name} has no severity"))?.trim_end_matches('}');
        let after = match field("for:") {
            None => "at once".to_owned(),
            Some(set) => match set.split_once("$rule.").and_then(|(_, rest)| rest.split([' ', '}']).next()) {
                None => set.to_owned(),
                Some(key) => {
                    let row = values.iter().find(|row| row.path.ends_with(&format!("prometheusRule.{key}")));
                    format!("{}m (`metrics.prometheusRule.{key}`)", row.with_context(|| format!("no value {key}"))?.default)
                }
            },
        };
        let summary = field("summary:").with_context(|| format!("{name} has no summary"))?.trim_matches('"');
        let summary = summary.replace("{{ \"{{ $value }}\" }}", "N").replace("{{ \"{{ $value | humanize }}\" }}", "N");
        let summary = summary.replace("{{ \"{{ $labels.", "`").replace(" }}\" }}", "`");
        writeln!(page, "| [{name}](../runbooks/{name}.md) | {severity} | {after} | {} |", cell(&summary))?;
    }
    Ok(page)
}

/// The values of the chart, by their first part.
///
/// # Errors
/// When the file is not YAML.
pub fn values(text: &str) -> Result<String> {
    let mut page = String::from(
        "# Chart values\n\nGenerated from the comments in `values.yaml`. The schema refuses other keys. [The chart](../charts/computer-operator/README.md) \
         describes\nwhat it installs.\n",
    );
    let mut group = String::new();
    for row in readme::rows(text)? {
        let first = row.path.split('.').next().unwrap_or_default();
        if first != group {
            write!(page, "\n## {first}\n\n| value | default | what it is |\n|---|---|---|\n")?;
            first.clone_into(&mut group);
        }
        writeln!(page, "| `{}` | `{}` | {} |", row.path, row.default.replace('|', "\\|"), cell(&row.text))?;
    }
    Ok(page)
}

/// Every command and flag of the operator's program.
pub fn commands() -> String {
    let all = [
        runtime::config::Config::augment_args(Command::new("run")),
        http::config::Config::augment_args(Command::new("api")),
        Command::new("archive").about("Pack the sessions of a home and upload them to the operator. Runs in the archive pod."),
        archive::cli::Args::augment_args(Command::new("archives")).about(archive::cli::ABOUT),
        credentials::cli::Args::augment_args(Command::new("keys")).about("Verify keys of computers and tokens of ApiKeys."),
        install::crds::Args::augment_args(Command::new("crds")).about("Print the CustomResourceDefinitions, or apply them."),
        install::uninstall::Args::augment_args(Command::new("uninstall-check"))
            .about("Fail if any Computer, ApiKey or unfinished deletion remains. Runs before `helm uninstall`."),
        install::check::Args::augment_args(Command::new("install-check"))
            .about("Check that every kind is served, every replica is ready, and the archive store can be used. Runs in `helm test`."),
    ];
    let mut page = String::from(
        "# Commands and flags\n\nThe program `computer-operator` is the operator, the HTTP API, the archive pod's program, the chart's hooks, and the \
         tool that reads\narchives and verifies keys. The chart sets the environment variables of its pods. No flag takes a secret: the credentials of the \
         store\ncome from a mounted folder, from `AWS_*`, or from the pod's cloud identity.\n",
    );
    for command in &all {
        describe(&mut page, "computer-operator", command);
    }
    page
}

fn describe(page: &mut String, parent: &str, command: &Command) {
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let _ = write!(page, "\n## {name}\n\n{}\n", escape(about.trim()));
    let shown: Vec<_> = command.get_arguments().filter(|a| !["help", "version"].contains(&a.get_id().as_str())).collect();
    if !shown.is_empty() {
        page.push_str("\n| flag | variable | default | what it is |\n|---|---|---|---|\n");
    }
    for argument in shown {
        let flag = argument.get_long().map_or_else(|| argument.get_id().as_str().to_uppercase(), |long| format!("--{long}"));
        let code = |text: String| if text.is_empty() { text } else { format!("`{text}`") };
        let variable = code(argument.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default());
        let boolean = !argument.get_action().takes_values();
        let defaults = argument.get_default_values().iter().filter(|_| !boolean);
        let default = code(defaults.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(" "));
        let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(page, "| `{flag}` | {variable} | {default} | {} |", cell(&help));
    }
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        describe(page, &name, inner);
    }
}

/// Every field of every kind.
///
/// # Errors
/// When a definition is not YAML, or a field has no description.
pub fn kinds(definitions: &[(String, String)]) -> Result<String> {
    let mut page = String::from(
        "# Kinds\n\nThe API group is `computer-operator.dev`, version `v1alpha1`. `kubectl explain computer.spec` prints the same texts. \
         A commented example\nof every kind that you create is in [Classes, images and homes](../classes.md) and \
         [Using a computer](../using.md).\n",
    );
    for (file, yaml) in definitions {
        let definition: Value = serde_yaml_ng::from_str(yaml)?;
        let spec = &definition["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let schema = &spec["versions"][0]["schema"]["openAPIV3Schema"];
        let names = &spec["names"];
        let short: Vec<_> = names["shortNames"].as_sequence().into_iter().flatten().map(|name| format!("`{}`", text(name))).collect();
        let also = if short.is_empty() { String::new() } else { format!(", short name {}", short.join(", ")) };
        write!(page, "\n## {}\n\n{}\n\n", text(&names["kind"]), escape(&text(&schema["description"])))?;
        write!(
            page,
            "{}, `{}`{also}.\n\n| field | type | default | what it is |\n|---|---|---|---|\n",
            text(&spec["scope"]),
            text(&names["plural"])
        )?;
        let mut rows = Vec::new();
        for part in ["spec", "status"] {
            fields(&schema["properties"][part], part, &mut rows);
        }
        for row in rows {
            ensure!(!row.text.is_empty(), "{file}: {} has no description", row.path);
            writeln!(page, "| `{}` | {} | {} | {} |", row.path, cell(&row.type_), row.default, cell(&row.text))?;
        }
        let rules: BTreeSet<String> = rules(&schema["properties"]["spec"]);
        if !rules.is_empty() {
            page.push_str("\nThe API server refuses other changes and values with these messages:\n\n");
            rules.iter().try_for_each(|rule| writeln!(page, "- {}", escape(rule)))?;
        }
    }
    Ok(page)
}

struct Row {
    path: String,
    type_: String,
    default: String,
    text: String,
}

fn fields(schema: &Value, path: &str, rows: &mut Vec<Row>) {
    for (key, inner) in schema["properties"].as_mapping().into_iter().flatten() {
        let path = format!("{path}.{}", key.as_str().unwrap_or_default());
        let default = match &inner["default"] {
            // The fields of an object have their own defaults.
            Value::Null | Value::Mapping(_) => String::new(),
            value => format!("`{}`", serde_json::to_string(value).unwrap_or_default().replace('|', "\\|")),
        };
        let text = inner["description"].as_str().unwrap_or_default().to_owned();
        // Conditions are the same in every kind of Kubernetes.
        let (item, mark) = if inner["items"].is_null() { (inner, "") } else { (&inner["items"], "[]") };
        rows.push(Row { path: path.clone(), type_: type_of(inner), default, text });
        if !path.ends_with(".conditions") {
            fields(item, &format!("{path}{mark}"), rows);
        }
    }
}

fn type_of(schema: &Value) -> String {
    let name = schema["type"].as_str().unwrap_or("any");
    if let Some(values) = schema["enum"].as_sequence() {
        return values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    }
    if !schema["items"].is_null() {
        return format!("list of {}", type_of(&schema["items"]));
    }
    match (schema["minimum"].as_i64(), schema["maximum"].as_i64(), schema["format"].as_str()) {
        (Some(least), Some(most), _) => format!("{name}, {least} to {most}"),
        (_, _, Some("date-time")) => "time".to_owned(),
        _ => name.to_owned(),
    }
}

fn rules(schema: &Value) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = BTreeSet::new();
    match schema {
        Value::Mapping(map) => {
            for rule in schema["x-kubernetes-validations"].as_sequence().into_iter().flatten() {
                all.extend(rule["message"].as_str().map(str::to_owned));
            }
            map.values().for_each(|inner| all.extend(rules(inner)));
        }
        Value::Sequence(list) => list.iter().for_each(|inner| all.extend(rules(inner))),
        _ => {}
    }
    all
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    escape(&text.split_whitespace().collect::<Vec<_>>().join(" ")).replace('|', "\\|")
}

/// Text in which a browser sees no tags: `<` outside of code.
fn escape(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts.map(|(i, part)| if i % 2 == 0 { part.replace('<', "&lt;") } else { part.to_owned() }).collect::<Vec<_>>().join("`")
}

/// The reasons under which the code can report a deletion as blocked: those that these sources name.
///
/// # Errors
/// When a name is not a reason.
pub fn blocking(sources: &[&str]) -> Result<BTreeSet<&'static str>> {
    let mut all = BTreeSet::new();
    for text in sources {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for rest in code.split("Reason::").skip(1) {
            let name: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
            match Reason::ALL.iter().find(|reason| reason.as_str() == name) {
                Some(reason) => drop(all.insert(reason.as_str())),
                None => bail!("{name} is not a reason"),
            }
        }
    }
    Ok(all)
}
