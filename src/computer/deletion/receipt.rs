//! Step `write-receipt`: decides the content of the receipt (its times come from `times.rs`). `archive/receipt_writer.rs` writes it to the store,
//! create-only, and the digest is saved in the record. The copy in the store is the
//! authoritative one. This stays the last step: the receipt contains the results of all others. It must never contain a token or session
//! content.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Context, skipped_by};
use crate::computer::action::Action;
use crate::computer::step::State;
use crate::guards::{self, Guard};
use crate::resources::steps::{DeletionStep, Sequence};
use crate::resources::{Receipt, RecordPhase, SkippableStep, StepOutcome, Unknown};

pub(super) fn step(context: &Context<'_>) -> State {
    let skipped = context.view.skipped(SkippableStep::WriteReceipt);
    if let Some(receipt) = context.deletion().and_then(|d| d.receipt.as_ref()) {
        return match skipped.filter(|_| receipt.store_key.is_none()) {
            Some(by) => State::skipped(format!("the record holds the receipt; {}", skipped_by(by))),
            None => State::verified(format!("receipt sha256:{}", receipt.digest)),
        };
    }
    if skipped.is_some() || !guards::on(Guard::ReceiptFirst) {
        return save(context, None, &text(context));
    }
    match &context.view.receipt {
        None => State::act(Action::PutReceipt(text(context))),
        Some(stored) => save(context, Some(crate::archive::receipt_key(&context.view.uid)), stored),
    }
}

/// Records the receipt. The stored copy is authoritative and may come from an earlier attempt or another leader, so its results replace
/// those in the record.
fn save(context: &Context<'_>, store_key: Option<String>, stored: &[u8]) -> State {
    let at = MicroTime(context.not_before(DeletionStep::WriteReceipt));
    let digest = hex::encode(Sha256::digest(stored));
    context.save(|r| {
        r.spec.state.phase = RecordPhase::Released;
        if let Some(deletion) = &mut r.spec.state.deletion {
            for (step, outcome) in outcomes_in(stored) {
                deletion.steps.insert(step, outcome);
            }
            deletion.receipt = Some(Receipt { store_key, digest, at, unknown: Unknown::new() });
        }
    })
}

/// The steps of a stored receipt.
fn outcomes_in(stored: &[u8]) -> Vec<(DeletionStep, StepOutcome)> {
    let receipt: Value = serde_json::from_slice(stored).unwrap_or_default();
    let step = |step: &Value| {
        let mut outcome = StepOutcome::deserialize(step).ok()?;
        outcome.unknown.remove("step");
        Some((DeletionStep::from_id(step["step"].as_str()?)?, outcome))
    };
    receipt["steps"].as_array().into_iter().flatten().filter_map(step).collect()
}

/// The receipt: which computer, when, what was revoked, archived, deleted or kept, and by which decision.
fn text(context: &Context<'_>) -> Vec<u8> {
    let spec = &context.record.spec;
    let step = |(step, o): (DeletionStep, StepOutcome)| json!({"step": step.id(), "result": o.result, "detail": o.detail, "at": o.at});
    let steps: Vec<_> = context.outcomes().into_iter().map(step).collect();
    let receipt = json!({
        "apiVersion": "computer-operator.dev/v1alpha1",
        "kind": "Receipt",
        "computer": {
            "namespace": spec.namespace, "namespaceUid": spec.namespace_uid, "name": spec.computer, "uid": context.view.uid,
            "provider": spec.provider, "className": spec.class_name,
        },
        "deletedAt": context.deletion().map(|d| &d.deleted_at),
        "cause": context.deletion().map(|d| &d.cause),
        "writtenAt": MicroTime(context.not_before(DeletionStep::WriteReceipt)),
        "steps": steps,
        "archive": context.deletion().and_then(|d| d.archive.as_ref()),
        "volume": spec.state.children.volume,
        "handedOff": context.deletion().is_some_and(|d| d.handed_off),
    });
    serde_json::to_vec_pretty(&receipt).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::resources::steps::StepResult;

    /// A deletion that is upgraded between the write to the store and the save of the record reads this receipt.
    #[test]
    fn a_receipt_of_b296e59_is_read() {
        let stored = r#"{
  "apiVersion": "computer-operator.dev/v1alpha1",
  "archive": {"bytes": 12, "manifestDigest": "d", "problems": 0, "sessions": 1},
  "cause": "ComputerDeleted",
  "computer": {"className": "standard", "name": "c", "namespace": "t", "provider": "Managed", "uid": "u"},
  "deletedAt": "2026-11-27T10:00:00Z",
  "handedOff": false,
  "kind": "Receipt",
  "steps": [
    {"at": "2026-11-27T10:00:01Z", "detail": "the key is revoked and its Secret is gone", "result": "Verified", "step": "revoke-credentials"},
    {"at": "2026-11-27T10:00:02Z", "detail": "by DeletionOverride o: node lost", "result": "Skipped", "step": "stop-pods"},
    {"at": "2026-11-27T10:00:03Z", "detail": "no home volume was ever bound", "result": "NotApplicable", "step": "archive-sessions"},
    {"at": "2026-11-27T10:00:04Z", "detail": "volume pv is gone", "result": "Verified", "step": "delete-volumes"}
  ],
  "volume": {"name": "pv", "originalReclaimPolicy": "Delete", "uid": "pv-uid"},
  "writtenAt": "2026-11-27T10:00:05Z"
}"#;
        let read: Vec<_> = outcomes_in(stored.as_bytes())
            .into_iter()
            .map(|(step, o)| (step, o.result, o.at.0.as_second() - 1_795_773_600, o.unknown.len()))
            .collect();
        let expected = [
            (DeletionStep::RevokeCredentials, StepResult::Verified, 1, 0),
            (DeletionStep::StopPods, StepResult::Skipped, 2, 0),
            (DeletionStep::ArchiveSessions, StepResult::NotApplicable, 3, 0),
            (DeletionStep::DeleteVolumes, StepResult::Verified, 4, 0),
        ];
        assert_eq!(read, expected);
    }
}
