//! Step 3, `archive-sessions`: the volume goes into custody, the archive pod reads it, the store's manifest is verified.
//!
//! Passed only when the verifier has read the whole archive of this UID back (S1), or when the class or an authorised
//! override says that none is wanted. A pod that says it succeeded proves nothing.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{Context, Outcome, State, best_effort, custody};
use crate::archive::{Summary, Verification};
use crate::computer::action::{Action, Object, Subject};
use crate::computer::report::Blocker;
use crate::resources::{ArchivePolicy, ArchiveResult, IMAGE_ANNOTATION, Provider, SkippableStep, Unknown};

/// Exit code of the archive pod when something cannot be read and the class says `unreadableFiles: Block`.
const EXIT_UNREADABLE: i32 = 3;

pub(super) fn step(context: &Context<'_>) -> State {
    let snapshot = &context.record.spec.snapshot;
    if context.record.spec.provider == Provider::BYOM {
        return State::not_applicable("the machine is not ours: its sessions stay on it");
    }
    if context.record.spec.state.children.volume.is_none() {
        return State::not_applicable("no home volume was ever bound");
    }
    if let Some(archive) = context.deletion().and_then(|d| d.archive.as_ref()) {
        return State::verified(said_of(archive));
    }
    // A decision, not a fact to be looked at again: the volume may be gone since (S9).
    if let Some(left_out) = context.finished("archive-sessions").filter(|o| o.result == format!("{:?}", Outcome::Skipped)) {
        return State::Done(Outcome::Skipped, left_out.detail.clone());
    }
    if snapshot.archive.policy == ArchivePolicy::None {
        return State::not_applicable("the class wants no archive");
    }
    if let Some(by) = context.view.skipped(SkippableStep::ArchiveSessions) {
        return State::Done(Outcome::Skipped, super::receipt::skipped_by(by));
    }
    let mut state = custody_first(context);
    if snapshot.archive.policy == ArchivePolicy::BestEffort {
        state = best_effort::step(context, state);
    }
    let seconds = snapshot.deadlines.archive_sessions_seconds;
    match state {
        State::Wait(after) if context.overdue("archive-sessions", seconds) => State::Blocked(overdue(seconds), after),
        State::Checking(_) if context.overdue("archive-sessions", seconds) => State::Checking(Some(overdue(seconds))),
        state => state,
    }
}

fn overdue(seconds: i64) -> Blocker {
    let message = format!(
        "the archive takes longer than {seconds} s; it goes on. `kubectl logs` of its pod tells how far it is; when that has ended, the archive is read back"
    );
    Blocker { reason: "ArchiveOverdue", message }
}

/// What the step, its event and the receipt say of a verified archive. What is not in it comes first.
pub(super) fn said_of(archive: &ArchiveResult) -> String {
    let whole = format!("{} {}, manifest sha256:{}", archive.sessions, plural(archive.sessions, "session"), archive.manifest_digest);
    if archive.problems == 0 {
        return whole;
    }
    let by = archive.left_out.as_deref().unwrap_or("they changed while they were read");
    format!("WITHOUT {} {} that the manifest names ({by}); {whole}", archive.problems, plural(archive.problems, "file"))
}

fn plural(count: i64, what: &str) -> String {
    if count == 1 { what.to_owned() } else { format!("{what}s") }
}

fn custody_first(context: &Context<'_>) -> State {
    if let Some(state) = custody::take(context) {
        return state;
    }
    match &context.view.archive {
        None => State::act(Action::CheckArchive),
        Some(Verification::Running) => State::Checking(None),
        Some(Verification::Valid(summary)) => verified(context, summary),
        Some(Verification::Missing) => match (pod(context), context.attempts()) {
            (State::Wait(after), attempts) if attempts > 1 => State::Blocked(again(context, attempts), after),
            (state, _) => state,
        },
        Some(Verification::Invalid(why)) => State::blocked(
            "ArchiveDamaged",
            format!(
                "the archive in the store does not verify: {why}. Nothing was destroyed; repair the store, or create a DeletionOverride that skips archive-sessions"
            ),
            60,
        ),
        Some(Verification::Unavailable(why)) => {
            State::blocked("StoreUnavailable", format!("the archive store does not answer: {why}. It is tried again"), 15)
        }
    }
}

/// The archive was read back: its result goes on record.
pub(super) fn verified(context: &Context<'_>, summary: &Summary) -> State {
    let result = ArchiveResult {
        manifest_digest: summary.manifest_digest.clone(),
        sessions: i64::try_from(summary.sessions).unwrap_or(i64::MAX),
        bytes: i64::try_from(summary.bytes).unwrap_or(i64::MAX),
        problems: i64::try_from(summary.problems).unwrap_or(i64::MAX),
        left_out: Some(summary.left_out_by.clone()).filter(|by| summary.problems > 0 && !by.is_empty()),
        unknown: Unknown::new(),
    };
    context.save(|r| {
        if let Some(deletion) = &mut r.spec.state.deletion {
            deletion.archive = Some(result);
        }
    })
}

/// What stood still stands still until an attempt succeeds: a store that takes nothing, say. Told only between two attempts, it would
/// look healthy for most of the time, and the alert's wait would begin anew with each of them (L2).
fn again(context: &Context<'_>, attempts: i32) -> Blocker {
    let message = format!(
        "archive attempt {attempts} is under way, those before it have failed: `kubectl logs -n {} {}` says how it goes",
        context.view.settings.namespace,
        context.view.archive_pod_name(attempts)
    );
    Blocker { reason: "ArchiveFailed", message }
}

/// Makes, watches and repeats the archive pod.
fn pod(context: &Context<'_>) -> State {
    let namespace = &context.view.settings.namespace;
    let custody = context.deletion().and_then(|d| d.custody.clone()).unwrap_or_default();
    let attempt = context.attempts();
    let name = context.view.archive_pod_name(attempt);
    let subject = Subject::pod(namespace, &name);
    let Some(found) = context.view.pod(namespace, &name) else { return State::act(Action::Read(subject)) };
    let Some(pod) = found else {
        if custody.pod_uid.is_some() {
            return record_attempt(context, attempt + 1, None);
        }
        return State::act(Action::Create(Object::Pod(Box::new(custody::archive_pod(context.view, context.record, &name)))));
    };
    if custody.pod_uid.is_none() || custody.claim_uid.is_empty() {
        return record_attempt(context, attempt, pod.metadata.uid.clone());
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return super::volumes::archive_pod(context, &subject, pod);
    }
    match pod.status.as_ref().and_then(|s| s.phase.as_deref()) {
        Some("Succeeded" | "Failed") => ended(context, pod, attempt, subject),
        Some("Pending") | None if other_image(context, pod) || custody::told_otherwise(context.view, context.record, pod) => {
            State::act(Action::Delete { subject, uid: pod.metadata.uid.clone().unwrap_or_default() })
        }
        _ => waiting(context, pod),
    }
}

/// A pod that has not started and is not of the operator's present image: an admin has mended the image meanwhile.
fn other_image(context: &Context<'_>, pod: &Pod) -> bool {
    let image = pod.metadata.annotations.as_ref().and_then(|a| a.get(IMAGE_ANNOTATION));
    image.is_some_and(|i| *i != context.view.settings.image)
}

fn record_attempt(context: &Context<'_>, attempt: i32, pod_uid: Option<String>) -> State {
    let claim_uid = custody::claim_uid(context.view).unwrap_or_default();
    context.save(|r| {
        if let Some(deletion) = &mut r.spec.state.deletion {
            let custody = deletion.custody.get_or_insert_default();
            (custody.claim_uid, custody.pod_uid, custody.attempt) = (claim_uid, pod_uid, attempt);
        }
    })
}

/// An archive pod that ended without a manifest in the store is replaced by another attempt, later each time.
fn ended(context: &Context<'_>, pod: &Pod, attempt: i32, subject: Subject) -> State {
    let terminated =
        pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()).find_map(|c| c.state.as_ref()?.terminated.as_ref());
    let code = terminated.map(|t| t.exit_code);
    // The node's clock may be ahead of ours; its pod was made by the API server's.
    let ended = terminated.and_then(|t| t.finished_at.as_ref()).filter(|at| at.0 <= context.view.now);
    let finished = ended.or(pod.metadata.creation_timestamp.as_ref()).map_or(context.view.now, |t| t.0);
    let pause = match code {
        Some(EXIT_UNREADABLE) if context.view.skipped(SkippableStep::UnreadableFiles).is_some() => 0,
        Some(EXIT_UNREADABLE) => 300,
        _ => retry_pause(attempt),
    };
    // An API server whose clock was set back must not make it longer.
    let left = (pause - seconds_since(context.view.now, finished)).min(pause);
    if left <= 0 {
        return State::act(Action::Delete { subject, uid: pod.metadata.uid.clone().unwrap_or_default() });
    }
    let retry = u64::try_from(left).unwrap_or(1);
    // An evicted pod has no container that could say anything.
    let said = terminated.and_then(|t| t.message.clone()).or_else(|| pod.status.as_ref()?.message.clone()).unwrap_or_default();
    if code == Some(EXIT_UNREADABLE) {
        return State::blocked(
            "UnreadableFiles",
            format!(
                "the machine's own user cannot read what its home holds: {said}. The class says Block: create a DeletionOverride that skips unreadable-files to archive the rest and give these up"
            ),
            retry,
        );
    }
    State::blocked(
        "ArchiveFailed",
        format!(
            "archive attempt {attempt} ended {}: {said}. It is tried again; see the logs of {}",
            code.map_or_else(|| "without a container".to_owned(), |code| format!("with code {code}")),
            subject.describe()
        ),
        retry,
    )
}

/// Seconds before the next attempt: 2, 4, 8 … at most 5 minutes.
fn retry_pause(attempt: i32) -> i64 {
    2_i64.saturating_pow(attempt.clamp(1, 9).unsigned_abs()).min(300)
}

fn seconds_since(now: Timestamp, then: Timestamp) -> i64 {
    now.duration_since(then).as_secs()
}

/// Seconds that an archive pod has to start before that is told.
const START_SECONDS: i64 = 60;

fn waiting(context: &Context<'_>, pod: &Pod) -> State {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref();
    let stuck = status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten())
        .find_map(|c| c.state.as_ref()?.waiting.as_ref())
        .filter(|w| !matches!(w.reason.as_deref(), Some("ContainerCreating" | "PodInitializing") | None));
    if let Some(w) = stuck {
        let reason = w.reason.as_deref().unwrap_or_default();
        let message = w.message.as_deref().unwrap_or_default();
        return State::blocked("ArchivePodWaiting", format!("archive pod {name} cannot start: {reason}: {message}"), 15);
    }
    let unschedulable =
        status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == "PodScheduled" && c.status == "False");
    match unschedulable {
        Some(c) => State::blocked(
            "ArchivePodUnschedulable",
            format!("archive pod {name} cannot be scheduled: {}", c.message.as_deref().unwrap_or_default()),
            15,
        ),
        None if late(context, pod) => State::blocked(
            "ArchivePodWaiting",
            format!(
                "archive pod {name} has not started yet: `kubectl -n {} describe pod {name}` says why",
                context.view.settings.namespace
            ),
            15,
        ),
        None => State::wait(15),
    }
}

/// Whether a pod should run by now: its volume cannot be mounted, mostly.
fn late(context: &Context<'_>, pod: &Pod) -> bool {
    let pending = pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_none_or(|phase| phase == "Pending");
    pending && pod.metadata.creation_timestamp.as_ref().is_some_and(|at| seconds_since(context.view.now, at.0) > START_SECONDS)
}
