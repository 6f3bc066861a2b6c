//! The provisioning plan: finalizer → record → key → claim → pod → volume to `Retain` → key live. The order, ids and titles of the steps are
//! in `api/src/steps.rs`; the files beside this one are the steps, and [`run`] below calls them. A computer that is ready or suspended
//! needs no write (L6), and one read in ten minutes for its key. This plan must never run for a computer that is being deleted (S8).

mod class_verdict;
mod crash_loop;
mod create_record;
mod home;
mod key;
mod machine;
#[cfg(test)]
mod tests;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::key_checks;
use super::report::{Next, Plan, Ready, Report};
use super::step::{self, Finished, State};
use super::time_to_live;
use super::view::{ClassState, View};
use crate::resources::conditions::types;
use crate::resources::reasons::Reason;
use crate::resources::steps::{CurrentStep, ProvisionStep, Sequence, StepResult};
use crate::resources::{Computer, ComputerClass, CredentialState, Phase, Provider, Step};

/// The input of the creation's steps.
type Context<'a> = step::Context<'a, ProvisionStep, &'a Computer>;

/// Seconds after which a blocked step is checked again.
const RETRY_SECONDS: u64 = 30;

/// Runs one step. The first one is finished before a context exists.
fn run(context: &Context<'_>, step: ProvisionStep) -> State {
    match step {
        ProvisionStep::CreateRecord => State::done(),
        ProvisionStep::IssueKey => key::issue(context),
        ProvisionStep::CreateVolume => home::create(context),
        ProvisionStep::StartPod => machine::run(context),
        ProvisionStep::ProtectVolume => home::protect(context),
        ProvisionStep::ActivateKey => key::activate(context),
    }
}

impl Context<'_> {
    /// Whether the operator runs the machine.
    fn managed(&self) -> bool {
        self.record.spec.provider == Provider::Managed
    }
}

/// Plans the next request of a computer that is not being deleted. If its time to live has expired, the request deletes it.
pub fn plan(view: &View) -> Plan {
    let Some(computer) = &view.computer else { return Plan { next: Next::Settled, report: Report::default() } };
    let mut plan = alive(view, computer);
    if let Some(action) = time_to_live::expire(view, computer) {
        plan.next = Next::Do(action);
    }
    plan
}

fn alive(view: &View, computer: &Computer) -> Plan {
    let first = create_record::step(view, computer);
    let Some(record) = view.record.as_ref().filter(|_| first.is_done()) else {
        return planned(view, computer, Some(ProvisionStep::CreateRecord), first);
    };
    let mut context = Context::new(view, record, computer);
    let plan = match context.walk(ProvisionStep::ALL.iter().copied(), run) {
        Some(state) => planned(view, computer, context.current(), state),
        None => complete(&context),
    };
    with_key(&context, plan)
}

/// The plan with what the key needs. It comes after everything that the steps can do now, but a step that fails must not keep the key from
/// being issued, nor the key a step: every other retry begins with the key.
fn with_key(context: &Context<'_>, mut plan: Plan) -> Plan {
    let key_first = !context.view.failures.is_multiple_of(2);
    if matches!(plan.next, Next::Do(_)) && !key_first {
        return plan;
    }
    let state = key::renew(context);
    plan.report.checking |= matches!(state, State::Checking(_));
    let next = match state {
        State::Done(_) => context.view.key_check_in.map_or(Next::Settled, |left| Next::Wait(key_checks::next(left))),
        state => state.into_next().0,
    };
    if key::is_being_replaced(context) {
        let message = "the key is being replaced, because its Secret is gone or spec.key.rotation changed; see status.credentialSecretName";
        let not_ready = plan.report.ready.take().filter(|ready| !ready.status);
        plan.report.ready = not_ready.or(Some(Ready { status: false, reason: Reason::KeyReplacement, message: message.to_owned() }));
    }
    plan.next = match (plan.next, next) {
        (Next::Wait(one), Next::Wait(other)) => Next::Wait(one.min(other)),
        (plan, Next::Settled) | (plan @ Next::Do(_), Next::Wait(_)) => plan,
        (_, next) => next,
    };
    plan
}

/// The plan when all steps are finished: the computer is as declared, ready or suspended. `Ready` is true of a suspended computer, too: tools
/// that wait for declared objects (kstatus: `helm --wait`, Flux) take `Ready=False` for progress that is still to come, and would time out.
fn complete(context: &Context<'_>) -> Plan {
    let mut plan = planned(context.view, context.computer, None, State::done());
    plan.report.drift = drift(context).or_else(|| key_drift(context));
    plan.report.node_name = machine::node(context);
    let (phase, reason, message) = if context.computer.spec.suspended && context.managed() {
        let message = "suspended as declared by spec.suspended: no pod runs; the home volume and the key are kept";
        (Phase::Suspended, Reason::Suspended, message)
    } else {
        (Phase::Active, Reason::Ready, "the computer can be used")
    };
    plan.report.phase = Some(phase);
    plan.report.ready = Some(Ready { status: true, reason, message: message.to_owned() });
    if let Some(left) = time_to_live::time_left(context.view.now, context.computer, Some(context.record)).filter(|l| *l > 0) {
        plan.next = State::wait_for(left).into_next().0;
    }
    plan
}

/// How the running pod differs from its class. It is reported and never applied to a running pod.
fn drift(context: &Context<'_>) -> Option<String> {
    let ClassState::Found(class) = &context.view.class else {
        let name = context.record.spec.class_name.as_ref()?;
        return Some(format!("ComputerClass {name} no longer exists; the computer keeps its configuration"));
    };
    let snapshot = &context.record.spec.snapshot;
    let drifted = match (&snapshot.template_hash, &snapshot.pod_hash) {
        (Some(made), _) => *made != super::machine_pod::hash(class, &context.computer.spec),
        (None, Some(made)) => drifted_before(context, class, made),
        (None, None) => false,
    };
    drifted.then(|| {
        format!(
            "ComputerClass {} or the spec of this Computer changed after the pod was created; suspend and resume to apply the change",
            class.metadata.name.as_deref().unwrap_or_default()
        )
    })
}

/// Whether the machine mounts the Secret of a former key. It gets each next key without a restart, unless the Secret was issued before its class
/// had `key.mountPath`, could not be deleted, or the operator was interrupted while it replaced the key.
fn key_drift(context: &Context<'_>) -> Option<String> {
    let children = &context.record.spec.state.children;
    let mounted = children.pods.last()?.key_secret.as_ref()?;
    let current = children.secret_name.as_ref().filter(|current| children.secret_uid.is_some() && *current != mounted)?;
    Some(format!(
        "the key was replaced and is in Secret {current}, but the machine mounts Secret {mounted}: its key does not authenticate. Suspend and \
         resume the computer, and the machine gets the new key"
    ))
}

/// Whether a pod that an earlier version created differs from its class. This version builds pods differently, so both must agree: the hash
/// of that version differs, and that version reported the drift while it ran.
fn drifted_before(context: &Context<'_>, class: &ComputerClass, made: &str) -> bool {
    let conditions = context.computer.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let shown = conditions.iter().any(|c| c.type_ == types::DRIFTED && c.status == "True");
    shown && super::machine_pod::built_hash(class, &context.computer.spec) != made
}

/// The plan at the current step. `None`: all steps are finished.
fn planned(view: &View, computer: &Computer, current: Option<ProvisionStep>, state: State) -> Plan {
    let checking = matches!(state, State::Checking(_));
    let (next, blocker) = state.into_next();
    let provider = view.record.as_ref().map_or(computer.spec.provider, |r| r.spec.provider);
    let steps = ProvisionStep::ALL.iter().copied().filter(|step| provider == Provider::Managed || step.applies_to_byom());
    let provisioning = steps.map(|step| shown(view, step, current, blocker.as_ref())).collect();
    let live = view.record.as_ref().is_some_and(|r| r.spec.state.credential == CredentialState::Live);
    let ready = match &blocker {
        Some(blocker) => Ready { status: false, reason: blocker.reason, message: blocker.message.clone() },
        None => Ready { status: false, reason: Reason::Provisioning, message: current.map_or("", Sequence::title).to_owned() },
    };
    let report = Report {
        phase: Some(if blocker.is_some() && !live { Phase::Error } else { Phase::Provisioning }),
        current: current.map(CurrentStep::Provision),
        provisioning,
        ready: Some(ready),
        blocker,
        checking,
        class_name: view.record.as_ref().and_then(|r| r.spec.class_name.clone()),
        ..Report::default()
    };
    Plan { next, report }
}

fn shown(view: &View, step: ProvisionStep, current: Option<ProvisionStep>, blocker: Option<&super::report::Blocker>) -> Step {
    let before = current.is_none_or(|current| step < current);
    let finished = Finished { result: StepResult::Verified, detail: String::new() };
    let is_current = current == Some(step);
    let finished = Some(&finished).filter(|_| before || (!is_current && on_record(view, step)));
    let started_at = if step == ProvisionStep::StartPod { pod_created(view) } else { None };
    Step { started_at, ..step::shown(step, finished, is_current, blocker) }
}

/// Whether the record says that a step was finished before: replacing a pod does not undo other steps.
fn on_record(view: &View, step: ProvisionStep) -> bool {
    let Some(state) = view.record.as_ref().map(|r| &r.spec.state) else { return false };
    match step {
        ProvisionStep::ProtectVolume => state.children.volume.is_some(),
        ProvisionStep::ActivateKey => state.credential == CredentialState::Live,
        ProvisionStep::CreateRecord | ProvisionStep::IssueKey | ProvisionStep::CreateVolume | ProvisionStep::StartPod => false,
    }
}

/// When the API server created the current pod, which may have replaced another one.
fn pod_created(view: &View) -> Option<Time> {
    let name = &view.record.as_ref()?.spec.state.children.pods.last()?.name;
    view.pod(&view.namespace, name).flatten()?.metadata.creation_timestamp.clone()
}
