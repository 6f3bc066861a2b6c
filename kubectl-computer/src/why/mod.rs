//! `why`: one screen that says what a computer waits for, since when, on which object, why, and what to do. Pure: from what was observed to a
//! text. It must never say that a deletion is complete unless its record says so.

mod commands;
mod gone;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::fmt::Write as _;

use computer_operator_api::conditions::types;
use computer_operator_api::reasons::Reason;
use computer_operator_api::steps::{CurrentStep, DeletionStep, ProvisionStep, Sequence};
use computer_operator_api::{Computer, ComputerStatus, DELETION_FINALIZER, Provider, Step, StepStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt as _;

use crate::cluster::Answer;
use crate::observe::Observed;
use crate::progress::reported;
use crate::text::{labelled, span};
pub use commands::Copy;

/// Seconds in which a healthy operator reacts to a change.
pub const REACTS: i64 = 60;

/// How it is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong.
    Fine,
    /// It works on something, and nothing is wrong.
    Working,
    /// Something must be done.
    Blocked,
    /// The computer is deleted, and the receipt is stored.
    Deleted,
    /// It cannot be known with the rights of the caller.
    Unknown,
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Why {
    /// In one word.
    pub verdict: Verdict,
    /// The computer: namespace, name and UID.
    pub subject: String,
    /// One line: what it is doing.
    pub headline: String,
    /// Labels and texts.
    pub facts: Vec<(&'static str, String)>,
    /// Commands to copy.
    pub commands: Vec<Copy>,
}

impl Why {
    fn new(verdict: Verdict, subject: String, headline: String) -> Self {
        Self { verdict, subject, headline, facts: Vec::new(), commands: Vec::new() }
    }

    fn fact(&mut self, label: &'static str, text: impl Into<String>) {
        let text = text.into();
        if !text.is_empty() {
            self.facts.push((label, text));
        }
    }

    /// As it is shown.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n", self.subject, self.headline);
        if !self.facts.is_empty() {
            text.push('\n');
        }
        let width = self.facts.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
        for (label, fact) in &self.facts {
            text.push_str(&labelled(label, width, fact));
        }
        for command in &self.commands {
            let _ = writeln!(text, "\n# {}\n{}", command.purpose, command.line);
        }
        text
    }
}

/// The answer for what was observed.
pub fn explain(observed: &Observed) -> Why {
    match &observed.computer {
        Answer::Found(computer) if computer.metadata.deletion_timestamp.is_some() => deleting(observed, computer),
        Answer::Found(computer) => living(observed, computer),
        Answer::Absent => gone::explain(observed),
        Answer::Denied(right) => gone::unreadable(observed, right),
    }
}

/// `Computer team-a/box (UID)`.
fn subject(computer: &Computer) -> String {
    let uid = computer.uid().unwrap_or_default();
    format!("Computer {}/{} ({uid})", computer.namespace().unwrap_or_default(), computer.name_any())
}

fn condition<'a>(status: &'a ComputerStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

fn blocked(status: &ComputerStatus) -> Option<&Condition> {
    condition(status, types::BLOCKED).filter(|condition| condition.status == "True")
}

/// The reason with this spelling.
pub(crate) fn reason(spelling: &str) -> Option<Reason> {
    Reason::ALL.iter().copied().find(|reason| reason.as_str() == spelling)
}

fn ago(now: Timestamp, time: &Time) -> i64 {
    now.as_second().saturating_sub(time.0.as_second()).max(0)
}

/// `step 3 of 5, archive-sessions (Archive the sessions)`.
fn step_in_words(id: &str) -> String {
    let of = |number: usize, all: usize, title: &str| format!("step {number} of {all}, {id} ({title})");
    match CurrentStep::from_id(id) {
        Some(CurrentStep::Deletion(step)) => of(step as usize + 1, DeletionStep::ALL.len(), step.title()),
        Some(CurrentStep::Provision(step)) => of(step as usize + 1, ProvisionStep::ALL.len(), step.title()),
        Some(CurrentStep::Release) => "the last step, release (Release the Computer)".to_owned(),
        None => format!("step {id}"),
    }
}

fn step<'a>(status: &'a ComputerStatus, id: &str) -> Option<&'a Step> {
    status.deletion_steps.iter().chain(&status.provisioning_steps).find(|step| step.id == id)
}

/// What blocks it: reason, message, meaning and remedy.
fn blocker(why: &mut Why, spelling: &str, message: &str) {
    why.fact("Message", message);
    match reason(spelling) {
        Some(reason) => {
            why.fact("Means", reason.meaning());
            why.fact("To do", reason.remedy());
        }
        None => why.fact("Means", format!("{spelling} is a reason of another version of the operator: see its docs/reasons.md")),
    }
}

fn deleting(observed: &Observed, computer: &Computer) -> Why {
    let status = computer.status.clone().unwrap_or_default();
    let since = computer.metadata.deletion_timestamp.as_ref().map_or(0, |time| ago(observed.now, time));
    if !reported(computer) {
        return not_noticed(observed, computer, since);
    }
    let id = status.step.clone().unwrap_or_default();
    let deletion = format!("Its deletion began {} ago", span(since));
    let mut why = match blocked(&status) {
        Some(condition) => {
            let waits = span(ago(observed.now, &condition.last_transition_time));
            let headline = format!("BLOCKED for {waits}: {}, in {}. {deletion}.", condition.reason, step_in_words(&id));
            let mut why = Why::new(Verdict::Blocked, subject(computer), headline);
            blocker(&mut why, &condition.reason, &condition.message);
            why
        }
        None => running(observed, computer, &status, &id, &deletion),
    };
    why.fact("Safe", safe(&status, computer.spec.provider));
    foreign_finalizers(&mut why, computer, &status);
    let cause = blocked(&status).map(|condition| condition.reason.as_str());
    why.commands = match (why.verdict, cause) {
        (Verdict::Blocked, None) => commands::operator(observed),
        (_, cause) => commands::of(observed, &commands::Subject::of(computer, observed), cause, &id),
    };
    why
}

/// A deletion in which nothing is reported as blocked. If it takes too long even so, the operator does not report.
fn running(observed: &Observed, computer: &Computer, status: &ComputerStatus, id: &str, deletion: &str) -> Why {
    let runs = step(status, id).and_then(|step| step.started_at.as_ref()).map(|time| ago(observed.now, time));
    let lasts = runs.map_or_else(String::new, |runs| format!(", has been running for {}", span(runs)));
    let now = format!("{deletion}: {}{lasts}.", step_in_words(id));
    let deadline = deadline(observed, id);
    if runs.is_some_and(|runs| runs > deadline + REACTS) {
        let mut why = Why::new(Verdict::Blocked, subject(computer), format!("OVERDUE. {now}"));
        why.fact("Means", "The step is past its deadline, and the operator has not reported it as blocked: it does not run, or cannot reach the API server.");
        why.fact("To do", "check the operator, or ask a cluster admin to do so.");
        return why;
    }
    let mut why = Why::new(Verdict::Working, subject(computer), format!("Nothing is wrong. {now}"));
    why.fact("Progress", how_far(status, id).unwrap_or_default());
    why.fact(
        "To do",
        format!(
            "wait. A step that waits for a node or a provisioner is reported as blocked only when it has taken longer than {}.",
            span(deadline)
        ),
    );
    why
}

/// How far the step is, as the operator reports it.
fn how_far<'a>(status: &'a ComputerStatus, id: &str) -> Option<&'a str> {
    condition(status, types::DELETING)?.message.strip_prefix("at step ")?.strip_prefix(id)?.strip_prefix(": ")
}

/// Seconds after which the operator reports a step as blocked: as the record says, else the class, else by default.
fn deadline(observed: &Observed, id: &str) -> i64 {
    let recorded = observed.record.as_found().map(|record| record.spec.snapshot.deadlines.clone());
    let deadlines = recorded.or_else(|| observed.class.as_found().map(|class| class.spec.deadlines.clone())).unwrap_or_default();
    DeletionStep::from_id(id).and_then(|step| step.deadline(&deadlines)).unwrap_or(REACTS)
}

/// A deletion of which the operator has not reported anything.
fn not_noticed(observed: &Observed, computer: &Computer, since: i64) -> Why {
    let held = !computer.finalizers().iter().any(|finalizer| finalizer == DELETION_FINALIZER);
    let mut why = if held {
        let mut why = Why::new(
            Verdict::Blocked,
            subject(computer),
            format!("BLOCKED: it was deleted {} ago, and only finalizers of other controllers keep it.", span(since)),
        );
        why.fact("Finalizers", computer.finalizers().join(", "));
        why.fact("To do", Reason::ComputerHeld.remedy());
        why
    } else if since < REACTS {
        Why::new(
            Verdict::Working,
            subject(computer),
            format!("Nothing is wrong. It was deleted {} ago, and the operator has not reported a step yet.", span(since)),
        )
    } else {
        let mut why = Why::new(
            Verdict::Blocked,
            subject(computer),
            format!("BLOCKED: it was deleted {} ago, and the operator has reported nothing.", span(since)),
        );
        why.fact("Means", "The operator does not run, or cannot reach the API server. It reacts within seconds otherwise.");
        why.fact("To do", "check the operator, or ask a cluster admin to do so.");
        why.commands = commands::operator(observed);
        why
    };
    why.fact("Safe", "its key no longer authenticates. Nothing is destroyed while the operator does not run.");
    why
}

/// What cannot be lost at this moment.
fn safe(status: &ComputerStatus, provider: Provider) -> String {
    let key = "the key no longer authenticates";
    if provider == Provider::BYOM {
        return format!("{key}. There is no pod and no volume.");
    }
    let volume = status.children.as_ref().and_then(|c| c.volume.as_ref()).map_or_else(String::new, |v| format!(" {}", v.name));
    let state = |wanted: DeletionStep| step(status, wanted.id()).map_or(StepStatus::Pending, |s| s.status);
    let gone = matches!(state(DeletionStep::DeleteVolumes), StepStatus::Completed);
    let sessions = match state(DeletionStep::ArchiveSessions) {
        StepStatus::Completed if gone => {
            format!("the sessions are archived and verified; the home volume{volume} is deleted or kept, as its reclaim policy says")
        }
        StepStatus::Completed => format!("the sessions are archived and verified; the home volume{volume} is no longer needed"),
        StepStatus::Skipped => "the sessions were given up, see the step".to_owned(),
        StepStatus::NotApplicable => "there are no sessions to archive".to_owned(),
        StepStatus::Pending | StepStatus::Running | StepStatus::Blocked => {
            format!("the sessions are not archived yet; the home volume{volume} is kept until they are")
        }
    };
    format!("{key}; {sessions}.")
}

fn foreign_finalizers(why: &mut Why, computer: &Computer, status: &ComputerStatus) {
    let others: Vec<&str> = computer.finalizers().iter().map(String::as_str).filter(|f| *f != DELETION_FINALIZER).collect();
    let last = status.step.as_deref() == Some(CurrentStep::Release.id());
    if !others.is_empty() && !last {
        why.fact("Later", format!("finalizers of other controllers will keep the Computer at the end: {}", others.join(", ")));
    }
}

fn living(observed: &Observed, computer: &Computer) -> Why {
    let age = computer.metadata.creation_timestamp.as_ref().map_or(0, |time| ago(observed.now, time));
    let Some(status) = computer.status.as_ref().filter(|status| !status.conditions.is_empty()) else {
        return unseen(observed, computer, age);
    };
    let ready = condition(status, types::READY);
    let usable = ready.is_some_and(|c| c.status == "True");
    let id = status.step.clone().unwrap_or_default();
    let cause = blocked(status).or_else(|| ready.filter(|c| c.status != "True"));
    let mut why = match (cause, ready) {
        (Some(cause), _) => waiting(observed, computer, status, cause),
        (None, Some(ready)) => {
            let since = span(ago(observed.now, &ready.last_transition_time));
            let word = if ready.reason == "Suspended" { "It is suspended, as its spec declares" } else { "It is ready" };
            Why::new(Verdict::Fine, subject(computer), format!("Nothing is wrong. {word}, for {since}."))
        }
        (None, None) => Why::new(Verdict::Working, subject(computer), "The operator has not reported whether it is ready yet.".to_owned()),
    };
    notes(&mut why, observed, computer, status);
    let spelling = cause.map(|c| c.reason.as_str()).or_else(|| ready.filter(|c| c.reason == "Suspended").map(|c| c.reason.as_str()));
    if !usable || spelling.is_some() {
        why.commands = commands::of(observed, &commands::Subject::of(computer, observed), spelling, &id);
    }
    why
}

/// A computer that is not ready.
fn waiting(observed: &Observed, computer: &Computer, status: &ComputerStatus, cause: &Condition) -> Why {
    let since = span(ago(observed.now, &cause.last_transition_time));
    let known = reason(&cause.reason);
    let step = status.step.as_deref().map_or_else(String::new, |id| format!(", in {}", step_in_words(id)));
    // The operator works on these by itself.
    let working =
        blocked(status).is_none() && matches!(known, Some(Reason::Provisioning | Reason::KeyReplacement | Reason::ClassNotChecked));
    let (verdict, word) = if working { (Verdict::Working, "Not ready") } else { (Verdict::Blocked, "NOT READY") };
    let mut why = Why::new(verdict, subject(computer), format!("{word} for {since}: {}{step}.", cause.reason));
    blocker(&mut why, &cause.reason, &cause.message);
    why
}

/// A computer without a status.
fn unseen(observed: &Observed, computer: &Computer, age: i64) -> Why {
    if age < REACTS {
        return Why::new(
            Verdict::Working,
            subject(computer),
            format!("Nothing is wrong. It was created {} ago, and the operator has not reported anything yet.", span(age)),
        );
    }
    let headline = format!("NOT READY: it was created {} ago, and the operator has reported nothing.", span(age));
    let mut why = Why::new(Verdict::Blocked, subject(computer), headline);
    why.fact("Means", "The operator does not run, or cannot reach the API server. It reacts within seconds otherwise.");
    why.fact("To do", "check the operator, or ask a cluster admin to do so.");
    why.commands = commands::operator(observed);
    why
}

/// What a user may want to know besides.
fn notes(why: &mut Why, observed: &Observed, computer: &Computer, status: &ComputerStatus) {
    if status.observed_generation < computer.metadata.generation {
        why.fact("Note", "the spec has changed since the operator wrote this status.");
    }
    if let Some(drift) = condition(status, types::DRIFTED).filter(|c| c.status == "True") {
        why.fact("Note", format!("{}: {} {}", drift.reason, drift.message, Reason::ClassChanged.remedy()));
    }
    if computer.spec.suspended && status.phase != Some(computer_operator_api::Phase::Suspended) {
        why.fact("Note", "spec.suspended is true: its pod is stopped.");
    }
    if let Some(expires) = &status.expires_at {
        let left = expires.0.as_second().saturating_sub(observed.now.as_second());
        let when = if left > 0 {
            format!("its time to live expires in {}", span(left))
        } else {
            format!("its time to live expired {} ago", span(-left))
        };
        let then = if computer.spec.deletion_protection {
            "It is not deleted then, because spec.deletionProtection is true"
        } else {
            "It is deleted then, as by `kubectl delete`"
        };
        why.fact("Note", format!("{when}. {then}."));
    }
}
