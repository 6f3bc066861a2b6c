//! What a wait shows and when it ends: from the objects that a watch shows to rows, changes and a state. Pure: it knows no clock and no
//! cluster.

use computer_operator_api::conditions::types;
use computer_operator_api::steps::{DeletionStep, Sequence};
use computer_operator_api::{Computer, ComputerRecord, Phase, Receipt, Step, StepStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt as _;

use crate::cluster::when;

/// How long something may be blocked before a wait ends with the exit code 2.
pub const BLOCKED: i64 = 30;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The computer is deleted.
    Deleted,
    /// The computer can be used, as its spec of this generation says.
    Ready(i64),
}

/// What a watch shows.
#[derive(Clone, Debug)]
pub enum Seen {
    /// An object of the name.
    Computer(Box<Computer>),
    /// No object of the name.
    Gone,
    /// The record of the deletion that continues without a Computer.
    Record(Box<ComputerRecord>),
    /// An event that says what blocks such a deletion.
    Warning(Box<Event>),
}

/// A step as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// In words.
    pub title: String,
    /// Its state.
    pub status: StepStatus,
    /// When it began.
    pub began: Option<Timestamp>,
    /// How long it took or takes, if it has begun.
    pub seconds: Option<i64>,
    /// Why it is blocked or was skipped.
    pub detail: String,
}

/// Where the wait is.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// It makes progress.
    Running,
    /// It has been blocked since then.
    Blocked(Timestamp),
    /// What was waited for has happened.
    Reached,
    /// The Computer is gone: only the record says more.
    Gone,
    /// It cannot happen any more: why.
    Lost(String),
}

/// A wait.
#[derive(Clone, Debug)]
pub struct Progress {
    goal: Goal,
    uid: String,
    /// The steps as they were last seen.
    pub rows: Vec<Row>,
    /// The state.
    pub state: State,
    /// The receipt, when it is known.
    pub receipt: Option<Receipt>,
}

impl Progress {
    /// Waits for the computer with this UID.
    pub fn new(goal: Goal, uid: &str) -> Self {
        Self { goal, uid: uid.to_owned(), rows: Vec::new(), state: State::Running, receipt: None }
    }

    /// Takes in what a watch shows, and returns the rows that changed.
    pub fn feed(&mut self, seen: &Seen, now: Timestamp) -> Vec<Row> {
        let before = self.rows.clone();
        match seen {
            Seen::Computer(computer) if computer.uid().as_deref() == Some(self.uid.as_str()) => self.computer(computer, now),
            Seen::Computer(_) | Seen::Gone => {
                self.state = match self.goal {
                    Goal::Deleted => State::Gone,
                    Goal::Ready(_) => State::Lost("the Computer was deleted".to_owned()),
                };
            }
            Seen::Record(record) => self.record(record, now),
            Seen::Warning(event) => self.warning(event),
        }
        // The words for a finished step differ between status and record.
        let news = |row: &Row| (row.status, (row.status == StepStatus::Blocked).then(|| row.detail.clone()));
        let changed = |row: &&Row| before.iter().find(|b| b.id == row.id).is_none_or(|b| news(b) != news(row));
        self.rows.iter().filter(changed).filter(|row| row.status != StepStatus::Pending).cloned().collect()
    }

    fn computer(&mut self, computer: &Computer, now: Timestamp) {
        let Some(status) = &computer.status else { return };
        // A deletion that the operator has not noticed: the status is that of the computer that lived.
        if self.goal == Goal::Deleted && !reported(computer) {
            return;
        }
        let steps = if self.goal == Goal::Deleted { &status.deletion_steps } else { &status.provisioning_steps };
        self.rows = steps.iter().map(|step| row(step, now)).collect();
        let condition = |type_: &str| status.conditions.iter().find(|c| c.type_ == type_);
        let blocked = condition(types::BLOCKED).filter(|c| c.status == "True");
        let error = condition(types::READY).filter(|c| c.status != "True" && status.phase == Some(Phase::Error));
        let fails = match self.goal {
            Goal::Deleted => blocked,
            Goal::Ready(_) => blocked.or(error),
        };
        self.state = match (self.goal, fails, &self.state) {
            (Goal::Ready(_), _, _) if computer.metadata.deletion_timestamp.is_some() => {
                State::Lost("the Computer is being deleted".to_owned())
            }
            // The one that lasts longest counts, also if its reason changes meanwhile.
            (_, Some(_), State::Blocked(since)) => State::Blocked(*since),
            (_, Some(condition), _) => State::Blocked(condition.last_transition_time.0.min(now)),
            (Goal::Ready(generation), None, _) if usable(computer, generation) => State::Reached,
            (_, None, _) => State::Running,
        };
        if let Some(condition) = fails
            && let Some(row) = self.rows.iter_mut().find(|row| Some(row.id.as_str()) == status.step.as_deref())
        {
            row.status = StepStatus::Blocked;
            row.detail = format!("{}: {}", condition.reason, condition.message);
        }
    }

    fn record(&mut self, record: &ComputerRecord, now: Timestamp) {
        let Some(deletion) = &record.spec.state.deletion else { return };
        let row = |step: &DeletionStep| {
            let began = deletion.started.get(*step).map(|time| time.0);
            let outcome = deletion.outcome(*step);
            let running = if began.is_some() { StepStatus::Running } else { StepStatus::Pending };
            let before = self.rows.iter().find(|row| row.id == step.id());
            let seconds = began.map(|began| (outcome.map_or(now, |o| o.at.0).as_second() - began.as_second()).max(0));
            Row {
                id: step.id().to_owned(),
                title: step.title().to_owned(),
                status: outcome.map_or(running, |outcome| outcome.result.status()),
                began,
                seconds: seconds.or(before.and_then(|row| row.seconds)),
                detail: outcome.map(|outcome| outcome.detail.clone()).unwrap_or_default(),
            }
        };
        let rows: Vec<Row> = DeletionStep::ALL.iter().map(row).collect();
        let current = |rows: &[Row]| rows.iter().position(|row| !ended(row.status));
        if deletion.receipt.is_none() && current(&rows) == current(&self.rows) && matches!(self.state, State::Blocked(_)) {
            return;
        }
        self.rows = rows;
        self.state = State::Running;
        self.receipt.clone_from(&deletion.receipt);
        if deletion.receipt.is_some() {
            self.state = State::Reached;
        }
    }

    /// Events say what blocks a deletion without a Computer. One from before the present step means nothing any more.
    fn warning(&mut self, event: &Event) {
        let Some(at) = when(event) else { return };
        let Some(row) = self.rows.iter_mut().find(|row| matches!(row.status, StepStatus::Running | StepStatus::Blocked)) else { return };
        if row.began.is_some_and(|began| at >= began) {
            row.status = StepStatus::Blocked;
            row.detail = format!("{}: {}", event.reason.clone().unwrap_or_default(), event.message.clone().unwrap_or_default());
            self.state = State::Blocked(event.first_timestamp.as_ref().or(event.last_timestamp.as_ref()).map_or(at, |time| time.0));
        }
    }

    /// Whether the sessions were seen to be archived, or that there is nothing to archive.
    pub fn archived(&self) -> bool {
        self.rows.iter().any(|row| row.id == DeletionStep::ArchiveSessions.id() && ended(row.status))
    }

    /// Whether every step was seen to end, if nothing but the Computer can be read. A Computer that is gone before its receipt is stored was
    /// handed off to its record.
    pub fn seems_complete(&self) -> bool {
        let ended = |id: &str| self.rows.iter().any(|row| row.id == id && ended(row.status));
        DeletionStep::ALL.iter().map(|step| step.id()).all(ended)
    }
}

/// Whether the status is about the deletion of a Computer.
pub fn reported(computer: &Computer) -> bool {
    computer.status.as_ref().is_some_and(|status| status.phase == Some(Phase::Deleting) || !status.deletion_steps.is_empty())
}

fn ended(status: StepStatus) -> bool {
    matches!(status, StepStatus::Completed | StepStatus::Skipped | StepStatus::NotApplicable)
}

fn usable(computer: &Computer, generation: i64) -> bool {
    let Some(status) = &computer.status else { return false };
    let seen = status.observed_generation.is_some_and(|observed| observed >= generation);
    seen && status.conditions.iter().any(|c| c.type_ == types::READY && c.status == "True" && c.reason == "Ready")
}

fn row(step: &Step, now: Timestamp) -> Row {
    let end = step.completed_at.as_ref().map_or(now, |time| time.0);
    let seconds = step.started_at.as_ref().map(|time| (end.as_second() - time.0.as_second()).max(0));
    let began = step.started_at.as_ref().map(|time| time.0);
    Row {
        began,
        id: step.id.clone(),
        title: step.name.clone(),
        status: step.status,
        seconds,
        detail: step.error.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    fn computer(uid: &str, status: &Value) -> Seen {
        let object = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer",
            "metadata": {"name": "box", "namespace": "t", "uid": uid, "generation": 2}, "spec": {}, "status": status});
        Seen::Computer(Box::new(serde_json::from_value(object).unwrap()))
    }

    fn condition(type_: &str, status: &str, reason: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:59:00Z"})
    }

    #[test]
    fn a_change_is_shown_once() {
        let mut progress = Progress::new(Goal::Deleted, "u");
        let status = |state: &str| json!({"deletionSteps": [{"id": "stop-pods", "name": "Stop the pods", "status": state}, {"id": "x", "name": "X", "status": "Pending"}]});
        assert_eq!(progress.feed(&computer("u", &status("Running")), now()).len(), 1, "a pending step is no change");
        assert_eq!(progress.feed(&computer("u", &status("Running")), now()).len(), 0);
        assert_eq!(progress.feed(&computer("u", &status("Completed")), now())[0].status, StepStatus::Completed);
    }

    #[test]
    fn it_is_blocked_since_the_first_reason() {
        let mut progress = Progress::new(Goal::Deleted, "u");
        let blocked = json!({"phase": "Deleting", "step": "stop-pods", "conditions": [condition("Blocked", "True", "PodHeld")],
            "deletionSteps": [{"id": "stop-pods", "name": "Stop the pods", "status": "Running"}]});
        let changed = progress.feed(&computer("u", &blocked), now());
        assert_eq!((changed[0].status, changed[0].detail.as_str()), (StepStatus::Blocked, "PodHeld: m"));
        let since = "2026-01-01T00:59:00Z".parse().unwrap();
        assert_eq!(progress.state, State::Blocked(since));
        progress.feed(&computer("u", &json!({"phase": "Deleting", "conditions": []})), now());
        assert_eq!(progress.state, State::Running, "it continues");
    }

    #[test]
    fn what_blocked_a_computer_that_lived_does_not_block_its_deletion() {
        let mut progress = Progress::new(Goal::Deleted, "u");
        progress.feed(&computer("u", &json!({"phase": "Error", "conditions": [condition("Blocked", "True", "CrashLoop")]})), now());
        assert_eq!(progress.state, State::Running);
    }

    #[test]
    fn another_computer_of_the_name_is_not_the_one_that_was_deleted() {
        let mut progress = Progress::new(Goal::Deleted, "u");
        progress.feed(&computer("another", &json!({})), now());
        assert_eq!(progress.state, State::Gone);
        let mut progress = Progress::new(Goal::Ready(1), "u");
        progress.feed(&Seen::Gone, now());
        assert!(matches!(progress.state, State::Lost(_)));
    }

    #[test]
    fn ready_counts_only_for_the_spec_that_was_asked_for() {
        let ready =
            |generation: i64, reason: &str| json!({"observedGeneration": generation, "conditions": [condition("Ready", "True", reason)]});
        let mut progress = Progress::new(Goal::Ready(2), "u");
        progress.feed(&computer("u", &ready(1, "Ready")), now());
        assert_eq!(progress.state, State::Running, "of the spec before");
        progress.feed(&computer("u", &ready(2, "Suspended")), now());
        assert_eq!(progress.state, State::Running, "suspended is not ready to use");
        progress.feed(&computer("u", &ready(2, "Ready")), now());
        assert_eq!(progress.state, State::Reached);
        let error = json!({"phase": "Error", "conditions": [condition("Ready", "False", "ClassNotFound")]});
        progress.feed(&computer("u", &error), now());
        assert!(matches!(progress.state, State::Blocked(_)));
    }

    #[test]
    fn a_computer_that_is_gone_before_its_receipt_may_have_been_handed_off() {
        let mut progress = Progress::new(Goal::Deleted, "u");
        let steps = |archive: &str, receipt: &str| {
            let step = |id: &str, status: &str| json!({"id": id, "name": id, "status": status});
            json!({"deletionSteps": [step("revoke-credentials", "Completed"), step("stop-pods", "Completed"), step("archive-sessions", archive),
                step("delete-volumes", "Completed"), step("write-receipt", receipt)]})
        };
        for seen in [("Running", "Pending"), ("Skipped", "Running")] {
            progress.feed(&computer("u", &steps(seen.0, seen.1)), now());
            assert!(!progress.seems_complete(), "{seen:?}");
        }
        progress.feed(&computer("u", &steps("Skipped", "Completed")), now());
        assert!(progress.seems_complete());
        assert!(!Progress::new(Goal::Deleted, "u").seems_complete());
    }

    #[test]
    fn a_record_with_a_receipt_ends_the_wait() {
        let record = |receipt: Value| {
            let mut deletion = json!({"deletedAt": "2026-01-01T00:00:00Z", "cause": "NamespaceTerminating", "handedOff": true,
                "steps": {"stop-pods": {"result": "Verified", "detail": "stopped", "at": "2026-01-01T00:00:09.000000Z"}},
                "started": {"archive-sessions": "2026-01-01T00:00:09.000000Z"}});
            deletion["receipt"] = receipt;
            let spec = json!({"namespace": "t", "computer": "box", "state": {"deletion": deletion}});
            let object =
                json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerRecord", "metadata": {"name": "u"}, "spec": spec});
            Seen::Record(Box::new(serde_json::from_value(object).unwrap()))
        };
        let mut progress = Progress::new(Goal::Deleted, "u");
        progress.feed(&Seen::Gone, now());
        let rows = progress.feed(&record(Value::Null), now());
        assert_eq!((progress.state.clone(), rows.len()), (State::Running, 2));
        let event = |time: &str| {
            let event = json!({"metadata": {}, "involvedObject": {}, "type": "Warning", "reason": "StoreUnavailable", "message": "503", "lastTimestamp": time});
            Seen::Warning(Box::new(serde_json::from_value(event).unwrap()))
        };
        assert_eq!(progress.feed(&event("2026-01-01T00:00:08Z"), now()).len(), 0, "of an earlier step");
        assert_eq!(progress.feed(&event("2026-01-01T00:00:20Z"), now())[0].detail, "StoreUnavailable: 503");
        assert!(matches!(progress.state, State::Blocked(_)));
        progress.feed(&record(Value::Null), now());
        assert!(matches!(progress.state, State::Blocked(_)), "a write to the record at the same step");
        progress.feed(&record(json!({"digest": "d1", "at": "2026-01-01T00:01:00.000000Z"})), now());
        assert_eq!((progress.state, progress.receipt.map(|r| r.digest).as_deref()), (State::Reached, Some("d1")));
    }
}
