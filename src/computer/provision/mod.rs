//! The provisioning plan: finalizer → record → key → claim → pod → volume to `Retain` → key live. One request at a time, each
//! decided from what was observed. A settled computer needs no request at all (L6). Never entered for a deleting computer (S8).

mod begin;
mod crash;
mod home;
mod key;
mod machine;
#[cfg(test)]
mod tests;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::action::Action;
use super::report::{Blocker, Next, Plan, Report};
use super::time_to_live;
use super::view::{ClassState, View};
use crate::resources::conditions::types;
use crate::resources::{Computer, ComputerClass, ComputerRecord, CredentialState, Phase, Provider, Step, StepStatus};

/// Ids and names of the steps, in order. A BYOM computer has the first, the second and the last.
pub const STEPS: [(&str, &str); 6] = [
    ("create-record", "Create the record"),
    ("issue-key", "Issue the key"),
    ("create-volume", "Create the home volume"),
    ("start-pod", "Start the pod"),
    ("protect-volume", "Protect the home volume"),
    ("activate-key", "Activate the key"),
];

/// What a step says.
#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Finished.
    Done,
    /// One more request.
    Do(Box<Action>),
    /// Wait for something that comes by itself.
    Wait(Duration),
    /// Wait for something that does not come by itself.
    Blocked(Blocker, Duration),
}

impl State {
    fn act(action: Action) -> Self {
        Self::Do(Box::new(action))
    }
    fn wait(seconds: u64) -> Self {
        Self::Wait(Duration::from_secs(seconds))
    }
    fn blocked(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Blocked(Blocker { reason, message: message.into() }, Duration::from_secs(30))
    }
}

/// What the steps look at.
struct Context<'a> {
    view: &'a View,
    computer: &'a Computer,
    record: &'a ComputerRecord,
}

impl Context<'_> {
    fn managed(&self) -> bool {
        self.record.spec.provider == Provider::Managed
    }

    fn save(&self, change: impl FnOnce(&mut ComputerRecord)) -> State {
        let mut record = self.record.clone();
        change(&mut record);
        State::act(Action::SaveRecord(Box::new(record)))
    }
}

/// Plans the next request of a computer that lives. The end of its time to live is a deletion like any other.
pub fn plan(view: &View) -> Plan {
    let Some(computer) = &view.computer else { return Plan { next: Next::Settled, report: Report::default() } };
    let mut plan = alive(view, computer);
    if let Some(action) = time_to_live::expire(view, computer) {
        plan.next = Next::Do(action);
    }
    plan
}

fn alive(view: &View, computer: &Computer) -> Plan {
    let state = begin::step(view, computer);
    let Some(record) = view.record.as_ref().filter(|_| state == State::Done) else {
        return at(view, computer, 0, state);
    };
    let context = Context { view, computer, record };
    let steps: [fn(&Context<'_>) -> State; 5] = [key::issue, home::create, machine::run, home::protect, key::activate];
    for (i, step) in steps.iter().enumerate() {
        match step(&context) {
            State::Done => {}
            state => return at(view, computer, i + 1, state),
        }
    }
    settled(&context)
}

/// Nothing is left to be requested: the machine runs, is suspended, or waits for its pod to become ready.
fn settled(context: &Context<'_>) -> Plan {
    let mut plan = at(context.view, context.computer, STEPS.len(), State::Done);
    plan.report.drift = drift(context);
    plan.report.node_name = machine::node(context);
    if context.computer.spec.suspended && context.managed() {
        plan.report.phase = Some(Phase::Suspended);
        plan.report.ready =
            Some((false, "Suspended", "stopped on request (spec.suspended); the home volume and the key are kept".to_owned()));
    } else {
        plan.report.phase = Some(Phase::Active);
        plan.report.ready = Some((true, "Ready", "the computer can be used".to_owned()));
    }
    if let Some(left) = time_to_live::time_left(context.view.now, context.computer).filter(|l| *l > 0) {
        plan.next = Next::Wait(Duration::from_secs(u64::try_from(left).unwrap_or(1)));
    }
    plan
}

/// What differs between the class now and the pod that runs. Shown, never applied to a running pod.
fn drift(context: &Context<'_>) -> Option<String> {
    let ClassState::Found(class) = &context.view.class else {
        let name = context.record.spec.class_name.as_ref()?;
        return Some(format!("ComputerClass {name} does not exist any more; the computer goes on as it was made"));
    };
    let snapshot = &context.record.spec.snapshot;
    let drifted = match (&snapshot.template_hash, &snapshot.pod_hash) {
        (Some(made), _) => *made != super::machine_pod::hash(class, &context.computer.spec),
        (None, Some(made)) => drifted_before(context, class, made),
        (None, None) => false,
    };
    drifted.then(|| {
        format!(
            "ComputerClass {} or this computer's spec changed since the pod was made; suspend and resume to apply it",
            class.metadata.name.as_deref().unwrap_or_default()
        )
    })
}

/// Whether a pod that an earlier version made differs from its class. This version builds other pods, so only the two together tell: the
/// hash of that version differs, and that version has shown it while it ran.
fn drifted_before(context: &Context<'_>, class: &ComputerClass, made: &str) -> bool {
    let conditions = context.computer.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let shown = conditions.iter().any(|c| c.type_ == types::DRIFTED && c.status == "True");
    shown && super::machine_pod::built_hash(class, &context.computer.spec) != made
}

/// The plan at a step: earlier ones are completed, later ones pending.
fn at(view: &View, computer: &Computer, current: usize, state: State) -> Plan {
    let blocker = if let State::Blocked(blocker, _) = &state { Some(blocker.clone()) } else { None };
    let provider = view.record.as_ref().map_or(computer.spec.provider, |r| r.spec.provider);
    let shown = |i: &usize| provider == Provider::Managed || matches!(i, 0 | 1 | 5);
    let provisioning = (0..STEPS.len()).filter(shown).map(|i| report_step(view, i, current, blocker.as_ref())).collect();
    let live = view.record.as_ref().is_some_and(|r| r.spec.state.credential == CredentialState::Live);
    let message = blocker.as_ref().map_or_else(|| STEPS.get(current).map_or(String::new(), |s| s.1.to_owned()), |b| b.message.clone());
    let report = Report {
        phase: Some(if blocker.is_some() && !live { Phase::Error } else { Phase::Provisioning }),
        current: STEPS.get(current).map(|s| s.0.to_owned()),
        provisioning,
        ready: Some((false, blocker.as_ref().map_or("Provisioning", |b| b.reason), message)),
        blocker,
        class_name: view.record.as_ref().and_then(|r| r.spec.class_name.clone()),
        ..Report::default()
    };
    let next = match state {
        State::Done => Next::Settled,
        State::Do(action) => Next::Do(*action),
        State::Wait(after) | State::Blocked(_, after) => Next::Wait(after),
    };
    Plan { next, report }
}

fn report_step(view: &View, i: usize, current: usize, blocker: Option<&Blocker>) -> Step {
    let status = match i.cmp(&current) {
        std::cmp::Ordering::Less => StepStatus::Completed,
        std::cmp::Ordering::Greater if on_record(view, STEPS[i].0) => StepStatus::Completed,
        std::cmp::Ordering::Equal if blocker.is_some() => StepStatus::Blocked,
        std::cmp::Ordering::Equal => StepStatus::Running,
        std::cmp::Ordering::Greater => StepStatus::Pending,
    };
    let error = blocker.filter(|_| i == current).map(|b| b.message.clone());
    let started_at = if STEPS[i].0 == "start-pod" { pod_created(view) } else { None };
    Step { id: STEPS[i].0.to_owned(), name: STEPS[i].1.to_owned(), status, error, started_at, ..Step::default() }
}

/// Whether the record says that a step was finished before: a pod that is replaced undoes no other step.
fn on_record(view: &View, id: &str) -> bool {
    let Some(state) = view.record.as_ref().map(|r| &r.spec.state) else { return false };
    match id {
        "protect-volume" => state.children.volume.is_some(),
        "activate-key" => state.credential == CredentialState::Live,
        _ => false,
    }
}

/// When the present pod was made, by the API server: a pod that replaced another one began then.
fn pod_created(view: &View) -> Option<Time> {
    let name = &view.record.as_ref()?.spec.state.children.pods.last()?.name;
    view.pod(&view.namespace, name).flatten()?.metadata.creation_timestamp.clone()
}
