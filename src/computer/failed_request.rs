//! What a failed request means for a report: which step it blocks, why, and that it is retried. And which requests count as failed
//! although the API server accepted them: those whose change is not in the answer.

use std::collections::BTreeMap;

use super::action::Action;
use super::apply::Error;
use super::report::{Blocker, Next, Plan, Ready, Report};
use super::view::View;
use super::{deletion, provision};
use crate::archive::waiting_time::Left;
use crate::resources::reasons::Reason;
use crate::resources::steps::{CurrentStep, DeletionStep};
use crate::resources::{Phase, StepStatus};
use crate::runtime::admission::{self, Plugin};
use crate::runtime::backoff::LOST_RACES;
use crate::runtime::client::ErrorClass;

/// Whether a failure is one more lost race.
pub fn lost_race(error: &Error, before: u32) -> bool {
    error.class() == ErrorClass::Conflict && before < LOST_RACES
}

/// How a reconcile has left the archive of a deletion.
pub fn left(view: &View, plan: &Plan, error: Option<&Error>) -> Left {
    match error {
        None if plan.report.waits => Left::Waiting,
        None if plan.report.checking => Left::Checking,
        None => Left::Working,
        Some(error) => refused(view, plan, error).map_or(Left::Working, Left::Refused),
    }
}

/// The answer of the API server, if it refused the request that the archive of a deletion needs next. However often that is retried, it is
/// no progress (see `deletion::best_effort`). An outage, a timeout or a lost race is no refusal.
pub fn refused(view: &View, plan: &Plan, error: &Error) -> Option<String> {
    let archiving = plan.report.current == Some(CurrentStep::Deletion(DeletionStep::ArchiveSessions));
    let change = matches!(&plan.next, Next::Do(action) if action.changes_child());
    (archiving && change && error.refused() && !deletion::archive_pod_runs(view)).then(|| error.to_string())
}

/// A failed request as users see it: what was tried, why it failed, that it is retried. `before`: failures in a row before this one.
pub fn explain(report: &mut Report, error: &Error, before: u32) {
    if lost_race(error, before) {
        report.unfinished = true;
        return;
    }
    let reason = match error.class() {
        _ if error.is_undone() => Reason::WriteUndone,
        ErrorClass::Conflict => Reason::Conflict,
        ErrorClass::Forbidden | ErrorClass::Unauthorized => Reason::Forbidden,
        ErrorClass::NamespaceTerminating => Reason::NamespaceTerminating,
        ErrorClass::Invalid => Reason::Refused,
        ErrorClass::NotFound => Reason::NotFound,
        ErrorClass::Transient | ErrorClass::Timeout if matches!(error, Error::Store(_)) => Reason::StoreUnavailable,
        ErrorClass::Transient | ErrorClass::Timeout => Reason::ApiServerUnavailable,
    };
    let error = error.to_string();
    let message = format!("{error}. {}The operator retries", remedy(&error).map(|what| format!("{what}. ")).unwrap_or_default());
    let running = report
        .deletion
        .iter_mut()
        .chain(report.provisioning.iter_mut())
        .find(|s| matches!(s.status, StepStatus::Running | StepStatus::Blocked));
    if let Some(step) = running {
        step.status = StepStatus::Blocked;
        step.error = Some(message.clone());
    }
    // A failed read does not make a usable computer unusable.
    let usable = matches!(report.phase, Some(Phase::Active | Phase::Suspended));
    if report.deletion.is_empty() && report.phase.is_some() && !usable {
        report.ready = Some(Ready { status: false, reason, message: message.clone() });
    }
    report.blocker = Some(Blocker { reason, message });
}

/// What to change when the namespace forbids an object: the API server names the quota or the limit, but not what to do. The operator's own
/// namespace may be the one that forbids it; the error names the object and its namespace.
fn remedy(error: &str) -> Option<&'static str> {
    // The defaults of a LimitRange are applied before the pod is validated.
    if error.contains("resources.requests: Invalid value: ") && error.contains(" must be less than or equal to ") {
        return Some(
            "If the ComputerClass does not set this limit, a LimitRange of the namespace does. Set the limit in the class, or raise the default of the LimitRange",
        );
    }
    Some(match admission::plugin(error)? {
        Plugin::Quota if error.contains("failed quota: ") => {
            "This ResourceQuota requires that every pod sets these fields. Set them in the ComputerClass, or give them a default with a LimitRange in the namespace"
        }
        Plugin::Quota => "Raise this ResourceQuota, delete what uses it, or use a ComputerClass or storage that needs less",
        Plugin::LimitRange => "Change the LimitRange of the namespace, or the resources in the ComputerClass",
        Plugin::ServiceAccount => "Create this ServiceAccount in the namespace, or change serviceAccountName in the ComputerClass",
        Plugin::PodSecurity => {
            "Change the pod template of the ComputerClass, or the Pod Security level of the namespace (label pod-security.kubernetes.io/enforce)"
        }
    })
}

/// What can be said of a computer when a read fails that had to come before its plan: what the record and the caches say, or else what
/// its status says already. Nothing is taken back that was shown before.
pub fn known(view: &View) -> Report {
    // An override counts only after a live read has confirmed it.
    let view = &View { overrides: Vec::new(), ..view.clone() };
    let begun = view.record.as_ref().is_some_and(|r| r.spec.state.deletion.is_some());
    let ending = view.computer.as_ref().is_some_and(|c| c.metadata.deletion_timestamp.is_some());
    let report = match (&view.record, &view.computer) {
        (Some(_), _) if begun || ending => deletion::plan(view).report,
        (Some(_), Some(_)) => provision::plan(view).report,
        (None, Some(computer)) => {
            let status = computer.status.as_ref();
            let phase = if ending { Phase::Deleting } else { status.and_then(|s| s.phase).unwrap_or(Phase::Provisioning) };
            Report { phase: Some(phase), current: status.and_then(|s| CurrentStep::from_id(s.step.as_deref()?)), ..Report::default() }
        }
        (_, None) => Report::default(),
    };
    // Which steps are finished is remembered from plans on confirmed reads only.
    Report { passed: BTreeMap::new(), ..report }
}

/// The accepted write requests of one reconcile.
#[derive(Default)]
pub struct Accepted(Vec<Action>);

/// How often one reconcile may make the same request: the second one confirms the first (a pod that was removed).
const CONFIRMED: usize = 2;

impl Accepted {
    /// The error if the plan repeats a request that was accepted before: the answers do not contain the change, so a webhook or a policy
    /// reverts it.
    pub fn undone(&self, action: &Action) -> Option<Error> {
        let times = self.0.iter().filter(|made| same(made, action)).count();
        (times >= CONFIRMED).then(|| Error::undone(name(action)))
    }

    /// It was accepted.
    pub fn note(&mut self, action: Action) {
        if !matches!(action, Action::Read(_) | Action::ReadComputer | Action::CheckArchive | Action::SaveRecord(_)) {
            self.0.push(action);
        }
    }
}

/// Whether two requests ask for the same change. What a patch tests before it (a version) does not count.
fn same(a: &Action, b: &Action) -> bool {
    let changes = |patch: &json_patch::Patch| {
        patch.0.iter().filter(|o| !matches!(o, json_patch::PatchOperation::Test(_))).cloned().collect::<Vec<_>>()
    };
    match (a, b) {
        (Action::Patch { subject: of_a, patch: a }, Action::Patch { subject: of_b, patch: b }) => of_a == of_b && changes(a) == changes(b),
        (Action::Retain { volume: of_a, patch: a }, Action::Retain { volume: of_b, patch: b }) => of_a == of_b && changes(a) == changes(b),
        _ => a == b,
    }
}

/// Describes an action, for logs and messages.
pub fn name(action: &Action) -> String {
    match action {
        Action::Read(subject) => format!("read {}", subject.describe()),
        Action::Delete { subject, .. } => format!("delete {}", subject.describe()),
        Action::Remove { subject, .. } => format!("remove {}", subject.describe()),
        Action::Patch { subject, .. } => format!("patch {}", subject.describe()),
        Action::Retain { volume, .. } => format!("set PersistentVolume {volume} to Retain"),
        Action::ReadComputer => "read the Computer".to_owned(),
        Action::AddFinalizer => "add the finalizer to the Computer".to_owned(),
        Action::DeleteComputer => "delete the Computer".to_owned(),
        Action::ReleaseFinalizer => "release the Computer".to_owned(),
        Action::CreateRecord(_) => "create the ComputerRecord".to_owned(),
        Action::SaveRecord(_) => "save the ComputerRecord".to_owned(),
        Action::Create(_) => "create a child".to_owned(),
        Action::CheckArchive => "check the archive".to_owned(),
        Action::PutReceipt(_) => "put the receipt".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::computer::action::Subject;
    use crate::runtime::patch;

    #[test]
    fn the_same_change_with_another_version_is_undone_the_third_time_and_another_change_is_not() {
        let patch = |version: &str, value: &str| Action::Patch {
            subject: Subject::volume("pv"),
            patch: json_patch::Patch(vec![
                patch::test(["metadata", "resourceVersion"], json!(version)),
                patch::add(["metadata", "labels"], json!({"mark": value})),
            ]),
        };
        let mut accepted = Accepted::default();
        for version in ["1", "2"] {
            assert!(accepted.undone(&patch(version, "a")).is_none(), "{version}");
            accepted.note(patch(version, "a"));
        }
        let error = accepted.undone(&patch("3", "a")).unwrap();
        assert!(error.to_string().contains("patch PersistentVolume pv") && error.class() == ErrorClass::Invalid, "{error}");
        assert!(accepted.undone(&patch("3", "b")).is_none());
        let read = Action::Read(Subject::volume("pv"));
        (0..9).for_each(|_| accepted.note(read.clone()));
        assert!(accepted.undone(&read).is_none(), "reading again is no change that is undone");
    }

    #[test]
    fn a_refusal_of_the_namespace_says_what_to_change() {
        let forbidden = |why: &str| format!("creating Pod t/m: pods \"m\" is forbidden: {why} (403)");
        for (error, part) in [
            (forbidden("exceeded quota: q, requested: cpu=1, used: cpu=1, limited: cpu=1"), "Raise this ResourceQuota"),
            (forbidden("failed quota: q: must specify limits.cpu for: machine"), "LimitRange in the namespace"),
            (forbidden("maximum memory usage per Container is 512Mi, but limit is 1Gi"), "Change the LimitRange"),
            (forbidden("violates PodSecurity \"baseline:latest\": privileged"), "pod-security.kubernetes.io/enforce"),
            (forbidden("error looking up service account t/sa: serviceaccount \"sa\" not found"), "Create this ServiceAccount"),
            (
                "Pod \"m\" is invalid: spec.containers[0].resources.requests: Invalid value: \"1Gi\": must be less than or equal to memory \
                 limit of 256Mi (422)"
                    .to_owned(),
                "LimitRange of the namespace",
            ),
        ] {
            assert!(remedy(&error).is_some_and(|what| what.contains(part)), "{error}: {:?}", remedy(&error));
        }
        assert_eq!(remedy("pods is forbidden: User \"op\" cannot create resource \"pods\""), None);
    }

    /// C18: a webhook that answers 409 to everything was never reported.
    #[test]
    fn a_conflict_is_a_lost_race_until_it_lasts() {
        let error = Error::conflict("PersistentVolume pv");
        let reported = |before| {
            let mut report = Report { phase: Some(Phase::Deleting), ..Report::default() };
            explain(&mut report, &error, before);
            report.blocker.map(|b| b.reason)
        };
        assert_eq!((reported(0), reported(LOST_RACES - 1), reported(LOST_RACES)), (None, None, Some(Reason::Conflict)));
    }

    /// C9: a failure before the plan removed the blocker from the status and reset the alert.
    #[test]
    fn a_read_that_fails_before_the_plan_keeps_what_is_known() {
        let status = json!({"phase": "Active", "step": "archive-sessions"});
        let mut view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}, "status": status}));
        let mut report = known(&view);
        assert_eq!((report.phase, report.current.map(CurrentStep::id)), (Some(Phase::Active), Some("archive-sessions")));
        explain(&mut report, &Error::conflict("x"), LOST_RACES);
        assert!(report.ready.is_none() && report.blocker.is_some(), "a computer that can be used stays ready");
        let deletion = json!({"deletedAt": "2026-01-01T00:00:00Z", "cause": "ComputerDeleted"});
        let spec = json!({"namespace": "t", "computer": "c", "state": {"phase": "Deleting", "deletion": deletion}});
        view.record = Some(serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": spec})).unwrap());
        view.computer = None;
        let report = known(&view);
        assert_eq!((report.phase, report.current.map(CurrentStep::id)), (Some(Phase::Deleting), Some("revoke-credentials")));
    }
}
