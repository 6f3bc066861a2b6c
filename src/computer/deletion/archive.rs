//! Step `archive-sessions`: the volume is rebound to a claim in the operator's namespace (`custody.rs`, DESIGN.md 4.5), an archive pod there
//! reads it, and the archive in the store is verified. The texts of store failures come from `archive/store_failure.rs`, those of an upload from
//! `archive/uploads.rs`.
//!
//! Finished only when the verifier has read back the whole archive of this UID (S1), or when the class or an authorized override says that
//! none is wanted. The phase `Succeeded` of a pod must never count as proof.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::archive_pod::{self, archive_pod, has_other_instructions};
use super::{Context, best_effort, custody, outcome};
use crate::archive::pod_program::{EXIT_TOO_LARGE, EXIT_UNREADABLE};
use crate::archive::uploads::Upload;
use crate::archive::{Summary, Verification};
use crate::computer::action::{Action, Object, Subject};
use crate::computer::report::Blocker;
use crate::computer::step::{Finished, State};
use crate::resources::reasons::Reason;
use crate::resources::steps::{DeletionStep, StepResult};
use crate::resources::{ArchivePolicy, ArchiveResult, IMAGE_ANNOTATION, Provider, SkippableStep, Unknown};

pub(super) fn step(context: &Context<'_>) -> State {
    let snapshot = &context.record.spec.snapshot;
    if context.record.spec.provider == Provider::BYOM {
        return State::not_applicable("the operator does not run the machine: its sessions stay on it");
    }
    if context.record.spec.state.children.volume.is_none() {
        return State::not_applicable("no home volume was ever bound");
    }
    if let Some(archive) = context.deletion().and_then(|d| d.archive.as_ref()) {
        return State::verified(summary_of(archive));
    }
    // This is decided once: the volume may be gone by now (S9).
    if let Some(skipped) = context.on_record(DeletionStep::ArchiveSessions).filter(|o| o.result == StepResult::Skipped) {
        return State::skipped(skipped.detail.clone());
    }
    if snapshot.archive.policy == ArchivePolicy::None {
        return State::not_applicable("the class wants no archive");
    }
    if let Some(by) = context.view.skipped(SkippableStep::ArchiveSessions) {
        return State::skipped(super::skipped_by(by));
    }
    let mut state = custody_first(context);
    if snapshot.archive.policy == ArchivePolicy::BestEffort {
        state = best_effort::step(context, state);
    }
    match state {
        State::Wait(after) if context.overdue(DeletionStep::ArchiveSessions) => State::Blocked(overdue(context), after),
        State::Checking(_) if context.overdue(DeletionStep::ArchiveSessions) => State::Checking(Some(overdue(context))),
        state => state,
    }
}

/// The command that shows the logs of the archive pod.
fn logs(context: &Context<'_>) -> String {
    format!("`kubectl logs -n {} {}`", context.view.settings.namespace, context.view.archive_pod_name(context.attempts()))
}

fn overdue(context: &Context<'_>) -> Blocker {
    let message = format!(
        "archiving has exceeded its deadline of {} s and is still running. See the progress with {}. When the pod has finished, the archive is \
         verified",
        context.record.spec.snapshot.deadlines.archive_sessions_seconds,
        logs(context)
    );
    Blocker { reason: Reason::ArchiveOverdue, message }
}

/// The text about a verified archive in the step, its event and the receipt. Files that are missing in it come first.
fn summary_of(archive: &ArchiveResult) -> String {
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
        None if has_just_begun(context) => next_of_attempt(context),
        None => State::act(Action::CheckArchive),
        Some(Verification::Running) => State::Checking(None),
        Some(Verification::Valid(summary)) => verified(context, summary),
        Some(Verification::Missing) => next_of_attempt(context),
        Some(Verification::Invalid(why)) => State::blocked(
            Reason::ArchiveDamaged,
            format!(
                "the archive in the store does not verify: {why}. Nothing was destroyed. Repair the store, or create a DeletionOverride that skips \
                 archive-sessions"
            ),
            60,
        ),
        Some(Verification::Unavailable(why)) => {
            State::blocked(Reason::StoreUnavailable, format!("the archive store is not available: {why}. The operator retries"), 15)
        }
    }
}

/// Whether the archive pod was created a moment ago and has not ended: the store has no archive yet, and each event of the pod would read it.
/// Later the store is asked each time, because the node of a pod that has archived may be lost before it reports the end.
fn has_just_begun(context: &Context<'_>) -> bool {
    let recorded = context.deletion().and_then(|d| d.custody.as_ref()?.pod_uid.as_ref());
    archive_pod::latest(context.view, context.record).is_some_and(|pod| {
        let created = pod.metadata.creation_timestamp.as_ref().map(|at| seconds_since(context.view.now, at.0));
        let works = pod.metadata.deletion_timestamp.is_none() && !archive_pod::ended(pod);
        works && recorded.is_some() && recorded == pod.metadata.uid.as_ref() && created.is_some_and(|s| (0..UNASKED_SECONDS).contains(&s))
    })
}

/// Seconds in which a new archive pod is not expected to have archived without having ended.
const UNASKED_SECONDS: i64 = 15;

/// The next request of the attempt, or what it waits for. A second attempt keeps the step blocked.
fn next_of_attempt(context: &Context<'_>) -> State {
    match (attempt(context), context.attempts()) {
        (State::Wait(after), attempts) if attempts > 1 => State::Blocked(repeated(context, attempts), after),
        (state, _) => state,
    }
}

/// The archive was read back. Its result and the end of the step are recorded before the volume is deleted (S1).
pub(super) fn verified(context: &Context<'_>, summary: &Summary) -> State {
    let result = ArchiveResult {
        manifest_digest: summary.manifest_digest.clone(),
        sessions: i64::try_from(summary.sessions).unwrap_or(i64::MAX),
        bytes: i64::try_from(summary.bytes).unwrap_or(i64::MAX),
        problems: i64::try_from(summary.problems).unwrap_or(i64::MAX),
        left_out: Some(summary.left_out_by.clone()).filter(|by| summary.problems > 0 && !by.is_empty()),
        unknown: Unknown::new(),
    };
    let finished = Finished { result: StepResult::Verified, detail: summary_of(&result) };
    context.save_deletion(|d| {
        d.finish(DeletionStep::ArchiveSessions, outcome(&finished, context.not_before(DeletionStep::ArchiveSessions)));
        d.archive = Some(result);
    })
}

/// Keeps the step blocked until an attempt succeeds, for example while the store accepts nothing. A blocker only between two attempts would
/// look healthy most of the time, and the alert's waiting time would restart with each attempt (L2).
fn repeated(context: &Context<'_>, attempts: i32) -> Blocker {
    let before = i64::from(attempts).saturating_sub(1);
    let failed = plural(before, "earlier attempt");
    let message = format!("archive attempt {attempts} is running; {before} {failed} failed. See {}", logs(context));
    Blocker { reason: failure(context, |_| true), message }
}

/// The reason of an archive that failed: one cause has one reason, while its pod runs and between two attempts.
fn failure(context: &Context<'_>, of_pod: impl Fn(&Upload) -> bool) -> Reason {
    let store = context.view.upload.as_ref().is_some_and(|upload| upload.failed && of_pod(upload));
    if store { Reason::StoreUnavailable } else { Reason::ArchiveFailed }
}

/// Creates, watches and repeats the archive pod.
fn attempt(context: &Context<'_>) -> State {
    let namespace = &context.view.settings.namespace;
    let custody = context.deletion().and_then(|d| d.custody.clone()).unwrap_or_default();
    let attempt = context.attempts();
    let name = context.view.archive_pod_name(attempt);
    let subject = Subject::pod(namespace, &name);
    let known = context.view.pod(namespace, &name);
    let Some(pod) = known.flatten() else {
        if custody.pod_uid.is_some() {
            return if known.is_none() { State::read(subject) } else { record_attempt(context, attempt + 1, None) };
        }
        // A refused create does not say whether the pod exists: admission and quotas come first, and the pod itself may fill a quota.
        if known.is_none() && context.view.failures > 0 {
            return State::read(subject);
        }
        // If it exists, the API server says so, and it is read then.
        return State::act(Action::Create(Object::Pod(Box::new(archive_pod(context.view, context.record, &name)))));
    };
    if custody.pod_uid.is_none() || custody.claim_uid.is_empty() {
        return record_attempt(context, attempt, pod.metadata.uid.clone());
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return super::volumes::remove_archive_pod(context, &subject, pod);
    }
    match pod.status.as_ref().and_then(|s| s.phase.as_deref()) {
        _ if archive_pod::ended(pod) => ended(context, pod, attempt, subject),
        _ if archive_pod::runs(pod) => uploading(context, pod),
        Some("Pending") | None if has_other_image(context, pod) || has_other_instructions(context.view, context.record, pod) => {
            State::act(Action::Delete { subject, uid: pod.metadata.uid.clone().unwrap_or_default() })
        }
        _ => waiting(context, pod),
    }
}

/// The archive pod repeats what the store does not take, for ten minutes. Nobody would know why until then.
fn uploading(context: &Context<'_>, pod: &Pod) -> State {
    match upload_of(context, pod).and_then(|upload| upload.failing.as_ref()) {
        Some(why) => State::blocked(
            Reason::StoreUnavailable,
            format!("the archive store accepts no objects from the archive pod: {why}. The pod retries. See {}", logs(context)),
            15,
        ),
        None => State::wait(15),
    }
}

/// What this pod has sent. What an earlier attempt sent is not its upload.
fn upload_of<'a>(context: &Context<'a>, pod: &Pod) -> Option<&'a Upload> {
    context.view.upload.as_ref().filter(|upload| pod.metadata.uid.as_deref() == Some(&upload.pod))
}

/// Seconds after which the status shows how far an upload is. Small homes are archived by then, and cost no write.
const PROGRESS_SECONDS: i64 = 10;

/// How far the archive is, for the status. How far an attempt was that has ended is no news: it would be another write to a computer that is
/// blocked (L6).
pub(super) fn progress(context: &Context<'_>) -> Option<String> {
    let slow = context.running_for(DeletionStep::ArchiveSessions) >= PROGRESS_SECONDS;
    if !slow || context.current() != Some(DeletionStep::ArchiveSessions) {
        return None;
    }
    let upload = || best_effort::running_archive_pod(context.view).and_then(|pod| upload_of(context, pod)).map(ToString::to_string);
    context.view.read_back.map(|read_back| read_back.to_string()).or_else(upload)
}

/// Whether a pod has another image than the operator: an admin has fixed the image since the pod was created.
fn has_other_image(context: &Context<'_>, pod: &Pod) -> bool {
    let image = pod.metadata.annotations.as_ref().and_then(|a| a.get(IMAGE_ANNOTATION));
    image.is_some_and(|i| *i != context.view.settings.image)
}

fn record_attempt(context: &Context<'_>, attempt: i32, pod_uid: Option<String>) -> State {
    let claim_uid = custody::claim_uid(context.view).unwrap_or_default();
    context.save_deletion(|d| {
        let custody = d.custody.get_or_insert_default();
        (custody.claim_uid, custody.pod_uid, custody.attempt) = (claim_uid, pod_uid, attempt);
    })
}

/// An archive pod that ended without an archive in the store is replaced by another attempt. The pause doubles with each attempt.
fn ended(context: &Context<'_>, pod: &Pod, attempt: i32, subject: Subject) -> State {
    let terminated = archive_pod::terminated(pod);
    let code = terminated.map(|t| t.exit_code);
    if code == Some(EXIT_TOO_LARGE) && !archive_pod::may_store_more(context.view, context.record, pod) {
        return too_large(context);
    }
    // The node's clock may be ahead of the operator's; the creation time comes from the API server.
    let ended = terminated.and_then(|t| t.finished_at.as_ref()).filter(|at| at.0 <= context.view.now);
    let finished = ended.or(pod.metadata.creation_timestamp.as_ref()).map_or(context.view.now, |t| t.0);
    let pause = match code {
        Some(EXIT_UNREADABLE) if context.view.skipped(SkippableStep::UnreadableFiles).is_some() => 0,
        Some(EXIT_UNREADABLE) => 300,
        Some(EXIT_TOO_LARGE) => 0,
        _ => retry_pause(attempt),
    };
    // An API server whose clock was set back must not make the pause longer.
    let left = (pause - seconds_since(context.view.now, finished)).min(pause);
    if left <= 0 {
        return State::act(Action::Delete { subject, uid: pod.metadata.uid.clone().unwrap_or_default() });
    }
    let retry = u64::try_from(left).unwrap_or(1);
    // An evicted pod may have no container status.
    let said = terminated.and_then(|t| t.message.clone()).or_else(|| pod.status.as_ref()?.message.clone()).unwrap_or_default();
    if code == Some(EXIT_UNREADABLE) {
        let message = format!(
            "the user of the machine cannot read some files in the home: {said}. The class says unreadableFiles: Block. Create a \
             DeletionOverride that skips unreadable-files to archive the rest and give these files up"
        );
        return State::blocked(Reason::UnreadableFiles, message, retry);
    }
    let how = code.map_or_else(|| "ended without a container".to_owned(), |code| format!("failed with exit code {code}"));
    let said = if said.is_empty() { said } else { format!(": {said}") };
    let message = format!("{} {how} (attempt {attempt}){said}. The operator retries. See the logs of this pod", subject.describe());
    let sent = |upload: &Upload| pod.metadata.uid.as_deref() == Some(&upload.pod);
    State::blocked(failure(context, sent), message, retry)
}

/// Another attempt would end in the same way, so there is none: the home does not change. The ended pod stays until the bound is raised.
fn too_large(context: &Context<'_>) -> State {
    let most = archive_pod::most_bytes(context.view, context.record);
    let class = context.record.spec.class_name.as_deref().unwrap_or("of this computer");
    let message = format!(
        "the archive of the home would have more than {most} bytes ({}), which archive.maxBytes of the ComputerClass {class}, or the operator's \
         default, allows. Nothing was destroyed. Raise archive.maxBytes of the class, which applies to this deletion at once, or create a \
         DeletionOverride that skips archive-sessions to give the sessions up",
        crate::archive::home_size::size(most)
    );
    State::blocked(Reason::ArchiveTooLarge, message, 60)
}

/// Seconds before the next attempt: 2, 4, 8 … at most 5 minutes.
fn retry_pause(attempt: i32) -> i64 {
    2_i64.saturating_pow(attempt.clamp(1, 9).unsigned_abs()).min(300)
}

fn seconds_since(now: Timestamp, then: Timestamp) -> i64 {
    now.duration_since(then).as_secs()
}

/// Seconds after which an archive pod that has not started is reported.
const START_SECONDS: i64 = 60;

fn waiting(context: &Context<'_>, pod: &Pod) -> State {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = &context.view.settings.namespace;
    let status = pod.status.as_ref();
    let stuck = status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten())
        .find_map(|c| c.state.as_ref()?.waiting.as_ref())
        .filter(|w| !matches!(w.reason.as_deref(), Some("ContainerCreating" | "PodInitializing") | None));
    if let Some(w) = stuck {
        let (reason, message) = (w.reason.as_deref().unwrap_or_default(), w.message.as_deref().unwrap_or_default());
        return State::blocked(Reason::ArchivePodWaiting, format!("archive pod {name} cannot start: {reason}: {message}"), 15);
    }
    let unschedulable =
        status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == "PodScheduled" && c.status == "False");
    match unschedulable {
        Some(c) => State::blocked(
            Reason::ArchivePodUnschedulable,
            format!("archive pod {name} cannot be scheduled: {}", c.message.as_deref().unwrap_or_default()),
            15,
        ),
        None if late(context, pod) => State::blocked(
            Reason::ArchivePodWaiting,
            format!("archive pod {name} has not started yet: see `kubectl describe pod -n {namespace} {name}`"),
            15,
        ),
        None => State::wait(15),
    }
}

/// Whether a pod should be running by now. The usual cause is a volume that cannot be mounted.
fn late(context: &Context<'_>, pod: &Pod) -> bool {
    let pending = pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_none_or(|phase| phase == "Pending");
    pending && pod.metadata.creation_timestamp.as_ref().is_some_and(|at| seconds_since(context.view.now, at.0) > START_SECONDS)
}
