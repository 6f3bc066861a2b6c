//! Conditions by the Kubernetes API conventions: one entry per type, `lastTransitionTime` changes only with `status`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::reasons::Reason;

/// Condition types of a `Computer`, a `ComputerClass`, an `ApiKey` and an `ArchiveErasure`.
pub mod types {
    /// The computer is as declared: the machine can be used and its key is live, or it is suspended because `spec.suspended` says so (reason
    /// `Suspended`). The token of an `ApiKey` can be used.
    pub const READY: &str = "Ready";
    /// A deletion is in progress; reason and message name the step, and what it waits for.
    pub const DELETING: &str = "Deleting";
    /// A step of a deletion, or an erasure, waits for something that does not happen by itself.
    pub const BLOCKED: &str = "Blocked";
    /// The class or the spec differs from what was provisioned; shown, never applied silently.
    pub const DRIFTED: &str = "Drifted";
    /// Nothing happens until a user changes something. It is present only while it is `True`, with the reason and the message of `Ready`,
    /// `Accepted` or `Complete`: kstatus treats it as a failure, and so do `helm --wait`, Flux and Argo CD.
    pub const STALLED: &str = "Stalled";
    /// The class can be used.
    pub const ACCEPTED: &str = "Accepted";
    /// The archives that an `ArchiveErasure` names are erased.
    pub const COMPLETE: &str = "Complete";
}

/// Sets one condition. `lastTransitionTime` is kept while the status is the same.
pub fn set(conditions: &mut Vec<Condition>, type_: &str, status: bool, reason: Reason, message: &str, generation: Option<i64>, now: &Time) {
    let status = if status { "True" } else { "False" };
    let mut new = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.as_str().to_owned(),
        message: truncate(message, 1024),
        observed_generation: generation,
        last_transition_time: now.clone(),
    };
    match conditions.iter_mut().find(|c| c.type_ == type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// Sets `Stalled` if `good` is false and the reason needs a change by a user; otherwise removes it. Reason and message are copied from `Ready`,
/// `Accepted` or `Complete`.
pub fn set_stalled(conditions: &mut Vec<Condition>, good: bool, reason: Reason, message: &str, generation: Option<i64>, now: &Time) {
    if !good && reason.needs_a_change() {
        set(conditions, types::STALLED, true, reason, message, generation, now);
    } else {
        remove(conditions, types::STALLED);
    }
}

/// Removes a condition that no longer applies.
pub fn remove(conditions: &mut Vec<Condition>, type_: &str) {
    conditions.retain(|c| c.type_ != type_);
}

/// Whether a condition is `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    conditions.iter().any(|c| c.type_ == type_ && c.status == "True")
}

/// Truncates at a character boundary: the API server refuses longer texts (events: 1,024 bytes).
pub fn truncate(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max.saturating_sub(3);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end])
}
