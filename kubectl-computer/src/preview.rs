//! What the deletion of a computer would revoke, archive, destroy and keep. Pure. It must never promise that something is archived when that is
//! not known: then it says so.

use computer_operator_api::{ArchivePolicy, ArchiveSettings, Computer, Provider, StepDeadlines};
use kube::ResourceExt as _;

use crate::observe::Observed;
use crate::text::labelled;

/// What would happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preview {
    /// Labels and texts, in the order in which they are shown.
    pub lines: Vec<(&'static str, String)>,
}

/// The settings that decide what is archived.
struct Settings {
    paths: Vec<String>,
    archive: ArchiveSettings,
    deadlines: StepDeadlines,
    source: String,
}

impl Preview {
    /// Of a computer.
    pub fn of(observed: &Observed, computer: &Computer) -> Self {
        let mut preview = Self::default();
        preview.line("Revoked", "the key. It stops authenticating at once, and permanently.");
        if computer.spec.provider == Provider::BYOM {
            preview.line("Kept", "everything on the machine, because its provider is BYOM. Nothing is archived.");
            return preview;
        }
        match settings(observed) {
            Some(settings) => preview.home(observed, computer, &settings),
            None => preview.line(
                "Archived",
                "NOT KNOWN: you may read neither its class nor its record. Ask a cluster admin which folders are archived.",
            ),
        }
        let children = computer.status.as_ref().and_then(|status| status.children.as_ref());
        let pods: Vec<&str> = children.map(|c| c.pods.iter().map(|pod| pod.name.as_str()).collect()).unwrap_or_default();
        if !pods.is_empty() {
            preview.line("Stopped", format!("{}, with everything that runs in it", pods.join(", ")));
        }
        if computer.spec.deletion_protection {
            preview.line("Note", "spec.deletionProtection is true: the request is denied where the admission policies are installed.");
        }
        preview
    }

    fn line(&mut self, label: &'static str, text: impl Into<String>) {
        self.lines.push((label, text.into()));
    }

    fn home(&mut self, observed: &Observed, computer: &Computer, settings: &Settings) {
        let volume = computer.status.as_ref().and_then(|status| status.children.as_ref()?.volume.clone());
        let name = volume.as_ref().map_or_else(|| "the home volume".to_owned(), |v| format!("the home volume {}", v.name));
        let (retained, fate) = match volume.as_ref().map(|v| v.original_reclaim_policy.as_str()) {
            Some("Retain") => (true, format!("kept on {name}, whose reclaim policy is Retain")),
            Some(_) => (false, format!("DESTROYED with {name}")),
            None => (false, format!("DESTROYED with {name}, unless its reclaim policy is Retain")),
        };
        let whole = settings.paths.is_empty() || settings.paths.iter().any(|path| path == ".");
        let label = if retained { "Kept" } else { "Destroyed" };
        if settings.archive.policy == ArchivePolicy::None {
            self.line(
                label,
                format!("THE WHOLE HOME is {fate}. Nothing is archived, because the archive policy is None ({}).", settings.source),
            );
            return;
        }
        let what = if whole { "the whole home".to_owned() } else { format!("of the home: {}", settings.paths.join(", ")) };
        let policy = settings.archive.policy.as_str();
        self.line("Archived", format!("{what} (policy {policy}, {}). The volume is kept until the archive is verified.", settings.source));
        if !whole {
            self.line(label, format!("everything else in the home is {fate}."));
        } else if !retained {
            self.line(label, format!("{name}, after the archive is verified."));
        }
        if settings.archive.policy == ArchivePolicy::BestEffort {
            let seconds = settings.deadlines.archive_sessions_seconds;
            self.line("Note", format!("the policy BestEffort gives the sessions up when no archive can be made for {seconds} s."));
        }
        if !settings.archive.blocks_unreadable() {
            self.line("Note", "files that the machine's user cannot read are not archived; the manifest names them.");
        }
        if observed.record.as_found().is_none() {
            self.line("Note", "this is what the class says now. What counts is what it said when the computer was created.");
        }
    }

    /// As it is shown.
    pub fn text(&self, computer: &Computer) -> String {
        let (namespace, uid) = (computer.namespace().unwrap_or_default(), computer.uid().unwrap_or_default());
        let mut text = format!("Deleting Computer {namespace}/{} ({uid}) cannot be undone.\n", computer.name_any());
        let width = self.lines.iter().map(|(label, _)| label.len() + 2).max().unwrap_or(0);
        for (label, line) in &self.lines {
            text.push_str(&labelled(&format!("  {label}"), width, line));
        }
        text
    }
}

/// The record decides; the class is what a tenant can read.
fn settings(observed: &Observed) -> Option<Settings> {
    if let Some(record) = observed.record.as_found() {
        let snapshot = record.spec.snapshot.clone();
        let source = "from its record".to_owned();
        return Some(Settings { paths: snapshot.session_paths, archive: snapshot.archive, deadlines: snapshot.deadlines, source });
    }
    let class = observed.class.as_found()?;
    let spec = class.spec.clone();
    let source = format!("class {}", class.name_any());
    Some(Settings { paths: spec.session_paths, archive: spec.archive, deadlines: spec.deadlines, source })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::Answer;
    use crate::test_objects::observed;

    fn shown(class: Option<Value>, spec: &Value, policy: &str) -> String {
        let status =
            json!({"children": {"pods": [{"name": "machine-1"}], "volume": {"name": "pv-1", "uid": "v", "originalReclaimPolicy": policy}}});
        let mut observed = observed(Some(json!({"spec": spec, "status": status})), None);
        if let Some(class) = class {
            observed.class = Answer::Found(serde_json::from_value(class).unwrap());
        }
        let computer = observed.computer.as_found().unwrap().clone();
        Preview::of(&observed, &computer).text(&computer)
    }

    fn class(archive: &Value, paths: &Value) -> Value {
        let spec = json!({"podTemplate": {}, "archive": archive, "sessionPaths": paths});
        json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerClass", "metadata": {"name": "agents"}, "spec": spec})
    }

    #[test]
    fn what_is_archived_and_what_is_destroyed_is_said() {
        let text = shown(Some(class(&json!({}), &json!([".factory/sessions"]))), &json!({}), "Delete");
        assert!(text.contains("of the home: .factory/sessions (policy Required, class agents)"), "{text}");
        assert!(text.contains("everything else in the home is DESTROYED with the home volume pv-1"), "{text}");
        assert!(text.contains("Stopped") && text.contains("machine-1") && text.contains("cannot be undone"), "{text}");
    }

    #[test]
    fn without_an_archive_the_whole_home_is_destroyed() {
        let text = shown(Some(class(&json!({"policy": "None"}), &json!([]))), &json!({}), "Delete");
        assert!(text.contains("THE WHOLE HOME is DESTROYED") && !text.contains("  Archived"), "{text}");
        let text = shown(Some(class(&json!({"policy": "None"}), &json!([]))), &json!({}), "Retain");
        assert!(text.contains("THE WHOLE HOME is kept on the home volume pv-1"), "{text}");
    }

    #[test]
    fn nothing_is_promised_that_is_not_known() {
        let text = shown(None, &json!({}), "Delete");
        assert!(text.contains("NOT KNOWN"), "{text}");
    }

    #[test]
    fn a_machine_of_the_user_keeps_everything() {
        let text = shown(None, &json!({"provider": "BYOM"}), "Delete");
        assert!(text.contains("everything on the machine") && !text.contains("DESTROYED"), "{text}");
    }

    #[test]
    fn best_effort_and_unreadable_files_are_mentioned() {
        let text = shown(Some(class(&json!({"policy": "BestEffort"}), &json!(["."]))), &json!({"deletionProtection": true}), "Delete");
        assert!(text.contains("the whole home (policy BestEffort") && text.contains("3600 s"), "{text}");
        assert!(text.contains("cannot read") && text.contains("deletionProtection"), "{text}");
    }
}
